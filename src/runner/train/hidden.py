"""What modules keep outside their parameters and state_dict(): buffers that it leaves out, and plain attributes.

Buffers (`persistent=False`) go into the checkpoints beside the state_dict, so a run with them resumes exactly. Plain
attributes cannot be put back in general: where one changes in training, that is said.
"""

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OF_TORCH = frozenset(nn.Module().__dict__)  # training, _parameters, the hooks, ...


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that state_dict() leaves out, by their dotted names."""
    saved = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name not in saved}


def load_buffers(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Puts saved buffers back: in place where they fit, else in the old one's stead. One whose module is not here is
    left out.
    """
    modules = dict(module.named_modules())
    for path, value in saved.items():
        owner, _, name = path.rpartition(".")
        if owner not in modules:
            continue
        found = getattr(modules[owner], name, None)
        if isinstance(found, Tensor) and is_same(found.cpu(), value.cpu()):
            continue
        if isinstance(found, Tensor) and is_filled(found, value):
            found.copy_(value)
        else:
            device = next((p.device for p in module.parameters()), value.device)
            setattr(modules[owner], name, value.to(device, copy=True))


def is_filled(found: Tensor, value: Tensor) -> bool:
    """Whether a tensor can take the values in its own place: an expanded one cannot."""
    return found.shape == value.shape and found.dtype == value.dtype and found.is_contiguous()


def attributes(module: nn.Module) -> dict[tuple[str, str], Any]:
    """The plain attributes of every module that hold numbers and tensors, copied: {(module's path, name): value}."""
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return {
        (path, name): copied(value)
        for path, owner in module.named_modules()
        if type(owner).get_extra_state is nn.Module.get_extra_state  # it has a place for them in the checkpoints
        for name, value in vars(owner).items()
        if name not in OF_TORCH and is_plain(value, own)
    }


def is_plain(value: Any, own: set[int]) -> bool:
    """Numbers, tensors, arrays and generators, and lists, tuples and dicts of nothing else; no registered tensor."""
    if isinstance(value, Tensor):
        return id(value) not in own
    if isinstance(value, (list, tuple, deque)):
        return all(is_plain(item, own) for item in value)
    if isinstance(value, dict):
        return all(is_plain(item, own) for item in value.values())
    return value is None or isinstance(value, (int, float, complex, np.ndarray, np.generic, torch.Generator))


def copied(value: Any) -> Any:
    """A copy without the graph that a tensor may hang in; of a generator its state."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, (list, tuple, deque)):
        return [copied(item) for item in value]
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return copy.copy(value)


def is_same(one: Any, two: Any) -> bool:
    """Whether two copies hold the same; a NaN is one."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if (one.dtype, one.device, one.shape) != (two.dtype, two.device, two.shape):
            return False
        return torch.equal(one, two) or bool(((one == two) | (one != one) & (two != two)).all())
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(is_same, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(is_same(one[key], two[key]) for key in one)
    return type(one) is type(two) and not isinstance(one, (Tensor, np.ndarray)) and bool(one == two or one != one)


def changed(before: Mapping[tuple[str, str], Any], module: nn.Module) -> list[str]:
    """The dotted names of the attributes that are not what they were."""
    now = attributes(module)
    return [".".join(filter(None, key)) for key in now if key not in before or not is_same(before[key], now[key])]


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Puts back the modes, the buffers and the plain attributes that its body changes."""
    owners = dict(module.named_modules())
    modes = {owner: owner.training for owner in owners.values()}
    kept = {path: (buffer, buffer.clone()) for path, buffer in module.named_buffers()}
    plain = {(path, name): (vars(owners[path])[name], value) for (path, name), value in attributes(module).items()}
    try:
        yield
    finally:
        for owner, was_training in modes.items():
            owner.training = was_training
        for path in [path for path, _ in module.named_buffers() if path not in kept]:
            parent, _, name = path.rpartition(".")
            setattr(owners[parent], name, None)
        for path, (buffer, value) in kept.items():
            parent, _, name = path.rpartition(".")
            if not is_same(buffer, value):
                buffer.copy_(value)
            setattr(owners[parent], name, buffer)
        for (path, name), value in attributes(module).items():
            was, content = plain.get((path, name), (None, None))
            if (path, name) not in plain:
                delattr(owners[path], name)
            elif not is_same(value, content):
                setattr(owners[path], name, restored(was, content))


def restored(was: Any, content: Any) -> Any:
    """An attribute's first object, with its first content where that may have changed inside it."""
    if isinstance(was, Tensor) and was.shape == content.shape:
        was.detach().copy_(content)
    elif isinstance(was, torch.Generator):
        was.set_state(content)
    elif isinstance(was, deque):
        was.clear()
        was.extend(content)
    elif isinstance(was, (Tensor, np.ndarray, list, dict)):
        return content
    return was
