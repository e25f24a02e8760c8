"""One HTML file out of a title and blocks of plain data: no network, no other file, nothing that a text could start.

Contract: the data stands in the page as JSON in which no `<` is left, and the script sets every text as text. What the
page may do is said by its Content-Security-Policy: run this script, use these styles, show images that it holds itself.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage.files import read_regular
from runner.storage.rows import strict_json
from runner.storage.run_dir import now
from runner.terminal.printable import printable

MADE_BY = '<meta name="generator" content="torch-runner report">'
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
{made_by}
{refresh}<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
{styles}
</head>
<body>
<main id="page"><noscript>This page draws with a script of its own; scripts are switched off here.</noscript></main>
<script type="application/json" id="data">{data}</script>
{scripts}
</body>
</html>
"""


def page(title: str, blocks: Sequence[Mapping[str, Any]], refresh: int | None = None, **facts: Any) -> str:
    """The whole file.

    Args:
        blocks: what to show, from top to bottom; assets/report.js has a function for each "kind". Curves are
            {"kind": "charts", "heading": "Learning rate", "charts": [curves.lines_chart(...)], "lines": [a sentence]}.
        refresh: seconds after which a browser loads it again; None: never.
        facts: "subtitle", "state", and "runs", the names that the blocks' numbers of runs stand for.
    """
    styles = [asset("vendor/uPlot.min.css"), asset("assets/report.css")]
    scripts = [asset("vendor/uPlot.iife.min.js"), asset("assets/report.js")]
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:"
    policy += "; style-src " + " ".join(map(source_of, styles)) + "; script-src " + " ".join(map(source_of, scripts))
    data = {"title": title, "written": now(), "refresh": refresh, **facts, "blocks": blocks}
    return PAGE.format(
        policy=policy,
        made_by=MADE_BY,
        refresh="" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">\n',
        title=text_of_title(title),
        styles="\n".join(f"<style>{text}</style>" for text in styles),
        scripts="\n".join(f"<script>{text}</script>" for text in scripts),
        data=embedded(data),
    )


def asset(name: str) -> str:
    return files("runner.report").joinpath(name).read_text(encoding="utf-8")


def source_of(text: str) -> str:
    """How a policy names the one script or style that has this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def embedded(data: Any) -> str:
    """JSON that stays inside its element, whatever the texts are; what is not finite is null."""
    text = json.dumps(escaped(strict_json(data)), separators=(",", ":"), ensure_ascii=False)
    for char, escape in ESCAPES.items():
        text = text.replace(char, escape)
    return text


def escaped(value: Any) -> Any:
    """The data with each text as a reader may see it: no control characters, nothing that turns the writing around."""
    if isinstance(value, str):
        return printable(value, kept="\n")
    if isinstance(value, dict):
        return {printable(key): escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list) else value


def text_of_title(title: str) -> str:
    return printable(title).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def is_ours(content: bytes) -> bool:
    """Whether a file is a page of ours, which may be written again."""
    return MADE_BY.encode() in content[:4000]


def check_target(target: Path, flag: str) -> None:
    """Whether a page may be written to a file.

    Raises:
        InputError: names the flag, the file and the reason.
    """
    if target.is_dir():
        raise InputError(f"{flag} {target}: is a folder, not a file")
    if not target.parent.is_dir():
        raise InputError(f"{flag} {target}: there is no folder {target.parent}")
    if target.is_symlink():
        raise InputError(f"{flag} {target}: is a link; it is not followed, nor replaced")
    if target.exists():
        try:
            is_page = is_ours(read_regular(target))
        except OSError as error:
            raise InputError(f"{flag} {target}: cannot be read ({error.strerror or error})") from error
        if not is_page:
            raise InputError(f"{flag} {target}: is no page of ours, and is not overwritten; choose another file")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{flag} {target}: cannot be written (no permission in {target.parent}); choose another file")
