"""A sweep's plan: which values make a job another, what jobs share, and whose a folder is."""

import json
import os

import pytest

from runner.errors import InputError
from runner.storage.record_schema import JobRecord, SweepRecord, read_record, write_record
from runner.sweep import combine, plan
from runner.sweep.plan import Job
from runner.terminal import notices

CODE = {"commit": "a", "diff": None, "runner": "1", "own": {}}


def job(seed=1, lr=0.1, folder=None, **more):
    config = {"seed": seed, "optimizer": {"lr": lr}, "trainer": {"epochs": 2, "mode": None}, **more}
    source = {**config, "device": {"threads": None}}
    made = Job([f"seed={seed}"], config, {"optimizer.lr": str(lr), "seed": str(seed)}, source=source)
    if folder is not None:
        made.folder = folder
    return made


def run_of(made, folder, **more):
    folder.mkdir(parents=True, exist_ok=True)
    record = {"state": "done", "epochs": 2, "epochs_done": 2, "config": made.config, "config_source": made.source}
    record |= {"monitor": "l", "mode": "min", "best_epoch": 1, "best_value": 0.5, "best": {}, "last": {}, "test": {}}
    write_record(folder / "run.json", {**record, **more})


def refusal(*arguments, **options):
    with pytest.raises(InputError) as refused:
        plan.check_same(*arguments, **options)
    return str(refused.value)


def test_a_key_that_came_later_counts_once_it_is_set():
    assert plan.result_config({"dataset": {"val": None, "root": None}, "name": "a"}) == {"dataset.root": None}
    assert plan.result_config({"dataset": {"val": 0.1}}) == {"dataset.val": 0.1}
    assert plan.digest({"b": 1, "a": 2}) == plan.digest({"a": 2, "b": 1}) != plan.digest({"a": 2, "b": 2})
    assert len(plan.digest([])) == 16 and plan.digest(plan.Path("a")) == plan.digest("a")


def test_a_setting_is_the_config_without_the_seed_and_with_what_is_filled_in_as_it_was_written():
    source = {
        "seed": 3,
        "model": {"width": "${derived.n}", "depth": 2, "x": "${seed}"},
        "scheduler": {"T": "${..model.y}"},
    }
    source |= {"device": {"threads": None, "name": "cpu"}, "mean": None, "all": "${model}", "list": ["${a.b}", 1]}
    source |= {"a": {"b": "${seed}"}, "plain": "${model.depth}", "up": {"n": "${.m}", "m": "${..seed}"}}
    config = {
        "seed": 3,
        "model": {"width": 7, "depth": 2, "x": 3},
        "device": {"threads": 2, "name": "cpu"},
        "mean": 0.5,
    }
    config |= {"list": [3, 1], "plain": 2, "derived": {"n": 7}, "up": {"n": 3, "m": 3}}
    found = plan.setting_of(config, source)
    assert found == {
        "model.width": "${derived.n}",
        "model.depth": 2,
        "model.x": "${seed}",
        "device.name": "cpu",
        "mean": None,
        "list": ["${a.b}", 1],
        "plain": 2,
        "up.n": "${.m}",
        "up.m": "${..seed}",
    }


def test_what_stands_at_a_key_may_be_written_above_it():
    flat = {"a": "${b}", "c.d": 1}
    assert plan.written_at(flat, "a.x.y") == "${b}" and plan.written_at(flat, "c.d") == 1
    assert plan.written_at(flat, "c") is None and plan.written_at(flat, "c.e.f") is None
    loop = {"a": "${b}", "b": "${a}"}
    assert not plan.is_open(loop, "a")  # it ends
    chain = {f"k{n}": f"${{k{n + 1}}}" for n in range(9)} | {"k9": "${seed}"}
    assert plan.is_open(chain, "k2") and not plan.is_open(chain, "k0")
    assert plan.is_open({}, "seed") and plan.is_open({}, "derived.x") and plan.is_open({"a": None}, "a")
    assert not plan.is_open({"a": 5}, "a") and not plan.is_open({}, "a")
    assert plan.is_open({"a": "x ${c} ${seed}", "c": 1}, "a") and plan.is_open({"a": "${c}", "c": None}, "a.b")


def test_what_jobs_share_is_the_config_less_the_swept_groups_and_the_seed():
    config = {"seed": 1, "optimizer": {"lr": 1, "name": "a"}, "optimizers": 2, "model": {"w": 3}, "name": "x"}
    assert plan.base_of(config, ["optimizer"]) == {"optimizers": 2, "model.w": 3}
    assert plan.base_of(config, ["optimizer.lr"]) == {"optimizer.name": "a", "optimizers": 2, "model.w": 3}


def test_names_are_text_that_any_disk_takes():
    assert plan.safe_name({}) == "job" and plan.safe_name({"..": ""}) == "="
    assert plan.safe_name({"b": "ä/ö!", "a": "+1,-2"}) == "a=+1,-2,b=_"
    at_most = {"a": "x" * (plan.LONGEST_NAME - 2)}
    assert plan.safe_name(at_most) == f"a={at_most['a']}"
    longer = {"a": "x" * (plan.LONGEST_NAME - 1)}
    text = f"a={longer['a']}"
    assert plan.safe_name(longer) == f"{text[:111]}-{plan.digest(text)[:8]}" and len(plan.safe_name(longer)) == 120


def test_combinations_that_are_one_job_are_said():
    assert combine.collapsed([job(1), job(2)]) == [] and combine.collapsed([]) == []
    jobs = [job(1), job(2), job(1)]
    assert {id(each) for each in plan.unique(jobs)} == {id(jobs[0]), id(jobs[1])}  # each result once: the first

    def swept(**settings):
        return Job([], {"a": 1}, {key.replace("__", "."): value for key, value in settings.items()})

    assert combine.collapsed([swept(name="a"), swept(name="b"), swept(name="b")]) == [
        "name=a,b: cannot change a result: 3 combinations are 1 job, run with the first value"
    ]
    two = [swept(checkpoint__keep="1"), swept(checkpoint__keep="2"), Job([], {"a": 2}, {"checkpoint.keep": "1"})]
    assert combine.collapsed(two) == [
        "checkpoint.keep=1,2: cannot change a result: 3 combinations are 2 jobs, run with the first value"
    ]
    assert combine.collapsed([swept(a="1"), swept(a="1.0")]) == ["a=1,1.0: the same config: 2 combinations are 1 job"]
    assert combine.collapsed([swept(a="1"), swept(a="1")]) == [
        "a value given twice: the same config: 2 combinations are 1 job"
    ]


def test_a_job_that_is_known_keeps_its_folder_and_new_ones_get_their_names(tmp_path):
    first = job(1, folder=tmp_path / "what it was called then")
    plan.write_job(first)
    (tmp_path / "old.set-aside").mkdir()
    (tmp_path / "old.set-aside" / "job.json").write_text("{}")
    (tmp_path / "old.set-aside" / "run.json").write_text("{}")
    again, new = job(1), job(2)
    plan.place_jobs([again, new], tmp_path)
    assert (again.folder, new.folder) == (first.folder, tmp_path / "optimizer.lr=0.1,seed=2")
    assert again.name == "what it was called then" and list(plan.known_jobs(tmp_path)) == [again.name]
    record = read_record(first.folder / "job.json", JobRecord)
    expected = {"identity": first.identity, "overrides": ["seed=1"], "settings": {"optimizer.lr": "0.1", "seed": "1"}}
    expected |= {"deaths": [], "seed": 1, "setting": plan.setting_of(first.config, first.source), "choices": {}}
    assert record == expected


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    plan.write_job(job(1, folder=tmp_path / "elsewhere" / "a"))
    (tmp_path / "sweep").mkdir()
    os.symlink(tmp_path / "elsewhere" / "a", tmp_path / "sweep" / "a")
    with pytest.raises(InputError) as refused:
        plan.known_jobs(tmp_path / "sweep")
    assert str(refused.value) == (
        f"{tmp_path / 'sweep' / 'a'}: is a link, which might lead out of the sweep's folder; it is not followed"
    )


def test_a_run_is_a_jobs_by_its_seed_and_by_the_values_that_both_know(tmp_path):
    mine = job(1)

    def record(**changes):
        other = job(**{"seed": 1, **changes})
        return {"config": other.config, "config_source": other.source}

    assert plan.is_of(mine, record()) and plan.is_of(mine, record(seed="1"))
    assert not plan.is_of(mine, record(seed=2)) and not plan.is_of(mine, record(lr=0.2))
    assert plan.is_of(mine, record(new={"key": 1}))  # of another version
    assert plan.is_of(job(1, new={"key": 1}), record()) and not plan.is_of(job(1, lr=0.2, new={"key": 1}), record())
    assert plan.is_of(mine, record(trainer={"epochs": 2, "mode": "max"}))  # filled in when it is built
    assert not plan.is_of(mine, record(trainer={"epochs": 3, "mode": None}))
    assert plan.is_of(mine, record(trainer={"epochs": 3, "mode": None}), swept_only=True)
    assert not plan.is_of(mine, record(lr=0.2), swept_only=True)
    mine.settings["trainer.epochs"] = "2"
    assert plan.is_of(mine, record(trainer={"epochs": 3, "mode": None}), swept_only=True)
    assert not plan.is_of(mine, record(trainer={"epochs": 3, "mode": None}))


def test_a_folder_whose_run_is_another_jobs_is_not_believed(tmp_path):
    first, second = job(1, folder=tmp_path / "optimizer.lr=0.1,seed=1"), job(2)
    plan.write_job(first)
    run_of(second, first.folder)
    notices.take()
    again = job(1)
    plan.place_jobs([again], tmp_path)
    assert again.name == f"optimizer.lr=0.1,seed=1-{again.identity[:8]}"
    assert notices.take() == [
        f"{first.folder / 'job.json'}: its identity is another job's than its run's; not believed"
    ]


def test_a_run_without_a_readable_plan_is_its_jobs_again(tmp_path):
    """Its job.json is gone, or is broken; it is found by its name, or by what it ran."""
    run_of(job(1), tmp_path / "optimizer.lr=0.1,seed=1")
    run_of(job(2), tmp_path / "renamed")
    one, two, three = job(1), job(2), job(3)
    plan.place_jobs([one, two, three], tmp_path)
    assert [j.name for j in (one, two, three)] == ["optimizer.lr=0.1,seed=1", "renamed", "optimizer.lr=0.1,seed=3"]
    broken = tmp_path / "optimizer.lr=0.1,seed=4"
    broken.mkdir()
    (broken / "job.json").write_text("{")
    notices.take()
    assert broken.name not in plan.known_jobs(tmp_path)
    (line,) = notices.take()
    assert line.startswith(f"{broken / 'job.json'}: cannot be read (")
    four = job(4)
    plan.place_jobs([four], tmp_path)
    assert four.folder == broken  # neither of its records can be read: said when it is to run


def test_a_broken_job_json_is_kept_aside_and_its_deaths_begin_anew(tmp_path, caplog):
    path = tmp_path / "a" / "job.json"
    assert plan.read_job(path) == {"deaths": []}
    path.parent.mkdir()
    path.write_text("{")
    plan.write_job(job(1, folder=path.parent))
    assert (path.parent / "job.json.set-aside").read_text() == "{"
    assert f"{path}: cannot be read; it is kept as job.json.set-aside and written anew" in caplog.text
    plan.record_death(path.parent, {"exit_code": -9})
    record = read_record(path, JobRecord)
    assert record["deaths"] == [{"exit_code": -9}] and record["identity"] == job(1).identity


def test_another_sweep_is_refused_with_what_differs_and_both_ways_on(tmp_path):
    base = {"a": 1, "b": 2, "c": [3], "lr": 0.1, "model.w": 1}
    plan.write_sweep(tmp_path, {"arguments": [], "config_dir": None, "base": base, "swept": ["lr"], "code": CODE}, [{}])
    assert read_record(tmp_path / "sweep.json", SweepRecord)["jobs"] == [{}]
    assert plan.last_code(tmp_path) == CODE and plan.last_code(tmp_path / "none") is None
    plan.check_same(tmp_path, {**base, "lr": 5, "seed": 4, "model.w": 2}, ["model"], CODE, force=False)
    plan.check_same(tmp_path / "none", {}, [], CODE, force=False)
    way_out = "choose another sweep.name, or add to it all the same with sweep.force=true"
    start = f"{tmp_path}: holds a sweep of another config; "
    other = {**base, "a": 9, "c": [4]}
    assert refusal(tmp_path, other, [], CODE, force=False) == (
        f"{start}a: 1 -> 9; c: [3] -> [4]; give a=1 c=[3] to go on with it, {way_out}"
    )
    other |= {"b": 9}
    assert "; give a=1 b=2 c=[3] to go on with it, " in refusal(tmp_path, other, [], CODE, force=False)
    many = refusal(tmp_path, {**other, "model.w": 9}, [], CODE, force=False)
    assert many == f"{start}a: 1 -> 9; b: 2 -> 9; c: [3] -> [4]; {way_out}"
    assert refusal(tmp_path, {**base, "new": 1}, [], CODE, force=False) == f"{start}new: - -> 1; {way_out}"
    changed = {**CODE, "commit": "b", "diff": "x", "runner": "2", "own": {}}
    assert refusal(tmp_path, base, [], changed, force=False) == (
        f"{tmp_path}: holds a sweep of other code; commit: a -> b; diff: None -> x; runner: 1 -> 2; {way_out}"
    )
    plan.check_same(tmp_path, other, [], changed, force=True)
    (tmp_path / "sweep.json").write_text("{")
    notices.take()
    plan.check_same(tmp_path, other, [], changed, force=False)
    (said,) = notices.take()
    assert said.endswith("; it is made again from the jobs, without a check that this is the same sweep")
    assert plan.last_code(tmp_path) is None
    (tmp_path / "sweep.json").unlink()
    (tmp_path / "sweep.json").mkdir()
    with pytest.raises(InputError) as refused:
        plan.write_sweep(tmp_path, {}, [])
    assert str(refused.value) == f"{tmp_path / 'sweep.json'}: is a folder, not a file; move it away"


def test_a_jobs_record_is_plain_json(tmp_path):
    made = job(1, folder=tmp_path / "a")
    plan.write_job(made)
    assert json.loads((tmp_path / "a" / "job.json").read_text())["identity"] == made.identity


def test_a_jobs_record_that_is_missing_or_unreadable_says_of_no_death(tmp_path):
    path = tmp_path / "job.json"
    assert plan.read_job(path) == {"deaths": []}
    path.write_text("{")
    assert plan.read_job(path) == {"deaths": []} and (tmp_path / f"job.json{plan.SET_ASIDE}").exists()


def test_a_jobs_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "sweep"
    place.mkdir()
    made = job()
    (place / plan.safe_name(made.settings)).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link, which might lead out of the sweep's folder"):
        plan.place_jobs([made], place)


def test_a_folder_is_unknown_where_neither_of_its_records_can_be_read(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    assert not plan.is_unknown(folder, {})
    (folder / "job.json").write_text("{")
    assert plan.is_unknown(folder, {}) and not plan.is_unknown(folder, {"job": {}})
    run_of(job(), folder)
    assert not plan.is_unknown(folder, {})


def test_a_job_that_was_lengthened_by_hand_keeps_its_folder(tmp_path):
    made = job()
    plan.place_jobs([made], tmp_path)
    plan.write_job(made)
    run_of(made, made.folder, config={**made.config, "trainer": {"epochs": 9, "mode": None}})
    again = job()
    plan.place_jobs([again], tmp_path)
    assert again.folder == made.folder and notices.take() == []
