"""What is held against a run's checkpoints: the config that lies beside them, their owner, and rows that were lost."""

import pytest

from runner.errors import InputError
from runner.job.recovery import (
    COUNTERS,
    TO_GO_ON,
    WEIGHTS,
    check_keys,
    check_owner,
    config_differences,
    lost_steps,
    whole_config,
    whole_rows,
)
from runner.storage.checkpoint import Damaged
from runner.storage.run_dir import RunDir

CONFIG = {"seed": 1, "optimizer": {"lr": 0.5}, "trainer": {"epochs": 3, "log_every": 2}}
YAML = "seed: 1\noptimizer: {lr: 0.5}\ntrainer: {epochs: 3, log_every: 2}\n"
RECORD = {"id": "mine", "config": CONFIG, "config_yaml": YAML}


def said(call, *arguments):
    with pytest.raises((InputError, Damaged)) as refused:
        call(*arguments)
    return str(refused.value)


def test_the_two_forms_of_a_config_must_say_the_same(tmp_path):
    place = RunDir(tmp_path)
    assert whole_config(place, RECORD) == YAML
    for text, words in (
        (YAML.replace("0.5", "0.7"), "optimizer.lr is 0.5 in its config and 0.7 in its config_yaml"),
        (YAML + "ema: 1\n", "ema is None in its config and 1 in its config_yaml"),
        (YAML.replace("seed: 1\n", ""), "seed is 1 in its config and None in its config_yaml"),
    ):
        assert said(whole_config, place, {**RECORD, "config_yaml": text}) == f"{place.run_json}: {words}"
    broken = said(whole_config, place, {**RECORD, "config_yaml": "a: [" + "x, " * 200})
    assert broken.startswith(f"{place.run_json}: config_yaml cannot be read (while parsing a ")
    assert "\n" not in broken and len(broken) <= len(f"{place.run_json}: config_yaml cannot be read ()") + 200
    infinite = {**RECORD, "config": {"a": None}, "config_yaml": "a: .inf"}  # what JSON cannot say
    assert whole_config(place, infinite) == "a: .inf"


def whole(batch):
    state = dict.fromkeys(TO_GO_ON)
    return {
        **state,
        "progress": {**dict.fromkeys(COUNTERS, 0), "batch": batch, "step": batch},
        "running": {},
        "rng": {},
    }


def test_a_checkpoint_that_lacks_what_is_needed_is_named_with_the_key(tmp_path):
    path = tmp_path / "last.pt"
    for batch in (0, 3):
        check_keys(path, whole(batch), TO_GO_ON)
    for key in TO_GO_ON:
        state = {k: v for k, v in whole(0).items() if k != key}
        assert said(check_keys, path, state, TO_GO_ON) == f"{path}: has no {key}"
    check_keys(path, {"model_state_dict": {}}, WEIGHTS)
    assert said(check_keys, path, {}, WEIGHTS) == f"{path}: has no model_state_dict"
    for key in COUNTERS:
        state = whole(0)
        del state["progress"][key]
        assert said(check_keys, path, state, TO_GO_ON) == f"{path}: has no progress.{key}"
    assert said(check_keys, path, {**whole(0), "progress": 5}, TO_GO_ON) == f"{path}: has no progress.epoch"
    for key in ("running", "rng"):  # needed inside an epoch only
        check_keys(path, {k: v for k, v in whole(0).items() if k != key}, TO_GO_ON)
        state = {k: v for k, v in whole(3).items() if k != key}
        assert said(check_keys, path, state, TO_GO_ON) == f"{path}: has no {key}"


def test_a_checkpoint_is_its_runs_by_id_and_by_config(tmp_path):
    path, other = tmp_path / "last.pt", YAML.replace("0.5", "0.7")
    check_owner(path, {"run_id": "mine", "config": YAML}, RECORD)
    check_owner(path, {"config": YAML}, {**RECORD, "id": None})  # of a version without ids
    check_owner(path, {"run_id": "mine"}, RECORD)
    assert said(check_owner, path, {"run_id": "its", "config": YAML}, RECORD) == (
        f"{path}: belongs to another run (its id is its, this run's is mine)"
    )
    assert said(check_owner, path, {"run_id": "its", "config": other}, RECORD) == (
        f"{path}: belongs to another run (optimizer.lr is 0.7 there, 0.5 here)"
    )
    assert said(check_owner, path, {"run_id": "mine", "config": other}, RECORD) == (
        f"{path}: was saved under another config than run.json's (optimizer.lr is 0.7 there, 0.5 here)"
    )
    many = "seed: 2\na: 1\nb: 2\nc: 3\n"
    for run_id in ("its", "mine"):
        words = said(check_owner, path, {"run_id": run_id, "config": many}, RECORD)
        assert words.endswith("(seed is 2 there, 1 here; a is 1 there, None here; b is 2 there, None here)")


def test_what_may_change_when_a_run_goes_on_is_no_difference():
    longer = YAML.replace("epochs: 3, log_every: 2", "epochs: 5, log_every: 9") + "tags: [a]\n"
    assert config_differences({"config": longer}, RECORD) == []
    assert config_differences({"config": "seed: 1\n"}, RECORD) == ["optimizer.lr is None there, 0.5 here"]


def row(epoch, loss=0.5, seconds=1.0):
    return {"epoch": epoch, "step": 7 * epoch, "loss": loss, "seconds": seconds, "examples_per_second": 2.0}


def held(*epochs, **more):
    return {
        "progress": {"epoch": len(epochs)},
        "rows": [{"epoch": e, "step": 7 * e, "loss": 0.5} for e in epochs],
        **more,
    }


def test_rows_are_the_checkpoints_and_what_the_file_has_of_them_is_kept(tmp_path):
    place, path = RunDir(tmp_path), tmp_path / "last.pt"
    assert whole_rows(place, None, None) == ([], [])
    place.metrics.replace([row(1), row(2), row(3)])
    assert whole_rows(place, held(1, 2), path) == ([row(1), row(2)], [])  # the third is made again
    place.metrics.replace([row(1), row(2, loss=0.9), row(3)])
    lost = {"epoch": 2, "step": 14, "loss": 0.5, "seconds": None, "examples_per_second": None}
    rows, words = whole_rows(place, held(1, 2, 3), path)
    assert rows == [row(1), lost, row(3)]
    assert words == ["metrics.jsonl: the rows of epochs 2 are lost or damaged; made good from last.pt"]
    place.metrics.replace([row(2), row(1)])
    rows, words = whole_rows(place, held(1, 2), path)
    assert rows == [row(1), row(2)]
    assert words == ["metrics.jsonl: holds rows twice or out of order; made good from last.pt"]
    place.metrics.path.unlink()
    _, words = whole_rows(place, held(*range(1, 12)), path)
    assert "epochs 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ... are lost" in words[0]
    _, words = whole_rows(place, held(*range(1, 11)), path)
    assert "epochs 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 are lost" in words[0]


def steps_of(place, *steps):
    for step in steps:
        place.steps.append({"step": step}, durable=False)
    return place


def test_lost_rows_of_steps_are_counted_up_to_the_checkpoint(tmp_path):
    record = {"config": CONFIG, "resumed": []}
    place = steps_of(RunDir(tmp_path), 2, 8)
    assert lost_steps(place, record, 3) == []
    assert lost_steps(place, record, 8) == [
        "steps.jsonl: 2 rows from step 4 on are lost; nothing else holds them",
    ]
    assert lost_steps(place, record, 4) == ["steps.jsonl: 1 rows from step 4 on are lost; nothing else holds them"]
    assert lost_steps(place, record, 2) == []


@pytest.mark.parametrize("every", [0, None])
def test_where_nobody_knows_which_steps_there_were_none_are_lost(tmp_path, every):
    place = steps_of(RunDir(tmp_path), 2)
    silent = {**CONFIG, "trainer": {"log_every": every}}
    assert lost_steps(place, {"config": silent, "resumed": []}, 9) == []
    events = [{"command": ["resume", "r"]}, {"command": ["resume", "r", "trainer.log_every=3"]}]
    assert lost_steps(place, {"config": CONFIG, "resumed": events}, 9) == []
    assert len(lost_steps(place, {"config": CONFIG, "resumed": events[:1]}, 9)) == 1
    assert len(lost_steps(place, {"config": CONFIG}, 9)) == 1  # of a version that kept no events
