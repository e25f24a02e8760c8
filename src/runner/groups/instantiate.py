"""From a node of the config to the object that it describes: the only file that calls Hydra's instantiate."""

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config import admission
from runner.config.checks import complaint, locate
from runner.errors import InputError


def call(function: Callable[..., Any], node: Mapping[Any, Any], key: str = "dataloader") -> Any:
    """function(**node), with its complaints as InputErrors that begin with the key."""
    arguments = {str(name): value for name, value in node.items()}
    parameters = inspect.signature(function).parameters
    for name in arguments:
        if name not in parameters:
            raise InputError(f"{key}.{name}: nothing takes this key; choices: {', '.join(parameters)}")
    try:
        return function(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(complaint(key, "", error)) from error


def make(parent: Any, key: str, path: str = "") -> Any:
    """Instantiates parent[key] with plain lists and dicts. A function that still lacks arguments is meant itself."""
    return instantiate(containers(parent, key), f"{path}.{key}" if path else key)


def containers(parent: Any, key: str) -> Any:
    """parent[key] as plain, resolved containers."""
    try:
        value = parent.get(key)
        return OmegaConf.to_container(value, resolve=True) if isinstance(value, (DictConfig, ListConfig)) else value
    except OmegaConfBaseException as error:
        raise InputError("; ".join(line.strip() for line in str(error).splitlines() if line.strip())) from error


def instantiate(node: Any, path: str) -> Any:
    """The object that a plain node describes; a list item by item; any other value as it is."""
    if isinstance(node, list):
        return [instantiate(item, f"{path}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    marked, now = with_partials(node, path), admission.policy()
    is_trained = any(word in str(marked) for word in ("torchvision.models", "weights", "pretrained"))
    try:
        with nullcontext() if now.downloads or not is_trained else without_downloads(now.starts):
            return unwrapped(hydra.utils.instantiate(marked, _convert_="all"))
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from error
        raise InputError(said(node, path, error, cause)) from error


def said(node: Any, path: str, error: BaseException, cause: BaseException) -> str:
    """The complaint of the `_target_` that refused: Hydra names the node inside the one that it was given."""
    message = str(error)
    found = re.search(r"full_key: (\S+)", message)
    for name in found[1].split(".") if found else ():
        listed = re.fullmatch(r"(.+?)(\d+)", name)  # Hydra's transforms1, for transforms[1]
        is_key = listed is None or isinstance(node, list) or (isinstance(node, dict) and name in node)
        for part in [name] if is_key or listed is None else listed.groups():
            at: Any = int(part) if isinstance(node, list) and part.isdigit() else part
            inner = node[at] if isinstance(node, list) or (isinstance(node, dict) and part in node) else None
            if inner is None:
                return complaint(path, str(node.get("_target_", "")), cause, node)
            node, path = inner, f"{path}.{part}"
    return complaint(path, str(node.get("_target_", "")) if isinstance(node, dict) else "", cause, node)


def with_partials(node: Any, path: str) -> Any:
    """The node with `_partial_: true` at every function that still lacks arguments: it is meant itself. Every target
    in it is judged here once more: what a resolver has made, say oc.decode, stood nowhere in the config.
    """
    if isinstance(node, list):
        return [with_partials(item, f"{path}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    marked = {key: with_partials(value, f"{path}.{key}") for key, value in node.items()}
    if "_target_" not in node:
        return marked
    target = locate(node["_target_"], path)
    if "_partial_" not in node and lacks_arguments(target, node):
        marked["_partial_"] = True
    return marked if admission.policy().downloads else without_download(target, marked, path)


def without_download(target: Any, node: dict[Any, Any], path: str) -> dict[Any, Any]:
    """The node of a record's dataset as it is built without a download.

    Raises:
        InputError: whether it would download cannot be told from its positions.
    """
    top = str(getattr(target, "__module__", "")).split(".")[0]
    if top not in ("torchvision", "runner") or not path.startswith("dataset"):
        return node
    if node.get("_args_"):
        raise InputError(f"{path}._args_: in a record, arguments must have names")
    return {**node, "download": False} if "download" in {*inspect.signature(target).parameters, *node} else node


@contextmanager
def without_downloads(starts: bool) -> Iterator[None]:
    """torchvision's models take trained weights from its folder on this machine, and download none. Where a checkpoint
    follows, they are built without.

    Raises:
        InputError: of a run that starts with them (starts).
    """
    from unittest.mock import patch

    import torch.hub
    from torch.nn import Module
    from torchvision.models import WeightsEnum

    read, load, nothing = WeightsEnum.get_state_dict, Module.load_state_dict, dict[str, Any]()

    def cached(self: Any, *args: Any, **options: Any) -> Any:
        path = os.path.join(torch.hub.get_dir(), "checkpoints", self.url.rpartition("/")[2])
        if os.path.exists(path):
            return read(self, *args, **options)
        if starts:
            raise InputError(f"model: {path} is missing, and a record downloads nothing; put {self.url} there")
        return nothing

    def loaded(self: Module, state: Any, *args: Any, **options: Any) -> Any:
        return None if state is nothing else load(self, state, *args, **options)

    with patch.object(WeightsEnum, "get_state_dict", cached), patch.object(Module, "load_state_dict", loaded):
        yield


def lacks_arguments(target: Any, node: Mapping[str, Any]) -> bool:
    """Whether target is a function that needs more than the node gives: a loss or collate function, not a factory."""
    if inspect.isclass(target):
        return False
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return True  # a builtin such as torch.nn.functional's
    return any(
        p.default is p.empty and p.name not in node and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def unwrapped(made: Any) -> Any:
    """Hydra's partial as what it wraps: each call of Hydra's own costs about 0.12 ms."""
    if isinstance(made, functools.partial):
        return functools.partial(made.func, *made.args, **made.keywords) if made.args or made.keywords else made.func
    return made
