"""What a loss is a mean over: the size of the batches changes no figure, and pieces are the whole batch."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import runner
from conftest import Batches
from runner.errors import InputError
from runner.losses import NLL, CrossEntropy, Focal, OneHotMSE
from runner.tasks import Supervised
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
    "one-hot mse": (OneHotMSE(), CLASSES),
    "torch's cross entropy of tokens": (nn.CrossEntropyLoss(), TOKENS),
    "weighted": (nn.CrossEntropyLoss(WEIGHT), TOKENS),
    "ignore_index": (nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1), TOKENS.clamp(min=0)),
    "probabilities": (nn.CrossEntropyLoss(WEIGHT), FLOATS.softmax(1)),
    "torch's nll": (nn.NLLLoss(WEIGHT), CLASSES),
    "bytes": (nn.NLLLoss(WEIGHT), CLASSES.to(torch.uint8)),
    "F.cross_entropy": (F.cross_entropy, TOKENS),
    "F.cross_entropy weighted": (functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=3), CLASSES),
    "bce": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), FLOATS),
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
    shape = (30, 4) if target.is_floating_point() else (30, 4, *target.shape[1:])
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
    model = nn.Conv1d(3, 4, 1) if target.dim() == 2 and not target.is_floating_point() else nn.Linear(3, 4)
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
    of_then = MeanLoss(3, CPU)
    of_then.load_state_dict({"losses": torch.tensor([1.0, 2.0]), "sizes": torch.tensor([3, 1])})
    assert of_then.compute() == (1.25, None)


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
