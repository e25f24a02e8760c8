"""What a checkpoint says of itself without being loaded, and how few of them a resume reads."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import runner
from runner.errors import InputError
from runner.job import recovery
from runner.job.recovery import FileFacts, recover
from runner.job.resuming import resume
from runner.storage import checkpoint
from runner.storage.checkpoint import Damaged
from runner.storage.peek import peek, verify
from runner.storage.run_dir import RunDir
from runner.train.events import Progress

STATE = {
    "format_version": 1,
    "progress": {
        "epoch": 3,
        "step": 100,
        "batch": 7,
        "best_epoch": 2,
        "best_value": 0.25,
        "best_step": 62,
        "evaluated": 93,
    },
    "model_state_dict": {"weight": torch.randn(40, 30), "bias": torch.zeros(7)},
}


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "last.pt", STATE)
    return tmp_path / "last.pt"


def test_what_is_peeked_at_is_what_is_loaded(saved):
    assert FileFacts.of(peek(saved)) == FileFacts.of(checkpoint.load(saved))
    assert torch.equal(peek(saved)["model_state_dict"]["weight"], STATE["model_state_dict"]["weight"])
    assert verify(saved).encode() == saved.read_bytes()[-64:]


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_seen_or_changes_nothing_that_is_peeked_at(saved):
    """A byte in three: what is peeked at is either refused, or what was written."""
    content, refused = saved.read_bytes(), 0
    for position in range(0, len(content), 3):
        saved.write_bytes(
            content[:position] + bytes([content[position] ^ (1 << position % 8)]) + content[position + 1 :]
        )
        with pytest.raises(Damaged):
            verify(saved)
        try:
            assert FileFacts.of(peek(saved)) == FileFacts(Progress(3, 100, 7, 2, 0.25, 62, 93), False)
        except Damaged:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("length", [0, 10, 79, 500, -1])
def test_a_truncated_file_is_refused(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    for look in (peek, verify):
        with pytest.raises(Damaged, match="last.pt"):
            look(saved)


def test_what_is_not_there_or_of_another_version_is_named(tmp_path):
    for look in (peek, verify):
        with pytest.raises(Damaged, match="cannot be read"):
            look(tmp_path / "absent.pt")
        with pytest.raises(Damaged, match="cannot be read"):
            look(tmp_path)
    checkpoint.save(tmp_path / "new.pt", {**STATE, "format_version": 7})
    with pytest.raises(Damaged, match="version 7"):
        peek(tmp_path / "new.pt")


@pytest.fixture
def run(tmp_path):
    """A run of 8 epochs with a checkpoint of each, whose last epoch is not its best."""
    words = ["model=mlp", "model.hidden=[8]", "device.threads=1", "quiet=true", "trainer.epochs=8"]
    words += ["trainer.limit_batches=2", "checkpoint.every=1", "trainer.monitor=train/loss"]
    words += ["optimizer=sgd", "optimizer.lr=0.01", "+optimizer.maximize=true"]  # the first epoch is the best
    runner.run(words, run_dir=tmp_path / "run")
    return RunDir(tmp_path / "run")


def chosen(run):
    return recover(run, run.read_run())


def flip(path):
    """Flips a bit of a tensor, in this name of the file only."""
    content = bytearray(path.read_bytes())
    at = content.index(peek(path)["model_state_dict"]["1.weight"].numpy().tobytes())
    content[at] ^= 4
    path.unlink()
    path.write_bytes(content)


def test_a_resume_loads_one_checkpoint_and_verifies_one(run, monkeypatch):
    loaded, verified = [], []
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path: loaded.append(path.name) or load(path))
    monkeypatch.setattr(recovery, "verify", lambda path: verified.append(path.name) or verify(path))
    found = chosen(run)
    notes = found.notes
    assert (loaded, verified, notes) == (["last.pt"], ["best.pt"], [])
    assert (found.path.name, found.best.name, found.state["epoch"]) == ("last.pt", "best.pt", 8)


def test_the_file_with_the_best_weights_must_be_whole(run):
    flip(run.checkpoints / "best.pt")
    found = chosen(run)
    notes = found.notes
    assert (found.path.name, found.best.name) == ("last.pt", "epoch_0001.pt")
    assert found.unusable == [run.checkpoints / "best.pt"] and "best.pt: damaged" in notes[0]
    flip(run.checkpoints / "epoch_0001.pt")
    found = chosen(run)
    notes = found.notes
    assert found.state is None and "the weights of the best epoch are lost" in notes[-1]


def test_damage_that_only_the_digest_sees_is_no_checkpoint(run):
    for path in run.checkpoints.iterdir():
        shutil.copy(path, path.with_suffix(".copy"))
        path.with_suffix(".copy").replace(path)
        flip(path)
    with pytest.raises(InputError, match="none of its checkpoints is good.*last.pt.*best.pt|best.pt.*last.pt"):
        chosen(run)


def test_a_resume_among_many_checkpoints_ends_as_the_run_that_never_stopped(run):
    whole = torch.load(run.checkpoints / "last.pt", weights_only=True)["model_state_dict"]
    flip(run.checkpoints / "last.pt")
    flip(run.checkpoints / "epoch_0008.pt")
    record = json.loads(run.run_json.read_text())
    run.write_run({**record, "state": "interrupted"})
    assert resume(Path(run.path), [])["epochs_done"] == 8
    again = torch.load(run.checkpoints / "last.pt", weights_only=True)["model_state_dict"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert "continuing from last-1.pt" in run.log.read_text() or "continuing from epoch_0007.pt" in run.log.read_text()


def test_what_is_wrong_with_a_file_is_said_whole(saved, tmp_path):
    whole = saved.read_bytes()
    for look in (peek, verify):
        with pytest.raises(Damaged) as refused:
            look(tmp_path / "absent.pt")
        assert str(refused.value) == f"{tmp_path / 'absent.pt'}: cannot be read (No such file or directory)"
        for content in (b"", b"x" * 70, whole[:-1]):
            saved.write_bytes(content)
            with pytest.raises(Damaged) as refused:
                look(saved)
            said = f"not a whole checkpoint of the runner ({len(content)} bytes, without its digest)"
            assert str(refused.value) == f"{saved}: {said}"
    for at, look, said in (
        (100, peek, "values do not have the CRC-32"),
        (len(whole) // 2, verify, "SHA-256 is not the one"),
    ):
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(Damaged) as refused:
            look(saved)
        assert str(refused.value) == f"{saved}: damaged, its {said} that was written" or look is peek
        assert str(refused.value).startswith(f"{saved}: damaged, its {said}")
    saved.write_bytes(whole[-79:])  # a trailer alone: nothing before it
    with pytest.raises(Damaged, match="damaged, its values do not have"):
        peek(saved)
    with pytest.raises(Damaged, match="damaged, its SHA-256"):
        verify(saved)


def test_a_file_of_several_pieces_is_verified_to_its_last_byte(saved, monkeypatch):
    from runner.storage import peek as module

    assert module.PIECE == 2**20
    monkeypatch.setattr(module, "PIECE", 100)
    digest = verify(saved)
    assert digest.encode() == saved.read_bytes()[-64:]
    whole = saved.read_bytes()
    at = len(whole) - module.TRAILER_LENGTH - 1  # the last byte before the trailer
    saved.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(Damaged):
        verify(saved)
