"""The settings of several sweeps, and of runs of their own, as one summary: the same rules, the same statistics.

Contract: what ran another version of the code is a setting of its own, named by it; what was measured on other data, by
another metric or over other epochs stands in a table of its own, as in a sweep. What else differs is said.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage import records
from runner.storage.choices import choices_of
from runner.storage.run_dir import RunDir
from runner.sweep import plan
from runner.sweep.settings import Member, config_of, members, words_of
from runner.sweep.summary import summarize


def compared(places: Sequence[Path]) -> dict[str, Any]:
    """The summary of all jobs in the folders; each setting's name begins with the folders that it is from.

    Raises:
        InputError: a folder holds neither a sweep nor runs.
    """
    names = short_names(places)
    found = [
        replace(member, name=f"{name}/{member.name}")
        for name, place in zip(names, places, strict=True)
        for member in members_of(place)
    ]
    apart, said = by_code(found)
    summed = summarize(apart)
    for row in summed["settings"]:
        origins = dict.fromkeys(job.partition("/")[0] for job in row["jobs"])
        row["name"] = f"{' + '.join(origins)}: {row['name']}"
    summed["notes"] = [*said, *surroundings(apart), *summed["notes"]]
    return summed


def short_names(places: Sequence[Path]) -> list[str]:
    """The folders' own names; with as many of those above as it takes to tell them apart."""
    whole = [place.absolute().parts for place in places]
    for depth in range(1, max(map(len, whole)) + 1):
        names = ["-".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(set(whole)):
            return names
    return [str(place) for place in places]


def members_of(place: Path) -> list[Member]:
    """The jobs of a sweep, or the runs at or below another folder."""
    if (place / "sweep.json").exists() or plan.known_jobs(place):
        return members(place)
    found = []
    for path in records.find(place):
        run_dir = RunDir(path)
        record = run_dir.read_run()
        name = path.name if path == place else str(path.relative_to(place))
        words = words_of(record["overrides"] or [])
        choices = {group: str(choice) for group, choice in (record["choices"] or choices_of(path)).items()}
        if record.get("config_yaml", "") is None or record.get("monitor") is None:
            raise InputError(f"{path}: never began ({record['error']}); there is nothing to compare")
        state = records.state_of(run_dir, record)
        seed = str(record["config"].get("seed"))
        found.append(Member(name, seed, config_of(record, words), words, choices, state, record, error=record["error"]))
    return found


def by_code(found: Sequence[Member]) -> tuple[list[Member], list[str]]:
    """The members, those of different code as different settings; and what to say of it."""
    codes = {code: None for member in found if member.record and (code := written(member.record.get("code")))}
    if len(codes) < 2:
        return list(found), []
    numbers = {code: f"code {number}" for number, code in enumerate(codes, 1)}
    apart = []
    for member in found:
        code = written((member.record or {}).get("code"))
        apart.append(member if code is None else replace(member, config={**member.config, "code": numbers[code]}))
    told = "; ".join(f"{name}: {told_of(json.loads(code))}" for code, name in numbers.items())
    return apart, [f"they ran {len(codes)} versions of the code, which are settings apart: {told}"]


def written(code: Any) -> str | None:
    return None if code is None else json.dumps(code, sort_keys=True)


def told_of(code: Mapping[str, Any]) -> str:
    own = code.get("own")
    parts = [f"commit {str(code['commit'])[:10]}"] if code.get("commit") else ["no commit"]
    parts += ["with changes"] if code.get("diff") else []
    parts += [f"runner {code['runner']}"] if code.get("runner") else []
    parts += [f"{name} {str(digest)[:8]}" for name, digest in own.items()] if isinstance(own, dict) else []
    return ", ".join(parts)


def surroundings(found: Sequence[Member]) -> list[str]:
    """What differs among the runs that may change last digits, and seconds."""
    known = [member.record for member in found if member.record is not None]
    said = []
    for what, values in (
        ("torch", [str(record["packages"].get("torch")) for record in known]),
        ("device", [record["device"] for record in known]),
        ("threads", [str(record["threads"]) for record in known]),
    ):
        several = list(dict.fromkeys(values))
        if len(several) > 1:
            said.append(f"not all ran alike: {what} {', '.join(several)}; last digits may differ by that alone")
    return said
