"""Knowledge distillation: a model learns from the scores of one that is trained already."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.losses import Focal
from runner.tasks.sizes import examples, ignored_by
from runner.tasks.step import Step
from runner.tasks.supervised import Supervised


class Distillation(Supervised):
    """weight x (the divergence from the teacher's softened scores) + (1 - weight) x criterion, in training.

    What is evaluated is the model alone, by the criterion. An example whose target (N,) the criterion ignores counts
    in neither. The teacher is frozen and in eval mode. It is part of the task's state: a resumed run has the teacher
    that it began with, whatever became of the folder that it came from.

    Args:
        criterion: a mean over examples.
        teacher: a run's folder in YAML (its best weights), a module in Python; gives scores of the model's shape.
        temperature: softens both scores; the divergence is weighted by its square.
        weight: of the divergence, in [0, 1].

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """

    def __init__(
        self, model: nn.Module, criterion: Any, teacher: nn.Module, temperature: float = 2.0, weight: float = 0.5
    ) -> None:
        super().__init__(model, criterion)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight={weight}: must be between 0 and 1")
        is_over_examples = self.size_of is examples or isinstance(criterion, Focal)
        if not is_over_examples and getattr(criterion, "weight", None) is not None:
            raise ValueError("loss.weight: distillation needs a loss that is a mean over examples, without weights")
        self.ignored = ignored_by(criterion)
        self.teacher = teacher.requires_grad_(False).eval()
        self.temperature, self.weight = temperature, weight

    def train(self, mode: bool = True) -> "Distillation":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: tuple[Any, Any]) -> Step:
        loss, size, output, target = super().forward(batch)
        if self.training:
            with torch.no_grad():
                teaching = self.teacher(batch[0]).float()
            if teaching.shape != output.shape:
                shapes = f"{list(teaching.shape)}, and the model's {list(output.shape)}"
                raise ValueError(f"the teacher's scores are {shapes}: they must be of one shape")
            is_counted = target != self.ignored
            is_whole = target.dim() > 1 or bool(is_counted.all())
            both = (output, teaching) if is_whole else (output[is_counted], teaching[is_counted])
            loss = self.weight * self.divergence(*both) + (1 - self.weight) * loss
        return Step(loss, size, output, target)

    def divergence(self, output: Tensor, teaching: Tensor) -> Tensor:
        """The Kullback-Leibler divergence of the softened distributions, a mean over examples."""
        own, wanted = F.log_softmax(output / self.temperature, 1), F.log_softmax(teaching / self.temperature, 1)
        return F.kl_div(own, wanted, reduction="batchmean", log_target=True) * self.temperature**2
