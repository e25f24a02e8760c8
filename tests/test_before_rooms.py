"""Folders that the code wrote before its files moved into rooms: they go on, evaluate and verify, to the last bit.

`before_rooms.zip` was made by that code (commit 93b418b) with torch 2.15: `whole`, a run of 3 epochs; `stopped`, the
same killed inside its second epoch; `sweep_whole`, a sweep of 4 jobs; `sweep`, the same stopped after its second. Host,
paths and platform were replaced afterwards. Bits are those of one kind of CPU and one torch, so machine.json holds what
a loop by hand gives there: where it gives the same, everything must be equal; elsewhere it must be close.
"""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import runner
from runner.cli.verify import differences
from runner.storage import checkpoint
from runner.storage.run_dir import RunDir

ZIP = Path(__file__).with_name("before_rooms.zip")


def by_hand() -> str:
    """The digest of what torch alone computes here: the kinds of operation that the runs are made of."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(4, 10)
    )
    data, target = torch.randn(320, 64), torch.randint(10, (320,))
    for kind, settings in ((torch.optim.SGD, {"momentum": 0.9, "fused": True}), (torch.optim.Adadelta, {})):
        optimizer = kind(model.parameters(), lr=0.1, **settings)
        for batch in range(10):
            rows = slice(32 * batch, 32 * batch + 32)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(data[rows]), target[rows])
            loss.backward()
            optimizer.step()
    torch.set_num_threads(threads)
    content = b"".join(tensor.detach().numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(torch.__version__.encode() + content).hexdigest()


@pytest.fixture(scope="module")
def is_same_machine():
    return json.loads(zipfile.ZipFile(ZIP).read("machine.json"))["by_hand"] == by_hand()


@pytest.fixture
def before(tmp_path):
    with zipfile.ZipFile(ZIP) as file:
        file.extractall(tmp_path / "before")
    return tmp_path / "before"


def check_equal(one, two, is_same_machine):
    """Every row, result and tensor; close where the machine computes other bits than the one that wrote them."""
    if is_same_machine:
        assert list(differences(RunDir(one), RunDir(two))) == []
        return
    states = [checkpoint.load(path / "checkpoints" / "last.pt") for path in (one, two)]
    assert states[0]["progress"]["step"] == states[1]["progress"]["step"]
    for name, tensor in states[0]["model_state_dict"].items():
        torch.testing.assert_close(tensor, states[1]["model_state_dict"][name], rtol=1e-2, atol=1e-3)


def test_a_run_of_then_that_was_killed_goes_on(cli, before, is_same_machine):
    done = cli("resume", str(before / "stopped"))
    assert done.returncode == 0, done.stderr
    assert "resumed after 1 epochs and" in (before / "stopped" / "runner.log").read_text()
    check_equal(before / "stopped", before / "whole", is_same_machine)


def test_a_run_of_then_evaluates_and_opens(cli, before, is_same_machine):
    record = json.loads((before / "whole" / "run.json").read_text())
    for which in ("best", "last"):
        shown = cli("evaluate", str(before / "whole"), "--which", which)
        assert shown.returncode == 0, shown.stderr
        values = dict(line.removeprefix("test/").split(": ") for line in shown.stdout.splitlines())
        for name, value in record["test"][which].items():
            assert float(values[name]) == (value if is_same_machine else pytest.approx(value, abs=1e-2))
    assert not runner.load_model(before / "whole").training
    assert {row["state"] for row in runner.runs(before)} == {"done", "killed", "interrupted"}


@pytest.mark.slow
def test_a_run_of_then_verifies(cli, before, is_same_machine):
    shown = cli("verify", str(before / "whole"), "--kills", "1")
    if not is_same_machine:
        pytest.skip("another CPU or torch than the one that wrote the run: other bits are to be expected")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "equal in every bit" in shown.stdout


@pytest.mark.slow
def test_a_sweep_of_then_goes_on_with_its_own_jobs(cli, before, is_same_machine):
    untouched = {path: path.read_bytes() for path in (before / "sweep").glob("*seed=1/checkpoints/*.pt")}
    done = cli("resume", str(before / "sweep"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 jobs, 2 of them finished before" in done.stdout
    jobs = sorted(path.parent.name for path in (before / "sweep").glob("*/run.json"))
    assert jobs == sorted(path.parent.name for path in (before / "sweep_whole").glob("*/run.json"))
    for name in jobs:
        check_equal(before / "sweep" / name, before / "sweep_whole" / name, is_same_machine)
    assert all(path.read_bytes() == content for path, content in untouched.items())


@pytest.mark.slow
def test_a_further_seed_can_be_added_to_a_sweep_of_then(cli, before):
    place = cli.cwd / "outputs" / "sweeps" / "then"
    shutil.copytree(before / "sweep_whole", place)
    words = "model=mlp model.hidden=[4] trainer.epochs=2 device.threads=1 seed=1,2,3 scheduler=step,cosine"
    words += " dataloader.batch_size=64 trainer.log_every=0 sweep.name=then"
    today = cli("-m", *words.split(), OMP_NUM_THREADS="1")  # the default of the digits has changed since then
    assert today.returncode == 2 and "give dataset.val_size=0.1 to go on with it" in today.stderr, today.stderr
    done = cli("-m", *words.split(), "dataset.val_size=0.1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 jobs, 4 of them finished before" in done.stdout
    rows = json.loads((place / "summary.json").read_text())["settings"]
    assert {row["name"]: row["n"] for row in rows} == {"scheduler=step": 3, "scheduler=cosine": 3}
