"""Where a run comes from, and in which words two runs' beginnings differ."""

import hashlib
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from runner.storage import provenance
from runner.storage.provenance import code_changes, code_state, environment_changes

CODE = {"commit": "a", "diff": "d", "runner": "1", "own": {"mine": "x", "gone": "y"}}


def git(*words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *identity, *words], check=True, capture_output=True, text=True).stdout


def test_a_repository_says_its_commit_and_what_differs_from_it(tmp_path):
    assert provenance.git_state() == (None, "")
    git("init", "-q")
    assert provenance.git_state() == (None, "")  # without a commit
    Path("a").write_text("1\n")
    git("add", "a"), git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD").strip()
    assert provenance.git_state() == ({"commit": commit, "dirty": False}, "")
    Path("new").touch()  # not followed by git: dirty, and in no diff
    assert provenance.git_state() == ({"commit": commit, "dirty": True}, "")
    Path("a").write_text("2\n")
    git("add", "a")
    state, diff = provenance.git_state()
    assert state["dirty"] and diff == git("diff", "HEAD") and "-1\n+2\n" in diff
    Path("a").write_bytes(b"\xff\n")  # what is no UTF-8
    assert "-1\n+\ufffd\n" in provenance.git_state()[1]


def test_what_runs_have_written_makes_no_repository_dirty(tmp_path, monkeypatch):
    def is_dirty():
        return provenance.git_state()[0]["dirty"]

    git("init", "-q")
    (tmp_path / "sub").mkdir()
    Path("sub/mine.py").write_text("1\n")
    git("add", "."), git("commit", "-qm", "one")
    for name in ("outputs/2026-11-30/a/run.lock", "outputs/2026-11-30/b/run.json", "outputs/sweeps/s/sweep.json"):
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    for name in ("outputs/2026-11-30/a/checkpoints", "outputs/sweeps/s/seed=1", "sub/__pycache__", "ütf 8\n/run"):
        Path(name).mkdir(parents=True)
        Path(name, "x.pt").touch()
    Path("ütf 8\n/run/run.json").touch()
    assert not is_dirty()
    monkeypatch.chdir(tmp_path / "sub")  # of a repository that is above
    assert not is_dirty()
    (tmp_path / "outputs" / "notes.py").touch()
    assert is_dirty(), "code that nobody follows, though it lies beside runs"
    (tmp_path / "outputs" / "notes.py").unlink()
    Path("mine.py").write_text("2\n")
    assert is_dirty()
    git("checkout", "-q", "mine.py")
    monkeypatch.chdir(tmp_path)
    for name in ("run.json", "runner.log", ".hydra/config.yaml"):  # hydra.run.dir=.
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert not is_dirty()
    git("mv", "sub/mine.py", "sub/other.py")
    assert is_dirty()


def test_a_repository_whose_settings_name_commands_runs_none(tmp_path):
    git("init", "-q")
    Path("a").write_text("1\n")
    Path(".gitattributes").write_text("* diff=evil\n")
    git("add", "."), git("commit", "-qm", "one")
    git("config", "core.fsmonitor", "touch PWNED; echo"), git("config", "diff.external", "touch PWNED;")
    git("config", "diff.evil.textconv", "touch PWNED; cat")
    Path("a").write_text("2\n")
    assert "+2" in provenance.git_state()[1] and not Path("PWNED").exists()


@pytest.mark.parametrize("error", [FileNotFoundError, subprocess.TimeoutExpired("git", 20)])
def test_without_git_there_is_no_commit(monkeypatch, error):
    def run(*words, **options):
        assert options["timeout"] == 20
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert provenance.git_state() == (None, "")


def test_the_state_of_the_code_is_commit_diff_version_and_own_modules():
    version = metadata.version("torch-runner")
    assert code_state(None, "", {}) == {"commit": None, "diff": None, "runner": version, "own": {}}
    digest = hashlib.sha256("ä".encode()).hexdigest()[:16]
    full = {"commit": "c", "diff": digest, "runner": version, "own": {"m": "1"}}
    assert code_state({"commit": "c", "dirty": True}, "ä", {"m": "1"}) == full
    assert len(code_state(None, "\udcff", {})["diff"]) == 16  # what is no UTF-8


def test_only_what_both_states_know_is_compared():
    assert code_changes(None, CODE) == [] and code_changes(CODE, CODE) == []
    for key in ("commit", "diff", "runner"):
        assert code_changes(CODE, {**CODE, key: None}) == [f"{key}: {CODE[key]} -> None"]
    assert code_changes(CODE, {**CODE, "own": {"mine": "z", "new": "n"}}) == ["own module mine: x -> z"]
    for without in ({**CODE, "own": None}, {key: value for key, value in CODE.items() if key != "own"}):
        assert code_changes(CODE, without) == [] == code_changes(without, CODE)


def test_surroundings_that_a_figure_depends_on_are_compared():
    before = {"python": "3", "machine": "m", "cpu": "c", "host": "h", "packages": {"torch": "1", "numpy": "2"}}
    assert environment_changes(before, before) == []
    for key in ("python", "machine", "cpu"):
        assert environment_changes(before, {**before, key: "new"}) == [f"{key}: {before[key]} -> new"]
        assert environment_changes({**before, key: None}, before) == []  # an older run did not keep it
    assert environment_changes(before, {**before, "host": "other"}) == []
    assert environment_changes(before, {**before, "packages": {"torch": "3", "new": "1"}}) == [
        "torch: 1 -> 3",
        "numpy: 2 -> None",
    ]
    assert environment_changes({}, before) == [] and environment_changes(before, {"packages": {}}) != []
    bare = {"packages": {"torch": "1"}}
    assert environment_changes(bare, {}) == ["torch: 1 -> None"]


def test_the_environment_is_this_machines(tmp_path, monkeypatch):
    found = provenance.environment()
    versions = found.pop("packages")
    assert found == {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": provenance.cpu_model(),
        "python": platform.python_version(),
        "working_directory": str(tmp_path),
    }
    assert versions["torch"] == metadata.version("torch") and set(versions) <= set(provenance.PACKAGES)

    def version(name):
        if name == "torch":
            raise metadata.PackageNotFoundError
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    assert provenance.environment()["packages"] == {name: "1" for name in provenance.PACKAGES if name != "torch"}


def test_the_processor_is_named_by_the_system_or_by_python(monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "by python")
    for content, name in (
        ("flags\t: x\nmodel name\t:  Big One \nmodel name : 2\n", "Big One"),
        ("flags: x\n", "by python"),
    ):
        monkeypatch.setattr(
            Path, "read_text", lambda path, content=content: content if str(path) == "/proc/cpuinfo" else ""
        )
        assert provenance.cpu_model() == name

    def unreadable(path):
        raise OSError

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert provenance.cpu_model() == "by python"


def test_the_command_is_what_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "runner", "a=1"])
    assert provenance.command_line() == [sys.executable, "-m", "runner", "a=1"]
