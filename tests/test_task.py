"""One module owns the model and the loss: a loss with parameters and state is trained, kept, and put back."""

import shutil
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import runner
from conftest import Batches
from runner.cli.verify import differences
from runner.job.resuming import resume
from runner.losses import NLL
from runner.storage.checkpoint import load
from runner.storage.run_dir import RunDir
from runner.tasks import Supervised
from runner.train.precision import Precision
from runner.train.steps import StepOptions, evaluate, train_step
from runner.train.weights import load_weights
from test_resume import assert_equal_runs, crash_at
from test_trainer import CPU, Interrupted, StopAfter, assert_equal_states, make, rows_of


class Centred(nn.Module):
    """A cross entropy with a learned scale of the scores, around a centre that follows them in training."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("centre", torch.zeros(num_classes))

    def forward(self, output, target):
        if self.training:
            self.centre.lerp_(output.detach().mean(0), 0.1)
        return nn.functional.cross_entropy(self.scale * (output - self.centre), target)


def test_the_parameters_of_a_loss_are_trained_and_clipped_with_the_models():
    task = Supervised(nn.Linear(6, 4), Centred())
    optimizer = torch.optim.SGD(task.parameters(), lr=1.0)
    before = [p.detach().clone() for p in task.parameters()]
    train_step(task, optimizer, (torch.randn(8, 6), torch.arange(8) % 4), StepOptions(grad_clip=0.01))
    moved = [a - b for a, b in zip(before, task.parameters(), strict=True)]
    moved = [m.detach() for m in moved]
    assert len(moved) == 3 and moved[2] != 0
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_loss_is_in_eval_mode_where_the_model_is():
    trainer = make(loss=Centred(), epochs=1)
    before = trainer.task.criterion.centre.clone()
    trainer.evaluate()
    assert torch.equal(trainer.task.criterion.centre, before)
    assert trainer.task.criterion.training
    seen = []
    trainer.task.criterion.register_forward_hook(lambda module, args, out: seen.append(module.training))
    trainer.fit()
    assert seen == [True] * 6 + [False] * 2
    assert not torch.equal(trainer.task.criterion.centre, before)


@pytest.mark.parametrize("looks", [1, 4, 7, 9, 16, 23])
def test_a_stopped_run_with_a_state_in_its_loss_goes_on_exactly(tmp_path, looks):
    whole = make(tmp_path / "whole", loss=Centred())
    expected = rows_of(whole)
    whole.fit()
    stopped = make(tmp_path / "stopped", loss=Centred(), stop=StopAfter(looks))
    before = rows_of(stopped)
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = make(tmp_path / "stopped", loss=Centred())
    after = rows_of(resumed)
    resumed.state.load_state_dict(load(tmp_path / "stopped" / "checkpoints" / "last.pt"))
    resumed.fit()
    assert before + after == expected
    for name in ("last", "best"):
        paths = [tmp_path / run / "checkpoints" / f"{name}.pt" for run in ("whole", "stopped")]
        assert_equal_states(*(load(path) for path in paths), name)


@pytest.mark.parametrize("saved", [True, False])
def test_the_loss_of_the_best_epoch_is_part_of_the_best(tmp_path, saved):
    trainer = make(tmp_path if saved else None, loss=Centred(), epochs=4, lr=0.3)
    seen, states = [], []
    trainer.listeners.epoch.append(lambda end: seen.append(end.metrics))
    trainer.listeners.epoch.append(lambda end: states.append({k: v.clone() for k, v in criterion.state_dict().items()}))
    criterion = trainer.task.criterion
    trainer.fit()
    best = trainer.progress.best_epoch
    trainer.state.progress = trainer.progress.__class__(**{**vars(trainer.progress), "epoch": 99})
    results = trainer.test(trainer.eval_loaders["val"])
    assert results["best"]["loss"] == seen[best - 1]["val/loss"]
    assert results["last"]["loss"] == seen[-1]["val/loss"]
    assert_equal_states(states[-1], dict(criterion.state_dict()))
    trainer.state.progress = trainer.progress.__class__(**{**vars(trainer.progress), "epoch": 4})
    if not saved:
        assert_equal_states(states[best - 1], dict(trainer.state.state_dict()["best_criterion_state_dict"]))


def test_a_parameter_of_the_loss_that_is_not_finite_is_named(tmp_path):
    trainer = make(tmp_path, loss=Centred(), epochs=1)
    trainer.listeners.batch.append(
        lambda progress, count: trainer.task.criterion.scale.data.fill_(torch.inf) if progress.batch == count else None
    )
    with pytest.raises(runner.errors.Diverged, match="loss.scale is not finite in epoch 1"):
        trainer.fit()


def test_a_checkpoint_without_the_losss_best_weights_still_loads():
    task = Supervised(nn.Linear(6, 4), Centred())
    saved = {"model_state_dict": nn.Linear(6, 4).state_dict()}
    load_weights(task, saved)
    assert torch.equal(task.model.weight, saved["model_state_dict"]["weight"])


def test_the_model_computes_in_the_precision_and_the_loss_in_fp32():
    seen = []

    def loss(output, target):
        seen.append(output.dtype)
        return NLL()(output, target)

    task = Supervised(nn.Linear(6, 4), loss)
    task.model.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    evaluate(task, Batches([(torch.randn(2, 6), torch.arange(2))]), {}, CPU, StepOptions(Precision("bf16")), 1)
    assert seen == [torch.bfloat16, torch.float32]


OWN = textwrap.dedent(
    """
    import torch
    from torch import nn

    class Restless(nn.Module):
        '''A loss with a learned scale, a running centre, and a count of all that it was ever asked for.'''

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("centre", torch.zeros(10))
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("asked", torch.zeros(()), persistent=False)

        def forward(self, output, target):
            if self.training:
                self.centre.lerp_(output.detach().mean(0), 0.1)
            self.count += 1  # in evaluation as well: what a probe asks would stay in new runs
            self.asked += 1
            loss = nn.functional.cross_entropy(self.scale * (output - self.centre), target)
            return loss * (1 + 0.001 * (self.count + self.asked))
    """
)
WORDS = ["model=mlp", "model.hidden=[8]", "trainer.epochs=3", "device.threads=1", "quiet=true", "optimizer=sgd"]
WORDS += ["dataloader.batch_size=128", "optimizer.lr=0.5", "loss={_target_: restless_loss.Restless}"]


@pytest.fixture
def own_loss(tmp_path, monkeypatch):
    (tmp_path / "restless_loss.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("restless_loss", None)


@pytest.mark.slow
def test_a_run_with_a_state_in_its_loss_evaluates_resumes_and_verifies(tmp_path, own_loss, cli):
    words = [*WORDS[:-1], "~loss", f"+{WORDS[-1]}"]
    record = runner.run(words, run_dir=tmp_path / "whole")
    state = load(tmp_path / "whole" / "checkpoints" / "last.pt")
    assert state["criterion_state_dict"]["scale"] != 1
    assert state["criterion_state_dict"]["count"] == state["unsaved_buffers"]["criterion.asked"] > 3 * 8
    assert len(state["optimizer_state_dict"]["param_groups"][0]["params"]) == 5
    for which in ("best", "last"):
        shown = cli("evaluate", str(tmp_path / "whole"), "--which", which)
        values = dict(line.removeprefix("test/").split(": ") for line in shown.stdout.splitlines())
        if which == "best" or record["best_epoch"] != 3:  # this loss counts its evaluations: they are in its weights
            assert float(values["accuracy"]) == record["test"][which]["accuracy"], shown.stderr
    crash_at(7, "crashed", [*words, "checkpoint.every_batches=1"])
    resume(Path("crashed"), [])
    assert_equal_runs(tmp_path / "whole", "crashed")
    shown = cli("verify", str(tmp_path / "whole"), "--kills", "1")
    assert shown.returncode == 0, shown.stdout + shown.stderr


@pytest.mark.slow
def test_the_best_loss_of_a_run_is_the_one_that_evaluate_gives(tmp_path, own_loss, cli):
    (tmp_path / "calm_loss.py").write_text(OWN.replace("self.count +=", "self.count + ").replace("self.asked +=", "#"))
    words = [*WORDS[:-1], "~loss", "+loss={_target_: calm_loss.Restless}", "trainer.monitor=train/loss"]
    for number, more in enumerate([[], ["checkpoint.save=last"]]):
        place = tmp_path / f"run{number}"
        record = runner.run([*words, *more, "trainer.mode=min"], run_dir=place)
        shown = cli("evaluate", str(place), "--which", "last" if more else "best")
        values = dict(line.removeprefix("test/").split(": ") for line in shown.stdout.splitlines())
        assert float(values["loss"]) == record["test"]["last" if more else "best"]["loss"], shown.stderr
        assert shutil.which("python") and not list(differences(RunDir(place), RunDir(place)))
