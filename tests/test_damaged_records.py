"""Records that were damaged: each is refused with one line that names file and key, or left out and named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import runner
from runner.errors import InputError
from runner.job.resuming import resume
from runner.storage import checkpoint, records
from runner.storage.choices import choices_of
from runner.storage.lease import Lease
from runner.storage.record_schema import (
    BadRecord,
    RunRecord,
    StudyRecord,
    read_record,
    write_record,
)
from runner.storage.rows import Rows
from runner.storage.run_dir import RunDir
from runner.sweep import plan
from runner.sweep.run import finished_state
from runner.sweep.settings import members, settings
from runner.terminal import notices

ROOT = Path(__file__).parents[1]
WORDS = ["dataset=fake", "dataset.train_size=40", "dataset.val_size=10", "dataset.eval_size=10", "model=mlp"]
WORDS += ["trainer.epochs=2", "quiet=true", "device.threads=1", "dataset.input_shape=[1,4,4]", "trainer.log_every=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("made")
    for seed in (1, 2):
        runner.run([*WORDS, f"seed={seed}"], run_dir=base / f"s{seed}")
    return base


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "runs")
    notices.take()
    return tmp_path / "runs"


def edit(path, **changes):
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))


BROKEN = {
    "only a state": (b'{"state":"done"}', "missing required field"),
    "brackets": (b"[" * 100_000, "nested too deeply"),
    "a number": (b"5", "no record"),
    "a list": (b"[1,2]", "no record"),
    "empty": (b"", "cannot be read"),
    "not UTF-8": (b'{"state": "\xff"}', "cannot be read"),
    "NaN": (b'{"state": NaN', "cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_json_is_one_line_and_the_others_are_listed(name, folder, say):
    content, message = BROKEN[name]
    (folder / "s1" / "run.json").write_bytes(content)
    code, out, err = say("show", folder / "s1")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and message in err and "run.json" in err
    for verb in ("ls", "best"):
        code, out, err = say(verb, folder)
        assert code == 0 and "s2" in out and "left out" in err and "s1" in err
    assert [Path(row["path"]).name for row in records.runs(folder)] == ["s2"]


KEYS = [
    *(("resumed", None), ("epochs", "2"), ("best", [1]), ("test", {"best": 1}), ("monitor", ...), ("config", ...)),
    *(("best_value", 10**309), ("mode", "up"), ("config_yaml", ...), ("threads", None), ("config_yaml", "[")),
]


@pytest.mark.parametrize(("key", "value"), KEYS, ids=[f"{i} {key}" for i, (key, _) in enumerate(KEYS)])
def test_a_key_that_is_missing_or_wrong_is_named(key, value, folder, say):
    edit(folder / "s1" / "run.json", **{key: value})
    code, _, err = say("resume", folder / "s1", "trainer.epochs=3")
    assert code == 2 and len(err.splitlines()) == 1 and "run.json" in err and key in err


def test_a_changed_digit_is_said(folder, say):
    path = folder / "s1" / "run.json"
    text = path.read_text()
    value = json.loads(text)["best_value"]
    path.write_text(text.replace(f'"best_value": {value}', '"best_value": 0.9999'))
    code, out, err = say("ls", folder)
    assert code == 0 and "0.9999" in out and "run.json: was changed since it was written" in err
    record = json.loads(path.read_text())
    del record["crc32"]
    path.write_text(json.dumps(record))  # by other hands
    assert say("ls", folder)[2] == ""


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["run.json", "runner.log", "metrics.jsonl", "checkpoints/best.pt", "run.lease"])
def test_what_is_no_file_holds_nobody_up(name, make, folder, say):
    path = folder / "s1" / name
    path.unlink(missing_ok=True)
    make(path)
    words = ["evaluate", folder / "s1"] if name.endswith(".pt") else ["resume", folder / "s1", "trainer.epochs=3"]
    code, _, err = say(*words)
    assert code == 2 and len(err.splitlines()) == 1 and name in err


def test_a_run_json_of_another_user_is_left_out_and_named(folder, say, monkeypatch):
    theirs = folder / "s1" / "run.json"
    real = os.open

    def denied(path, *rest, **more):
        if Path(path) == theirs:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", denied)
    code, out, err = say("ls", folder)
    assert code == 0 and "s2" in out and "Permission denied" in err
    code, _, err = say("show", folder / "s1")
    assert code == 2 and len(err.splitlines()) == 1 and "Permission denied" in err


@pytest.mark.parametrize(
    "row", [b"{}", b"5", b"[1,2]", b'{"epoch": "1"}', b'{"epoch": 1, "lr": "x"}', b'{"epoch": NaN}']
)
def test_a_line_that_is_no_row_is_named(row, folder, say):
    path = folder / "s1" / "metrics.jsonl"
    path.write_bytes(row + b"\n" + path.read_bytes())
    assert Rows(path, "epoch").read() == []
    code, _, err = say("show", folder / "s1")
    assert code == 0 and "metrics.jsonl: line 1 is no row" in err


@pytest.mark.parametrize("content", [b"\xff", b"a: [", b"5", b"- {a: 1}"])
def test_garbage_in_the_overrides_is_named(content, folder, say):
    (folder / "s1" / ".hydra" / "overrides.yaml").write_bytes(content)
    code, _, err = say("resume", folder / "s1", "optimizer.lr=3")
    assert code == 2 and len(err.splitlines()) == 1 and "overrides.yaml" in err


@pytest.mark.parametrize("content", [b"\xff\xfe", b"garbage", b"5\n" * 1000])
def test_garbage_in_a_lease_holds_nobody_up(content, tmp_path):
    (tmp_path / "run.lease").write_bytes(content)
    Lease(tmp_path / "run.lease").release()


@pytest.mark.parametrize("key", ["optimizer_state_dict", "lr", "progress", "model_state_dict"])
def test_a_resealed_checkpoint_without_a_key_is_named(key, folder, say):
    for path in (folder / "s1" / "checkpoints").glob("*.pt"):
        state = checkpoint.load(path)
        del state[key]
        path.unlink()
        checkpoint.save(path, state)
    code, _, err = say("resume", folder / "s1", "trainer.epochs=3")
    assert code == 2 and len(err.splitlines()) == 1 and f"has no {key}" in err


def test_tags_of_a_finished_run_are_written_and_said(folder, capsys):
    record = resume(folder / "s1", ["tags=[x]"])
    assert record["tags"] == ["x"] and "tags" in capsys.readouterr().out
    assert records.read(folder / "s1")["tags"] == ["x"] and records.read(folder / "s1")["config.tags"] == ["x"]
    resume(folder / "s1", ["trainer.epochs=3"])
    assert records.read(folder / "s1")["tags"] == ["x"]


# --------------------------------------------------------------------------------------------------------- sweeps


def job_of(place, seed):
    """A job of a sweep over the seed, as its plan and its run have it."""
    record = RunDir(place / f"seed={seed}").read_run()
    return plan.Job([f"seed={seed}"], record["config"], {"seed": str(seed)}, None, Path(), record["config_source"])


@pytest.fixture
def sweep(folder):
    for seed in (1, 2):
        (folder / f"s{seed}").rename(folder / f"seed={seed}")
    jobs = [job_of(folder, seed) for seed in (1, 2)]
    plan.place_jobs(jobs, folder)
    for job in jobs:
        plan.write_job(job)
    return folder


@pytest.mark.parametrize("content", [b"", b'{"identity": "', b"{}", b"[" * 100_000, b"5"])
def test_a_job_whose_job_json_is_broken_keeps_its_folder(content, sweep):
    (sweep / "seed=1" / "job.json").write_bytes(content)
    jobs = [job_of(sweep, seed) for seed in (1, 2)]
    plan.place_jobs(jobs, sweep)
    assert [job.name for job in jobs] == ["seed=1", "seed=2"]
    plan.write_job(jobs[0])
    assert (sweep / "seed=1" / "job.json.set-aside").read_bytes() == content
    assert plan.known_jobs(sweep)["seed=1"]["identity"] == jobs[0].identity


def test_another_identity_makes_no_seed_count_twice(sweep):
    other = plan.known_jobs(sweep)["seed=2"]["identity"]
    for identity in (other, "0123456789abcdef"):
        edit(sweep / "seed=1" / "job.json", identity=identity)
        jobs = [job_of(sweep, seed) for seed in (1, 2)]
        plan.place_jobs(jobs, sweep)
        assert [job.name for job in jobs] == ["seed=1", "seed=2"]
    (setting,) = settings(members(sweep))
    assert [member.seed for member in setting.members] == ["1", "2"]


def test_a_job_with_a_broken_run_json_fails_alone_and_with_a_way_out(sweep):
    (sweep / "seed=1" / "run.json").write_text('{"state": "done"}')
    jobs = [plan.Job(["seed=1"], {"seed": 1}, {"seed": "1"}, None, sweep / "seed=1"), job_of(sweep, 2)]
    jobs[1].folder = sweep / "seed=2"
    state, why = finished_state(jobs[0], None)
    assert state == "failed" and "run.json" in why and "mv " in why and ".set-aside" in why
    assert finished_state(jobs[1], None) == ("done", None)
    assert {member.name: member.state for member in members(sweep)} == {"seed=1": "failed", "seed=2": "done"}
    (sweep / "seed=1").rename(sweep / "seed=1.set-aside")
    assert list(plan.known_jobs(sweep)) == ["seed=2"]


def test_a_broken_sweep_json_is_named_with_the_way_out(sweep, say):
    for content in ("{}", "[1]", '{"arguments": 5}', ""):
        (sweep / "sweep.json").write_text(content)
        code, _, err = say("resume", sweep)
        assert code == 2 and len(err.splitlines()) == 1 and "sweep.json" in err and "command again" in err


@pytest.mark.slow
def test_a_small_part_of_the_damage_campaign_finds_nothing():
    words = [sys.executable, "-m", "benchmarks.damage", "--every", "16"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unreadable_study_journal_is_named(tmp_path):
    pytest.importorskip("optuna", reason="the optional extra [optuna]")
    from runner.search.study import open_study

    (tmp_path / "study.journal").write_bytes(b"garbage\n" * 3)
    with pytest.raises(InputError, match="study.journal: cannot be opened"):
        open_study(None, tmp_path, "maximize", "x")
    (tmp_path / "study.journal").unlink()
    os.mkfifo(tmp_path / "study.journal")
    with pytest.raises(InputError, match="study.journal: cannot be read"):
        open_study(None, tmp_path, "maximize", "x")


GRID = {"_target_": "optuna.samplers.GridSampler", "search_space": {"a": ["1", "2", "3"], "b": ["x", "y"]}}
BRUTE = {"_target_": "optuna.samplers.BruteForceSampler", "seed": None}


@pytest.mark.parametrize("sampler", [GRID, BRUTE], ids=["grid", "brute force"])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_sampler_that_stops_the_study_tries_each_point_once(sampler, at_once, tmp_path):
    optuna = pytest.importorskip("optuna", reason="the optional extra [optuna]")
    from omegaconf import OmegaConf

    from runner.search.space import Space
    from runner.search.study import Trials, open_study

    sampler = OmegaConf.create(sampler)
    space = {key: optuna.distributions.CategoricalDistribution(c) for key, c in GRID["search_space"].items()}
    all_keys = SimpleNamespace(space=Space([], space, []), keys=lambda params: list(space))
    all_keys.is_whole = lambda params: set(params) == set(space)
    while True:  # each generation by a start of its own
        study = open_study(None, tmp_path, "maximize", "x")
        generation = Trials(study, all_keys).next_generation(at_once, 20, sampler, seed=1)
        if not generation:
            break
        for trial in generation:
            study.tell(trial.number, 1.0)
    tried = [tuple(sorted(trial.params.items())) for trial in study.trials]
    assert len(tried) == len(set(tried)) == 6


def test_a_search_has_one_objective():
    from runner.search.search import direction

    with pytest.raises(InputError, match="trainer.monitor=.*one objective"):
        direction({"trainer": {"monitor": ["val/loss", "val/accuracy"], "mode": None}})


def test_a_running_run_of_another_user_is_seen_to_run(folder, monkeypatch):
    place = folder / "s1"
    edit(place / "run.json", state="running")
    code = "import sys, time; from pathlib import Path; from runner.storage import lock\n"
    code += "lock.take(Path(sys.argv[1]), 'x'); print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, str(place / "run.lock")], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline()
        real = os.open

        def readable(path, flags, *rest, **more):
            if Path(path) == place / "run.lock" and flags & os.O_RDWR:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", readable)
        assert records.read(place)["state"] == "running"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert records.read(place)["state"] == "killed"


def test_prune_deletes_nothing_where_what_it_would_keep_is_damaged(folder, say):
    best = folder / "s1" / "checkpoints" / "best.pt"
    content = best.read_bytes()
    best.unlink()
    best.write_bytes(content[:-100])
    before = sorted((folder / "s1" / "checkpoints").iterdir())
    code, out, _ = say("prune", folder)
    assert code == 0 and "skipped" in out and "best.pt" in out
    assert sorted((folder / "s1" / "checkpoints").iterdir()) == before


def test_a_trial_without_a_state_is_refused(tmp_path):
    write_record(tmp_path / "study.json", {"history": [{"value": 1.0, "params": {}}]})
    with pytest.raises(BadRecord, match="`history` is a list: object missing required field `state`"):
        read_record(tmp_path / "study.json", StudyRecord)


def test_choices_are_read_from_a_file_with_any_bytes(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_bytes(b"# \xff\nhydra:\n  runtime:\n    choices:\n      model: net\n")
    assert choices_of(tmp_path) == {"model": "net"}


def test_the_figures_of_a_run_that_never_began_are_finite_too(folder):
    path = folder / "s1" / "run.json"
    record = {**json.loads(path.read_bytes()), "config_yaml": None, "seconds": 12345.5}
    path.write_text(json.dumps(record).replace("12345.5", "1e999"))
    with pytest.raises(BadRecord, match="`seconds` is Infinity"):
        read_record(path, RunRecord)
