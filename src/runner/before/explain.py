"""All that can be said of a config before it trains: targets, where values come from, what the parts would be."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from runner.config import admission
from runner.config.admission import admitted, targets_below
from runner.config.checks import check_composed
from runner.errors import InputError
from runner.groups.length import is_usual
from runner.terminal.progress import bar
from runner.values import flatten

if TYPE_CHECKING:
    from runner.train.trainer import Trainer

COMMAND_LINE, RECORD = "command line", "record"


def target_rules(config: Any) -> list[dict[str, Any]]:
    """Every target of a resolved config: its place, and the rule that admits it or why it is refused."""
    found = []
    for place, name in targets_below(config, ""):
        row: dict[str, Any] = {"place": place.removeprefix("."), "target": name, "admitted": True}
        try:
            row["why"] = admitted(name, str(row["place"]))[1]
        except Exception as error:
            row |= {"admitted": False, "why": " ".join(str(error).split())}
        found.append(row)
    return found


def sources(cfg: DictConfig, words: Sequence[str]) -> dict[str, str]:
    """Where each key's value comes from: the command line, or a YAML file, by its path below its folder of configs.

    Args:
        cfg: as composed, with hydra.*.
    """
    named = [word.lstrip("+~").partition("=")[0] for word in words]
    choices = {str(k): str(v) for k, v in cfg.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    experiment = keys_of_experiment(cfg, choices.get("experiment"))
    found = {}
    for key in flatten(OmegaConf.to_container(cfg, resolve=False)):
        if key.startswith("hydra."):
            continue
        group = key.split(".")[0]
        if any(key == name or key.startswith(f"{name}.") for name in named if name not in choices):
            found[key] = COMMAND_LINE
        elif key in experiment:
            found[key] = f"experiment/{choices['experiment']}.yaml"
        elif group in choices:
            found[key] = f"{group}/{choices[group]}.yaml" + (f" ({COMMAND_LINE})" if group in named else "")
        else:
            found[key] = "config.yaml"
    return found


def keys_of_experiment(cfg: DictConfig, choice: str | None) -> set[str]:
    """The keys that an experiment's file sets itself."""
    if choice in (None, "None", "null"):
        return set()
    for source in cfg.hydra.runtime.config_sources:
        path = Path(str(source.path), "experiment", f"{choice}.yaml")
        if source.schema == "file" and path.is_file():
            return set(flatten(OmegaConf.to_container(OmegaConf.load(path), resolve=False))) - {"defaults"}
    return set()


def made(task: DictConfig) -> dict[str, Any]:
    """What the parts of a run would be: examples, batches, parameters, rates; all is made and thrown away.

    Raises:
        InputError: what would keep it from training.
    """
    from runner.before.beforehand import examined
    from runner.job.record import count_of

    check_composed(task)
    with admission.of_config(task):
        built, warnings = examined(task)
    trainer, parts = built.trainer, built.parts
    epochs = trainer.config.epochs
    length = epochs if is_usual(built.config["trainer"]) else f"{epochs} ({trainer.max_steps:,} steps)"
    return {
        "examples": {name: count_of(part) for name, part in parts.all.items()},
        "input": built.config["dataset"].get("input_shape"),
        "classes": built.config["dataset"].get("num_classes"),
        "batches": f"{len(trainer.train_loader)} an epoch, from {built.placement.where}: {built.placement.reason}",
        "epochs": length,
        "parameters": sum(p.numel() for p in trainer.task.parameters()),
        "chosen by": f"{trainer.config.monitor}, {'lowest' if trainer.config.mode == 'min' else 'highest'} is best",
        "rate": rate_of(trainer),
        "likely mistakes": warnings,
    }


def rate_of(trainer: "Trainer") -> dict[str, Any]:
    """The first param group's learning rate, in the first interval, at its highest, and in the last one."""
    schedule = trainer.schedule
    if schedule.monitor is not None:
        return {"first": schedule.rates[0][0], "then": f"by {schedule.monitor}"}
    walked, intervals = schedule.rates_of_run(trainer.config.epochs, trainer.max_steps)
    rates = [group[0] for group in walked]
    if len(rates) < intervals:
        whole: dict[str, Any] = {"highest": f"not known (the first {len(rates):,} of {intervals:,} steps are walked)"}
    else:
        whole = {"highest": max(rates), "last": rates[-1]}
    return {"first": rates[0], **whole, "steps": schedule.interval}


def unreadable_examples(task: DictConfig) -> list[str]:
    """Reads every example of every part: what is said of those that cannot be read."""
    from runner.batches.samples import read
    from runner.before.beforehand import quietly
    from runner.groups.data_parts import make_parts

    check_composed(task)
    with admission.of_config(task), quietly():
        parts = {name: part for name, part in make_parts(task).all.items() if hasattr(part, "indices")}
        found = []
        with bar("reading every example", sum(map(len, parts.values()))) as done:
            for name, part in parts.items():
                for index in part.indices.tolist():
                    try:
                        read(part.dataset, [index])
                    except Exception as error:
                        said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
                        found.append(f"{name}, example {index}: {' '.join(said.removeprefix('dataset: ').split())}")
                    done.add()
    return found


def explained(config: Any, task: DictConfig | None, all_examples: bool = False) -> dict[str, Any]:
    """Targets, and then the parts where every target may be made; "error" where something would be refused.

    Args:
        config: plain containers, resolved.
        task: the config to make the parts of; None: they are not made.
        all_examples: reads every one first.
    """
    said: dict[str, Any] = {"targets": target_rules(config)}
    refused = [row for row in said["targets"] if not row["admitted"]]
    if refused:
        said["error"] = f"{refused[0]['place']}._target_={refused[0]['target']}: {refused[0]['why']}"
    elif task is not None:
        try:
            if broken := unreadable_examples(task) if all_examples else []:
                said["unreadable"] = broken
                raise InputError(f"dataset: {len(broken):,} of its examples cannot be read")
            said["parts"] = made(task)
        except InputError as error:
            said["error"] = str(error)
    return said
