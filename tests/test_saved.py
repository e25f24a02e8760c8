"""A run opened again: which file is taken, what is looked up in its config, and what does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import runner
from runner.errors import InputError
from runner.job import saved
from runner.job.rebuilding import rebuilt
from runner.job.resuming import resume
from runner.job.saved import Saved, fitting, keep_placement, open_saved, refuse_interpolations, saved_config
from runner.storage import checkpoint
from runner.storage.record_schema import write_record
from runner.storage.run_dir import RunDir

WORDS = ["dataset=fake", "dataset.train_size=40", "dataset.eval_size=10", "dataset.val_size=10", "model=mlp"]
WORDS += ["model.hidden=[4]", "dataset.input_shape=[1,4,4]", "device.threads=1", "quiet=true", "trainer.epochs=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    runner.run(WORDS, run_dir=folder / "run")
    return folder / "run"


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def refusal(call, *arguments, **options):
    with pytest.raises(InputError) as refused:
        call(*arguments, **options)
    return str(refused.value)


def test_the_file_that_was_asked_for_is_opened_or_the_choices_are_said(run, caplog):
    for which in ("best", "last"):
        opened = open_saved(run, which)
        assert opened.path == run / "checkpoints" / f"{which}.pt" and opened.state["epoch"] == 1
        assert opened.record == RunDir(run).read_run(is_to_be_opened=True)
    (run / "checkpoints" / "best.pt").unlink()
    absent = run / "checkpoints" / "best.pt"
    assert refusal(open_saved, run, "best") == f"which=best: there is no {absent}; this run has: last"
    assert refusal(open_saved, run, "x.pt") == "which=x.pt: there is no x.pt; this run has: last"
    (run / "checkpoints" / "last.pt").rename(run / "checkpoints" / "a.txt")
    assert refusal(open_saved, run, "best").endswith("this run has: none was saved")
    state = checkpoint.load(run / "checkpoints" / "a.txt")
    checkpoint.save(run / "mine.pt", state)
    assert open_saved(run, str(run / "mine.pt")).path == run / "mine.pt" and caplog.text == ""
    checkpoint.save(run / "mine.pt", {**state, "run_id": "another"})
    assert open_saved(run, str(run / "mine.pt")).state["run_id"] == "another"
    assert f"note: {run / 'mine.pt'} is not a checkpoint of the run in {run}" in caplog.text
    checkpoint.save(run / "checkpoints" / "best.pt", {**state, "run_id": "another"})
    assert refusal(open_saved, run, "best").startswith(f"{absent}: belongs to another run (its id is another, ")
    checkpoint.save(absent, {key: value for key, value in state.items() if key != "model_state_dict"})
    assert refusal(open_saved, run, "best") == f"{absent}: has no model_state_dict"
    absent.unlink()
    absent.symlink_to("/etc/passwd")
    assert "is a link" in refusal(open_saved, run, "best")


def test_a_run_that_never_began_has_nothing_to_open(run):
    record = json.loads((run / "run.json").read_text())
    write_record(run / "run.json", {**record, "config_yaml": None, "error": "odd"})
    assert refusal(open_saved, run, "best") == f"{run}: holds no run that began (odd)"


def test_an_interpolation_in_a_record_is_named_and_not_looked_up(monkeypatch):
    monkeypatch.setenv("SECRET", "s")
    record = {"config_yaml": "a: 1\nb: {c: '${oc.env:SECRET}'}\nmodel_weights: x\ninit_from: y\n", "device": "cpu"}
    for act in (refuse_interpolations, saved_config):
        assert refusal(act, record).startswith("b.c=${oc.env:SECRET}: is not looked up")
    opened = saved_config({**record, "config_yaml": record["config_yaml"].replace("${oc.env:SECRET}", "s")})
    assert opened.b.c == "s" and opened.model_weights is None and opened.init_from is None
    refuse_interpolations({"config_yaml": "a: 1"})
    assert "a=['${b}']" in refusal(refuse_interpolations, {"config_yaml": "a: ['${b}']\nb: 1"})


@pytest.mark.parametrize("text", ["5", "[1]", "a: [", "a: ${", "null", "a: 1"])
def test_a_config_that_is_none_is_named_by_whoever_opens_the_run(run, text):
    record = json.loads((run / "run.json").read_text())
    write_record(run / "run.json", {**record, "config_yaml": text})
    for act in (
        lambda: runner.load_model(run),
        lambda: open_saved(run, "last"),
        lambda: resume(run, ["trainer.epochs=2"]),
    ):
        said = refusal(act)
        assert said.startswith(f"{run / 'run.json'}: ") and "config_yaml" in said and "\n" not in said


@pytest.mark.parametrize(
    ("device", "placement", "wanted", "expected"),
    [
        ("cuda:0", "memory", "auto", "memory"),
        ("cuda:0", "memory", "workers", "workers"),
        ("cuda:0", None, "auto", "auto"),
        ("cpu", "memory", "auto", "auto"),
    ],
)
def test_where_batches_were_made_is_kept_where_it_may_change_a_digit(device, placement, wanted, expected):
    config = OmegaConf.create({"dataloader": {"placement": wanted}})
    keep_placement(config, {"device": device, "placement": placement})
    assert config.dataloader.placement == expected
    keep_placement(OmegaConf.create({"dataloader": {}}), {"device": "cuda", "placement": "memory"})
    text = f"dataloader: {{placement: {wanted}}}\nmodel_weights: null\ninit_from: null"
    opened = saved_config({"device": device, "placement": placement, "config_yaml": text})
    assert opened.dataloader.placement == expected


def test_what_does_not_fit_is_one_line_that_names_the_file(tmp_path):
    opened = Saved({}, tmp_path / "a.pt", {}, tmp_path)
    start = f"{tmp_path / 'a.pt'}: "
    for error, said in (
        (KeyError("w"), "has no 'w'"),
        (InputError("as it is"), None),
        *((kind("a\n  b"), "does not fit this run's model or loss; a b") for kind in (RuntimeError, TypeError)),
        *((kind("a\n  b"), "does not fit this run's model or loss; a b") for kind in (AttributeError, ValueError)),
    ):

        def act(error=error):
            with fitting(opened):
                raise error

        assert refusal(act) == ("as it is" if said is None else start + said)
    with pytest.raises(ZeroDivisionError), fitting(opened):
        raise ZeroDivisionError


def test_opened_again_a_model_has_its_weights_and_draws_nothing(run, caplog):
    state = checkpoint.load(run / "checkpoints" / "last.pt")["model_state_dict"]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = runner.load_model(run, "last")
    assert torch.equal(torch.get_rng_state(), before) and not model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    built = rebuilt(open_saved(run, "last"))
    assert all(torch.equal(value, state[key]) for key, value in built.trainer.task.model.state_dict().items())
    built.close()
    broken = {**checkpoint.load(run / "checkpoints" / "last.pt"), "model_state_dict": {"odd": torch.zeros(1)}}
    checkpoint.save(run / "checkpoints" / "last.pt", broken)
    for call in (lambda: runner.load_model(run, "last"), lambda: rebuilt(open_saved(run, "last"))):
        assert refusal(call).startswith(f"{run / 'checkpoints' / 'last.pt'}: does not fit this run's model or loss; ")
    mine = Path("mine.py").absolute()
    mine.write_text("1")
    record = {"own_code": {"mine": {"file": str(mine), "sha256": "0"}}, "working_directory": "/"}
    saved.say_changes(record, run)
    said = f"note: {mine} has changed since (mine); what follows is by the code of today"
    assert [message for message in caplog.messages if message.startswith("note")] == [said]
