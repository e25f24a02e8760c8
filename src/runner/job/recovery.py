"""Recovery: from which checkpoint a run goes on, and which rows its files then hold.

Contract: the newest good checkpoint is taken from which the run's end can be reached exactly; what is damaged, of
another run, or leads to another end is named and set aside. Every checkpoint holds the rows of metrics.jsonl up to it,
so lost rows are made good.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage import checkpoint
from runner.storage.checkpoint import Damaged
from runner.storage.identity import lasting
from runner.storage.peek import peek, verify
from runner.storage.rows import TIMES, axis_of, strict_json, timeless
from runner.storage.run_dir import RunDir
from runner.train.events import Progress
from runner.values import flatten

NOT_CHECKPOINTS = ("model_state_dict.pt", "model.pt")
WEIGHTS = ("model_state_dict",)
TO_GO_ON = (*WEIGHTS, "optimizer_state_dict", "scheduler_state_dict", "lr", "metrics", "rows", "progress")
COUNTERS = tuple(field.name for field in fields(Progress))


@dataclass
class Recovered:
    """A checkpoint that a run goes on from; without one, it goes on from its beginning."""

    state: dict[str, Any] | None
    path: Path | None  # the file that holds `state`
    best: Path | None  # a good file that holds the best epoch's weights, to be best.pt again
    unusable: list[Path]  # damaged files, and those newer than `state` that do not lead to the same end
    known: dict[int, float | None]  # the monitored value of every evaluation there ever was, by its step
    rows: list[dict[str, Any]]  # of metrics.jsonl, up to the checkpoint
    notes: list[str] = field(default_factory=list)  # what to say of other files


def recover(run_dir: RunDir, record: dict[str, Any]) -> Recovered:
    """Chooses the checkpoint that a run goes on from.

    A checkpoint leads to the same end if the weights of its best epoch are there, or if a later epoch is known (from
    the rows of metrics.jsonl, which are durable before any checkpoint) to beat them, so that they are made again.

    What each file says of itself tells which to take; the one that is taken is held against its digest and loaded, and
    so is the one with the best weights held against its own. The others stay unread.

    Raises:
        InputError: there are checkpoints, but none of them is good.
    """
    notes: list[str] = []
    good: dict[Path, FileFacts] = {}
    paths = [p for p in run_dir.checkpoints.glob("*.pt") if p.name not in NOT_CHECKPOINTS]
    unusable: list[Path] = []

    def tried(look: Callable[[Path], Any], path: Path) -> Any:
        """What look(path) gives; None for a damaged file, which is said and set aside."""
        try:
            return look(path)
        except Damaged as error:
            notes.append(str(error))
            unusable.append(path)
            good.pop(path, None)
            return None

    def facts_of(path: Path) -> FileFacts:
        peeked = peek(path)
        check_owner(path, peeked, record)
        check_keys(path, peeked, TO_GO_ON)
        return FileFacts.of(peeked)

    good |= {path: facts for path in paths if (facts := tried(facts_of, path)) is not None}
    rows = run_dir.metrics.read()
    values = {row["step"]: row.get(record["monitor"]) for row in rows}
    known = {**known_before(record), **values}
    left_out: list[Path] = []  # newer, but without their best epoch's weights
    while candidates := [path for path in good if path not in left_out]:
        path = max(candidates, key=lambda p: (good[p].position, p.name == "last.pt"))
        facts = good[path]
        best, is_reachable = best_file(facts, good, known, record["mode"])
        if not is_reachable:
            left_out.append(path)
            continue
        if best is not None and best != path and tried(verify, best) is None:
            continue  # another file may hold them
        if (state := tried(checkpoint.load, path)) is not None:
            if notes:
                lost = len([step for step in values if step > facts.progress.step])
                at = facts.progress
                where = f"batch {at.batch} of epoch {at.epoch + 1}" if at.batch else f"epoch {at.epoch}"
                notes.append(f"continuing from {path.name}, after {where}: {counted(lost, record)} are repeated")
            rows, said = whole_rows(run_dir, state, path)
            said += lost_steps(run_dir, record, state["progress"]["step"])
            known |= {row["step"]: row.get(record["monitor"]) for row in rows}
            return Recovered(state, path, best, [*unusable, *left_out], known, rows, [*notes, *said])
    if paths and not any([tried(verify, path) is not None for path in left_out]):
        raise InputError(f"{run_dir.path}: none of its checkpoints is good; {'; '.join(notes)}")
    if paths:
        notes.append(
            "the weights of the best epoch are lost, so the run starts again from its beginning:"
            f" {counted(len(rows), record)} are repeated"
        )
    unusable += [path for path in left_out if path not in unusable]
    return Recovered(None, None, None, unusable, known, [], notes)


def known_before(record: Mapping[str, Any]) -> dict[int, float | None]:
    """The monitored values that earlier starts have known, by step."""
    known = record.get("known_steps", {})
    if bad := [name for name in known if not str(name).isdecimal()]:
        raise InputError(f"run.json: known_steps: {bad[0]!r} is no number of a step")
    return {int(step): value for step, value in known.items()}


def counted(evaluations: int, record: Mapping[str, Any]) -> str:
    is_usual = record["config"]["trainer"].get("evaluate_every") is None
    return f"{evaluations} {'epochs' if is_usual else 'evaluations'}"


@dataclass(frozen=True)
class FileFacts:
    """What choosing needs of a checkpoint, so that not all of them are in memory at once."""

    progress: Progress
    holds_best: bool  # the best epoch's weights are in the file too

    @classmethod
    def of(cls, state: dict[str, Any]) -> "FileFacts":
        return cls(Progress.of(state["progress"]), "best_model_state_dict" in state)

    @property
    def position(self) -> tuple[int, int]:
        """The step, and that of the last evaluation."""
        return self.progress.step, self.progress.evaluated


def best_file(
    facts: FileFacts, good: dict[Path, FileFacts], known: dict[int, float | None], mode: str
) -> tuple[Path | None, bool]:
    """The good file with the best epoch's weights, if one is needed; and whether the run can go on from `facts`."""
    best = facts.progress
    if best.best_step is None or facts.holds_best:
        return None, True
    for path in sorted(good, key=lambda p: p.name != "best.pt"):
        if good[path].position == (best.best_step, best.best_step):
            return path, True
    assert best.best_value is not None
    sign = 1 if mode == "max" else -1
    later = [value for step, value in known.items() if step > best.step and value is not None]
    return None, any(sign * value > sign * best.best_value for value in later)


def whole_config(run_dir: RunDir, record: Mapping[str, Any]) -> str:
    """config_yaml, which must hold what `config` holds.

    Raises:
        InputError: it is no config, or says something else than `config`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    text: str = record["config_yaml"]
    try:
        found = OmegaConf.to_container(OmegaConf.create(text))
    except (ValueError, RecursionError, AssertionError, YAMLError, OmegaConfBaseException) as error:
        what = " ".join(str(error).split())[:200] or "it is a single value"  # which OmegaConf asserts it is not
        raise InputError(f"{run_dir.run_json}: config_yaml cannot be read ({what})") from error
    ours, theirs = flatten(strict_json(found)), flatten(record["config"])
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key) and key not in ("name", "tags", "notes"):  # these change no run
            raise InputError(
                f"{run_dir.run_json}: {key} is {theirs.get(key)} in its config and {ours.get(key)} in its config_yaml"
            )
    return text


def check_keys(path: Path, state: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuses a checkpoint that is whole by its digest and lacks what is needed of it.

    Raises:
        Damaged: names the file and the key.
    """
    missing = [key for key in keys if key not in state]
    if not missing and "progress" in keys:
        progress = state["progress"]
        missing = [f"progress.{key}" for key in COUNTERS if not isinstance(progress, Mapping) or key not in progress]
        if not missing:
            try:
                place = Progress.of(progress)
            except (TypeError, ValueError) as error:
                raise Damaged(f"{path}: its progress cannot be read ({error})") from error
            is_inside = place.step != place.evaluated
            inside = [("rng", is_inside or place.batch > 0), ("running", is_inside)]
            missing = [key for key, is_needed in inside if is_needed and key not in state]
    if missing:
        raise Damaged(f"{path}: has no {missing[0]}")


def check_owner(path: Path, state: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another run, or one that was saved under another config than the record's.

    Raises:
        Damaged: names the file and what tells the two runs apart.
    """
    differing = config_differences(state, record)
    run_id = state.get("run_id")
    if run_id != record.get("id"):
        what = "; ".join(differing[:3]) or f"its id is {run_id}, this run's is {record.get('id')}"
        raise Damaged(f"{path}: belongs to another run ({what})")
    if differing:
        raise Damaged(f"{path}: was saved under another config than run.json's ({'; '.join(differing[:3])})")


def config_differences(state: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """The keys in which the checkpoint's config and the record's differ, less what may change when a run goes on."""
    from omegaconf import OmegaConf

    if not state.get("config") or state["config"] == record["config_yaml"]:
        return []
    theirs = lasting(OmegaConf.to_container(OmegaConf.create(state["config"])))  # type: ignore[arg-type]
    ours = lasting(record["config"])
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return [f"{key} is {theirs.get(key)} there, {ours.get(key)} here" for key in keys]


def whole_rows(
    run_dir: RunDir, state: Mapping[str, Any] | None, path: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of metrics.jsonl up to the checkpoint's epoch, and what to say about them: every checkpoint holds them,
    so what the file has lost is made good.
    """
    if state is None:
        return [], []
    found, kept = run_dir.metrics.read(), [strict_json(row) for row in state["rows"]]
    if [timeless(row) for row in found[: len(kept)]] == kept:
        return found[: len(kept)], []
    good = {row["step"]: row for row in found if timeless(row) in kept}
    rows = [good.get(row["step"], {**row, **dict.fromkeys(TIMES)}) for row in kept]
    assert path is not None
    key = axis_of(kept)
    what = _what_is_wrong([row[key] for row in good.values()], [row[key] for row in kept], f"{key}s")
    return rows, [f"{run_dir.metrics.path.name}: {what}; made good from {path.name}"]


def _what_is_wrong(found: Sequence[Any], wanted: Sequence[int], what: str) -> str:
    lost = sorted(set(wanted) - set(found))
    if not lost:
        return "holds rows twice or out of order"
    names = ", ".join(map(str, lost[:10])) + (", ..." if len(lost) > 10 else "")
    return f"the rows of {what} {names} are lost or damaged"


def lost_steps(run_dir: RunDir, record: Mapping[str, Any], step: int) -> list[str]:
    """What to say of rows of steps.jsonl that are lost. Where log_every was changed on the way, nobody knows which
    there were.
    """
    every = record["config"]["trainer"]["log_every"]
    changed = any("trainer.log_every" in " ".join(event["command"]) for event in record.get("resumed", []))
    if not every or changed:
        return []
    steps = [row["step"] for row in run_dir.steps.read() if row["step"] <= step]
    lost = sorted(set(range(every, step + 1, every)) - set(steps))
    if not lost:
        return []
    return [f"{run_dir.steps.path.name}: {len(lost)} rows from step {lost[0]} on are lost; nothing else holds them"]
