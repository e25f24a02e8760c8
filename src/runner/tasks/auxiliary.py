"""Models that give auxiliary scores beside their own: GoogLeNet, Inception, FCN, DeepLab."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from runner.errors import InputError
from runner.tasks.step import Step
from runner.tasks.supervised import Supervised

MAIN = ("out", "logits")  # torchvision's name, and that of Hugging Face's outputs


class Auxiliary(Supervised):
    """criterion(scores, target) + the sum of weight x criterion(auxiliary scores, target), in training.

    What is evaluated is the model's own scores alone. The model gives, in either mode, one tensor; a tuple or list, the
    first of which are its own scores and all further ones auxiliary; or names (a named tuple, a dict, a dataclass):
    its own scores are `out` or `logits`, else the first; auxiliary is what has a weight by name, or else what has `aux`
    in its name or is of the same shape.

    Args:
        weight: of all auxiliary scores.
        weights: of each, in its place: a list in their order, or {name: weight}.

    Source: Szegedy et al., "Going Deeper with Convolutions", 2015 (0.3); torchvision's references take 0.4 for
    Inception and 0.5 for segmentation.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Any,
        weight: float = 0.3,
        weights: Sequence[float] | Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, criterion)
        self.weight, self.weights = weight, weights

    def forward(self, batch: tuple[Any, Any]) -> Step:
        output, auxiliary = self.parted(self.model(batch[0]))
        loss, *others = self.in_fp32(output, batch[1])
        if self.training:
            for weight, scores in auxiliary:
                loss = loss + weight * self.in_fp32(scores, batch[1]).loss
        return Step(loss, *others)

    def parted(self, given: Any) -> tuple[Tensor, list[tuple[float, Tensor]]]:
        """The model's own scores, and (weight, scores) of the auxiliary ones.

        Raises:
            InputError: it gives no scores, or others than the weights are for.
        """
        named, weights = names_of(given), self.weights
        if named is None:
            output, *found = given if isinstance(given, (tuple, list)) else [given]
            found = [one for each in found for one in (each if isinstance(each, (tuple, list)) else [each])]
        else:
            own = next((name for name in MAIN if name in named), next(iter(named), ""))
            output = named.pop(own, None)
            known = {name: each for name, each in named.items() if isinstance(each, Tensor)}
            shape = getattr(output, "shape", None)
            found = [each for name, each in known.items() if "aux" in name or each.shape == shape]
            if isinstance(weights, Mapping):
                found, weights = [known.get(name) for name in weights], list(weights.values())
        if not isinstance(output, Tensor):
            raise InputError(f"model: must give scores, and auxiliary ones beside them; got {type(given).__name__}")
        if not self.training:
            return output, []
        found = [each for each in found if each is not None]
        each_weight: list[Any] = [self.weight] * len(found) if weights is None else list(weights)
        if len(each_weight) != len(found) or not all(isinstance(each, Tensor) for each in found):
            gives = f"{len(found)} auxiliary scores" if named is None else ", ".join(known) or "no further scores"
            raise InputError(f"task.weights={self.weights}: the model gives {gives} in training")
        return output, list(zip(each_weight, found, strict=True))


def names_of(given: Any) -> dict[str, Any] | None:
    """What a dict, a named tuple or a dataclass holds, by name; None of anything else."""
    if isinstance(given, Mapping):
        return dict(given)
    if hasattr(given, "_asdict"):
        return dict(given._asdict())
    return dict(vars(given)) if hasattr(given, "__dataclass_fields__") else None
