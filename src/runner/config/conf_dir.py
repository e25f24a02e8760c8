"""Where our YAML files lie: in the package once it is installed from a wheel, else in the checkout."""

from pathlib import Path


def conf_dir() -> str:
    packaged = Path(__file__).parents[1] / "conf"
    return str(packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf")
