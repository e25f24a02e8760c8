"""Which trials a search asks for and what it tells of them, with jobs that are done at once: no training here."""

import json
import math

import pytest

from conftest import Killed
from runner.errors import InputError
from runner.storage import shapes
from runner.storage.run_dir import RunDir
from runner.sweep import search
from runner.sweep.multirun import multirun
from runner.sweep.run import SweepFailed

pytest.importorskip("optuna", reason="the optional extra [optuna]")

WORDS = ["dataset=fake", "dataset.train_size=20", "dataset.val_size=10", "dataset.eval_size=10", "model=mlp"]
WORDS += ["model.hidden=[4]", "dataset.input_shape=[1,2,2]", "trainer.epochs=2", "device.threads=1"]
WORDS += ["hydra/launcher=basic", "hydra/sweeper=optuna", "sweep.name=found"]
LR = "optimizer.lr=tag(log, interval(0.01, 10))"


def value_of(config):
    """As if it had been trained: best at a rate of 1, a little different with each seed."""
    return round(0.9 - 0.1 * abs(math.log10(config["optimizer"]["lr"])) - 0.01 * config["seed"], 6)


class Search:
    """Searches in this process whose jobs are done at once, with the value of value_of."""

    def __init__(self, monkeypatch, tmp_path):
        self.place, self.jobs = tmp_path / "outputs" / "sweeps" / "found", []
        self.lives, self.value_of = 10**9, value_of  # how many jobs it does before it is killed
        monkeypatch.setattr(search, "run_jobs", self.run_jobs)

    def __call__(self, *words, lives=10**9):
        self.lives, self.jobs = lives, []
        multirun([*WORDS, *words], None)
        return self.study()

    def study(self):
        return json.loads((self.place / "study.json").read_text())

    def run_jobs(self, sweeper, jobs, place, facts):
        outcomes = {}
        for job in jobs:
            value = self.value_of(job.config)
            if not (job.folder / "run.json").exists() and value is not None:
                self.lives -= 1
                if self.lives < 0:
                    raise Killed
                self.jobs.append(job.name)
                write_run(job, value)
            failed = {"state": "failed", "kind": "exception", "error": "it raised"}
            outcomes[job.name] = {"state": "done"} if value is not None else failed
        return outcomes, None


def write_run(job, value):
    epochs = job.config["trainer"]["epochs"]
    record = {"state": "done", "epochs": epochs, "epochs_done": epochs, "config": job.config}
    record |= {"config_source": job.source, "monitor": "val/accuracy", "mode": "max", "chosen_on": "val"}
    record |= {"best_epoch": 1, "best_value": value, "best": {"val/accuracy": value}, "last": {}, "test": {}}
    shapes.write(RunDir(job.folder).run_json, record)


@pytest.fixture
def find(monkeypatch, tmp_path):
    return Search(monkeypatch, tmp_path)


def refusal(find, *words):
    with pytest.raises(InputError) as refused:
        find(*words)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.slow
def test_a_trial_over_seeds_has_their_mean_and_a_killed_search_asks_and_tells_the_same(find, capsys):
    words = [LR, "seed=1,2,4", "hydra.sweeper.n_trials=4", "hydra.sweeper.at_once=2"]
    words += ["+hydra.sweeper.sampler.n_startup_trials=2"]
    whole = find(*words)
    assert len(find.jobs) == 12 and whole["seeds"] == ["1", "2", "4"] and whole["complete"] == 4
    for trial in whole["history"]:
        lr, by_seed = trial["params"]["optimizer.lr"], trial["by_seed"]
        assert by_seed == {s: value_of({"optimizer": {"lr": lr}, "seed": int(s)}) for s in ("1", "2", "4")}
        assert trial["value"] == math.fsum(by_seed.values()) / 3 and list(trial["params"]) == ["optimizer.lr"]
    said = capsys.readouterr().out
    best = whole["best"]
    assert f"best of 4 trials: {best['value']:.4f} ± 0.0153 over seed=1,2,4, optimizer.lr=" in said
    summed = json.loads((find.place / "summary.json").read_text())
    assert [row["n"] for row in summed["settings"]] == [3] * 4
    assert summed["settings"][0]["metrics"]["best/val/accuracy"]["mean"] == best["value"]
    record = shapes.read(find.place / "sweep.json", "sweep")
    assert record["swept"] == ["optimizer.lr", "seed"] and len(record["jobs"]) == 12
    find.place.rename(find.place.with_name("whole"))
    for lives in (2, 5, 1, 10**9):  # jobs until the next kill: in the midst of a trial's seeds, and at its end
        if lives < 10**9:
            with pytest.raises(Killed):
                find(*words, lives=lives)
    assert find(*words)["history"] == whole["history"] and len(list(find.place.glob("*/run.json"))) == 12


def test_a_trial_with_a_failed_seed_fails_and_says_which(find, capsys):
    find.value_of = lambda config: None if config["seed"] == 2 else value_of(config)
    with pytest.raises(SweepFailed):
        find(LR, "seed=1,2", "hydra.sweeper.n_trials=2")
    study = find.study()
    assert [trial["state"] for trial in study["history"]] == ["fail"] * 2 and study["best"] is None
    assert [list(trial["by_seed"].values())[1] for trial in study["history"]] == [None, None]
    name = f"optimizer.lr={study['history'][0]['params']['optimizer.lr']},seed=2"
    assert f"a trial failed: it has no mean over 2 seeds without {name}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_is_of_the_seeds_that_it_was_begun_with(find):
    first = find(LR, "seed=range(1,3)", "hydra.sweeper.n_trials=1")
    assert "of seed=1,2, not of seed=1,2,3" in refusal(find, LR, "seed=1,2,3", "hydra.sweeper.n_trials=2")
    assert "of seed=1,2, not of seed=1;" in refusal(find, LR, "hydra.sweeper.n_trials=2")
    more = find(LR, "seed=1,2", "hydra.sweeper.n_trials=2")
    assert more["history"][:1] == first["history"] and more["trials"] == 2


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([LR, "seed=interval(1,3)"], ["seed=interval(1,3)", "no hyperparameter", "seed=1,2,3"]),
        ([LR, "seed=1,x"], ["seed=x", "whole number"]),
        (["seed=1,2,3"], ["nothing to search over", "plain sweep"]),
    ],
    ids=lambda value: " ".join(value[-1:]),
)
def test_seeds_that_are_none_are_refused(words, parts, find):
    line = refusal(find, *words)
    assert all(part in line for part in parts), line
    assert not find.place.exists()


def test_one_seed_of_a_list_is_the_configs_own(find):
    assert "seeds" not in find(LR, "seed=7,7", "hydra.sweeper.n_trials=1")
    assert [RunDir(path.parent).read_run()["config"]["seed"] for path in find.place.glob("*/run.json")] == [7]
