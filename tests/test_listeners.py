"""The listeners group: who is told what, and that nobody can steer a run by it."""

import json
from pathlib import Path

import pytest
import torch

import runner
from runner.errors import InputError

FAST = ["device=cpu", "trainer.epochs=2", "model=mlp", "model.hidden=[4]", "quiet=true", "trainer.log_every=5"]
FAST += ["dataset.val_size=0.6"]


class Notes:
    """Writes down all that it is told, and draws random numbers at every call."""

    def __init__(self, path="told.jsonl"):
        self.path = path

    def note(self, method, fact=None):
        torch.rand(3)
        with open(self.path, "a") as file:
            file.write(json.dumps([method, fact], default=str) + "\n")

    def begin(self, run):
        run["config"]["seed"] = 99
        self.note("begin", [run["is_resumed"], run["progress"].step, str(run["path"])])

    def batch(self, progress, num_batches):
        self.note("batch", [progress.step, num_batches])

    def step(self, row):
        row["train/loss"] = 0.0
        self.note("step", row["step"])

    def epoch(self, row):
        row.clear()
        self.note("epoch")

    def saving(self):
        self.note("saving")

    def end(self, record):
        self.note("end", [record["state"], record["epochs_done"]])


class Failing:
    def __init__(self, method="epoch", kind="RuntimeError"):
        self.kind = kind
        setattr(self, method, self.fail)

    def fail(self, *facts):
        if self.kind == "Interrupted":
            from runner.errors import Interrupted

            raise Interrupted(15)
        raise RuntimeError("the disk\nis gone")


class Deaf:
    pass


def target(name):
    return f"{{_target_: {__name__}.{name}}}"


def rows(path):
    return [
        {key: value for key, value in json.loads(line).items() if "second" not in key}
        for line in Path(path, "metrics.jsonl").read_text().splitlines()
    ]


def test_a_listener_is_told_all_and_changes_nothing():
    runner.run(FAST, run_dir="without")
    record = runner.run([*FAST, f"+listeners.notes={target('Notes')}"], run_dir="with")
    told = [json.loads(line) for line in Path("told.jsonl").read_text().splitlines()]
    steps = record["config"]["derived"]["batches_per_epoch"] * 2
    assert told[0] == ["begin", [False, 0, "with"]] and told[-1] == ["end", ["done", 2]]
    assert [fact[0] for method, fact in told if method == "batch"] == list(range(1, steps + 1))
    assert [fact for method, fact in told if method == "step"] == list(range(5, steps + 1, 5))
    assert [method for method, _ in told].count("epoch") == 2 == [method for method, _ in told].count("saving")
    assert rows("with") == rows("without") and record["config"]["seed"] == 1
    one, two = (torch.load(Path(path, "checkpoints/last.pt"), weights_only=False) for path in ("with", "without"))
    for key, value in one["model_state_dict"].items():
        assert torch.equal(value, two["model_state_dict"][key])
    assert torch.equal(one["rng"]["torch"], two["rng"]["torch"])
    assert Path("with/steps.jsonl").read_text() == Path("without/steps.jsonl").read_text()


@pytest.mark.parametrize("method", ["begin", "batch", "step", "epoch", "saving", "end"])
@pytest.mark.parametrize("kind", ["RuntimeError", "Interrupted"])
def test_a_listener_that_fails_is_one_warning(method, kind):
    words = f"{{_target_: {__name__}.Failing, method: {method}, kind: {kind}}}"
    record = runner.run([*FAST, "trainer.epochs=1", f"+listeners.bad={words}"], run_dir="run")
    assert record["state"] == "done"
    log = Path("run/runner.log").read_text()
    warnings = [line for line in log.splitlines() if "WARNING" in line and "listeners.bad" in line]
    assert len(warnings) == 1 and f"{method}() failed" in warnings[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (f"+listeners.x={target('Deaf')}", "listeners.x: .*none of the methods that are told; choices: begin, batch"),
        ("+listeners.x=5", "listeners.x=5: must be {_target_: your.Listener}"),
        ("listeners=5", "listeners=5: must be the name of a choice; choices: none"),
        (f"+listeners.x={target('Nobody')}", "listeners.x._target_=.*Nobody: cannot be imported"),
        ("+listeners.x={_target_: torch.save}", "listeners.x._target_=torch.save"),
        (f"+listeners.x={{_target_: {__name__}.Notes, colour: red}}", "listeners.x.colour: .*takes no such argument"),
    ],
)
def test_what_is_no_listener_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        runner.run([*FAST, given])


def test_a_list_of_listeners_is_taken_from_a_file():
    Path("mine/listeners").mkdir(parents=True)
    Path("mine/listeners/two.yaml").write_text(
        "# @package _global_\nlisteners:\n"
        f"  - _target_: {__name__}.Notes\n  - _target_: {__name__}.Notes\n    path: b\n"
    )
    runner.run([*FAST, "listeners=two"], config_dir="mine")
    assert Path("b").read_text() == Path("told.jsonl").read_text()
