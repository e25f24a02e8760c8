"""What the YAML files of today say without a command, and in what a config differs: by reading them, without Hydra."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config.conf_dir import conf_dir
from runner.values import flatten

# What a run fills in, or what says nothing of the run itself.
FILLED_IN = ("derived.", "sweep.", "quiet", "hydra.", "name", "tags", "notes")


def defaults(choices: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """The default choice of each group; the flat config that the YAML files give for these choices; and the groups
    whose choice is none of our files.
    """
    import yaml

    folder = Path(conf_dir())
    own = yaml.safe_load((folder / "config.yaml").read_text())
    groups = {
        group: choice for entry in own.pop("defaults") if isinstance(entry, dict) for group, choice in entry.items()
    }
    groups = {group: str(choice) for group, choice in groups.items() if not group.startswith("override ")}
    own.pop("hydra", None)
    found, unknown = flatten(own), []
    for group, default in groups.items():
        choice = str(choices.get(group, default))
        path = folder / group / f"{choice}.yaml"
        if group == "experiment":
            continue
        if re.fullmatch(r"[\w.-]+", choice) and path.is_file():  # the name came out of a record
            found |= flatten(yaml.safe_load(path.read_text()) or {}, group)
        else:
            unknown.append(group)
    return groups, found, unknown


def differences(source: Mapping[str, Any], choices: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What of a config (as composed, interpolations unresolved) is not as the YAML files of today say it: groups by
    their choice, and keys.

    Args:
        overrides: the words that it was started with; they alone tell of choices whose files are not ours.
    """
    groups, ours, unknown = defaults(choices)
    typed = {word.partition("=")[0].lstrip("+~") for word in overrides}
    found: dict[str, Any] = {}
    for group, default in groups.items():
        choice = str(choices.get(group, default))
        if choice != default and not (choice in ("null", "None") and default == "None"):
            found[group] = choice
    for key, value in flatten(source).items():
        if key.startswith(FILLED_IN) or (key == "device.threads" and key not in typed):
            continue
        is_known = key in ours and key.split(".")[0] not in unknown
        if (not is_same(value, ours[key])) if is_known else key in typed:
            found[key] = value
    return found


def is_same(one: Any, other: Any) -> bool:
    """Equal, or a number and how YAML writes it: 1e-6 is text to some of its readers."""
    if one == other:
        return True
    try:
        return isinstance(one, (int, float, str)) and float(one) == float(other)
    except (TypeError, ValueError):
        return False


def words(found: Mapping[str, Any]) -> list[str]:
    """As one writes them on a command line."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value, default=str)}" for key, value in found.items()
    ]
