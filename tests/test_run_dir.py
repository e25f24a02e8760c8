"""A run's directory: who may write there, and what is in it."""

import json
import os
import socket
import subprocess
import sys

import pytest

from runner.errors import Held, InputError
from runner.storage import lock
from runner.storage.lease import Taken
from runner.storage.record_schema import write_record
from runner.storage.rows import Rows
from runner.storage.run_dir import OURS, RunDir, holder, is_locked

HOLD = """
import sys, time
from pathlib import Path
from runner.storage.run_dir import RunDir
RunDir(Path(sys.argv[1])).lock()
print("locked", flush=True)
sys.stdin.readline()
"""


def test_a_folder_that_holds_a_run_is_refused_and_keeps_every_byte(tmp_path):
    first = RunDir(tmp_path / "run")
    first.claim()
    first.write_run({"state": "done"})
    first.release()
    before = first.run_json.read_bytes()
    with pytest.raises(InputError, match="already holds a run"):
        RunDir(tmp_path / "run").claim()
    assert first.run_json.read_bytes() == before


def test_a_folder_left_by_a_start_that_died_is_taken_over(tmp_path):
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / "run.lock").touch()
    place = RunDir(tmp_path / "run")
    place.claim()
    place.release()


def test_the_second_process_is_refused_and_told_the_first(tmp_path):
    (tmp_path / "run").mkdir()
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match=f"pid {holder.pid}"):
        RunDir(tmp_path / "run").claim()
    holder.kill()
    holder.communicate()
    place = RunDir(tmp_path / "run")
    place.claim()
    with pytest.raises(InputError, match="this process"):
        RunDir(tmp_path / "run").claim()
    place.release()


def test_discard_removes_only_what_a_start_wrote(tmp_path):
    place = RunDir(tmp_path / "new" / "run")
    place.claim()
    (place.path / ".hydra").mkdir()
    (place.path / ".hydra" / "config.yaml").touch()
    place.log.touch()
    place.discard()
    place.release()
    assert not place.path.exists()
    kept = RunDir(tmp_path / "old")
    kept.path.mkdir()
    (kept.path / "notes.txt").write_text("mine")
    kept.claim()
    kept.discard()
    kept.release()
    assert os.listdir(kept.path) == ["notes.txt"]


def test_rows_are_strict_json_and_a_cut_off_line_is_left_out(tmp_path):
    rows = Rows(tmp_path / "metrics.jsonl", "epoch")
    rows.append({"epoch": 1, "val/loss": float("nan")})
    rows.append({"epoch": 2, "val/loss": 0.1})
    with open(rows.path, "a") as file:
        file.write('{"epoch": 3, "va')
    assert rows.read() == [{"epoch": 1, "val/loss": None}, {"epoch": 2, "val/loss": 0.1}]
    assert Rows(tmp_path / "absent", "epoch").read() == []
    rows.cut_back(1)
    assert rows.path.read_text() == '{"epoch": 1, "val/loss": null}\n'


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json"])
def test_a_run_json_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match="run.json"):
        RunDir(tmp_path).read_run()


def test_run_json_is_replaced_as_a_whole(tmp_path):
    place = RunDir(tmp_path)
    place.write_run({"state": "running", "value": float("inf")})
    record = json.loads(place.run_json.read_text())
    assert record.pop("crc32") and record == {"state": "running", "value": None}
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("name", [".hydra/config.yaml", "runner.log", "metrics.jsonl", "checkpoints/last.pt"])
def test_a_folder_with_files_of_something_else_is_refused_and_keeps_them(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="of something else"):
        RunDir(tmp_path / "run").claim()
    assert [p for p in (tmp_path / "run").rglob("*") if p.is_file()] == [path]


def refusal(call, *arguments):
    with pytest.raises(InputError) as refused:
        call(*arguments)
    return str(refused.value)


def test_refusals_of_a_folder_say_it_whole(tmp_path, monkeypatch):
    path = tmp_path / "a b"
    first = RunDir(path)
    first.claim()
    write_record(first.run_json, {"state": "running"})
    me = f"host {socket.gethostname()}, pid {os.getpid()}"
    assert holder(first) == os.getpid() and is_locked(first)
    rest = f"which is never overwritten; choose another folder, or continue it: python -m runner resume '{path}'"
    start = f"hydra.run.dir={path}: already holds a run"
    assert refusal(RunDir(path).claim) == f"{start} (and is running: {me}), {rest}"
    assert refusal(RunDir(path).lock) == f"{path}: this process is already running it (this process)"
    first.release()
    assert holder(first) is None and not is_locked(first)
    assert refusal(RunDir(path).claim) == f"{start}, {rest}"

    def busy(*_):
        raise lock.Busy("host h, pid 9")

    monkeypatch.setattr(lock, "take", busy)
    with pytest.raises(Held) as held:
        RunDir(path).lock()
    assert str(held.value) == f"{path}: another process is running it (host h, pid 9)"


@pytest.mark.parametrize("error", [Taken("host b, pid 2, heard of 3 s ago"), OSError(5, "odd")])
def test_a_lease_that_cannot_be_taken_gives_the_lock_back(tmp_path, monkeypatch, error):
    def refuse(path):
        raise error

    monkeypatch.setattr("runner.storage.run_dir.Lease", refuse)
    with pytest.raises(Held if isinstance(error, Taken) else OSError) as refused:
        RunDir(tmp_path).lock()
    if isinstance(error, Taken):
        said = f"{tmp_path}: a process of another host is running it (host b, pid 2, heard of 3 s ago)"
        assert str(refused.value) == said
    monkeypatch.undo()
    RunDir(tmp_path).lock()
    RunDir(tmp_path).release()


def test_a_folder_leased_by_another_host_is_running_though_no_lock_says_so(tmp_path):
    place = RunDir(tmp_path)
    place.lease_file.write_text("host elsewhere, pid 7, abc\n")
    assert is_locked(place) and holder(place) is None
    os.utime(place.lease_file, (1, 1))
    assert not is_locked(place)
    place.lock_file.write_text("host elsewhere, pid 7\n")
    place.lock()
    assert holder(place) == os.getpid()
    place.lock_file.write_text("host elsewhere, pid 7\n")
    assert holder(place) is None  # not on this machine
    place.lock_file.write_text(f"host {socket.gethostname()}, pid x\n")
    assert holder(place) is None
    place.release()


def test_what_is_in_the_way_of_a_writer_is_named(tmp_path):
    for name, make, said in (
        ("checkpoints", lambda path: path.touch(), "must be a folder"),
        ("runner.log", lambda path: path.mkdir(), "cannot be written (is a folder, not a file)"),
        ("run.json", os.mkfifo, "is no regular file (a FIFO, socket or device); it is not opened"),
        ("study.journal", lambda path: path.symlink_to("/etc"), LINK),
        (".hydra", lambda path: path.symlink_to("/etc"), LINK),
        ("job.json", lambda path: path.symlink_to("nowhere"), LINK),
    ):
        place = RunDir(tmp_path / f"of {name}")
        place.path.mkdir()
        make(place.path / name)
        assert refusal(place.lock) == f"{place.path / name}: {said}"
        assert os.listdir(place.path) == [name]  # nothing was written before
    place = RunDir(tmp_path / "inside")
    place.checkpoints.mkdir(parents=True)
    (place.checkpoints / "last.pt").symlink_to("/etc/passwd")
    assert refusal(place.refuse_links) == f"{place.checkpoints / 'last.pt'}: {LINK}"
    (tmp_path / "by a link").symlink_to(tmp_path / "good")
    (tmp_path / "good").mkdir()
    RunDir(tmp_path / "by a link").lock()
    RunDir(tmp_path / "good").release()  # one folder by two names


LINK = "is a link, which might lead out of the run's folder; it is not followed"


def test_a_start_that_dies_leaves_what_was_there_and_nothing_else(tmp_path):
    place = RunDir(tmp_path / "run")
    (place.path / ".hydra").mkdir(parents=True)
    for name in ("run.lock", ".hydra/config.yaml", "mine.txt"):
        (place.path / name).touch()
    place.claim()
    for name in (".hydra/hydra.yaml", ".hydra/other.txt", "runner.log", "git.diff"):
        (place.path / name).touch()
    place.checkpoints.mkdir()
    place.release()
    place.discard()
    left = {str(path.relative_to(place.path)) for path in place.path.rglob("*")}
    assert left == {".hydra", ".hydra/config.yaml", ".hydra/other.txt", "run.lock", "mine.txt"}
    begun = RunDir(tmp_path / "begun")
    begun.claim()
    begun.log.touch()
    begun.write_run({})
    begun.release()
    begun.discard()
    assert {"runner.log", "run.json", "run.lock"} <= set(os.listdir(begun.path))
    kept = RunDir(tmp_path / "kept")
    kept.claim()
    (kept.path / "other").touch()
    kept.release()
    kept.discard()
    assert os.listdir(kept.path) == ["other"]


def test_files_of_ours_that_no_start_of_ours_has_left_are_named(tmp_path):
    for names, is_free in (
        (["run.lock", "runner.log", "git.diff"], True),
        (["job.json", "runner.log"], True),
        (["runner.log", "git.diff"], False),
        (["run.lock", "metrics.jsonl"], False),
        (["notes.txt"], True),
    ):
        place = RunDir(tmp_path / names[0] / names[-1])
        place.path.mkdir(parents=True)
        for name in names:
            (place.path / name).touch()
        if is_free:
            place.check_free()
        else:
            found = ", ".join(sorted(names, key=OURS.index))
            said = f"holds {found} of something else, which would be overwritten; choose another folder"
            assert refusal(place.claim) == f"hydra.run.dir={place.path}: {said}"
    place = RunDir(tmp_path / "with checkpoints")
    place.checkpoints.mkdir(parents=True)
    place.lock_file.touch()
    place.check_free()
    (place.checkpoints / "last.pt").touch()
    assert "holds run.lock, checkpoints of something else" in refusal(place.claim)


def test_what_holds_no_run_says_so(tmp_path):
    (tmp_path / "file").touch()
    assert refusal(RunDir(tmp_path).read_run) == f"{tmp_path}: holds no run (there is no run.json)"
    assert refusal(RunDir(tmp_path / "file").read_run) == f"{tmp_path / 'file'}: is a file; give the folder of a run"
    (tmp_path / "run.json").write_text("{")
    assert refusal(RunDir(tmp_path).read_run).startswith(f"{tmp_path / 'run.json'}: cannot be read (")
    assert "cannot be written (File exists)" in refusal(RunDir(tmp_path / "file").claim)
