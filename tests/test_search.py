"""Searches by Optuna: Hydra's grammar as a space, trials as runs, a killed search that goes on exactly."""

import json
import sys

import pytest

from conftest import until
from runner.config.compose import make_hydra, own_hydra, set_up
from runner.errors import InputError
from runner.storage.rows import Rows, timeless

optuna = pytest.importorskip("optuna", reason="the optional extra [optuna]")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

from runner.search.space import Space, search_space  # noqa: E402
from test_resume import is_alive  # noqa: E402

SPACE = ["optimizer.lr=tag(log, interval(0.01, 10))", "scheduler=step,cosine"]
WORDS = ["dataset=fake", "dataset.train_size=40", "dataset.eval_size=20", "dataset.input_shape=[1,4,4]", "model=mlp"]
WORDS += ["trainer.epochs=3", "device.threads=1", "dataloader.batch_size=8", "dataloader.placement=memory"]
FIND = ["-m", "hydra/sweeper=optuna", *SPACE, *WORDS]


@pytest.fixture
def sweeper():
    """As much of one as search_space looks at."""
    set_up()
    with own_hydra():
        loader = make_hydra(None).config_loader
        yield type("Sweeper", (), {"hydra_context": type("Context", (), {"config_loader": loader})})


@pytest.mark.parametrize(
    ("word", "distribution"),
    [
        ("a=interval(0.1,1)", FloatDistribution(0.1, 1.0)),
        ("a=tag(log, interval(0.001, 1))", FloatDistribution(0.001, 1.0, log=True)),
        ("a=interval(1,8)", FloatDistribution(1.0, 8.0)),
        ("a=int(interval(1,8))", IntDistribution(1, 8)),
        ("a=tag(log, int(interval(8, 256)))", IntDistribution(8, 256, log=True)),
        ("a=range(1,8)", IntDistribution(1, 7)),
        ("a=range(16, 129, 16)", IntDistribution(16, 128, step=16)),
        ("a=choice(x,y,z)", CategoricalDistribution(["x", "y", "z"])),
        ("a=1,2,null,[1,2]", CategoricalDistribution(["1", "2", "null", "[1,2]"])),
    ],
)
def test_hydras_grammar_is_optunas_space(word, distribution, sweeper):
    assert search_space(sweeper, ["seed=1", word]) == Space(["seed=1"], {"a": distribution}, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1"], "nothing to search over"),
        (["a=tag(log, choice(1,2))"], "log is for an interval"),
        (["a=tag(linear, interval(1,2))"], "unknown tag linear; choices: log"),
        (["a=tag(log, interval(0, 1))"], "a=tag"),
        (["a=interval(2, 1)"], "a=interval"),
        (["sweep.retries=1,2"], "sweep.retries: cannot be searched over"),
    ],
)
def test_impossible_spaces_are_refused(words, message, sweeper):
    with pytest.raises(InputError, match=message):
        search_space(sweeper, words)


def study_of(place):
    return json.loads((place / "study.json").read_text())


@pytest.mark.slow
def test_each_trial_is_a_run_and_the_search_goes_on_to_its_total(cli):
    place = cli.cwd / "outputs" / "sweeps" / "found"
    few = cli(*FIND, "hydra.sweeper.n_trials=2", "sweep.name=found")
    assert few.returncode == 0, few.stdout + few.stderr
    first = study_of(place)["history"]
    more = cli(*FIND, "hydra.sweeper.n_trials=5", "hydra.sweeper.at_once=2", "sweep.name=found")
    assert more.returncode == 0, more.stdout + more.stderr
    study = study_of(place)
    assert study["history"][:2] == first and study["trials"] == study["complete"] == 5
    runs = [path for path in place.glob("*/run.json")]
    assert len(runs) == len({json.dumps(trial["params"]) for trial in study["history"]})
    values = [json.loads(path.read_text())["best_value"] for path in runs]
    assert max(values) == study["best"]["value"] == max(trial["value"] for trial in study["history"])
    assert "importances: " in more.stdout and "best of 5 trials" in more.stdout
    assert set(study["importances"]) == {"optimizer.lr", "scheduler"}
    summed = json.loads((place / "summary.json").read_text())
    assert summed["settings"][0]["metrics"]["best/val/accuracy"]["mean"] == study["best"]["value"]
    done = cli("resume", str(place))
    assert done.returncode == 0 and study_of(place)["history"] == study["history"], done.stderr


def killed_after(cli, words, place, count):
    """SIGKILL for a search as soon as `count` trials are told."""
    process = cli.start(*words)
    until(lambda: len(list(place.glob("*/run.json"))) >= count, 240)
    process.kill()
    process.communicate()
    workers = [int(path.read_text().split()[-1]) for path in place.glob("*/run.lock")]
    until(lambda: not any(map(is_alive, workers)), 10)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_search_that_was_killed_twice_is_the_search_that_never_was(cli, at_once):
    words = [
        *FIND,
        "hydra.sweeper.n_trials=6",
        f"hydra.sweeper.at_once={at_once}",
        "+hydra.sweeper.sampler.n_startup_trials=2",
    ]
    place = cli.cwd / "outputs" / "sweeps"
    whole = cli(*words, "sweep.name=whole")
    assert whole.returncode == 0, whole.stderr
    for count in (2, 4):
        killed_after(cli, [*words, "sweep.name=killed"], place / "killed", count)
    last = cli(*words, "sweep.name=killed")
    assert last.returncode == 0, last.stdout + last.stderr
    assert study_of(place / "killed")["history"] == study_of(place / "whole")["history"]


@pytest.mark.slow
def test_a_pruned_search_that_was_killed_three_times_is_the_search_that_never_was(cli):
    """Real runs, seeds and workers: every decision, value and row, whatever ran at the same time."""
    words = ["-m", "hydra/sweeper=optuna", *SPACE, "trainer.epochs=5", "model=mlp", "model.hidden=[8]"]
    words += ["device.threads=1", "dataset.val_size=0.5", "seed=1,2", "hydra.sweeper.n_trials=9"]
    words += ["hydra.sweeper.at_once=3", "+hydra.sweeper.sampler.n_startup_trials=3"]
    words += ["hydra.sweeper.pruner={_target_: optuna.pruners.MedianPruner, n_startup_trials: 2}"]
    place = cli.cwd / "outputs" / "sweeps"
    whole = cli(*words, "sweep.name=whole", "hydra.launcher.jobs=2")
    assert whole.returncode == 0, whole.stderr
    for count in (2, 7, 11):
        killed_after(
            cli, [*words, "sweep.name=killed", f"hydra.launcher.jobs={count % 3 + 1}"], place / "killed", count
        )
    last = cli(*words, "sweep.name=killed")
    assert last.returncode == 0, last.stdout + last.stderr
    one, two = study_of(place / "whole"), study_of(place / "killed")
    assert {trial["state"] for trial in one["history"]} == {"complete", "pruned"} and one["history"] == two["history"]
    rows = [
        {
            path.parent.name: [timeless(row) for row in Rows(path, "epoch").read()]
            for path in folder.glob("*/metrics.jsonl")
        }
        for folder in (place / "whole", place / "killed")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["-m", "hydra/sweeper=optuna", "optimizer.learning=interval(0.1,1)"], ["optimizer.learning", "lr"]),
        ([*FIND, "hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials=0"]),
        ([*FIND, "hydra.sweeper.storage=nosuch://x"], ["hydra.sweeper.storage=nosuch://x"]),
        ([*FIND, "hydra.sweeper.sampler._target_=optuna.samplers.Nope"], ["hydra.sweeper.sampler", "Nope"]),
        ([*FIND, "hydra.sweeper.sampler._target_=builtins.dict"], ["hydra.sweeper.sampler", "dict"]),
        (["-m", "hydra/sweeper=optuna", "optimizer.lr=interval(0.1,1)", "scheduler=step,cosin"], ["cosin", "cosine"]),
        (["-m", "hydra/sweeper=optuna", "seed=1"], ["nothing to search over"]),
    ],
    ids=lambda value: " ".join(value[-1:]),
)
def test_bad_input_gets_one_line(words, parts, tmp_path, monkeypatch, capsys):
    from runner.__main__ import main

    monkeypatch.setattr(sys, "argv", ["runner", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert (ended.value.code, len(lines)) == (2, 1), lines
    assert all(part in lines[0] for part in parts), lines
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_storage_that_holds_another_study_is_refused(cli):
    words = [*FIND, "hydra.sweeper.n_trials=1", "hydra.sweeper.storage=sqlite:///studies.db"]
    assert cli(*words, "sweep.name=one").returncode == 0
    (cli.cwd / "outputs" / "sweeps" / "one").rename(cli.cwd / "aside")  # the folder is new, the study is not
    other = cli(*[w.replace("0.01, 10", "0.1, 10") for w in words], "sweep.name=one")
    assert other.returncode == 2 and "holds another study under the name one" in other.stderr, other.stderr
    assert "sqlite:///studies.db" in other.stderr and other.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_trial_whose_worker_dies_stays_open_and_the_search_ends(cli):
    (cli.cwd / "dying.py").write_text(
        "import multiprocessing, os, signal\nfrom runner.models import MLP\n"
        "class Dying(MLP):\n"
        "    def forward(self, x):\n"
        "        is_to_die = multiprocessing.parent_process() is not None and not os.path.exists('healed')\n"
        "        if self.training and is_to_die: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(x)\n"
    )
    words = [*FIND, "model._target_=dying.Dying", "hydra.sweeper.n_trials=2", "sweep.name=dying"]
    place = cli.cwd / "outputs" / "sweeps" / "dying"
    done = cli(*words)
    assert done.returncode == 1 and "its worker died" in done.stderr, done.stdout + done.stderr
    assert [trial["state"] for trial in study_of(place)["history"]] == ["running"]
    (cli.cwd / "healed").touch()
    again = cli(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [trial["state"] for trial in study_of(place)["history"]] == ["complete"] * 2
