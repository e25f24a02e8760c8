"""Settings: what the seeds of a sweep's folder are repetitions of, by config and not by the words of a command.

Contract: two jobs are one setting if their plans are (job.json: plan.setting_of, a config without the seed), with what
`resume` has changed since, and their code, whatever command brought them. A setting is named by what varies over the
whole folder today. A seed counts once in a setting.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.storage import records
from runner.storage.choices import choices_of
from runner.storage.identity import LATER, NO_RESULT
from runner.storage.provenance import code_changes
from runner.storage.record_schema import BadRecord, RunRecord, read_record
from runner.storage.run_dir import RunDir
from runner.sweep import plan
from runner.sweep.worker import is_shorter
from runner.terminal.progress import with_bar

CONTINUED = ("trainer.epochs", "trainer.steps", "stopping.", "device.")  # what `resume JOB KEY=VALUE` may change
# Of two folders with one config and seed the first of these is counted.
STATES = ("done", "pruned", "failed", "running", "interrupted", "killed", "planned")


@dataclass(frozen=True)
class Member:
    """One job's folder, as a summary sees it."""

    name: str
    seed: str
    config: dict[str, Any]  # plan.setting_of: flat, without the seed
    words: dict[str, str]  # the overrides that it was planned with, by key
    choices: dict[str, str]  # group -> choice
    state: str
    record: dict[str, Any] | None = None  # run.json, of a run that was built
    planned: dict[str, Any] | None = None  # the config that the plan had, where it is known
    error: str | None = None

    @property
    def is_diverged(self) -> bool:
        return self.state == "failed" and (self.record or {}).get("failure") == "diverged"

    @property
    def outside(self) -> list[str]:
        """What a `resume JOB KEY=VALUE` has changed of the plan: the key, and both values."""
        changed = [key for key in self.planned or {} if key == "trainer.epochs" or key.startswith("device.")]
        return [
            f"{key} {text(self.planned[key])} -> {text(self.config.get(key))}"
            for key in changed
            if self.planned is not None and self.config.get(key) != self.planned[key]
        ]


@dataclass
class Setting:
    """The jobs of one config, each seed once."""

    config: dict[str, Any]
    members: list[Member]
    twice: list[tuple[Member, Member]] = field(default_factory=list)  # (left out, the one that is counted)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.labels.items()) or "(one setting)"

    @property
    def done(self) -> list[Member]:
        return [member for member in self.members if member.state == "done"]

    @property
    def record(self) -> dict[str, Any] | None:
        """A run's record that says what was evaluated and how; None where no job of the setting has begun."""
        return next((m.record for m in sorted(self.members, key=rank) if m.record is not None), None)


def rank(member: Member) -> tuple[int, str, str]:
    state = STATES.index(member.state) if member.state in STATES else len(STATES)
    return state, str((member.record or {}).get("started")), member.name


def members(place: Path, failed: Mapping[str, str | None] | None = None) -> list[Member]:
    """Every job in a sweep's folder, from its own files.

    Args:
        failed: jobs that failed before they left a record, with the error.
    """
    found, bare, code = [], [], plan.last_code(place)
    for name, known in with_bar(list(plan.known_jobs(place).items()), "reading jobs"):
        run_dir = RunDir(place / name)
        words = words_of(known.get("overrides", []))
        planned, kept = known.get("setting"), known.get("choices") or choices_of(run_dir.path)
        if planned is not None and "device.threads" in words:
            planned = {**planned, "device.threads": number(words["device.threads"])}
        choices = {group: text(choice) for group, choice in kept.items()}
        seed = str(known["seed"] if known.get("seed") is not None else words.get("seed", "?"))
        state: str = "planned"
        error: str | None = None
        if run_dir.run_json.exists():
            try:
                record = read_record(run_dir.run_json, RunRecord)
            except BadRecord as why:
                guess = Member(name, seed, planned or {}, words, choices, "failed", error=str(why))
                bare.append(guess)
                continue
            state, error = records.state_of(run_dir, record), record.get("error")
            state = "pruned" if state == "done" and records.is_pruned(record) else state
            if record.get("config_yaml", "") is not None and record.get("monitor") is not None:  # it was built
                config = config_of(record, words, planned)
                epochs = (planned or {}).get("trainer.epochs")
                if isinstance(epochs, int) and is_shorter(record, epochs):  # the sweep was lengthened
                    config["trainer.epochs"], record = epochs, {**record, "epochs": epochs}
                    state = "interrupted" if state == "done" else state
                if code is not None and code_changes(record.get("code"), code):  # sweep.force=true
                    config["code"] = plan.digest(record["code"])[:8]
                choices = {**{key: word for key, word in words.items() if f"{key}._target_" in config}, **choices}
                seed = str(record["config"].get("seed", seed))
                found.append(Member(name, seed, config, words, choices, state, record, planned, error))
                continue
        elif failed and name in failed:
            state, error = "failed", failed[name]
        bare.append(Member(name, seed, planned or {}, words, choices, state, error=error))
    return sorted([*found, *(guessed(member, found) for member in bare)], key=lambda member: member.name)


def config_of(
    record: Mapping[str, Any], words: Mapping[str, str], planned: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a run that was built is a repetition of: the plan's setting, and where a run was resumed the keys that this
    can change. Without a plan it is the run's own config.
    """
    config = plan.setting_of(record["config"], record.get("config_source") or {})
    if "device.threads" in words:
        config["device.threads"] = record["config"]["device"]["threads"]
    if planned is not None:
        changed = {key: value for key, value in config.items() if key.startswith(CONTINUED)}
        config = {key: value for key, value in planned.items() if not key.startswith(CONTINUED)} | changed
    return {**config, "trainer.mode": record["mode"]}


def guessed(member: Member, others: Sequence[Member]) -> Member:
    """A job without a record, as if it had begun. The mode is that of a job alike. Where its job.json is from before
    configs were kept: the config of a job of the same words, else what another job has, with this one's words on top.
    """
    if member.config:
        own = {**member.config, "trainer.mode": None}
        alike = (other.config for other in others if {**other.config, "trainer.mode": None} == own)
        return replace(member, config=next(alike, member.config))
    if not others:
        return member
    words = {key: value for key, value in member.words.items() if key != "seed"}
    for other in others:
        if words == {key: value for key, value in other.words.items() if key != "seed"}:
            return replace(member, config=other.config, choices=other.choices)
    config = {**others[0].config, **{key: number(value) for key, value in words.items()}}
    choices = {**others[0].choices, **{key: value for key, value in words.items() if key in others[0].choices}}
    return replace(member, config=config, choices=choices)


def words_of(overrides: Iterable[str]) -> dict[str, str]:
    """The overrides by key, without those that say nothing of a result."""
    pairs = (word.lstrip("+~").partition("=") for word in overrides)
    return {key: value for key, _, value in pairs if not f"{key}.".startswith(NO_RESULT)}


def number(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def settings(found: Sequence[Member]) -> list[Setting]:
    """The settings of a folder, named by what varies, in the order of their first jobs."""
    by_config: dict[str, list[Member]] = {}
    for member in found:
        by_config.setdefault(json.dumps(member.config, sort_keys=True, default=str), []).append(member)
    made = []
    for group in by_config.values():
        counted: dict[str, Member] = {}
        twice = []
        for member in sorted(group, key=rank):
            if (kept := counted.setdefault(member.seed, member)) is not member:
                twice.append((member, kept))
        made.append(Setting(group[0].config, sorted(counted.values(), key=lambda m: by_number(m.seed)), twice))
    name_them(made)
    return made


def by_number(seed: str) -> tuple[int, str]:
    return len(seed), seed


def name_them(made: Sequence[Setting]) -> None:
    """Gives each setting its labels: what the commands have named and what varies; then as few other choices and keys
    as it takes to tell all settings apart, so that what follows from a choice is not listed beside it.
    """
    words = dict.fromkeys(key for setting in made for member in setting.members for key in member.words)
    choices = [setting.members[0].choices for setting in made]
    groups = dict.fromkeys(group for known in choices for group in known)
    keys = dict.fromkeys(key for setting in made for key in setting.config)
    columns: dict[str, list[str | None]] = {}
    for key in [*groups, *keys]:
        one_of = [known.get(key, target_of(setting, key)) for known, setting in zip(choices, made, strict=True)]
        # what came later is left out of a config where it says the same as nothing
        configs = [{key: LATER[key]} | setting.config if key in LATER else setting.config for setting in made]
        values = [text(config[key]) if key in config else None for config in configs]
        column = one_of if key in groups else values
        if len(set(column)) > 1:
            columns[key] = column
    shown = [key for key in words if key in columns]
    rest = [key for key in columns if key not in shown and key != "experiment"]
    rest.sort(key=lambda key: (key not in groups, key.endswith("._target_")))
    for key in ["experiment", *rest]:
        if key in columns and key not in shown and kinds([*shown, key], columns) > kinds(shown, columns):
            shown.append(key)
    for number, setting in enumerate(made):
        found = ((key, columns[key][number]) for key in shown)
        setting.labels = {key: value for key, value in found if value is not None}


def kinds(keys: Iterable[str], columns: Mapping[str, Sequence[str | None]]) -> int:
    """How many settings the columns tell apart."""
    return len(set(zip(*(columns[key] for key in keys), strict=True))) if keys else 1


def target_of(setting: Setting, group: str) -> str | None:
    """What stands for a choice that no file has kept: the class's own name."""
    target = setting.config.get(f"{group}._target_")
    return None if target is None else str(target).rpartition(".")[2]


def text(value: Any) -> str:
    """A value as one writes it in an override."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), default=str)
