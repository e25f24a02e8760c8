"""`runner find-lr WORDS`: the learning-rate range test, drawn, with what it suggests and how much to believe that."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.cli import one_run
from runner.cli.columns import width
from runner.errors import InputError
from runner.terminal.plot import plot
from runner.terminal.printable import say
from runner.terminal.words import pasted

if TYPE_CHECKING:
    from runner.before.lr_range import RangeTest

LOW, HIGH, STEPS = 1e-5, 10.0, 100
MOST_STEPS = 10_000
HEIGHT, WIDEST = 14, 100
AROUND = (0.5, 1, 2, 4)  # times the suggestion, which is oftener too low
TITLE = "loss by learning rate"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner find-lr",
        description="The learning-rate range test: trains some steps of a run, each with a higher rate, and suggests an"
        " optimizer.lr by where the loss falls. The model, data, optimizer and step are the run's; the scheduler is"
        " left out, and nothing is kept.",
    )
    one_run.add_flags(made)
    made.add_argument("--from", dest="low", type=float, default=LOW, metavar="LR", help=f"the first rate ({LOW:g})")
    made.add_argument("--to", dest="high", type=float, default=HIGH, metavar="LR", help=f"the last ({HIGH:g})")
    made.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"steps from one to the other ({STEPS})")
    made.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="also writes a page with the picture")
    made.add_argument("--json", action="store_true", help="the curve and the suggestion, as JSON")
    return made


def main(arguments: argparse.Namespace) -> int:
    check(arguments)
    from runner.report.page import check_target

    if arguments.output is not None:
        check_target(arguments.output, "-o")
    cfg = one_run.config_of(arguments)
    from runner.before.lr_range import range_test  # after the words: a wrong one is answered at once

    found = range_test(cfg, arguments.low, arguments.high, arguments.steps)
    if arguments.json:
        say(*json.dumps({**vars(found), "suggestion": vars(found.suggestion)}, indent=2).splitlines())
    else:
        say(*lines(found, arguments, width()))
    if arguments.output is not None:
        write(found, arguments)
        say(arguments.output)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Refuses a range or a count that makes no test.

    Raises:
        InputError: names the flag and its value.
    """
    for flag, value in (("--from", arguments.low), ("--to", arguments.high)):
        if not 0 < value < math.inf:
            raise InputError(f"{flag} {value:g}: must be a finite number above 0")
    if arguments.low >= arguments.high:
        raise InputError(f"--from {arguments.low:g}: must be below --to {arguments.high:g}")
    if not 20 <= arguments.steps <= MOST_STEPS:
        raise InputError(f"--steps {arguments.steps}: must be a whole number of 20 to {MOST_STEPS:,}")


def rounded(rate: float) -> str:
    """With two digits, as one types it."""
    return f"{float(f'{rate:.1e}'):g}"


def lines(found: "RangeTest", arguments: argparse.Namespace, limit: int) -> list[str]:
    """The screen: the picture, the suggestion, the doubts."""
    rates, best, title, picture = found.rates, found.suggestion.valley, TITLE, []
    if len(rates) > 1:
        marks = [] if best is None else [(rates.index(best) / (len(rates) - 1), rounded(best))]
        most = highest(found.smooth)
        title += f", cut off at {most:.4g}" if max(found.smooth) > most else ""
        values = [min(value, most) for value in found.smooth]
        picture = plot([("", values)], (f"{rates[0]:.3g}", f"{rates[-1]:.3g}"), min(limit, WIDEST), HEIGHT, marks)
    command = next_command(found, arguments)
    said = [*told(found), *(f"note: {line}" for line in notes(found))]
    return [title, *picture, *said, *([] if command is None else [f"where to look: {command}"])]


def highest(smooth: Sequence[float]) -> float:
    """Where a picture ends: a loss that diverges is so far above its beginning that there is nothing else to see."""
    start = max(smooth[:3])
    return start + 0.3 * (start - min(smooth))


def told(found: "RangeTest") -> list[str]:
    """What it suggests."""
    suggestion = found.suggestion
    said = [] if found.ended is None else [f"the range ended early: {found.ended}"]
    if suggestion.valley is None or suggestion.steepest is None or suggestion.below_lowest is None:
        return [*said, "no suggestion"]
    said.append(
        f"suggestion: {found.key}={rounded(suggestion.valley)} (valley rule), in the middle of the fall{fall(found)}"
    )
    other = f"steepest fall {rounded(suggestion.steepest)}, a tenth of the lowest's {rounded(suggestion.below_lowest)}"
    return [*said, f"other rules: {other}"]


def fall(found: "RangeTest") -> str:
    between = found.suggestion.fall
    return "" if between is None else f" from {rounded(between[0])} to {rounded(between[1])}"


def notes(found: "RangeTest") -> list[str]:
    """All that is to be said against it."""
    return [*found.suggestion.doubts, *found.said]


def next_command(found: "RangeTest", arguments: argparse.Namespace) -> str | None:
    """The sweep that tells more than one curve can."""
    if found.suggestion.valley is None:
        return None
    rates = ",".join(rounded(found.suggestion.valley * factor) for factor in AROUND)
    kept = [
        word
        for word in arguments.words
        if word.lstrip("+").partition("=")[0] not in ("optimizer.lr", "seed", "trainer.dry_run")
    ]
    flags = [] if arguments.config_dir is None else ["--config-dir", arguments.config_dir]
    flags += [word for name in arguments.trust for word in ("--trust", name)]
    return pasted(["python", "-m", "runner", *flags, "-m", *kept, f"{found.key}={rates}", "seed=1,2,3"])


def write(found: "RangeTest", arguments: argparse.Namespace) -> None:
    """The same as a page."""
    from runner.report.page import page
    from runner.storage.files import write_atomically

    subtitle = pasted(["runner", "find-lr", *arguments.words])
    try:
        write_atomically(
            arguments.output,
            page("Learning-rate range test", blocks(found, arguments), subtitle=subtitle, runs=[]).encode(),
        )
    except OSError as error:
        raise InputError(f"-o {arguments.output}: cannot be written ({error.strerror or error})") from error


def blocks(found: "RangeTest", arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from runner.report.curves import finite, lines_chart

    best, rates = found.suggestion.valley, [finite(rate) for rate in found.rates]
    items = [{"label": found.key, "value": "no suggestion" if best is None else rounded(best)}]
    if best is not None:
        items[0]["note"] = f"valley rule: the middle of the fall{fall(found)}"
    for label, rate in (("steepest fall", found.suggestion.steepest), ("lowest / 10", found.suggestion.below_lowest)):
        items += [] if rate is None else [{"label": label, "value": rounded(rate), "note": "another rule"}]
    items.append({"label": "steps", "value": f"{len(rates):,}", "note": found.ended or "to the end of the range"})
    made: list[dict[str, Any]] = [{"kind": "headline", "items": items, "lines": notes(found)}]
    if len(rates) > 1:
        curves = {"running mean": found.smooth, "each batch": found.losses}
        named = {name: [finite(value) for value in values] for name, values in curves.items()}
        chart = {
            **lines_chart(TITLE, rates, named, x_label="learning rate"),
            "logX": True,
            "wide": True,
            "most": finite(highest(found.smooth)),
        }
        chart["series"][1] |= {"faint": True}
        chart["marks"] = [] if best is None else [{"x": finite(best), "label": f"suggestion {rounded(best)}"}]
        made.append({"kind": "charts", "heading": "Curve", "charts": [chart], "lines": []})
    if (command := next_command(found, arguments)) is not None:
        made.append({"kind": "command", "heading": "Where to look", "text": command})
    return made
