"""The way into a sweep: Hydra composes what its jobs share, and hands over to a sweeper and a launcher."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from runner.config import admission, hydra_adapter
from runner.config.compose import CONFIG_NAME, compose, make_hydra, own_hydra, quoted, refuse_no_choice, set_up
from runner.errors import InputError
from runner.sweep import points
from runner.terminal.printable import say
from runner.values import flatten

# Of Hydra's own, what a sweep that was not written here may choose: how many at once and of what size, but no commands
# (a cluster's `parameters` have some), no address, no folder and no database.
STRANGERS_KEYS = re.compile(
    r"hydra/launcher|hydra\.launcher\.(jobs|jobs_per_gpu|cpus|gpus|memory|timeout|max_timeouts)"
    r"|hydra/sweeper|hydra/sweeper/sampler|hydra\.sweeper\.(n_trials|at_once|sampler(\..+)?|pruner(\..+)?)"
)


def multirun(overrides: Sequence[str], config_dir: str | None = None) -> Any:
    """Runs a sweep, by default with our sweeper and launcher.

    Raises:
        InputError: as compose, for any of the jobs.
    """
    set_up()
    refuse_no_choice(overrides)
    with own_hydra():
        return hydra_adapter.multirun(make_hydra(config_dir), CONFIG_NAME, sweep_job, overrides)


def sweep_job(cfg: DictConfig) -> Any:
    """One job of a sweep under another launcher than ours, in the directory that Hydra made for it."""
    from runner.sweep.worker import run_or_resume

    return run_or_resume(cfg, Path(HydraConfig.get().runtime.output_dir))


def resume(place: Path, record: Mapping[str, Any], overrides: Sequence[str]) -> Any:
    """Runs a sweep's own command again in its folder, with the defaults that it was begun with."""
    kept = kept_defaults(record)
    for word in kept:
        say(f"{word}: as this sweep was begun; the default has changed since")
    if any(word.lstrip("+").startswith("trainer.epochs=") for word in overrides):
        overrides = [*overrides, "sweep.lengthen=true"]
    own = points.from_copy(record["arguments"], place)
    words = [*own, *record.get("hydra", []), quoted("hydra.sweep.dir", str(place)), *kept, *overrides]
    return multirun(words, record["config_dir"])


def check_words(path: Path, record: Mapping[str, Any], is_mine: bool) -> None:
    """Refuses what a stranger's sweep.json may not say: where configs come from, what is trusted, what Hydra makes.

    Raises:
        InputError: names the word.
    """
    if is_mine or admission.granted()[1]:
        return
    arguments = record["arguments"]  # of a CSV file the sweep's own copy is read
    own = [word for word, kept in zip(arguments, points.from_copy(arguments, path.parent), strict=True) if word == kept]
    words = [str(word) for word in (*own, *record.get("hydra", []))]
    wrong = [word for word in words if "${" in word or not is_strangers_word(word)]
    wrong += [f"{key}={value}" for key, value in record["base"].items() if "${" in str(value)]
    wrong += [f"trust={value}" for value in [record["base"].get("trust")] if value]
    if record.get("config_dir") is not None:
        wrong.append(f"--config-dir {record['config_dir']}")
    if wrong:
        raise InputError(
            f"{path}: {wrong[0]}: is not followed, since this sweep was not written by you on this machine; give its"
            " command again yourself, or follow all that it says with --trust-all"
        )


def is_strangers_word(word: str) -> bool:
    """Whether an override is one that a sweep which was not written here may say, judged as Hydra reads it."""
    try:
        override = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):
        return False
    key, package = override.key_or_group, override.package or ""
    if package or re.split(r"[./]", key)[0] in ("hydra", "trust"):
        return STRANGERS_KEYS.fullmatch(key) is not None and not package
    return key != points.KEY or isinstance(override.value(), list)


def kept_defaults(record: Mapping[str, Any]) -> list[str]:
    """Overrides for what a sweep's command would compose to other values today; what is interpolated follows."""
    from runner.sweep.combine import combinations, resolved, task_config
    from runner.sweep.plan import base_of

    parsed = OverridesParser.create().parse_overrides(list(record["arguments"]))
    try:
        words = combinations(parsed)[0]
    except (InputError, IndexError):  # a search, whose intervals have no list of values
        words = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    task = task_config(compose(words, record["config_dir"])[1])
    source = flatten(OmegaConf.to_container(task, resolve=False))
    today, before = base_of(resolved(task), record["swept"]), record["base"]
    changed = [key for key in today if key in before and today[key] != before[key] and "${" not in str(source.get(key))]
    return [as_override(key, before[key]) for key in changed]


def as_override(key: str, value: Any) -> str:
    return quoted(key, value) if isinstance(value, str) else f"{key}={json.dumps(value)}"
