"""Records on disk: what each must hold, what is filled in, what a refusal says, and how a change is noticed."""

import json
from pathlib import Path

import pytest

from runner.storage.record_schema import (
    BadRecord,
    JobRecord,
    ListedRun,
    RunRecord,
    RunThatNeverBegan,
    RunToOpen,
    SweepRecord,
    checked,
    label_of,
    read_record,
    row_of,
    write_record,
)
from runner.terminal import notices

LISTED = {"state": "done", "epochs": 2, "epochs_done": 1, "config": {}, "best_value": None, "best_epoch": 1}
RUN = {**LISTED, "monitor": "loss", "mode": "min", "best": {}, "last": {}, "test": {}}
OPEN = {**RUN, "config_yaml": "a: 1", "device": "cpu", "threads": 1, "working_directory": "/"}
JOB = {"identity": "i", "overrides": [], "settings": {}}
SWEEP = {"arguments": [], "config_dir": None, "swept": [], "base": {}}
LEAST = {RunRecord: RUN, RunToOpen: OPEN, JobRecord: JOB, SweepRecord: SWEEP}


def refusal(call, *arguments):
    with pytest.raises(BadRecord) as refused:
        call(*arguments)
    return str(refused.value)


@pytest.mark.parametrize("schema", LEAST, ids=lambda schema: schema.__name__)
def test_what_is_missing_is_filled_in_or_named_and_what_is_more_is_kept(schema):
    path, least = Path("r.json"), LEAST[schema]
    whole = checked(path, {**least, "other": 1}, schema)
    assert whole.items() >= {**least, "other": 1}.items()
    assert set(whole) >= set(schema.__struct_fields__) - {"config_yaml"}
    for key in least:
        without = {k: v for k, v in least.items() if k != key}
        assert refusal(checked, path, without, schema) == f"r.json: missing required field `{key}`"


def test_a_record_of_what_never_began_needs_no_metric():
    never = {key: value for key, value in RUN.items() if key not in ("monitor", "mode", "best", "best_epoch")}
    whole = checked(Path("r.json"), {**never, "config_yaml": None}, RunRecord)
    assert (whole["monitor"], whole["best"]) == (None, {})
    assert whole == checked(Path("r.json"), {**never, "config_yaml": None}, RunThatNeverBegan)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("epochs", -1, "`epochs` is -1: expected `int` >= 0"),
        ("epochs", 2**53 + 1, "`epochs` is 9007199254740993: expected `int` <= "),
        ("epochs", True, "`epochs` is true: expected `int`"),
        ("epochs", "2", '`epochs` is "2": expected `int`'),
        ("threads", 0, "`threads` is 0: expected `int` >= 1"),
        ("seconds", -0.5, "`seconds` is -0.5: expected `float` >= 0"),
        ("state", "odd", '`state` is "odd": choices: running, done, failed, interrupted'),
        ("mode", "odd", '`mode` is "odd": choices: min, max'),
        ("modes", {"a": "odd"}, "`modes` is an object: invalid enum value 'odd'"),
        ("best", {"a": "x"}, "`best` is an object: expected `float | null`, got `str`"),
        ("test", {"best": 5}, "`test` is an object: expected `object`"),
        ("tags", 5, "`tags` is 5: expected `array`"),
        ("best", None, "`best` is null: expected `object`"),
        ("resumed", [{}], "`resumed` is a list: object missing required field `at`"),
        ("resumed", [{"at": "t", "epoch": -1, "batch": 0}], "`resumed` is a list: expected `int` >= 0"),
        ("own_code", {"a": {"file": 1}}, "`own_code` is an object: expected `str`"),
        ("best_value", float("inf"), "`best_value` is Infinity: expected `float` <= "),
        ("best_value", 10**400, "`best_value` is 1000000000"),
        ("last", {"a": float("nan")}, "`last` is an object: expected `float` >= "),
        ("test", {"best": {"a": float("inf")}}, "`test` is an object: expected `float` <= "),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key, value, said):
    for schema in (RunRecord, RunToOpen):
        assert refusal(checked, Path("r.json"), {**OPEN, key: value}, schema).startswith(f"r.json: {said}")


def test_the_largest_number_and_every_state_and_mode_are_read():
    assert checked(Path("r.json"), {**OPEN, "best_value": 1.7976931348623157e308}, RunToOpen)
    for state in ("running", "done", "failed", "interrupted"):
        event = {"at": "t", "epoch": 0, "batch": 2**53, "other": 1}
        record = {**OPEN, "state": state, "mode": "max", "seconds": 0, "resumed": [event], "modes": {"a": "min"}}
        assert checked(Path("r.json"), record, RunToOpen).items() >= record.items()


def test_a_file_is_read_whole_or_refused_by_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "job.json"
    with pytest.raises(FileNotFoundError):
        read_record(path, JobRecord)
    for content, said in (
        (b"[1]", "is no record: a list instead of an object"),
        (b'"a"', 'is no record: "a" instead of an object'),
        (b"null", "is no record: null instead of an object"),
        (b"[" * 100_000, "cannot be read (nested too deeply)"),
        (b"{", "cannot be read (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
    ):
        path.write_bytes(content)
        assert refusal(read_record, path, JobRecord) == f"{path}: {said}"
    path.unlink()
    path.mkdir()
    assert refusal(read_record, path, JobRecord) == f"{path}: cannot be read (is a folder, not a file)"


def test_a_change_after_writing_is_told_and_a_record_by_hand_is_read(tmp_path):
    path = tmp_path / "job.json"
    notices.take()
    write_record(path, {**JOB, "odd": Path("a")})
    content = path.read_bytes()
    assert content.startswith(b'{\n  "identity": "i",\n  "overrides": []') and content.endswith(b'"\n}\n')
    assert set(json.loads(content)) == {*JOB, "odd", "crc32"}
    assert read_record(path, JobRecord).items() >= {**JOB, "odd": "a"}.items() and notices.take() == []
    for damaged in (
        content.replace(b'"i"', b'"j"'),
        content.replace(b"crc32", b"crc33"),
        content.replace(b'": "', b'":"'),
    ):
        path.write_bytes(damaged)
        read_record(path, JobRecord)
        assert (b"crc33" in damaged) or ["was changed since it was written" in said for said in notices.take()] == [
            True
        ]
    for by_hand in (JOB, {**JOB, "settings": {"a": '"crc32"', "crc32": "b"}}):
        path.write_text(json.dumps(by_hand))
        assert "crc32" not in read_record(path, JobRecord) and notices.take() == []


def test_a_listing_reads_its_keys_alone_and_decodes_equal_groups_once(tmp_path):
    group = {"lr": 0.5, "groups": ["é\n"]}
    for name in "ab":
        write_record(
            tmp_path / name, {**OPEN, "config": {"optimizer": group}, "layers": 5, "config_source": {"a": "${b}"}}
        )
    one, two = (read_record(tmp_path / name, ListedRun) for name in "ab")
    assert one["config"] == {"optimizer": group} and one["config"]["optimizer"] is two["config"]["optimizer"]
    assert "`layers` is 5" in refusal(read_record, tmp_path / "a", RunRecord)
    write_record(tmp_path / "a", {**OPEN, "config": 5})
    assert "`config` is 5" in refusal(read_record, tmp_path / "a", ListedRun)
    write_record(tmp_path / "a", {**OPEN, "config_yaml": None, "monitor": None})
    assert read_record(tmp_path / "a", ListedRun)["monitor"] is None


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"epoch": 1, "a": null, "b": [1, 0.5]}', {"epoch": 1, "a": None, "b": [1, 0.5]}),
        (b'{"epoch": 9007199254740991}', {"epoch": 2**53 - 1}),
        *((line, None) for line in (b'{"epoch": 9007199254740992}', b'{"epoch": -1}', b'{"epoch": 1.0}')),
        *((line, None) for line in (b'{"step": 1}', b'{"epoch": true}', b'{"epoch": "1"}', b"[1]", b"", b"{")),
        *((line, None) for line in (b'{"epoch": 1, "a": "x"}', b'{"epoch": 1, "a": NaN}', b"[" * 100_000)),
        (b'{"epoch": 1, "a": 1' + b"0" * 400 + b"}", None),
    ],
)
def test_a_line_is_a_row_or_none(line, found):
    assert row_of(line, "epoch") == found


def test_a_line_is_a_label_or_none():
    assert label_of(b'{"at": "t", "notes": null}') == {"at": "t", "added": [], "removed": [], "notes": None}
    for line in (b"", b"{", b"[1]", b"{}", b'{"at": "t", "added": "x"}', b'{"at": "t", "archived": null}'):
        assert label_of(line) is None
