"""An autoencoder's task: the target is the input."""

from typing import Any

from runner.tasks.step import Step
from runner.tasks.supervised import Supervised


class Reconstruction(Supervised):
    """criterion(model(data), data): a loss that needs no label.

    A batch is the data itself, or a tuple or list whose first part it is, as (image, label). The metrics get the
    reconstructions and the data.
    """

    def forward(self, batch: Any) -> Step:
        data = batch[0] if isinstance(batch, (tuple, list)) else batch
        return super().forward((data, data))
