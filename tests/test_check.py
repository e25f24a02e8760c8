"""`runner check`: what can be said before anything trains."""

import json
import math
import sys
from pathlib import Path

import pytest

import runner
from runner.cli import check
from runner.config import admission
from runner.errors import InputError
from runner.groups import walk

WORDS = ["dataset=fake", "dataset.train_size=32", "dataset.eval_size=16", "model=mlp", "model.hidden=[4]", "quiet=true"]


def checked(capsys, *words):
    code = check.main(check.parser().parse_args([*words, "--json"]))
    return code, json.loads(capsys.readouterr().out)


def test_a_good_command(capsys):
    words = [*WORDS, "scheduler=cosine", "optimizer.lr=0.5", "dataloader.batch_size=8"]
    code, said = checked(capsys, *words)
    assert code == 0 and "error" not in said
    assert {row["place"]: row["why"] for row in said["targets"]}["optimizer"] == "an Optimizer of torch.optim"
    assert said["keys"]["optimizer.lr"] == {"value": 0.5, "from": "command line"}
    assert said["keys"]["scheduler.eta_min"]["from"] == "scheduler/cosine.yaml (command line)"
    assert said["keys"]["seed"]["from"] == "config.yaml"
    parts = said["parts"]
    assert parts["examples"]["test"] == 16
    last = 0.5 * (1 + math.cos(math.pi * 13 / 14)) / 2  # of the 14th epoch; the 0 after it trains nothing
    assert parts["rate"] == {"first": 0.5, "highest": 0.5, "last": pytest.approx(last), "steps": "epoch"}
    assert parts["likely mistakes"] == [] and not list(Path().iterdir())


def test_the_rates_are_those_that_batches_are_trained_with(capsys, monkeypatch):
    _, said = checked(capsys, *WORDS, "trainer.steps=3", "scheduler=polynomial", "scheduler.interval=batch")
    batches = int(said["parts"]["batches"].split()[0])
    assert said["parts"]["rate"]["last"] > 0 and said["parts"]["epochs"] == f"{-(-3 // batches)} (3 steps)"
    _, said = checked(capsys, *WORDS, "scheduler=plateau")
    assert said["parts"]["rate"] == {"first": 1.0, "then": "by val/accuracy"}
    monkeypatch.setattr(walk, "LONGEST", 20)
    _, said = checked(capsys, *WORDS, "scheduler=polynomial", "scheduler.interval=batch", "trainer.steps=300_000")
    assert said["parts"]["rate"]["highest"] == "not known (the first 21 of 300,000 steps are walked)"


def test_an_experiments_keys_are_said_to_be_its_own(capsys):
    _, said = checked(capsys, "experiment=digits_augmented")
    assert "experiment/digits_augmented.yaml" in {key["from"] for key in said["keys"].values()}


def test_a_refused_target_is_listed_and_nothing_of_it_imported(capsys, tmp_path):
    (tmp_path / "not_mine.py").write_text("raise SystemExit")
    code, said = checked(capsys, *WORDS, "model._target_=sklearn_evil.Net", "loss._target_=os.system")
    assert code == 2 and said["error"].startswith("model._target_=sklearn_evil.Net")
    assert [row["place"] for row in said["targets"] if not row["admitted"]] == ["model", "loss"]
    assert "sklearn_evil" not in sys.modules and "parts" not in said


def test_what_would_be_refused_later_is_said_now(capsys):
    code, said = checked(capsys, *WORDS, "scheduler=step", "scheduler.step_size=0")
    assert code == 2 and said["error"].startswith("scheduler.step_size=0")
    with pytest.raises(InputError, match="optimizr"):
        check.main(check.parser().parse_args(["optimizr=adam"]))


def test_a_likely_mistake(capsys):
    code, said = checked(capsys, *WORDS, "scheduler=step", "scheduler.interval=batch", "dataloader.batch_size=1")
    assert code == 0 and "practically 0" in said["parts"]["likely mistakes"][0]


def test_a_run_and_an_edited_one(capsys, tmp_path):
    runner.run([*WORDS, "trainer.dry_run=true"], run_dir=tmp_path / "run")
    capsys.readouterr()
    code, said = checked(capsys, str(tmp_path / "run"))
    assert code == 0 and said["keys"]["seed"]["from"] == "record"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["config"]["model"]["_target_"] = "os.system"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    code, said = checked(capsys, str(tmp_path / "run"))
    assert code == 2 and "os.system" in said["error"]


def test_a_package_that_is_trusted_on_the_command_line_is_admitted(capsys):
    words = [*WORDS, "metrics.accuracy._target_=sklearn.svm.SVC"]
    assert checked(capsys, *words)[0] == 2
    code, said = checked(capsys, *words, "--trust", "sklearn")
    assert code == 2 and all(row["admitted"] for row in said["targets"]), "admitted, and no metric"
    admission.grant()


def test_each_key_and_target_has_a_line_of_its_own(capsys):
    code, said = checked(capsys, *WORDS)
    assert code == 0 and check.main(check.parser().parse_args(WORDS)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any("\\n" in line for line in lines)
    firsts = [line.split()[0] for line in lines if line]
    assert set(said["keys"]) <= set(firsts) and firsts.count("yes") == len(said["targets"])
