"""Which choice of each config group a run was started with."""

import re
from pathlib import Path

from runner.storage.files import read_regular


def choices_of(folder: Path) -> dict[str, str]:
    """The choices that Hydra kept in the run's folder; read as text: YAML of a thousand runs takes half a minute."""
    try:
        text = read_regular(folder / ".hydra" / "hydra.yaml").decode(errors="replace")
    except OSError:
        return {}
    found = re.search(r"^( *)choices:\n((?:\1 +.*\n)+)", text, re.MULTILINE)
    pairs = re.findall(r"^ *([\w@.-]+): (.+)$", found[2], re.MULTILINE) if found else []
    return {group: choice.strip("'\"") for group, choice in pairs if not group.startswith("hydra/")}
