"""Mistakes that students make are answered, not trained: an error where certain, a warning where likely."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import runner
from runner.batches.parts import Part, Parts
from runner.data import Digits
from runner.errors import InputError
from runner.groups.shared_examples import are_the_same, check_shared, rows_of, shared
from runner.tasks import Step, Supervised
from runner.train.hidden import untouched

FAST = ["trainer.dry_run=true", "device.threads=1", "quiet=true"]
NLL_LOSS = ["loss._target_=torch.nn.functional.nll_loss"]
CROSS_ENTROPY = ["loss=cross_entropy"]


class Ending(nn.Sequential):
    """A dense layer and what a student puts behind it."""

    def __init__(self, last="none", dim=1, num_classes=10):
        ends = [] if last == "none" else [getattr(nn, last)(dim=dim)]
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes), *ends)


class Table(Dataset):
    """Digits with other labels, told by no attribute, by `targets` or by `labels`."""

    def __init__(self, plus=0, told=None, size=400):
        self.digits, self.plus, self.size = Digits(), plus, size
        labels = [self.label(i) for i in range(size)]
        if told is not None:
            setattr(self, told, labels)

    def __len__(self):
        return self.size

    def label(self, i):
        return self.digits.targets[i] + self.plus

    def __getitem__(self, i):
        return self.digits.images[i], self.label(i)


def tensors(size=100, plus=0):
    digits = Digits()
    return TensorDataset(digits.images[plus : plus + size], torch.tensor(digits.targets[plus : plus + size]))


def tried(*words):
    """runner.log of a run of one batch."""
    runner.run([*FAST, *words], run_dir="run")
    return Path("run/runner.log").read_text()


def warned(*words):
    return [line for line in tried(*words).splitlines() if "[WARNING]" in line]


def refused(*words):
    with pytest.raises(InputError) as told:
        runner.run([*FAST, *words], run_dir="run")
    assert not Path("run/run.json").exists()
    assert "\n" not in str(told.value)
    return str(told.value)


def model(last, dim=1, num_classes=10):
    return [
        "model=mlp",
        "~model.input_shape",
        "~model.hidden",
        "~model.batch_norm",
        "~model.dropout",
        "model._target_=test_mistakes.Ending",
        f"+model.last={last}",
        f"+model.dim={dim}",
        f"model.num_classes={num_classes}",
    ]


def table(**arguments):
    words = ["~dataset.train.mean", "~dataset.train.std", "dataset.train._target_=test_mistakes.Table"]
    return [*words, *(f"+dataset.train.{key}={value}" for key, value in arguments.items())]


# ------------------------------------------------------------------------------------------------ outputs and losses


@pytest.mark.parametrize("loss", [NLL_LOSS, ["loss._target_=torch.nn.NLLLoss"]], ids=str)
def test_raw_scores_into_torchs_nll_loss_are_refused(loss):
    told = refused(*model("none"), *loss)
    assert "NLLLoss" in told or "nll_loss" in told
    assert "the model gives raw scores" in told and "loss=cross_entropy" in told and "log_softmax(dim=1)" in told


def test_probabilities_into_torchs_nll_loss_are_refused():
    assert "the model gives probabilities" in refused(*model("Softmax"), *NLL_LOSS)


@pytest.mark.parametrize("loss", [NLL_LOSS, CROSS_ENTROPY, ["loss=nll"]], ids=str)
def test_a_softmax_over_the_batch_is_refused(loss):
    for last in ("LogSoftmax", "Softmax"):
        told = refused(*model(last, dim=0), *loss)
        assert "dim=0" in told and "dim=1" in told


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, ["loss=nll"], ["loss=focal"], ["loss=label_smoothing"]], ids=str)
def test_a_softmax_under_a_loss_that_has_one_is_warned_of(loss):
    (line,) = warned(*model("Softmax"), *loss)
    assert "probabilities (a softmax at its end?)" in line


@pytest.mark.parametrize(
    "words",
    [
        [*model("LogSoftmax"), *NLL_LOSS],
        [*model("LogSoftmax"), *CROSS_ENTROPY],  # the log_softmax of log-probabilities is they themselves
        [*model("none"), *CROSS_ENTROPY],
        [*model("Softmax"), "loss=mse"],
        [*model("none"), "loss._target_=torch.nn.functional.multi_margin_loss"],
    ],
    ids=str,
)
def test_what_is_right_is_left_alone(words):
    assert warned(*words) == []


def test_one_score_for_two_classes_is_refused():
    assert "gives one score an example" in refused(*model("none", num_classes=1), *CROSS_ENTROPY)


def test_looking_changes_nothing_of_the_model():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.BatchNorm1d(3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += 1
            self.inner.running_mean = self.inner.running_mean + 1
            return self.inner(x)

    counting = Counting()
    counting.inner.eval()
    with torch.no_grad(), untouched(counting):
        counting.eval()(torch.zeros(4, 3))
        assert counting.seen == 1
    assert counting.seen == 0 and counting.training and not counting.inner.training
    assert torch.equal(counting.inner.running_mean, torch.zeros(3))


# -------------------------------------------------------------------------------- outputs and targets of other shapes


class Numbers(Dataset):
    """Three features, and a target of any shape that is their sum."""

    is_deterministic = True

    def __init__(self, shape=()):
        self.data = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
        self.shape = shape

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.data[i], self.data[i].sum().expand(self.shape) if self.shape else self.data[i].sum()


class Line(nn.Module):
    """A linear model whose outputs have the shape (N, *shape)."""

    def __init__(self, shape=(1,)):
        super().__init__()
        self.layer, self.shape = nn.Linear(3, math.prod(shape)), shape

    def forward(self, x):
        return self.layer(x).reshape(len(x), *self.shape)


def own_square(output, target):
    return ((output - target) ** 2).mean()


def own_torchs(output, target):
    return nn.functional.mse_loss(output, target) + nn.functional.l1_loss(output, target)


def shapes_itself(output, target):
    return nn.functional.mse_loss(output.squeeze(1), target)


class ShapesItself(nn.MSELoss):
    def forward(self, output, target):
        return super().forward(output.flatten(), target)


def quantiles(output, target):
    """Of (N, 3) and (N, 1): each output is for a quantile of the target."""
    off = target - output
    return torch.maximum(off * torch.tensor([0.1, 0.5, 0.9]), off * torch.tensor([-0.9, -0.5, -0.1])).mean()


def gaussian(output, target):
    return nn.functional.gaussian_nll_loss(output[:, 0], target, output[:, 1].exp())


def risk(output, target):
    """Cox's partial likelihood of risks (N, 1) and times (N,): each example against all that are left."""
    at_risk = (target[None] >= target[:, None]).float()
    return -(output[:, 0] - (at_risk @ output.exp())[:, 0].log()).mean()


class OwnRegression(nn.Module):
    """A task with a loss of its own, that torch spreads."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        output = self.model(batch[0])
        return Step((output - batch[1]).abs().mean(), len(output), output, batch[1])


class SubTask(Supervised):
    def judged(self, output, target):
        return super().judged(output, target)


def regression(loss, output="[1]", target="[]", *words):
    return [
        *("~dataset", "~model", "~loss", "~metrics.accuracy", "trainer.monitor=val/loss", "dataloader.batch_size=16"),
        "+dataset={train: {_target_: test_mistakes.Numbers}, test: null, val_size: 8, test_size: 8}",
        f"+dataset.train.shape={target}",
        f"+model={{_target_: test_mistakes.Line, shape: {output}}}",
        f"+loss={{_target_: {loss}}}",
        *words,
    ]


TORCHS = ["MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "BCEWithLogitsLoss", "PoissonNLLLoss", "SoftMarginLoss"]
OF_TORCH = [*(f"torch.nn.{name}" for name in TORCHS), "torch.nn.functional.mse_loss", "torch.nn.functional.huber_loss"]
OF_ONES_OWN = ["test_mistakes.own_square", "test_mistakes.own_torchs"]


@pytest.mark.parametrize("loss", [*OF_TORCH, *OF_ONES_OWN])
@pytest.mark.parametrize(
    ("output", "target", "say"),
    [
        ("[1]", "[]", [".reshape(-1)", "shape [1] "]),
        ("[]", "[1]", [".reshape(-1, 1)", "shape [] "]),
        ("[1,1]", "[]", [".reshape(-1)", "shape [1, 1] "]),
        ("[2,1]", "[2]", [".reshape(-1, 2)", "shape [2, 1] "]),
    ],
    ids=str,
)
def test_outputs_that_would_be_compared_with_every_target_are_refused_before_training(loss, output, target, say):
    told = refused(*regression(loss, output, target))
    assert told.startswith("loss: ") and all(word in told for word in say)


@pytest.mark.parametrize("output", ["[2]", "[3]", "[8]", "[16]"])
@pytest.mark.parametrize("loss", ["torch.nn.MSELoss", "test_mistakes.own_square"])
def test_as_many_outputs_as_examples_fit_by_chance_and_are_refused(loss, output):
    assert refused(*regression(loss, output)).startswith("loss: ")


@pytest.mark.parametrize("task", ["OwnRegression", "SubTask"])
def test_a_task_of_ones_own_that_compares_all_with_all_is_refused(task):
    words = regression("torch.nn.MSELoss", "[1]", "[]", f"task._target_=test_mistakes.{task}")
    if task == "OwnRegression":
        words = [*(word for word in words if "loss=" not in word and word != "~loss"), "loss=none"]
    assert ".reshape(-1)" in refused(*words)


@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.parametrize(
    ("loss", "output", "target"),
    [
        ("test_mistakes.shapes_itself", "[1]", "[]"),
        ("test_mistakes.ShapesItself", "[1]", "[]"),
        ("test_mistakes.quantiles", "[3]", "[1]"),
        ("test_mistakes.gaussian", "[2]", "[]"),
        ("test_mistakes.risk", "[1]", "[]"),
        ("torch.nn.MSELoss", "[2]", "[2]"),
        ("torch.nn.HuberLoss", "[]", "[]"),
    ],
)
def test_shapes_that_differ_on_purpose_are_left_alone(loss, output, target):
    tried(*regression(loss, output, target))


def summed(output, target):
    return (output - target).square().sum()


def test_a_sum_is_answered_with_take_the_mean():
    told = refused(*regression("torch.nn.MSELoss", "[1]", "[1]"), "+loss.reduction=sum")
    assert "loss.reduction=sum" in told and "take the mean" in told
    (line,) = warned(*regression("test_mistakes.summed", "[1]", "[1]"))
    assert "take the mean" in line


# ------------------------------------------------------------------------------------------------------------ labels


def test_too_few_scores_for_the_classes_are_refused():
    told = refused("model.num_classes=5")
    assert "gives 5 scores" in told and "go up to 9" in told and "model.num_classes must be 10" in told
    assert "gives 9 scores" in refused(*table(told="labels"), "model.num_classes=9")


def test_too_many_scores_for_the_classes_are_warned_of():
    (line,) = warned("model.num_classes=11")
    assert "gives 11 scores" in line and "is model.num_classes right?" in line


@pytest.mark.parametrize("told", ["targets", "labels", "null"])
def test_labels_that_start_at_1_are_refused(told):
    line = refused(*table(plus=1, told=told))
    assert "go up to 10" in line
    assert "subtract 1" in line


def test_labels_that_start_at_1_are_warned_of_where_a_class_more_was_made_for_them():
    (line,) = warned(*table(plus=1, told="targets"), "dataset.num_classes=11")
    assert "run from 1 to 10" in line and "dataset.num_classes is 10" in line


def test_negative_labels_are_refused():
    assert "go down to -1" in refused(*table(plus=-1, told="targets"))


def add(one, other):
    return one + other


def test_a_target_transform_has_the_last_word(tiny_data):
    shift = f"{{_target_: {__name__}.add, _partial_: true, _args_: [-1]}}"
    words = [
        "dataset=mnist",
        f"dataset.root={tiny_data}",
        f"+dataset.train.target_transform={shift}",
        "dataset.val_size=0",
    ]
    assert "go down to -1" in refused(*words)


# ------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("which", ["train", "test"])
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_test_images_as_training_images_are_refused(name, which, tiny_data, torchvision_unchecked):
    wrong = f"dataset.{which}.train={'false' if which == 'train' else 'true'}"
    told = refused(f"dataset={name}", f"dataset.root={tiny_data}", "dataset.val_size=0", wrong)
    assert "give the same" in told and f"{wrong} must be" in told


def test_one_folder_as_training_and_test_set_is_refused(tiny_data):
    root = tiny_data / "images"
    told = refused("dataset=image_folder", f"dataset.root={root}", f"dataset.test_root={root}", "model=mlp")
    assert "dataset.train and dataset.test give the same 24 examples" in told


def test_a_test_set_with_training_examples_in_it_is_warned_of(monkeypatch):
    cfg = {"dataset": {"train": 1, "test": 1}}
    parts = Parts(
        *(None if d is None else Part(d, torch.arange(len(d))) for d in (tensors(100), None, tensors(100, 50)))
    )
    told = []
    monkeypatch.setattr("runner.groups.shared_examples.log.warning", lambda *words: told.append(words[0] % words[1:]))
    check_shared(Settings(cfg), parts)
    assert told == [
        "dataset.test: 50 of 100 examples that were looked at are in dataset.train too: figures on them are too good"
    ]


class Settings:
    def __init__(self, cfg):
        self.dataset = cfg["dataset"]


def test_copies_of_files_are_found(tmp_path):
    from torchvision.datasets import ImageFolder

    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for i in range(20):
            path = tmp_path / part / "a" / f"{part}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.bytes(100))
    for i in range(5):
        (tmp_path / "test" / "a" / f"test{i}.png").write_bytes(
            (tmp_path / "train" / "a" / f"train{i}.png").read_bytes()
        )
    one, other = (ImageFolder(tmp_path / part) for part in ("train", "test"))
    assert not are_the_same(one, other)
    assert shared(one, other) == (0.25, 20)


class Named(Table):
    """Digits with attributes that are called as torchvision's are, and are something else."""

    def __init__(self, start=0, size=400, **attributes):
        super().__init__(size=size)
        self.start = start
        kinds = {"tensors": [(self.digits.images[i],) for i in range(start, start + size)]}
        kinds |= {"dicts": [{"image": i, "label": 0} for i in range(start, start + size)]}
        kinds |= {"paths": [Path(f"{i}.png") for i in range(start, start + size)]}
        kinds |= {"texts": [f"{i}.png" for i in range(start, start + size)]}
        kinds |= {"numbers": list(range(start, start + size)), "none": [None] * size}
        vars(self).update({name: kinds.get(value, value) for name, value in attributes.items()})

    def __getitem__(self, i):
        return self.digits.images[self.start + i], self.digits.targets[self.start + i]


def named(**attributes):
    words = table(**attributes)
    more = "".join(f", {key}: {value}" for key, value in attributes.items())
    return [*words, f"dataset.test={{_target_: test_mistakes.Named, start: 400{more}}}"]


@pytest.mark.parametrize("kind", ["tensors", "dicts", "paths", "texts", "numbers", "none"])
@pytest.mark.parametrize("name", ["samples", "imgs", "targets", "labels", "data", "images"])
def test_attributes_of_a_dataset_of_ones_own_are_its_own_whatever_they_are_called(name, kind):
    train, test = Named(0, **{name: kind}), Named(400, **{name: kind})
    assert not are_the_same(train, test) and are_the_same(train, Named(0, **{name: kind}))
    assert shared(train, test) == (0.0, 0)


@pytest.mark.parametrize("kind", ["tensors", "dicts", "paths"])
def test_a_run_takes_samples_that_are_no_files(kind):
    words = [word.replace("test_mistakes.Table", "test_mistakes.Named") for word in named(samples=kind)]
    assert tried(*words)


@pytest.mark.parametrize(
    "classes, count", [("10", 10), ("abcdefghij", 10), ("[0,1,2,3,4,5,6,7,8,9]", 10), ("null", 11)]
)
def test_classes_may_be_a_number_or_names(classes, count):
    words = table(classes=classes, told="targets", plus=1 if classes == "null" else 0)
    words = [word.replace("test_mistakes.Table", "test_mistakes.Telling") for word in words]
    tried(*words, "dataset.num_classes=null", "dataset.test_size=0.2")
    assert json.loads(Path("run/run.json").read_text())["config"]["dataset"]["num_classes"] == count


class Telling(Table):
    """With `classes` of any kind."""

    def __init__(self, classes=None, **arguments):
        super().__init__(**arguments)
        self.classes = classes


class Mapped(Table):
    """Whose `targets` are the raw labels, from 1, and whose examples are counted from 0."""

    def __getitem__(self, i):
        return self.digits.images[i], self.targets[i] - 1


def test_targets_that_the_examples_do_not_have_are_no_mistake():
    words = [word.replace("test_mistakes.Table", "test_mistakes.Mapped") for word in table(plus=1, told="targets")]
    assert tried(*words)


def test_tables_of_the_same_inputs_with_other_targets_are_not_the_same():
    inputs = torch.rand(40, 3)
    assert not are_the_same(TensorDataset(inputs, torch.zeros(40)), TensorDataset(inputs, torch.ones(40)))


def test_a_table_of_few_values_repeats_itself_and_is_no_mistake():
    few = TensorDataset(torch.randint(2, (100, 3)))
    assert shared(few, TensorDataset(torch.randint(2, (40, 3))))[0] == 0


def test_parts_that_are_drawn_anew_are_not_the_same():
    class Noise(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, i):
            return torch.randn(3), 0

    assert not are_the_same(Noise(), Noise())
    assert are_the_same([(torch.ones(2), 1)] * 5, [(torch.ones(2), 1)] * 5)
    assert not are_the_same([(torch.ones(2), 1)] * 5, [(torch.ones(2), 0)] * 5)


def test_rows_are_told_apart_whatever_their_width():
    for shape, dtype in (((50, 3), torch.uint8), ((50, 1), torch.int64), ((50, 2, 7), torch.float32)):
        data = (torch.rand(shape) * 250).to(dtype)
        data[7] = data[3]
        rows = rows_of(TensorDataset(data))
        assert rows[7] == rows[3]
        assert len(set(rows.tolist())) == len(data.reshape(50, -1).unique(dim=0))


def test_a_random_transform_of_every_image_is_warned_of(tiny_data):
    crop = "{_target_: torchvision.transforms.RandomCrop, size: 28, padding: 2}"
    given = ["dataset=mnist", f"dataset.root={tiny_data}", "model=mlp"]
    tensor = "{_target_: torchvision.transforms.ToTensor}"
    (line,) = warned(*given, f"dataset.transform=[{crop},{tensor}]")
    assert (
        "dataset.transform: RandomCrop draws" in line and "val and test" in line and "dataset.transform_train" in line
    )


def test_a_random_transform_of_the_training_images_alone_is_none(tiny_data):
    crop = "{_target_: torchvision.transforms.RandomCrop, size: 28, padding: 2}"
    given = ["dataset=mnist", f"dataset.root={tiny_data}", "model=mlp"]
    tensor = "{_target_: torchvision.transforms.ToTensor}"
    assert warned(*given, f"dataset.transform_train=[{crop},{tensor}]") == []
    assert json.loads(Path("run/run.json").read_text())["examples"] == {"train": 54, "val": 6, "test": 20}
