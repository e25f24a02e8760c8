"""Losses, metrics, models, seeding, devices."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runner import seeding
from runner.errors import InputError
from runner.losses import NLL, CrossEntropy, Focal, OneHotMSE
from runner.metrics import Accuracy
from runner.models import MLP, Net, layer_table, resnet18

OUTPUT, TARGET = torch.randn(20, 5), torch.randint(5, (20,))
WEIGHT = [0.1, 0.2, 0.3, 0.4, 0.5]


def test_nll_and_cross_entropy_are_torchs():
    assert torch.equal(NLL()(OUTPUT, TARGET), F.nll_loss(F.log_softmax(OUTPUT, 1), TARGET))
    weighted = F.cross_entropy(OUTPUT, TARGET, torch.tensor(WEIGHT))
    assert torch.equal(CrossEntropy(WEIGHT)(OUTPUT, TARGET), weighted)
    torch.testing.assert_close(NLL(WEIGHT)(OUTPUT, TARGET), weighted)


def test_focal_is_the_cross_entropy_at_gamma_0_and_the_formula_elsewhere():
    torch.testing.assert_close(Focal(gamma=0)(OUTPUT, TARGET), F.cross_entropy(OUTPUT, TARGET))
    p = OUTPUT.softmax(1)[torch.arange(20), TARGET]
    by_hand = (-torch.tensor(WEIGHT)[TARGET] * (1 - p) ** 2 * p.log()).mean()
    torch.testing.assert_close(Focal(2.0, WEIGHT)(OUTPUT, TARGET), by_hand)


def test_one_hot_mse_is_the_mean_square():
    torch.testing.assert_close(OneHotMSE()(OUTPUT, TARGET), ((OUTPUT - torch.eye(5)[TARGET]) ** 2).mean())
    for n in range(1, 500, 7):
        output, target = torch.randn(n, 5), torch.randint(5, (n,))
        assert torch.equal(OneHotMSE()(output, target), F.mse_loss(output, torch.eye(5)[target]))


def test_a_weighted_loss_follows_to_the_device():
    assert NLL(WEIGHT).to("meta").weight.device.type == "meta"


def test_accuracy_counts_over_uneven_batches_and_resets():
    metric = Accuracy()
    for part in (slice(0, 16), slice(16, 20)):
        metric.update(OUTPUT[part], TARGET[part])
    assert metric.compute() == int((OUTPUT.argmax(1) == TARGET).sum()) / 20
    other = Accuracy()
    other.load_state_dict(metric.state_dict())
    assert other.compute() == metric.compute()
    metric.reset()
    assert metric.compute() != metric.compute()  # NaN: nothing was counted
    top = Accuracy(top_k=5)
    top.update(OUTPUT, TARGET)
    assert top.compute() == 1.0


def test_net_is_the_official_network_and_fits_other_shapes():
    assert sum(p.numel() for p in Net().parameters()) == 1_199_882
    assert Net((3, 33, 20), 7)(torch.zeros(2, 3, 33, 20)).shape == (2, 7)
    assert sum(row["parameters"] for row in layer_table(Net())) == 1_199_882


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_net_gives_the_bits_of_the_official_order_of_relu_and_pool(dtype):
    net = Net()
    data = torch.randn(32, 1, 28, 28)

    def official(x):
        x = F.relu(net.conv2(F.relu(net.conv1(x))))
        x = net.dropout1(F.max_pool2d(x, 2))
        return net.fc2(net.dropout2(F.relu(net.fc1(torch.flatten(x, 1)))))

    results = []
    for forward in (net, official):
        torch.manual_seed(1)
        net.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            output = forward(data)
        F.cross_entropy(output.float(), torch.arange(32) % 10).backward()
        results.append([output.detach(), *(p.grad for p in net.parameters())])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_mlp_and_resnet_fit_the_input():
    assert MLP((3, 5, 4), 6, [8, 7], batch_norm=True, dropout=0.1)(torch.zeros(2, 3, 5, 4)).shape == (2, 6)
    for small in (True, False):
        assert resnet18((1, 32, 32), 4, small)(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


def test_seed_0_is_a_seed_and_every_path_another_number():
    values = {seeding.derive(*path) for path in [(0,), (1,), (0, "epoch", 1), (0, "epoch", 2), (0, "order", 1)]}
    assert len(values) == 5
    assert all(0 <= value < 2**63 for value in values)


def test_the_state_of_every_generator_comes_back():
    seeding.seed_everything(5)
    state = seeding.rng_state(torch.device("cpu"))
    drawn = random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(1)
    with seeding.isolated(9, torch.device("cpu")):
        torch.rand(3), random.random(), np.random.rand()
    seeding.set_rng_state(state, torch.device("cpu"))
    assert (random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(1)) == drawn


def test_auto_takes_a_device_that_works_and_resolves_the_threads():
    from runner.device import resolve

    found = resolve("auto", threads=1)
    assert found.threads == torch.get_num_threads() == 1
    torch.ones(1, device=found.torch)
    for wrong in ({"type": "tpu"}, {"type": "cpu", "threads": 0}):
        with pytest.raises(InputError, match="device"):
            resolve(**wrong)


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)),  # a segmentation
        (torch.zeros(2, 1), torch.zeros(2)),  # a regression
        (torch.zeros(2), torch.zeros(2)),
        (torch.zeros(2, 3), torch.zeros(2)),
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)),  # one score: the first is always the highest
        (torch.zeros(2, 3), torch.zeros(2, 3)),  # probabilities
        (torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64)),
    ],
)
def test_accuracy_is_for_scores_of_classes_only(output, target):
    with pytest.raises(InputError, match=r"scores \(N, C\).*got scores \[2.*~metrics.accuracy"):
        Accuracy().update(output, target)
    Accuracy(top_k=2).update(torch.zeros(2, 2), torch.zeros(2, dtype=torch.uint8))
