"""What can be said of a config before anything is made: keys, missing values, targets and their arguments."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from runner.config import admission
from runner.config.names import ALIASES, GROUPS
from runner.config.own_values import check_values, fill_left_out, is_read, packaged_values
from runner.errors import InputError, UnknownKey
from runner.values import fits, guess, hints_of, in_words, shown, text_hint

ROOT_KEYS = (
    *GROUPS,
    *("listeners", "tracking"),
    *("seed", "deterministic", "quiet", "name", "tags", "notes", "trust"),
    *("model_weights", "init_from", "strict", "freeze", "unfreeze_at", "derived", "sweep"),
)
DATASET_KEYS = (
    *("train", "val", "test", "evaluate", "input_shape", "num_classes", "mean", "std"),
    *("transform_train", "augment", "test_size", "val_size"),
)
TRAINER_KEYS = (
    *(
        "epochs",
        "steps",
        "evaluate_every",
        "monitor",
        "mode",
        "log_every",
        "limit_batches",
        "limit_eval_batches",
        "overfit_batches",
        "dry_run",
    ),
    *("grad_clip", "grad_clip_by", "accumulate", "channels_last", "compile"),
)
AVERAGING_KEYS = ("type", "decay", "every", "start", "evaluate")
STOPPING_KEYS = ("patience", "min_delta", "threshold", "divergence", "divergence_after", "max_minutes")
# A config of before says nothing of them.
LATER: dict[str, Any] = {"task": {"_target_": "runner.tasks.Supervised"}, "listeners": {}, "tracking": {}}
LATER |= {"freeze": [], "unfreeze_at": None, "stopping": {}, "averaging": {"type": "none"}}
LATER |= {f"trainer.{key}": None for key in ("limit_eval_batches", "overfit_batches", "steps", "evaluate_every")}
SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
OPTIMIZER_KEYS = ("groups", "no_decay")  # ours
SCHEDULE_KEYS = ("interval", "monitor")  # ours; a scheduler's constructor gets them only if it takes them


def check_composed(cfg: DictConfig) -> None:
    """Refuses keys that nothing takes, in a config as composed: resolved, it no longer says what reads a key."""
    for key, value in LATER.items():
        parent, _, last = key.rpartition(".")
        owner = cfg.get(parent) if parent else cfg
        if isinstance(owner, DictConfig) and last not in owner:
            OmegaConf.update(cfg, key, value, force_add=True)
    refuse_missing_parts(cfg)
    leave_out_unread(cfg)
    fill_left_out(cfg)
    refuse_missing_values(cfg)
    check_values(cfg)
    text = OmegaConf.to_yaml(cfg)
    if "experiment" in cfg:
        raise InputError(
            "experiment: its YAML file sets experiment.* and nothing else; its first line must be # @package _global_"
        )
    refuse_unknown_keys(cfg, "", ROOT_KEYS, text)
    refuse_unknown_keys(cfg.dataset, "dataset", DATASET_KEYS, text)
    refuse_unknown_keys(cfg.trainer, "trainer", TRAINER_KEYS, "")
    refuse_unknown_keys(cfg.averaging, "averaging", AVERAGING_KEYS, text)
    refuse_unknown_keys(cfg.stopping, "stopping", STOPPING_KEYS, text)


def check_targets(cfg: DictConfig, is_new: bool = True) -> None:
    """Refuses missing values, and targets that cannot be imported or called so.

    Args:
        is_new: False takes values as they were taken when the run began, of whatever kind.
    """
    refuse_missing_values(cfg)
    if not isinstance(cfg.seed, int):
        raise InputError(f"seed={cfg.seed}: must be a whole number")
    with admission.of_config(cfg):
        for key in cfg:
            walk_targets(cfg, str(key), is_new=is_new)


def refuse_missing_parts(cfg: DictConfig) -> None:
    """Refuses a config that lacks a part: a group that is null, or a key that was deleted with `~`."""
    for key in ROOT_KEYS:
        if key not in cfg and key not in LATER:
            raise InputError(f"{key}: is missing; it was deleted with ~{key}")
    for group in GROUPS:
        if not isinstance(cfg[group], DictConfig):
            raise InputError(f"{group}={cfg[group]}: must be a group of keys; choose one with {group}=CHOICE")
    required = {"trainer": TRAINER_KEYS, "dataset": ("train",), "device": ("type",)}
    required |= {group: ("_target_",) for group in ("model", "optimizer", "scheduler", "loss", "task")}
    for group, keys in required.items():
        for key in keys:
            if key not in cfg[group]:
                raise InputError(f"{group}.{key}: must be given")
    for key in ("model_weights", "init_from", "name", "notes"):
        if not OmegaConf.is_missing(cfg, key) and not isinstance(cfg[key], (str, type(None))):
            raise InputError(
                f"{key}={shown(cfg[key])}: must be text; YAML reads 12:30, 1_1_1, 010 and `on` as something"
                f' else: put what stands there in quotes, as in {key}: "12:30"'
            )


def leave_out_unread(cfg: DictConfig) -> None:
    """Takes keys out of the dataset group that only a packaged choice has written, and nothing reads any more: the user
    has replaced what did.
    """
    text, node = OmegaConf.to_yaml(cfg), OmegaConf.to_container(cfg.dataset, resolve=False)
    assert isinstance(node, dict)
    unread = [name for name in map(str, node) if name not in DATASET_KEYS and not is_read(f"dataset.{name}", text)]
    unread = [name for name in unread if node[name] in packaged_values("dataset", name)]
    with open_dict(cfg):
        for name in unread:
            del cfg.dataset[name]
    if unread:
        leave_out_unread(cfg)  # what only these have read


def refuse_missing_values(cfg: DictConfig) -> None:
    """Refuses a mandatory value (`???` in the YAML) that is not given."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
    except InterpolationToMissingValueError as error:
        missing = re.findall(r"Missing mandatory value: (\S+)", str(error))
    except OmegaConfBaseException:
        check_values(cfg)  # says which value leads nowhere
        raise
    if missing:
        raise InputError(f"{missing[0]}: must be given, as in {missing[0]}=VALUE")


def refuse_unknown_keys(node: Any, key: str, known: tuple[str, ...], referring: str) -> None:
    """Every key must be known, or be read by an interpolation somewhere in `referring`."""
    prefix = f"{key}." if key else ""
    if not isinstance(node, DictConfig):
        raise InputError(f"{key}: must be a group of keys, got {node!r}")
    for name in map(str, node):
        if name not in known and not is_read(f"{prefix}{name}", referring):
            if packaged_values(key, name):
                reason = "nothing reads this key any more: what did was replaced; leave it out"
                raise InputError(f"{prefix}{name}={shown(node.get(name))}: {reason}")
            choices = ", ".join(k for k in known if k != "derived")
            choices = f"{guess(name, known, meant=aliased(name, known))}choices: {choices}"
            message = f"{prefix}{name}: nothing takes this key; {choices}"
            raise UnknownKey(message, f"{prefix}{name}", known)


def aliased(name: str, known: Sequence[str]) -> list[str]:
    """What another library's name means here, among the known keys or inside one of the groups."""
    meant = ALIASES.get(name.lower(), "").split()
    return [key for key in meant if key in known or (known is ROOT_KEYS and "." in key)][:1]


def walk_targets(parent: Any, key: str, path: str = "", is_new: bool = True) -> None:
    """Walks every `_target_` below parent[key]: it must exist, and take the keys beside it."""
    if OmegaConf.is_interpolation(parent, key):
        return
    node, path = parent[key], f"{path}.{key}" if path else str(key)
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            walk_targets(node, index, path, is_new)  # type: ignore[arg-type]
    if isinstance(node, DictConfig):
        if "_target_" in node and (path != "loss" or node["_target_"] is not None):
            refuse_wrong_arguments(node, path)
            if is_new:
                refuse_wrong_kinds(node, path)
        for name in node:
            walk_targets(node, name, path, is_new)  # type: ignore[arg-type]


def locate(target: Any, key: str) -> Any:
    """The object that a `_target_` names, where it may stand.

    Raises:
        InputError: it may not stand there, or cannot be imported, with the reason and the nearest name.
    """
    if target is None:
        return None
    if not isinstance(target, str):
        raise InputError(f"{key}._target_={target}: must be a dotted name, as package.module.Class")
    try:
        return admission.admitted(target, key)[0]
    except admission.Refused as error:
        raise InputError(f"{key}._target_={target}: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{key}._target_={target}: cannot be imported ({reason})") from error


def refuse_wrong_arguments(node: DictConfig, key: str) -> None:
    target = locate(node["_target_"], key)
    if not callable(target):
        raise InputError(f"{key}._target_={node['_target_']}: is not callable")
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    ours = {"scheduler": SCHEDULE_KEYS, "optimizer": OPTIMIZER_KEYS}.get(key, ())
    for name in map(str, node):
        if name not in parameters and name not in SPECIAL and name not in ours:
            meant = aliased(name, list(parameters))
            choices = f"{guess(name, parameters, meant=meant)}choices: {', '.join(parameters)}"
            message = f"{key}.{name}: {node['_target_']} takes no such argument; {choices}"
            raise UnknownKey(message, f"{key}.{name}", list(parameters))


def refuse_wrong_kinds(node: DictConfig, key: str) -> None:
    """Holds the values against the type hints of what they are for: null is left to the constructor."""
    hints = hints_of(locate(node["_target_"], key))
    for name in map(str, node):
        value = node[name]
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if name in hints and plain is not None and not fits(plain, hints[name]) and not holds_null(plain):
            written: Any = OmegaConf.to_container(node, resolve=False)
            source = re.fullmatch(r"\$\{(\w[\w.]*)\}", str(written[name]))
            where = source[1] if source else f"{key}.{name}"
            hint = text_hint(where, plain) if isinstance(plain, str) and fits(0, hints[name]) else ""
            raise InputError(f"{where}={shown(plain)}: must be {in_words(hints[name])}{hint}")


def holds_null(value: Any) -> bool:
    """Whether something in it is not known yet."""
    return isinstance(value, list) and any(item is None for item in value)


SPOKEN = {"lr": "learning rate", "eps": "epsilon"}  # what torch's messages call an argument


def blamed(key: str, message: str, node: Any) -> str:
    """`key.argument=value`, where the message certainly means one of the node's arguments: it holds its name as no word
    of a sentence is written (`num_heads`, 'size', size=3), as that of a value (weight tensor, p value), right before
    its value (momentum: -1), or as its first word (weight: holds 3). A value alone says nothing: 31 may be anybody's.
    """
    plain = {str(k): v for k, v in node.items() if not str(k).startswith("_")} if isinstance(node, Mapping) else {}
    named = []
    for name, value in plain.items():
        word = rf"(?<![\w.])(?:{re.escape(name)}|{re.escape(SPOKEN.get(name, name))})(?![\w.])"
        marked = (
            word if "_" in name else rf"(['\"`]){word}\1|{word}(=| (value|argument|parameter|probability|tensor)\b)"
        )
        if re.search(rf"\A{word}:|{marked}|{word}\W{{1,3}}{re.escape(str(value))}(?![\w.])", message):
            named.append(name)
    return f"{key}.{named[0]}={shown(plain[named[0]])}" if len(named) == 1 else key


def complaint(key: str, target: str, error: BaseException, node: Any = None) -> str:
    """One line: `key.argument=value: ...` where the error tells the argument, else `key: target: error`."""
    message = " ".join(str(error).split()) or type(error).__name__
    if re.match(r"\w+=", message):
        return f"{key}.{message}"
    if not isinstance(error, (ValueError, TypeError, RuntimeError)):
        message = f"{type(error).__name__}: {message}"
    key = blamed(key, message, node)
    return f"{key}: {target}: {message}" if target else f"{key}: {message}"
