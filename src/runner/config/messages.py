"""Hydra's and OmegaConf's messages, which fill several lines, as one line that names key, value and choices."""

import re

from hydra.errors import OverrideParseException
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from yaml import MarkedYAMLError

from runner.config.names import GROUPS, nearest


def one_line(error: BaseException) -> str:
    """An error's message."""
    text = str(error)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        tab = ": a tab; YAML is indented by spaces" if "cannot start any token" in str(error.problem) else ""
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}{tab}"
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and str(cause) not in text:
        text = f"{text}; {cause}"
    if missing := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, choice = missing.groups()
        found = re.search(r"Available options in '[^']*':\n(.*?)(?:\n\S|\Z)", text, re.DOTALL)
        choices = ", ".join(line.strip() for line in found[1].splitlines() if line.strip()) if found else ""
        if group.startswith("experiment/") and not choices:
            group = group.removeprefix("experiment/")
            return (
                f"experiment: {group}={choice}: the file begins with `# @package _global_`, and its defaults say"
                f" `- override /{group}: {choice}`"
            )
        meant = f"did you mean {near}? " if (near := nearest(choice, choices.split(", "))) else ""
        return f"{group}={choice}: no such choice; {meant}choices: {choices}"
    if relative := re.search(r"In '(experiment/[^']+)': Could not override '(experiment/(.+?))(@|')", text):
        return f"{relative[1]}: {relative[2]}: no such group; its defaults say `- override /{relative[3]}: ...`"
    if twice := re.match(r"Multiple values for (\S+)\. ", text):
        return f"{twice[1]}: is chosen twice; the defaults of an experiment say `- override /{twice[1]}: CHOICE`"
    if absent := re.search(r"(In '[^']+': )?Could not override '([^']+)'", text):
        if (inner := re.search(r"Key '(\w+)' is not in struct", text)) and not absent[2].endswith(f".{inner[1]}"):
            return f"{absent[2]}: there is no key {inner[1]!r} in it; +{absent[2]}.{inner[1]}=VALUE adds it"
        meant = f"; did you mean {near}?" if (near := nearest(absent[2], GROUPS)) else ""
        return f"{absent[1] or ''}{absent[2]}: there is no such config group or key{meant}"
    if named := re.match(r"InputError raised while resolving interpolation: (.*)", text):  # by a resolver of ours
        return named[1]
    where = re.search(r"full_key: (\S+)", text)
    if isinstance(cause or error, GrammarParseError) and where:
        return (
            f"{where[1]}: an interpolation does not parse ({text.strip('; ').splitlines()[0]}); what is no plain word"
            " in it stands in quotes, as in ${eval:'max(1, 2) / 3'}"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("object_type=", "See https://", "Set the environment"))]
    message = "; ".join(lines)
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        if not re.fullmatch(r"[\w./@+~:-]+", key, re.ASCII):
            return f"{error.override}: a key is of letters from a to z, digits, and _ . / - @; give KEY=VALUE"
        if message.startswith("LexerNoViableAltException"):
            message = "holds a sign that must stand in quotes"
        if error.override not in message:
            message = f"{error.override}: {message}"
        example = value if value and not set(value) & set('"\\') else "a (value)"
        example = "0.95 ** epoch" if "lr_lambda" in key else example
        message += f"; quotes inside the shell's make it text: '{key}=\"{example}\"'"
    return message
