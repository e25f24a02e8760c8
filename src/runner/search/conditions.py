"""Which keys of a search's space a trial has: one that only some choices of a group take is asked for with those alone.

Contract: the keys that choose (groups and `_target_`s) are asked for first, in the order of the command, then those
that their choices take, in that order too. Where all choices take all keys, all are asked for as the command has them.
"""

from collections.abc import Mapping
from typing import Any

from runner.errors import InputError, UnknownKey
from runner.search.space import Space, chosen, ends, in_words
from runner.sweep.combine import compose_job
from runner.sweep.plan import Job
from runner.sweep.points import Point, written
from runner.sweep.ready import check_new
from runner.values import guess

Choices = tuple[str, ...]


class Conditions:
    """What composes, by the choices of a trial."""

    def __init__(self, sweeper: Any, space: Space) -> None:
        self.sweeper, self.space = sweeper, space
        self.usual = {key: ends(distribution)[0] for key, distribution in space.keys.items()}
        self.choosing = [key for key in space.keys if is_choosing(sweeper, key, space.keys[key])]
        self._refused: dict[Choices, dict[str, UnknownKey]] = {}
        self._composed: dict[tuple[str, ...], Job] = {}
        several = self.one_by_one()
        refusals = {key: [found[key] for found in map(self.refused, several) if key in found] for key in space.keys}
        for key, why in refusals.items():
            if len(why) == len(several):
                raise self.nowhere(key, why)
        self.conditional = [key for key, why in refusals.items() if why]

    def one_by_one(self) -> list[dict[str, Any]]:
        """The usual choices, then each other choice of each key among the usual ones."""
        usual = {key: self.usual[key] for key in self.choosing}
        others = [{**usual, key: c} for key in self.choosing for c in self.space.keys[key].choices[1:]]
        return [usual, *others]

    def compose(self, words: list[str]) -> Job:
        """One job, each once."""
        key = tuple(words)
        if key not in self._composed:
            self._composed[key] = compose_job(self.sweeper, words, self.space.swept)
        return self._composed[key]

    def refused(self, params: Mapping[str, Any]) -> dict[str, UnknownKey]:
        """The keys that do not go with the choices among these settings, and why."""
        choices = tuple(str(params[key]) for key in self.choosing)
        if choices not in self._refused:
            gone: dict[str, UnknownKey] = {}
            tried = {**self.usual, **{key: params[key] for key in self.choosing}}
            while True:
                try:
                    self.compose(self.space.jobs(tried)[0])
                    break
                except UnknownKey as error:
                    key = next((k for k in tried if k.lstrip("+") == error.key and k not in self.choosing), None)
                    if key is None:
                        raise
                    gone[key] = error
                    del tried[key]
            self._refused[choices] = gone
        return self._refused[choices]

    def nowhere(self, key: str, why: list[UnknownKey]) -> InputError:
        """What to say of a key that no choice takes."""
        known = list(dict.fromkeys(choice for error in why for choice in error.choices))
        if known == why[0].choices:
            return why[0]
        group, _, name = key.lstrip("+").rpartition(".")
        tried = " ".join(f"{k}={','.join(self.space.keys[k].choices)}" for k in self.choosing)
        return InputError(
            f"{key}: is taken by no choice of {tried}; {guess(name, known, f'{group}.')}choices: {', '.join(known)}"
        )

    def keys(self, params: Mapping[str, Any]) -> list[str]:
        """The keys that a trial has, in the order in which they are asked for, as far as these settings tell."""
        if not self.conditional:
            return list(self.space.keys)
        if not all(key in params for key in self.choosing):
            return self.choosing
        gone = self.refused(params)
        return [*self.choosing, *(key for key in self.space.keys if key not in self.choosing and key not in gone)]

    def is_whole(self, params: Mapping[str, Any]) -> bool:
        """Whether these are all the settings of a trial, and no others."""
        return set(params) == set(self.keys(params)) and all(key in params for key in self.choosing)

    def with_choices(self, key: str) -> list[str]:
        """The choices that take a key, as `optimizer=sgd`."""
        found = []
        for chooser in self.choosing:
            usual = {k: self.usual[k] for k in self.choosing}
            taking = [c for c in self.space.keys[chooser].choices if key not in self.refused({**usual, chooser: c})]
            if len(taking) < len(self.space.keys[chooser].choices) and taking:
                found.append(f"{chooser}={','.join(taking)}")
        return found


def first_trials(points: list[Point], conditions: Conditions) -> list[dict[str, Any]]:
    """The settings that a search is to try first, as Optuna has them; what a point leaves out the sampler chooses.

    Raises:
        InputError: a key that is not searched over, or does not go with the point's choices, or a value outside.
    """
    keys = {key.lstrip("+"): key for key in conditions.space.keys}
    found = []
    for point in points:
        params: dict[str, Any] = {}
        for name, given in point.settings.items():
            key = keys.get(name.lstrip("+"))
            if key is None:
                choices = f"{guess(name, keys)}choices: {', '.join(keys)}"
                raise InputError(f"{point.where}: {name}: is not searched over; {choices}")
            distribution = conditions.space.keys[key]
            value = chosen(distribution, given)
            if value is None:
                raise InputError(f"{point.where}: {name}={written(given)}: must be {in_words(distribution)}")
            params[key] = value
        for key in [key for key in params if key in conditions.conditional]:
            if lacking := [chooser for chooser in conditions.choosing if chooser not in params]:
                raise InputError(f"{point.where}: {key}: hangs on {lacking[0]}, which must be given too")
            if key not in conditions.keys(params):
                choices = " ".join(f"{chooser}={params[chooser]}" for chooser in conditions.choosing)
                raise InputError(f"{point.where}: {key}: does not go with {choices}")
        found.append(params)
    return found


def is_choosing(sweeper: Any, key: str, distribution: Any) -> bool:
    """Whether other keys may hang on the choice of this one: it is a group or a target."""
    if not hasattr(distribution, "choices"):
        return False
    group = key.lstrip("+").partition("@")[0]
    return group.endswith("_target_") or bool(sweeper.hydra_context.config_loader.get_group_options(group))


def check_space(conditions: Conditions) -> Job:
    """Composes and checks a job for each choice, each bound and each seed; returns the first one. The bounds of a key
    that only some choices take are tried with each of these.
    """
    space, usual = conditions.space, conditions.usual
    several = conditions.one_by_one()
    tried = []
    for key, distribution in space.keys.items():
        for value in ends(distribution):
            for choices in several if key in conditions.conditional else several[:1]:
                params = {**usual, **choices, key: value}
                if key in (keys := conditions.keys(params)):
                    tried.append({name: params[name] for name in space.keys if name in keys})
    jobs = [conditions.compose(space.jobs(params)[0]) for params in tried]
    jobs += [conditions.compose(words) for words in space.jobs(tried[0])[1:]]
    check_new(conditions.sweeper, jobs)
    return jobs[0]
