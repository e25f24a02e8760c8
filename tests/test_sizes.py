"""What a loss is a mean over: the size of the batches changes no figure, and pieces are the whole batch."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

import runner
from conftest import Batches
from runner.cli import evaluate as evaluate_verb
from runner.data import Digits
from runner.errors import InputError
from runner.job.rebuilding import rebuilt
from runner.job.saved import open_saved
from runner.losses import BCE, NLL, CrossEntropy, Focal, OneHotMSE
from runner.metrics import Accuracy
from runner.tasks import Distillation, MixUp, Supervised
from runner.tasks.sizes import examples, is_mean, size_of
from runner.train.steps import MeanLoss, StepOptions, evaluate, train_step
from test_trainer import CPU

WEIGHT = torch.tensor([1.0, 10.0, 0.0, 0.1])
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")  # torch, of KLDivLoss
torch.manual_seed(0)  # with label smoothing, a batch whose targets all weigh 0 has a loss that no size tells
TOKENS = torch.randint(4, (30, 7))
TOKENS[:5] = -100  # whole examples, and so whole batches, are ignored
TOKENS[20:, 3:] = -100
CLASSES, FLOATS = torch.randint(4, (30,)), torch.rand(30, 4)
IGNORING = torch.where(torch.arange(30) % 3 == 0, -100, CLASSES)

# a loss, and the targets that it gets; outputs are (30, 4, ...)
LOSSES = {
    "nll weighted": (NLL(WEIGHT.tolist()), CLASSES),
    "nll ignoring": (NLL(), IGNORING),
    "cross entropy weighted, smoothed": (CrossEntropy([1.0, 10.0, 0.5, 0.1], 0.2), CLASSES),
    "focal weighted": (Focal(2.0, WEIGHT.tolist()), CLASSES),
    "focal ignoring": (Focal(2.0, WEIGHT.tolist()), IGNORING),
    "focal of tokens": (Focal(ignore_index=2), TOKENS.clamp(min=0)),
    "one-hot mse": (OneHotMSE(), CLASSES),
    "one-hot mse ignoring": (OneHotMSE(), TOKENS),
    "nll of 255": (NLL(ignore_index=255), torch.where(TOKENS < 0, 255, TOKENS)),
    "torch's cross entropy of tokens": (nn.CrossEntropyLoss(), TOKENS),
    "weighted": (nn.CrossEntropyLoss(WEIGHT), TOKENS),
    "ignore_index": (nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1), TOKENS.clamp(min=0)),
    "probabilities": (nn.CrossEntropyLoss(WEIGHT), FLOATS.softmax(1)),
    "torch's nll": (nn.NLLLoss(WEIGHT), CLASSES),
    "bytes": (nn.NLLLoss(WEIGHT), CLASSES.to(torch.uint8)),
    "F.cross_entropy": (F.cross_entropy, TOKENS),
    "F.cross_entropy weighted": (functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=3), CLASSES),
    "bce": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), FLOATS),
    "our bce": (BCE(WEIGHT.tolist()), (FLOATS > 0.5).long()),
    "mse": (nn.MSELoss(), FLOATS),
    "F.l1": (F.l1_loss, FLOATS),
    "kl": (nn.KLDivLoss(), FLOATS),
    "kl batchmean": (nn.KLDivLoss(reduction="batchmean"), FLOATS),
    "multi margin": (nn.MultiMarginLoss(weight=WEIGHT), CLASSES),
    "a function": (lambda output, target: (output[:, 0] * target).mean(), CLASSES),
}


if hasattr(nn, "LinearCrossEntropyLoss"):  # since torch 2.15: it has a layer of its own
    torch.manual_seed(0)
    LOSSES["linear"] = (nn.LinearCrossEntropyLoss(4, 4, weight=WEIGHT), IGNORING)


def outputs_for(target):
    generator = torch.Generator().manual_seed(1)
    shape = (30, 4) if target.is_floating_point() or target.shape == (30, 4) else (30, 4, *target.shape[1:])
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_size", [1, 4, 7, 29])
def test_the_size_of_an_evaluations_batches_changes_no_figure(name, batch_size):
    loss, target = LOSSES[name]
    output = outputs_for(target)
    whole = float(loss(output, target).detach())
    batches = list(zip(output.split(batch_size), target.split(batch_size), strict=True))
    task = Supervised(nn.Identity(), loss)
    found = evaluate(task, Batches(batches), {}, CPU, StepOptions(), 1)["loss"]
    assert found == pytest.approx(whole, rel=1e-5)


def gradient_of(loss, target, options):
    torch.manual_seed(0)
    model = nn.Conv1d(3, 4, 1) if target.shape == (30, 7) else nn.Linear(3, 4)
    data = torch.randn(30, 3, *target.shape[1:]) if isinstance(model, nn.Conv1d) else torch.randn(30, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    step = train_step(Supervised(model, loss), optimizer, (data, target), options)
    return torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters(), strict=True)]), step


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_the_pieces_of_a_batch_are_the_whole_batch_within_rounding(name, pieces):
    loss, target = LOSSES[name]
    whole, one = gradient_of(loss, target, StepOptions())
    cut, two = gradient_of(loss, target, StepOptions(accumulate=pieces))
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.loss, two.loss, rtol=1e-5, atol=1e-7)
    assert float(one.size) == pytest.approx(float(two.size), rel=1e-6)


@pytest.mark.parametrize("name", ["a function", "mse", "F.l1", "nll of all"])
def test_pieces_of_equal_sizes_have_the_bits_that_they_always_had(name):
    loss, target = LOSSES.get(name) or (NLL(), CLASSES)
    found, step = gradient_of(loss, target, StepOptions(accumulate=4))
    torch.manual_seed(0)
    model, data = nn.Linear(3, 4), torch.randn(30, 3)
    losses = []
    for x, y in zip(data.tensor_split(4), target.tensor_split(4), strict=True):
        losses.append(loss(model(x), y) * (len(y) / 30))
        losses[-1].backward()
    before = [p.detach().clone() for p in model.parameters()]
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    expected = torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters(), strict=True)])
    assert torch.equal(found, expected)
    assert torch.equal(step.loss, torch.stack(losses).sum())


def test_a_piece_in_which_nothing_counts_has_no_gradient():
    target = torch.tensor([0, 1, 0, 1, 2, 2, 2, 2, 3, 3, 3, 3]).repeat_interleave(5)[:30]  # the weight of 2 is 0
    for loss in (nn.CrossEntropyLoss(WEIGHT), NLL(WEIGHT.tolist())):
        whole, one = gradient_of(loss, target, StepOptions())
        for pieces in (3, 10):
            cut, two = gradient_of(loss, target, StepOptions(accumulate=pieces))
            torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(one.loss, two.loss)
            assert len(two.outputs) == 30
    nothing = gradient_of(nn.CrossEntropyLoss(), torch.full((30,), -100), StepOptions(accumulate=3))
    assert not nothing[0].any() and nothing[1].size == 0


class Halves:
    """A user's loss that says its size, as a number: a mean over the targets above 1."""

    def __call__(self, output, target):
        return (output[:, 0] * (target > 1)).sum() / self.size(output, target)

    def size(self, output, target):
        return int((target > 1).sum())


def test_a_loss_of_a_users_own_says_what_it_is_a_mean_over():
    output = outputs_for(CLASSES)
    batches = list(zip(output.split(7), CLASSES.split(7), strict=True))
    found = evaluate(Supervised(nn.Identity(), Halves()), Batches(batches), {}, CPU, StepOptions(), 1)["loss"]
    assert found == pytest.approx(float(Halves()(output, CLASSES)), abs=1e-6)
    whole, cut = (gradient_of(Halves(), CLASSES, StepOptions(accumulate=n))[0] for n in (1, 4))
    torch.testing.assert_close(whole, cut)
    assert size_of(lambda output, target: output.mean()) is examples


def test_a_size_that_hangs_in_the_graph_is_cut_off():
    def loss(output, target):
        return (output[:, 0].sigmoid() * target).sum() / loss.size(output, target).detach()

    loss.size = lambda output, target: output[:, 0].sigmoid().sum()
    whole, cut = (gradient_of(loss, CLASSES, StepOptions(accumulate=n))[0] for n in (1, 3))
    torch.testing.assert_close(whole, cut)


@pytest.mark.parametrize("name", LOSSES)
def test_of_every_loss_two_examples_are_told_to_follow_from_each(name):
    loss, target = LOSSES[name]
    assert is_mean(loss, size_of(loss), outputs_for(target)[18:22], target[18:22])


def test_a_loss_that_is_another_mean_than_it_says_is_found_out():
    output, target = outputs_for(CLASSES)[:2], torch.tensor([0, 1])
    hidden = functools.partial(lambda output, target, w: F.cross_entropy(output, target, w), w=WEIGHT)
    assert not is_mean(hidden, size_of(hidden), output, target)
    assert is_mean(lambda output, target: nn.BatchNorm1d(4)(output).mean(), examples, output, target)  # not of one


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(reduction="sum"),
        nn.CrossEntropyLoss(reduction="none"),
        functools.partial(F.cross_entropy, reduction="sum"),
    ],
)
def test_a_sum_is_refused(loss):
    with pytest.raises(InputError, match=r"loss.reduction=(sum|none): .*choices: mean"):
        size_of(loss)
    with pytest.raises(InputError, match="loss.size_average=false"):
        size_of(functools.partial(F.mse_loss, size_average=False))


def test_a_mean_of_batches_of_numbers_and_of_tensors_is_saved_and_put_back():
    for sizes in ([3, 4, 1], [2.5, 0, 1.0], [torch.tensor(3), torch.tensor(0.5), torch.tensor(0)]):
        one, two = MeanLoss(3, CPU), MeanLoss(3, CPU)
        for i, size in enumerate(sizes):
            one.add(torch.tensor(float(i) if size else torch.nan), size)
        two.load_state_dict(one.state_dict())
        assert one.compute() == two.compute() and one.compute()[1] is None
        assert one.compute()[0] == pytest.approx(sum(i * float(s) for i, s in enumerate(sizes)) / float(sum(sizes)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_mean_of_what_stays_on_the_device():
    loss = MeanLoss(3, torch.device("cuda"))
    for value, size in ((1.0, torch.tensor(3, device="cuda")), (5.0, 1), (torch.nan, torch.tensor(0, device="cuda"))):
        loss.add(torch.tensor(value, device="cuda"), size)
    assert loss.compute() == (2.0, None) and loss.losses.measured.is_cuda


def test_a_mean_over_nothing_is_no_number():
    empty = MeanLoss(1, CPU)
    empty.add(torch.tensor(torch.nan), torch.tensor(0))
    value, first_bad = empty.compute()
    assert value != value and first_bad is None


WORDS = ["model=mlp", "model.hidden=[8]", "trainer.epochs=1", "device.threads=1", "quiet=true"]
WEIGHTS = "loss.weight=[1,10,1,1,1,1,1,1,1,0.1]"


def test_a_weighted_runs_figures_are_those_of_any_size_of_batches(tmp_path):
    words = [*WORDS, WEIGHTS, "dataloader.batch_size=64"]
    records = [
        runner.run([*words, f"dataloader.eval_batch_size={size}"], run_dir=tmp_path / str(size))
        for size in (7, 50, 1000)
    ]
    for key in ("val/loss", "val/accuracy"):
        assert records[0]["last"][key] == pytest.approx(records[2]["last"][key], rel=1e-5)
        assert records[1]["last"][key] == pytest.approx(records[2]["last"][key], rel=1e-5)
    assert records[0]["test"]["last"]["loss"] == pytest.approx(records[2]["test"]["last"]["loss"], rel=1e-5)


def test_a_weighted_run_in_pieces_is_the_run_within_rounding(tmp_path):
    words = [*WORDS, WEIGHTS, "dataloader.batch_size=64", "optimizer=sgd"]
    one, two = (runner.run([*words, f"trainer.accumulate={n}"], run_dir=tmp_path / str(n)) for n in (1, 4))
    for key in ("train/loss", "val/loss"):
        assert one["last"][key] == pytest.approx(two["last"][key], rel=1e-4)


# ------------------------------------------------------------------------------------------- targets that are ignored


class Gaps(Dataset):
    """Digits; every third has no label, which is written as `gap`."""

    is_deterministic = True

    def __init__(self, gap=-100, size=600):
        self.digits, self.gap, self.size = Digits(), gap, size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return self.digits.images[i], self.gap if i % 3 == 0 else self.digits.targets[i]


GAPS = ["~dataset.train.mean", "~dataset.train.std", f"dataset.train._target_={__name__}.Gaps"]
GAPS += ["model=mlp", "trainer.epochs=4", "device.threads=1", "quiet=true"]
KEYS_OF_255 = ["+loss.ignore_index=255", "+dataset.train.gap=255"]


def own_loss(output, target):
    return F.cross_entropy(output, target)


own_loss.size = lambda output, target: (target != -100).sum()


class Wrapped(nn.Module):
    def __init__(self, ignore_index):
        super().__init__()
        self.inner = nn.CrossEntropyLoss(ignore_index=ignore_index)

    def forward(self, output, target):
        return self.inner(output, target)

    def size(self, output, target):
        return (target != self.inner.ignore_index).sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["loss=focal"],
        ["loss=mse", *KEYS_OF_255],
        ["loss=cross_entropy", "+loss.ignore_index=3", "+dataset.train.gap=3"],  # a class of its own, too
        ["~loss", f"+loss={{_target_: {__name__}.own_loss}}"],
        ["~loss", f"+loss={{_target_: {__name__}.Wrapped, ignore_index: 255}}", "+dataset.train.gap=255"],
        ["~loss", "+loss={_target_: torch.nn.functional.cross_entropy, ignore_index: 255}", "+dataset.train.gap=255"],
        ["task=mixup", "loss=cross_entropy"],
    ],
    ids=str,
)
def test_what_the_loss_ignores_is_no_mistake_of_any_figure(words, tmp_path):
    f1 = "{_target_: torchmetrics.classification.MulticlassAccuracy, num_classes: 10, average: micro}"
    words = [*GAPS, "metrics=top5", f"+metrics.torchs={f1}", "dataloader.eval_batch_size=50", *words]
    record = runner.run(words, run_dir=tmp_path / "run")
    best = record["test"]["last"]
    assert best["accuracy"] > 0.75 and best["top5"] > 0.9  # of 120 every third was counted as wrong
    assert best["torchs"] == pytest.approx(best["accuracy"], abs=1e-6)


def test_evaluate_counts_no_ignored_target_in_the_matrix_or_among_the_mistakes(tmp_path, capsys):
    runner.run([*GAPS, *KEYS_OF_255], run_dir=tmp_path / "run")
    evaluate_verb.main(evaluate_verb.parser().parse_args([str(tmp_path / "run"), "--confusion"]))
    said = capsys.readouterr().out
    matrix = said.partition("columns: predicted)\n")[2].partition("worst mistakes")[0].splitlines()[1:]
    labels = [int(n) for line in matrix for n in line.split()[1:]]
    part = rebuilt(open_saved(tmp_path / "run", "best")).parts.test
    of_part = [int(part.dataset[int(i)][1]) for i in part.indices]
    assert sum(labels) == sum(label != 255 for label in of_part) < len(of_part)
    right = sum(int(line.split()[1 + row]) for row, line in enumerate(matrix) if line.split())
    assert f"test/accuracy: {right / sum(labels)!r}" in said
    assert "255" not in said.partition("worst mistakes")[2]
    for line in said.partition("worst mistakes")[2].splitlines()[1:]:
        example, target = (int(word.strip(":")) for word in (line.split()[1], line.split()[3]))
        assert part.dataset[example][1] == target


def test_a_batch_in_which_every_target_is_ignored_counts_for_nothing():
    for loss in (Focal(), OneHotMSE(), NLL(), nn.CrossEntropyLoss(label_smoothing=0.1)):
        gradient, step = gradient_of(loss, torch.full((30,), -100), StepOptions())
        assert not gradient.any() and step.size == 0
    accuracy = Accuracy()
    accuracy.update(torch.rand(4, 3), torch.tensor([-100] * 4))
    assert accuracy.compute() != accuracy.compute()
    accuracy.update(torch.eye(3), torch.tensor([0, -100, 1]))
    assert accuracy.compute() == 0.5


def test_ignored_targets_take_no_part_in_a_mixture_or_in_what_a_teacher_says():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.randn(6, 1, 8, 8)
    target = torch.tensor([0, -100, 2, -100, 1, 1])
    known = target != -100
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    for task in (
        MixUp(model, CrossEntropy(), num_classes=3, mixup=1.0),
        Distillation(model, CrossEntropy(), teacher, weight=0.5),
    ):
        steps = []
        for batch in ((data, target), (data[known], target[known])):
            torch.manual_seed(1)
            steps.append(task.train()(batch))
        assert torch.equal(steps[0].loss, steps[1].loss) and steps[0].size == steps[1].size == 4
        assert task((data, torch.full((6,), -100))).size == 0


def test_a_label_that_torchs_margin_loss_would_not_leave_out_is_refused(tmp_path):
    words = [*GAPS, "loss._target_=torch.nn.MultiMarginLoss"]
    with pytest.raises(InputError, match="go down to -100"):
        runner.run(words, run_dir=tmp_path / "run")


# ------------------------------------------------------------------------------------ weights of classes and labels


class Uneven(Dataset):
    """Digits, of class 0 one and of every further class some more; labels are told, told wrong, or not."""

    is_deterministic, classes = True, ["none", "one", "two", "three"]

    def __init__(self, told="targets", kind="index"):
        self.digits = Digits()
        self.kept = [i for i, label in enumerate(self.digits.targets) if label < 4 and i % 8 <= 2 * label]
        self.labels_there = [self.digits.targets[i] for i in self.kept]
        self.kind = kind
        if told is not None:
            setattr(self, told.removeprefix("wrong "), [0 if "wrong" in told else n for n in self.labels_there])

    def __len__(self):
        return len(self.kept)

    def __getitem__(self, i):
        label = self.labels_there[i]
        several = torch.tensor([float(label >= k) for k in range(1, 4)])
        return self.digits.images[self.kept[i]], {"index": label, "several": several}[self.kind]


UNEVEN = ["~dataset.train.mean", "~dataset.train.std", f"dataset.train._target_={__name__}.Uneven", *WORDS]
UNEVEN += ["dataset.num_classes=4"]


def recorded(run, key="weight"):
    saved = open_saved(run, "last")
    return rebuilt(saved), saved.record["config"]["derived"].get("loss", {}).get(key)


@pytest.mark.parametrize("told", ["targets", "labels", "wrong labels", "null"])
@pytest.mark.parametrize(
    "loss",
    [
        "nll",
        *(
            pytest.param(loss, marks=pytest.mark.slow)
            for loss in ("focal", "torch.nn.CrossEntropyLoss", "torch.nn.functional.cross_entropy")
        ),
    ],
)
def test_balanced_weights_are_those_of_the_training_parts_counts(loss, told, tmp_path):
    choice = [f"loss._target_={loss}"] if "torch" in loss else [f"loss={loss}"]
    runner.run([*UNEVEN, *choice, "loss.weight=balanced", f"+dataset.train.told={told}"], run_dir=tmp_path / "run")
    built, weight = recorded(tmp_path / "run")
    part = built.parts.train
    counts = torch.bincount(torch.tensor([part.dataset[int(i)][1] for i in part.indices]), minlength=4).double()
    assert weight == pytest.approx((len(part) / (4 * counts)).tolist()) and len(set(weight)) == 4
    criterion = built.trainer.task.criterion
    taken = criterion.keywords["weight"] if isinstance(criterion, functools.partial) else criterion.weight
    assert taken.tolist() == pytest.approx(weight)


def test_a_balanced_runs_figures_are_those_of_any_size_of_batches(tmp_path):
    for loss in ("cross_entropy", "focal"):
        runs = [
            runner.run([*UNEVEN, f"loss={loss}", "loss.weight=balanced", f"dataloader.eval_batch_size={n}"])
            for n in (7, 1000)
        ]
        for key in ("train/loss", "val/loss"):
            assert runs[0]["last"][key] == pytest.approx(runs[1]["last"][key], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss.weight=blanced"], ["loss.weight=blanced", "balanced"]),
        (["loss.weight={three: 2, fuor: 1}"], ["loss.weight.fuor", "none, one, two, three"]),
        (["loss.weight={7: 2}"], ["loss.weight.7", "none, one, two, three"]),
        (["loss=focal", "loss.weight=[1,2,3]"], ["loss.weight=[1, 2, 3]", "4"]),
        (["loss=focal", "loss.weight=[1,2,3,4,5]"], ["loss.weight=[1, 2, 3, 4, 5]", "4"]),
        (["loss._target_=torch.nn.CrossEntropyLoss", "loss.weight=[1,2,3]"], ["loss.weight=[1, 2, 3]", "4 classes"]),
        (["loss.weight=balanced", "dataset.num_classes=5"], ["loss.weight=balanced", "class 4"]),
        (["loss.weight=balanced", "+dataset.train.kind=several"], ["loss.weight=balanced", "loss.pos_weight"]),
    ],
    ids=str,
)
def test_wrong_weights_are_one_line_before_training(words, said, tmp_path):
    with pytest.raises(InputError) as refused:
        runner.run([*UNEVEN, *words], run_dir=tmp_path / "run")
    assert all(word in str(refused.value) for word in said) and "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_factor_by_the_name_of_a_class_and_lists_for_torchs_own_losses(tmp_path):
    runner.run([*UNEVEN, "loss.weight={three: 2, 0: 5}"], run_dir=tmp_path / "named")
    assert recorded(tmp_path / "named")[1] == [5.0, 1.0, 1.0, 2.0]
    of_labels = [*UNEVEN, "dataset.num_classes=3", "+dataset.train.kind=several", "+dataset.train.told=null"]
    of_labels += ["metrics=multilabel", "~loss"]
    for number, target in enumerate(("nn.BCEWithLogitsLoss", "nn.functional.binary_cross_entropy_with_logits")):
        loss = f"+loss={{_target_: torch.{target}, pos_weight: [1, 2, 4]}}"
        runner.run([*of_labels, loss], run_dir=tmp_path / str(number))
        criterion = recorded(tmp_path / str(number), "pos_weight")[0].trainer.task.criterion
        found = criterion.keywords["pos_weight"] if number else criterion.pos_weight
        assert found.tolist() == [1, 2, 4]


def test_several_labels_are_learned_by_bce_with_balanced_weights(tmp_path):
    record = runner.run(["experiment=fake_multilabel", "device.threads=1", "quiet=true"], run_dir=tmp_path / "run")
    built, weight = recorded(tmp_path / "run", "pos_weight")
    labels = built.parts.train.dataset.targets[built.parts.train.indices]
    assert weight == pytest.approx(((1 - labels).sum(0) / labels.sum(0)).tolist())
    scores = built.trainer.task.eval().model(torch.stack([image for image, _ in built.parts.test.dataset]))
    guess, labels = scores > 0, built.parts.test.dataset.targets > 0
    f1 = 2 * (guess & labels).sum() / (guess.sum() + labels.sum())
    assert record["test"]["last"]["f1"] == pytest.approx(float(f1)) and f1 > 0.9
    assert record["test"]["last"]["accuracy"] == pytest.approx(float((guess == labels).float().mean()))


def test_bce_takes_labels_class_indices_and_a_single_score():
    scores, labels = torch.randn(6, 4), torch.randint(2, (6, 4))
    by_torch = F.binary_cross_entropy_with_logits
    assert torch.equal(BCE()(scores, labels), by_torch(scores, labels.float()))
    classes = torch.arange(6) % 4
    assert torch.equal(BCE()(scores, classes), by_torch(scores, F.one_hot(classes, 4).float()))
    assert torch.equal(BCE()(scores[:, :1], labels[:, 0]), by_torch(scores[:, :1], labels[:, :1].float()))
    with pytest.raises(ValueError, match="must be the same"):
        BCE()(scores, torch.rand(6))


@pytest.mark.slow
def test_a_sweep_over_balanced_weights_names_the_word_and_counts_each_job_once(cli):
    words = [*WORDS[:-1], "loss.weight=null,balanced", "seed=1,2", "sweep.name=w", "trainer.dry_run=true", "-m"]
    for _ in range(2):
        done = cli(*words)
        assert done.returncode == 0 and "loss.weight=balanced  2 of 2" in done.stdout
        assert "counted once" not in done.stdout + done.stderr and "believed" not in done.stdout + done.stderr
