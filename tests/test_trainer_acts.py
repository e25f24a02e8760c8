"""What the loop tells, counts and saves: each figure beside the same one worked out by hand."""

import math
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from conftest import Batches
from runner.batches.nested import equal, pieces
from runner.errors import Diverged, InputError, Interrupted
from runner.losses import NLL
from runner.processes import StopRequest
from runner.storage import checkpoint
from runner.storage.checkpoint import Checkpoints, load
from runner.tasks import Supervised
from runner.tasks.sizes import check_size, is_mean, size_of
from runner.train import trainer as trainer_module
from runner.train.hidden import load_buffers
from runner.train.precision import CPU, Precision, allow_tf32, as_fp32, resolve
from runner.train.state import Schedule, TrainingConfig
from runner.train.steps import StepOptions, computed, evaluate, to_device, train_step
from runner.train.weights import as_written
from test_mutations import scripted
from test_trainer import StopAfter, make


def told(trainer):
    """All that the listeners of a fit are told, in its order."""
    heard = []
    trainer.listeners.batch.append(lambda progress, batches: heard.append(("batch", progress, batches)))
    trainer.listeners.steps.append(lambda row: heard.append(("step", dict(row))))
    trainer.listeners.epoch.append(lambda end: heard.append(("epoch", end)))
    trainer.listeners.saving.append(lambda: heard.append(("saving",)))
    return heard


def test_every_row_and_every_count_is_what_it_says(tmp_path):
    trainer = make(tmp_path, epochs=2, log_every=4)
    heard = told(trainer)
    trainer.fit()
    batches = [(e[1].epoch, e[1].step, e[1].batch, e[2]) for e in heard if e[0] == "batch"]
    assert batches == [(epoch, 6 * epoch + n, n, 6) for epoch in (0, 1) for n in range(1, 7)]
    rows = [e[1] for e in heard if e[0] == "step"]
    assert [(row["step"], row["epoch"], row["lr"]) for row in rows] == [(4, 1, 0.1), (8, 2, 0.05), (12, 2, 0.05)]
    ends = [e[1] for e in heard if e[0] == "epoch"]
    assert [(end.progress.epoch, end.progress.step, end.progress.batch) for end in ends] == [(1, 6, 0), (2, 12, 0)]
    assert [e[0] for e in heard if e[0] in ("epoch", "saving")] == ["epoch", "saving"] * 2
    for end in ends:
        assert list(end.metrics) == ["lr", "train/loss", "train/accuracy", "val/loss", "val/accuracy"]
        row = {"epoch": end.progress.epoch, "step": end.progress.step, **end.metrics}
        row |= {"seconds": round(end.seconds, 3), "examples_per_second": round(end.examples_per_second, 1)}
        assert end.row == row and list(end.row) == list(row)
        assert 0 < end.seconds < 60 and 43 / end.seconds < end.examples_per_second
    timeless = [{k: v for k, v in end.row.items() if k not in ("seconds", "examples_per_second")} for end in ends]
    assert trainer.state.rows == timeless
    assert trainer.state.last_row == ends[-1].metrics
    best = min(ends, key=lambda end: end.metrics["val/loss"])
    assert (trainer.progress.best_epoch, trainer.progress.best_value) == (
        best.progress.epoch,
        best.metrics["val/loss"],
    )


def test_the_losses_of_steps_are_means_since_the_last_row_and_the_rest_of_an_epoch_has_none():
    trainer, single = make(epochs=1, log_every=4), make(epochs=1, log_every=1)
    rows, singles = told(trainer), told(single)
    trainer.fit(), single.fit()
    each = [e[1]["train/loss"] for e in singles if e[0] == "step"]
    assert len(each) == 6
    (row,) = [e[1] for e in rows if e[0] == "step"]
    assert row["train/loss"] == pytest.approx(sum(each[:4]) / 4, rel=1e-6)
    silent = make(epochs=1, log_every=0)
    heard = told(silent)
    silent.fit()
    assert not [e for e in heard if e[0] == "step"]


def test_a_checkpoint_says_in_plain_values_what_was_reached(tmp_path):
    trainer = make(tmp_path, epochs=2, text="a: 1\n")
    trainer.checkpoints.owner = {"run_id": "mine"}
    ends = told(trainer)
    trainer.fit()
    last = [e[1] for e in ends if e[0] == "epoch"][-1]
    state = load(tmp_path / "checkpoints" / "last.pt")
    plain = {
        key: state[key] for key in ("format_version", "epoch", "step", "loss", "metrics", "lr", "config", "run_id")
    }
    expected = {"format_version": 1, "epoch": 2, "step": 12, "loss": last.metrics["train/loss"], "lr": 0.05}
    assert plain == {**expected, "metrics": last.metrics, "config": "a: 1\n", "run_id": "mine"}
    assert state["progress"] == asdict(trainer.progress) and trainer.progress.step == 12
    assert state["rows"] == trainer.state.rows and len(state["rows"]) == 2
    expected = {"model_state_dict", "criterion_state_dict", "optimizer_state_dict", "scheduler_state_dict"}
    expected |= {"precision_state_dict", "rng", "progress", "rows", *plain}
    assert set(state) == expected  # and no running sums at an epoch's end
    again = make(epochs=2)
    again.state.load_state_dict(state)
    assert (again.state.lr, again.state.rows, again.state.last_row) == (0.05, state["rows"], last.metrics)
    assert again.progress == trainer.progress and again.state.best_weights is None


def test_inside_an_epoch_a_checkpoint_holds_the_sums_so_far(tmp_path):
    trainer = make(tmp_path, stop=StopAfter(3))
    with pytest.raises(Interrupted):
        trainer.fit()
    state = load(tmp_path / "checkpoints" / "last.pt")
    assert state["progress"]["batch"] == state["step"] == len(state["running"]["loss"]["losses"]) == 3
    assert state["running"]["loss"]["loss_sizes"].tolist() == [8.0] * 3
    assert set(state["running"]["metrics"]) == {"accuracy"} and state["loss"] is None and state["metrics"] == {}


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 6, 8, 10, 12]), (5, [5, 6, 11, 12])])
def test_a_save_is_due_after_so_many_batches_of_an_epoch(tmp_path, every, expected):
    trainer = make(tmp_path, epochs=2, checkpoints=Checkpoints(every_batches=every))
    steps, write = [], trainer.checkpoints.write

    def seen(state, is_evaluated, is_best):
        steps.append(state["step"])
        write(state, is_evaluated, is_best)

    trainer.checkpoints.write = seen
    trainer.fit()
    assert sorted(set(steps)) == expected


def test_a_save_is_due_after_so_many_minutes(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: clock[0])
    trainer = make(tmp_path, checkpoints=Checkpoints(every_minutes=0.5))
    for seconds, is_due in ((29.9, False), (30.0, True), (31.0, True)):
        clock[0] = seconds
        assert trainer.checkpoints.is_due(1) == is_due
    clock[0] = 40.0
    trainer.save_checkpoint(is_evaluated=True)
    assert not trainer.checkpoints.is_due(1)
    clock[0] = 70.0
    assert trainer.checkpoints.is_due(1)
    assert not Checkpoints(save="none").is_due(1)


class Broken(nn.Linear):
    """A model that gives a NaN in its n-th call."""

    def __init__(self, at):
        super().__init__(36, 4)
        self.calls, self.at = torch.zeros(()), at

    def forward(self, x):
        self.calls += self.training
        return super().forward(x.flatten(1)) * (float("nan") if self.calls == self.at else 1.0)


def test_a_loss_that_is_not_finite_is_named_by_epoch_and_batch_and_a_parameter_by_its_name():
    with pytest.raises(Diverged) as diverged:
        make(model=Broken(8), lr=0.0).fit()
    assert str(diverged.value) == "the loss is not finite (nan) in epoch 2, batch 2 of 6 (counted from 1)"
    trainer = make()
    with torch.no_grad():
        trainer.model[4].bias[2] = float("inf")
    with pytest.raises(Diverged) as diverged:
        trainer.state.check_finite()
    assert str(diverged.value) == "4.bias is not finite in epoch 1, after batch 0 of 6"
    trainer = make(epochs=1)
    trainer.fit()
    trainer.optimizer.state[trainer.model[1].bias]["momentum_buffer"][0] = float("nan")
    with pytest.raises(
        Diverged, match="^the optimizer's momentum_buffer of parameter 1 is not finite in epoch 1, after batch 6"
    ):
        trainer.state.check_finite()
    with_buffer = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    with_buffer.register_buffer("never", torch.tensor(float("inf")))
    with_buffer.register_buffer("once", torch.tensor(0.0))
    trainer = make(model=with_buffer)
    trainer.state.check_finite()  # one that never was finite is meant
    with_buffer.once.fill_(float("inf"))
    with pytest.raises(Diverged, match="^once is not finite"):
        trainer.state.check_finite()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "epochs=0: must be a whole number of at least 1"),
        ({"log_every": -1}, "log_every=-1: must be a whole number of at least 0"),
        ({"mode": "most"}, "mode=most: unknown; choices: min, max"),
        (
            {"monitor": "lr"},
            "trainer.monitor=lr: is not logged; choices: train/loss, train/accuracy, val/loss, val/accuracy",
        ),
    ],
)
def test_settings_of_the_loop_are_refused_whole(settings, said):
    with pytest.raises((ValueError, InputError)) as refused:
        make(**settings)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        *(
            ({"grad_clip": bad}, f"grad_clip={bad}: must be above 0, or null for no bound")
            for bad in (0, -1, True, "1")
        ),
        ({"grad_clip": 1, "grad_clip_by": "odd"}, "grad_clip_by=odd: unknown; choices: norm, value"),
        ({"grad_clip_by": "value"}, "grad_clip_by=value: needs a grad_clip"),
        *(({"accumulate": n}, f"accumulate={n}: must be a whole number of at least 1") for n in (0, True, 1.5)),
    ],
)
def test_options_of_a_step_are_refused_whole(settings, said):
    with pytest.raises(ValueError) as refused:
        StepOptions(**settings)
    assert str(refused.value) == said
    StepOptions(grad_clip=0.5, grad_clip_by="value", accumulate=1)


def test_a_batch_goes_to_its_device_as_a_pair_and_images_in_the_layout_that_was_asked_for():
    data, target = torch.zeros(2, 3, 4, 4), torch.zeros(2)
    for batch in ((data, target), [data, target]):
        moved, _ = to_device(batch, CPU)
        assert moved.is_contiguous()
        moved, _ = to_device(batch, CPU, channels_last=True)
        assert moved.is_contiguous(memory_format=torch.channels_last) and not moved.is_contiguous()
    assert to_device((data[0], target), CPU, channels_last=True)[0].is_contiguous()
    for batch in ((data,), {"a": 1, "b": data}, "ab", data, ("ab", data)):
        assert equal(to_device(batch, CPU), batch) and type(to_device(batch, CPU)) is type(batch)


def test_a_batch_is_cut_into_pieces_of_two_or_more():
    data = torch.arange(7)
    for count, sizes in ((1, [7]), (2, [4, 3]), (3, [3, 2, 2]), (9, [3, 2, 2])):
        assert [len(part) for part, _ in pieces((data, data), count)] == sizes
    assert [len(part) for part, _ in pieces((data[:3], data[:3]), 2)] == [3]
    assert [len(part) for part, _ in pieces((data[:4], data[:4]), 2)] == [2, 2]
    assert torch.equal(torch.cat([part for part, _ in pieces((data, data), 3)]), data)


@pytest.mark.parametrize(("by", "bound"), [("norm", 0.01), ("value", 0.001), (None, None)])
def test_a_step_clears_old_gradients_clips_and_steps(by, bound):
    torch.manual_seed(0)
    task = Supervised(nn.Sequential(nn.Linear(5, 4)), NLL())
    optimizer = torch.optim.SGD(task.parameters(), lr=1.0)
    batch = torch.randn(8, 5), torch.arange(8) % 4
    before = [p.detach().clone() for p in task.parameters()]
    for parameter in task.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    options = StepOptions() if by is None else StepOptions(grad_clip=bound, grad_clip_by=by)
    step = train_step(task, optimizer, batch, options)
    moved = torch.cat([(old - new.detach()).flatten() for old, new in zip(before, task.parameters(), strict=True)])
    gradient = torch.cat([p.grad.flatten() for p in task.parameters()])
    assert torch.allclose(moved, gradient, atol=1e-7)
    assert not step.loss.requires_grad and not step.outputs.requires_grad and step.size == 8
    if by == "norm":
        assert gradient.norm() == pytest.approx(bound, rel=1e-3)
    elif by == "value":
        assert gradient.abs().max() == pytest.approx(bound)
    else:
        assert 0.01 < gradient.norm() < 5  # nothing of the 7s is left


class Asking:
    """A metric that counts how it is used."""

    def __init__(self, value=1.0):
        self.value, self.calls = value, []

    def reset(self):
        self.calls.append("reset")

    def update(self, outputs, targets):
        self.calls.append((len(outputs), len(targets)))

    def compute(self):
        return self.value


def test_an_evaluation_asks_each_metric_and_puts_the_modes_back_also_when_it_is_stopped():
    task = Supervised(nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)), NLL())
    task.train()
    task.model[1].eval()
    batches = [(torch.randn(n, 5), torch.arange(n) % 4) for n in (3, 2)]
    metric, seen = Asking(torch.tensor([2.0])), []
    figures = evaluate(
        task, Batches(batches), {"m": metric}, CPU, StepOptions(), 1, lambda: seen.append(task.model.training)
    )
    assert metric.calls == ["reset", (3, 3), (2, 2)] and seen == [False, False]
    task.eval()
    losses = [task((data, target)).loss.item() for data, target in batches]
    assert list(figures) == ["loss", "m"] and figures["m"] == 2.0
    assert figures["loss"] == pytest.approx((3 * losses[0] + 2 * losses[1]) / 5, rel=1e-6)
    task.train()
    task.model[1].eval()

    def stop():
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        evaluate(task, Batches(batches), {}, CPU, StepOptions(), 1, stop)
    assert task.training and task.model[0].training and not task.model[1].training


def test_a_metric_that_gives_no_single_number_is_named():
    assert computed({"a": Asking(3), "b": Asking(torch.tensor(2.0))}) == {"a": 3.0, "b": 2.0}
    for value, said in (
        (torch.zeros(2, 3), "got a tensor of [2, 3]"),
        ("x", "got 'x'"),
        ({"a": 1}, "got {'a': 1}"),
    ):
        with pytest.raises(InputError) as refused:
            computed({"odd": Asking(value)})
        assert str(refused.value) == f"metrics.odd: compute() must give one number, {said}"


def test_a_scheduler_steps_when_it_is_due_with_what_it_takes():
    def with_schedule(make_scheduler, **settings):
        trainer = make(epochs=2, metrics=scripted(1.0, 2.0), monitor="val/odd", mode="max")
        trainer.schedule = trainer.state.schedule = Schedule(make_scheduler(trainer.optimizer), **settings)
        ends = told(trainer)
        trainer.fit()
        return [e[1].metrics["lr"] for e in ends if e[0] == "epoch"], trainer.state.current_lr()

    def halved(optimizer):
        return LambdaLR(optimizer, lambda n: 0.5**n)

    assert with_schedule(halved) == ([0.1, 0.05], 0.025)
    assert with_schedule(halved, interval="batch") == ([0.1 * 0.5**5, 0.1 * 0.5**11], 0.1 * 0.5**12)
    plateau = {"monitor": "val/odd"}
    assert with_schedule(lambda o: ReduceLROnPlateau(o, patience=0, factor=0.1), **plateau)[1] == pytest.approx(0.01)
    rising = with_schedule(lambda o: ReduceLROnPlateau(o, mode="max", patience=0), **plateau)
    assert rising == ([0.1, 0.1], 0.1)


def test_the_weights_of_a_best_epoch_are_the_best_epochs_or_it_is_said(tmp_path):
    trainer = make(tmp_path, epochs=2, metrics=scripted(1.0, 0.0), monitor="val/odd", mode="max")
    trainer.fit()
    best = trainer.load_best_weights()
    assert set(best) == {"model_state_dict", "criterion_state_dict"} and trainer.progress.best_epoch == 1
    path = tmp_path / "checkpoints" / "best.pt"
    checkpoint.save(path, load(tmp_path / "checkpoints" / "last.pt"))
    with pytest.raises(InputError) as refused:
        trainer.load_best_weights()
    assert str(refused.value) == f"{path}: is of step 12, but the best is step 6"


def test_the_test_says_both_weights_figures_and_one_pass_does_where_they_are_the_same():
    trainer = make(epochs=1)
    trainer.fit()
    results = trainer.test(trainer.eval_loaders["val"])
    assert results["best"] == results["last"] and list(results) == ["best", "last"]
    assert list(results["last"]) == ["loss", "accuracy"]
    nan = make(epochs=1, metrics=scripted(math.nan, 0.5), monitor="val/odd", mode="max")
    nan.fit()
    assert set(nan.test(nan.eval_loaders["val"])) == {"last"} and nan.progress.best_epoch is None


class Losing:
    """A metric without a state."""

    def update(self, outputs, targets): ...
    def reset(self): ...
    def compute(self):
        return 0.0


def test_what_cannot_be_saved_inside_an_epoch_is_said_and_nothing_is_saved(tmp_path, caplog):
    trainer = make(tmp_path, metrics=({"odd": Losing()}, {"odd": Losing()}), stop=StopAfter(3))
    with pytest.raises(Interrupted):
        trainer.fit()
    assert caplog.messages == ["not saved inside the epoch: metrics.odd has no state_dict"]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_stop_at_an_epochs_beginning_saves_nothing_again(tmp_path):
    class AtTheEnd(StopRequest):
        def check(self):
            if trainer.progress.batch == 0 and trainer.progress.epoch == 1:
                raise Interrupted(15)

    trainer = make(tmp_path)
    trainer.fit()
    before = (tmp_path / "checkpoints" / "last.pt").stat().st_ino
    trainer.save_checkpoint(is_evaluated=False)
    assert (tmp_path / "checkpoints" / "last.pt").stat().st_ino == before


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_format_is_taken_or_refused_by_name():
    for name in ("fp32", "bf16"):
        assert resolve(name).type == name and resolve(name).scaler is None
    for name in ("tf32", "fp16"):
        with pytest.raises(InputError) as refused:
            resolve(name)
        said = f"precision={name}: needs a CUDA GPU, and the device is cpu; choices: fp32, bf16"
        assert str(refused.value) == said
    with pytest.raises(InputError) as refused:
        Precision("fp8")
    assert str(refused.value) == "precision.type=fp8: unknown; choices: fp32, tf32, bf16, fp16"
    asked = []
    for capability, allowed in (((8, 0), True), ((7, 5), False)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
            patched.setattr(torch.cuda, "get_device_name", lambda device: "Old One")
            patched.setattr("runner.train.precision.allow_tf32", lambda is_allowed: asked.append(is_allowed))
            asked.clear()
            for name in ("tf32", "bf16"):
                if allowed:
                    assert resolve(name, torch.device("cuda", 0)).type == name
                else:
                    with pytest.raises(InputError) as refused:
                        resolve(name, torch.device("cuda", 0))
                    assert str(refused.value) == (
                        f"precision={name}: Old One has no {name}, which came with compute capability 8.0"
                    )
            resolve("fp32", torch.device("cuda", 0))
            assert asked == [True, False, False]


def test_tf32_is_said_for_the_whole_process():
    said = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    before = [place.fp32_precision for place in said]
    try:
        for is_allowed, word in ((True, "tf32"), (False, "ieee")):
            allow_tf32(is_allowed)
            assert [place.fp32_precision for place in said] == [word] * 3
    finally:
        for place, word in zip(said, before, strict=True):
            place.fp32_precision = word


def test_outputs_of_short_formats_are_fp32_for_the_loss_and_all_else_is_left_alone():
    for dtype in (torch.bfloat16, torch.float16):
        assert as_fp32(torch.zeros(1, dtype=dtype)).dtype == torch.float32
    double = torch.zeros(1, dtype=torch.float64)
    assert as_fp32(double) is double and as_fp32("x") == "x"


def test_names_inside_a_task_are_the_users():
    assert [as_written(name) for name in ("model.0.weight", "criterion.scale", "other.x", "model")] == [
        *("0.weight", "loss.scale", "task.other.x", ""),
    ]


def test_on_a_cpu_a_loss_is_looked_at_as_soon_as_a_row_is_due():
    trainer = make(model=Broken(2), log_every=3)
    with pytest.raises(Diverged, match="batch 2 of 6"):
        trainer.fit()
    assert trainer.progress.batch == 3


def test_a_batch_is_cut_even_where_its_loss_is_a_mean_over_weights():
    """One piece after the other gives the whole batch's loss and gradient, whatever the sizes are."""
    torch.manual_seed(0)
    data, target = torch.randn(9, 5), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, -100])
    model, loss = nn.Linear(5, 3), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1]))
    found = []
    for count in (1, 2, 4):
        task = Supervised(model, loss)
        step = train_step(
            task, torch.optim.SGD(task.parameters(), lr=0.0), (data, target), StepOptions(accumulate=count)
        )
        found.append((step.loss.item(), float(step.size), model.weight.grad.clone(), model.bias.grad.clone()))
        assert torch.equal(step.targets, target) and step.outputs.shape == (9, 3)
    for other in found[1:]:
        assert other[:2] == pytest.approx(found[0][:2], rel=1e-5)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(other[2:], found[0][2:], strict=True))
    ignored = torch.full((9,), -100)
    task = Supervised(model, loss)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.0)
    assert math.isnan(train_step(task, optimizer, (data, ignored), StepOptions(accumulate=3)).loss.item())


def test_buffers_are_put_back_into_a_module_without_parameters():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", torch.zeros(2), persistent=False)

    bare = Bare()
    before = bare.kept
    load_buffers(bare, {"kept": torch.ones(2), "gone.away": torch.ones(1)})
    assert bare.kept is before and bare.kept.tolist() == [1, 1]
    value = torch.ones(3)
    load_buffers(bare, {"kept": value})
    assert bare.kept.tolist() == [1, 1, 1] and bare.kept is not value
    nested = nn.Sequential(nn.Sequential(Bare()))
    load_buffers(nested, {"0.0.kept": torch.ones(2)})
    assert nested[0][0].kept.tolist() == [1, 1]


def test_a_loss_is_the_mean_over_its_size_where_its_parts_say_so():
    output, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    mean = nn.functional.cross_entropy

    def by_output(output, target):
        return len(output)

    assert is_mean(mean, by_output, output, target)
    assert not is_mean(lambda o, t: mean(o, t, reduction="sum"), by_output, output, target)
    assert not is_mean(mean, lambda o, t: len(o) ** 2, output, target)
    assert is_mean(lambda o, t: mean(o, t) if len(o) > 1 else 1 / 0, by_output, output, target)  # it cannot be told
    assert is_mean(lambda o, t: torch.tensor(math.inf), by_output, output, target)
    for size in (3, 0, 2.5, torch.tensor(3.0)):
        check_size(size)
    for size in (-1, math.inf, math.nan, torch.zeros(2), "x", None):
        with pytest.raises(InputError, match=r"^loss: size\(output, target\) must give one number"):
            check_size(size)


def test_a_plain_function_with_settings_of_its_own_is_asked_for_none_of_them():
    class Plain:
        reduction = "sum"  # of its own meaning

        def __call__(self, output, target):
            return output.mean()

    assert size_of(Plain())(torch.zeros(3, 2), torch.zeros(3)) == 3
    module = nn.MSELoss(reduction="sum")
    with pytest.raises(InputError, match=r"loss.reduction=sum: does not give the mean over a batch"):
        size_of(module)


def test_each_short_format_is_the_one_that_is_computed_in():
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with Precision(name).autocast:
            assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == dtype
    with Precision("fp32").autocast:
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.float32


def test_a_batch_is_computed_in_as_many_pieces_as_were_asked_for():
    sizes = []
    model = nn.Linear(5, 3)
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    task = Supervised(model, NLL())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    for count, expected in ((1, [8]), (2, [4, 4]), (3, [3, 3, 2]), (9, [2, 2, 2, 2])):
        sizes.clear()
        train_step(task, optimizer, (torch.randn(8, 5), torch.arange(8) % 3), StepOptions(accumulate=count))
        assert sizes == expected


def test_attributes_that_no_checkpoint_holds_are_counted(tmp_path, caplog):
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(36, 4)
            self.one, self.two, self.three = 0, 0, 0

        def forward(self, x):
            self.one, self.two, self.three = self.one + 1, self.two + 1, self.three + 1
            return super().forward(x.flatten(1))

    make(tmp_path, epochs=2, model=Counting()).fit()
    (said,) = caplog.messages
    assert said.startswith("model.one (and 2 more) changes in training and is in no checkpoint")


def test_best_weights_beside_the_last_are_put_back_by_their_own_keys(tmp_path):
    trainer = make(tmp_path, epochs=2, checkpoints=Checkpoints(save="last"))
    trainer.fit()
    state = load(tmp_path / "checkpoints" / "last.pt")
    again = make(epochs=2)
    again.state.load_state_dict(state)
    assert "model_state_dict" in again.state.best_weights
    assert all(f"best_{key}" in state for key in again.state.best_weights)


def test_a_metric_that_the_scheduler_needs_is_named_by_its_key():
    trainer = make()
    schedule = Schedule(trainer.schedule.scheduler, monitor="val/none")
    with pytest.raises(InputError, match="^scheduler.monitor=val/none: is not logged"):
        trainer_module.Trainer(
            *(trainer.task, trainer.optimizer, schedule, trainer.train_loader, trainer.eval_loaders, ({}, {})),
            TrainingConfig(torch.device("cpu"), 1, 1, "val/loss", "min"),
        )
