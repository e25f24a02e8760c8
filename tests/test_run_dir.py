"""A run's directory: who may write there, and what is in it."""

import json
import os
import subprocess
import sys

import pytest

from runner.errors import InputError
from runner.storage.rows import Rows
from runner.storage.run_dir import RunDir

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
    assert {**record, "signature": ""} == {"state": "running", "value": None, "signature": ""}
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("name", [".hydra/config.yaml", "runner.log", "metrics.jsonl", "checkpoints/last.pt"])
def test_a_folder_with_files_of_something_else_is_refused_and_keeps_them(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="of something else"):
        RunDir(tmp_path / "run").claim()
    assert [p for p in (tmp_path / "run").rglob("*") if p.is_file()] == [path]
