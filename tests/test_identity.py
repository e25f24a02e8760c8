"""What belongs to a run: its checkpoints, its rows, its process's generators; and a job that never began."""

import json
import shutil
import threading

import pytest

import runner
from runner.__main__ import main
from runner.errors import InputError
from runner.job.resuming import resume
from runner.storage import checkpoint
from runner.storage.rows import timeless
from runner.storage.run_dir import RunDir

WORDS = ["dataset=fake", "dataset.train_size=60", "dataset.eval_size=20", "dataset.val_size=20", "model=mlp"]
WORDS += ["model.hidden=[8]", "dataset.input_shape=[1,6,6]", "scheduler=constant", "device.threads=1", "quiet=true"]
WORDS += ["trainer.epochs=4", "trainer.log_every=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs that differ by their seed."""
    folder = tmp_path_factory.mktemp("made")
    for seed in (1, 2):
        runner.run([*WORDS, f"seed={seed}"], run_dir=folder / str(seed))
    return folder


@pytest.fixture
def runs(made, tmp_path):
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_checkpoint_carries_its_runs_id_and_a_digest_of_its_config(runs):
    record = RunDir(runs / "1").read_run()
    state = checkpoint.load(runs / "1" / "checkpoints" / "last.pt")
    assert state["run_id"] == record["id"] and len(state["config_digest"]) == 16
    other = checkpoint.load(runs / "2" / "checkpoints" / "last.pt")
    assert other["run_id"] != state["run_id"] and other["config_digest"] != state["config_digest"]
    resume(runs / "1", ["trainer.epochs=5", "name=later", "dataloader.num_workers=0"])
    later = checkpoint.load(runs / "1" / "checkpoints" / "last.pt")
    assert (later["run_id"], later["config_digest"]) == (state["run_id"], state["config_digest"])
    assert RunDir(runs / "1").read_run()["id"] == record["id"]


@pytest.mark.parametrize("is_of_an_older_version", [False, True])
def test_another_runs_checkpoints_are_refused_by_name(runs, is_of_an_older_version):
    if is_of_an_older_version:  # such a run has no id; its checkpoints hold its config's text
        for seed in "12":
            for path in (runs / seed / "checkpoints").glob("*.pt"):
                state = checkpoint.load(path)
                checkpoint.save(path, {k: v for k, v in state.items() if k not in ("run_id", "config_digest", "rows")})
            record = RunDir(runs / seed).read_run()
            RunDir(runs / seed).write_run({k: v for k, v in record.items() if k != "id"})
    for path in (runs / "2" / "checkpoints").glob("*.pt"):
        shutil.copy(path, runs / "1" / "checkpoints" / path.name)
    for act in (
        lambda: resume(runs / "1", ["trainer.epochs=5"]),
        lambda: runner.load_model(runs / "1"),
        lambda: runner.load_model(runs / "1", "last"),
    ):
        with pytest.raises(InputError, match="(?s)another (run|config).*seed is 2 there, 1 here"):
            act()
    assert RunDir(runs / "1").read_run()["epochs_done"] == 4


def test_a_run_without_another_difference_is_told_apart_by_its_id(runs, tmp_path):
    runner.run([*WORDS, "seed=1"], run_dir=tmp_path / "again")
    shutil.copy(tmp_path / "again" / "checkpoints" / "last.pt", runs / "1" / "checkpoints" / "last.pt")
    with pytest.raises(InputError, match="belongs to another run"):
        runner.load_model(runs / "1", "last")


DAMAGE = {
    "deleted": lambda path, lines: path.unlink(),
    "garbage as line 2": lambda path, lines: path.write_text("\n".join([lines[0], "garbage", *lines[2:]]) + "\n"),
    "half a last line": lambda path, lines: path.write_text("\n".join(lines)[:-30]),
    "rows twice": lambda path, lines: path.write_text("\n".join([*lines[:2], *lines]) + "\n"),
    "a row less": lambda path, lines: path.write_text("\n".join([lines[0], *lines[2:]]) + "\n"),
    "another value": lambda path, lines: path.write_text("\n".join(lines).replace('"lr": 1.0', '"lr": 2.0') + "\n"),
    "no rows": lambda path, lines: path.write_text("{}\n5\n[1, 2]\n"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_rows_that_are_lost_are_made_good_from_the_checkpoint_and_it_is_said(runs, damage):
    before, path = rows_of(runs / "1"), runs / "1" / "metrics.jsonl"
    DAMAGE[damage](path, path.read_text().splitlines())
    resume(runs / "1", ["trainer.epochs=5"])
    after = rows_of(runs / "1")
    assert [timeless(row) for row in after[:4]] == [timeless(row) for row in before]
    assert [row["epoch"] for row in after] == [1, 2, 3, 4, 5]
    assert "metrics.jsonl: " in (runs / "1" / "runner.log").read_text()
    assert "made good from" in (runs / "1" / "runner.log").read_text()


def test_whole_rows_keep_their_bytes(runs):
    before = (runs / "1" / "metrics.jsonl").read_bytes()
    resume(runs / "1", ["trainer.epochs=5"])
    assert (runs / "1" / "metrics.jsonl").read_bytes().startswith(before)
    assert "made good" not in (runs / "1" / "runner.log").read_text()


def test_lost_rows_of_steps_are_said(runs):
    (runs / "1" / "steps.jsonl").unlink()
    resume(runs / "1", ["trainer.epochs=5"])
    assert "steps.jsonl: 12 rows from step 1 on are lost" in (runs / "1" / "runner.log").read_text()


def test_a_second_run_in_another_thread_is_refused_and_the_first_keeps_its_figures(runs, tmp_path):
    started, refused = threading.Event(), []

    def second():
        started.wait()
        for act in (
            lambda: runner.run([*WORDS, "seed=5"], run_dir=tmp_path / "second"),
            lambda: runner.load_model(runs / "1"),
        ):
            try:
                act()
            except InputError as error:
                refused.append(str(error))

    from runner.job.launch import launch
    from runner.job.run import train

    def on_batch(progress, batches):
        if progress.step == 2:
            started.set()
            thread.join()

    thread = threading.Thread(target=second)
    thread.start()
    words = [*WORDS, "seed=1"]
    record = launch(words, lambda *job: train(*job, on_batch=on_batch), run_dir=str(tmp_path / "first"))
    assert len(refused) == 2 and all("is being trained in" in why for why in refused)
    assert record["test"] == RunDir(runs / "1").read_run()["test"]
    assert not (tmp_path / "second" / "run.json").exists()
    assert runner.run([*WORDS, "seed=1"], run_dir=tmp_path / "third")["test"] == record["test"]


BROKEN = """
import os, torch

class Broken(torch.nn.Linear):
    def __init__(self, num_classes, **_):
        made = len(os.listdir("made"))  # the first one is made before anything trains, and thrown away
        open(f"made/{made}", "w").close()
        if made > 0 and not os.path.exists("mended"):
            raise RuntimeError("no such thing")
        super().__init__(36, num_classes)
    def forward(self, x):
        return super().forward(x.flatten(1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_a_job_whose_constructor_raises_is_a_failed_run_with_its_error(cli, launcher):
    (cli.cwd / "mine.py").write_text(BROKEN)
    (cli.cwd / "made").mkdir()
    words = ["-m", "seed=1", "sweep.name=s", f"hydra/launcher={launcher}", *WORDS[:4], *WORDS[6:9]]
    words += ["dataset.input_shape=[1,6,6]", "trainer.epochs=1", "model._target_=runner.models.MLP,mine.Broken"]
    words = [word for word in words if not word.startswith("model.hidden")]
    done = cli(*words)
    assert done.returncode == 1, done.stdout + done.stderr
    folder = next(path.parent for path in cli.cwd.glob("outputs/sweeps/s/*Broken*/run.json"))
    record = RunDir(folder).read_run()
    assert (record["state"], record["epochs_done"]) == ("failed", 0) and "no such thing" in record["error"]
    shown = cli("ls", "outputs")
    assert shown.returncode == 0 and shown.stdout.count("done") == 1 and shown.stdout.count("failed") == 1
    refused = cli("resume", str(folder))
    assert refused.returncode == 2 and "never began" in refused.stderr and "no such thing" in refused.stderr
    (cli.cwd / "mended").touch()
    again = cli(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert RunDir(folder).read_run()["state"] == "done"


def test_a_missing_run_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["runner", "resume", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "holds no run" in capsys.readouterr().err
