"""A trial of a search that is given up: by Optuna's pruner, of this trial's values and those of finished trials alone.

Contract: the finished trials are those that were told before this one's generation was asked for; they stand in the
search's folder, and what to make of them in pruning.json beside run.json. So a decision does not depend on what runs at
the same time, on the launcher or on a kill: the same values are judged in the same way again.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from runner.config.checks import locate
from runner.config.names import nearest
from runner.errors import InputError
from runner.groups.instantiate import instantiate
from runner.storage.files import read_regular
from runner.storage.inside import refuse_links
from runner.storage.record_schema import PruningRecord, TrialRecord, checked, read_record
from runner.storage.records import PRUNED
from runner.storage.rows import axis_of
from runner.train.stopping import Stopping

FILE, HISTORY = "pruning.json", "history.jsonl"  # of the job; of the search, a line a trial
KEY = "hydra.sweeper.pruner"
NAMES = {
    "median": "MedianPruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}
BLANK: dict[str, Any] = {"state": "fail", "values": {}, "rungs": {}}
ByEvaluation = Mapping[int, float | None]  # of the monitored metric, by evaluation (from 1); None: not finite


def pruner_config(given: Any) -> dict[str, Any] | None:
    """hydra.sweeper.pruner as a config of what is made: a name of NAMES, or a config itself.

    Raises:
        InputError: an unknown name.
    """
    if given is None or isinstance(given, dict):
        return given
    if given not in NAMES:
        near = nearest(str(given), list(NAMES))
        guess = f"did you mean {near}? " if near else ""
        raise InputError(
            f"{KEY}={given}: no such pruner; {guess}choices: {', '.join(NAMES)}, {{_target_: optuna.pruners.NAME, ...}}"
        )
    return {"_target_": f"optuna.pruners.{NAMES[given]}"}


def make_pruner(config: Mapping[str, Any]) -> Any:
    """The pruner itself.

    Raises:
        InputError: it is none, or does not take these arguments.
    """
    import warnings

    import optuna

    kind = locate(config.get("_target_"), KEY)
    if not isinstance(kind, type) or not issubclass(kind, optuna.pruners.BasePruner):
        raise InputError(
            f"{KEY}._target_={config.get('_target_')}: must be a pruner of Optuna, as in {NAMES['median']}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return instantiate(dict(config), KEY)


class Judge:
    """Optuna's pruner over a study in memory: the finished trials, and this one's values as they come.

    Args:
        past: of each trial before it, in order: its state, values and system attributes; what has none is a blank.
        number: this trial's.
    """

    def __init__(
        self, pruner: Any, direction: str, study_name: str, past: Sequence[Mapping[str, Any]], number: int
    ) -> None:
        import optuna
        from optuna.trial import TrialState, create_trial

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(
            direction=direction, study_name=study_name, pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0)
        )
        for at in range(number):
            found: Mapping[str, Any] = past[at] if at < len(past) else BLANK
            state = TrialState[found["state"].upper()]
            trial = create_trial(
                state=state,
                value=0.0 if state == TrialState.COMPLETE else None,  # no pruner asks for it
                intermediate_values={int(epoch): number_of(value) for epoch, value in found["values"].items()},
                system_attrs=found["rungs"],
            )
            self.study.add_trial(trial)
        self.trial = self.study.ask()

    def is_pruned(self, epoch: int, value: float | None) -> bool:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps without a value
            self.trial.report(number_of(value), epoch)
            return bool(self.trial.should_prune())

    @property
    def rungs(self) -> dict[str, Any]:
        """What the pruner has kept of this trial: the values with which it was promoted."""
        return dict(self.study.get_trials(deepcopy=False)[-1].system_attrs)


def number_of(value: float | None) -> float:
    return math.nan if value is None else float(value)


def mean_of(several: Sequence[ByEvaluation]) -> dict[int, float | None]:
    """The mean over seeds in each epoch that all of them have; None where one is not finite."""
    found: dict[int, float | None] = {}
    for epoch in several[0]:
        values = [values[epoch] for values in several if epoch in values]
        if len(values) == len(several):
            known = [value for value in values if value is not None]
            found[epoch] = math.fsum(known) / len(known) if len(known) == len(values) else None
    return found


def values_of(rows: Sequence[Mapping[str, Any]], monitor: str) -> dict[int, float | None]:
    """The monitored metric of rows of metrics.jsonl, by the number of the evaluation from 1: usually the epoch."""
    values = {number: row.get(monitor) for number, row in enumerate(rows, 1)}
    return {number: value if value is not None and math.isfinite(value) else None for number, value in values.items()}


@dataclass(frozen=True)
class Pruning(Stopping):
    """The `stopping` group, and before it the search's pruner."""

    judge: Any = None
    before: tuple[ByEvaluation, ...] = ()  # of the trial's earlier seeds
    name: str = ""

    def reason(self, rows: Sequence[Mapping[str, Any]], monitor: str, mode: str, seconds: float) -> str | None:
        judged = self.judge.study.get_trials(deepcopy=False)[-1].intermediate_values
        mean = mean_of([values_of(rows, monitor), *self.before])
        for epoch, value in mean.items():
            if epoch not in judged and self.judge.is_pruned(epoch, value):
                over = f", the mean over {len(self.before) + 1} seeds," if self.before else ""
                said = f"{value:.6g}" if value is not None else "not finite"
                key = axis_of(rows)
                at = f"{key} {rows[epoch - 1][key]}"
                return f"{PRUNED} by its search ({self.name}): {monitor} is {said}{over} after {at}"
        return super().reason(rows, monitor, mode, seconds)


def with_pruning(stopping: Stopping, folder: Path) -> Stopping:
    """When a run ends: as `stopping` says, and of a trial of a search with a pruner as that says.

    Raises:
        InputError: the search's folder does not hold what the decision takes.
    """
    if not (folder / FILE).exists():
        return stopping
    judge, before = judge_of(folder)
    own = {field.name: getattr(stopping, field.name) for field in fields(Stopping)}
    return Pruning(**own, judge=judge, before=before, name=type(judge.study.pruner).__name__)


def judge_of(folder: Path) -> tuple[Judge, tuple[ByEvaluation, ...]]:
    """Who decides on a job, and the values of its trial's earlier seeds, from its folder and the search's.

    Raises:
        InputError: one of the two is not there, or is damaged.
    """
    refuse_links(folder, (FILE,))
    facts = read_record(folder / FILE, PruningRecord)
    past = read_history(folder.parent, facts["first"], facts["stage"])
    pruner = make_pruner(facts["pruner"])
    try:
        before = tuple({int(epoch): value for epoch, value in values.items()} for values in facts["before"])
        return Judge(pruner, facts["direction"], facts["study"], past, facts["number"]), before
    except ValueError as error:  # by other hands: an epoch that is none
        raise InputError(f"{folder / FILE}: cannot be followed ({' '.join(str(error).split())})") from error


def read_history(place: Path, count: int, stage: int) -> list[dict[str, Any]]:
    """The first trials of a search, as a job of this stage (from 1: its trial's first seed) sees them.

    Raises:
        InputError: the file is not there, or is damaged.
    """
    path = place / HISTORY
    refuse_links(place, (HISTORY,))
    try:
        lines = read_regular(path).decode().splitlines() if count else []
        rows = [checked(path, json.loads(line), TrialRecord) for line in lines[:count]]
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({error}): this run's search needs it to prune") from error
    if len(rows) < count:
        raise InputError(f"{path}: has {len(rows)} trials, and this run's search was at {count}")
    return [in_stage(row, stage) for row in rows]


def in_stage(row: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """A trial as it stood when so many of its seeds had run: whole, if it went on; a blank, if it never came so far."""
    stages = row["stages"]
    if stage > len(stages) or row["state"] == "fail":
        return BLANK
    return {"state": row["state"] if stage == len(stages) else "complete", **stages[stage - 1]}
