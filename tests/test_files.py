"""Durable writes and guarded reads; and whose a checkpoint is."""

import errno
import os
import socket

import pytest

from runner.errors import InputError
from runner.storage import files, identity
from runner.storage.files import fsync_directory, make_directory, open_regular, read_regular, write_atomically
from runner.storage.inside import entries, refuse_links


def test_only_a_file_is_read_and_what_else_is_there_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert read_regular(tmp_path / "file") == b"abc"
    with open_regular(tmp_path / "file") as file:
        assert file.mode == "rb" and not os.get_inheritable(file.fileno())
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    for path, said in (
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "pipe", "is a pipe"),
        ("/dev/null", "is a device"),
    ):
        before = len(os.listdir("/dev/fd"))
        with pytest.raises(OSError) as refused:
            read_regular(path)
        assert (refused.value.errno, refused.value.strerror) == (errno.EINVAL, f"{said}, not a file")
        assert refused.value.filename == str(path) and len(os.listdir("/dev/fd")) == before
    os.chdir(tmp_path)
    listening.bind("socket")
    mode = os.stat("socket").st_mode
    listening.close()
    assert files.not_a_file(tmp_path, mode).strerror == "is a socket, not a file"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_a_write_is_synced_before_its_name_and_its_name_after(tmp_path, monkeypatch):
    told = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (told.append(name), real(*a))[1])
    (tmp_path / "a.tmp").write_text("left by a kill")
    write_atomically(tmp_path / "a", b"new")
    assert told == ["fsync", "replace", "fsync"] and os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_directory_is_synced_and_closed(tmp_path, monkeypatch):
    synced = []
    before = len(os.listdir("/dev/fd"))
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    fsync_directory(tmp_path)
    assert synced == [tmp_path.stat().st_ino]

    def fail(descriptor):
        raise OSError(5, "odd")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="odd"):
        fsync_directory(tmp_path)
    assert len(os.listdir("/dev/fd")) == before
    monkeypatch.undo()
    make_directory(tmp_path / "a" / "b" / "c")
    make_directory(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_what_is_ours_in_a_folder_is_listed_one_level_deep_and_not_through_links(tmp_path):
    for name in ("in/b", "in/a", "in/deep/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "other").touch()
    names = ("in", "none", "link")
    found = [str(path.relative_to(tmp_path)) for path in entries(tmp_path, names)]
    assert found == ["in", "in/a", "in/b", "in/deep", "none", "link"]
    refuse_links(tmp_path, ("in", "none", "other"))
    with pytest.raises(InputError, match="link: is a link, which might lead out of the run's folder"):
        refuse_links(tmp_path, names)
    os.mkfifo(tmp_path / "in" / "deeper")
    with pytest.raises(InputError, match="in/deeper: is no regular file"):
        refuse_links(tmp_path, names)


CONFIG = {"seed": 1, "optimizer": {"lr": 0.1}, "trainer": {"epochs": 2, "log_every": 1, "accumulate": 2}}


def test_a_checkpoint_is_a_runs_by_its_id_and_by_what_its_config_says_of_the_result():
    owner = identity.owner("id", CONFIG)
    assert (
        owner == {"run_id": "id", "config_digest": identity.config_digest(CONFIG)} and len(owner["config_digest"]) == 16
    )
    lasting = {"seed": 1, "optimizer.lr": 0.1, "trainer.accumulate": 2}
    assert identity.lasting(CONFIG) == lasting
    free = {"tags": ["a"], "init_from": "x", "derived": {"a": 1}, "dataloader": {"num_workers": 3}, "device": {"a": 1}}
    assert identity.lasting({**CONFIG, **free}) == lasting
    assert identity.lasting({**CONFIG, "x": float("nan")}) == {**lasting, "x": None}
    assert identity.config_digest(dict(reversed(CONFIG.items()))) == owner["config_digest"]
    assert identity.config_digest({**CONFIG, "seed": 2}) != owner["config_digest"]
    assert identity.new_id() != identity.new_id() and len(identity.new_id()) == 16
