"""`runner preview WORDS`: the learning rate of every step, by the run's own schedule; nothing trains."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.cli import one_run
from runner.cli.columns import width
from runner.errors import InputError
from runner.terminal.plot import plot
from runner.terminal.printable import say
from runner.terminal.progress import with_bar

if TYPE_CHECKING:
    from runner.before.preview import Preview

MOST, HEIGHT = 12, 14


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner preview",
        description="Draws the learning rate of every step of a run, walked with its own model, optimizer and"
        " scheduler; several values (scheduler=cosine,step) in one picture. Nothing trains, and no data is read where"
        " the config says how much there is.",
    )
    one_run.add_flags(made, "overrides as for a run or a sweep")
    made.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="also writes a page with the picture")
    made.add_argument("--json", action="store_true", help="the rates, as JSON")
    return made


def main(arguments: argparse.Namespace) -> int:
    from runner.cli import preview_page

    if arguments.output is not None:
        preview_page.check_free(arguments.output)
    named = composed(one_run.words_of(arguments), arguments.config_dir)
    found = walked(named)
    if len({made.unit for _, made in found}) > 1:  # one axis for all of them
        found = walked(named, by_step=True)
    if arguments.json:
        say(*json.dumps([{"label": label, **vars(made)} for label, made in found], indent=2).splitlines())
    else:
        say(*lines(found, width()))
    if arguments.output is not None:
        notes = [f"{label}: {line}" for label, made in found for line in made.said]
        preview_page.write(arguments.output, curves(found), found[0][1].unit, notes)
        say(arguments.output)
    return 0


def walked(named: list[tuple[str, Any]], by_step: bool = False) -> "list[tuple[str, Preview]]":
    from runner.before.preview import preview

    found = []
    for label, task in with_bar(named, "walking schedules"):
        try:
            found.append((label, preview(task, by_step)))
        except InputError as error:
            raise InputError(f"{label}: {error}" if len(named) > 1 else str(error)) from error
    return found


def composed(words: list[str], config_dir: str | None) -> list[tuple[str, Any]]:
    """The config of each combination, with a label: what differs among them."""
    from runner.config.compose import compose
    from runner.sweep.combine import alternatives, task_config

    several = alternatives(words)
    if len(several) > MOST:
        raise InputError(f"{' '.join(words)}: {len(several)} schedules; at most {MOST} in one picture")
    common = {word for word in several[0] if all(word in other for other in several)}
    found = []
    for combination in several:
        _, cfg = compose(combination, config_dir)
        label = " ".join(word for word in combination if word not in common)
        found.append((label or f"scheduler={cfg.hydra.runtime.choices.scheduler}", task_config(cfg)))
    return found


def curves(found: "list[tuple[str, Preview]]") -> list[tuple[str, list[float]]]:
    return [
        (label if len(made.rates) == 1 else f"{label}, param group {number}", rates)
        for label, made in found
        for number, rates in enumerate(made.rates, 1)
    ]


def lines(found: "list[tuple[str, Preview]]", limit: int) -> list[str]:
    drawn, said = curves(found), []
    for label, made in found:
        rates = made.rates[0]
        steps = f"{made.epochs} epochs" if made.batches is None else f"{made.epochs} x {made.batches:,} steps"
        if made.batches is not None and len(rates) > 1 and len(rates) % made.batches:  # trainer.steps
            steps = f"{len(rates):,} steps, in epochs of {made.batches:,}"
        rest = f", highest {max(rates):.4g}, last {rates[-1]:.4g}" if len(rates) > 1 else ""
        said += [f"{label}: {steps}; first {rates[0]:.4g}{rest}", *(f"  note: {line}" for line in made.said)]
    longest = max(len(rates) for _, rates in drawn)
    alike = [(label, [*rates, *[None] * (longest - len(rates))]) for label, rates in drawn]  # over one axis
    return ["learning rate", *plot(alike, ("1", f"{found[0][1].unit} {longest:,}"), min(limit, 100), HEIGHT), *said]
