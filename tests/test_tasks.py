"""What is done with a batch: the tasks in the box, tasks from outside, nested batches, and what is no task."""

import copy
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

import runner
from conftest import killed_after
from runner.cli import evaluate as evaluate_verb
from runner.errors import InputError
from runner.job.resuming import resume
from runner.metrics import R2, MeanAbsoluteError, Perplexity
from runner.models import GPT, Autoencoder
from runner.tasks import Auxiliary, Distillation, MixUp, NextToken, Reconstruction, Step, Supervised

FAST = ["device=cpu", "device.threads=1", "quiet=true"]
SMALL = ["model=mlp", "model.hidden=[8]"]


@dataclasses.dataclass
class Two:
    """A batch of pairs of images, and whether both are of one class."""

    images: dict
    is_same: torch.Tensor
    names: list


def collate(samples):
    first, second = (torch.stack([sample[i]["image"] for sample in samples]) for i in (0, 1))
    same = torch.tensor([float(a["label"] == b["label"]) for a, b in samples])
    return Two({"first": first, "second": (second,)}, same, [a["name"] for a, _ in samples])


class Pairs(Dataset):
    """Nested samples: two dicts."""

    def __init__(self, size=60):
        self.size = size
        self.images = torch.randn(size, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return self.sample(i), self.sample(i * 7 % 60)

    def sample(self, i):
        image = self.images[i]
        return {"image": image + torch.rand(6), "label": int(image[0] > 0), "name": f"number {i}"}


class Siamese(nn.Module):
    """A contrastive task with a margin that is trained, a queue, and a count: state of its own."""

    def __init__(self, model, margin=5.0):
        super().__init__()
        self.model = model
        self.margin = nn.Parameter(torch.tensor(float(margin)))
        self.register_buffer("queue", torch.zeros(16))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, batch):
        assert isinstance(batch, Two) and len(batch.names) == len(batch.is_same)
        first, second = self.model(batch.images["first"]), self.model(batch.images["second"][0])
        distance = (first - second).square().sum(1).sqrt()
        apart = F.relu(self.margin - distance)
        loss = (batch.is_same * distance.square() + (1 - batch.is_same) * apart.square()).mean()
        if self.training:
            self.queue[int(self.at) % 16] = loss.detach() + torch.rand(())
            self.at += 1
            loss = loss + 0.01 * self.queue.mean()
        return Step(loss, len(distance), {"distance": distance}, (batch.is_same,))


class Near:
    """A metric of nested outputs and targets."""

    higher_is_better = True

    def __init__(self):
        self.reset()

    def update(self, outputs, targets):
        (is_same,) = targets
        self.right += int(((outputs["distance"] < 0.5) == (is_same > 0.5)).sum())
        self.count += len(is_same)

    def compute(self):
        return self.right / self.count

    def reset(self):
        self.right = self.count = 0

    def state_dict(self):
        return {"right": self.right, "count": self.count}

    def load_state_dict(self, state):
        self.right, self.count = state["right"], state["count"]


NESTED = [
    *("~metrics.accuracy", "loss=none", "dataset.input_shape=[6]", "dataset.num_classes=4", "trainer.epochs=3"),
    *(
        f"dataset.train={{_target_: {__name__}.Pairs}}",
        "dataset.augment=[]",
        *(f"~dataset.{key}" for key in ("train.mean", "train.std", "mean", "std")),
    ),
    *(f"task._target_={__name__}.Siamese", f"+metrics.near._target_={__name__}.Near", "trainer.monitor=val/near"),
    *(f"dataloader.{key}={{_target_: {__name__}.collate}}" for key in ("collate_fn", "eval_collate_fn")),
    *(*FAST, *SMALL, "dataloader.batch_size=7", "checkpoint.every_batches=2", "optimizer=sgd"),
]
BOX = {
    "mixup": ["experiment=digits_mixup", "task.cutmix=1.0", *SMALL, "dataset.val_size=0.6", "trainer.epochs=2"],
    "diabetes": ["experiment=diabetes", "trainer.epochs=3"],
    "text": [
        "experiment=text_gpt",
        "dataset.context=16",
        "model.width=8",
        "trainer.epochs=1",
        "trainer.limit_batches=9",
    ],
    "autoencoder": ["experiment=digits_autoencoder", "dataset.val_size=0.6", "trainer.epochs=2"],
    "nested": NESTED,
    "nested, accumulated": [*NESTED, "trainer.accumulate=7", "dataloader.batch_size=14"],
}
BOX = {name: [*words, *FAST, "checkpoint.every_batches=1"] for name, words in BOX.items()}


def final(path):
    state = torch.load(Path(path, "checkpoints/last.pt"), weights_only=False)
    rows = Path(path, "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(row).items() if "second" not in k} for row in rows]
    return {key: state[key] for key in state if key not in ("config", "run_id", "config_digest", "rows")}, rows


def assert_equal(one, two):
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one.nan_to_num(), two.nan_to_num())
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_equal(a, b)
    else:
        assert one == two or one != one


@pytest.mark.parametrize("name", BOX)
def test_a_killed_and_resumed_run_of_each_task_is_the_run_that_was_not(name, monkeypatch):
    words = BOX[name]
    record = runner.run(words, run_dir="whole")
    assert record["state"] == "done"
    killed_after(5, monkeypatch, lambda: runner.run(words, run_dir="killed"))
    resumed = resume(Path("killed"), ["dataloader.num_workers=1"] if "nested" in name else [])
    assert resumed["resumed"][0]["batch"] > 0  # inside an epoch
    assert_equal(final("whole"), final("killed"))


def test_own_state_and_parameters_of_a_task_are_in_the_checkpoint():
    runner.run(NESTED, run_dir="run")
    state = torch.load("run/checkpoints/last.pt", weights_only=False)
    assert set(state["task_state_dict"]) == {"margin", "queue"} and float(state["task_state_dict"]["margin"]) != 5.0
    assert set(state["unsaved_buffers"]) == {"at"} and not any("margin" in key for key in state["model_state_dict"])
    assert [len(group["params"]) for group in state["optimizer_state_dict"]["param_groups"]] == [5]
    assert isinstance(runner.load_model("run"), nn.Module)


def test_accumulated_nested_batches_take_the_same_steps():
    one = runner.run([*NESTED, "trainer.epochs=1", "dataloader.batch_size=14", "task._target_=" + f"{__name__}.Plain"])
    two = [*NESTED, "trainer.epochs=1", "dataloader.batch_size=14", "trainer.accumulate=7"]
    two = runner.run([*two, "task._target_=" + f"{__name__}.Plain"])
    assert one["last"]["train/loss"] == pytest.approx(two["last"]["train/loss"], rel=1e-4)
    assert one["last"]["train/near"] == two["last"]["train/near"]


class Plain(Siamese):
    """Without what depends on the number of calls."""

    def forward(self, batch):
        self.train(False)
        return super().forward(batch)

    def train(self, mode=True):
        return super().train(False)


# --- the tasks in the box


def test_mixup_mixes_the_training_part_only():
    task = MixUp(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), nn.CrossEntropyLoss(), num_classes=3, mixup=1.0, cutmix=1.0
    )
    batch = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    torch.manual_seed(1)
    steps = [task.train()(batch) for _ in range(8)]
    assert len({float(step.loss.detach()) for step in steps}) == 8
    assert all(step.targets.shape == (8,) and step.size == 8 for step in steps)
    expected = Supervised(task.model, task.criterion)(batch)
    assert torch.equal(task.eval()(batch).loss, expected.loss)
    torch.manual_seed(1)
    assert torch.equal(task.train()(batch).loss, steps[0].loss)  # it draws from the global generator


@pytest.mark.parametrize("given", [{"mixup": 0}, {"mixup": -1.0}, {"cutmix": -0.1}])
def test_mixup_without_a_share_is_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        MixUp(nn.Linear(2, 2), nn.CrossEntropyLoss(), num_classes=2, **given)


def test_next_token_is_a_mean_over_tokens_and_writes_what_the_seed_says():
    class Words:
        classes = "abc"

    torch.manual_seed(0)
    model = GPT(3, context=4, width=8, heads=2)
    task = NextToken(model, nn.CrossEntropyLoss(), dataset=Words(), sample_length=9)
    tokens, following = torch.randint(3, (5, 4)), torch.randint(3, (5, 4))
    following[0, 2:] = -100
    step = task((tokens, following))
    assert float(step.size) == 18 and step.outputs.shape == (20, 3)
    assert torch.equal(step.loss, F.cross_entropy(model(tokens).flatten(0, 1), following.flatten()))
    torch.manual_seed(3)
    text = task.sample()
    torch.manual_seed(3)
    assert task.sample() == text and len(text) == 10 and set(text) <= set("abc")
    assert NextToken(model, nn.CrossEntropyLoss()).sample() is None


def test_a_gpt_sees_only_what_came_before():
    torch.manual_seed(0)
    model = GPT(7, context=6, width=8, heads=2, depth=2).eval()
    tokens = torch.randint(7, (2, 6))
    other = tokens.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 7
    one, two = model(tokens), model(other)
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4:], two[:, 4:])
    with pytest.raises(ValueError, match="more than the model's context=6"):
        model(torch.zeros(1, 7, dtype=torch.int64))


def test_reconstruction_needs_no_label():
    task = Reconstruction(Autoencoder((1, 2, 2), (3,), 2), nn.MSELoss())
    data = torch.randn(5, 1, 2, 2)
    steps = [task(batch) for batch in (data, (data, torch.arange(5)), [data])]
    assert all(torch.equal(step.loss, steps[0].loss) and step.size == 20 for step in steps)
    assert torch.equal(steps[0].targets, data) and steps[0].outputs.shape == data.shape


def test_distillation_is_the_weighted_sum_in_training_and_the_loss_alone_in_evaluation():
    torch.manual_seed(0)
    teacher, model = nn.Linear(4, 3), nn.Linear(4, 3)
    before = copy.deepcopy(teacher.state_dict())
    task = Distillation(model, nn.CrossEntropyLoss(), teacher, temperature=2.0, weight=0.25).train()
    data, target = torch.randn(6, 4), torch.arange(6) % 3
    loss = task((data, target)).loss
    soft, wanted = (F.softmax(scores / 2, 1) for scores in (model(data), teacher(data)))
    divergence = (wanted * (wanted / soft).log()).sum(1).mean() * 4
    torch.testing.assert_close(loss, 0.25 * divergence + 0.75 * F.cross_entropy(model(data), target))
    loss.backward()
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    assert_equal(dict(before), dict(teacher.state_dict()))
    torch.testing.assert_close(task.eval()((data, target)).loss, F.cross_entropy(model(data), target))


def test_a_distilled_run_keeps_the_teacher_that_it_began_with():
    small = [*FAST, *SMALL, "dataset.val_size=0.6", "trainer.epochs=1"]
    runner.run(small, run_dir="teacher")
    words = [*small, "experiment=digits_distilled", "task.teacher=teacher", "trainer.epochs=1", "scheduler=constant"]
    runner.run(words, run_dir="student")
    state = torch.load("student/checkpoints/last.pt", weights_only=False)
    teacher = torch.load("teacher/checkpoints/best.pt", weights_only=False)["model_state_dict"]
    kept = {k.removeprefix("teacher."): v for k, v in state["task_state_dict"].items()}
    assert_equal(dict(kept), dict(teacher))
    runner.run([*small, "seed=9"], run_dir="another")
    os.rename("teacher", "old")
    os.rename("another", "teacher")
    resume(Path("student"), ["trainer.epochs=2"])
    state = torch.load("student/checkpoints/last.pt", weights_only=False)
    assert_equal(kept, {k.removeprefix("teacher."): v for k, v in state["task_state_dict"].items()})


# --- graphs: a batch whose tensors have other lengths than it has examples


class Graphs(Dataset):
    """Graphs of 2 to 5 nodes; the label is whether their first feature is above 0 in the mean."""

    is_deterministic, classes, SIZE = True, ["below", "above"], 60

    def __len__(self):
        return self.SIZE

    def __getitem__(self, i):
        nodes = torch.randn(2 + i % 4, 6, generator=torch.Generator().manual_seed(i))
        return nodes, int(nodes[:, 0].mean() > 0)


class GraphBatch:
    """A batch of a library's own class, that moves itself."""

    def __init__(self, x, graph, y):
        self.x, self.graph, self.y = x, graph, y

    def to(self, device):
        return self


def graphs_as_dict(samples):
    graph = torch.cat([torch.full((len(nodes),), i) for i, (nodes, _) in enumerate(samples)])
    labels = torch.tensor([label for _, label in samples])
    return {"x": torch.cat([nodes for nodes, _ in samples]), "graph": graph, "y": labels}


def graphs_as_object(samples):
    return GraphBatch(**graphs_as_dict(samples))


class OfGraphs(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        x, graph, y = (batch[k] if isinstance(batch, dict) else getattr(batch, k) for k in ("x", "graph", "y"))
        count = torch.bincount(graph, minlength=len(y)).unsqueeze(1)
        scores = self.model(torch.zeros(len(y), 6).index_add(0, graph, x) / count)
        return Step(F.cross_entropy(scores, y), len(y), scores, y)


@pytest.mark.parametrize("collated", ["graphs_as_dict", "graphs_as_object"])
def test_graphs_have_a_matrix_whose_mistakes_are_named_by_the_graph(collated, capsys):
    words = [word for word in NESTED if "Siamese" not in word and "near" not in word and "collate" not in word]
    words = [word.replace(f"{__name__}.Pairs", f"{__name__}.Graphs") for word in words if word != "~metrics.accuracy"]
    words += [f"dataloader.{key}={{_target_: {__name__}.{collated}}}" for key in ("collate_fn", "eval_collate_fn")]
    words += [f"task._target_={__name__}.OfGraphs", "dataset.num_classes=2", "trainer.epochs=1"]
    words += [f"+listeners.told={{_target_: {__name__}.Confused}}"]
    Confused.told.clear()
    runner.run([word for word in words if "every_batches" not in word], run_dir="run")
    evaluate_verb.main(evaluate_verb.parser().parse_args(["run", "--confusion"]))
    said = capsys.readouterr().out
    assert said.count(" of ") >= 3 and "below" in said
    graphs = Graphs()
    mistakes = [line.split() for line in said.partition("worst mistakes")[2].splitlines()[1:]]
    assert mistakes
    for _, example, _, target, *_ in mistakes:
        assert graphs.classes[graphs[int(example.strip(":"))][1]] == target
    (matrix,) = Confused.told
    assert sum(map(sum, matrix["counts"])) == 12


class Confused:
    told: list = []  # noqa: RUF012

    def confusion(self, found):
        self.told.append(found)


# --- models with auxiliary outputs


class Scores(NamedTuple):
    logits: torch.Tensor
    aux_logits2: torch.Tensor
    aux_logits1: torch.Tensor


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden_states: tuple
    aux_logits: torch.Tensor


class WithHeads(nn.Module):
    """One layer; in training (and for `dict` in evaluation too) two further ones, as `kind`."""

    def __init__(self, num_classes, kind="namedtuple"):
        super().__init__()
        self.layers, self.kind = nn.ModuleList(nn.Linear(64, num_classes) for _ in range(3)), kind

    def forward(self, x):
        own, two, one = (layer(x.flatten(1)) for layer in self.layers)
        if self.kind == "dict":
            return {"out": own, "aux": two}
        if not self.training:
            return own
        named = {"namedtuple": Scores(own, two, one), "dataclass": Output(own, (x,), two)}
        return {**named, "tuple": (own, two), "nested": (own, [two, one]), "same": own}[self.kind]


def with_heads(kind, *words):
    model = f"+model={{_target_: {__name__}.WithHeads, num_classes: 10, kind: {kind}}}"
    return [*FAST, "~model", model, "trainer.epochs=2", "optimizer=sgd", *words]


@pytest.mark.parametrize("kind", ["namedtuple", "tuple", "dict"])
def test_a_model_that_gives_more_while_it_trains_is_refused_before_training_with_what_to_type(kind):
    with pytest.raises(InputError, match="^model: .* in train mode; task=auxiliary"):
        runner.run(with_heads(kind), run_dir="run")
    assert not Path("run/run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["namedtuple", "tuple", "nested", "dict", "dataclass", "same"])
def test_auxiliary_outputs_are_trained_with_their_weight_and_not_evaluated(kind):
    record = runner.run(with_heads(kind, "task=auxiliary", "task.weight=0.4"), run_dir="run")
    assert record["state"] == "done" and record["test"]["last"]["accuracy"] > 0.5
    torch.manual_seed(0)
    task = Auxiliary(WithHeads(10, kind), nn.CrossEntropyLoss(), weight=0.4).train()
    batch = torch.randn(5, 1, 8, 8), torch.arange(5)
    own, two, one = (F.cross_entropy(layer(batch[0].flatten(1)), batch[1]) for layer in task.model.layers)
    further = {"namedtuple": two + one, "nested": two + one, "same": torch.zeros(())}.get(kind, two)
    torch.testing.assert_close(task(batch).loss, own + 0.4 * further)
    assert torch.equal(task.eval()(batch).loss, own) and task(batch).outputs.shape == (5, 10)


def test_each_auxiliary_output_has_its_weight():
    model, batch = WithHeads(10), (torch.randn(5, 1, 8, 8), torch.arange(5))
    own, two, one = (F.cross_entropy(layer(batch[0].flatten(1)), batch[1]) for layer in model.layers)
    for weights in ([0.2, 0.7], {"aux_logits1": 0.7, "aux_logits2": 0.2}):
        loss = Auxiliary(model, nn.CrossEntropyLoss(), weights=weights).train()(batch).loss
        torch.testing.assert_close(loss, own + 0.2 * two + 0.7 * one)
    for wrong in ("[0.2]", "{aux_logits3: 1.0}"):
        with pytest.raises(InputError, match=r"task.weights=.*aux_logits2, aux_logits1"):
            runner.run(with_heads("namedtuple", "task=auxiliary", f"task.weights={wrong}"), run_dir="run")


def test_a_model_that_breaks_in_train_mode_only_is_refused_before_training():
    for name in ("Doubled", "InPlaceModel"):
        with pytest.raises(InputError, match="^model: "):
            runner.run([*FAST, "~model", f"+model={{_target_: {__name__}.{name}}}"], run_dir="run")
        assert not Path("run/run.json").exists()


class Doubled(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        return super().forward(x.flatten(1).repeat(1, 2) if self.training else x.flatten(1))


class InPlaceModel(nn.Linear):
    """Changes in train mode what the gradient needs, which torch says only when it goes back."""

    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        scores = super().forward(x.flatten(1)).exp()
        return scores.add_(1) if self.training else scores


@pytest.mark.slow
def test_torchvisions_models_with_auxiliary_outputs_train():
    data = ["dataset=fake", "dataset.input_shape=[3,64,64]", "dataset.train_size=8", "dataset.eval_size=4"]
    data += ["dataset.val_size=4", "dataloader.batch_size=2", "trainer.dry_run=true", "~model", *FAST]
    googlenet = "{_target_: torchvision.models.googlenet, num_classes: 10, aux_logits: true, init_weights: false}"
    runner.run([*data, f"+model={googlenet}", "task=auxiliary"], run_dir="googlenet")
    assert Path("googlenet/run.json").exists()


# --- metrics


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_metrics_of_regression_and_language_are_those_of_the_whole(pieces):
    torch.manual_seed(0)
    output, target = torch.randn(20, 1), torch.randn(20, 1) + 5
    mae, r2 = MeanAbsoluteError(scale=2.0), R2()
    for a, b in zip(output.tensor_split(pieces), target.tensor_split(pieces), strict=True):
        mae.update(a, b)
        r2.update(a, b)
    assert mae.compute() == pytest.approx(float((output - target).abs().mean()) * 2, rel=1e-6)
    wanted = 1 - float((output - target).square().sum() / (target - target.mean()).square().sum())
    assert r2.compute() == pytest.approx(wanted, rel=1e-5)
    scores, classes = torch.randn(20, 4), torch.randint(4, (20,))
    classes[3] = -100
    perplexity = Perplexity()
    for a, b in zip(scores.tensor_split(pieces), classes.tensor_split(pieces), strict=True):
        perplexity.update(a, b)
    assert perplexity.compute() == pytest.approx(math.exp(F.cross_entropy(scores, classes)), rel=1e-5)
    for metric in (mae, r2, perplexity):
        value, state = metric.compute(), metric.state_dict()
        metric.reset()
        assert math.isnan(metric.compute())
        metric.load_state_dict(state)
        assert metric.compute() == value


@pytest.mark.parametrize("metric", [MeanAbsoluteError(), R2()])
def test_shapes_that_torch_would_spread_are_refused(metric):
    with pytest.raises(InputError, match=r"one shape; got \[4\] and \[4, 1\]"):
        metric.update(torch.ones(4), torch.ones(4, 1))


# --- what is no task


class Wrong(nn.Module):
    def __init__(self, model, kind="", gives="step"):
        super().__init__()
        self.model, self.gives = model, gives

    def forward(self, batch):
        loss = self.model(batch[0]).mean()
        wrong = {
            "loss": loss,
            "pair": (loss, 3),
            "vector": Step(loss.expand(2), 3),
            "integer": Step(torch.tensor(3), 3),
            "number": Step(3.0, 3),
            "no size": Step(loss, None),
            "negative": Step(loss, -1),
            "not-a-number": Step(loss, float("nan")),
            "detached": Step(loss.detach(), 3),
            "train only": Step(loss, 3) if self.training else None,
            "no outputs": Step(loss, 3),
        }
        return wrong[self.gives]


class InPlace(Wrong):
    """Changes what the gradient needs, which torch says only when it goes back."""

    def __init__(self, model):
        super().__init__(model)
        self.register_buffer("queue", torch.ones(10))

    def forward(self, batch):
        loss = (self.model(batch[0]) * self.queue).sum()
        self.queue += 1
        return Step(loss, 2)


class NoModel(nn.Module):
    def __init__(self, size=3):
        super().__init__()


class LosesModel(nn.Module):
    def __init__(self, model):
        super().__init__()


class Raises(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        raise KeyError("image")


def own(name, **keys):
    return [*(f"+task.{key}={value}" for key, value in keys.items()), f"task._target_={__name__}.{name}", "loss=none"]


BAD = [
    (own("Wrong", gives="loss"), r"must give a runner.tasks.Step\(loss, size, outputs, targets\), got Tensor in train"),
    (own("Wrong", gives="pair"), "got tuple in train mode"),
    (own("Wrong", gives="train only"), "got NoneType in eval mode"),
    (own("Wrong", gives="vector"), r"Step.loss must be one number.*got torch.float32 \[2\]"),
    (own("Wrong", gives="integer"), "Step.loss must be one number"),
    (own("Wrong", gives="number"), "Step.loss must be one number.*got 3.0"),
    (own("Wrong", gives="'no size'"), "Step.size must be one number.*got None"),
    (own("Wrong", gives="negative"), "Step.size must be one number.*got -1"),
    (own("Wrong", gives="not-a-number"), "Step.size must be one number.*got nan"),
    (own("Wrong", gives="detached"), "Step.loss has no gradient"),
    (own("Wrong", gives="'no outputs'"), "metrics.accuracy"),
    (own("NoModel"), "task: .*NoModel must take the model, as its argument `model`"),
    (own("LosesModel"), "task: .*LosesModel must keep the model, as self.model"),
    (own("Raises"), "task: .*Raises: KeyError: 'image'"),
    (own("InPlace"), "task: .*InPlace: .*modified by an inplace operation"),
    (own("Nowhere"), "task._target_=.*Nowhere: cannot be imported"),
    (own("Wrong", colour="red"), "task.colour: .*takes no such argument"),
    (["task._target_=torch.nn.Linear"], "task._target_=torch.nn.Linear"),
    (["task=nothing"], "task"),
    (["task=null"], "task=null: a run needs the group task"),
    (["loss=none"], "loss=none: runner.tasks.Supervised needs a loss"),
    (["task=mixup"], "the loss is runner.losses.NLL"),
    (["task=mixup", "loss=cross_entropy", "task.mixup=-1"], "task.mixup=-1"),
    (["task=mixup", "loss=cross_entropy", "task.mixup=abc"], "task.mixup=abc"),
    (["task=next_token"], "task: .*NextToken.* takes tokens"),
    (["task=reconstruction", "~metrics.accuracy", "trainer.monitor=val/loss"], "the loss is"),
    (["task=distillation"], "task.teacher: must be given"),
    (["task=distillation", "task.teacher=nowhere"], "task.teacher=nowhere: nowhere: holds no run"),
    (["task=distillation", "task.teacher=5"], "task.teacher=5: must be"),
    (["dataset=text", "dataset.path=nowhere.txt", "model=gpt"], "dataset.path=nowhere.txt: cannot be read as text"),
    (["dataset=text", "dataset.context=0", "model=gpt"], "input_shape=\\[0\\]"),
    (["experiment=text_gpt", "model.heads=3"], "model.heads=3: must divide width=64"),
    (["experiment=text_gpt", "model.context=8"], "more than the model's context=8"),
    (["dataset=diabetes"], "dataset|model|loss"),
    (["experiment=diabetes", "loss=nll"], "loss"),
    (["experiment=digits_autoencoder", "model.code=0"], "code=0: each width must be at least 1"),
    ([f"dataloader.eval_collate_fn={{_target_: {__name__}.nowhere}}"], "dataloader.eval_collate_fn"),
    (["dataloader.eval_collate_fn=5"], "dataloader.eval_collate_fn=5: must be"),
    ([*NESTED, "~dataloader.eval_collate_fn"], "dataset|task"),
    (["loss=5"], "loss=5: must be the name of a choice; choices: bce, cross_entropy"),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=[" ".join(words)[-60:] for words, _ in BAD])
def test_what_is_no_task_is_one_line_before_anything_trains(words, expected):
    with pytest.raises(InputError, match=expected) as caught:
        runner.run([*words, "device=cpu", "quiet=true"], run_dir="run")
    assert "\n" not in str(caught.value)
    assert not Path("run/run.json").exists()


def doubled(samples):
    """A collate function that only training can bear: soft targets."""
    images, targets = torch.utils.data.default_collate(samples)
    return images, F.one_hot(targets, 10).float()


def test_collate_fn_is_of_the_training_part_only():
    words = [*FAST, *SMALL, "loss=cross_entropy", "~metrics.accuracy", "trainer.monitor=val/loss", "trainer.epochs=1"]
    collate = f"dataloader.collate_fn={{_target_: {__name__}.doubled}}"
    one = runner.run([*words, "trainer.dry_run=true", collate])
    two = runner.run([*words, "trainer.dry_run=true", "dataloader.placement=workers"])
    assert one["last"]["val/loss"] == pytest.approx(two["last"]["val/loss"], rel=1e-6)


def test_a_run_of_before_evaluates_with_its_collate_fn():
    from omegaconf import OmegaConf

    from runner.job.build import loader_arguments

    old = OmegaConf.create({"dataloader": {"batch_size": 2, "collate_fn": {"_target_": f"{__name__}.doubled"}}})
    given = loader_arguments(old)
    assert given["eval_collate_fn"] is given["collate_fn"] is not None
