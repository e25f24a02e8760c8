"""One epoch of a dense network on MNIST with Lightning on its own defaults: `python -m benchmarks.lightning_job ROOT`.

The job is that of the field's most used Hydra and Lightning template: 784-64-128-64-10 with batch norm, batches of
128, Adam with lr 0.001, 55,000 + 5,000 + 10,000 images, loss and accuracy of each part by torchmetrics,
ReduceLROnPlateau, a test at the end. It needs the extra [benchmarks].
"""

import sys
import time
from itertools import pairwise
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision import datasets, transforms

PARTS = ("train", "val", "test")


class Dense(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        widths, layers = [784, 64, 128, 64], []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))
        self.accuracies = nn.ModuleDict({f"{part}_": MulticlassAccuracy(10, average="micro") for part in PARTS})
        self.losses = nn.ModuleDict({f"{part}_": MeanMetric() for part in PARTS})
        self.best = MaxMetric()

    def step(self, part: str, batch: Any) -> torch.Tensor:
        images, targets = batch
        scores = self.network(images)
        loss = F.cross_entropy(scores, targets)
        self.losses[f"{part}_"](loss)
        self.accuracies[f"{part}_"](scores.argmax(1), targets)
        self.log(f"{part}/loss", self.losses[f"{part}_"], on_step=False, on_epoch=True, prog_bar=True)
        self.log(f"{part}/acc", self.accuracies[f"{part}_"], on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.step("train", batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.step("val", batch)

    def test_step(self, batch: Any, index: int) -> None:
        self.step("test", batch)

    def on_train_epoch_start(self) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended = time.perf_counter()

    def on_validation_epoch_end(self) -> None:
        self.best(self.accuracies["val_"].compute())
        self.log("val/best", self.best.compute(), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.001)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


def main() -> None:
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    training, test = (datasets.MNIST(sys.argv[1], train=train, transform=transform) for train in (True, False))
    rest = len(training) - len(training) // 12
    train_part, val_part = random_split(training, [rest, len(training) - rest])
    model = Dense()
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu")
    trainer.fit(model, DataLoader(train_part, 128, shuffle=True), DataLoader(val_part, 128))
    trainer.test(model, DataLoader(test, 128))
    print(f"training {model.ended - model.began:.3f} s", flush=True)


if __name__ == "__main__":
    main()
