"""What is done with a batch, as one module: it owns the model and the loss, their parameters, modes and state."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from runner.train import hidden
from runner.train.precision import Precision, as_fp32
from runner.train.sizes import Size, size_of


class Step(NamedTuple):
    """What a task makes of a batch, in training and in evaluation."""

    loss: Tensor  # one number: the mean over `size`
    size: Size  # examples, elements, the sum of weights, ...: see runner.train.sizes
    outputs: Any  # for the metrics, fp32
    targets: Any


class Supervised(nn.Module):
    """criterion(model(data), target) of a batch (data, target). The model computes in `precision`, the loss in fp32.

    Args:
        criterion: a module, whose parameters are trained with the model's, or a function.

    Raises:
        InputError: a loss that is not the mean over something.
    """

    def __init__(self, model: nn.Module, criterion: Any, precision: Precision | None = None) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion
        self.precision = precision or Precision()
        self.size_of = size_of(criterion)

    def forward(self, batch: tuple[Any, Any]) -> Step:
        data, target = batch
        with self.precision.autocast():
            output = self.model(data)
        output = as_fp32(output)
        loss, size = self.criterion(output, target), self.size_of(output, target)
        return Step(loss, size.detach() if isinstance(size, Tensor) else size, output, target)

    def weights(self) -> dict[str, Any]:
        """All that an evaluation depends on, by its key in a checkpoint."""
        criterion = self.criterion.state_dict() if isinstance(self.criterion, nn.Module) else {}
        return {
            "model_state_dict": self.model.state_dict(),
            "criterion_state_dict": criterion,
            "unsaved_buffers": hidden.buffers(self),
        }

    def load_weights(self, saved: dict[str, Any]) -> None:
        """Puts weights() back, out of a checkpoint. An older version's best weights lack those of the loss."""
        self.model.load_state_dict(saved["model_state_dict"])
        if isinstance(self.criterion, nn.Module) and "criterion_state_dict" in saved:
            self.criterion.load_state_dict(saved["criterion_state_dict"])
        hidden.load_buffers(self, saved.get("unsaved_buffers", {}))


def as_written(name: str) -> str:
    """A name inside a task as the user knows it: a model's own names, and loss.* for those of the loss."""
    owner, _, rest = name.partition(".")
    return rest if owner == "model" else f"loss.{rest}" if owner == "criterion" else name
