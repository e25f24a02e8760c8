"""The objects of a run, together, and what is said of them before the first epoch."""

from dataclasses import dataclass, field
from typing import Any

from runner import models
from runner.batches.loaders import Loader
from runner.batches.parts import Overfit, Parts, Stream
from runner.batches.settings import Placement
from runner.device import Device
from runner.groups.length import said
from runner.groups.parameters import described, frozen
from runner.groups.task_parts import is_supervised
from runner.models import count_parameters
from runner.terminal.words import plural
from runner.train.trainer import Trainer


@dataclass
class Built:
    """All the objects of one run, and the config that made them, resolved."""

    trainer: Trainer
    parts: Parts
    test_loader: Loader | None
    device: Device
    placement: Placement
    config: dict[str, Any]
    data: dict[str, dict[str, Any]] = field(default_factory=dict)  # what is known of it, see runner.batches.contents

    def close(self) -> None:
        """Ends the loaders' workers: no batch is asked for afterwards."""
        for loader in (self.trainer.train_loader, *self.trainer.eval_loaders.values(), self.test_loader):
            if loader is not None:
                loader.close()


def describe(built: Built) -> list[str]:
    """The lines that a person sees before the first epoch."""
    trainer, parts = built.trainer, built.parts
    task, model = trainer.task, trainer.model
    rows = models.layer_table(model)
    width = max(len(row["name"]) for row in rows)
    lines = [f"{row['name']:{width}}  {row['type']:18}{row['parameters']:>12,}" for row in rows]
    of_task = count_parameters(task) - count_parameters(model)
    more = f", and {of_task:,} of the {'loss' if is_supervised(task) else 'task'}" if of_task else ""
    lines.append(f"{count_parameters(model):,} parameters{more}")
    lines += described(trainer.optimizer) + frozen(trainer.freezing)
    threads = plural(built.device.threads, "CPU thread")
    lines.append(
        f"device {built.device.name}, {trainer.config.step.precision.type}, {threads}, seed {trainer.config.seed}"
    )
    lines.append(f"batches from {source(built)}: {built.placement.reason}")
    if built.config["dataloader"].get("pin_memory") and built.device.torch.type != "cuda":
        lines.append(f"dataloader.pin_memory=true: nothing is pinned on the device {built.device.torch.type}")
    counts = {name: "a stream" if isinstance(part, Stream) else f"{len(part):,}" for name, part in parts.all.items()}
    lines.append("examples: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    lines += trainer.averaging.described() + said(built.config["trainer"], len(trainer.train_loader))
    return lines + (overfitting(trainer) if isinstance(parts, Overfit) else [])


def source(built: Built) -> str:
    """Where batches come from: memory, so many workers, or a loader of torch's in this process."""
    if built.placement.where == "memory":
        return "memory"
    count = built.config["dataloader"].get("num_workers") or 0
    return plural(count, "worker") if count else "torch's DataLoader"


def overfitting(trainer: Trainer) -> list[str]:
    """What trainer.overfit_batches makes of a run."""
    count, rates = len(trainer.train_loader), trainer.schedule.rates
    batches = "1 batch" if count == 1 else f"{count:,} batches"
    lines = [
        f"overfitting: each epoch trains on the same {batches}, as the first epoch draws them; overfit/* is measured on"
        " these examples too, in eval mode; nothing is validated or tested"
    ]
    if trainer.schedule.interval == "epoch" and any(rate != rates[0] for rate in rates):
        lines.append(f"overfitting: the learning rate changes by epochs, of {batches} now; scheduler=constant keeps it")
    return lines
