"""The part of a run's page that takes its model and its data: made where that is safe and quick, else the reason."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from runner.errors import InputError
from runner.job.confusion import TooLong, confusion
from runner.report.confusion import blocks as blocks_of
from runner.report.gather import Run
from runner.values import guess

SECONDS = 60.0  # that the examples may take where nobody asked for them
HEADING = "Confusion"


def blocks(run: Run, is_asked: bool | None) -> list[dict[str, Any]]:
    """Confusion, accuracy per class and the worst mistakes, or one sentence that says why they are not there.

    Args:
        is_asked: True: whatever it takes; False: not at all; None: of one's own finished run, within a minute.

    Raises:
        InputError: they were asked for, and the run cannot be opened or has no classes.
    """
    if is_asked is False:
        return []
    try:
        if is_asked is None and (why := why_not(run)) is not None:
            return [absent(why)]
        with quiet(is_asked is None):
            return computed(run, SECONDS if is_asked is None else float("inf"))
    except TooLong:
        return [absent(f"they take longer than {SECONDS:.0f} s; --examples waits for them")]
    except InputError as error:
        if is_asked:
            raise
        return [absent(str(error))]
    except Exception as error:  # a page of records needs no model: what its code or its data raise is no reason to fail
        if is_asked:
            raise
        return [absent(f"{type(error).__name__}: {' '.join(str(error).split())}")]


def why_not(run: Run) -> str | None:
    if run.state != "done":
        return f"the run's state is {run.state}; --examples takes what weights there are"
    return None


def absent(why: str) -> dict[str, Any]:
    said = f"Without confusion matrix, accuracy per class and mistakes: {why}."
    return {"kind": "lines", "heading": HEADING, "lines": [said]}


@contextmanager
def quiet(is_quiet: bool) -> Iterator[None]:
    """Nobody asked for the model: what opening it would warn of is not said."""
    log = logging.getLogger("runner")
    before = log.disabled
    log.disabled = before or is_quiet
    try:
        yield
    finally:
        log.disabled = before


def computed(run: Run, seconds: float) -> list[dict[str, Any]]:
    """By the machinery of `runner evaluate`: the record's own config, judged by what is admissible."""
    from runner.job.own_code import as_it_was_started
    from runner.job.rebuilding import rebuilt
    from runner.job.saved import open_saved

    which = "best" if (run.path / "checkpoints" / "best.pt").exists() else "last"
    saved = open_saved(run.path, which)
    with as_it_was_started(saved.record, saved.folder), closing(rebuilt(saved)) as built:
        split = built.parts.final_split
        part, loader = part_of(built, split)
        found = confusion(built, loader, part, seconds)
    return blocks_of(found, f"{split} part, {which} weights", dataset_of(saved.record))


def part_of(built: Any, split: str) -> tuple[Any, Any]:
    """A part of the data and its loader.

    Raises:
        InputError: this run has no such part.
    """
    loaders = {**built.trainer.eval_loaders, "test": built.test_loader}
    known = [name for name, loader in loaders.items() if loader is not None]
    if split not in known:
        choices = f"{guess(split, known)}choices: {', '.join(known) or 'none'}"
        raise InputError(f"--split {split}: this run has no such part; {choices}")
    return built.parts.part(split), loaders[split]


def dataset_of(record: Mapping[str, Any]) -> dict[str, Any]:
    found = record["config"].get("dataset")
    return dict(found) if isinstance(found, Mapping) else {}
