"""Which trials a search asks for and what it tells of them, with jobs that are done at once: no training here."""

import json
import math
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from conftest import Killed
from runner.errors import InputError
from runner.search import search, study
from runner.search.conditions import first_trials
from runner.search.space import Space, as_value, chosen
from runner.storage.record_schema import SweepRecord, read_record, write_record
from runner.storage.run_dir import RunDir
from runner.sweep.multirun import multirun
from runner.sweep.points import read_points
from runner.sweep.run import SweepFailed

optuna = pytest.importorskip("optuna", reason="the optional extra [optuna]")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

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


def write_run(job, value, **more):
    epochs = job.config["trainer"]["epochs"]
    record = {"state": "done", "epochs": epochs, "epochs_done": epochs, "config": job.config}
    record |= {"config_source": job.source, "monitor": "val/accuracy", "mode": "max", "chosen_on": "val"}
    record |= {"best_epoch": 1, "best_value": value, "best": {"val/accuracy": value}, "last": {}, "test": {}}
    write_record(RunDir(job.folder).run_json, {**record, **more})


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
    record = read_record(find.place / "sweep.json", SweepRecord)
    assert record["swept"] == ["optimizer.lr", "seed"] and len(record["jobs"]) == 12
    find.place.rename(find.place.with_name("whole"))
    for lives in (2, 5, 1, 10**9):  # jobs until the next kill: in the midst of a trial's seeds, and at its end
        if lives < 10**9:
            with pytest.raises(Killed):
                find(*words, lives=lives)
    assert find(*words)["history"] == whole["history"] and len(list(find.place.glob("*/run.json"))) == 12


@pytest.mark.slow
def test_a_trial_with_a_failed_seed_fails_and_says_which(find, capsys):
    find.value_of = lambda config: None if config["seed"] == 2 else value_of(config)
    with pytest.raises(SweepFailed):
        find(LR, "seed=1,2", "hydra.sweeper.n_trials=2")
    found = find.study()
    assert [trial["state"] for trial in found["history"]] == ["fail"] * 2 and found["best"] is None
    assert [list(trial["by_seed"].values())[1] for trial in found["history"]] == [None, None]
    name = f"optimizer.lr={found['history'][0]['params']['optimizer.lr']},seed=2"
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


@pytest.mark.slow
def test_one_seed_of_a_list_is_the_configs_own(find):
    assert "seeds" not in find(LR, "seed=7,7", "hydra.sweeper.n_trials=1")
    assert [RunDir(path.parent).read_run()["config"]["seed"] for path in find.place.glob("*/run.json")] == [7]


MOMENTUM, TWO = "optimizer.momentum=interval(0.1,0.9)", "optimizer=sgd,adam"


@pytest.mark.slow
def test_a_key_that_only_some_choices_take_is_asked_for_with_those_alone(find, capsys):
    words = [MOMENTUM, LR, TWO, "hydra.sweeper.n_trials=5", "+hydra.sweeper.sampler.n_startup_trials=2"]
    find.value_of = lambda config: round(value_of(config) + config["optimizer"].get("momentum", 0) / 100, 6)
    history = find(*words)["history"]
    for trial in history:
        is_sgd = trial["params"]["optimizer"] == "sgd"
        assert list(trial["params"]) == ["optimizer", *(["optimizer.momentum"] if is_sgd else []), "optimizer.lr"]
    assert len({trial["params"]["optimizer"] for trial in history}) == 2
    said = capsys.readouterr().out
    assert "importances, of the keys that every trial has: " in said and "momentum=" in said


@pytest.mark.parametrize(
    "sampler",
    [
        {"_target_": "optuna.samplers.RandomSampler"},
        {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 2},
        {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 2, "multivariate": True, "group": True},
        {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 2, "multivariate": True},
        {"_target_": "optuna.samplers.NSGAIISampler", "population_size": 2},
        {"_target_": "optuna.samplers.QMCSampler"},
        {"_target_": "optuna.samplers.BruteForceSampler"},
        {"_target_": "optuna.samplers.GridSampler"},
        {"_target_": "optuna.samplers.CmaEsSampler", "n_startup_trials": 1},
        pytest.param({"_target_": "optuna.samplers.GPSampler", "n_startup_trials": 2}, marks=pytest.mark.slow),
    ],
    ids=lambda sampler: ", ".join(map(str, sampler.values())),
)
def test_every_sampler_copes_with_such_a_key_and_with_a_kill_at_any_word(sampler, tmp_path, monkeypatch):
    """The study alone; what is asked for is held against a search that nothing has killed."""
    keys = {"size": IntDistribution(1, 2), "kind": CategoricalDistribution(["a", "b"]), "only": IntDistribution(1, 3)}
    taken = {"a": ["kind", "size", "only"], "b": ["kind", "size"], None: ["kind"]}
    conditional = ["only"]
    if "CmaEs" in sampler["_target_"]:  # it is for numbers that every trial has; for others it draws at random
        keys, conditional = {"size": FloatDistribution(1, 2), "only": FloatDistribution(1, 3)}, []
        taken = {None: ["size", "only"]}
    conditions = SimpleNamespace(space=Space([], keys, []), conditional=conditional, choosing=["kind"])
    conditions.keys = lambda params: taken[params.get("kind")]
    conditions.is_whole = lambda params: len(params) > 1 and set(params) == set(conditions.keys(params))
    real, lives = study.suggest, 0

    def suggest(*arguments):
        nonlocal lives
        lives -= 1
        if lives == 0:
            raise Killed
        real(*arguments)

    monkeypatch.setattr(study, "suggest", suggest)

    def searched(place, kills):
        nonlocal lives
        place.mkdir()
        while True:
            lives = next(kills, 0)
            opened = study.open_study(None, place, "maximize", "x")
            try:
                trials = study.Trials(opened, conditions)
                generation = trials.next_generation(2, 8, OmegaConf.create(sampler), seed=1)
            except Killed:
                continue
            if not generation:
                return [trial.params for trial in trials.all()]
            for trial in generation:
                opened.tell(trial.number, trial.params["size"] + trial.params.get("only", 0))

    whole = searched(tmp_path / "whole", iter([]))
    assert len(whole) == 8 and (not conditional or {params["kind"] for params in whole} == {"a", "b"})
    if "QMC" in sampler["_target_"]:  # also what its sequence does not hold
        assert len({params["only"] for params in whole if "only" in params}) > 1
    if "Brute" in sampler["_target_"]:
        assert len({tuple(params.items()) for params in whole}) == 8  # all that there are
    assert searched(tmp_path / "killed", iter([1, 2, 3, 0, 2, 1, 4, 0, 1])) == whole


GRID = ["hydra.sweeper.n_trials=99", "hydra.sweeper.sampler._target_=optuna.samplers.GridSampler"]
SPACE = "+hydra.sweeper.sampler.search_space="


@pytest.mark.slow
def test_a_grid_of_numbers_flags_and_nulls_is_walked_once_also_when_it_is_killed(find):
    words = [
        *GRID,
        "optimizer.lr=0.1,1",
        "optimizer.no_decay=true,false",
        "trainer.grad_clip=null,0.5",
        "scheduler=step",
    ]
    words += [SPACE + "{optimizer: {lr: [1, 0.1]}, optimizer.no_decay: [false, true], trainer.grad_clip: [null]}"]
    with pytest.raises(Killed):
        find(*words, lives=2)
    found = points_of(find(*words))
    assert {tuple(params.values()) for params in found} == {
        (lr, no, "null") for lr in ("1", "0.1") for no in ("True", "False")
    }
    assert len(found) == 4 == len(list(find.place.glob("*/run.json")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    ["averaging=none,ema", "optimizer.no_decay=false,true", "trainer.grad_clip=null,0.5", "stopping.patience=null,3"],
)
def test_no_trial_takes_the_run_of_another_one_that_differs_in_a_default_or_a_null(key, find):
    assert len(find(*GRID, key)["history"]) == 2 == len(find.jobs)


@pytest.mark.slow
def test_a_grid_that_is_not_given_is_the_whole_space(find):
    found = points_of(find(*GRID, "optimizer.lr=1e-1,1.0", "dataloader.batch_size=range(8,25,8)"))
    assert {tuple(params.values()) for params in found} == {(lr, size) for lr in ("0.1", "1.0") for size in (8, 16, 24)}


@pytest.mark.slow
def test_what_a_sampler_holds_fixed_may_be_a_number(find):
    sampler = ["hydra.sweeper.sampler._target_=optuna.samplers.PartialFixedSampler", "hydra.sweeper.n_trials=3"]
    sampler += ["+hydra.sweeper.sampler.base_sampler={_target_: optuna.samplers.RandomSampler}"]
    found = find(
        *sampler, LR, "dataloader.batch_size=8,16", "+hydra.sweeper.sampler.fixed_params={dataloader.batch_size: 16}"
    )
    assert [params["dataloader.batch_size"] for params in points_of(found)] == ["16"] * 3


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["optimizer.lr=0.1,1", SPACE + "{optimizer.lr: [0.2, 1]}"], ["optimizer.lr=0.2", "0.1, 1"]),
        (["optimizer.lr=0.1,1", SPACE + "{optimizer.lr: 1}"], ["optimizer.lr=1", "list", "[0.1, 1.0]"]),
        (["optimizer.lr=0.1,1", SPACE + "{optimizer.lrr: [1]}"], ["optimizer.lrr", "did you mean optimizer.lr?"]),
        (["optimizer.lr=interval(0.1,1)"], ["optimizer.lr", "search_space={optimizer.lr: [0.1, 1.0]}"]),
        (["optimizer.lr=interval(0.1,1)", SPACE + "{optimizer.lr: [2]}"], ["optimizer.lr=2", "0.1 to 1"]),
    ],
)
def test_a_grid_that_does_not_fit_the_space_is_refused(words, parts, find):
    said = refusal(find, *GRID, *words)
    assert [part for part in parts if part not in said] == [] and not find.jobs


@pytest.mark.slow
def test_what_hangs_on_a_choice_is_shown_before_anything_runs(find, capsys):
    multirun(
        [*WORDS, LR, MOMENTUM, TWO, "scheduler=step,cosine", "scheduler.gamma=0.5,0.7", "sweep.dry_run=true"], None
    )
    said = capsys.readouterr().out
    assert "high=0.9, log=False, low=0.1, step=None) (only with optimizer=sgd)" in said
    assert "('0.5', '0.7')) (only with scheduler=step)" in said and "log=True, low=0.01, step=None)\n" in said
    assert not find.place.exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            [LR, TWO, "optimizer.momentun=interval(0,1)"],
            ["taken by no choice of optimizer=sgd,adam", "optimizer.momentum?"],
        ),
        ([LR, "scheduler=step,cosine", "scheduler.gama=0.1,0.2"], ["scheduler.gama", "scheduler.gamma?", "T_max"]),
        (
            [LR, TWO, "optimizer.momentum=interval(0,2)", "optimizer.nesterov=x,y"],
            ["optimizer.nesterov=x", "true or false"],
        ),
        ([LR, "optimizer=sgd,adem", MOMENTUM], ["adem", "adam"]),
        pytest.param(
            [LR, "optimizer=adam,adamw", MOMENTUM],
            ["optimizer has no key 'momentum'", "betas"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: " ".join(value[-1:]),
)
def test_a_key_that_no_choice_takes_is_refused(words, parts, find):
    line = refusal(find, *words)
    assert all(part in line for part in parts), line
    assert not find.place.exists()


def points_of(found):
    return [trial["params"] for trial in found["history"]]


@pytest.mark.slow
def test_points_are_tried_first_and_once(find, capsys):
    first = [
        "sweep.points=[{optimizer.lr: 1, optimizer: adam}, {optimizer.lr: 0.5}, {optimizer: adam, optimizer.lr: 1}]"
    ]
    found = points_of(find(LR, MOMENTUM, TWO, *first, "hydra.sweeper.n_trials=2"))
    assert found[0] == {"optimizer": "adam", "optimizer.lr": 1.0} and found[1]["optimizer.lr"] == 0.5
    (find.place.parent.parent.parent / "more.csv").write_text(
        "optimizer,optimizer.lr,optimizer.momentum\nsgd,0.25,0.5\n"
    )
    more = points_of(find(LR, MOMENTUM, TWO, "sweep.points=more.csv", "hydra.sweeper.n_trials=3"))
    assert more == [*found, {"optimizer": "sgd", "optimizer.lr": 0.25, "optimizer.momentum": 0.5}]
    capsys.readouterr()
    assert points_of(find(LR, MOMENTUM, TWO, *first, "hydra.sweeper.n_trials=3")) == more  # nothing new in it
    find(LR, MOMENTUM, TWO, "sweep.points=[{optimizer.lr: 2}]", "hydra.sweeper.n_trials=3")
    assert "sweep.points: 1 of them wait for a higher hydra.sweeper.n_trials" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("points", "parts"),
    [
        ("[{optimizer.lr: 100}]", ["sweep.points[0]: optimizer.lr=100: must be 0.01 to 10.0"]),
        ("[{optimizer.lr: fast}]", ["optimizer.lr=fast: must be"]),
        (
            "[{optimizer.lr: 0.1}, {optimizer.lrr: 0.1}]",
            ["sweep.points[1]: optimizer.lrr", "did you mean optimizer.lr?"],
        ),
        ("[{seed: 1}]", ["seed: is not searched over"]),
        ("[{optimizer: adan}]", ["optimizer=adan: must be one of sgd, adam"]),
        ("[{optimizer: adam, optimizer.momentum: 0.5}]", ["momentum: does not go with optimizer=adam"]),
        ("[{optimizer.momentum: 0.5}]", ["momentum: hangs on optimizer, which must be given too"]),
        ("[{optimizer.lr: true}]", ["optimizer.lr=true"]),
        ("nowhere.csv", ["sweep.points=nowhere.csv: cannot be read"]),
    ],
)
def test_a_point_that_is_not_in_the_space_is_refused(points, parts):
    keys = {"optimizer": CategoricalDistribution(["sgd", "adam"]), "optimizer.lr": FloatDistribution(0.01, 10.0)}
    keys["++optimizer.momentum"] = FloatDistribution(0.1, 0.9)
    fake = SimpleNamespace(space=Space([], keys, []), conditional=["++optimizer.momentum"], choosing=["optimizer"])
    fake.keys = lambda params: list(keys) if params["optimizer"] == "sgd" else list(keys)[:2]
    assert first_trials(read_points([{"optimizer": "sgd", "optimizer.momentum": 0.5}]), fake) == [
        {"optimizer": "sgd", "++optimizer.momentum": 0.5}
    ]
    with pytest.raises(InputError) as refused:
        first_trials(read_points(as_value(points)), fake)
    assert all(part in str(refused.value) for part in parts), refused.value


def test_what_a_distribution_holds_is_found_as_optuna_has_it():
    choices = CategoricalDistribution(["step", "0.5", "1", "true", "null", "[1,2]", "'a b'"])
    given = ["step", 0.5, 1, True, None, [1, 2], "a b", 1.0, "null"]
    assert [chosen(choices, value) for value in given] == [*choices.choices, "1", "null"]
    assert chosen(choices, False) is chosen(choices, 0.25) is chosen(choices, [1]) is None
    whole, steps = IntDistribution(2, 8, step=2), FloatDistribution(0.0, 1.0, step=0.1)
    assert [chosen(whole, value) for value in (2, 8.0, 3, 10, 2.5, "2")] == [2, 8, None, None, None, None]
    assert [chosen(steps, value) for value in (0.3, 1, 0.35, 1.1)] == [0.3, 1.0, None, None]


@pytest.mark.slow
def test_a_search_with_points_and_conditions_that_is_killed_at_each_job_is_the_one_that_never_was(find):
    words = [LR, MOMENTUM, TWO, "seed=1,2", "hydra.sweeper.n_trials=5", "hydra.sweeper.at_once=2"]
    words += ["+hydra.sweeper.sampler.n_startup_trials=2", "sweep.points=[{optimizer: sgd}, {optimizer.lr: 0.5}]"]
    whole = find(*words)["history"]
    assert whole[0]["params"]["optimizer"] == "sgd" and whole[1]["params"]["optimizer.lr"] == 0.5
    find.place.rename(find.place.with_name("whole"))
    for lives in (0, 1, 2, 3):
        with pytest.raises(Killed):
            find(*words, lives=lives)
    assert find(*words)["history"] == whole


@pytest.mark.parametrize(
    "word",
    [
        "trainer.monitor=[val/loss,val/accuracy]",
        "++trainer.monitor=[val/loss,val/accuracy]",
        "trainer.monitor=val/loss,val/accuracy",
        "trainer.monitor=choice(val/loss,val/accuracy)",
        "hydra.sweeper.params={trainer.monitor: 'val/loss,val/accuracy'}",
        "trainer.mode=min,max",
    ],
)
def test_a_search_of_two_objectives_is_refused_before_the_first_trial(word, find):
    line = refusal(find, LR, word)
    assert line.startswith("trainer.mo") and "a search has one objective; name one metric" in line, line
    assert not find.place.exists()
