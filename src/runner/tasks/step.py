"""What a task gives for a batch."""

from typing import Any, NamedTuple

from torch import Tensor

from runner.tasks.sizes import Size


class Step(NamedTuple):
    """What a task makes of a batch."""

    loss: Tensor  # one number: the mean over `size`
    size: Size  # what it is a mean over: examples, tokens, weights, ...; a number, or a tensor of one
    outputs: Any = None  # for the metrics
    targets: Any = None
