"""What would act on a terminal, in a log or in a spreadsheet is shown escaped: in every verb, in every message."""

import csv
import io
import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest

import runner
from runner import __main__ as entry
from runner.cli import VERBS
from runner.job.logs import Printable
from runner.sweep import show
from runner.terminal.printable import csv_cell, printable
from runner.terminal.tables import table

EVIL = "a\x1b[31m\x9b2J\x7f\u202eb\u2028c\nstate done\r\t\ud800=[red]"


def has_hidden(text):
    return any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in text.replace("\n", ""))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        *(("\x1b[0m", "\\x1b[0m"), ("\u202e", "\\u202e"), ("\ud800", "\\ud800"), ("\U000e0041", "\\U000e0041")),
        *(("a\nb\r\t", "a\\nb\\r\\t"), ("\x85\u2028\x7f", "\\x85\\u2028\\x7f"), ("größe 图 [x]", "größe 图 [x]")),
    ],
)
def test_what_is_hidden_is_shown(given, shown):
    assert printable(given) == shown


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@sum(a)", "\uff1d1"])
def test_a_cell_is_no_formula(text):
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-1.5", "+2e-3", -0.5, None, True, "a=b", ""])
def test_a_number_and_a_plain_text_stay_as_they_are(value):
    assert csv_cell(value) == value


def test_a_cell_never_breaks_its_line():
    assert len(table([EVIL], [[EVIL], [[EVIL, 1]]]).splitlines()) == 3


def test_a_message_is_one_line_and_a_traceback_keeps_its_own():
    try:
        raise ValueError(EVIL)
    except ValueError:
        record = logging.LogRecord("runner", logging.ERROR, "", 0, "failed: %s", (EVIL,), sys.exc_info())
    text = Printable().format(record)
    assert text.splitlines()[0].startswith("failed: a\\x1b[31m") and "Traceback" in text.splitlines()[1]
    assert not has_hidden(text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    runner.run(["trainer.dry_run=true", "quiet=true", "device.threads=1"], run_dir=str(folder / "run"))
    return folder / "run"


@pytest.fixture
def hostile(trained, tmp_path):
    """A folder of runs whose record holds EVIL wherever a text or a name may stand."""
    import shutil

    run = tmp_path / "runs" / "x\x1b[31m\nrun"
    shutil.copytree(trained, run)
    record = json.loads((run / "run.json").read_text())
    record |= {"name": EVIL, "tags": [EVIL], "notes": EVIL, "error": EVIL, "command": [EVIL], "monitor": EVIL}
    record |= {"packages": {EVIL: EVIL}, "best": {EVIL: 1.0}, "test": {"best": {EVIL: 1.0}}, "best_value": 1.0}
    record["config"][EVIL] = record["config"]["notes"] = EVIL
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 1, EVIL: EVIL}) + "\n")
    return run


def words_of(verb, run):
    words = {"diff": [str(run), "plain"], "ls": [str(run.parent)], "best": [str(run.parent)]}
    words |= {"label": [str(run), EVIL.replace("\0", ""), f"--note={EVIL}".replace("\0", "")]}
    words |= {"prune": [str(run.parent), "--dry-run"], "verify": [str(run), "--kills", "-1"]}
    return words.get(verb, [str(run)])


@pytest.mark.parametrize("state", ["done", EVIL])
@pytest.mark.parametrize("verb", [*VERBS, "ls --csv", "ls --json"])
def test_no_verb_lets_a_record_write_to_the_terminal(verb, state, hostile, trained, capsys, monkeypatch):
    Path("plain").symlink_to(trained)
    record = json.loads((hostile / "run.json").read_text())
    (hostile / "run.json").write_text(json.dumps({**record, "state": state}))
    first, *flags = verb.split()
    monkeypatch.setattr(sys, "argv", ["runner", first, *words_of(first, hostile), *flags])
    for name in ("prepare_streams", "find_own_modules"):
        monkeypatch.setattr(entry, name, lambda: None)
    with pytest.raises(SystemExit):
        entry.main()
    told = capsys.readouterr()
    assert told.out + told.err and not has_hidden(told.out + told.err)
    if flags == ["--csv"] and state == "done":
        assert len(list(csv.reader(io.StringIO(told.out)))) == 2 == len(told.out.splitlines())


def test_the_files_of_a_summary_hold_no_formula():
    assert show.csv_row(["=cmd()", -1.0, "x"]) == ["'=cmd()", -1.0, "x"]
