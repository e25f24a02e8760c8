"""With which overrides a run may go on: what is refused, and every word of the way out."""

import pytest

from runner.errors import InputError
from runner.job.changes import check_changes, config_dir_flag, init_from, own_overrides

COMMAND = ["python", "-m", "runner", "--config-dir", "my conf", "model=tiny"]


def record(**of_source):
    config = {
        "optimizer": {"lr": 1.0},
        "trainer": {"epochs": 3, "log_every": 1},
        "quiet": False,
        "device": {"name": "a"},
    }
    source = {"optimizer": {"lr": 1.0}, "derived": {"of": "${trainer.epochs}"}, **of_source}
    return {"config": config, "config_source": source, "epochs_done": 2, "command": COMMAND}


def changed(**of_groups):
    config = record()["config"]
    return {**config, **{group: {**config[group], **keys} for group, keys in of_groups.items()}}


def refusal(run_dir, config, overrides=(), **of_source):
    with pytest.raises(InputError) as refused:
        check_changes(run_dir, record(**of_source), config, list(overrides))
    return str(refused.value)


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("[model=tiny, quiet=true, 'name=a b']")
    return tmp_path


def test_what_was_trained_is_not_changed_and_the_way_out_is_a_command_that_can_be_pasted(run_dir):
    way_out = "start a new run from its weights: python -m runner --config-dir 'my conf' model=tiny 'name=a b'"
    way_out += f" init_from={run_dir}"
    said = refusal(run_dir, changed(optimizer={"lr": 2.0}), ["optimizer.lr=2.0"])
    assert said == (
        f"optimizer.lr: 1.0 -> 2.0 would change what this run has trained already; {way_out} optimizer.lr=2.0"
    )
    assert refusal(run_dir, {**changed(), "ema": 1}).startswith("ema: None -> 1 would change")  # one that is new
    without = {key: value for key, value in changed().items() if key != "optimizer"}
    assert refusal(run_dir, without).startswith("optimizer.lr: 1.0 -> None would change")


def test_what_changes_no_result_may_change(run_dir):
    free = {**changed(trainer={"log_every": 2}, device={"name": "b"}), "quiet": True, "derived": {"of": 4}}
    check_changes(run_dir, record(), free, [])
    check_changes(run_dir, record(), {**free, "tags": ["a"], "checkpoint": {"save": "best"}}, [])


def test_a_length_is_only_raised_and_only_where_nothing_follows_from_it(run_dir):
    check_changes(run_dir, record(), changed(trainer={"epochs": 4}), [])
    moment = {"lr_lambda": "0.9 ** epoch * (step + 1)"}
    check_changes(run_dir, record(scheduler=moment), changed(trainer={"epochs": 4}), [])
    for fewer in (2, 3.5, "4"):
        assert refusal(run_dir, changed(trainer={"epochs": fewer})) == (
            f"trainer.epochs={fewer}: this run is planned for 3 epochs, 2 of them are done;"
            " its length can only be raised"
        )
    for key, follows in (
        *(("T_max", "${trainer.epochs}"), ("T_max", "${derived.run_length}")),
        *(("lr_lambda", "1 - epoch / epochs"), ("lr_lambda", "step / steps")),
    ):
        said = refusal(run_dir, changed(trainer={"epochs": 5}), ["trainer.epochs=5"], scheduler={key: follows})
        assert said == (
            f"trainer.epochs: 3 -> 5 would change scheduler.{key}={follows}, the length that this run was planned for;"
            f" start a new run from its weights: python -m runner --config-dir 'my conf' model=tiny 'name=a b'"
            f" init_from={run_dir} trainer.epochs=5"
        )


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (None, []),
        (["python", "-m", "runner"], []),
        (["runner", "-cd", "a", "model=b"], ["--config-dir", "a"]),
        (["runner", "--config-dir", "a"], ["--config-dir", "a"]),
        (["runner", "--config-dir"], []),
    ],
)
def test_the_flag_of_a_runs_own_files_is_found_in_its_command(command, flag):
    assert config_dir_flag({"command": command}) == flag


def test_a_folder_is_quoted_only_where_the_grammar_needs_it(tmp_path):
    assert init_from(tmp_path / "a-b_1.2") == f"init_from={tmp_path}/a-b_1.2"
    for name in ("a b", "a=b", "ä"):
        assert init_from(tmp_path / name) == f"init_from='{tmp_path}/{name}'"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{a: b}", "must be a list of overrides"),
        (b"[a, 1]", "must be a list of overrides"),
        (b"[a", "cannot be read (while parsing a flow sequence"),
        (b"\xff\xfe\xff", "cannot be read ("),
    ],
)
def test_overrides_that_are_none_are_named(run_dir, content, said):
    path = run_dir / ".hydra" / "overrides.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        own_overrides(run_dir)
    assert str(refused.value).startswith(f"{path}: {said}") and "\n" not in str(refused.value)
    assert len(str(refused.value)) < len(f"{path}: cannot be read ()") + 201


def test_no_overrides_are_none(run_dir):
    path = run_dir / ".hydra" / "overrides.yaml"
    path.write_text("")
    assert own_overrides(run_dir) == []
    path.unlink()
    assert own_overrides(run_dir) == []
