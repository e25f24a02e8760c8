"""MixUp and CutMix: training on mixtures of two images and of their labels."""

from typing import Any

import torch
from torch import nn

from runner.errors import InputError
from runner.tasks.sizes import ignored_by
from runner.tasks.step import Step
from runner.tasks.supervised import Supervised


class MixUp(Supervised):
    """Mixes the images of a training batch, and their labels alike; what is evaluated is left as it is.

    One of the two is drawn for each batch. The metrics of the training part hold the scores of a mixture against the
    label that has the larger share in it. An image whose label the loss ignores is not mixed, and counts nowhere.

    Args:
        criterion: takes class probabilities (N, C) as targets, as cross_entropy and label_smoothing do.
        num_classes: C.
        mixup: alpha of the Beta distribution of MixUp's shares; 0: no MixUp.
        cutmix: alpha of CutMix's; 0: no CutMix.

    Source: torchvision.transforms.v2.MixUp and CutMix; Zhang et al., "mixup", 2018; Yun et al., "CutMix", 2019.
    """

    def __init__(
        self, model: nn.Module, criterion: Any, num_classes: int, mixup: float = 0.2, cutmix: float = 0.0
    ) -> None:
        from torchvision.transforms import v2

        super().__init__(model, criterion)
        if mixup < 0 or cutmix < 0 or mixup + cutmix == 0:
            raise ValueError(f"mixup={mixup}, cutmix={cutmix}: neither may be below 0, and one must be above")
        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self.ignored = ignored_by(criterion)
        self.mixings = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]

    def forward(self, batch: tuple[Any, Any]) -> Step:
        if not self.training:
            return super().forward(batch)
        data, target = batch
        if target.dim() != 1 or target.is_floating_point():
            raise InputError(f"task: MixUp takes class indices (N,) as targets, got {list(target.shape)}")
        is_counted = target != self.ignored
        if not is_counted.any():
            return super().forward(batch)
        if not is_counted.all():
            data, target = data[is_counted], target[is_counted]
        which = int(torch.randint(len(self.mixings), ())) if len(self.mixings) > 1 else 0
        data, shares = self.mixings[which](data, target)
        loss, size, outputs, _ = super().forward((data, shares))
        return Step(loss, size, outputs, shares.argmax(dim=1))
