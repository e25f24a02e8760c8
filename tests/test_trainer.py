"""The loop: what it computes, what it saves, and that a stopped run goes on with the same bits."""

import inspect
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import runner
from runner.batches.parts import Part
from runner.batches.settings import LoaderSettings
from runner.data import Fake
from runner.errors import Diverged, InputError, Interrupted
from runner.losses import NLL
from runner.metrics import Accuracy
from runner.processes import StopRequest
from runner.seeding import derive, seed_everything
from runner.storage.checkpoint import Checkpoints, load
from runner.tasks import Supervised
from runner.train.averaging import Averaging
from runner.train.events import Listeners
from runner.train.state import Schedule, TrainingConfig
from runner.train.steps import StepOptions, evaluate, train_step
from runner.train.trainer import Trainer

CPU = torch.device("cpu")
HOME = str(Path(runner.__file__).parent)
DATA = Fake(53, (1, 6, 6), 4)


def make(
    tmp_path=None,
    seed=3,
    epochs=3,
    model=None,
    lr=0.1,
    monitor="val/loss",
    mode="min",
    metrics=None,
    loss=None,
    **settings,
):
    """A Trainer of a small network with dropout on 43 + 10 examples; checkpoints where a path is given."""
    seed_everything(derive(seed, "model"))
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 4))
    loss = loss or NLL()
    task = Supervised(model, loss)
    optimizer = torch.optim.SGD(task.parameters(), lr=lr, momentum=0.9)
    loading = LoaderSettings(8, eval_batch_size=6)
    objects = {key: settings.pop(key) for key in ("listeners", "stop", "freezing", "averaging") if key in settings}
    checkpoints = settings.pop("checkpoints", None) or Checkpoints(save="all" if tmp_path else "none")
    if tmp_path:
        checkpoints.open(tmp_path / "checkpoints")
    return Trainer(
        task,
        optimizer,
        Schedule(StepLR(optimizer, 1, 0.5)),
        loading.training(Part(DATA, torch.arange(43)), (), seed, CPU, None),
        {"val": loading.evaluation(Part(DATA, torch.arange(43, 53)), seed, CPU, None)},
        metrics or ({"accuracy": Accuracy()}, {"accuracy": Accuracy()}),
        TrainingConfig(CPU, seed, epochs, monitor, mode, **settings),
        checkpoints,
        **objects,
    )


def rows_of(trainer):
    rows = []
    trainer.listeners.epoch.append(lambda end: rows.append({"epoch": end.progress.epoch, **end.metrics}))
    return rows


def assert_equal_states(left, right, path=""):
    """Bit for bit, through dicts and lists, naming what differs."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_equal_states(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal_states(a, b, f"{path}/{i}")
    else:
        assert left == right or (left != left and right != right), f"{path}: {left} != {right}"


def test_the_same_run_twice_gives_equal_tensors():
    first, second = make(), make()
    rows = rows_of(first), rows_of(second)
    first.fit(), second.fit()
    assert_equal_states(first.state.state_dict(), second.state.state_dict())
    assert rows[0] == rows[1]
    other = make(seed=4)
    other.fit()
    assert not torch.equal(other.task.model[1].weight, first.model[1].weight)


def test_an_epoch_is_the_plain_loop():
    trainer, by_hand = make(epochs=1), make(epochs=1)
    rows = rows_of(trainer)
    trainer.fit()
    model, optimizer, losses = by_hand.task.model, by_hand.optimizer, []
    seed_everything(derive(3, "epoch", 0))
    model.train()
    for data, target in by_hand.train_loader.batches(0):
        optimizer.zero_grad()
        loss = NLL()(model(data), target)
        loss.backward()
        optimizer.step()
        losses.append((loss.item(), len(target)))
    assert torch.equal(model[1].weight, trainer.task.model[1].weight)
    assert [n for _, n in losses] == [8, 8, 8, 8, 8, 3]  # the short batch counts per example
    assert rows[0]["train/loss"] == pytest.approx(sum(x * n for x, n in losses) / 43, rel=1e-12)
    assert rows[0]["lr"] == 0.1


class StopAfter(StopRequest):
    """Stops at the n-th look, in training or in evaluation."""

    def __init__(self, looks):
        self.looks = looks

    @property
    def signum(self):
        self.looks -= 1
        return 15 if self.looks <= 0 else None


@pytest.mark.parametrize("looks", [1, 4, 5, 6, 7, 8, 9, 13, 16, 23, 24])
def test_a_stopped_and_resumed_run_is_the_run_that_never_stopped(tmp_path, looks):
    whole = make(tmp_path / "whole")
    expected = rows_of(whole)
    whole.fit()
    stopped = make(tmp_path / "stopped", stop=StopAfter(looks))
    before = rows_of(stopped)
    with pytest.raises(Interrupted):
        stopped.fit()
    torch.rand(7)  # whatever happens to the generators in between
    resumed = make(tmp_path / "stopped")
    after = rows_of(resumed)
    resumed.state.load_state_dict(load(tmp_path / "stopped" / "checkpoints" / "last.pt"))
    resumed.fit()
    assert before + after == expected
    for name in ("last", "best"):
        assert_equal_states(
            load(tmp_path / "whole" / "checkpoints" / f"{name}.pt"),
            load(tmp_path / "stopped" / "checkpoints" / f"{name}.pt"),
            name,
        )


def test_saves_inside_an_epoch_change_nothing(tmp_path):
    plain, saving = make(tmp_path / "a"), make(tmp_path / "b", checkpoints=Checkpoints(every_batches=2))
    plain.fit(), saving.fit()
    assert_equal_states(plain.state.state_dict(), saving.state.state_dict())


def test_a_nan_never_becomes_the_best():
    class Odd(Accuracy):
        def __init__(self, values):
            super().__init__()
            self.values = values

        def compute(self):
            return self.values.pop(0)

    odd = ({"odd": Odd([0.0] * 4)}, {"odd": Odd([math.nan, 0.25, math.nan, 0.5])})
    trainer = make(epochs=4, monitor="val/odd", mode="max", metrics=odd)
    best = []
    trainer.listeners.epoch.append(lambda end: best.append((end.is_best, end.progress.best_epoch)))
    trainer.fit()
    assert best == [(False, None), (True, 2), (False, 2), (True, 4)]


class Explodes(nn.Module):
    """A linear model whose output is infinite from its n-th training batch on."""

    def __init__(self, n):
        super().__init__()
        self.linear, self.n = nn.Linear(36, 4), n

    def forward(self, x):
        self.n -= self.training
        return self.linear(x.flatten(1)) * (math.nan if self.training and self.n < 0 else 1.0)


@pytest.mark.parametrize("log_every", [0, 1, 10])
def test_a_non_finite_loss_names_epoch_and_batch_and_keeps_the_last_good_checkpoint(tmp_path, log_every):
    trainer = make(tmp_path, model=Explodes(6 + 2), log_every=log_every)
    with pytest.raises(Diverged, match="epoch 2, batch 3 of 6"):
        trainer.fit()
    state = load(tmp_path / "checkpoints" / "last.pt")
    assert state["epoch"] == 1
    assert all(t.isfinite().all() for t in state["model_state_dict"].values())


def test_a_parameter_that_is_not_finite_is_never_saved(tmp_path):
    trainer = make(tmp_path)

    def explode(progress, num_batches):
        if progress.batch == num_batches:  # after the last loss
            trainer.task.model[1].weight.data.fill_(math.inf)

    trainer.listeners.batch.append(explode)
    with pytest.raises(Diverged, match="1.weight is not finite in epoch 1, after batch 6 of 6"):
        trainer.fit()
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


def test_modes_are_restored_layer_by_layer():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 4))
    model.train()
    model[1].eval()
    trainer = make(model=model)
    evaluate(Supervised(model, NLL()), trainer.eval_loaders["val"], {}, CPU, StepOptions(), 1)
    assert (model.training, model[1].training, model[2].training) == (True, False, True)


def test_evaluation_leaves_the_generators_alone():
    trainer = make()
    trainer.model.register_forward_hook(lambda model, inputs, output: output + torch.rand(()))  # it draws in evaluation
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    trainer.evaluate()
    assert torch.equal(torch.rand(2), expected)


def test_the_test_is_made_on_the_best_and_on_the_last_weights(tmp_path):
    trainer = make(tmp_path, epochs=3, lr=0.5, mode="max")  # the loss falls: the first is the "best"
    seen = []
    trainer.listeners.epoch.append(lambda end: seen.append(end.metrics))
    trainer.fit()
    assert trainer.progress.best_epoch < 3, "the best must not be the last, or nothing has to be put back"
    last = {k: v.clone() for k, v in trainer.task.model.state_dict().items()}
    results = trainer.test(trainer.eval_loaders["val"])
    best = seen[trainer.progress.best_epoch - 1]
    assert results["best"] == {"loss": best["val/loss"], "accuracy": best["val/accuracy"]}
    assert results["last"] == {"loss": seen[-1]["val/loss"], "accuracy": seen[-1]["val/accuracy"]}
    assert_equal_states(last, dict(trainer.task.model.state_dict()))


def test_the_best_weights_are_there_without_best_pt():
    kept = make(epochs=4, lr=0.5)
    seen = []
    kept.listeners.epoch.append(lambda end: seen.append({k: v.clone() for k, v in kept.model.state_dict().items()}))
    kept.fit()
    assert_equal_states(dict(kept.load_best_weights()["model_state_dict"]), seen[kept.progress.best_epoch - 1])


def test_a_metric_without_a_state_is_refused_where_it_would_have_to_be_saved(tmp_path):
    class Bare:
        def update(self, output, target): ...
        def compute(self):
            return 1.0

        def reset(self): ...

    with pytest.raises(InputError, match="metrics.bare"):
        make(tmp_path, metrics=({"bare": Bare()}, {"bare": Bare()}), checkpoints=Checkpoints(every_batches=1))
    make(tmp_path, metrics=({"bare": Bare()}, {"bare": Bare()})).fit()


def test_a_torchmetrics_metric_just_works_and_resumes(tmp_path):
    torchmetrics = pytest.importorskip("torchmetrics", reason="the optional extra [metrics]")
    from runner.metrics import prepare

    def metrics():
        return tuple(
            {"f1": prepare(torchmetrics.classification.MulticlassF1Score(4), CPU), "accuracy": Accuracy()}
            for _ in range(2)
        )

    whole = make(metrics=metrics())
    expected = rows_of(whole)
    whole.fit()
    assert 0 < expected[-1]["val/f1"] <= 1
    for looks in (3, 7):  # in training; in evaluation, after the last batch
        stopped = make(tmp_path / str(looks), metrics=metrics(), stop=StopAfter(looks))
        with pytest.raises(Interrupted):
            stopped.fit()
        resumed = make(tmp_path / str(looks), metrics=metrics())
        after = rows_of(resumed)
        resumed.state.load_state_dict(load(tmp_path / str(looks) / "checkpoints" / "last.pt"))
        resumed.fit()
        assert after == expected


def test_step_rows_hold_the_mean_loss_since_the_last_one():
    rows = []
    trainer = make(epochs=1, log_every=2, listeners=Listeners(steps=[rows.append]))
    trainer.fit()
    loss = trainer.state.loss
    losses, sizes = loss.values(0, 6)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[2]["train/loss"] == float((losses[4:] * sizes[4:]).sum() / 11)


def test_train_step_gives_detached_results():
    trainer = make()
    batch = next(iter(trainer.train_loader.batches(0)))
    step = train_step(trainer.task, trainer.optimizer, batch, StepOptions())
    assert not step.outputs.requires_grad and not step.loss.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"monitor": "val/foo"},
            r"trainer.monitor=val/foo: is not logged; did you mean val/loss\? choices: train/loss",
        ),
        ({"mode": "best"}, "mode=best"),
        ({"epochs": 0}, "epochs=0"),
        ({"log_every": -1}, "log_every=-1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_at_most_three_frames_of_ours_stand_between_fit_and_a_models_forward(accumulate):
    """While it trains, in pieces too, is evaluated, and is taken through an epoch for an average's norms."""
    seen = set()

    class Looking(torch.nn.Sequential):
        def forward(self, x):
            files = [(frame.filename, frame.function) for frame in inspect.stack()]
            ours = [name for file, name in files if file.startswith(HOME)]
            seen.add(tuple(ours[: ours.index("fit")]))
            return super().forward(x.flatten(1))

    model = Looking(torch.nn.BatchNorm1d(36), torch.nn.Linear(36, 4))
    trainer = make(model=model, step=StepOptions(accumulate=accumulate))
    trainer.averaging = trainer.state.averaging = Averaging(trainer.task, "swa", start=1, epochs=trainer.config.epochs)
    trainer.fit()
    training, evaluating = ("forward", "train_step", "train_interval"), ("forward", "evaluate", "evaluate")
    assert seen == {training, evaluating, ("forward", "count_statistics", "evaluate")}


def test_a_stop_in_an_epochs_short_last_batch_leaves_a_throughput_that_is_true(tmp_path):
    whole = make(tmp_path / "whole")
    with pytest.raises(Interrupted):
        make(tmp_path / "stopped", stop=StopAfter(6)).fit()  # before the evaluation: 43 examples are 5 x 8 + 3
    state = load(tmp_path / "stopped" / "checkpoints" / "last.pt")
    assert (state["progress"]["step"], state["progress"]["evaluated"]) == (6, 0)
    resumed, ends = make(tmp_path / "stopped"), []
    resumed.state.load_state_dict(state)
    resumed.listeners.epoch.append(ends.append)
    resumed.fit(), whole.fit()
    trained = state["running"]["seconds"] - state["running"]["eval_seconds"]
    assert 0 < ends[0].examples_per_second <= 43 / trained and ends[0].seconds >= state["running"]["seconds"] > 0
    assert_equal_states(whole.state.state_dict(), resumed.state.state_dict())


def test_time_before_a_stop_inside_an_interval_counts_for_the_rest_of_the_run(tmp_path):
    stops = (2, 3, 4, 3)  # inside the first epoch, at its end, ...
    used, saved = 0.0, None
    for after in stops:
        trainer = make(tmp_path, stop=StopAfter(after))
        if saved is not None:
            trainer.state.load_state_dict(saved)
            assert trainer.state.seconds >= used * 0.999
        with pytest.raises(Interrupted):
            trainer.fit()
        saved = load(tmp_path / "checkpoints" / "last.pt")
        if saved["progress"]["step"] != saved["progress"]["evaluated"]:
            used = saved["running"]["seconds"]
            assert 0 < used <= trainer.seconds_used


@pytest.mark.parametrize(("every", "evaluate_every"), [(2, 18), (1, 12), (3, 4), (2, 5)])
def test_every_nth_epoch_is_saved_whether_it_is_evaluated_or_not(tmp_path, every, evaluate_every):
    settings = {"epochs": 6, "eval_every": evaluate_every}
    whole = make(tmp_path / "whole", checkpoints=Checkpoints(every=every), **settings)
    whole.fit()
    files = {path.stem: path for path in (tmp_path / "whole" / "checkpoints").glob("epoch_*.pt")}
    assert sorted(files) == [f"epoch_{epoch:04d}" for epoch in range(every, 7, every)]
    for name, path in files.items():  # each leads to the same end
        state, other = load(path), make(**settings)
        assert f"epoch_{state['epoch']:04d}" == name and state["progress"]["batch"] == 0
        other.state.load_state_dict(state)
        other.fit()
        assert_equal_states(dict(whole.task.state_dict()), dict(other.task.state_dict()))
        assert other.state.rows == whole.state.rows


class Noting(torch.utils.data.Dataset):
    """Writes down which process gave which example."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()} {index}\n")
        return DATA[index]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("average", ["none", "swa"])
def test_loader_workers_live_on_while_the_run_is_evaluated_inside_an_epoch(tmp_path, persistent, average):
    def trained(workers, evaluate_every):
        path = tmp_path / f"{workers}-{evaluate_every}"
        loading = LoaderSettings(8, num_workers=workers, persistent_workers=bool(workers) and persistent)
        seed_everything(3)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(36), torch.nn.Linear(36, 4))
        trainer = make(epochs=2, model=model, eval_every=evaluate_every)
        trainer.train_loader = loading.training(Part(Noting(path), torch.arange(43)), (), 3, CPU, None)
        if average == "swa":
            trainer.averaging = trainer.state.averaging = Averaging(trainer.task, "swa", start=1, epochs=2)
        try:
            trainer.fit()
        finally:
            trainer.train_loader.close()
        return trainer, len({line.split()[0] for line in path.read_text().splitlines()})

    (by_hand, _), (trainer, processes) = trained(0, 2), trained(1, 2)
    assert_equal_states(by_hand.state.state_dict(), trainer.state.state_dict())
    if average == "none":  # SWA's norms ask the same workers in between
        assert processes == (1 if persistent else 2)  # an epoch's
