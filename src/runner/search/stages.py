"""Pruning, on the search's side: what a job is told of finished trials, and what a trial leaves for those after it.

Contract: a trial's seeds run one after the other, each a stage. In each, what is judged is the mean over the seeds so
far, against the same mean of finished trials; with the first stage that is pruned the whole trial is.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.groups.length import evaluations
from runner.job.pruning import FILE, HISTORY, judge_of, mean_of, values_of
from runner.search.optuna_adapter import storage_of
from runner.storage import records
from runner.storage.files import write_atomically
from runner.storage.record_schema import PruningRecord, TrialRecord, checked, read_record, write_record
from runner.storage.run_dir import RunDir
from runner.sweep.plan import Job

STAGES = "stages"  # a trial's attribute: for each of its seeds that has run the means so far, and the pruner's notes
FIRST = "first"  # the study's: the first trial of the generation that is running


def write_history(study: Any, place: Path) -> None:
    """Leaves what the jobs of this generation judge by: all trials before it."""
    from optuna.trial import TrialState

    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    rows = [
        {"state": names.get(trial.state, "fail"), "stages": trial.user_attrs.get(STAGES, [])}
        for trial in study.get_trials(deepcopy=False)[: study.user_attrs.get(FIRST, 0)]
    ]
    write_atomically(place / HISTORY, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_facts(study: Any, pruner: dict[str, Any], number: int, jobs: Sequence[Job]) -> None:
    """Leaves beside the last of a trial's jobs what it takes to judge it. What is there and can be read stays: a job of
    two trials is judged as the first one's.
    """
    path = jobs[-1].folder / FILE
    try:
        read_record(path, PruningRecord)
        return
    except (OSError, InputError):
        pass
    facts = {"pruner": pruner, "direction": study.direction.name.lower(), "study": study.study_name, "number": number}
    facts |= {"first": study.user_attrs.get(FIRST, 0), "stage": len(jobs)}
    write_record(path, {**facts, "before": [in_json(values_in(job)) for job in jobs[:-1]]})


def values_in(job: Job) -> dict[int, float | None]:
    """A job's monitored values, by evaluation."""
    record = RunDir(job.folder).read_run()
    return values_of(list(records.epochs(job.folder)), record["monitor"])


def in_json(values: dict[int, float | None]) -> dict[str, float | None]:
    return {str(epoch): value for epoch, value in values.items()}


def is_pruned(job: Job) -> bool:
    return records.is_pruned(RunDir(job.folder).read_run())


def keep_stages(study: Any, number: int, jobs: Sequence[Job]) -> None:
    """Writes into a trial what later ones judge by, and its values for Optuna's own use, as often as it is called."""
    means = [mean_of([values_in(job) for job in jobs[: count + 1]]) for count in range(len(jobs))]
    stages = []
    for job, mean in zip(jobs, means, strict=True):
        judge, _ = judge_of(job.folder)
        last = evaluations(RunDir(job.folder).read_run()["config"])  # nothing is decided after it
        for nth, value in mean.items():
            if nth >= last or judge.is_pruned(nth, value):
                break
        stages.append({"values": in_json(mean), "rungs": judge.rungs})
    storage, of_study = storage_of(study)
    trial = storage.get_trial_id_from_study_id_trial_number(of_study, number)
    storage.set_trial_user_attr(trial, STAGES, stages)
    for epoch, value in means[-1].items():
        storage.set_trial_intermediate_value(trial, epoch, math.nan if value is None else value)


def check_stages(trial: Any, where: str) -> None:
    """Refuses what no search of ours has written of a trial's values."""
    values = trial.intermediate_values.values()
    if not all(type(value) in (int, float) and not math.isinf(value) for value in values):
        raise InputError(f"{where}: trial {trial.number} has an intermediate value that is no number")
    checked(where, {"state": "fail", "stages": trial.user_attrs.get(STAGES, [])}, TrialRecord)
