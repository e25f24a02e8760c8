"""Precision, clipping, accumulation, layout, compilation: what they compute, and that stopped runs go on exactly."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import runner
from runner.errors import InputError
from runner.job.resuming import resume
from runner.losses import NLL
from runner.storage import checkpoint
from runner.tasks import Supervised
from runner.train.precision import Precision, as_fp32, resolve
from runner.train.steps import StepOptions, train_step
from test_resume import WORDS, assert_equal_runs, crash_at
from test_trainer import Interrupted, StopAfter, assert_equal_states, make, rows_of

CONVOLUTIONS = [w for w in WORDS if not w.startswith("model")] + ["model=net"]
GPU = torch.cuda.is_available()


def step_of(options, seed=0, batch=64, loss=None):
    """Weights, output and loss after one step of SGD."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    data, target = torch.randn(batch, 20), torch.randint(5, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    step = train_step(Supervised(model, loss or NLL()), optimizer, (data, target), options)
    return [p.detach() for p in model.parameters()], step.outputs, step.loss


@pytest.mark.parametrize("batch", [64, 61, 3])
def test_accumulated_pieces_are_the_whole_batch_within_rounding(batch):
    whole, output, loss = step_of(StepOptions(), batch=batch)
    for pieces in (2, 4):
        cut, cut_output, cut_loss = step_of(StepOptions(accumulate=pieces), batch=batch)
        for one, two in zip(whole, cut, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(output, cut_output)
        torch.testing.assert_close(loss, cut_loss)


def test_a_run_with_accumulate_2_of_64_is_a_run_with_64_within_rounding(tmp_path):
    words = [
        "dataset=digits",
        "model=mlp",
        "dataloader.batch_size=64",
        "trainer.epochs=2",
        "optimizer=sgd",
        "quiet=true",
    ]
    one = runner.run(words, run_dir=tmp_path / "one")
    two = runner.run([*words, "trainer.accumulate=2"], run_dir=tmp_path / "two")
    for key in ("train/loss", "val/loss"):
        assert one["last"][key] == pytest.approx(two["last"][key], rel=1e-4)
    states = [checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("one", "two")]
    assert states[0]["step"] == states[1]["step"]
    for key, value in states[0]["model_state_dict"].items():
        torch.testing.assert_close(value, states[1]["model_state_dict"][key], rtol=1e-3, atol=1e-4)


def test_a_clipped_gradient_has_the_bound():
    before = step_of(StepOptions())[0]
    torch.manual_seed(0)
    start = [p.detach() for p in nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)).parameters()]

    def gradient(weights):  # from the step that SGD made of it
        return torch.cat([((a - b) / 0.5).flatten() for a, b in zip(start, weights, strict=True)])

    assert gradient(before).norm() > 0.1
    by_norm = gradient(step_of(StepOptions(grad_clip=0.1))[0])
    assert float(by_norm.norm()) == pytest.approx(0.1, rel=1e-3)
    torch.testing.assert_close(by_norm / 0.1, gradient(before) / gradient(before).norm(), rtol=1e-3, atol=1e-4)
    by_value = gradient(step_of(StepOptions(grad_clip=0.01, grad_clip_by="value"))[0])
    torch.testing.assert_close(by_value, gradient(before).clamp(-0.01, 0.01), rtol=1e-3, atol=1e-5)
    assert_equal_states(before, step_of(StepOptions(grad_clip=1e6, grad_clip_by="value"))[0])


def test_bf16_computes_in_bf16_and_keeps_weights_and_loss_in_fp32():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 5)

        def forward(self, x):
            output = self.layer(x)
            seen.append(output.dtype)
            return output

    model = Watching()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    options = StepOptions(Precision("bf16"))
    task = Supervised(model, NLL())
    step = train_step(task, optimizer, (torch.randn(4, 20), torch.randint(5, (4,))), options)
    assert seen == [torch.bfloat16]
    assert step.outputs.dtype == step.loss.dtype == model.layer.weight.dtype == torch.float32
    assert as_fp32(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def fp16(tmp_path, **settings):
    """A Trainer with a scaled loss: torch's scaler works on a CPU too, where `precision=fp16` is refused."""
    precision = Precision("fp16")
    precision.scaler.set_growth_interval(5)  # so that the scale moves within a few steps
    return make(tmp_path, step=StepOptions(precision, grad_clip=0.5), **settings)


@pytest.mark.parametrize("looks", [3, 7, 13])
def test_the_scale_of_fp16_is_in_the_checkpoint(tmp_path, looks):
    whole = fp16(None)
    expected = rows_of(whole)
    whole.fit()
    scales = whole.config.step.precision.state_dict()
    assert scales["scale"] != 2**16
    stopped = fp16(tmp_path, stop=StopAfter(looks))
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = fp16(tmp_path)
    after = rows_of(resumed)
    resumed.state.load_state_dict(checkpoint.load(tmp_path / "checkpoints" / "last.pt"))
    resumed.fit()
    assert resumed.config.step.precision.state_dict() == scales
    assert after == expected[len(expected) - len(after) :]
    assert_equal_states(dict(whole.task.model.state_dict()), dict(resumed.task.model.state_dict()))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_first_step_that_fp16_leaves_out_leaves_nothing_behind(momentum):
    weights = []
    for overflows in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(20, 5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=momentum, fused=True)
        options = StepOptions(Precision("fp16"))
        options.precision.scaler._init_scale = 2.0**10
        options.precision.prepare(optimizer)
        data, target = torch.randn(8, 20), torch.arange(8) % 5
        if overflows:
            torch.utils.deterministic.fill_uninitialized_memory = True
            infinite = Supervised(model, lambda out, y: NLL()(out, y) * torch.inf)
            train_step(infinite, optimizer, (data, target), options)
            options.precision.scaler.update(2.0**10)
        for _ in range(2):
            train_step(Supervised(model, NLL()), optimizer, (data, target), options)
        weights.append(model.weight.detach())
    assert torch.equal(*weights)


def test_a_short_batch_leaves_batch_norm_no_piece_of_one():
    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch in (8, 5, 3, 1 + 1):
        data, target = torch.randn(batch, 20), torch.arange(batch) % 5
        train_step(Supervised(model, NLL()), optimizer, (data, target), StepOptions(accumulate=4))


OPTIONS = {
    "bf16": ["precision=bf16"],
    "accumulate and clip": ["trainer.accumulate=4", "trainer.grad_clip=0.5"],
    "channels_last": ["trainer.channels_last=true"],
    "bf16, channels_last": ["precision=bf16", "trainer.channels_last=true"],
}


@pytest.mark.parametrize("placement", ["memory", pytest.param("workers", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_stopped_inside_an_epoch_is_exact(name, placement, tmp_path):
    words = [*CONVOLUTIONS, *OPTIONS[name]]
    runner.run([*words, "dataloader.placement=memory"], run_dir=tmp_path / "whole")
    crash_at(9, "crashed", [*words, f"dataloader.placement={placement}", "checkpoint.every_batches=1"])
    other = "workers" if placement == "memory" else "memory"
    resume(Path("crashed"), [f"dataloader.placement={other}"])  # it may change on the way
    assert_equal_runs(tmp_path / "whole", "crashed")


@pytest.mark.slow
def test_bf16_differs_from_fp32_and_trains(tmp_path):
    words = ["dataset=digits", "trainer.epochs=4", "quiet=true"]
    records = [runner.run([*words, f"precision={p}"], run_dir=tmp_path / p) for p in ("fp32", "bf16")]
    assert records[0]["last"]["train/loss"] != records[1]["last"]["train/loss"]
    assert all(record["last"]["val/accuracy"] > 0.9 for record in records)
    assert records[1]["precision"] == "bf16"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_a_compiled_run_resumes_exactly_and_saves_the_bare_models_keys(tmp_path, cli):
    words = [*WORDS, "trainer.compile=true", "trainer.epochs=2"]
    runner.run(words, run_dir=tmp_path / "whole")
    crash_at(5, "crashed", [*words, "checkpoint.every_batches=1"])
    resumed = cli("resume", "crashed", timeout=300)  # in a process that has compiled nothing yet
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_runs(tmp_path / "whole", "crashed")
    runner.run([*WORDS, "trainer.epochs=2"], run_dir=tmp_path / "plain")
    states = [torch.load(tmp_path / n / "checkpoints" / "last.pt", weights_only=True) for n in ("whole", "plain")]
    assert states[0]["model_state_dict"].keys() == states[1]["model_state_dict"].keys()
    assert type(runner.load_model(tmp_path / "whole")).__name__ == "MLP"


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("placement", ["memory", "workers"])
def test_a_run_on_cuda_stopped_inside_an_epoch_is_exact(precision, placement, tmp_path):
    words = [*CONVOLUTIONS, "device=cuda", "deterministic=true", f"precision={precision}"]
    words += [f"dataloader.placement={placement}"]
    runner.run(words, run_dir=tmp_path / "whole")
    crash_at(9, "crashed", [*words, "checkpoint.every_batches=1"])
    resume(Path("crashed"), [])
    assert_equal_runs(tmp_path / "whole", "crashed")


@pytest.mark.parametrize("type", ["tf32", "fp16"])
def test_what_a_cpu_does_not_compute_is_refused(type):
    said = f"^precision={type}: needs a CUDA GPU, and the device is cpu; choices: fp32, bf16$"
    with pytest.raises(InputError, match=said):
        resolve(type, torch.device("cpu"))


def test_an_unknown_precision_is_refused_with_the_choices():
    with pytest.raises(InputError, match="^precision.type=fp8: unknown; choices: fp32, tf32, bf16, fp16$"):
        Precision("fp8")


@pytest.mark.parametrize(("momentum", "fused"), [(0.0, True), (0.9, False), (0.9, True)])
def test_only_a_fused_momentum_gets_its_buffers_beforehand(momentum, fused):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=momentum, fused=fused)
    Precision("fp16").prepare(optimizer)
    assert len(optimizer.state) == (2 if momentum and fused else 0)
