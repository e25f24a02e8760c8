"""The way into a sweep: Hydra composes what its jobs share, and hands over to a sweeper and a launcher."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from runner.config import admission, hydra_adapter
from runner.config.compose import CONFIG_NAME, compose, make_hydra, own_hydra, quoted, refuse_no_choice, set_up
from runner.errors import InputError
from runner.job.own_code import relocated
from runner.sweep import points
from runner.terminal.printable import say
from runner.values import flatten, is_number

# Of Hydra's own, what a sweep's record may choose: how many at once and of what size, but no commands (a cluster's
# `parameters` have some), no address, no folder and no database.
HYDRA_KEYS = re.compile(
    r"hydra/launcher|hydra\.launcher\.(jobs|jobs_per_gpu|cpus|gpus|memory|timeout|max_timeouts)"
    r"|hydra/sweeper|hydra/sweeper/sampler|hydra\.sweeper\.(n_trials|at_once|sampler(\..+)?|pruner(\..+)?)"
)
SIZES = ("num_cpus", "num_gpus", "object_store_memory")  # of Ray's init, whose other settings may hold commands


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
    return multirun(words, config_dir_of(record))


def check_words(path: Path, record: Mapping[str, Any]) -> None:
    """Refuses what a sweep.json may not say: where configs come from, what is trusted, what Hydra makes.

    Raises:
        InputError: names the word.
    """
    if admission.granted()[1]:
        return
    arguments = record["arguments"]  # of a CSV file the sweep's own copy is read
    own = [word for word, kept in zip(arguments, points.from_copy(arguments, path.parent), strict=True) if word == kept]
    words = [str(word) for word in (*own, *record.get("hydra", []))]
    words += [f"trust=[{','.join(map(str, names))}]" for names in [record["base"].get("trust")] if names]
    wrong = [word for word in words if not is_followed(word)]
    wrong += [f"{key}={value}" for key, value in record["base"].items() if "${" in str(value)]
    folder = config_dir_of(record)
    if folder is not None and not admission.of_record(path.parent).is_beside(Path(folder).resolve()):
        wrong.append(f"--config-dir {record['config_dir']}")
    if wrong:
        way_out = "give the sweep's command again, or follow all that it says by --trust-all"
        if wrong[0].startswith("trust="):
            way_out = f"say it by --trust {wrong[0][7:-1]}"
        raise InputError(f"{path}: {wrong[0]}: is not taken from a record; {way_out}")


def config_dir_of(record: Mapping[str, Any]) -> str | None:
    """The folder of YAML files that a sweep was given; where it is gone, the same one of the project that has moved."""
    given: str | None = record["config_dir"]
    return given if given is None or Path(given).is_dir() else str(relocated(Path(given), record))


def is_followed(word: str, trusted: Collection[str] = ()) -> bool:
    """Whether an override is one that a record may say, judged as Hydra reads it.

    Args:
        trusted: packages that the command itself trusts, beside those of --trust.
    """
    if "${" in re.sub(r"\$\{[\w.]+\}", "", word):  # a key of the config is no secret; what a resolver finds may be one
        return False
    try:
        override = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):
        return False
    key, package = override.key_or_group, override.package or ""
    if key == "trust" and not package and isinstance(names := override.value(), list):
        return {str(name) for name in names} <= {*trusted, *admission.granted()[0]}
    if package or re.split(r"[./]", key)[0] in ("hydra", "trust"):
        given: Any = override.value() if key == "hydra.launcher.init" else None
        is_size = isinstance(given, dict) and all(str(k) in SIZES and is_number(v) for k, v in given.items())
        return (HYDRA_KEYS.fullmatch(key) is not None or is_size) and not package
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
    task = task_config(compose(words, config_dir_of(record))[1])
    source = flatten(OmegaConf.to_container(task, resolve=False))
    today, before = base_of(resolved(task), record["swept"]), record["base"]
    changed = [key for key in today if key in before and today[key] != before[key] and "${" not in str(source.get(key))]
    return [as_override(key, before[key]) for key in changed]


def as_override(key: str, value: Any) -> str:
    return quoted(key, value) if isinstance(value, str) else f"{key}={json.dumps(value)}"
