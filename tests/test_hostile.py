"""Every suspect target in every place of a stranger's record, through every verb: nothing runs, nothing is written."""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

import runner
from runner.cli import check, evaluate, report, resume, verify
from runner.errors import InputError
from test_admission import ASIDE_TEXT, HARM, IN_THE_CONFIG, WORDS

# What Python tells an audit hook that would be harm: processes, code, and files that are written or removed.
EVENTS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.remove", "os.rename", "shutil.rmtree"}
EVENTS |= {"socket.connect", "ctypes.dlopen", "webbrowser.open", "os.fork"}
_seen: list[tuple[str, str]] | None = None


def hook(event, arguments):
    if _seen is None:
        return
    if event in EVENTS:
        _seen.append((event, repr(arguments)[:100]))
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _seen.append((event, str(arguments[0])))


@contextlib.contextmanager
def watched():
    """What the body does to processes and files, from inside the interpreter."""
    global _seen
    if not getattr(sys, "_hostile_hook", False):
        sys.addaudithook(hook)
        sys._hostile_hook = True
    _seen = found = []
    try:
        yield found
    finally:
        _seen = None


def put(config, place, node):
    """Puts a node into a config at a place, whatever stands there."""
    *path, last = place.split(".")
    for part, following in zip(path, [*path, last][1:], strict=True):
        if isinstance(config, list):
            config = config[int(part)]
            continue
        if not isinstance(config.get(part), (dict, list)):
            config[part] = [{}, {}, {}] if following.isdigit() else {}
        config = config[part]
    if isinstance(config, list):
        config[:] = [node] * 3
    else:
        config[last] = node


def verbs(folder: Path):
    yield "load_model", lambda: runner.load_model(folder)
    yield "evaluate", lambda: evaluate.main(evaluate.parser().parse_args([str(folder), "--confusion"]))
    yield "report", lambda: report.main(report.parser().parse_args([str(folder), "--examples"]))
    yield "resume", lambda: resume.main(resume.parser().parse_args([str(folder), "trainer.epochs=3"]))
    yield "verify", lambda: verify.main(verify.parser().parse_args([str(folder)]))
    yield "verify -o", lambda: verify.main(verify.parser().parse_args([str(folder), "-o", f"{folder}-again"]))
    yield "check", lambda: check.main(check.parser().parse_args([str(folder)]))


@pytest.mark.slow
@pytest.mark.parametrize("place", IN_THE_CONFIG)
def test_no_suspect_target_does_harm_through_any_verb(place, tmp_path, no_owner, capsys):
    folder = tmp_path / "run"
    runner.run(WORDS, run_dir=folder)
    record, wrong = json.loads((folder / "run.json").read_text()), []
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # Each target in a thirtieth of the places; RUNNER_EVERY_TARGET=1 takes half an hour for each in all of them.
    step, start = (1, 0) if os.environ.get("RUNNER_EVERY_TARGET") else (30, IN_THE_CONFIG.index(place))
    for target in [*HARM, *ASIDE_TEXT.split()][start::step]:
        config = yaml.safe_load(record["config_yaml"])
        put(config, place, {"_target_": target, "file": "PWNED", "command": "touch PWNED", "f": "PWNED", "args": "x"})
        text = {**record, "config": config, "config_yaml": yaml.safe_dump(config)}
        (folder / "run.json").write_text(json.dumps(text))
        for name, verb in verbs(folder):
            with watched() as done:
                try:
                    refused = verb() == 2
                except InputError:
                    refused = True
            is_model = name == "load_model" and not place.startswith("model")  # it makes nothing but the model
            # torchvision loads its own libraries when it is imported
            inside = [what for what in done if str(folder) not in what[1] and "site-packages" not in what[1]]
            if (not refused and not is_model) or inside or Path("PWNED").exists():
                wrong.append((target, name, refused, inside))
    capsys.readouterr()
    assert not wrong
    assert not folder.with_name("run-again").exists()
    changed = [path for path, content in before.items() if path.name != "run.json" and path.read_bytes() != content]
    assert {path.name for path in changed} <= {"runner.log"}
    shutil.rmtree(folder)
