"""`runner --help`: the groups with their choices, and the verbs. Reads file names and one YAML; composes nothing."""

from collections.abc import Sequence
from pathlib import Path

from runner.cli import VERBS
from runner.terminal.printable import say

HEAD = """\
Trains one model as the config says, and leaves a folder under outputs/ with all that it did.

  python -m runner [VERB | GROUP=CHOICE ... GROUP.KEY=VALUE ...]

  python -m runner                                          handwritten digits, in less than a minute
  python -m runner scheduler=cosine optimizer.lr=0.5        another scheduler, another learning rate
  python -m runner experiment=mnist_example dataset.root=DIR   the official PyTorch MNIST example
  python -m runner --cfg job                                the config, and every key that can be set
"""
FLAGS = """\
Flags
  --quiet              only the result on the screen
  --config-dir DIR     YAML files of your own; they come before ours
  --cfg job            show the config instead of running it; --resolve with every interpolation resolved
  -m                   a sweep: -m seed=1,2,3 scheduler=step,cosine
  -sc install=bash     shell completion: eval "$(runner -sc install=bash)"
  --hydra-help         Hydra's own help
"""


def show(argv: Sequence[str]) -> None:
    import yaml

    from runner.config.conf_dir import conf_dir

    folders = [Path(conf_dir())]
    if "--config-dir" in argv[:-1]:
        folders.insert(0, Path(argv[argv.index("--config-dir") + 1]))
    defaults = {}
    for entry in yaml.safe_load((Path(conf_dir()) / "config.yaml").read_text())["defaults"]:
        if isinstance(entry, dict):
            defaults.update(entry)
    choices: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.glob("*/*.yaml"):
            choices.setdefault(path.parent.name, set()).add(path.stem)
    say(*HEAD.splitlines(), "", "Groups (* is the default)")
    order = [group for group in defaults if group in choices]
    for group in order + sorted(set(choices) - set(order)):
        names = [f"{name}*" if defaults.get(group) == name else name for name in sorted(choices[group])]
        say(f"  {group:12} {', '.join(names)}")
    say("", "Verbs (each has a --help)")
    for verb, what in VERBS.items():
        say(f"  {verb:12} {what}")
    say("", *FLAGS.splitlines())
