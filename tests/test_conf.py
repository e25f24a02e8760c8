"""Every YAML of conf/ composes, builds and trains one batch; every scheduler runs with every optimizer."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import runner
from conftest import CONF
from runner.config.compose import compose
from runner.errors import InputError
from runner.job.launch import launch
from runner.tasks import Step

GROUPS = sorted(p for p in CONF.glob("*/*.yaml"))
FAST = ["trainer.dry_run=true", "device.threads=1", "quiet=true"]
FAKE = ["dataset=fake", "dataset.train_size=40", "dataset.eval_size=20", "dataset.val_size=10", "model=mlp"]
SCHEDULERS = sorted(p.stem for p in (CONF / "scheduler").glob("*.yaml"))
OPTIMIZERS = sorted(p.stem for p in (CONF / "optimizer").glob("*.yaml"))
NO_GPU = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


def overrides_for(path: Path, data: Path) -> list[str]:
    """One run of a YAML, on small data."""
    group, choice = path.parent.name, path.stem
    words = [f"{group}={choice}", *FAST]
    if group == "dataset":
        words += [] if choice in ("fake", "digits") else [f"dataset.root={data}"]
        words += ["dataset.root=" + str(data / "images")] if choice == "image_folder" else []
        words += ["model=mlp"]
    elif group == "experiment":
        text = path.read_text()
        words += [f"dataset.root={data}"] if "mnist" in text or "cifar" in text else []
        words += ["dataloader.batch_size=8", "dataloader.eval_batch_size=8"]
        words += ["dataset.val_size=12"] if choice == "mnist_fast" else []
    else:
        words += FAKE[:-1] if group == "model" else FAKE
    if choice == "resnet18":
        words += ["dataset.input_shape=[3,32,32]"]
    return words


# What a choice needs beside it.
TEXT = ["dataset=text", "dataset.context=8", "model=gpt", "model.width=8", "loss=cross_entropy", "task=next_token"]
TEXT += ["metrics=perplexity", "trainer.monitor=val/loss", "task.sample_length=5"]
LOSS_ALONE = ["metrics=none", "trainer.monitor=val/loss"]
TABLE = ["dataset=diabetes", "model=mlp", "loss=squared_error", *LOSS_ALONE]
IMAGES = ["model=autoencoder", "task=reconstruction", "loss=squared_error", *LOSS_ALONE]
OWN = [f"task._target_={__name__}.OwnLoss"]
TOGETHER = {
    **dict.fromkeys(("dataset=text", "model=gpt", "task=next_token", "metrics=perplexity"), TEXT),
    **dict.fromkeys(("dataset=diabetes", "loss=squared_error", "loss=huber"), TABLE),
    "metrics=regression": [*TABLE, "metrics=regression"],
    "metrics=none": LOSS_ALONE,
    **dict.fromkeys(("model=autoencoder", "task=reconstruction"), IMAGES),
    "loss=none": OWN,
    "task=mixup": ["loss=cross_entropy"],
    **{key: ["task.teacher=teacher"] for key in ("task=distillation", "experiment=digits_distilled")},
    "experiment=text_gpt": ["model.width=8", "task.sample_length=5"],
    "experiment=diabetes": [],
}
TOGETHER["loss=huber"] = [*TABLE, "loss=huber"]


class OwnLoss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        scores = self.model(batch[0])
        return Step(scores.square().mean(), len(scores), scores, batch[1])


def slow_if_large(path):
    return pytest.param(path, marks=pytest.mark.slow if "resnet18" in path.stem else ())


@pytest.mark.parametrize("path", [slow_if_large(path) for path in GROUPS], ids=lambda p: f"{p.parent.name}={p.stem}")
def test_every_yaml_composes_builds_and_trains_one_batch(path, tiny_data, torchvision_unchecked, tmp_path):
    words, name = overrides_for(path, tiny_data), f"{path.parent.name}={path.stem}"
    if path.parent.name == "tracking" and path.stem != "none":
        pytest.importorskip(path.stem, reason=f"the optional extra [{path.stem}]")
    if name in TOGETHER:
        words = [name, *FAST, *TOGETHER[name]]
    if "task.teacher=teacher" in words:
        runner.run([*FAST, "model=mlp", "model.hidden=[16]"], run_dir="teacher")
    if path.parent.name == "device" and not NO_GPU.get(path.stem, True):
        with pytest.raises(InputError, match=f"device={path.stem}"):
            runner.run(words, run_dir=tmp_path / "run")
        return
    if path.parent.name == "precision" and path.stem in ("tf32", "fp16") and not NO_GPU["cuda"]:
        with pytest.raises(InputError, match=f"precision={path.stem}: needs a CUDA GPU.*choices: fp32, bf16"):
            runner.run(words, run_dir=tmp_path / "run")
        return
    record = runner.run(words, run_dir=tmp_path / "run")
    assert record["state"] == "done"
    assert record["epochs_done"] == 1
    assert set(record["test"]) == {"best", "last"}
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == 1


# Each scheduler and each optimizer at least once.
COUNT = max(len(SCHEDULERS), len(OPTIMIZERS))
PAIRS = [(SCHEDULERS[i % len(SCHEDULERS)], OPTIMIZERS[i % len(OPTIMIZERS)]) for i in range(COUNT)]


@pytest.mark.parametrize(("scheduler", "optimizer"), PAIRS)
def test_every_scheduler_and_every_optimizer_runs(scheduler, optimizer, tmp_path):
    words = [f"scheduler={scheduler}", f"optimizer={optimizer}", *FAKE, "device.threads=1", "quiet=true"]
    words += ["trainer.epochs=3", "dataloader.batch_size=20"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = runner.run(words, run_dir=tmp_path / "run")
    assert record["state"] == "done"
    torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)


def test_the_defaults_list_names_every_group_but_hydra():
    _, cfg = compose([])
    groups = {p.parent.name for p in GROUPS}
    assert groups == {g for g in cfg.hydra.runtime.choices if not g.startswith("hydra")}


def test_the_packaged_example_has_the_settings_of_the_official_one():
    _, cfg = compose(["experiment=mnist_example"])
    assert (cfg.dataloader.batch_size, cfg.dataloader.eval_batch_size) == (64, 1000)
    assert (cfg.optimizer._target_, cfg.optimizer.lr) == ("torch.optim.Adadelta", 1.0)
    assert (cfg.scheduler.step_size, cfg.scheduler.gamma, cfg.trainer.epochs) == (1, 0.7, 14)
    assert (cfg.dataset.val_size, cfg.dataset.mean, cfg.dataset.std) == (0, [0.1307], [0.3081])


def test_a_config_is_composed_once_for_a_run(monkeypatch, tmp_path):
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    calls = []
    real = ConfigLoaderImpl._load_configuration_impl

    def counted(self, *args, **kwargs):
        calls.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    launch(FAKE, lambda cfg, place, notes: None, run_dir=str(tmp_path / "run"))
    assert len(calls) == 1
