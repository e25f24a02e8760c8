"""The checkpoint protocol: whole or not at all, and never trusted without its digest."""

import os
import pickle

import pytest
import torch

from runner.errors import InputError
from runner.storage import checkpoint
from runner.storage.checkpoint import MAGIC, TRAILER_LENGTH, Checkpoints, Damaged, load, read_weights, save


def state(epoch=1, **more):
    return {"format_version": 1, "epoch": epoch, "model_state_dict": {"w": torch.full((64,), float(epoch))}, **more}


def test_what_is_saved_is_loaded_and_torch_reads_it_too(tmp_path):
    save(tmp_path / "a.pt", state(3))
    assert load(tmp_path / "a.pt")["epoch"] == 3
    assert torch.load(tmp_path / "a.pt", weights_only=True)["epoch"] == 3
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_flipped_byte_anywhere_is_detected(tmp_path):
    save(tmp_path / "a.pt", state())
    content = (tmp_path / "a.pt").read_bytes()
    for i in range(256):
        place = i * (len(content) - 1) // 255
        (tmp_path / "b.pt").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(Damaged, match=r"b\.pt"):
            load(tmp_path / "b.pt")


def test_truncation_anywhere_is_detected(tmp_path):
    save(tmp_path / "a.pt", state())
    content = (tmp_path / "a.pt").read_bytes()
    for i in range(64):
        (tmp_path / "b.pt").write_bytes(content[: i * len(content) // 64])
        with pytest.raises(Damaged, match=r"b\.pt"):
            load(tmp_path / "b.pt")


def test_foreign_files_and_directories_are_named(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save(state(), tmp_path / "no_digest.pt")
    (tmp_path / "folder.pt").mkdir()
    for name in ("text", "no_digest", "folder", "absent"):
        with pytest.raises(Damaged, match=rf"{name}\.pt"):
            load(tmp_path / f"{name}.pt")


def test_an_unknown_format_version_is_refused(tmp_path):
    save(tmp_path / "a.pt", {**state(), "format_version": 99})
    with pytest.raises(Damaged, match="format version 99, this runner reads version 1"):
        load(tmp_path / "a.pt")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path):
    save(tmp_path / "a.pt", state(payload=Payload(tmp_path / "pwned")))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model_state_dict": Payload(tmp_path / "pwned")}))
    with pytest.raises(Damaged, match="more than tensors and plain values"):
        load(tmp_path / "a.pt")
    for name in ("a.pt", "plain.pt"):
        with pytest.raises(InputError, match=name):
            read_weights(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_weights_come_from_our_checkpoint_or_a_plain_state_dict(tmp_path):
    save(tmp_path / "a.pt", state(2))
    torch.save({"w": torch.ones(3)}, tmp_path / "b.pt")
    torch.save({"w": 3}, tmp_path / "c.pt")
    assert read_weights(tmp_path / "a.pt")["w"][0] == 2
    assert read_weights(tmp_path / "b.pt")["w"].tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="neither a checkpoint of the runner nor a state_dict"):
        read_weights(tmp_path / "c.pt")


def written(tmp_path, is_best=(True, False, True, False), **settings):
    checkpoints = Checkpoints(**settings)
    checkpoints.open(tmp_path / "c")
    for epoch, best in enumerate(is_best, 1):
        checkpoints.write(state(epoch), is_epoch_end=True, is_best=best)
    return {p.stem: load(p)["epoch"] for p in (tmp_path / "c").iterdir()}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"last": 4, "last-1": 3, "best": 3}),
        ({"keep": 1}, {"last": 4, "best": 3}),
        ({"keep": 3}, {"last": 4, "last-1": 3, "last-2": 2, "best": 3}),
        ({"save": "best"}, {"best": 3}),
        ({"save": "last"}, {"last": 4, "last-1": 3}),
        ({"save": "none"}, {}),
        ({"every": 2}, {"last": 4, "last-1": 3, "best": 3, "epoch_0002": 2, "epoch_0004": 4}),
    ],
)
def test_the_policy_says_which_files_there_are(tmp_path, settings, expected):
    assert written(tmp_path, **settings) == expected


def test_leftovers_of_a_killed_write_are_swept_up(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "last.pt.tmp").write_text("half")
    assert written(tmp_path)["last"] == 4


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "link"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call):
    checkpoints = Checkpoints()
    checkpoints.open(tmp_path / "c")
    checkpoints.write(state(1), is_epoch_end=True, is_best=True)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    target = checkpoint._Writing if call == "write" else os
    monkeypatch.setattr(target, call, fail)
    monkeypatch.setattr(checkpoint.shutil, "copyfile", fail)
    with pytest.raises((OSError, RuntimeError)):
        checkpoints.write(state(2), is_epoch_end=True, is_best=True)
    monkeypatch.undo()
    assert load(tmp_path / "c" / "last.pt")["epoch"] == 1


@pytest.mark.parametrize(
    "settings", [{"save": "some"}, {"every": 0}, {"keep": 0}, {"every_batches": -1}, {"every_minutes": 0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}="):
        Checkpoints(**settings)


def test_the_trailer_has_a_fixed_length(tmp_path):
    save(tmp_path / "a.pt", state())
    assert (tmp_path / "a.pt").read_bytes()[-TRAILER_LENGTH:].startswith(MAGIC)


def test_a_file_that_has_two_names_is_never_written_into(tmp_path):
    checkpoints = Checkpoints()
    checkpoints.open(tmp_path / "c")
    checkpoints.write(state(1), is_epoch_end=True, is_best=True)
    checkpoints.adopt(checkpoints.path("best"))  # one file of two names, renamed onto itself
    assert not list((tmp_path / "c").glob("*.tmp"))
    os.link(checkpoints.path("best"), tmp_path / "c" / "last.pt.tmp")
    checkpoints.write(state(2), is_epoch_end=True, is_best=False)
    assert {p.stem: load(p)["epoch"] for p in (tmp_path / "c").iterdir()} == {"best": 1, "last": 2, "last-1": 1}
