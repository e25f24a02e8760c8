"""What modules keep outside their parameters and state_dict(), and how a look at them leaves all as it was.

Buffers that the state_dict leaves out (`persistent=False`) go into the checkpoints beside it, so a run with them is
resumed exactly. Plain attributes cannot be put back into a new process: where one changes in training, that is said.
"""

import contextlib
import copy
import functools
import operator
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from runner.batches.own_state import GENERATORS, LIBRARIES, put_back, state_of, vars_of

UNCHANGING = frozenset((type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size))
LEFT_ALONE = (type, types.ModuleType, Dataset, DataLoader)
OF_PYTHON = sys.stdlib_module_names - {"queue", "types", "argparse", "collections"}  # whose objects are left alone
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


def changed(before: dict[tuple[str, str], Any], module: nn.Module) -> list[str]:
    """The dotted names of the attributes that are not what they were. What was not there, None or empty is noted in
    `before` and not named: a cache is filled once, and what changes again is none.
    """
    names = []
    for key, value in attributes(module).items():
        was = before.get(key)
        if was is None or (isinstance(was, (list, dict)) and not was):
            before[key] = value
        elif not is_same(moved_to(was, value), value):
            names.append(".".join(filter(None, key)))
    return names


def moved_to(one: Any, two: Any) -> Any:
    """The tensors in a copy on the device and of the format of those in another, which may only have been moved."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.to(two) if one.is_floating_point() and two.is_floating_point() else one.to(two.device)
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return list(map(moved_to, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return {key: moved_to(value, two.get(key)) for key, value in one.items()}
    return one


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Puts back all that its body changes in a module and in what it reaches: parameters, gradients, buffers, modes,
    hooks, attributes of every kind, and lists, arrays, generators, optimizers and objects of one's own in them. Layers
    that have no shapes yet, datasets, and what is the standard library's (loggers, threads) are left alone.
    """
    undo: list[Callable[[], Any]] = []
    seen: dict[int, Any] = {}
    queue: list[Any] = [module, *module.parameters(), *module.buffers()]
    while queue:
        thing = queue.pop()
        if type(thing) not in UNCHANGING and id(thing) not in seen and not isinstance(thing, LEFT_ALONE):
            seen[id(thing)] = thing
            queue.extend(noted(thing, undo))
    try:
        yield
    finally:
        with torch.no_grad():
            for put in undo:
                put()


def noted(thing: Any, undo: list[Callable[[], Any]]) -> Iterable[Any]:
    """What an object holds; what puts its own content back is added to `undo`."""
    if isinstance(thing, Tensor):
        return noted_tensor(thing, undo)
    if isinstance(thing, np.ndarray):
        if thing.flags.writeable:
            undo.append(functools.partial(np.copyto, thing, thing.copy()))
        return thing.ravel().tolist() if thing.dtype == object else ()
    if isinstance(thing, GENERATORS):
        undo.append(functools.partial(put_back, thing, state_of(thing)))
        return ()
    if isinstance(thing, (list, deque, set, dict)):
        undo.append(functools.partial(fill, thing, flat(thing)))
        return flat(thing)
    if isinstance(thing, (tuple, frozenset)):
        return thing
    if isinstance(thing, types.CellType):
        with contextlib.suppress(ValueError):  # it is empty
            undo.append(functools.partial(setattr, thing, "cell_contents", thing.cell_contents))
            return (thing.cell_contents,)
        return ()
    if isinstance(thing, types.MethodType):
        return (thing.__self__, thing.__func__)
    if isinstance(thing, functools.partial):
        return (thing.func, thing.args, thing.keywords)
    if isinstance(thing, types.FunctionType):
        return () if root_of(thing) in LIBRARIES else (vars(thing), *(thing.__closure__ or ()))
    is_lazy = isinstance(thing, nn.Module) and any(map(nn.parameter.is_lazy, own_tensors(thing)))
    if is_lazy or type(thing).__module__.startswith("torch._") or root_of(type(thing)) in OF_PYTHON:
        return thing.children() if isinstance(thing, nn.Module) else ()  # what is compiled stays so
    if hasattr(type(thing), "__iter__") and hasattr(thing, "load_state_dict") and not isinstance(thing, nn.Module):
        return ()  # a stream: its loader puts it back
    held: list[Any] = [vars_of(thing)]
    for cls in [cls for cls in type(thing).__mro__ if root_of(cls) not in (*LIBRARIES, *OF_PYTHON)]:
        plain = plain_of(cls)
        undo.append(functools.partial(set_plain, cls, plain))
        held += plain.values()
    return held


def noted_tensor(tensor: Tensor, undo: list[Callable[[], Any]]) -> Iterable[Any]:
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return ()
    own, is_trained, grad = tensor.detach(), tensor.requires_grad, tensor.grad if tensor.is_leaf else None
    is_of_torch = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    is_usual = is_of_torch and tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized)
    is_expanded = is_usual and 0 in own.stride()
    content: Any = own.untyped_storage() if is_expanded else own  # a storage has each number once
    kept = content.clone()

    def put() -> None:
        if not is_usual or not tensor.is_set_to(own):
            tensor.data = own
        content.copy_(kept)
        if tensor.is_leaf:
            tensor.requires_grad_(is_trained).grad = grad

    undo.append(put)
    return () if grad is None else (grad,)


def own_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def root_of(thing: Any) -> str:
    """The package that a class or function is of."""
    return str(thing.__module__).partition(".")[0]


def flat(holder: Any) -> list[Any]:
    return [*holder.keys(), *holder.values()] if isinstance(holder, dict) else list(holder)


def fill(holder: Any, content: list[Any]) -> None:
    """Gives a list, deque, set or dict its content back, where it has another."""
    now = flat(holder)
    if len(now) == len(content) and all(map(operator.is_, now, content)):
        return
    holder.clear()
    if isinstance(holder, dict):
        half = len(content) // 2
        holder.update(dict(zip(content[:half], content[half:], strict=True)))
    else:
        (holder.update if isinstance(holder, set) else holder.extend)(content)


def plain_of(cls: type) -> dict[str, Any]:
    """What a class holds for all of its objects."""
    return {name: value for name, value in vars(cls).items() if name[:2] != "__" and is_plain(value, set())}


def set_plain(cls: type, values: Mapping[str, Any]) -> None:
    now = plain_of(cls)
    for name in now.keys() - values.keys():
        delattr(cls, name)
    for name in [name for name, value in values.items() if now.get(name, now) is not value]:
        setattr(cls, name, values[name])
