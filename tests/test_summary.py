"""What a sweep says: settings by config, the dead counted, like compared with like, intervals that can be believed."""

import csv
import io
import json
import math
import sys

import pytest
from scipy import stats

from runner.storage.choices import choices_of
from runner.sweep import plan, show, statistics, summary
from runner.sweep.settings import members, settings

SCHEDULERS = {
    "step": {"_target_": "torch.optim.lr_scheduler.StepLR", "gamma": 0.7},
    "cosine": {
        "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR",
        "interval": "epoch",
        "T_max": "${derived.run_length.${scheduler.interval}}",
    },
}
WORDS = ["dataset=fake", "dataset.train_size=40", "dataset.eval_size=20", "dataset.input_shape=[1,4,4]", "model=mlp"]
WORDS += ["device.threads=1", "dataloader.batch_size=8", "trainer.log_every=0"]
SHORT = [*WORDS, "trainer.epochs=2"]


def config_of(seed, scheduler, lr, epochs, monitor, val_size, resolve):
    made = {
        "seed": seed,
        "device": {"type": "auto", "threads": 1 if resolve else None},
        "dataset": {"val_size": val_size, "augment": [], "train": {"_target_": "runner.data.Digits"}},
        "dataloader": {"eval_batch_size": 1000, "num_workers": 0},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": lr},
        "scheduler": dict(SCHEDULERS[scheduler]),
        "loss": {"_target_": "runner.losses.NLL"},
        "metrics": {"accuracy": {"_target_": "runner.metrics.Accuracy"}},
        "trainer": {"epochs": epochs, "monitor": monitor, "mode": "max" if resolve else None, "dry_run": False},
        "derived": {"run_length": {"epoch": epochs if resolve else None}},
    }
    if resolve and "T_max" in made["scheduler"]:
        made["scheduler"]["T_max"] = epochs
    elif "T_max" in made["scheduler"]:
        made["scheduler"]["T_max"] = None
    return made


class Folder:
    """A sweep's folder as its jobs leave it, without training them."""

    def __init__(self, place):
        self.place = place

    def job(
        self,
        seed,
        value,
        *,
        name=None,
        scheduler="step",
        lr=0.1,
        epochs=2,
        planned=None,
        monitor="val/accuracy",
        mode="max",
        val_size=0.2,
        examples=144,
        state="done",
        failure=None,
        words=(),
        test=0.9,
        old=False,
        code=None,
    ):
        folder = self.place / (name or f"lr={lr},scheduler={scheduler},seed={seed},{monitor.replace('/', '_')}")
        folder.mkdir(parents=True)
        config = config_of(seed, scheduler, lr, planned or epochs, monitor, val_size, resolve=False)
        source = {**config, "scheduler": SCHEDULERS[scheduler]}
        overrides = [f"seed={seed}", f"scheduler={scheduler}", *words]
        job = plan.Job(overrides, config, {}, None, folder, source, {"scheduler": scheduler, "optimizer": "sgd"})
        plan.write_job(job)
        if old:
            known = json.loads((folder / "job.json").read_text())
            kept = {key: known[key] for key in ("identity", "overrides", "settings", "deaths")}
            (folder / "job.json").write_text(json.dumps(kept))
        if state == "planned":
            return self
        part = monitor.split("/")[0]
        record = {
            "state": state,
            "failure": failure,
            "error": failure,
            "monitor": monitor,
            "mode": mode,
            "chosen_on": part,
            "epochs": epochs,
            "epochs_done": epochs,
            "started": f"2026-{len(self.names()):04}",
            "best_value": value,
            "best_epoch": epochs,
            "best": {monitor: value},
            "last": {monitor: value},
            "test": {"best": {"accuracy": test}} if state == "done" else {},
            "examples": {"train": 500, part: examples, "test": 359},
            "code": code,
            "config": config_of(seed, scheduler, lr, epochs, monitor, val_size, resolve=True),
            "config_source": {**source, "device": {"type": "auto", "threads": 1}},
        }
        (folder / "run.json").write_text(json.dumps(record))
        return self

    def names(self):
        return [path.parent.name for path in self.place.glob("*/job.json")]

    def sum_up(self):
        return summary.summarize(members(self.place))

    def rows(self):
        return {row["name"]: row for row in self.sum_up()["settings"]}

    def lines(self):
        return "\n".join(show.lines(self.sum_up()))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "sweep")


# ------------------------------------------------------------------------------------------------ what a setting is


def test_a_setting_is_its_config_whatever_command_brought_its_jobs(folder):
    for lr in (0.1, 0.01):
        for scheduler in ("step", "cosine"):
            for seed in (1, 2):
                folder.job(seed, 0.5, scheduler=scheduler, lr=lr, words=[f"optimizer.lr={lr}"])
        folder.job(3, 0.5, scheduler="cosine", lr=lr, words=[f"optimizer.lr={lr}"])  # a later command: one scheduler
    assert {name: row["n"] for name, row in folder.rows().items()} == {
        "scheduler=step, optimizer.lr=0.1": 2,
        "scheduler=step, optimizer.lr=0.01": 2,
        "scheduler=cosine, optimizer.lr=0.1": 3,
        "scheduler=cosine, optimizer.lr=0.01": 3,
    }


def test_a_further_seed_of_the_winner_makes_no_row_of_its_own(folder):
    folder.job(1, 0.5).job(1, 0.6, scheduler="cosine").job(2, 0.5).job(2, 0.6, scheduler="cosine")
    folder.job(3, 0.7, scheduler="cosine")
    assert {name: row["n"] for name, row in folder.rows().items()} == {"scheduler=step": 2, "scheduler=cosine": 3}


def test_what_two_commands_changed_without_sweeping_over_it_makes_two_rows(folder):
    folder.job(1, 0.5, lr=0.1, name="a").job(1, 0.6, lr=0.2, name="b").job(2, 0.6, lr=0.2, name="c")
    assert {name: row["n"] for name, row in folder.rows().items()} == {"optimizer.lr=0.1": 1, "optimizer.lr=0.2": 2}


def test_a_choice_names_a_row_and_what_follows_from_it_is_not_listed(folder):
    folder.job(1, 0.5, words=["x=1"]).job(1, 0.6, scheduler="cosine", words=["x=1"])
    assert set(folder.rows()) == {"scheduler=step", "scheduler=cosine"}
    assert "_target_" not in folder.lines()


def test_a_folder_from_before_choices_were_kept_is_named_and_grouped_alike(folder):
    for seed in (1, 2):
        for scheduler in ("step", "cosine"):
            folder.job(seed, 0.5, scheduler=scheduler, old=True)
    folder.job(3, 0.5, scheduler="cosine", state="planned", old=True).job(4, 0.5)
    counted = {name: (row["n"], row["seeds"]["planned_in_all"]) for name, row in folder.rows().items()}
    assert counted == {"scheduler=step": (3, 3), "scheduler=cosine": (2, 3)}


def test_the_choices_that_hydra_kept_are_read(tmp_path):
    (tmp_path / ".hydra").mkdir()
    text = "hydra:\n  runtime:\n    output_dir: /x\n    choices:\n      experiment: null\n      scheduler: cosine\n"
    (tmp_path / ".hydra" / "hydra.yaml").write_text(text + "      hydra/env: default\n  verbose: false\n")
    assert choices_of(tmp_path) == {"experiment": "null", "scheduler": "cosine"}


def test_values_that_follow_from_the_seed_or_the_data_are_no_settings():
    source = {"seed": 1, "a": {"seed": "${seed}", "n": "${.count}", "count": None, "k": "${b}"}, "b": 3}
    before = plan.setting_of({"seed": 1, "a": {"seed": 1, "n": None, "count": None, "k": 3}, "b": 3}, source)
    after = plan.setting_of({"seed": 2, "a": {"seed": 2, "n": 9, "count": 9, "k": 3}, "b": 3}, source)
    assert before == after and before["a.k"] == 3


def test_a_seed_counts_once_in_a_row_and_the_second_is_named(folder):
    folder.job(1, 0.5, name="a").job(2, 0.6, name="b").job(1, 0.9, name="c")
    (row,) = folder.rows().values()
    assert row["n"] == 2 and row["metrics"]["best/val/accuracy"]["mean"] == pytest.approx(0.55)
    assert "c: the same config and seed as a: counted once" in folder.lines()


def test_a_job_extended_outside_the_plan_is_a_setting_of_its_own(folder):
    folder.job(1, 0.5).job(2, 0.5).job(3, 0.9, epochs=8, planned=2, name="long")
    rows = folder.rows()
    assert {name: row["n"] for name, row in rows.items()} == {"trainer.epochs=2": 2, "trainer.epochs=8": 1}
    text = folder.lines()
    assert "long: run outside its plan (trainer.epochs 2 -> 8): a setting of its own" in text
    assert "not compared with each other: they differ in trainer.epochs (2, 8)" in text
    assert folder.sum_up()["paired"] is None and "first minus second" not in text


@pytest.mark.parametrize("state", ["planned", "running", "interrupted", "failed"])
def test_an_unfinished_sweep_has_one_row_a_setting_where_the_schedule_hangs_on_the_length(state, folder):
    for lr in (0.1, 0.2):
        folder.job(1, 0.5, scheduler="cosine", lr=lr).job(2, 0.6, scheduler="cosine", lr=lr, state=state)
    folder.job(3, 0.6, scheduler="cosine", lr=0.2, epochs=8, planned=2, name="long")
    found = {name: row["seeds"]["planned_in_all"] for name, row in folder.rows().items()}
    assert sorted(found.values()) == [1, 2, 2] and not any("T_max" in name for name in found)


def test_a_length_that_was_given_is_another_setting_than_that_of_the_run(folder):
    folder.job(1, 0.5, scheduler="cosine").job(2, 0.5, scheduler="cosine", state="planned")
    path = folder.place / "given" / "job.json"
    folder.job(1, 0.4, scheduler="cosine", name="given")
    known = json.loads(path.read_text())
    known["setting"]["scheduler.T_max"] = 1
    path.write_text(json.dumps(known))
    assert sorted(row["seeds"]["planned_in_all"] for row in folder.rows().values()) == [1, 2]


@pytest.mark.slow
def test_a_real_sweep_that_has_not_ended_has_a_row_for_each_schedule(cli):
    schedules = ["cosine", "cosine_restarts", "onecycle", "polynomial", "warmup_cosine", "lambda"]
    words = ["-m", f"scheduler={','.join(schedules)}", "seed=1,2", "sweep.name=s", *SHORT, "quiet=true"]
    assert cli(*words).returncode == 0
    for path in (cli.cwd / "outputs" / "sweeps" / "s").glob("*seed=2/run.json"):
        path.unlink()
    rows = summary.summarize(members(cli.cwd / "outputs" / "sweeps" / "s"))["settings"]
    found = {row["name"]: (row["seeds"]["done"], row["seeds"]["planned_in_all"]) for row in rows}
    assert found == {f"scheduler={name}": (1, 2) for name in schedules}


def test_seeds_of_two_versions_of_the_code_are_pointed_out(folder):
    folder.job(1, 0.5, code={"commit": "a"}).job(2, 0.5, code={"commit": "b"})
    assert "(one setting): its seeds ran 2 versions of the code" in folder.lines()


# ------------------------------------------------------------------------------------------------- the dead count


def test_each_row_says_how_many_seeds_are_done_failed_diverged_and_planned(folder):
    for seed in (1, 2, 3):
        folder.job(seed, 0.5, lr=6).job(seed, 0.4, lr=0.1).job(seed, None, lr=9, state="failed", failure="diverged")
    for seed in (4, 5):
        folder.job(seed, 0.1, lr=6, state="failed", failure="diverged")
    folder.job(6, None, lr=6, state="failed", failure="RuntimeError").job(7, None, lr=6, state="planned")
    rows = folder.rows()
    counted = rows["optimizer.lr=6"]["seeds"]
    wanted = {"planned_in_all": 7, "done": 3, "diverged": 2, "failed": 1, "not_begun": 1}
    assert {key: counted[key] for key in wanted} == wanted
    assert rows["optimizer.lr=9"]["n"] == 0 and rows["optimizer.lr=9"]["seeds"]["diverged"] == 3
    text = folder.lines()
    assert "optimizer.lr=6 !" in text and "3 of 7, 2 diverged, 1 failed, 1 not begun" in text
    assert "! optimizer.lr=6: 3 of 7 seeds failed; its figures are of the survivors only" in text
    assert "! optimizer.lr=9: no seed is done, 3 of 3 failed" in text and "optimizer.lr=0.1 !" not in text
    for written in (show.wide(folder.sum_up()), show.long(folder.sum_up())):
        found = [row for row in csv.DictReader(io.StringIO(written)) if row["optimizer.lr"] in ("6", "9")]
        assert {(r["optimizer.lr"], r["done"], r["failed"], r["diverged"], r["not_begun"]) for r in found} == {
            ("6", "3", "1", "2", "1"),
            ("9", "0", "0", "3", "0"),
        }


def test_a_sweep_in_which_all_failed_has_its_rows(folder):
    folder.job(1, None, state="failed", failure="diverged").job(2, None, state="failed", failure="diverged")
    text = folder.lines()
    assert "0 of 2 jobs done" in text and "0 of 2, 2 diverged" in text


def test_a_job_that_failed_before_it_was_built_is_counted_too(folder):
    folder.job(1, 0.5).job(2, None, name="early", state="planned")
    record = {"state": "failed", "error": "ValueError: no", "failure": "ValueError", "epochs_done": 0}
    record |= {"epochs": 2, "best_value": None, "config": {}, "config_yaml": None}  # as record_of_no_run
    (folder.place / "early" / "run.json").write_text(json.dumps(record))
    (row,) = folder.rows().values()
    assert (row["seeds"]["done"], row["seeds"]["failed"], row["seeds"]["planned_in_all"]) == (1, 1, 2)
    assert row["failures"] == [{"job": "early", "error": "ValueError: no"}]
    folder.job(3, None, name="unknown", state="planned")
    found = members(folder.place, {"unknown": "InputError: no such file"})  # it left no record at all
    assert {member.name: member.state for member in found}["unknown"] == "failed"


def test_values_that_are_not_finite_are_counted(folder):
    folder.job(1, 0.5, test=None).job(2, 0.6, test=0.8).job(3, None, test=0.9)
    (row,) = folder.rows().values()
    assert [row["metrics"][key]["not_finite"] for key in ("best/val/accuracy", "test/best/accuracy")] == [1, 1]
    assert row["metrics"]["test/best/accuracy"]["n"] == 2 and row["by_seed"] == {"1": 0.5, "2": 0.6, "3": None}
    assert folder.lines().count("(1 not finite)") == 3  # of the best epoch, of the last, of the test
    assert next(csv.DictReader(io.StringIO(show.wide(folder.sum_up()))))["best/val/accuracy not finite"] == "1"


# --------------------------------------------------------------------------------------- only like is compared


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"monitor": "val/loss", "mode": "min"}, "trainer.monitor (val/accuracy, val/loss)"),
        ({"monitor": "test/accuracy", "val_size": 0}, "evaluated part (val, test)"),
        ({"val_size": 0.5, "examples": 360}, "evaluated examples (144, 360)"),
        ({"epochs": 8}, "trainer.epochs (2, 8)"),
        ({"mode": "min"}, "mode (max, min)"),
    ],
    ids=lambda value: str(value),
)
def test_what_is_not_alike_has_tables_of_its_own(other, why, folder):
    for seed in (1, 2):
        folder.job(seed, 0.5, name=f"a{seed}").job(seed, 0.6, name=f"b{seed}", **other)
    found = folder.sum_up()
    assert len(found["tables"]) == 2 and [table["paired"] for table in found["tables"]] == [None, None]
    assert [row["rank"] for row in found["settings"]] == [1, 1]
    text = folder.lines()
    assert "2 tables, not compared with each other" in text and why in text and "first minus" not in text


@pytest.mark.parametrize("group", ["loss", "task"])
def test_losses_of_two_kinds_are_not_compared(group, folder):
    for seed in (1, 2):
        folder.job(seed, 0.5, name=f"a{seed}", monitor="val/loss", mode="min")
        folder.job(seed, 0.6, name=f"b{seed}", monitor="val/loss", mode="min")
        path = folder.place / f"b{seed}" / "run.json"
        record = json.loads(path.read_text())
        for key in ("config", "config_source"):
            record[key].setdefault(group, {})["_target_"] = "mine.Own"
        path.write_text(json.dumps(record))
        known = json.loads(path.with_name("job.json").read_text())
        known["setting"][f"{group}._target_"] = "mine.Own"
        path.with_name("job.json").write_text(json.dumps(known))
    assert f"not compared with each other: they differ in {group}._target_" in folder.lines()


def test_a_setting_that_has_not_begun_stands_in_the_table_it_belongs_to(folder):
    folder.job(1, 0.5).job(2, 0.5).job(1, None, scheduler="cosine", state="planned")
    found = folder.sum_up()
    assert len(found["tables"]) == 1 and [row["n"] for row in found["settings"]] == [2, 0]
    assert "scheduler=cosine !" in folder.lines() and "0 of 1, 1 not begun" in folder.lines()


def test_the_order_is_that_of_validation_and_not_of_the_test_set(folder):
    for seed in (1, 2):
        folder.job(seed, 0.5, lr=1, test=0.9).job(seed, 0.6, lr=2, test=0.1)
    assert list(folder.rows()) == ["optimizer.lr=2", "optimizer.lr=1"]


# ------------------------------------------------------------------------------------------- figures, by the formulas


def test_without_bounds_the_statistics_are_scipys():
    values = [0.5, 0.7, 0.6]
    figures = statistics.figures(values, fraction=False, examples=None)
    assert figures["n"] == 3 and figures["mean"] == pytest.approx(0.6) and figures["std"] == pytest.approx(0.1)
    assert figures["ci95"] == pytest.approx(list(stats.ttest_1samp(values, 0).confidence_interval(0.95)))
    one, two = ({str(seed): value for seed, value in enumerate(values)} for values in ([0.8, 0.75, 0.9], values))
    test = stats.ttest_rel([0.8, 0.75, 0.9], [0.5, 0.7, 0.6]).confidence_interval(0.95)
    assert statistics.paired(one, two, False, None)["ci95"] == pytest.approx(list(test))
    assert statistics.figures([0.5], False, None)["ci95"] is None
    assert statistics.figures([0.5, 0.5], False, None)["ci95"] is None  # no spread: nothing to say, not a point


TIED_AND_NOT = [[0.9861111111] * 3, [1.0] * 3, [0.0] * 2, [0.01, 0.0, 0.0], [1.0, 0.9, 1.0], [0.2, 0.9]]


@pytest.mark.parametrize("values", TIED_AND_NOT, ids=str)
def test_intervals_of_accuracies_stay_in_bounds_and_have_width(values):
    low, high = statistics.fraction_interval(values, 144)
    assert 0 <= low <= statistics.mean(values) <= high <= 1 and high - low > 0.01


def test_where_seeds_tie_the_interval_is_wilsons_over_the_examples():
    wilson = stats.binomtest(142, 144).proportion_ci(0.95, method="wilson")
    assert statistics.fraction_interval([142 / 144] * 3, 144) == pytest.approx([wilson.low, wilson.high])


def test_with_many_examples_the_interval_is_nearly_students():
    values = [0.71, 0.69, 0.70, 0.72, 0.68, 0.7, 0.7, 0.71]
    assert statistics.fraction_interval(values, 10**9) == pytest.approx(statistics.t_interval(values), abs=2e-4)


@pytest.mark.parametrize("n", [2, 3])
def test_the_interval_of_an_accuracy_covers_what_it_says(n):
    import numpy as np

    draw, hits, rounds = np.random.default_rng(1), 0, 400
    for _ in range(rounds):  # seeds differ by 0.01, and all of them see the same 200 examples
        ease = draw.random(200)
        runs = [float((ease < np.clip(draw.normal(0.95, 0.01), 0, 1)).mean()) for _ in range(n)]
        low, high = statistics.fraction_interval(runs, 200)
        hits += low <= 0.95 <= high
    assert hits / rounds > 0.94


@pytest.mark.parametrize(
    ("names", "values", "examples", "is_one"),
    [
        (["accuracy", "Accuracy"], [0.9, 0.91], 144, True),
        (["top5", ""], [0.9], None, True),
        (["mine", "MulticlassF1Score"], [0.913], 144, True),
        (["error", "mine.Error"], [3 / 144, 5 / 144], 144, True),  # by its values: counts of examples
        (["loss", ""], [0.5, 0.25], 144, False),
        (["dice_loss", ""], [0.5], 144, False),
        (["mape", "MeanAbsolutePercentageError"], [0.1234567, 0.2], 144, False),
        (["accuracy", "Accuracy"], [91.0, 92.0], 144, False),  # in percent
        (["mae", "MeanAbsoluteError"], [0.1234, 0.2], 144, False),
    ],
)
def test_fractions_are_known_by_name_class_or_values(names, values, examples, is_one):
    assert statistics.is_fraction(names, values, examples) is is_one


def test_the_paired_difference_of_ties_is_wide_by_the_examples():
    tied = {"1": 0.9861111, "2": 0.9861111}
    found = statistics.paired(tied, tied, True, 144)
    assert found["difference"] == 0 and found["ci95"] is None
    low, high = found["ci95_examples"]
    assert low == -high and high == pytest.approx(1.96 * math.sqrt(2 * 0.9861111 * 0.0138889 / 144), rel=1e-3)
    assert statistics.paired({"1": 0.5, "2": None}, {"1": 0.4, "2": 0.4}, True, 144) is None  # one seed in common


def test_how_likely_the_first_is_the_best_says_what_the_seeds_can_show():
    tied = {"1": 0.9, "2": 0.9, "3": 0.9}
    even = statistics.choice([tied, tied], "max", True, 100)
    assert even["first_is_best"] == 0.5 and even["first_is_best_examples"] == pytest.approx(0.5, abs=0.02)
    better, worse = {"1": 0.93, "2": 0.92, "3": 0.94}, {"1": 0.83, "2": 0.82, "3": 0.84}
    clear = statistics.choice([better, worse], "max", True, 10_000)
    assert (
        clear["first_is_best"] == clear["first_is_best_examples"] == 1 - 1 / 8
    )  # three seeds agree by chance in 1 of 8
    assert statistics.choice([better, worse], "max", True, 10_000) == clear  # no chance in it
    assert statistics.choice([worse, better], "min", False, None)["first_is_best"] == 0.875
    assert statistics.choice([better], "max", True, 100) is None
    assert statistics.choice([better, {"1": 0.9}], "max", True, 100) is None


def test_seeds_are_paired_in_the_bootstrap():
    hard = [0.1, 0.5, 0.9, 0.3, 0.7, 0.2, 0.8, 0.4]  # what a seed does to both cancels
    one, two = ({str(seed): value + gain for seed, value in enumerate(hard)} for gain in (0.01, 0.0))
    assert statistics.choice([one, two], "max", False, None)["first_is_best"] == 1 - 0.5**8


def test_the_best_of_many_that_are_alike_is_too_good():
    alike = [{str(seed): 0.9 for seed in range(5)} for _ in range(20)]
    found = statistics.choice(alike, "max", True, 100)
    assert found["first_is_best_examples"] < 0.1 and 0.03 < found["excess"] < 0.08  # 1.87 of 0.03


# --------------------------------------------------------------------------------------------- what is said of them


def test_the_summary_says_what_it_chose_by_and_how_sure_it_is(folder):
    for seed in (1, 2, 3):
        folder.job(seed, 0.5 + seed / 144, lr=1).job(seed, 0.4 + seed / 144, lr=2)
    text = folder.lines()
    assert "val/accuracy (higher is better), 144 examples, 2 epochs; 6 of 6 jobs done" in text
    assert "best/val/accuracy is the maximum over 2 epochs and for the first over 2 settings: a little too good" in text
    assert (
        "the first is really the best of 2 with probability 0.88 or more for other seeds" in text
        and "coarse: 3 seeds" in text
    )
    assert "last epoch" in text


def test_with_one_seed_each_it_says_that_nothing_can_be_said(folder):
    folder.job(1, 0.5, lr=1).job(1, 0.6, lr=2)
    assert "how likely the first is really the best of 2 cannot be said" in folder.lines()
    assert "1 of 1 (one seed)" in folder.lines()


def test_a_setting_of_one_seed_is_left_out_of_the_probability_and_this_is_said(folder):
    folder.job(1, 0.9, lr=1).job(2, 0.9, lr=1).job(1, 0.8, lr=2).job(2, 0.8, lr=2).job(1, 0.1, lr=6)
    text = folder.lines()
    assert (
        "really the best of 2 with probability 0.75 or more" in text and "left out of that probability: 1 of 3" in text
    )


def test_a_choice_made_on_the_test_set_is_called_so(folder):
    folder.job(1, 0.5, monitor="test/accuracy", val_size=0).job(2, 0.5, monitor="test/accuracy", val_size=0)
    assert "chosen on the test set" in folder.lines()


def test_summary_csv_has_one_row_a_setting_and_the_long_form_one_a_metric(folder):
    for seed in (1, 2):
        folder.job(seed, 0.5).job(seed, 0.6, scheduler="cosine")
    found = folder.sum_up()
    show.write(folder.place, found)
    wide = list(csv.DictReader((folder.place / "summary.csv").read_text().splitlines()))
    assert [row["name"] for row in wide] == ["scheduler=cosine", "scheduler=step"]
    assert float(wide[0]["best/val/accuracy"]) == 0.6 and wide[0]["best/val/accuracy low"] and wide[0]["rank"] == "1"
    long = list(csv.DictReader((folder.place / "summary_long.csv").read_text().splitlines()))
    assert len(long) == 2 * 3 and long[0]["metric"] == "best/val/accuracy" and long[0]["ci95_low"]
    assert json.loads((folder.place / "summary.json").read_text()) == found


# ------------------------------------------------------------------------------------------------- real sweeps


def rows_of(cli, name):
    found = json.loads((cli.cwd / "outputs" / "sweeps" / name / "summary.json").read_text())
    return {row["name"]: row for row in found["settings"]}


@pytest.mark.slow
def test_a_real_folder_that_grew_by_several_commands_sums_up_by_config(cli):
    for words in (
        ["seed=1,2", "scheduler=step,cosine", "optimizer.lr=1.0"],
        ["seed=1,2,3", "scheduler=cosine", "optimizer.lr=1.0"],
        ["seed=1", "scheduler=cosine", "optimizer.lr=0.5", "sweep.force=true"],
    ):
        done = cli("-m", *words, "sweep.name=grown", *SHORT)
        assert done.returncode == 0, done.stderr
    assert {name: row["n"] for name, row in rows_of(cli, "grown").items()} == {
        "scheduler=step, optimizer.lr=1.0": 2,
        "scheduler=cosine, optimizer.lr=1.0": 3,
        "scheduler=cosine, optimizer.lr=0.5": 1,
    }
    job = cli.cwd / "outputs" / "sweeps" / "grown" / "scheduler=step,seed=1"
    extended = cli("resume", str(job), "trainer.epochs=3")
    assert extended.returncode == 0, extended.stderr
    again = cli("-m", "seed=1", "scheduler=cosine", "optimizer.lr=0.5", "sweep.name=grown", *SHORT)
    assert again.returncode == 0, again.stderr
    rows = rows_of(cli, "grown")
    assert [row["n"] for name, row in rows.items() if "trainer.epochs=3" in name] == [1]
    assert [row["n"] for name, row in rows.items() if "scheduler=step" in name] == [1, 1]
    assert "scheduler=step,seed=1: run outside its plan (trainer.epochs 2 -> 3)" in again.stdout


HALF = """
import torch
class Half(torch.nn.Sequential):
    def __init__(self, fail):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(16, 10))
        self.fail = fail
    def forward(self, x):
        return super().forward(x) * (float("nan") if self.training and torch.initial_seed() and self.fail else 1.0)
"""


@pytest.mark.slow
def test_a_real_sweep_in_which_settings_diverge_says_so_everywhere(cli):
    (cli.cwd / "half.py").write_text(HALF)
    words = ["model._target_=half.Half", "+model.fail=false,true", "seed=1,2", "sweep.name=half", *SHORT]
    words += ["~model.input_shape", "~model.num_classes", "~model.hidden", "~model.batch_norm", "~model.dropout"]
    done = cli("-m", *words)
    assert done.returncode == 1, done.stderr
    rows = rows_of(cli, "half")
    assert rows["model.fail=true"]["seeds"]["diverged"] == 2 and rows["model.fail=false"]["n"] == 2
    assert "! model.fail=true: no seed is done, 2 of 2 failed" in done.stdout


@pytest.mark.slow
def test_a_sweep_over_the_monitored_metric_or_the_split_is_two_tables(cli):
    done = cli("-m", "seed=1,2", "trainer.monitor=val/accuracy,val/loss", "sweep.name=monitors", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "trainer.monitor (val/accuracy, val/loss)" in done.stdout and "minus" not in done.stdout
    done = cli("-m", "seed=1,2", "dataset.val_size=0.2,0", "sweep.name=parts", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "evaluated part (test, val)" in done.stdout and "minus" not in done.stdout
    assert done.stdout.count("chosen on the test set") == 1


@pytest.mark.slow
def test_what_cannot_change_a_result_is_said_and_not_passed_over(cli):
    done = cli("-m", "dataloader.num_workers=0,2", "sweep.name=same", "sweep.dry_run=true", *SHORT)
    line = "dataloader.num_workers=0,2: cannot change a result: 2 combinations are 1 job, run with the first value"
    assert done.returncode == 0 and line in done.stdout, done.stdout + done.stderr
    done = cli("-m", "dataloader.num_workers=0,2", "sweep.name=same", "trainer.dry_run=true", *SHORT)
    assert done.returncode == 0 and line in done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["hydra/launcher=basic", "sweep.fail_fast=true"], ["sweep.fail_fast=true", "hydra/launcher=basic", "local"]),
        (["hydra/launcher=basic", "sweep.retries=2"], ["sweep.retries=2", "hydra/launcher=basic", "local"]),
        (["sweep.retries=-1"], ["sweep.retries=-1", "at least 0"]),
        (["hydra.job.chdir=true"], ["hydra.job.chdir=true", "hydra.runtime.output_dir"]),
        (["hydra/launcher=basic", "hydra.job.chdir=true"], ["hydra.job.chdir=true"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_a_sweep_or_its_launcher_would_pass_over_is_refused_in_one_line(words, parts, monkeypatch, capsys):
    from runner.__main__ import main
    from test_sweep import refused

    assert main
    line = refused(["-m", "seed=1,2", *SHORT, *words], monkeypatch, capsys)
    assert all(part in line for part in parts), line
    assert "Traceback" not in line and sys.argv


@pytest.mark.slow
def test_a_sweep_is_continued_with_the_defaults_that_it_was_begun_with(cli):
    (cli.cwd / "conf" / "dataset").mkdir(parents=True)
    mine = cli.cwd / "conf" / "dataset" / "mine.yaml"
    mine.write_text("defaults: [fake]\nval_size: 0.2\n")
    words = ["--config-dir", "conf", "-m", "seed=1,2", "dataset=mine", *SHORT[1:], "sweep.name=kept"]
    assert cli(*words).returncode == 0
    mine.write_text("defaults: [fake]\nval_size: 0.4\n")
    refused = cli(*words)
    assert refused.returncode == 2 and "give dataset.val_size=0.2 to go on with it" in refused.stderr, refused.stderr
    done = cli("resume", str(cli.cwd / "outputs" / "sweeps" / "kept"))
    assert done.returncode == 0, done.stderr
    assert "dataset.val_size=0.2: as this sweep was begun" in done.stdout
    assert "2 jobs, 2 of them finished before" in done.stdout


def test_settings_of_nothing_are_none(tmp_path):
    assert settings([]) == [] and show.lines(summary.summarize([])) == ["there is no job: nothing to sum up"]
