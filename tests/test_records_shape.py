"""The written shape of each record: what it must hold, what is filled in, and every word of a refusal."""

import contextlib
import json
from pathlib import Path

import pytest

from runner.storage import shapes
from runner.storage.shapes import BadRecord
from runner.terminal import notices

LISTED = {"state": "done", "epochs": 2, "epochs_done": 1, "config": {}, "best_value": None}
FILLED = {
    "notes": None,
    "overrides": None,
    "choices": None,
    "best_epoch": None,
    "tags": [],
    "name": None,
    "seconds": 0.0,
    "test": {},
    "best": {},
    "last": {},
    "modes": {},
    "started": "",
    "ended": None,
    "error": None,
    "config_source": {},
    "failure": None,
    "id": None,
    "command": None,
    "resumed": [],
    "code": None,
    "own_code": None,
    "git": None,
    "data": None,
    "packages": {},
    "placement": None,
    "chosen_on": None,
    "layers": [],
    "examples": {},
    "device": "cpu",
    "working_directory": "",
    "threads": None,
    "stopped": None,
    "known_steps": {},
    "best_step": None,
    "steps": None,
    "steps_done": None,
}
SUMMED = {**LISTED, "monitor": "loss", "mode": "min"}
RUN = {**SUMMED, "best_epoch": 1, "best": {}, "last": {}, "test": {}}
WHOLE = {**RUN, "config_yaml": "a: 1", "device": "cpu", "threads": 1, "working_directory": "/"}
JOB = {"identity": "i", "overrides": [], "settings": {}}
SWEEP = {"arguments": [], "config_dir": None, "swept": [], "base": {}}
OF_JOB = {"deaths": [], "seed": None, "setting": None, "choices": None}
OF_SWEEP = {
    "hydra": [],
    "code": None,
    "working_directory": "",
    "command": [],
    "started": "",
    "own_code": None,
    "jobs": [],
}
KINDS = {
    "summed": (SUMMED, FILLED),
    "run": (RUN, FILLED),
    "whole": (WHOLE, FILLED),
    "job": (JOB, OF_JOB),
    "sweep": (SWEEP, OF_SWEEP),
}


@pytest.fixture(autouse=True)
def made_anew(monkeypatch):
    monkeypatch.setattr(shapes, "_shapes", {})


def refusal(call, *arguments):
    with pytest.raises(BadRecord) as refused:
        call(*arguments)
    return str(refused.value)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_missing_is_filled_in_or_named(name):
    path, (least, filled) = Path("r.json"), KINDS[name]
    assert shapes.checked(path, {**least, "other": 1}, name) == {**filled, **least, "other": 1}
    for key in least:
        without = {k: v for k, v in least.items() if k != key}
        assert refusal(shapes.checked, path, without, name) == f"r.json: missing required field `{key}`"
    for key, value in {**filled, **least}.items():
        if key not in ("name", "seed", "notes"):  # anything goes
            wrong = [odd for odd in (0.5, "odd", [5], {"x": [[5]]}, None) if type(odd) is not type(value)]
            refused = []
            for odd in wrong:
                with contextlib.suppress(pytest.fail.Exception):
                    refused.append(refusal(shapes.checked, path, {**least, key: odd}, name))
            assert refused and all(said.startswith(f"r.json: `{key}` is ") and "must be" in said for said in refused)


def test_a_record_of_what_never_began_needs_no_metric():
    path, never = Path("r.json"), {**LISTED, "config_yaml": None}
    assert shapes.checked(path, never, "never_began") == {**FILLED, "monitor": None, "mode": None, **never}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("epochs", -1, "`epochs` is -1: must be a whole number, at least 0"),
        ("epochs", 2**53 + 1, "`epochs` is 9007199254740993: must be"),
        ("epochs", True, "`epochs` is true: must be a whole number"),
        ("threads", 0, "`threads` is 0: must be a whole number, at least 1"),
        ("seconds", -0.5, "`seconds` is -0.5: must be a number, at least 0"),
        ("state", "odd", '`state` is "odd": must be one of running'),
        ("mode", "odd", '`mode` is "odd": must be one of min, max'),
        ("modes", {"a": "odd"}, "`modes` is an object: must be an object, each one of min, max"),
        ("best", {"a": "x"}, "`best` is an object: must be an object, each"),
        ("test", {"best": {"a": "x"}}, "`test` is an object: must be an object, each an object"),
        *(
            ("resumed", [{"at": "", "epoch": 1, "batch": 1, **wrong}], "`resumed` is a list: must be a list, each")
            for wrong in ({"at": 1}, {"command": 5}, {"changes": 5}, {"code": 5}, {"epoch": -1}, {"batch": 2**60})
        ),
        ("resumed", [{"at": "t", "epoch": 1}], "`resumed` is a list: must be a list, each"),
        ("examples", {"train": -1}, "`examples` is an object: must be"),
        ("own_code", {"m": {"file": 1}}, "`own_code` is an object: must be"),
        ("tags", 5, "`tags` is 5: must be a list"),
        ("best_value", float("inf"), "best_value is inf: not a finite number"),
        ("best_value", 10**400, f"best_value is 1{'0' * 19}: not a finite number"),
        ("seconds", float("inf"), "seconds is inf: not a finite number"),
        ("best", {"a": float("inf")}, "best.a is inf: not a finite number"),
        ("last", {"a": -float("inf")}, "last.a is -inf: not a finite number"),
        ("test", {"best": {"a": float("nan")}}, "test.best.a is nan: not a finite number"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key(key, value, said):
    for name in ("summed", "run", "whole"):
        assert refusal(shapes.checked, Path("r.json"), {**WHOLE, key: value}, name).startswith(f"r.json: {said}")
    shapes.checked(Path("r.json"), {**WHOLE, "best_value": 1.7976931348623157e308, "resumed": []}, "whole")


def test_a_file_is_read_whole_or_refused_by_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "job.json"
    with pytest.raises(FileNotFoundError):
        shapes.read(path, "job")
    for content, said in (
        (b"[1]", "is no record of ours: a list instead of an object"),
        (b'"a"', "is no record of ours: a text instead of an object"),
        (b"null", "is no record of ours: null instead of an object"),
        (b"5", "is no record of ours: a number instead of an object"),
        (b"[" * 100_000, "cannot be read (nested too deeply)"),
        (b"{", "cannot be read (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
    ):
        path.write_bytes(content)
        assert refusal(shapes.read, path, "job") == f"{path}: {said}"
    for content in (b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": "\\udcff"}'):
        path.write_bytes(content)
        assert list(shapes.parsed(path, content)) == ["a"]  # what JSON has no words for, in older records
        assert "missing required field" in refusal(shapes.read, path, "job")
    path.unlink()
    path.mkdir()
    assert refusal(shapes.read, path, "job") == f"{path}: cannot be read (is a folder, not a file)"


def test_a_record_is_written_for_people_and_sealed(tmp_path):
    path = tmp_path / "job.json"
    notices.take()
    shapes.write(path, {**JOB, "odd": Path("a")})
    content = path.read_bytes()
    body, last = content[:-33], content[-33:]
    assert len(last) == 33 and set(last[:-1]) <= {32, 9} and last.endswith(b"\n") and shapes.is_sealed(content)
    assert body.startswith(b'{\n  "identity": "i",\n  "overrides": []') and body.endswith(b"\n}\n")
    assert shapes.read(path, "job") == {**JOB, **OF_JOB, "odd": "a"} and notices.take() == []
    path.write_bytes(content.replace(b'"i"', b'"j"'))
    assert shapes.read(path, "job")["identity"] == "j"
    assert notices.take() == [
        f"{path}: was changed since it was written (its CRC-32 is another); what it says may be wrong"
    ]
    assert not shapes.is_sealed(content[:-2]), "cut off in its seal"
    path.write_text(json.dumps(BY_HAND := {**JOB, "odd": "a"}))
    assert shapes.read(path, "job") == {**BY_HAND, **OF_JOB} and notices.take() == []
    assert shapes.seal(b"") == b" " * 32 + b"\n"
    crc_32 = "11101000101101111011111001000011"  # of "a"
    assert shapes.seal(b"a").decode() == crc_32.replace("0", " ").replace("1", "\t") + "\n"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"epoch": 1, "a": null, "b": [1, 0.5]}', {"epoch": 1, "a": None, "b": [1, 0.5]}),
        (b'{"epoch": 0}', {"epoch": 0}),
        (b'{"epoch": 9007199254740991}', {"epoch": 2**53 - 1}),
        *((line, None) for line in (b'{"epoch": 9007199254740992}', b'{"epoch": -1}', b'{"epoch": 1.0}')),
        *((line, None) for line in (b'{"step": 1}', b'{"epoch": true}', b'{"epoch": "1"}', b"[1]", b"", b"{")),
        *((line, None) for line in (b'{"epoch": 1, "a": "x"}', b"[" * 100_000)),
        (b'{"epoch": 1, "a": 1' + b"0" * 400 + b"}", None),
    ],
)
def test_a_line_is_a_row_or_none(line, found):
    assert shapes.row(line, "epoch") == found


@pytest.mark.parametrize("state", ["running", "done", "failed", "interrupted"])
def test_every_state_and_mode_that_is_written_is_read(state):
    for mode in ("min", "max"):
        event = {"at": "t", "epoch": 0, "batch": 2**53, "other": 1}
        record = {**WHOLE, "state": state, "mode": mode, "seconds": 0, "resumed": [event], "modes": {"a": mode}}
        assert shapes.checked(Path("r.json"), record, "whole") == {**FILLED, **record}
