"""What a search adds: its trials in their order with the best so far, what explains the values, and what was pruned."""

from collections.abc import Mapping, Sequence
from typing import Any

from runner.errors import InputError
from runner.report import curves
from runner.report.gather import Found, Run
from runner.storage.inside import refuse_links
from runner.storage.record_schema import StudyRecord, read_record
from runner.sweep.statistics import mean

Block = dict[str, Any]
MOST_NAMED = 20


def blocks(found: Found, record: Mapping[str, Any]) -> list[Block]:
    """The history and the importances; nothing where the folder is no search's."""
    study = read_study(found)
    if study is None and "hydra/sweeper=optuna" not in [*record.get("arguments", []), *record.get("hydra", [])]:
        return []
    trials = trials_of_study(study, found) if study is not None else trials_of_runs(found, record)
    if not trials:
        return []
    mode = next((run.record["mode"] for run in found.runs if run.record.get("mode")), "max")
    charts = [history(trials, str(mode), (study or {}).get("seeds", []))]
    found_weights = {key: curves.finite(value) for key, value in (study or {}).get("importances", {}).items()}
    weights = {key: value for key, value in found_weights.items() if value is not None}
    if weights:
        bars = [[key, value, f"{value:.2f}"] for key, value in sorted(weights.items(), key=lambda pair: -pair[1])]
        title = "importance of each key (functional ANOVA)"
        charts.append({"kind": "bars", "title": title, "bars": bars})
    return [
        {"kind": "charts", "heading": "Search", "charts": charts, "lines": said(trials, study, found, bool(weights))}
    ]


def read_study(found: Found) -> dict[str, Any] | None:
    try:
        refuse_links(found.place, ("study.json",))
        return read_record(found.place / "study.json", StudyRecord)
    except (OSError, InputError):
        return None


def trials_of_study(study: Mapping[str, Any], found: Found) -> list[Block]:
    """The trials as Optuna numbered them, each with a run that has its settings: of a trial over several seeds the
    first, or the first that failed it.
    """
    by_settings = {key_of(member.words): at for at, member in enumerate(found.members)}
    names = list(dict.fromkeys(key for trial in study["history"] for key in trial.get("params", {})))
    trials = []
    for trial in study["history"]:
        params = trial.get("params", {})
        wanted = {key: value if isinstance(value, str) else text_of(value) for key, value in params.items()}
        lost = [seed for seed, value in trial.get("by_seed", {}).items() if value is None]
        if lost and trial["state"] == "fail":
            wanted["seed"] = lost[0]
        run = next((at for key, at in by_settings.items() if key_of(wanted) <= key), None) if names else None
        trials.append({"state": trial["state"], "value": curves.finite(trial.get("value")), "run": run})
    return trials


def text_of(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def key_of(words: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(words.items())


def trials_of_runs(found: Found, record: Mapping[str, Any]) -> list[Block]:
    """Of a search that has not ended, which has left no study.json: its runs in the order of their starts, those of one
    trial's seeds together.
    """
    begun = [at for at, run in enumerate(found.runs) if run.record.get("started")]
    begun.sort(key=lambda at: str(found.runs[at].record["started"]))
    trials: dict[Any, list[int]] = {}
    for at in begun:
        words = {key: value for key, value in found.members[at].words.items() if key != "seed"}
        trials.setdefault(key_of(words) if "seed" in record.get("swept", []) else at, []).append(at)
    return [trial_of([(at, found.runs[at]) for at in of_trial]) for of_trial in trials.values()]


def trial_of(runs: Sequence[tuple[int, Run]]) -> Block:
    """What a trial's runs say of it."""
    ended = {"done": "complete", "failed": "fail", "diverged": "fail"}
    states = [ended.get(run.state, run.state) for _, run in runs]
    values = [curves.finite(run.record.get("best_value")) for _, run in runs]
    worst = next((at for at, state in enumerate(states) if state != "complete"), 0)
    known = [value for value in values if value is not None]
    value = mean(known) if states[worst] == "complete" and len(known) == len(runs) else None
    return {"state": states[worst], "value": value, "run": runs[worst][0]}


def history(trials: Sequence[Block], mode: str, seeds: Sequence[str]) -> Block:
    values = [trial["value"] if trial["state"] == "complete" else None for trial in trials]
    better = max if mode == "max" else min
    best: list[float | None] = []
    for value in values:
        before = best[-1] if best else None
        best.append(value if before is None else before if value is None else better(before, value))
    lost = [at for at, trial in enumerate(trials) if trial["value"] is None]
    series = [
        {"label": "best so far", "y": best, "color": 0, "stepped": True},
        {"label": "trial", "y": values, "color": 1, "points": True, "runsAt": [trial["run"] for trial in trials]},
    ]
    title = "value of each trial" + (f", the mean over seed={','.join(seeds)}" if seeds else "")
    return {
        "kind": "lines",
        "title": title,
        "xLabel": "trial",
        "x": list(range(len(trials))),
        "series": series,
        "lost": lost,
    }


def said(trials: Sequence[Block], study: Mapping[str, Any] | None, found: Found, is_weighed: bool) -> list[str]:
    states: dict[str, int] = {}
    for trial in trials:
        states[trial["state"]] = states.get(trial["state"], 0) + 1
    lines = [f"{len(trials)} trials: {', '.join(f'{count} {state}' for state, count in states.items())}."]
    for state, words in (("pruned", "Pruned"), ("fail", "Failed")):
        named = [
            f"{at} ({found.runs[trial['run']].name})" if trial["run"] is not None else str(at)
            for at, trial in enumerate(trials)
            if trial["state"] == state
        ]
        if named:
            more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
            lines.append(f"{words}: trial {', '.join(named[:MOST_NAMED])}{more}.")
    if study is None:
        lines.append("The search has left no study.json yet: its runs stand here in the order of their starts.")
    elif not is_weighed:
        lines.append("Importances: too few trials with a value, or all values are equal.")
    else:
        of = (
            ["the keys that every trial has"]
            if len({frozenset(t.get("params", {})) for t in study["history"]}) > 1
            else []
        )
        of += ["the trials that were not pruned"] if states.get("pruned") else []
        lines += [f"Importances are of {' and of '.join(of)}."] if of else []
    return lines
