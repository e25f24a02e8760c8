"""What samples depend on beyond (seed, epoch, index): generators and other state that a dataset keeps for itself.

Contract: such a sample is another one after a resume, and with another number of workers. Generators are looked for in
the attributes of the dataset, of its transforms and of the collate function, in what their functions close over, and in
the globals that they name; the same two samples are then made twice, seeded alike. Afterwards the generators stand
where they stood.
"""

import contextlib
import functools
import logging
import pickle
import random
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.batches.loaders import Loader, WorkersLoader
from runner.batches.nested import equal
from runner.errors import InputError

log = logging.getLogger("runner")

EXAMPLES = 2
DEPTH = 6  # attributes of attributes
MOST = 2000  # objects that are looked at
ENTRIES = 20  # of a list or dict
GENERATORS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)
PLAIN = (int, float, complex, str, bytes, type(None), Tensor, np.ndarray, np.generic, types.ModuleType, type)
LIBRARIES = ("builtins", "torch", "torchvision", "numpy", "PIL", "runner", "abc", "collections", "functools", "typing")
GLOBAL = [torch.default_generator, *(getattr(f, "__self__", None) for f in (np.random.get_state, random.random))]


def check_own_state(loaders: Mapping[str, Loader | None]) -> None:
    """Makes a few samples of each loader twice.

    Args:
        loaders: by the config key of what they load.

    Raises:
        InputError: samples draw from a generator that is not seeded for each of them; the line names it.
    """
    seen = set()
    for key, loader in loaders.items():
        if isinstance(loader, WorkersLoader) and not loader.source.is_deterministic:
            if id(loader.source.dataset) not in seen:
                check_samples(key, loader)
            seen.add(id(loader.source.dataset))


def check_samples(key: str, loader: WorkersLoader) -> None:
    dataset = loader.source.dataset
    parts = {key: dataset, "dataset.augment": loader.source.augment.foreign}
    parts["dataloader.collate_fn"] = loader.source.collate_fn
    found = {path: generator for name, part in parts.items() for path, generator in generators_in(part, name)}
    before, attributes = states_of(found), plain_attributes(dataset)
    try:
        once, then, seen = loader.examples(EXAMPLES), states_of(found), plain_attributes(dataset)
        again, at_last, changed = loader.examples(EXAMPLES), states_of(found), plain_attributes(dataset)
    except Exception:
        return  # the probe says what is wrong with it
    finally:
        for path, generator in found.items():
            put_back(generator, before[path])
    # One that is used elsewhere stands still; one that is seeded for each sample stands at the same place again.
    if drawn := [path for path in found if then[path] != at_last[path]]:
        raise InputError(
            f"{drawn[0]}: samples draw from this {kind_of(found[drawn[0]])} of its own, so after a resume, or with"
            " another number of workers, they would be others; draw from the global generators (torch.rand,"
            " np.random.rand, random.random), which are seeded for each sample"
        )
    if not equal(once, again):
        vars_of(dataset).update(attributes)
        names = [name for name, value in changed.items() if name not in seen or seen[name] != value]
        log.warning(
            "%s: the same example, seeded alike, is another one the second time%s: it depends on what is neither seeded"
            " nor saved, so after a resume, or with another number of workers, it would be another one too",
            key,
            f" (its {', '.join(names)} changed)" if names else "",
        )


def generators_in(root: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(path, generator) of every generator of its own that an object reaches; the global ones are seeded."""
    queue, seen = deque([(name, root, 0)]), set[int]()
    while queue and len(seen) < MOST:
        path, thing, depth = queue.popleft()
        if isinstance(thing, GENERATORS):
            if id(thing) not in seen and not any(thing is known for known in GLOBAL):
                yield path, thing
        elif not isinstance(thing, PLAIN) and id(thing) not in seen and depth < DEPTH:
            queue.extend((child_path, child, depth + 1) for child_path, child in children(path, thing))
        seen.add(id(thing))


def children(path: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, with the path to it."""
    if isinstance(thing, functools.partial):
        yield from children(path, [thing.func, *thing.args, *thing.keywords.values()])
    elif isinstance(thing, types.MethodType):
        yield from ((path, thing.__self__), (path, thing.__func__))
    elif isinstance(thing, types.FunctionType):
        yield from of_function(path, thing)
    elif isinstance(thing, (list, tuple)):
        yield from ((f"{path}.{i}", entry) for i, entry in enumerate(thing[:ENTRIES]))
    elif isinstance(thing, dict):
        yield from ((f"{path}.{key}", thing[key]) for key in list(thing)[:ENTRIES])
    else:
        yield from ((f"{path}.{key}", value) for key, value in list(vars_of(thing).items()))
        for cls in type(thing).__mro__:
            if cls.__module__.split(".")[0] not in LIBRARIES:
                yield from ((f"{path}.{key}", value) for key, value in list(vars(cls).items()))


def of_function(path: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function closes over, and what it names: generators, and other functions of its module."""
    if function.__module__ is None or function.__module__.split(".")[0] in LIBRARIES:
        return
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield path, cell.cell_contents
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        is_near = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        if is_near or isinstance(value, GENERATORS):
            yield f"{path} ({function.__module__}.{name})" if not is_near else path, value


def vars_of(thing: Any) -> dict[str, Any]:
    found = getattr(thing, "__dict__", None)
    return found if isinstance(found, dict) else {}


def plain_attributes(thing: Any) -> dict[str, Any]:
    """Numbers and words that an object holds itself."""
    return {k: v for k, v in vars_of(thing).items() if isinstance(v, (int, float, complex, str, bytes, type(None)))}


def kind_of(generator: Any) -> str:
    named = {torch.Generator: "torch.Generator", random.Random: "random.Random"}
    return named.get(type(generator), f"numpy.random.{type(generator).__name__}")


def states_of(generators: Mapping[str, Any]) -> dict[str, Any]:
    return {path: state_of(generator) for path, generator in generators.items()}


def state_of(generator: Any) -> Any:
    """Its state as a value that compares; None where it has none (random.SystemRandom)."""
    if isinstance(generator, torch.Generator):
        return bytes(generator.get_state().numpy())
    if isinstance(generator, random.Random):
        return None if isinstance(generator, random.SystemRandom) else generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return pickle.dumps(generator.get_state(legacy=False))
    return pickle.dumps(getattr(generator, "bit_generator", generator).state)


def put_back(generator: Any, state: Any) -> None:
    if state is None:
        return
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(pickle.loads(state))
    else:
        getattr(generator, "bit_generator", generator).state = pickle.loads(state)
