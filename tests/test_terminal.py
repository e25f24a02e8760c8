"""Runs as they are looked at in a terminal: ls, show, compare, watch, preview, labels, plots and bars."""

import io
import json
import os
import pty
import re
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import runner
from conftest import until
from runner.__main__ import main
from runner.cli import preview_page, watch
from runner.errors import InputError
from runner.job.resuming import resume
from runner.storage import labels, records
from runner.storage.record_schema import write_record
from runner.storage.run_dir import RunDir
from runner.sweep.worker import command_of
from runner.terminal import plot, printable, progress
from runner.terminal.words import duration, size, typed

WORDS = ["dataset=fake", "dataset.train_size=40", "dataset.val_size=10", "dataset.eval_size=10", "model=mlp"]
WORDS += ["trainer.epochs=2", "quiet=true", "device.threads=1", "dataset.input_shape=[1,4,4]", "trainer.log_every=1"]
KINDS = {
    "a": ["scheduler=cosine", "optimizer.lr=0.5", "seed=1"],
    "b": ["scheduler=cosine", "optimizer.lr=0.1", "seed=2", "tags=[old]", "notes=first"],
    "c": ["scheduler=warmup_cosine", "seed=3", "dataloader.batch_size=8"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    for name, words in KINDS.items():
        runner.run([*WORDS, *words], run_dir=base / name)
    return base


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def edit(path, **keys):
    write_record(path, {**json.loads(path.read_text()), **keys})


def as_sweep(place, names, command=("python", "-m", "runner", "-m", "seed=1,2")):
    """Makes a folder of runs a sweep's."""
    for name in names:
        words = RunDir(place / name).read_run()["overrides"]
        facts = {"identity": name, "overrides": [*words, "sweep.name=s"], "settings": {}}
        write_record(place / name / "job.json", facts)
    facts = {"arguments": [], "config_dir": None, "swept": ["seed"], "base": {}, "command": list(command)}
    write_record(place / "sweep.json", facts)


# ---------------------------------------------------------------------------------------------------------------- ls


def test_columns_are_the_choices_and_the_keys_that_were_set(folder, say):
    code, out, err = say("ls", folder, "--wide")
    head = out.splitlines()[0].split("  ")
    assert code == 0 and err == "" and "_target_" not in out and "T_max" not in out
    found = [name.strip() for name in head if name.strip()]
    assert found[:7] == ["run", "state", "epochs", "scheduler", "optimizer.lr", "seed", "dataloader.batch_size"]
    assert [line.split()[3] for line in out.splitlines()[1:]] == ["cosine", "cosine", "warmup_cosine"]


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_a_listing_is_as_wide_as_the_terminal_and_says_what_it_leaves_out(folder, say, columns):
    (folder / ("x" * 70)).mkdir()
    shutil.copytree(folder / "a", folder / ("x" * 70) / "deep")
    _, out, err = say("ls", folder, columns=columns)
    assert max(map(len, out.splitlines())) <= columns and "/deep" in out
    assert "note: no room for" in err and "--wide" in err
    _, out, _ = say("ls", folder, "--wide", columns=columns)
    assert max(map(len, out.splitlines())) > 100 and "x" * 70 in out


def test_named_columns_are_those_and_no_others(folder, say):
    _, out, _ = say("ls", folder, "--columns", "run,lr,scheduler,val/loss", "--sort", "-lr")
    assert out.splitlines()[0].split() == ["run", "lr", "scheduler", "val/loss"]
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["0.1", "0.5", "1"]
    code, _, err = say("ls", folder, "--columns", "shceduler")
    assert code == 2 and "--columns shceduler: no run has the key 'shceduler'; nearest: scheduler" in err


def test_runs_of_several_folders_are_there_once(folder, say):
    _, out, _ = say("ls", folder, folder / "a", "--json")
    assert [Path(row["path"]).name for row in json.loads(out)] == ["a", "b", "c"]


def test_a_class_that_took_the_place_of_a_choices_own_is_named(folder, say):
    config = json.loads((folder / "a" / "run.json").read_text())["config"]
    edit(folder / "a" / "run.json", config={**config, "scheduler": {**config["scheduler"], "_target_": "mine.Own"}})
    _, out, _ = say("ls", folder, "--where", "scheduler=cosine", "--columns", "run,scheduler")
    assert "cosine (Own)" in out and "cosine (CosineAnnealingLR)" in out


def test_what_a_target_makes_is_named_by_its_class(folder, say):
    config = json.loads((folder / "a" / "run.json").read_text())["config"]
    augment = [{"_target_": "runner.augment.RandomAffine", "degrees": 10.0}]
    edit(folder / "a" / "run.json", config={**config, "dataset": {**config["dataset"], "augment": augment}})
    _, out, _ = say("ls", folder, "--wide")
    assert "RandomAffine(degrees=10)" in out and "[]" in out and "_target_" not in out


def test_a_run_of_before_choices_were_kept_shows_those_that_hydra_kept(folder, say):
    path = folder / "a" / "run.json"
    record = json.loads(path.read_text())
    del record["choices"], record["overrides"]
    path.write_text(json.dumps(record))
    assert "cosine" in say("ls", folder, "--where", "path~a$", "--columns", "scheduler")[1]
    assert "scheduler=cosine" in say("show", folder / "a")[1]


# -------------------------------------------------------------------------------------------------------------- show


def test_a_run_fits_a_screen(folder, say):
    code, out, err = say("show", folder / "b", columns=80)
    lines = out.splitlines()
    assert code == 0 and err == "" and max(map(len, lines[:-2])) <= 80 and lines[-2].startswith("command")
    assert sum(-(-len(line) // 80) for line in lines) <= 23  # a command is wrapped by the terminal, to be copied whole
    text = " ".join(out.split())
    for words in (
        "state done, 2 of 2 epochs",
        "tags old",
        "note first",
        "val/accuracy",
        "scheduler=cosine",
    ):
        assert words in text
    assert "dropout" not in out and "command" in out


def test_the_rest_is_shown_where_it_is_asked_for(folder, say):
    _, out, _ = say("show", folder / "a", "--config")
    assert re.search(r"optimizer.lr +0.5 +1.0", out) and re.search(r"trainer.epochs +2 +14", out)
    assert len(say("show", folder / "a", "--epochs")[1].splitlines()) == 3
    assert "Linear" in say("show", folder / "a", "--layers")[1]
    assert json.loads(say("show", folder / "a", "--json")[1])["choices"]["scheduler"] == "cosine"


def test_a_sweep_fits_a_screen_and_its_job_says_what_trains_it_alone(folder, say):
    as_sweep(folder, KINDS)
    code, out, _ = say("show", folder)
    assert code == 0 and len(out.splitlines()) <= 24 and "finished; 3 jobs: 3 done" in out
    assert "python -m runner -m seed=1,2" in out
    text = " ".join(say("show", folder / "a")[1].split())
    assert "sweep python -m runner -m seed=1,2 this job python -m runner dataset=fake" in text
    assert " seed=1 " in text and "sweep.name" not in text
    assert command_of(folder) == ["python", "-m", "runner", "-m", "seed=1,2"]
    (folder / "sweep.json").write_text("{")
    code, out, err = say("show", folder)
    assert code == 0 and "3 done" in out and "sweep.json: cannot be read" in err
    code, _, err = say("show", folder, "--epochs")
    assert code == 2 and "holds a sweep" in err


def test_a_folder_of_runs_is_no_run(folder, say):
    code, _, err = say("show", folder)
    assert (
        code == 2
        and err == f"error: {folder}: holds no run (there is no run.json); 3 lie below it: runner ls {folder}\n"
    )


def test_commands_are_shown_as_they_are_typed():
    assert typed(["/x/bin/python3.11", "-m", "runner", "notes=a b"]) == "python -m runner 'notes=a b'"
    assert typed(["/x/python", "/x/bin/runner", "seed=1"]) == "runner seed=1"
    assert typed(["/x/python", "train.py"]) == "python train.py" and typed([]) == ""
    code = "import torch; " + "x = 1; " * 20
    assert typed(["python", "-c", code]) == f"python -c '{code}'"
    assert typed(["python", "-c", code], 30) == f"python -c '{code[:27]}...'"


def test_durations_and_sizes_as_a_person_reads_them():
    assert [duration(x) for x in (2.14, 59.4, 185, 7800)] == ["2.1 s", "59 s", "3 min 05 s", "2 h 10 min"]
    assert [size(x) for x in (2**20 * 20.5, 1.5 * 2**30)] == ["20.5 MiB", "1.50 GiB"]


# ----------------------------------------------------------------------------------------------------------- compare


def test_settings_of_sweeps_are_one_table_and_what_is_not_alike_is_apart(folder, tmp_path, say):
    shutil.copytree(folder, tmp_path / "more")
    as_sweep(folder, KINDS)
    as_sweep(tmp_path / "more", KINDS)
    _, out, _ = say("compare", folder, tmp_path / "more", "--json")
    summed = json.loads(out)
    assert len(summed["tables"]) == 1 and summed["jobs"] == 3  # the same config and seed, counted once
    assert all(re.match("(runs|more): ", row["name"]) for row in summed["settings"])
    assert sum("counted once" in note for note in summed["notes"]) == 3
    for path in (tmp_path / "more").glob("*/run.json"):
        record = json.loads(path.read_text())
        edit(path, code={**record["code"], "commit": "f" * 40})
    _, out, _ = say("compare", folder, tmp_path / "more")
    assert "they ran 2 versions of the code" in out and "commit ffffffffff" in out and "code=code 2" in out
    for path in (tmp_path / "more").glob("*/run.json"):
        edit(path, monitor="val/loss", mode="min")
    _, out, _ = say("compare", folder, tmp_path / "more")
    assert "2 tables, not compared with each other" in out


# ------------------------------------------------------------------------------------------------------------ labels


def test_labels_of_a_finished_run_change_and_its_record_stays(folder, say):
    before = (folder / "b" / "run.json").read_bytes()
    assert say("label", folder / "b", "+new", "-old")[1] == f"{folder / 'b'}: tags: new\n"
    assert say("label", folder / "b", "--note", "better than a - -x")[0] == 0
    assert say("label", folder / "c", "--archive")[1] == f"{folder / 'c'}: archived\n"
    assert say("label", folder / "c", "--archive")[1] == f"{folder / 'c'}: archived (as before)\n"
    assert (folder / "b" / "run.json").read_bytes() == before
    row = records.read(folder / "b")
    assert (row["tags"], row["notes"], row["archived"]) == (["new"], "better than a - -x", False)
    _, out, err = say("ls", folder)
    assert len(out.splitlines()) == 3 and "archived and not listed: 1" in err
    assert len(say("ls", folder, "--archived")[1].splitlines()) == 4
    assert len(say("ls", folder, "--tag", "new")[1].splitlines()) == 2
    said = json.loads(say("show", folder / "b", "--json")[1])["labels"]
    assert [set(change) - {"at"} for change in said] == [{"added", "removed"}, {"added", "removed", "notes"}]
    for name in "ab":
        say("label", folder / name, "--archive")
    code, _, err = say("best", folder)
    assert code == 2 and "all 3 runs are archived" in err
    assert say("best", folder, "--archived")[0] == 0


def test_a_run_that_writes_its_record_and_one_that_labels_it_lose_nothing(folder):
    run_dir = RunDir(folder / "a")
    record = run_dir.read_run()
    for number in range(3):
        labels.add(run_dir, {"added": [f"t{number}"]})
        run_dir.write_run({**record, "epochs_done": number})
    assert run_dir.read_run()["epochs_done"] == 2 and records.read(folder / "a")["tags"] == ["t0", "t1", "t2"]
    with open(folder / "a" / "labels.jsonl", "ab") as file:
        file.write(b'{"at": "x", "adde')  # a crash
    labels.add(run_dir, {"added": ["last"]})
    assert records.read(folder / "a")["tags"][-1] == "last"


def test_labels_are_not_written_through_a_link(folder, tmp_path, say):
    (tmp_path / "outside").write_text("")
    (folder / "a" / "labels.jsonl").symlink_to(tmp_path / "outside")
    code, _, err = say("label", folder, "x")
    assert code == 2 and "labels.jsonl: is a link" in err and (tmp_path / "outside").read_text() == ""
    assert not (folder / "b" / "labels.jsonl").exists()


def test_tags_that_a_resumption_gives_hold_over_older_labels(folder, say, capsys):
    say("label", folder / "b", "x", "-old")
    resume(folder / "b", ["tags=[y]"])
    assert records.read(folder / "b")["tags"] == ["y"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["label", "a"], "give +TAG, -TAG, --note TEXT, --archive or --unarchive"),
        (["label", "a", "+"], "must not be empty"),
        (["label", "a", "x", "-x"], "is both added and removed"),
        (["label", "absent", "x"], "there is no such folder"),
        (["label", "a", "\udcff"], "holds what is no text"),
        (["label", "a", "--note"], "--note: expected one argument"),
        (["tag", "a", "x"], "tag: is now `python -m runner label PATH +TAG -TAG`"),
    ],
)
def test_wrong_labels_are_one_line(folder, say, words, message, monkeypatch):
    monkeypatch.chdir(folder)
    code, _, err = say(*words)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not list(folder.rglob("labels.jsonl"))


# ------------------------------------------------------------------------------------------------------------- watch


def test_what_is_finished_is_shown_once(folder, say):
    assert say("watch", folder / "a")[0] == 0
    code, out, _ = say("watch", folder)
    assert code == 0 and "3 of 3 done" in out
    edit(folder / "a" / "run.json", state="running")
    code, out, _ = say("watch", folder)
    assert code == 1 and "2 of 3 done, 1 killed" in out
    assert say("watch", folder, "--once")[0] == 0
    code, _, err = say("watch", folder / "absent")
    assert code == 2 and "there is no such folder" in err


def test_what_runs_is_watched_until_it_ends(folder, say, monkeypatch):
    as_sweep(folder, KINDS)
    path, looks = folder / "a" / "run.json", []
    edit(path, state="running", epochs_done=1)
    (folder / "d").mkdir()
    shutil.copy(folder / "a" / "job.json", folder / "d" / "job.json")
    RunDir(folder / "a").lock()

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 1:
            _, shown, _ = pictured(folder)
            assert "2 of 4 done, 1 running, 1 not begun" in shown and "[#####     ]" in shown
        if len(looks) == 2:
            edit(path, state="failed", error="no such thing")
            RunDir(folder / "a").release()

    monkeypatch.setattr(watch.time, "sleep", sleep)
    code, out, _ = say("watch", folder, "--every", "0.5")
    assert code == 1 and looks == [0.5, 0.5]
    assert "[1/4] a: running, 1 of 2 epochs" in out and "[1/4] a: failed" in out and "no such thing" in out
    assert "nothing runs; continue with: python -m runner resume" in out


def pictured(folder):
    watched = watch.Live(folder)
    jobs = watched.look()
    lines = watch.picture(watched, jobs, 20)
    assert len(lines) <= 20
    return jobs, "\n".join(lines).replace("[##########]", "[#####     ]"), lines


# ----------------------------------------------------------------------------------------------------------- preview


@pytest.mark.parametrize("name", KINDS)
def test_the_rates_are_those_of_the_run(folder, name, say):
    _, out, _ = say("preview", *WORDS, *KINDS[name], "--json")
    (shown,) = json.loads(out)
    steps = [json.loads(line) for line in (folder / name / "steps.jsonl").read_text().splitlines()]
    assert shown["rates"] == [[step["lr"] for step in steps]] and shown["batches"] == len(steps) // 2


def test_several_schedules_are_one_picture_and_need_no_data(say, monkeypatch, tmp_path):
    monkeypatch.setattr("runner.before.preview.make_parts", lambda cfg: 1 / 0)
    words = ["scheduler=step,plateau", "dataset=mnist", "model=mlp", "trainer.epochs=2", "-o", "lr.html"]
    code, out, err = say("preview", *words)
    assert (code, err) == (0, "") and "a  scheduler=step" in out and "2 x 3,375 steps" in out
    assert "follows val/accuracy" in out and max(map(len, out.splitlines())) <= 100
    page = (tmp_path / "lr.html").read_text()
    assert page.count("<path") == 2 and "<script" not in page and "http" not in page
    preview_page.check_free(tmp_path / "lr.html")  # its own page is written again
    (tmp_path / "lr.html").write_text("mine")
    code, _, err = say("preview", *words)
    assert code == 2 and "is no page of `runner preview`" in err and (tmp_path / "lr.html").read_text() == "mine"


def test_a_wrong_schedule_is_one_line(say):
    code, out, err = say("preview", "scheduler=step,cosin")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and "did you mean cosine?" in err
    code, _, err = say("preview", *WORDS, "scheduler=step", "scheduler.gamma=-1,0.5")
    assert code == 2 and "scheduler.gamma=-1" in err and len(err.splitlines()) == 1


def test_names_in_a_page_stay_text():
    text = preview_page.page([('<b>&"x', [0.1, 0.2])], "step", ["<i>"])
    assert "<b>" not in text and "<i>" not in text and "&lt;b&gt;&amp;&quot;x" in text


# ------------------------------------------------------------------------------------------------------- plots, bars


def test_a_curve_is_dots_and_plain_signs_where_there_are_none(monkeypatch):
    lines = plot.plot([("x", [1.0, 2.0, None, float("nan"), 3.0])], ("1", "5"), 40, 4)
    assert len(lines) == 6 and all(len(line) <= 40 for line in lines) and "3 │" in lines[0] and lines[3][-1] >= "⠁"
    assert plot.sparkline([1, 2, None, 3], 4) == "▁▅ █" and plot.sparkline([], 4) == ""
    assert plot.plot([("x", [None])], ("1", "1"), 40, 4) == ["(no value to draw)"]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    text = "\n".join(plot.plot([("x", [1.0, 2.0])], ("1", "2"), 40, 4)) + plot.sparkline([1, 2], 2)
    assert text.isascii() and "*" in text


@contextmanager
def terminal():
    """stderr is a terminal; gives a function that reads all that was written there so far."""
    reading, writing = pty.openpty()
    os.set_blocking(reading, False)
    text = []

    def read():
        with suppress(BlockingIOError):  # the kernel hands it over a little later
            text.append(os.read(reading, 100_000).decode())
        return "".join(text)

    with open(writing, "w", buffering=1) as stderr, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setenv("TERM", "xterm")
        yield read
    os.close(reading)


def test_a_bar_comes_after_a_while_and_goes_without_a_trace(monkeypatch):
    with terminal() as read:
        for _ in progress.with_bar([1, 2, 3], "quick"):
            pass
        assert printable.drawn is None
        time.sleep(0.05)
        assert read() == ""
        monkeypatch.setattr(progress, "AFTER_SECONDS", 0.05)
        monkeypatch.setattr(progress, "EVERY_SECONDS", 0.02)
        with progress.bar("counting\x1b[31m", 4) as made, progress.bar("inside", 2):
            made.add(2)
            until(lambda: "\r\x1b[Kcounting\\x1b[31m [############            ]  50%, " in read())
            printable.say("a line")
            until(lambda: made._is_drawn)
        until(lambda: read().endswith("\r\x1b[K"))
        assert printable.drawn is None and "inside" not in read()


def test_work_that_fails_leaves_no_bar(monkeypatch):
    monkeypatch.setattr(progress, "AFTER_SECONDS", 0.0)
    with terminal() as read:
        with pytest.raises(InputError), progress.bar("checking") as made:
            until(lambda: made._is_drawn)
            raise InputError("wrong")
        assert printable.drawn is None
        until(lambda: read().endswith("\r\x1b[K"))


def test_an_error_in_a_loop_is_said_after_the_bar_is_gone(monkeypatch):
    def dispatch(argv):
        for _ in progress.with_bar([1], "looping"):
            until(lambda: printable.drawn._is_drawn)
            raise InputError("wrong")

    monkeypatch.setattr(progress, "AFTER_SECONDS", 0.0)
    monkeypatch.setattr("runner.__main__.dispatch", dispatch)
    with terminal() as read:
        with pytest.raises(SystemExit):
            main()
        assert printable.drawn is None
        until(lambda: read().endswith("\r\x1b[Kerror: wrong\r\n"))


def test_a_bar_says_how_far_it_is():
    made = progress.Bar("counting", 4)
    made.add(1)
    assert made.line(3.0) == "counting [######                  ]  25%, 9 s left"
    assert progress.Bar("reading", None).line(3.0) == "reading 3 s"


def test_no_bar_where_nobody_looks(capsys, monkeypatch):
    monkeypatch.setattr(progress, "AFTER_SECONDS", 0.0)
    for _ in progress.with_bar([1, 2], "quietly"):
        time.sleep(0.02)
    assert capsys.readouterr() == ("", "")


def test_a_note_stays_when_something_else_changes():
    changes = [{"notes": "mine"}, {"added": ["a"]}, {"archived": True}, {"added": ["b"]}]
    assert labels.labelled({}, changes) == {"tags": ["a", "b"], "notes": "mine", "archived": True}


def test_only_what_a_resumption_gives_anew_is_restated(folder):
    run_dir = RunDir(folder / "b")
    labels.add(run_dir, {"notes": "later", "added": ["x"]})
    record = {"tags": ["y"], "notes": "at the start"}
    labels.restate(run_dir, record, ["tags"])
    assert labels.labelled(record, labels.history(run_dir.path)) == {"tags": ["y"], "notes": "later", "archived": False}
    labels.restate(run_dir, record, [])
    labels.restate(run_dir, record, ["notes"])
    assert labels.labelled(record, labels.history(run_dir.path))["notes"] == "at the start"


@pytest.mark.parametrize("epochs, more", [(14, []), (1000, []), (14, ["val/a_metric_of_a_long_name"])])
def test_the_epoch_table_is_aligned_and_the_usual_one_no_wider_than_a_terminal(epochs, more, caplog):
    from runner.job.logs import epoch_table
    from runner.train.events import EpochEnd, Progress

    names = ["train/loss", "train/accuracy", "val/loss", "val/accuracy", *more]
    write = epoch_table(epochs)
    with caplog.at_level("INFO", "runner"):
        for epoch in (1, epochs):
            write(EpochEnd(Progress(epoch=epoch), {"lr": 1.0, **dict.fromkeys(names, 0.5)}, 1.0, 1.0, True))
    heading, *rows = [record.getMessage() for record in caplog.records]
    assert {len(row.removesuffix("best").rstrip()) for row in rows} == {len(heading)}
    assert (more or max(map(len, rows)) <= 80) and rows[-1].split()[0] == f"{epochs}/{epochs}"


@pytest.mark.slow
def test_a_program_that_has_set_up_logging_sees_each_line_once(tmp_path):
    import subprocess
    import sys

    program = "import logging, runner; logging.basicConfig(level=logging.INFO)\n"
    program += "runner.run(['trainer.dry_run=true', 'dataset=fake', 'model=mlp'], run_dir='run')\n"
    program += "logging.getLogger('runner').warning('afterwards'); logging.getLogger('mine').info('of mine')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    both = done.stdout + done.stderr
    assert both.count("test (best weights)") == 1 and both.count("parameters") == 1, both
    assert both.count("afterwards") == 1 and both.count("of mine") == 1


def test_an_epoch_has_epochs_and_a_batch_batches():
    from runner.terminal.words import plural

    assert [plural(2, noun) for noun in ("epoch", "batch", "thread")] == ["2 epochs", "2 batches", "2 threads"]
