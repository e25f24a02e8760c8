"""Whether a sweep may start: what its launcher cannot do is refused before anything is written."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.before import beforehand
from runner.errors import InputError
from runner.sweep import ready
from runner.sweep.plan import Job
from runner.sweep.ready import check_launcher, check_new


def sweeper(launcher, retries=0, fail_fast=False, chdir=False, task=()):
    choices = {"hydra/launcher": "basic"}
    hydra = SimpleNamespace(
        job=SimpleNamespace(chdir=chdir),
        sweep=SimpleNamespace(dir="absent"),
        overrides=SimpleNamespace(task=list(task)),
        runtime=SimpleNamespace(choices=choices),
    )
    options = SimpleNamespace(retries=retries, fail_fast=fail_fast, force=False)
    return SimpleNamespace(config=SimpleNamespace(sweep=options, hydra=hydra), launcher=launcher)


def refusal(*arguments, **options):
    with pytest.raises(InputError) as refused:
        check_launcher(sweeper(*arguments, **options))
    return str(refused.value)


class Ours:
    engine = "pool"


BASIC = SimpleNamespace()


def test_what_no_sweep_can_do_is_refused_on_every_launcher():
    for launcher in (Ours(), BASIC):
        check_launcher(sweeper(launcher))
        assert refusal(launcher, retries=-1) == "sweep.retries=-1: must be a whole number of at least 0"
        assert refusal(launcher, chdir=True) == (
            "hydra.job.chdir=true: not in a sweep, whose jobs find their folders and data from where it was started;"
            " a run's own folder is hydra.runtime.output_dir"
        )


def test_a_launcher_of_hydras_own_can_neither_fail_fast_nor_try_again():
    choices = "choices: hydra/launcher=local, ray, submitit_local"
    unable = "hydra/launcher=basic runs all jobs by itself and cannot do this"
    assert refusal(BASIC, fail_fast=True) == f"sweep.fail_fast=true: {unable}; {choices}"
    asked = ["a=1", "sweep.retries=2"]
    assert refusal(BASIC, retries=2, task=asked) == f"sweep.retries=2: {unable}; {choices}"
    assert refusal(BASIC, retries=1, task=["sweep.retries=1"]) == f"sweep.retries=1: {unable}; {choices}"
    check_launcher(sweeper(BASIC, retries=2))  # nobody asked for it
    check_launcher(sweeper(BASIC, retries=0, task=["sweep.retries=0"]))
    check_launcher(sweeper(Ours(), retries=2, fail_fast=True, task=asked))


def test_a_launcher_of_ours_looks_for_itself():
    class Careful(Ours):
        def check(self):
            raise InputError("not here")

    assert refusal(Careful()) == "not here"
    bare = SimpleNamespace(check=lambda: None)
    assert "cannot do this" in refusal(bare, fail_fast=True)


def test_only_jobs_that_have_not_begun_are_looked_at(tmp_path, monkeypatch):
    asked = []

    def look(named, with_data, before):
        assert before == []
        asked.append((named, with_data))
        return ["a warning"]

    monkeypatch.setattr(beforehand, "check_jobs", look)
    monkeypatch.setattr(ready, "task_config", lambda composed: f"config of {composed}")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").touch()
    jobs = [Job(["a=1", "b=2"], {}, {}, "one"), Job([], {}, {}, "two", tmp_path / "begun")]
    jobs.append(Job(["a=3"], {}, {}, "three", tmp_path / "planned"))
    assert jobs[0].folder == Path()
    for launcher, with_data in ((Ours(), True), (SimpleNamespace(is_elsewhere=True), False)):
        assert check_new(sweeper(launcher), jobs) == ["a warning"]
        named = [("job 0 (a=1 b=2)", "config of one"), ("job 2 (a=3)", "config of three")]
        assert asked.pop() == (named, with_data)
