"""A stranger's sweep and search: its words, its study, its sampler's state, its links. Nothing runs, nothing leaks."""

import contextlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from runner.cli import check, prune
from runner.config import admission
from runner.errors import InputError
from runner.job.logs import RunLog
from runner.search import sampler_state, study
from runner.search.space import Space
from runner.storage import lock
from runner.storage.files import write_atomically
from runner.storage.inside import unlink_in
from runner.storage.rows import Rows
from runner.storage.run_dir import RunDir
from runner.sweep import plan
from runner.sweep.multirun import check_words
from runner.sweep.run import locked
from test_hostile import watched

optuna = pytest.importorskip("optuna", reason="the optional extra [optuna]")

SPACE = ["optimizer.lr=tag(log, interval(0.01, 10))", "scheduler=step,cosine"]
HYDRA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3"]
DISTRIBUTIONS = {
    "optimizer.lr": optuna.distributions.FloatDistribution(0.01, 10.0, log=True),
    "scheduler": optuna.distributions.CategoricalDistribution(["step", "cosine"]),
}

SPACE_OF_OURS = Space([], DISTRIBUTIONS, [])


def written(place: Path, lines) -> None:
    """A study of this search, with more lines behind it."""
    study.open_study(None, place, "maximize", "ours")
    with open(place / "study.journal", "ab") as file:
        for line in lines:
            file.write((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")


OURS = {
    "distributions": {key: optuna.distributions.distribution_to_json(d) for key, d in DISTRIBUTIONS.items()},
    "params": {"optimizer.lr": 0.1, "scheduler": 1},
}
LR = json.dumps({"name": "FloatDistribution", "attributes": {"low": 0.01, "high": 10.0, "log": True, "step": None}})
TEXT = json.dumps(
    {"name": "CategoricalDistribution", "attributes": {"choices": ["{_target_: os.system, x: 1}", "step"]}}
)


def trial(**more):
    made = {"op_code": 4, "worker_id": "w", "study_id": 0, "datetime_start": "2026-01-01T00:00:00.000000", "state": 0}
    made |= {"value": None, "values": None, "distributions": {}, "params": {}, "user_attrs": {}, "system_attrs": {}}
    return {**made, "intermediate_values": {}, **more}


def both(lr, text=0, distribution=TEXT):
    return trial(
        distributions={"optimizer.lr": LR, "scheduler": distribution}, params={"optimizer.lr": lr, "scheduler": text}
    )


def attribute(name, value):
    return {"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {name: value}}


STUDIES = {
    "a secret for a number": [both("${oc.env:A_SECRET}")],
    "a target for a choice": [both(0.1)],
    "a number out of the space": [both(1e9)],
    "not a number": [both(float("nan"))],
    "true for a number": [both(True)],
    "another key": [trial(distributions={"hydra.run.dir": TEXT}, params={"hydra.run.dir": 0})],
    "escape sequences": [trial(distributions={"\x1b]0;x\x07": TEXT}, params={"\x1b]0;x\x07": 0})],
    "a text for a value": [trial(state=1, value="x"), trial(state=1, value="y")],
    "an infinite value": [trial(state=1, value=float("inf"))],
    "a generation that is a text": [attribute("generation", "x")],
    "a generation below nought": [attribute("generation", -1)],
    "another search's": [attribute(study.OURS, "x")],
    "an unknown operation": [{"op_code": 99, "worker_id": "w"}],
    "an unknown state": [trial(state=7)],
    "no fields": [{"op_code": 4}],
    "another distribution": [trial(distributions={"optimizer.lr": '{"name": "eval"}'}, params={"optimizer.lr": 1})],
    "brackets": [b"[" * 100_000],
    "bytes": [b"\xff\xfe\x00"],
    "a list": [[1]],
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_strangers_study_is_held_against_the_space(name, tmp_path):
    with watched() as done, pytest.raises(InputError) as refused:
        written(tmp_path, STUDIES[name])
        opened = study.open_study(None, tmp_path, "maximize", "ours")
        study.check_study(opened, SPACE_OF_OURS, 1, str(tmp_path / "study.journal"))
    assert "\n" not in str(refused.value) and "study.journal" in str(refused.value)
    assert not [what for what in done if str(tmp_path) not in what[1] and "site-packages" not in what[1]]


def test_a_study_of_ours_passes(tmp_path):
    written(tmp_path, [trial(**OURS), trial(**OURS, state=1, value=0.5), trial(state=3), attribute("generation", 3)])
    study.check_study(study.open_study(None, tmp_path, "maximize", "ours"), SPACE_OF_OURS, 1, "here")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize("prefix", ["cma", "cmawm", "sepcma"])
def test_a_samplers_pickle_is_read_as_data(prefix, tmp_path):
    state = {f"{prefix}:optimizer:0": pickle.dumps(Bomb()).hex()}
    written(tmp_path, [trial(**OURS, state=1, value=0.5, system_attrs=state)] * 2)
    opened = study.open_study(None, tmp_path, "maximize", "ours")
    from optuna.samplers import _cmaes

    assert _cmaes.pickle.loads is sampler_state.loads
    with watched() as done, pytest.raises(pickle.UnpicklingError, match="names posix.system, which is not made"):
        _cmaes.pickle.loads(bytes.fromhex(opened.trials[0].system_attrs[f"{prefix}:optimizer:0"]))
    assert not done
    kept = {
        "mean": np.arange(3.0),
        "rng": np.random.RandomState(1),
        "n": np.float64(2),
    }
    read = _cmaes.pickle.loads(_cmaes.pickle.dumps(kept))
    assert read["rng"].rand() == np.random.RandomState(1).rand() and (read["mean"] == kept["mean"]).all()


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
@pytest.mark.parametrize("name", ["study.journal", "study.journal.lock", "study.json", ".submitit", "sweep.json"])
def test_what_leads_out_of_a_search_is_not_followed(name, kind, tmp_path, capsys):
    place, outside = tmp_path / "sweep", tmp_path / "outside"
    place.mkdir(), outside.mkdir()
    (outside / "file").write_text("precious")
    target = outside if name == ".submitit" else outside / "file"
    path = place / name
    {"link": lambda: path.symlink_to(target), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with contextlib.suppress(InputError), locked(place):
        study.open_study(None, place, "maximize", "ours")
        assert (name, kind) in (("study.journal.lock", "link"), ("study.journal.lock", "fifo"), (".submitit", "folder"))
    assert [(file.name, file.read_text()) for file in outside.iterdir()] == [("file", "precious")]


REFUSED = [
    *("sweep.points=/etc/passwd", "++sweep.points=x.csv"),
    *(" hydra.job_logging=x", "+hydra.callbacks.x={_target_: a.B}", "model@hydra.callbacks.x=net", "hydra={}"),
    *("hydra/launcher@hydra.x=local", "~hydra.launcher", "hydra.launcher={_target_: a.B}", "hydra.sweep.dir=/tmp"),
    *("hydra.launcher.parameters={setup: [touch PWNED]}", "hydra.launcher.parameters.slurm_setup=[touch PWNED]"),
    *("hydra.launcher.init={runtime_env: {pip: [evil]}}", "hydra.launcher.address=ray://evil:1", "hydra.run.dir=/tmp"),
    *("hydra.sweeper.storage=sqlite:////tmp/PWNED.db", "hydra.sweeper.params={trust: '[evil]'}", "trust=[evil]"),
    *(
        "hydra.sweeper.params.hydra.sweep.dir=/tmp",
        "hydra.job.env_set={PATH: /tmp}",
        "hydra.job.chdir=true",
        "++trust=[a]",
    ),
    *("+trust=[evil]", "hydra.launcher.cluster=local", "hydra.output_subdir=../../x", "hydra.searchpath=[file:///tmp]"),
    *(
        "hydra.sweep.subdir=../..",
        "notes=${oc.env:A_SECRET}",
        "notes=${hydra:runtime.cwd}",
        "hydra/job_logging=default",
    ),
    *("seed=${oc.decode:${oc.env:A}}", "hydra.mode=RUN", "hydra.verbose=true", "hydra/hydra_logging=default", "%"),
]
FOLLOWED = [
    *("seed=1,2", "hydra/launcher=local", "hydra/launcher=ray", "hydra.launcher.jobs=2", "hydra/sweeper=optuna"),
    *(
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.at_once=2",
        "hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler",
    ),
    *("hydra.sweeper.pruner=median", "hydra.sweeper.pruner={_target_: optuna.pruners.MedianPruner}"),
    *("sweep.points=[{optimizer.lr: 1}]", "sweep.lengthen=true"),
    *("optimizer.lr=tag(log, interval(0.01, 1))", "+model.x=1", "~model.x", "experiment=mnist_fast", "model=net,mlp"),
]


def test_a_strangers_words_are_judged_as_hydra_reads_them(monkeypatch):
    record = {"arguments": [], "hydra": [], "base": {}, "config_dir": None, "working_directory": "/"}
    for word in FOLLOWED:
        check_words(Path("sweep.json"), {**record, "arguments": [word]})
    wrong = [{"arguments": [word]} for word in REFUSED] + [{"hydra": [word]} for word in REFUSED]
    wrong += [{"base": {"trust": ["evil"]}}, {"base": {"notes": {"a": "${oc.env:X}"}}}, {"config_dir": "/tmp"}]
    for more in wrong:
        with pytest.raises(InputError, match="is not taken from a record"):
            check_words(Path("sweep.json"), {**record, **more})
    with monkeypatch.context() as patched:
        patched.setattr(admission, "granted", lambda: (frozenset(), True))
        check_words(Path("sweep.json"), {**record, **more})


def test_a_job_whose_folder_is_a_link_is_written_to_by_nobody(tmp_path):
    place, outside = tmp_path / "sweep", tmp_path / "outside"
    place.mkdir(), outside.mkdir()
    (place / "seed=1").symlink_to(outside)
    job = plan.Job(["seed=1"], {"seed": 1}, {"seed": "1"}, None)
    with pytest.raises(InputError, match="is a link"):
        plan.place_jobs([job], place)
    assert not list(outside.iterdir())


def test_a_sweep_that_leads_into_itself_is_looked_at_once(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(
        json.dumps({"arguments": ["seed=1"], "config_dir": None, "swept": ["seed"], "base": {}})
    )
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link"):
        check.main(check.parser().parse_args([str(tmp_path)]))


def test_a_worker_has_the_policy_of_a_strangers_sweep():
    strict = admission.Policy((), frozenset({"mine"}), record=Path("/theirs"))
    with admission.admitting(strict), admission.granting(["mine"]):
        given = pickle.loads(pickle.dumps(admission.carried()))
    with admission.carrying(given):
        assert admission.policy() == strict and admission.granted() == (frozenset({"mine"}), False)
    with admission.admitting(admission.Policy((Path("/"),))):
        assert admission.carried() == admission.NOTHING, "one's own sweep: each job says what it trusts"


def test_what_has_become_a_link_since_it_was_looked_at_is_not_written_to(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.mkdir(), folder.mkdir()
    (outside / "best.pt").write_text("precious")
    for name in ("metrics.jsonl", "runner.log", "run.lock"):
        (folder / name).symlink_to(outside / "best.pt")
    (folder / "checkpoints").symlink_to(outside)
    for write in (
        lambda: Rows(folder / "metrics.jsonl", "epoch").append({"epoch": 1}),
        lambda: RunLog(folder / "runner.log"),
        lambda: lock.take(folder / "run.lock", "mine"),
        lambda: unlink_in(folder / "checkpoints", "best.pt"),
    ):
        with pytest.raises(OSError):
            write()
    write_atomically(folder / "metrics.jsonl", b"{}\n")
    assert not (folder / "metrics.jsonl").is_symlink() and (outside / "best.pt").read_text() == "precious"
    assert not lock.is_taken(folder / "run.lock")


def test_prune_deletes_what_is_ours_by_its_name(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.checkpoints.mkdir()
    ours = ["epoch_0001.pt", "last-1.pt", "last.pt.tmp", "previous.pt.tmp", "last.pt.set-aside-12"]
    for name in (*ours, "notes.pt", "last.pt.bak", "x.ptx", "epoch_1.pt.zip", "model.pt", "best.pt~"):
        (run_dir.checkpoints / name).write_text("")
    (run_dir.checkpoints / "epoch_0002.pt").mkdir()
    assert sorted(file.name for file in prune.superfluous(run_dir)) == sorted(ours)
