"""Pruning: the same decisions as Optuna's own loop takes, whatever runs at the same time and whenever it is killed."""

import contextlib
import json
import math
import random

import pytest

from conftest import Killed
from runner.errors import InputError
from runner.job import pruning
from runner.job.pruning import Judge, make_pruner, mean_of, pruner_config, with_pruning
from runner.search import search, stages
from runner.storage.record_schema import RunRecord, read_record, write_record
from runner.storage.run_dir import RunDir
from runner.sweep.multirun import multirun
from runner.train.stopping import Stopping
from test_trials import LR, WORDS, write_run

optuna = pytest.importorskip("optuna", reason="the optional extra [optuna]")

PRUNERS = {
    "median": {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2},
    "percentile": {"_target_": "optuna.pruners.PercentilePruner", "percentile": 25.0, "n_startup_trials": 1},
    "successive halving": {"_target_": "optuna.pruners.SuccessiveHalvingPruner", "reduction_factor": 2},
    "hyperband": {"_target_": "optuna.pruners.HyperbandPruner", "max_resource": 8, "reduction_factor": 2},
    "hyperband, auto": {"_target_": "optuna.pruners.HyperbandPruner", "reduction_factor": 2},
    "threshold": {"_target_": "optuna.pruners.ThresholdPruner", "lower": 0.2},
    "patient": {
        "_target_": "optuna.pruners.PatientPruner",
        "patience": 1,
        "wrapped_pruner": {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1},
    },
}
EPOCHS = 8


def curve(trial, epoch):
    drawn = random.Random(f"{trial} {epoch}").random()
    return None if drawn < 0.02 else round(random.Random(trial).random() * (1 - 0.7**epoch) + 0.1 * drawn, 6)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("name", PRUNERS)
def test_the_decisions_are_those_of_optunas_own_loop(name, direction):
    own = optuna.create_study(direction=direction, study_name="x", pruner=make_pruner(PRUNERS[name]))
    past, theirs, ours = [], [], []
    for number in range(14):
        trial = own.ask()
        judge = Judge(make_pruner(PRUNERS[name]), direction, "x", past, number)
        pruned = None
        values = {}
        for epoch in range(1, EPOCHS + 1):
            value = values[epoch] = curve(number, epoch)
            trial.report(math.nan if value is None else value, epoch)
            if trial.should_prune():
                pruned = epoch
            decided = judge.is_pruned(epoch, value)
            assert decided == (pruned == epoch)
            if decided:
                break
        theirs.append(pruned)
        ours.append("pruned" if decided else "complete")
        state = optuna.trial.TrialState[ours[-1].upper()]
        own.tell(trial, 0.5 if pruned is None else None, state=state)
        entry = json.loads(json.dumps({"values": values, "rungs": judge.rungs}))
        past.append({"state": ours[-1], **entry})
    assert not all(theirs) and (any(theirs) or (name, direction) == ("patient", "minimize"))


def value(config, epoch):
    """As if it had been trained: towards a best that is at a rate of 1, a little different with each seed."""
    best = 0.9 - 0.2 * abs(math.log10(config["optimizer"]["lr"])) - 0.02 * config["seed"]
    return round(best * (1 - 0.5**epoch), 6)


class Search:
    """Searches in this process whose jobs write the rows of value(), and end where they are given up."""

    def __init__(self, monkeypatch, tmp_path):
        self.place = tmp_path / "outputs" / "sweeps" / "found"
        self.lives, self.backwards = 10**9, False
        monkeypatch.setattr(search, "run_jobs", self.run_jobs)

    def __call__(self, *words, lives=10**9):
        self.lives = lives
        multirun([*WORDS, "trainer.epochs=6", "hydra.sweeper.n_trials=8", *words], None)
        return json.loads((self.place / "study.json").read_text())

    def run_jobs(self, sweeper, jobs, place, facts):
        for job in reversed(jobs) if self.backwards else jobs:
            if not (job.folder / "run.json").exists():
                self.train(job)
        return {job.name: {"state": "done"} for job in jobs}, None

    def train(self, job):
        self.lives -= 1
        if self.lives < 0:
            raise Killed
        rule, rows, reason = with_pruning(Stopping(), job.folder), [], None
        while len(rows) < 6 and reason is None:
            epoch = len(rows) + 1
            rows.append({"epoch": epoch, "step": 9 * epoch, "val/accuracy": value(job.config, epoch), "seconds": 0.1})
            reason = rule.reason(rows, "val/accuracy", "max", 0.0) if len(rows) < 6 else None
        for row in rows:
            RunDir(job.folder).metrics.append(row)
        write_run(job, rows[-1]["val/accuracy"], stopped=reason, epochs_done=len(rows))


@pytest.fixture
def find(monkeypatch, tmp_path):
    return Search(monkeypatch, tmp_path)


MEDIAN = "hydra.sweeper.pruner={_target_: optuna.pruners.MedianPruner, n_startup_trials: 2}"
SAMPLER = ["hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler"]


@pytest.mark.slow
def test_a_pruned_trial_is_told_shown_and_in_no_mean(find, capsys):
    study = find(LR, MEDIAN, *SAMPLER, "hydra.sweeper.n_trials=5")
    states = [trial["state"] for trial in study["history"]]
    pruned = [trial for trial in study["history"] if trial["state"] == "pruned"]
    assert set(states) == {"complete", "pruned"} and all(trial["value"] is None for trial in pruned)
    assert all(trial["epochs"] < 6 for trial in pruned) and study["complete"] == states.count("complete")
    said = capsys.readouterr().out
    assert f"{len(pruned)} of 5 trials were pruned: they have no value" in said
    assert f"; 5 of 5 jobs done, {len(pruned)} of them pruned" in said
    assert f"{len(pruned)} of 5 settings were given up by the search (pruned): no figures, no rank" in said
    assert f"best of {5 - len(pruned)} trials: " in said and " !" not in said
    summed = json.loads((find.place / "summary.json").read_text())
    rows = [row for row in summed["settings"] if row["is_pruned"]]
    assert len(rows) == len(pruned) and all(
        row["n"] == 0 and row["rank"] is None and not row["metrics"] for row in rows
    )
    one = next(path for path in find.place.glob("*/run.json") if read_record(path, RunRecord)["stopped"])
    reason = read_record(one, RunRecord)["stopped"]
    assert reason.startswith("pruned by its search (MedianPruner): val/accuracy is 0.") and " after epoch " in reason


@pytest.mark.slow
@pytest.mark.parametrize(("name", "at_once"), [("median", 1), ("successive halving", 3), ("hyperband", 3)])
def test_a_pruned_search_that_is_killed_takes_the_same_decisions(name, at_once, find):
    words = [LR, "seed=1,2", f"hydra.sweeper.at_once={at_once}", "+hydra.sweeper.sampler.n_startup_trials=2"]
    words.append("+hydra.sweeper.sampler.constant_liar=true")  # Optuna 5's default, not 4's
    given = ", ".join(f"{key}: {value}" for key, value in PRUNERS[name].items())
    words.append(f"hydra.sweeper.pruner={{{given}}}")
    whole = find(*words)
    assert {trial["state"] for trial in whole["history"]} == {"complete", "pruned"}
    runs = {path.parent.name: RunDir(path.parent).metrics.read() for path in find.place.glob("*/run.json")}
    find.place.rename(find.place.with_name("whole"))
    find.backwards = True  # what runs beside it, and in which order, is nothing to it
    for lives in (1, 3, 0, 2):
        with pytest.raises(Killed):
            find(*words, lives=lives)
    assert find(*words)["history"] == whole["history"]
    assert "another study" in refusal(find, *words[:-1])  # without a pruner it is another search
    assert {path.parent.name: RunDir(path.parent).metrics.read() for path in find.place.glob("*/run.json")} == runs


@pytest.mark.slow
def test_a_search_that_is_killed_while_it_tells_a_trial_tells_it_again(find, monkeypatch):
    words = [LR, "seed=1,2", MEDIAN, *SAMPLER, "hydra.sweeper.at_once=2"]
    words.append("hydra.sweeper.storage='sqlite:///studies.db'")
    whole = find(*words)["history"]
    find.place.rename(find.place.with_name("whole"))
    (find.place.parents[2] / "studies.db").unlink()
    kills = 0
    for name, at in (("add_trial", 2), ("set_user_attr", 2), ("tell", 1), ("tell", 2), ("add_trial", 1), ("tell", 3)):
        real, calls = getattr(optuna.Study, name), 0

        def dying(self, *arguments, real=real, at=at, **options):
            nonlocal calls, kills
            calls += self.study_name == "found" and "InMemory" not in type(self._storage).__name__
            if calls == at:
                kills += 1
                raise Killed
            return real(self, *arguments, **options)

        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(optuna.Study, name, dying)
            find(*words)
    assert kills >= 5
    assert find(*words)["history"] == whole
    assert "pruned" in {trial["state"] for trial in whole}


@pytest.mark.slow
def test_a_trial_over_seeds_is_judged_by_their_mean_and_given_up_as_a_whole(find):
    study = find(LR, "seed=1,2,3", MEDIAN, *SAMPLER)
    for trial in study["history"]:
        folders = [find.place / f"optimizer.lr={trial['params']['optimizer.lr']},seed={seed}" for seed in (1, 2, 3)]
        begun = [folder for folder in folders if folder.exists()]
        reasons = [read_record(folder / "run.json", RunRecord)["stopped"] for folder in begun]
        assert reasons[:-1] == [None] * (len(begun) - 1), "after one that is given up no other seed begins"
        if trial["state"] == "pruned":
            assert reasons[-1] and (len(begun) == 1) == ("the mean over" not in reasons[-1])
        else:
            assert len(begun) == 3 and reasons[-1] is None
            assert trial["value"] == math.fsum(trial["by_seed"].values()) / 3
    assert {trial["state"] for trial in study["history"]} == {"complete", "pruned"}


def test_a_mean_is_over_the_epochs_that_all_seeds_have():
    assert mean_of([{1: 0.5, 2: 1.0, 3: 2.0}, {1: 0.25, 2: None}]) == {1: 0.375, 2: None}
    row = {"state": "pruned", "stages": [{"values": {"1": 1.0}, "rungs": {}}, {"values": {"1": 2.0}, "rungs": {}}]}
    assert [pruning.in_stage(row, stage)["state"] for stage in (1, 2, 3)] == ["complete", "pruned", "fail"]


def refusal(find, *words):
    with pytest.raises(InputError) as refused:
        find(*words)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("medain", ["hydra.sweeper.pruner=medain", "did you mean median?", "hyperband"]),
        ("{_target_: optuna.pruners.Nope}", ["hydra.sweeper.pruner", "Nope"]),
        ("{_target_: builtins.dict}", ["hydra.sweeper.pruner", "builtins.dict"]),
        ("{_target_: optuna.samplers.RandomSampler}", ["hydra.sweeper.pruner", "RandomSampler"]),
        ("{_target_: optuna.pruners.MedianPruner, n_startup: 3}", ["hydra.sweeper.pruner", "n_startup"]),
        ("{_target_: optuna.pruners.MedianPruner, n_startup_trials: -3}", ["hydra.sweeper.pruner", "-3"]),
        ("{_target_: optuna.pruners.PercentilePruner}", ["hydra.sweeper.pruner", "percentile"]),
        ("{n_startup_trials: 3}", ["hydra.sweeper.pruner", "_target_"]),
        ("3", ["hydra.sweeper.pruner=3", "median"]),
    ],
)
def test_a_pruner_that_is_none_is_refused_before_anything_is_written(given, parts, find):
    line = refusal(find, LR, f"hydra.sweeper.pruner={given}")
    assert all(part in line for part in parts), line
    assert not find.place.exists()


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("hydra.sweeper.prunner=median", "hydra.sweeper has no key 'prunner'; did you mean pruner? choices: "),
        ("hydra.sweeper.n_trails=3", "did you mean n_trials?"),
        ("sweep.from=x.csv", "sweep has no key 'from'; did you mean points?"),
        ("sweep.lenghten=true", "did you mean lengthen?"),
    ],
)
def test_a_wrong_key_of_a_search_has_the_nearest_name(word, part, find):
    assert part in refusal(find, LR, word) and not find.place.exists()


def test_each_name_of_a_pruner_is_made():
    for name in pruning.NAMES:
        assert isinstance(make_pruner(pruner_config(name)), optuna.pruners.BasePruner)


FACTS = {"pruner": PRUNERS["median"], "direction": "maximize", "study": "x", "number": 1, "first": 1, "stage": 1}


@pytest.mark.parametrize(
    ("facts", "history", "part"),
    [
        ({"pruner": {"_target_": "os.system"}}, None, "hydra.sweeper.pruner"),
        ({"number": -1}, None, "`number` is -1"),
        ({"direction": "up"}, None, "`direction`"),
        ({"before": [{"x": 1.0}]}, None, "cannot be followed"),
        ({"first": 2}, None, "has 1 trials"),
        ({}, "[1]", "history.jsonl"),
        ({}, "{", "cannot be read"),
        ({}, '{"state": "done", "stages": []}', "`state`"),
        ({}, '{"state": "pruned", "stages": [{"values": {"1": "x"}, "rungs": {}}]}', "`stages`"),
    ],
)
def test_odd_files_of_other_hands_are_one_line(facts, history, part, tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    good = '{"state": "pruned", "stages": [{"values": {"1": 0.5}, "rungs": {}}]}'
    (tmp_path / "history.jsonl").write_text((good if history is None else history) + "\n")
    write_record(folder / "pruning.json", {**FACTS, "before": [], **facts})
    with pytest.raises(InputError) as refused:
        with_pruning(Stopping(), folder)
    assert part in str(refused.value) and "\n" not in str(refused.value), refused.value


def test_what_a_study_keeps_of_a_trials_values_is_held_against_its_shape():
    trial = optuna.trial.create_trial(
        value=1.0, intermediate_values={1: 0.5}, user_attrs={stages.STAGES: [{"values": 3}]}
    )
    with pytest.raises(InputError, match="`stages`"):
        stages.check_stages(trial, "here")
