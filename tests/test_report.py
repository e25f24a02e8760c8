"""`runner report`: what a page says, that it is what the terminal says, and that no text gets out of its place."""

import base64
import contextlib
import hashlib
import io
import json
import math
import random
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

import runner
from generated_runs import HOSTILE, config_of, rows_of, write_big_sweep, write_run, write_sweep
from runner.cli import evaluate, report
from runner.errors import InputError
from runner.job.confusion import Confusion, confusion
from runner.report import curves, examples, keys
from runner.report.confusion import MOST_CLASSES, blocks, png_of
from runner.report.page import page
from runner.storage import labels
from runner.storage.record_schema import write_record
from runner.storage.run_dir import RunDir
from runner.sweep import show, statistics, summary
from runner.sweep.settings import members
from runner.terminal import notices

TINY = ["dataset=fake", "dataset.train_size=40", "dataset.eval_size=30", "dataset.input_shape=[1,6,4]", "model=mlp"]
TINY += ["device.threads=1", "dataloader.batch_size=8", "trainer.epochs=1", "trainer.log_every=2", "quiet=true"]


class Read(HTMLParser):
    """A page's elements, and the text of its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.found, self.is_open = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])
        self.is_open = True

    def handle_endtag(self, tag):
        self.is_open = False

    def handle_data(self, data):
        if self.is_open:
            self.found[-1][2] += data


def write(*words):
    assert report.main(report.parser().parse_args([str(word) for word in words])) == 0


def data_of(path):
    (text,) = [text for tag, attrs, text in Read(path.read_text()).found if attrs.get("id") == "data"]
    return json.loads(text)


def data(folder, *words):
    """The data of a folder's new page."""
    write(folder, *words)
    return data_of(folder / "report.html")


def block(found, kind, heading=None):
    (one,) = [b for b in found["blocks"] if b["kind"] == kind and heading in (None, b.get("heading"))]
    return one


def charts(found, heading):
    return {chart["title"]: chart for chart in block(found, "charts", heading)["charts"]}


def line(chart, label):
    (one,) = [series for series in chart["series"] if series.get("label") == label]
    return one


# ------------------------------------------------------------------------------------------------------------ a page


def test_a_hostile_text_stays_a_text_and_the_policy_names_each_script_and_style():
    text = page(HOSTILE, [{"kind": "lines", "lines": [HOSTILE, "\u2028"]}], subtitle=HOSTILE, runs=[HOSTILE])
    read = Read(text)
    assert [tag for tag, _, _ in read.found if tag in ("script", "style", "img", "link", "iframe")] == [
        *("style", "style", "script", "script", "script")
    ]
    assert HOSTILE not in text and "window.hacked=1" in text  # the words are there, as words
    (policy,) = [attrs["content"] for _, attrs, _ in read.found if "http-equiv" in attrs]
    for kind in ("style", "script"):
        texts = [text for tag, attrs, text in read.found if tag == kind and "id" not in attrs]
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert f"{kind}-src " + " ".join(f"'sha256-{one}'" for one in hashes) in policy
    assert policy.startswith("default-src 'none';") and "http" not in policy and "unsafe" not in policy
    assert data_of_text(text)["title"] == HOSTILE.replace("\u202e", "\\u202e")


def data_of_text(text):
    return json.loads(next(text for _, attrs, text in Read(text).found if attrs.get("id") == "data"))


def test_what_is_not_finite_is_null_in_a_page():
    found = data_of_text(page("x", [{"kind": "lines", "lines": [math.nan, math.inf, 1.5]}]))
    assert found["blocks"][0]["lines"] == [None, None, 1.5]


def test_the_own_script_never_makes_html_out_of_text():
    from runner.report.page import asset

    script = asset("assets/report.js")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "http:",
        "https:",
        "fetch(",
    ):
        assert word not in script.replace("http://www.w3.org/2000/svg", "")


# ------------------------------------------------------------------------------------------------------------- a run


def test_a_run_says_its_result_with_the_interval_its_curves_and_what_happened(tmp_path):
    run = tmp_path / "run"
    rows = rows_of(4, 0.9, random.Random(0))
    resumed = [{"at": "2026-11-26T10:02:00.000+00:00", "epoch": 2, "batch": 3, "changes": ["trainer.epochs 2 -> 4"]}]
    steps = [{"step": i, "epoch": 1, "lr": 0.1, "train/loss": 1 / i} for i in range(1, 5001)]
    write_run(run, config_of(epochs=4, optimizer__lr=0.5), rows, resumed=resumed, steps=steps, state="done")
    job = {"identity": "0" * 16, "overrides": ["optimizer.lr=0.5"], "settings": {}}
    death = {"at": "2026-11-26T10:01:00.000+00:00", "exit_code": -9, "error": "killed"}
    write_record(run / "job.json", {**job, "deaths": [death]})
    found = data(run, "--no-examples")

    first = block(found, "headline")
    best = max(rows, key=lambda row: row["val/accuracy"])
    low, high = statistics.examples_interval(best["val/accuracy"], 500)
    assert first["items"][0] == {
        "label": "best val/accuracy",
        "value": f"{best['val/accuracy']:.4f}",
        "interval": f"{low:.4f} to {high:.4f}",
        "note": f"epoch {best['epoch']} of 4, 500 examples",
    }
    assert first["items"][1]["label"] == "test accuracy" and "400 examples" in first["items"][1]["note"]
    assert "best/val/accuracy is the maximum over 4 epochs: a little too good" in first["lines"]

    drawn = charts(found, "Curves")
    assert list(drawn) == ["accuracy", "loss", "learning rate", "train/loss by step", "seconds an epoch"]
    assert line(drawn["accuracy"], "val/accuracy")["y"] == [float(f"{row['val/accuracy']:.6g}") for row in rows]
    assert drawn["accuracy"]["marks"] == [{"x": best["epoch"], "label": "best"}] and drawn["loss"]["x"] == [1, 2, 3, 4]
    assert len(drawn["train/loss by step"]["x"]) <= curves.MOST_POINTS + 1
    assert drawn["train/loss by step"]["x"][-1] == 5000
    assert block(found, "charts")["lines"] == ["One in 3 of 5,000 rows of steps is drawn."]

    events = block(found, "timeline")["events"]
    assert [event["what"] for event in events] == ["started", "died", "resumed", "done"]
    assert [event["place"] for event in events] == [0.0, 0.2, 0.4, 1.0]
    assert events[1]["text"] == "exit code -9; killed"
    assert events[2]["text"] == "after epoch 2, batch 3; trainer.epochs 2 -> 4"

    marked = {row["key"]: row for row in block(found, "config")["rows"]}
    assert marked["optimizer.lr"]["isOther"] and marked["optimizer.lr"]["default"] == "1.0"
    assert not marked["scheduler.gamma"]["isOther"] and not marked["device.threads"]["isOther"]
    assert block(found, "command")["text"] == "python -m runner optimizer.lr=0.1"
    assert ["parameters", "1,234"] in block(found, "pairs")["rows"]


def test_a_run_without_accuracy_with_gaps_and_several_learning_rates_is_drawn(tmp_path):
    config = config_of(monitor="val/loss", trainer__mode="min", epochs=3)
    rows = [
        {"epoch": e, "step": e, "lr": [0.1, 0.01], "train/loss": None if e == 2 else 1 / e, "val/loss": 1 / e}
        for e in (1, 2, 3)
    ]
    write_run(tmp_path / "run", config, rows, failure="diverged", state="failed", error="the loss is not finite")
    found = data(tmp_path / "run")
    first = block(found, "headline")
    assert first["state"] == "diverged" and first["error"] == "the loss is not finite"
    assert "interval" not in first["items"][0] and not any("interval" in text for text in first["lines"])
    drawn = charts(found, "Curves")
    assert line(drawn["loss"], "train/loss")["y"] == [1.0, None, 0.333333]
    assert [series["label"] for series in drawn["learning rate"]["series"]] == ["lr[0]", "lr[1]"]
    (said,) = block(found, "lines", "Confusion")["lines"]
    assert said.startswith("Without confusion matrix") and "diverged" in said


def test_a_value_that_is_a_fraction_by_chance_has_no_interval(tmp_path):
    config = config_of(monitor="val/distance", trainer__mode="min", epochs=2)
    rows = [{"epoch": e, "step": e, "lr": 0.1, "val/distance": value} for e, value in ((1, 0.3333), (2, 0.0))]
    write_run(tmp_path, config, rows)
    first = block(data(tmp_path, "--no-examples"), "headline")
    assert [item["value"] for item in first["items"][:2]] == ["0.0000", "0.0000"]
    assert not any("interval" in item for item in first["items"])


def test_a_run_that_never_began_is_a_page_with_its_error(tmp_path):
    write_run(
        tmp_path,
        config_of(),
        [],
        state="failed",
        error="model=x: cannot be made",
        config_yaml=None,
        monitor=None,
        mode=None,
    )
    found = data(tmp_path)
    assert block(found, "headline")["error"] == "model=x: cannot be made"
    assert not [b for b in found["blocks"] if b["kind"] == "charts"]


def test_labels_are_those_of_today(tmp_path):
    rows = rows_of(2, 0.9, random.Random(0))
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, config_of(), rows, tags=["old"], notes="before")
    labels.add(RunDir(tmp_path / "a"), {"added": ["new"], "removed": ["old"], "notes": "a better note"})
    labels.add(RunDir(tmp_path / "b"), {"archived": True})
    said = block(data(tmp_path / "a", "--no-examples"), "headline")["lines"]
    assert said[:2] == ["Note: a better note", "Tags: new"]
    found = data(tmp_path)
    assert found["runs"] == ["a", "c"] and notices.take() == ["archived runs, left out: 1"]
    assert [row["cells"][-1]["t"] for row in block(found, "table", "Runs")["rows"]] == ["new", "old"]


# ----------------------------------------------------------------------------------------------------------- a sweep


def test_the_summary_is_cell_by_cell_what_the_terminal_prints(tmp_path):
    bad = {
        0: {"state": "failed", "failure": "diverged", "error": "not finite", "rows": 1},
        4: {"state": "interrupted", "rows": 1},
    }
    write_sweep(tmp_path, [{"optimizer__lr": lr} for lr in (0.1, 0.01, 1.0)], bad=bad)
    found = data(tmp_path)
    summed = summary.summarize(members(tmp_path))
    (facts,) = summed["tables"]
    said = show.of_table(facts, summed["settings"])
    table = block(found, "table", "Summary")
    assert table["note"] == said[0]
    assert table["lines"] == said[5:]
    for row, text in zip(table["rows"], said[2:5], strict=True):
        cells = re.split(r" {2,}", text.removeprefix("optimizer.lr="))
        assert [cell["t"] for cell in row["cells"]] == cells
    runs = block(found, "table", "Runs")
    state = [column["label"] for column in runs["columns"]].index("state")
    assert sorted(row["cells"][state]["t"] for row in runs["rows"]) == ["diverged", *["done"] * 7, "interrupted"]
    assert {run for row in table["rows"] for run in row["runs"]} == set(range(9))
    assert runs["lines"] == ["optimizer.lr=0.1,seed=1: not finite"]


def test_the_mean_is_of_the_finished_seeds_and_the_band_from_the_lowest_to_the_highest(tmp_path):
    names = write_sweep(tmp_path, [{"optimizer__lr": 0.1}], bad={2: {"state": "failed", "error": "x", "rows": 2}})
    found = data(tmp_path)
    rows = [
        [json.loads(text)["val/accuracy"] for text in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in names
    ]
    (chart,) = [chart for chart in block(found, "charts", "Curves")["charts"] if chart["title"] == "val/accuracy"]
    (mean,) = [series for series in chart["series"] if series.get("isMean")]
    assert mean["y"] == pytest.approx([(a + b) / 2 for a, b in zip(*rows[:2], strict=True)], rel=1e-5)
    low, high = mean["band"]
    assert low == pytest.approx([min(pair) for pair in zip(*rows[:2], strict=True)], rel=1e-5)
    assert high == pytest.approx([max(pair) for pair in zip(*rows[:2], strict=True)], rel=1e-5)
    assert mean["label"].endswith("mean of 2") and sorted(mean["runs"]) == [0, 1, 2]
    assert sorted(len(series["y"]) for series in chart["series"] if "run" in series) == [2, 3, 3]


def test_each_key_is_a_chart_on_the_axis_that_its_values_are_spaced_on_and_three_are_parallel(tmp_path):
    settings = [
        {"optimizer__lr": lr, "model__width": width, "scheduler__gamma": gamma}
        for lr in (0.001, 0.01, 0.1)
        for width in (16, 32, 48)
        for gamma in (0.5, 0.9)
    ]
    write_sweep(tmp_path, settings, seeds=(1,), bad={3: {"state": "failed", "error": "x", "rows": 0}})
    found = data(tmp_path)
    drawn = charts(found, "Keys")
    assert {key: chart["x"]["log"] for key, chart in drawn.items()} == {
        "optimizer.lr": True,
        "model.width": False,
        "scheduler.gamma": False,
    }
    points = drawn["optimizer.lr"]["points"]
    assert len(points) == 18 and sum(value is None for _, value, _, _ in points) == 1
    known = [value for at, value, _, _ in points if at == 0.01]
    assert [0.01, pytest.approx(sum(known) / 6, rel=1e-5), 6] in drawn["optimizer.lr"]["means"]
    parallel = block(found, "parallel")
    assert [axis["label"] for axis in parallel["axes"]] == [
        "optimizer.lr",
        "model.width",
        "scheduler.gamma",
        "best val/accuracy",
    ]
    assert len(parallel["lines"]) == 17


def test_settings_that_are_not_alike_stand_in_tables_of_their_own(tmp_path):
    write_sweep(
        tmp_path, [{"dataset__val_size": size, "optimizer__lr": lr} for size in (0.1, 0.2) for lr in (0.1, 0.2)]
    )
    found = data(tmp_path)
    tables = [b for b in found["blocks"] if b["kind"] == "table"]
    assert [table["heading"] for table in tables] == ["Summary, table 1", "Summary, table 2", "Runs"]
    assert tables[0]["lines"][0].startswith(
        "2 tables, not compared with each other: they differ in dataset.val_size (0.1"
    )
    assert [len(table["rows"]) for table in tables] == [2, 2, 12]
    assert block(found, "charts", "Keys")["lines"][-1].endswith("not comparable from table to table.")
    assert not [b for b in found["blocks"] if b["kind"] == "config"]


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ((0.001, 0.01, 0.1), True),
        ((1, 2, 3, 4), False),
        ((16, 32, 64, 128), True),
        ((0, 1, 10), False),
        ((5, 10), False),
        ((1, 100), True),
        ((-1, 10, 100), False),
    ],
)
def test_an_axis_is_logarithmic_where_its_values_are_spaced_by_factors(values, is_log):
    assert curves.is_spaced_by_factors(values) is is_log


def test_words_null_and_numbers_of_one_key_stand_on_one_axis():
    class Run:
        def __init__(self, value):
            self.labels = {} if value is None else {"k": value}

    axis = keys.axis_of("k", [Run("10"), Run("null"), Run("2"), Run(None)])
    assert axis == {"label": "k", "words": ["2", "10", "null"], "at": [1, 2, 0, None]}
    assert keys.axis_of("k", [Run("1"), Run("1")]) is None
    assert keys.axis_of("k", [Run("1"), Run("2")], is_log=True)["log"] is True
    assert keys.axis_of("k", [Run("0"), Run("2")], is_log=True)["log"] is False
    assert keys.number("nan") is None and keys.number("1e400") is None and keys.number("007") == 7


def test_what_has_not_ended_stands_in_no_chart_by_key():
    class Run:
        def __init__(self, value, best, state):
            self.labels, self.state = {"k": value, "other": value, "third": value}, state
            self.record = {"monitor": "val/accuracy", "mode": "max", "best_value": best}

    states = ["done", "done", "running", "interrupted", "killed", "planned", "failed", "pruned"]
    runs = [Run("1", 0.9, "done"), *(Run("2", 0.1 * at, state) for at, state in enumerate(states, 1))]
    charts, parallel = keys.blocks(runs, {})
    chart = charts["charts"][0]
    assert sorted(point[2] for point in chart["points"]) == [0, 1, 2, 7, 8]
    assert chart["means"] == [[1, 0.9, 1], [2, pytest.approx(0.15), 2]]
    assert sorted(line["run"] for line in parallel["lines"]) == [0, 1, 2, 7, 8]
    assert "4 runs" in charts["lines"][1]


def test_two_hundred_runs_of_thirty_epochs_are_less_than_a_megabyte(tmp_path):
    write_big_sweep(tmp_path)
    began = time.process_time()  # not the clock: the machine is shared
    found = data(tmp_path)
    assert time.process_time() - began < 20
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert len(block(found, "table", "Runs")["rows"]) == 200
    (chart,) = [chart for chart in block(found, "charts", "Curves")["charts"] if chart["title"] == "val/accuracy"]
    assert len([series for series in chart["series"] if "run" in series]) == 200 and len(chart["x"]) == 30


def test_more_epochs_than_fit_are_thinned_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "MOST_NUMBERS", 100)
    write_sweep(tmp_path, [{"optimizer__lr": 0.1}], seeds=(1, 2), epochs=31)
    found = block(data(tmp_path), "charts", "Curves")
    every = int(re.search(r"One in (\d+) evaluations is drawn", " ".join(found["lines"]))[1])
    assert found["charts"][0]["x"] == sorted({*range(1, 32, every), 31})


def test_a_search_shows_its_history_its_importances_and_what_was_pruned(tmp_path):
    settings = [{"optimizer__lr": lr} for lr in (0.01, 0.1, 1.0)]
    write_sweep(tmp_path, settings, seeds=(1,), arguments=["hydra/sweeper=optuna"])
    values = [0.8, None, 0.9, 0.7]
    states = ["complete", "pruned", "complete", "complete"]
    history = [
        {"trial": at, "state": state, "value": value, "params": {"optimizer.lr": lr}}
        for at, (state, value, lr) in enumerate(zip(states, values, (0.01, 0.1, 1.0, 5.0), strict=True))
    ]
    study = {"trials": 4, "importances": {"optimizer.lr": 0.75, "model.width": 0.25}, "history": history}
    (tmp_path / "study.json").write_text(json.dumps(study))
    found = data(tmp_path)
    drawn = block(found, "charts", "Search")
    chart, bars = drawn["charts"]
    assert line(chart, "best so far")["y"] == [0.8, 0.8, 0.9, 0.9] and line(chart, "trial")["y"] == values
    names = [None if run is None else found["runs"][run] for run in line(chart, "trial")["runsAt"]]
    assert names == ["optimizer.lr=0.01,seed=1", "optimizer.lr=0.1,seed=1", "optimizer.lr=1.0,seed=1", None]
    assert chart["lost"] == [1] and bars["bars"] == [["optimizer.lr", 0.75, "0.75"], ["model.width", 0.25, "0.25"]]
    weighed = "Importances are of the trials that were not pruned."
    assert drawn["lines"] == ["4 trials: 3 complete, 1 pruned.", "Pruned: trial 1 (optimizer.lr=0.1,seed=1).", weighed]

    (tmp_path / "study.json").write_text('{"history": [{"state": 3}]}')  # by other hands: the runs tell it
    drawn = block(data(tmp_path), "charts", "Search")
    assert "in the order of their starts" in drawn["lines"][-1] and len(drawn["charts"]) == 1


def test_a_trial_over_seeds_is_one_point_also_before_the_searchs_end(tmp_path):
    reason = "pruned by its search (MedianPruner): val/accuracy is 0.5 after epoch 2"
    settings = [{"optimizer__lr": lr} for lr in (0.01, 0.1, 1.0)]
    bad = {3: {"stopped": reason, "rows": 2}, 4: {"state": "failed", "error": "it raised"}}
    names = write_sweep(tmp_path, settings, seeds=(1, 2), arguments=["hydra/sweeper=optuna"], bad=bad)
    drawn = block(found := data(tmp_path), "charts", "Search")
    values = line(drawn["charts"][0], "trial")["y"]
    first = [json.loads((tmp_path / name / "run.json").read_text().strip())["best_value"] for name in names[:2]]
    assert values == [pytest.approx(sum(first) / 2), None, None]
    assert drawn["lines"][0] == "3 trials: 1 complete, 1 pruned, 1 fail."
    assert [found["runs"][run] for run in line(drawn["charts"][0], "trial")["runsAt"][1:]] == names[3:5]
    by_seed = [{"1": first[0], "2": first[1]}, {"1": 0.5, "2": None}, {"1": None, "2": 0.5}]
    history = [
        {"state": state, "value": sum(first) / 2 if state == "complete" else None, "params": {"optimizer.lr": lr}}
        for state, lr in zip(("complete", "pruned", "fail"), (0.01, 0.1, 1.0), strict=True)
    ]
    history = [{**trial, "by_seed": seeds} for trial, seeds in zip(history, by_seed, strict=True)]
    (tmp_path / "study.json").write_text(json.dumps({"seeds": ["1", "2"], "importances": {}, "history": history}))
    drawn = block(found := data(tmp_path), "charts", "Search")
    assert drawn["charts"][0]["title"] == "value of each trial, the mean over seed=1,2"
    assert line(drawn["charts"][0], "trial")["y"] == values and names[4] in drawn["lines"][2]


def test_runs_from_anywhere_are_one_table_and_what_cannot_be_read_is_named(tmp_path):
    for at, lr in enumerate((0.1, 0.2)):
        rows = rows_of(2, 0.9 + at / 100, random.Random(at))
        write_run(tmp_path / "a" / str(at), config_of(optimizer__lr=lr, seed=at), rows, tags=["x"])
    write_run(tmp_path / "a" / "linked", config_of(), [])
    (tmp_path / "a" / "linked" / "metrics.jsonl").unlink()
    (tmp_path / "a" / "linked" / "metrics.jsonl").symlink_to(tmp_path / "a" / "0" / "metrics.jsonl")
    write_run(tmp_path / "b", config_of(monitor="val/loss", trainer__mode="min"), rows)
    found = data(tmp_path / "a")
    assert [text for text in notices.take() if "is a link" in text]
    assert found["runs"] == ["0", "1"] and found["title"] == "a"
    runs = block(found, "table", "Runs")
    labels = [column["label"] for column in runs["columns"]]
    assert labels[:4] == ["run", "state", "optimizer.lr", "seed"] and labels[-1] == "tags"
    assert [row["color"] for row in runs["rows"]] == [1, 0]  # the best has the first colour
    write(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "both.html")
    notices.take()
    both = data_of(tmp_path / "both.html")
    assert both["runs"] == ["a/0", "a/1", "b"]
    assert not [b for b in both["blocks"] if b.get("heading") == "Keys"]  # two metrics: no common axis


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("run.json", "config", {}),
        ("run.json", "config.trainer", "x"),
        ("run.json", "config.trainer.limit_batches", "x"),
        ("run.json", "config.trainer.limit_batches", -1),
        ("run.json", "config.dataloader.eval_batch_size", [1]),
        ("run.json", "best_value", 1e308),
        ("run.json", "started", "2026-13-99"),
        ("run.json", "examples", {"val": 0}),
        ("job.json", "choices", {"model": {"a": 1}}),
        ("job.json", "deaths", [{"at": 3, "error": {"a": [1]}}]),
        ("study.json", "importances", {"a": 10**400}),
        ("study.json", "history", [{"state": "complete", "value": 10**400, "params": {"a": [{}]}}]),
    ],
)
def test_odd_values_of_other_hands_are_a_page_or_one_line(tmp_path, name, at, value):
    names = write_sweep(tmp_path, [{"optimizer__lr": lr} for lr in (0.1, 0.2)], seeds=(1, 2))
    study = {"importances": {}, "history": []}
    (tmp_path / "study.json").write_text(json.dumps(study))
    path = tmp_path / name if name == "study.json" else tmp_path / names[0] / name
    record = json.loads(path.read_bytes().decode().rpartition("}")[0] + "}")
    *nodes, last = at.split(".")
    node = record
    for key in nodes:
        node = node[key]
    node[last] = value
    path.write_text(json.dumps(record))
    for folder in (tmp_path, tmp_path / names[0]):
        data(folder, "--no-examples")
    notices.take()


# ------------------------------------------------------------------------------------------------- where it is written


def test_wrong_paths_and_files_that_are_not_ours_are_refused_in_one_line(tmp_path):
    write_run(tmp_path / "run", config_of(), rows_of(2, 0.9, random.Random(0)))
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    (tmp_path / "link.html").symlink_to(tmp_path / "mine.html")
    (tmp_path / "empty").mkdir()
    run = tmp_path / "run"
    for words, why in (
        ([tmp_path / "none"], "there is no such folder"),
        ([run / "run.json"], "is a file; give a folder"),
        ([run, tmp_path], "-o FILE"),
        ([run, "-o", tmp_path / "mine.html"], "is no page of ours"),
        ([run, "-o", tmp_path / "link.html"], "is a link"),
        ([run, "-o", tmp_path], "is a folder"),
        ([run, "-o", tmp_path / "none" / "x.html"], "there is no folder"),
        ([tmp_path / "empty"], "holds no run"),
        ([tmp_path, "--examples"], "--examples is for one run"),
    ):
        with pytest.raises(InputError, match=re.escape(why)) as caught:
            write(*words)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "mine.html").read_text() == "<html>mine</html>" and not (run / "report.html").exists()
    write(run)
    write(run)  # ours: written again


def test_watch_writes_again_until_nothing_runs(tmp_path, monkeypatch):
    rows = rows_of(3, 0.9, random.Random(0))
    write_run(tmp_path, config_of(), rows[:1], state="running")
    monkeypatch.setattr("runner.storage.records.is_locked", lambda run_dir: True)
    seen = []

    def sleep(seconds):
        seen.append(data_of(tmp_path / "report.html"))
        write_run(tmp_path, config_of(), rows[: len(seen) + 1], state="running" if len(seen) < 2 else "done")

    monkeypatch.setattr(time, "sleep", sleep)
    last = data(tmp_path, "--watch", "--no-examples")
    seen.append(last)
    assert [len(charts(one, "Curves")["loss"]["x"]) for one in seen] == [1, 2, 3]
    assert [block(one, "headline")["state"] for one in seen] == ["running", "running", "done"]
    assert [one["refresh"] is None for one in seen] == [False, False, True]


def test_a_report_of_records_needs_no_torch(tmp_path):
    write_sweep(tmp_path, [{"optimizer__lr": 0.1}], seeds=(1,))
    code = "import sys; from runner.__main__ import dispatch; dispatch(['report', sys.argv[1]])"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300)


# ---------------------------------------------------------------------------------------------------- single examples


def test_examples_are_of_ones_own_run_and_those_that_evaluate_counts(tmp_path, capsys):
    from PIL import Image

    record = runner.run([*TINY, "seed=1"], run_dir=tmp_path / "run")
    found = data(tmp_path / "run")
    shown, mistakes = block(found, "examples"), block(found, "images")
    counts = shown["matrix"]["counts"]
    right = sum(counts[at][at] for at in range(len(counts)))
    total = record["examples"]["test"]
    assert sum(map(sum, counts)) == total and right / total == pytest.approx(record["test"]["best"]["accuracy"])
    assert shown["lines"] == [f"test part, best weights: {right} of {total} examples are right, {total - right} wrong."]
    first = mistakes["items"][0]
    image = Image.open(io.BytesIO(base64.b64decode(first["src"].partition(",")[2])))
    assert image.format == "PNG" and image.size == (4, 6) and image.mode == "L"
    chances = [float(item["pTarget"]) for item in mistakes["items"]]
    assert chances == sorted(chances)

    html = tmp_path / "page.html"
    with pytest.raises(InputError, match=r"--html .*run\.json: is no page of ours"):
        evaluate.main(evaluate.parser().parse_args([str(tmp_path / "none"), "--html", str(tmp_path / "run/run.json")]))
    words = [str(tmp_path / "run"), "--confusion", "--html", str(html)]
    evaluate.main(evaluate.parser().parse_args(words))
    said = capsys.readouterr().out
    assert block(data_of(html), "images")["items"] == mistakes["items"] and said.endswith(f"{html}\n")
    assert f"{first['example']}: target {first['target']} (p {first['pTarget']})" in said

    assert block(data(tmp_path / "run", "--examples"), "examples") == shown


def test_examples_that_take_too_long_or_have_no_weights_are_a_sentence(tmp_path, monkeypatch):
    runner.run(TINY, run_dir=tmp_path / "run")
    monkeypatch.setattr(examples, "SECONDS", -1.0)
    assert "they take longer than" in block(data(tmp_path / "run"), "lines", "Confusion")["lines"][0]
    assert block(data(tmp_path / "run", "--examples"), "examples")
    monkeypatch.undo()
    (tmp_path / "run" / "checkpoints" / "best.pt").write_bytes(b"damaged")
    (said,) = block(data(tmp_path / "run"), "lines", "Confusion")["lines"]
    assert said.startswith("Without confusion matrix, accuracy per class and mistakes: ") and "best.pt" in said
    with pytest.raises(InputError, match=r"best\.pt"):
        write(tmp_path / "run", "--examples")


def test_of_many_classes_the_most_frequent_confusions_are_said():
    count = MOST_CLASSES + 1
    counts = [[5 if row == column else 0 for column in range(count)] for row in range(count)]
    counts[3][4] = 2
    (block,) = blocks(Confusion([f"c{i}" for i in range(count)], counts, 2), "test", {})
    assert "matrix" not in block and block["pairs"]["bars"] == [["c3, taken for c4", 2, "2"]]
    assert block["classes"]["bars"][0] == ["c3", 5 / 7, "0.7143  (5 of 7)"]


def test_an_image_is_brought_back_to_the_values_that_its_dataset_had():
    import torch
    from PIL import Image

    def pixels(data, dataset):
        text = png_of(data, dataset)
        return list(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).tobytes())

    image = torch.tensor([[[0.0, 0.2], [0.6, 1.0]]])
    assert pixels((image - 0.3) / 0.5, {"mean": [0.3], "std": [0.5]}) == [0, 51, 153, 255]
    assert pixels(image * 7 - 3, {}) == [0, 51, 153, 255]
    assert png_of(torch.zeros(5, 8, 8), {}) is None and png_of(torch.zeros(8), {}) is None


@pytest.mark.parametrize(("per_example", "noun"), [(1, "examples"), (2, "targets")])
def test_several_targets_of_an_example_are_counted_as_targets(per_example, noun):
    import torch

    class Task(torch.nn.Module):
        def forward(self, batch):
            targets = batch[1].flatten()
            return SimpleNamespace(outputs=torch.tensor([[3.0, 1.0, 0.0]]).expand(len(targets), 3), targets=targets)

    targets = torch.tensor([[0, 1], [2, 0]])[:, :per_example]
    options = SimpleNamespace(channels_last=False, precision=SimpleNamespace(autocast=contextlib.nullcontext()))
    built = SimpleNamespace(
        trainer=SimpleNamespace(task=Task(), config=SimpleNamespace(step=options)),
        device=SimpleNamespace(torch=torch.device("cpu")),
    )
    loader = SimpleNamespace(batches=lambda: iter([[torch.zeros(2, 5), targets]]))
    part = SimpleNamespace(dataset=SimpleNamespace(classes=["a", " "]), indices=[10, 11])
    found = confusion(built, loader, part)
    assert (found.noun, found.names) == (noun, ["a", "' '", "2"])
    assert [row[0] for row in found.counts] == ([1, 0, 1] if per_example == 1 else [2, 1, 1])
    assert [one.example for one in found.worst] == ([11] if per_example == 1 else [2, 1])
    with pytest.raises(InputError, match="below C"):
        confusion(built, SimpleNamespace(batches=lambda: iter([[torch.zeros(2, 5), targets - 1]])), part)
