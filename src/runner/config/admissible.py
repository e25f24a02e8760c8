"""The table: what a `_target_` may name in each place of a config.

Whatever no line here admits is refused, and not imported, but for code that the user trusts (runner.config.admission).
"""

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runner.config.hydra_adapter import BASIC_LAUNCHER, BASIC_SWEEPER


@dataclass(frozen=True)
class Admissible:
    """What may stand somewhere.

    Args:
        says: in words.
        names: how a target begins, as written and as defined.
        fits: whether an object that was found there is one.
    """

    says: str
    names: tuple[str, ...]
    fits: Callable[[Any], bool]

    def covers(self, name: str) -> bool:
        return any(name == start or name.startswith(f"{start}.") for start in self.names)

    def spells_out(self, name: str) -> bool:
        """Whether every part of a name that begins with an underscore is one that `names` has itself."""
        starts = [start for start in self.names if name == start or name.startswith(f"{start}.")]
        return any(not any(p.startswith("_") for p in name[len(start) :].split(".")) for start in starts)


def a(base: str) -> Callable[[Any], bool]:
    """Whether an object is a class below `base`, a dotted name that is imported when it is asked."""

    def fits(found: Any) -> bool:
        module, _, name = base.rpartition(".")
        return inspect.isclass(found) and issubclass(found, getattr(importlib.import_module(module), name))

    return fits


def is_ours(found: Any) -> bool:
    """Whether an object is a class or function, of a module of ours that names are given from."""
    return inspect.isclass(found) or inspect.isfunction(found)


def is_builder(found: Any) -> bool:
    """Whether an object is one of torchvision's functions that build a model."""
    from torchvision.models import list_models

    return inspect.isfunction(found) and found.__name__ in list_models()


def named(*names: str) -> Callable[[Any], bool]:
    return lambda found: getattr(found, "__name__", None) in names


def is_metric(found: Any) -> bool:
    """Whether an object is a Metric of torchmetrics that works with what it is given alone: others download networks
    or lists of words, and load files that their arguments name.
    """
    is_one = a("torchmetrics.Metric")(found) or named("MetricCollection", "MetricTracker")(found)
    return is_one and not LOADING_METRICS.match(found.__module__)


LOADING_METRICS = re.compile(
    r"torchmetrics\.((multimodal|video)\b|text\.(bert|infolm|rouge|sacre_bleu)\b|audio\.(dnsmos|nisqa)\b"
    r"|image\.(fid|inception|kid|lpip|mifid|perceptual_path_length|arniqa|dists)\b)"
)
LOSS_FUNCTIONS = re.compile(r"\w+_loss|(binary_)?cross_entropy(_with_logits)?|linear_cross_entropy|kl_div")
# Of torchvision's those that read images, tables and arrays, and CIFAR's pickles, whose digests it checks first. LSUN
# and others unpickle anything; Caltech101 and 256 make a folder wherever their root says.
DATASETS = (
    *("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST", "CIFAR10", "CIFAR100", "SVHN", "STL10", "USPS"),
    *("ImageFolder", "FakeData", "Country211", "DTD", "EuroSAT", "FGVCAircraft", "Flowers102"),
    *("Food101", "GTSRB", "Imagenette", "OxfordIIITPet", "RenderedSST2", "SEMEION", "StanfordCars", "SUN397"),
)
MODELS = (
    Admissible("a module of runner.models", ("runner.models",), is_ours),
    Admissible("a module of torch.nn", ("torch.nn",), a("torch.nn.Module")),
    Admissible("a builder of torchvision.models", ("torchvision.models",), is_builder),
)
OPTIMIZERS = (Admissible("an Optimizer of torch.optim", ("torch.optim",), a("torch.optim.Optimizer")),)
SCHEDULERS = (
    Admissible("a function of runner.schedulers", ("runner.schedulers",), inspect.isfunction),
    Admissible("an LRScheduler of torch.optim", ("torch.optim",), a("torch.optim.lr_scheduler.LRScheduler")),
)
LOSSES = (
    Admissible("a loss of runner.losses", ("runner.losses",), a("torch.nn.Module")),
    Admissible("a module of torch.nn", ("torch.nn",), a("torch.nn.Module")),
    Admissible(
        "a loss function of torch.nn.functional",
        ("torch.nn.functional",),
        lambda found: LOSS_FUNCTIONS.fullmatch(getattr(found, "__name__", "")) is not None,
    ),
)
TRACKERS = (Admissible("a tracker of runner.tracking", ("runner.tracking",), inspect.isclass),)
TASKS = (Admissible("a task of runner.tasks", ("runner.tasks",), a("torch.nn.Module")),)
METRICS = (
    Admissible("a metric of runner.metrics", ("runner.metrics",), inspect.isclass),
    Admissible("a Metric of torchmetrics that loads no files", ("torchmetrics",), is_metric),
)
PARTS = (
    Admissible("a dataset of runner.data", ("runner.data",), is_ours),
    Admissible(f"of torchvision.datasets: {', '.join(DATASETS)}", ("torchvision.datasets",), named(*DATASETS)),
)
TRANSFORMS = (
    Admissible("an augmentation of runner.augment", ("runner.augment",), inspect.isclass),
    Admissible("a class of torchvision.transforms", ("torchvision.transforms",), inspect.isclass),
    Admissible("a module of torch.nn", ("torch.nn",), a("torch.nn.Module")),
)
COLLATES = named("default_collate", "default_convert")
COLLATE = (Admissible("a function of torch.utils.data", ("torch.utils.data",), COLLATES),)
LAUNCHERS = (
    Admissible("a launcher of ours", ("hydra_plugins.runner_sweep",), a("hydra.plugins.launcher.Launcher")),
    Admissible("Hydra's", (BASIC_LAUNCHER,), a("hydra.plugins.launcher.Launcher")),
    Admissible("Hydra's for joblib", ("hydra_plugins.hydra_joblib_launcher",), a("hydra.plugins.launcher.Launcher")),
)
SWEEPERS = (
    Admissible("a sweeper of ours", ("hydra_plugins.runner_sweep",), a("hydra.plugins.sweeper.Sweeper")),
    Admissible("Hydra's", (BASIC_SWEEPER,), a("hydra.plugins.sweeper.Sweeper")),
)
PRUNERS = (Admissible("a pruner of Optuna", ("optuna.pruners",), a("optuna.pruners.BasePruner")),)
SAMPLERS = (Admissible("a sampler of Optuna", ("optuna.samplers",), a("optuna.samplers.BaseSampler")),)

# A place is a key of the config; `*` stands for one key, `**` for any below. The first line that fits counts.
PLACES: tuple[tuple[str, tuple[Admissible, ...]], ...] = (
    ("model.**", MODELS),
    ("optimizer.**", OPTIMIZERS),
    ("scheduler.**", SCHEDULERS),
    ("loss.**", LOSSES),
    ("task.**", TASKS),
    ("listeners.*", ()),
    ("tracking.*", TRACKERS),
    ("metrics.*.**", METRICS),
    ("dataset.train", PARTS),
    ("dataset.val", PARTS),
    ("dataset.test", PARTS),
    ("dataset.evaluate.*", PARTS),
    ("dataset.*.loader", ()),
    ("dataset.**", TRANSFORMS),
    ("dataloader.collate_fn", COLLATE),
    ("dataloader.eval_collate_fn", COLLATE),
    ("hydra.launcher", LAUNCHERS),
    ("hydra.sweeper.sampler.**", SAMPLERS),
    ("hydra.sweeper.pruner.**", PRUNERS),
    ("hydra.sweeper", SWEEPERS),
)


def rules_of(place: str) -> tuple[Admissible, ...] | None:
    """The rules of a place; None where no target may stand, not even the user's own."""
    for pattern, rules in PLACES:
        if re.fullmatch(regular(pattern), place):
            return rules
    return None


def regular(pattern: str) -> str:
    return re.escape(pattern).replace(r"\.\*\*", r"(\..+)?").replace(r"\*", "[^.]+")


def is_hydras(place: str) -> bool:
    """Where the user's own code may not stand, whatever is trusted."""
    return place.startswith("hydra.")
