"""What a `_target_` may name, by the place where it stands: whatever no line here admits is refused, and not imported.

Contract: a name is walked inside the package that it begins with, never into another package's module and never through
a name with a leading underscore; then the object that is found is judged, by what it is and where it was defined. The
user's own code is admitted where the user has said so, see Policy: never because a record says so.
"""

import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from runner.errors import InputError


class Refused(ValueError):
    """Why a target may not stand where it stands."""


@dataclass(frozen=True)
class Rule:
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


LOSS_FUNCTIONS = re.compile(r"\w+_loss|(binary_)?cross_entropy(_with_logits)?|linear_cross_entropy|kl_div")
DATASETS = (  # of torchvision's, those that read images, tables and arrays: what unpickles (LSUN, CelebA's kin) is not here
    *("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST", "CIFAR10", "CIFAR100", "SVHN", "STL10", "USPS"),
    *("ImageFolder", "FakeData", "Caltech101", "Caltech256", "Country211", "DTD", "EuroSAT", "FGVCAircraft", "Flowers102"),
    *("Food101", "GTSRB", "Imagenette", "OxfordIIITPet", "RenderedSST2", "SEMEION", "StanfordCars", "SUN397"),
)
MODELS = (
    Rule("a module of runner.models", ("runner.models",), is_ours),
    Rule("a module of torch.nn", ("torch.nn",), a("torch.nn.Module")),
    Rule("a builder of torchvision.models", ("torchvision.models",), is_builder),
)
OPTIMIZERS = (Rule("an Optimizer of torch.optim", ("torch.optim",), a("torch.optim.Optimizer")),)
SCHEDULERS = (
    Rule("a function of runner.schedulers", ("runner.schedulers",), inspect.isfunction),
    Rule("an LRScheduler of torch.optim", ("torch.optim",), a("torch.optim.lr_scheduler.LRScheduler")),
)
LOSSES = (
    Rule("a loss of runner.losses", ("runner.losses",), a("torch.nn.Module")),
    Rule("a module of torch.nn", ("torch.nn.modules", "torch.nn"), a("torch.nn.Module")),
    Rule(
        "a loss function of torch.nn.functional",
        ("torch.nn.functional", "torch._C._nn"),
        lambda found: LOSS_FUNCTIONS.fullmatch(getattr(found, "__name__", "")) is not None,
    ),
)
METRICS = (
    Rule("a metric of runner.metrics", ("runner.metrics",), inspect.isclass),
    Rule("a Metric of torchmetrics", ("torchmetrics",), lambda found: a("torchmetrics.Metric")(found) or is_task(found)),
)
PARTS = (
    Rule("a dataset of runner.data", ("runner.data",), is_ours),
    Rule(f"of torchvision.datasets: {', '.join(DATASETS)}", ("torchvision.datasets",), named(*DATASETS)),
)
TRANSFORMS = (
    Rule("an augmentation of runner.augment", ("runner.augment",), inspect.isclass),
    Rule("a class of torchvision.transforms", ("torchvision.transforms",), inspect.isclass),
    Rule("a module of torch.nn", ("torch.nn",), a("torch.nn.Module")),
)
COLLATE = (Rule("a function of torch.utils.data", ("torch.utils.data",), named("default_collate", "default_convert")),)
LAUNCHERS = (
    Rule("a launcher of ours", ("hydra_plugins.runner_sweep",), a("hydra.plugins.launcher.Launcher")),
    Rule("Hydra's", ("hydra._internal.core_plugins.basic_launcher",), a("hydra.plugins.launcher.Launcher")),
    Rule("Hydra's for joblib", ("hydra_plugins.hydra_joblib_launcher",), a("hydra.plugins.launcher.Launcher")),
)
SWEEPERS = (
    Rule("a sweeper of ours", ("hydra_plugins.runner_sweep",), a("hydra.plugins.sweeper.Sweeper")),
    Rule("Hydra's", ("hydra._internal.core_plugins.basic_sweeper",), a("hydra.plugins.sweeper.Sweeper")),
)
SAMPLERS = (Rule("a sampler of Optuna", ("optuna.samplers",), a("optuna.samplers.BaseSampler")),)

# A place is a key of the config; `*` stands for one key, `**` for any below. The first line that fits counts.
PLACES: tuple[tuple[str, tuple[Rule, ...]], ...] = (
    ("model.**", MODELS),
    ("optimizer.**", OPTIMIZERS),
    ("scheduler.**", SCHEDULERS),
    ("loss.**", LOSSES),
    ("metrics.*.**", METRICS),
    ("dataset.train", PARTS),
    ("dataset.val", PARTS),
    ("dataset.test", PARTS),
    ("dataset.*.loader", ()),
    ("dataset.**", TRANSFORMS),
    ("dataloader.collate_fn", COLLATE),
    ("hydra.launcher", LAUNCHERS),
    ("hydra.sweeper.sampler.**", SAMPLERS),
    ("hydra.sweeper", SWEEPERS),
)
FOR_OWN_CODE = re.compile(r"hydra\.")  # where the user's own code may not stand, whatever is trusted


def is_task(found: Any) -> bool:
    """Whether an object is torchmetrics' front for several metrics, as torchmetrics.Accuracy: a class with a __new__."""
    return inspect.isclass(found) and found.__module__.startswith("torchmetrics.")


@dataclass(frozen=True)
class Policy:
    """Whose code is admitted beyond the table.

    Args:
        beside: folders whose modules are the user's own: where the command was started.
        trusted: packages, by name, that the user has named.
        everything: all of it, as with --trust-all.
        way_out: what to type, in a refusal.
    """

    beside: tuple[Path, ...] = ()
    trusted: frozenset[str] = frozenset()
    everything: bool = False
    way_out: str = "'trust=[{top}]'"

    def admits(self, module: str) -> bool:
        """Whether a module's code is the user's own, or of a package that the user trusts."""
        if self.everything:
            return True
        names = module.split(".")
        if any(".".join(names[: count + 1]) in self.trusted for count in range(len(names))):
            return True
        return any(path.is_relative_to(folder) for folder in self.beside for path in places_of(names[0])) and all(
            is_own(path) for path in places_of(names[0])
        )


_policy: ContextVar[Policy | None] = ContextVar("policy", default=None)


def policy() -> Policy:
    """What is admitted now: without more ado, the modules beside the command."""
    return _policy.get() or Policy(beside=(Path.cwd().resolve(),))


@contextmanager
def admitting(chosen: Policy) -> Iterator[None]:
    token = _policy.set(chosen)
    try:
        yield
    finally:
        _policy.reset(token)


def trusting(packages: Sequence[str]) -> Policy:
    """The policy of a command: what is beside it, and the packages that it names."""
    return Policy(beside=(Path.cwd().resolve(),), trusted=frozenset(packages))


def is_own(path: Path) -> bool:
    """Whether a file or a package's folder is neither installed, nor Python's, nor ours."""
    installed = {Path(folder).resolve() for folder in sysconfig.get_paths().values()}
    ours = Path(__file__).resolve().parents[1]
    if {"site-packages", "dist-packages"} & set(path.parts) or (path.suffix and path.suffix != ".py"):
        return False
    return not any(path.is_relative_to(folder) for folder in {*installed, ours, ours.parent / "hydra_plugins"})


def places_of(top: str) -> list[Path]:
    """Where a top-level module lies, or would be imported from; nothing is imported."""
    module = sys.modules.get(top)
    if module is not None and top != "__main__":
        found = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", []))
    elif module is not None:
        found = [getattr(module, "__file__", None)]
    else:
        spec = importlib.machinery.PathFinder.find_spec(top)
        found = [] if spec is None else [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return [Path(str(path)).resolve() for path in found if path]


def rules_of(place: str) -> tuple[Rule, ...]:
    """The rules of a place; none where no target may stand."""
    for pattern, rules in PLACES:
        if re.fullmatch(regular(pattern), place):
            return rules
    return ()


def regular(pattern: str) -> str:
    text = re.escape(pattern).replace(r"\.\*\*", r"(\..+)?").replace(r"\*", r"[^.]+")
    return text


def admitted(name: str, place: str) -> tuple[Any, str]:
    """The object that a target names in a place, and what admits it.

    Raises:
        Refused: nothing admits it; nothing was imported that is not admitted by its name.
        Exception: what its import raises.
    """
    rules, now = rules_of(place), policy()
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ValueError("must be a dotted name, as package.module.Class")
    is_place = bool(rules) or any(re.fullmatch(regular(pattern), place) for pattern, _ in PLACES)
    if not is_place:
        raise Refused(f"no `_target_` may stand in {place}")
    by_name = [rule for rule in rules if rule.covers(name)]
    is_private = any(part.startswith("_") for part in parts) and not any(name.startswith(r.names) for r in by_name)
    own = not FOR_OWN_CODE.match(place) and now.admits(parts[0] if len(parts) == 1 else name.rpartition(".")[0])
    if (not by_name and not own) or is_private:
        raise Refused(refusal(name, place, rules, is_private))
    found, module = walk(name, now if own else None)
    for rule in rules:
        defined = true_name(found)
        if rule.fits(found) and (rule.covers(defined) if defined else rule.covers(name)):
            return found, rule.says
    if own and is_of(found, module, now):
        return found, "your own code" if now.beside else "code that you trust"
    raise Refused(refusal(name, place, rules, is_private))


def walk(name: str, own: Policy | None) -> tuple[Any, str]:
    """The object at a dotted name and the module it was found in; never by way of another package's module.

    Raises:
        Refused: the way leads out of the package.
    """
    import difflib

    first, *rest = name.split(".")
    found, path = importlib.import_module(first), first
    module = first
    for part in rest:
        if hasattr(found, part) or not isinstance(found, ModuleType):
            found, path = getattr(found, part), f"{path}.{part}"
        else:
            try:
                found, path = importlib.import_module(f"{path}.{part}"), f"{path}.{part}"
            except ModuleNotFoundError as error:
                if error.name != f"{path}.{part}":
                    raise
                near = difflib.get_close_matches(part, dir(found), 1)
                guess = f"; did you mean {near[0]}?" if near else ""
                raise AttributeError(f"{path} has no {part!r}{guess}") from error
        if isinstance(found, ModuleType):
            module = found.__name__
            if module.split(".")[0] != first and not (own is not None and own.admits(module)):
                raise Refused(f"{path} is the module {module} of another package")
    return found, module


def true_name(found: Any) -> str | None:
    """Where a class or function was defined, as a dotted name; None for what does not say it."""
    if not hasattr(found, "__qualname__"):
        return None
    return f"{getattr(found, '__module__', None)}.{found.__qualname__}"


def is_of(found: Any, module: str, now: Policy) -> bool:
    """Whether an object that an own module holds is its own: not a name that the module has imported."""
    if now.everything:
        return True
    inner = getattr(found, "func", found) if type(found).__name__ == "partial" else found
    owner = getattr(inner if hasattr(inner, "__qualname__") else type(inner), "__module__", None)
    return owner is not None and now.admits(str(owner))


def refusal(name: str, place: str, rules: Sequence[Rule], is_private: bool) -> str:
    top = name.split(".")[0]
    if is_private:
        return "a name with a leading underscore is nobody's to call"
    choices = "; ".join(rule.says for rule in rules) or "your own code"
    hint = "" if FOR_OWN_CODE.match(place) else f"; code of yours is admitted by {policy().way_out.format(top=top)}"
    return f"may not stand in {place}; choices: {choices}{hint}"
