"""What a search leaves of its trials: study.json, the best trial, and how much each key explains."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.search.space import Space, text_of
from runner.search.study import Trials
from runner.storage.files import write_atomically
from runner.storage.run_dir import RunDir, now
from runner.sweep import plan, statistics

log = logging.getLogger("runner")


def conclude(trials: Trials, space: Space, place: Path) -> None:
    """Writes study.json, and logs the best trial and the importances."""
    from optuna.trial import TrialState

    found = trials.all()
    complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
    known = plan.known_jobs(place) if space.seeds else {}
    names = {frozenset(job["settings"].items()): name for name, job in known.items()}
    history: list[dict[str, Any]] = []
    for number, trial in enumerate(found):
        value = None if trial.state == TrialState.PRUNED else trial.value  # Optuna has that of its last epoch
        row = {"trial": number, "state": trial.state.name.lower(), "value": value, "params": trial.params}
        if trial.intermediate_values:
            row["epochs"] = max(trial.intermediate_values)  # in which it had a value, of each seed
        history.append({**row, "by_seed": by_seed(space, trial.params, place, names)} if space.seeds else row)
    record: dict[str, Any] = {"written": now(), "trials": len(found), "complete": len(complete), "best": None}
    if space.seeds:
        record["seeds"] = space.seeds
    pruned = [trial for trial in found if trial.state == TrialState.PRUNED]
    if pruned:
        log.info("%d of %d trials were pruned: they have no value", len(pruned), len(found))
    if complete:
        best, weights = trials.study.best_trial, importances(trials.study)
        at = found.index(best)
        record["best"] = {"trial": at, "value": best.value, "params": best.params}
        record["importances"] = weights
        settings = " ".join(f"{key}={text_of(value)}" for key, value in best.params.items())
        if space.seeds:
            values = [value for value in history[at]["by_seed"].values() if value is not None]
            spread = math.sqrt(statistics.variance(values)) if len(values) > 1 else math.nan
            over = f"seed={','.join(space.seeds)}"
            log.info("best of %d trials: %.4f ± %.4f over %s, %s", len(complete), best.value, spread, over, settings)
        else:
            log.info("best of %d trials: %.4f, %s", len(complete), best.value, settings)
        if weights:
            parts = ["of the keys that every trial has"] if trials.conditions.conditional else []
            of = "".join(f", {part}" for part in [*parts, *(["of the whole trials"] if pruned else [])])
            log.info("importances%s: %s", of, ", ".join(f"{key} {value:.2f}" for key, value in weights.items()))
    write_atomically(place / "study.json", (json.dumps({**record, "history": history}, indent=2) + "\n").encode())


def by_seed(
    space: Space, params: Mapping[str, Any], place: Path, names: Mapping[frozenset[tuple[str, str]], str]
) -> dict[str, float | None]:
    """The best value of each of a trial's jobs; None where it is not done."""
    values: dict[str, float | None] = {}
    for seed in space.seeds:
        name = names.get(frozenset(space.settings(params, seed).items()))
        try:
            record = RunDir(place / name).read_run() if name is not None else {}
        except (OSError, InputError):
            record = {}
        values[seed] = record["best_value"] if record.get("state") == "done" else None
    return values


def importances(study: Any) -> dict[str, float]:
    """How much each key explains of the values, from 0 to 1 (Optuna's default, functional ANOVA); none if too few."""
    import optuna

    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    except (ValueError, RuntimeError, ImportError):
        return {}
    return {key: float(value) for key, value in found.items()}
