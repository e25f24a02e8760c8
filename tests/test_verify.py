"""`runner verify --output`: a finished run again from its folder alone, and both side by side."""

import json
import shutil

import pytest

import runner
from runner.cli import verify
from runner.errors import InputError
from runner.storage.run_dir import RunDir

WORDS = ["dataset=fake", "dataset.train_size=64", "dataset.eval_size=16", "model=mlp", "model.hidden=[4]"]
WORDS += ["trainer.epochs=2", "dataloader.batch_size=16", "device.threads=1", "quiet=true"]


def verified(*words):
    return verify.main(verify.parser().parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    runner.run(WORDS, run_dir=folder)
    return folder


def test_a_run_again_is_equal_and_a_run_of_its_own(made, tmp_path, capsys):
    assert verified(made, "-o", tmp_path / "again") == 0
    said = capsys.readouterr().out
    assert "equal in every bit" in said and "test/best/accuracy" in said
    one, two = RunDir(made).read_run(), RunDir(tmp_path / "again").read_run()
    assert two["state"] == "done" and two["id"] != one["id"] and two["replay_of"]["id"] == one["id"]
    assert two["resumed"] == [] and two["threads"] == one["threads"]


def test_where_two_runs_part_is_named(made, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(made, other)
    rows = (other / "metrics.jsonl").read_text().splitlines()
    row = json.loads(rows[1])
    (other / "metrics.jsonl").write_text("\n".join([rows[0], json.dumps({**row, "train/loss": 0.5})]) + "\n")
    record = RunDir(other).read_run()
    record["packages"]["torch"] = "1.0"
    RunDir(other).write_run(record)
    assert verified(other, "-o", tmp_path / "again") == 1
    said = capsys.readouterr().out
    assert "note: torch: 1.0 ->" in said
    assert "first row to part: metrics.jsonl[1]['train/loss']: 0.5 and" in said


def test_what_cannot_be_verified_is_said_in_a_line_and_leaves_nothing(made, tmp_path):
    with pytest.raises(InputError, match="is there already"):
        verified(made, "-o", tmp_path)
    with pytest.raises(InputError, match="the run's own folder"):
        verified(made, "-o", made / "again")
    killed = tmp_path / "killed"
    shutil.copytree(made, killed)
    RunDir(killed).write_run({**RunDir(killed).read_run(), "state": "interrupted"})
    with pytest.raises(InputError, match="only a finished run"):
        verified(killed, "-o", tmp_path / "again")
    gone = tmp_path / "gone"
    shutil.copytree(made, gone)
    record = RunDir(gone).read_run()
    text = record["config_yaml"].replace("runner.data.Fake", "runner.data.Nothing")
    config = json.loads(json.dumps(record["config"]).replace("runner.data.Fake", "runner.data.Nothing"))
    RunDir(gone).write_run({**record, "config_yaml": text, "config": config})
    with pytest.raises(InputError, match="Nothing"):
        verified(gone, "-o", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    for flag in ("--kills", "--seed"):
        with pytest.raises(InputError, match=f"{flag} 1: what stays in --output .* is trained without a kill"):
            verified(made, "-o", tmp_path / "again", flag, 1)
