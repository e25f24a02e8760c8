"""From a command line to one composed config: the search path, what an override may be, errors in one line."""

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from hydra import version
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError
from yaml import compose as compose_yaml

from runner.config import hydra_adapter
from runner.config.conf_dir import conf_dir
from runner.config.messages import one_line
from runner.config.names import ALIASES, GROUPS, nearest
from runner.errors import InputError, UnknownKey
from runner.values import compile_expression, guess, shown, text_hint

CONFIG_NAME = "config"
LOGGING = ("job_logging", "hydra_logging", "verbose")
NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)


def set_up() -> None:
    """What every use of Hydra here needs: its behaviour's version, and our resolvers."""
    version.setbase("1.3")
    if not OmegaConf.has_resolver("unique"):
        OmegaConf.register_new_resolver("unique", lambda: secrets.token_hex(4), use_cache=True)
        OmegaConf.register_new_resolver("sweep_folder", _sweep_folder, use_cache=True)
    OmegaConf.register_new_resolver("eval", _calculated, replace=True)  # Python's eval is what others put there


@contextmanager
def own_hydra() -> Iterator[None]:
    """Hydra for us alone, with every override checked, and what it refuses said in one line."""
    try:
        with hydra_adapter.own_hydra(_apply_checked):
            yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(not_utf8(Path(hydra_adapter.file_of(error)))) from error
    except (*COMPOSITION_ERRORS, ValueError) as error:
        raise InputError(one_line(error)) from error
    except OSError as error:
        if not str(error).startswith("Invalid loaded object type"):
            raise
        raise InputError(
            f"{hydra_adapter.file_of(error)}: must hold a group of keys (KEY: VALUE), not a single value"
        ) from error


def not_utf8(path: Path) -> str:
    """What to say of a file that is no UTF-8."""
    content = path.read_bytes() if path.is_file() else b""
    try:
        content.decode()
        line = 1
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
    kind = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8 (Latin-1?)"
    return f"{path}, line {line}: is {kind}; save the file as UTF-8"


def refuse_wrong_header(cfg: DictConfig) -> None:
    """Refuses an experiment whose keys came to stand below `experiment`: its header is not the file's first line."""
    if "experiment" not in cfg:
        return
    name = f"experiment/{cfg.hydra.runtime.choices.get('experiment')}.yaml"
    found = files_of(cfg, name)
    lines = found[0].read_text(encoding="utf-8").splitlines() if found else []
    at = next((n for n, line in enumerate(lines, 1) if re.match(r"\ufeff?\s*#\s*@?\s*package\b", line)), None)
    wrong = "there is no line `# @package _global_`" if at is None else f"{lines[at - 1].strip()!r} is not read"
    wrong += " behind a byte order mark (save it as UTF-8 without BOM)" if lines and lines[0][0:1] == "\ufeff" else ""
    raise InputError(
        f"{found[0] if found else name}, line {at or 1}: {wrong}, so that its keys stand below `experiment`; its first"
        " line must be `# @package _global_`, with no comment above it"
    )


def files_of(cfg: DictConfig, name: str) -> list[Path]:
    """The files of a name in the folders that a config was composed from, the one that wins first."""
    return [path for s in cfg.hydra.runtime.config_sources if (path := Path(s.path, name)).is_file()]


def refuse_unquoted(cfg: DictConfig) -> None:
    """Refuses a text that YAML reads as something else, as it stands in its file: 12:30 is 750."""
    for key in ("name", "notes", "model_weights", "init_from"):
        if key not in cfg or OmegaConf.is_missing(cfg, key) or not isinstance(cfg[key], (bool, int, float)):
            continue
        for name in (f"experiment/{cfg.hydra.runtime.choices.get('experiment')}.yaml", f"{CONFIG_NAME}.yaml"):
            for path in files_of(cfg, name)[:1]:
                for word, node in getattr(compose_yaml(path.read_text(encoding="utf-8")), "value", []):
                    if word.value == key and node.value != "null":
                        where = f"{path}, line {node.start_mark.line + 1}: {key}: {node.value}"
                        raise InputError(
                            f"{where} is read as {shown(cfg[key])}: must be text; in quotes it is:"
                            f' {key}: "{node.value}"'
                        )


def _calculated(*expression: Any) -> Any:
    """${eval:...}: a number from numbers; null while one of them is null, which the data fills in."""
    text = ",".join(map(str, expression))
    if re.search(r"\bNone\b", text):
        return None
    try:
        return compile_expression(text)()
    except ValueError as error:
        is_name = re.search(r"not defined|Attribute", str(error))
        raise InputError(f"{error}{'; the value of another key is written ${GROUP.KEY}' if is_name else ''}") from error


def _sweep_folder(name: str | None) -> str:
    """A sweep's fixed name, or a new one that sorts by time."""
    if name is None:
        return f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(4)}"
    name = str(name)
    if not name or re.search(r"[^A-Za-z0-9._=,+-]", name) or name.startswith("."):
        raise InputError(f"sweep.name={name}: must be a folder's name of letters from a to z, digits and . _ = , + -")
    return name


def _apply_checked(overrides: list[Override], cfg: DictConfig) -> None:
    """Refuses unknown keys, and values of another kind than the YAML's: see _fits."""
    for override in overrides:
        if override.key_or_group in ("hydra.run.dir", "hydra.sweep.dir") and override.value() in ("", None):
            raise InputError(f"{override.input_line}: must name a folder; leave it out for one under outputs/")
    replaced: list[str] = []
    expected: dict[str, tuple[Override, str | None]] = {}  # by key: of several overrides the last one counts
    for override in overrides:
        key = override.key_or_group
        is_ours = re.fullmatch(r"hydra\.(sweeper|launcher)\.\w+", key) and not _has(cfg, key)
        if (key.split(".")[0] == "hydra" and not is_ours) or override.is_delete():
            continue
        if key.split(".")[0] == "derived":
            raise InputError(f"{override.input_line}: derived.* is worked out when the run is built; it cannot be set")
        known = _has(cfg, key)
        if not known and not (override.is_add() or override.is_force_add()):
            reason, choices = _unknown_key(cfg, key, str(override.value()))
            raise UnknownKey(f"{override.input_line}: {reason}", key, choices)
        if known:
            expected[key] = (override, _kind(cfg, key))
            if _replace_target(cfg, key, override.value()):
                replaced.append(f"{key}.")
    # What stood there before may be taken out all the same.
    gone = [o for o in overrides if o.is_delete() and o.key_or_group.startswith(tuple(replaced))]
    kept = [o for o in overrides if o not in gone or _has(cfg, o.key_or_group)]
    hydra_adapter.apply_overrides(kept, cfg)
    if "hydra" in cfg:
        from runner.config import admission, checks  # here: a wrong key is answered before it is needed

        admission.check_hydra(cfg.hydra)
        for name in ("sweeper", "launcher"):
            checks.refuse_wrong_arguments(cfg.hydra[name], f"hydra.{name}")
        for name in LOGGING if "seed" in cfg else ():  # --hydra-help is composed of Hydra's own alone
            if cfg.hydra[name] not in (NO_LOGGING, False):
                raise InputError(
                    f"hydra.{name}: changes nothing, since Hydra logs nothing here: a run writes its own runner.log and"
                    f" screen (--quiet: less of it); leave out what sets hydra/{name} or hydra.{name}"
                )
    for override, kind in expected.values():
        given = _kind(cfg, override.key_or_group, must_resolve=True)
        if kind is None and given in ("a number", "a whole number", "true or false"):
            from runner.config.own_values import OURS, TEXT

            if OURS.get(override.key_or_group) == TEXT:
                hint = _kind_hint(override, "text", given)
                raise InputError(f"{override.input_line}: must be text, got {given}{hint}")
        if not _fits(given, kind):
            from runner.config.own_values import takes_null  # here: a wrong key or choice is answered without it

            if given is None and (takes_null(override.key_or_group) or _is_null_by_hint(cfg, override.key_or_group)):
                continue
            said = f"must be {kind}, got {given or 'null'}{_kind_hint(override, kind, given)}"
            raise InputError(f"{override.input_line}: {said}")


def _replace_target(cfg: DictConfig, key: str, value: Any) -> bool:
    """A group of keys with another `_target_` stands in place of the one before: Hydra alone would leave the old
    target's arguments beside it, and take no new ones. One with the same, which may bring arguments, is merged. Returns
    whether there was a group.
    """
    try:
        node = OmegaConf.select(cfg, key, throw_on_missing=False)
    except OmegaConfBaseException:
        return False
    if not (isinstance(value, dict) and isinstance(node, DictConfig) and "_target_" in value):
        return False
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, merge=value["_target_"] == node.get("_target_"))
    return True


def _is_null_by_hint(cfg: DictConfig, key: str) -> bool:
    """Whether the constructor beside whose `_target_` a key stands says that it takes null."""
    from runner.config import admission
    from runner.config.checks import locate
    from runner.values import hints_of

    parent_key, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_key) if parent_key else None
    if not isinstance(parent, DictConfig) or not isinstance(parent.get("_target_"), str):
        return False
    with admission.of_config(cfg):
        hints = hints_of(locate(parent["_target_"], parent_key))
    return type(None) in get_args(hints.get(name))


def _has(cfg: DictConfig, key: str) -> bool:
    parent_key, _, last = key.rpartition(".")
    try:
        parent = OmegaConf.select(cfg, parent_key, throw_on_missing=False) if parent_key else cfg
    except OmegaConfBaseException:
        return False
    return isinstance(parent, ListConfig) or (isinstance(parent, DictConfig) and last in parent.keys())  # noqa: SIM118


def _unknown_key(cfg: DictConfig, key: str, value: str = "") -> tuple[str, list[str]]:
    """What to say of a key that is not there, and the keys that are."""
    parent_key, _, last = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_key, throw_on_missing=False) if parent_key else cfg
    if not isinstance(parent, DictConfig):
        if parent_key and _has(cfg, parent_key):
            return f"{parent_key} holds no keys; give it whole: '{parent_key}={{{last}: ...}}'", []
        return _unknown_key(cfg, parent_key) if parent_key else (f"there is no key {key!r}", [])
    keys = [str(k) for k in parent if k not in ("hydra", "derived") and not str(k).startswith("_")]
    if parent_key in GROUPS and last in ("name", "type", "kind", "choice", "class", "_name_"):
        there = [path.stem for path in Path(conf_dir(), parent_key).glob("*.yaml")]
        choice = nearest(value, there) or "CHOICE"
        return f"{parent_key} has no key {last!r}; did you mean {parent_key}={choice}? choices: {', '.join(keys)}", keys
    close = [k for k in ALIASES.get(last.lower(), "").split() if k in keys or (not parent_key and _has(cfg, k))][:1]
    where = f"{parent_key} has" if parent_key else "there is"
    close = ["device=cuda"] if close == ["device"] and last.lower() != "device" else close
    meant = guess(last, keys, meant=close) or guess(last, (), meant=_same_name(cfg, last))
    return f"{where} no key {last!r}; {meant}choices: {', '.join(keys)}", keys


def _same_name(cfg: DictConfig, name: str) -> list[str]:
    """The first key inside a group that has this name: lr is optimizer.lr."""
    groups = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(groups, dict)
    named = [str(key) for key, node in groups.items() if isinstance(node, dict) and name in node]
    return [f"{key}.{name}" for key in named if key not in ("hydra", "derived")][:1]


def _kind(cfg: DictConfig, key: str, must_resolve: bool = False) -> str | None:
    """The kind of the value at key, in words; None where it is null, missing, or cannot be known yet."""
    try:
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
    except OmegaConfBaseException as error:
        if must_resolve:
            raise InputError(f"{key}: {one_line(error)}") from error
        return None
    for kind, types in (
        ("true or false", bool),
        ("a whole number", int),
        ("a number", float),
        ("text", str),
        ("a list", (list, ListConfig)),
        ("a group of keys", (dict, DictConfig)),
    ):
        if isinstance(value, types):
            return kind
    return None if value is None else "another kind"


def _fits(given: str | None, expected: str | None) -> bool:
    """The one rule: the same kind as the YAML's value. A whole number may stand for a number, a null accepts any,
    and where text names something (an expression), a list of several or a `_target_` may stand.
    """
    if expected is None or given == expected:
        return True
    if expected == "a number":
        return given == "a whole number"
    return expected == "text" and given in ("a list", "a group of keys")


def _kind_hint(override: Override, expected: str | None, given: str | None) -> str:
    key, typed = override.key_or_group, str(override.input_line).partition("=")[2]
    if expected == "text":
        return f"; in quotes it is text: '{key}=\"{typed}\"'"
    if given == "text" and expected in ("a number", "a whole number"):
        return text_hint(key, str(override.value()), "; what stands in quotes is text")
    return ""


def refuse_no_choice(overrides: Sequence[str]) -> None:
    """Refuses GROUP=null and GROUP=[], and what is no name: Hydra's answers name no group."""
    for word in overrides:
        group, _, choice = word.partition("=")
        if not group:
            raise InputError(f"{word}: has no key; give KEY=VALUE")
        if group == "experiment" and "null" in choice.split(","):
            raise InputError(f"{word}: null is no experiment, but what a command without experiment= has; leave it out")
        if group in ("trainer", "sweep", "derived") and choice[:1] not in ("{", "$"):
            devices = [path.stem for path in Path(conf_dir(), "device").glob("*.yaml")]
            meant = f"did you mean device={near}? " if choice and (near := nearest(choice, devices)) else ""
            raise InputError(f"{word}: {group} has no choices, but keys; {meant}give {group}.KEY=VALUE")
        if group not in (*GROUPS, "listeners", "tracking") or group == "trainer":
            continue
        found = ", ".join(sorted(path.stem for path in Path(conf_dir(), group).glob("*.yaml")))
        if choice in ("null", "[]", "", "''", '""') and group not in ("listeners", "tracking"):
            raise InputError(f"{word}: a run needs the group {group}; choices: {found}")
        if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|true|false", choice, re.IGNORECASE):
            raise InputError(f"{word}: must be the name of a choice; choices: {found}")


def replaced_files(config_dir: str | None, choices: dict[str, Any]) -> list[str]:
    """The user's YAML files that are used in place of ours of the same name."""
    if config_dir is None:
        return []
    names = [f"{group}/{choice}.yaml" for group, choice in choices.items() if choice] + [f"{CONFIG_NAME}.yaml"]
    return [str(Path(config_dir, n)) for n in names if Path(config_dir, n).is_file() and Path(conf_dir(), n).is_file()]


def make_hydra(config_dir: str | None = None) -> Any:
    """Hydra, with a user's folder before ours, so that a file of the same name wins."""
    if "${" in os.getcwd():
        raise InputError(
            f"{os.getcwd()}: Hydra takes ${{ in the working directory's name for an interpolation; rename it"
        )
    if config_dir is not None and not Path(config_dir).is_dir():
        raise InputError(f"--config-dir {config_dir}: there is no such folder")
    folders = [conf_dir()] if config_dir is None else [os.path.abspath(config_dir), conf_dir()]
    return hydra_adapter.make_hydra(hydra_adapter.search_path(folders), conf_dir())


def quoted(key: str, value: str) -> str:
    """The override key=value, whatever the value holds: in quotes of Hydra's grammar, with no interpolation in it."""
    literal = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    text = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", literal)
    text += text[len(text.rstrip("\\")) :]  # backslashes before the closing quote
    return f"{key}='{text}'"


def compose(overrides: Sequence[str], config_dir: str | None = None) -> tuple[Any, DictConfig]:
    """Hydra and the config of one run, hydra.* included.

    Raises:
        InputError: an unknown choice or key, a value of the wrong kind, anything that Hydra or OmegaConf refuses.
    """
    set_up()
    refuse_no_choice(overrides)
    with own_hydra():
        hydra = make_hydra(config_dir)
        cfg = hydra_adapter.composed(hydra, CONFIG_NAME, overrides)
    refuse_wrong_header(cfg)
    refuse_unquoted(cfg)
    if cfg.hydra.mode is not None and cfg.hydra.mode != RunMode.RUN:
        raise InputError(f"hydra.mode={cfg.hydra.mode.name}: to run a sweep, use -m")
    cfg.hydra.mode = RunMode.RUN
    return hydra, cfg


CHOSEN_LATER = ("device", "tracking", "stopping")  # of a resumed run: what does not change what it has trained


def overridden(config: str, overrides: Sequence[str]) -> DictConfig:
    """A resolved config (YAML text) with overrides on top: values of keys that are there, or a choice of CHOSEN_LATER.

    Raises:
        InputError: an unknown key or choice, or a value of the wrong kind.
    """
    set_up()
    cfg = OmegaConf.create(config)
    assert isinstance(cfg, DictConfig)
    OmegaConf.set_struct(cfg, True)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        for override in [o for o in parsed if o.key_or_group in CHOSEN_LATER]:
            group, value = override.key_or_group, override.value()
            chosen = [_choice(group, str(name)) for name in (value if isinstance(value, list) else [value])]
            before = {"threads": cfg.device.threads} if group == "device" else {}
            with open_dict(cfg):
                cfg[group] = OmegaConf.merge(*chosen, before)
        _apply_checked([o for o in parsed if o.key_or_group not in CHOSEN_LATER], cfg)
    except COMPOSITION_ERRORS as error:
        raise InputError(one_line(error)) from error
    OmegaConf.set_struct(cfg, False)
    return cfg


def _choice(group: str, choice: str) -> Any:
    path = Path(conf_dir(), group, f"{choice}.yaml")
    if not path.is_file():
        choices = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise InputError(f"{group}={choice}: no such choice; choices: {choices}")
    return OmegaConf.load(path)
