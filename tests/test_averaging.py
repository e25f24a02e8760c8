"""Averages of the weights: torch's arithmetic, what is evaluated and kept by them, and that a kill changes no bit."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf, open_dict
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

import runner
from conftest import killed_after
from runner.batches.parts import Stream
from runner.config.compose import compose
from runner.errors import InputError
from runner.groups.model_parts import make_averaging
from runner.job.build import build
from runner.job.rebuilding import rebuilt
from runner.job.resuming import resume
from runner.job.saved import open_saved
from runner.storage import checkpoint
from runner.storage.run_dir import RunDir
from runner.sweep.combine import task_config
from runner.sweep.plan import result_config
from runner.tasks import Supervised
from runner.train.averaging import Averaging
from test_listeners import FAST
from test_tasks import assert_equal, final
from test_trainer import make

SMALL = [*FAST, "model.batch_norm=true", "trainer.epochs=4", "optimizer=sgd", "optimizer.lr=0.2"]
EMA = [*SMALL, "averaging=ema", "averaging.decay=0.8"]
SWA = [*SMALL, "averaging=swa", "averaging.start=2"]


def normed():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4))


def averaging(task, **settings):
    return Averaging(task, **{"epochs": 3, "monitor": "val/loss", **settings})


def with_average(model, **settings):
    """A Trainer whose weights are averaged: the object is made of the task that it trains."""
    trainer = make(model=model)
    trainer.averaging = trainer.state.averaging = averaging(trainer.task, **settings)
    return trainer


def test_an_ema_is_torchs_own():
    torch.manual_seed(0)
    trainer = with_average(normed(), type="ema", decay=0.9)
    by_torch = AveragedModel(trainer.task, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    trainer.listeners.batch.append(lambda progress, count: by_torch.update_parameters(trainer.task))
    trainer.fit()
    with trainer.averaging.applied():
        for own, theirs in zip(trainer.task.parameters(), by_torch.module.parameters(), strict=True):
            assert torch.equal(own, theirs)
    assert trainer.averaging.count == trainer.progress.step == int(by_torch.n_averaged)


def test_swa_is_torchs_own_with_the_statistics_of_its_norms():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    trainer = with_average(model, type="swa", start=2)
    by_torch = AveragedModel(trainer.model, multi_avg_fn=get_swa_multi_avg_fn())

    def at_the_end(progress, count):
        if progress.epoch + 1 >= 2 and progress.batch == count:
            by_torch.update_parameters(trainer.model)

    trainer.listeners.batch.append(at_the_end)
    trainer.fit()
    update_bn(trainer.train_loader.batches(2), by_torch)
    assert trainer.averaging.count == 2
    with trainer.averaging.applied():
        assert_equal(dict(trainer.model.state_dict()), dict(by_torch.module.state_dict()))
    assert trainer.model[2].momentum == 0.1


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"type": "none"}, []),
        ({"type": "ema", "decay": 0.5}, list(range(1, 13))),
        ({"type": "ema", "decay": 0.5, "every": 5}, [5, 10]),
        ({"type": "ema", "decay": 0.5, "start": 2, "every": 2}, [4, 6, 8, 10, 12]),
        ({"type": "ema", "decay": 0.5, "start": 0.5}, list(range(7, 13))),
        ({"type": "swa"}, [3, 6, 9, 12]),
        ({"type": "swa", "start": 2, "every": 2}, [6, 12]),
        ({"type": "swa", "start": 0.75}, [12]),
        ({"type": "swa", "start": 0.74}, [9, 12]),
    ],
)
def test_when_there_is_an_update(settings, steps):
    average = Averaging(nn.Linear(1, 1), **settings, epochs=4)
    taken = []
    for step in range(1, 13):  # epochs of three
        before = average.count
        average.update((step - 1) // 3 + 1, step, step % 3 == 0)
        taken += [step] if average.count > before else []
    assert taken == steps


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("averaged")
    beside = ["averaging.evaluate=beside"]
    for name, words in {"none": SMALL, "ema": EMA, "swa": SWA, "beside": [*EMA, *beside]}.items():
        runner.run(words, run_dir=place / name)
    return place


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_training_is_that_without_an_average(runs):
    usual = final(runs / "none")[0]
    for name in ("ema", "swa", "beside"):
        state = final(runs / name)[0]
        for key in ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict"):
            assert_equal(state[key], usual[key])
    for one, other in zip(rows(runs / "none"), rows(runs / "beside"), strict=True):
        same = [key for key in one if "seconds" not in key and "per_second" not in key]
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
        assert set(other) - set(one) == {"val_ema/loss", "val_ema/accuracy"}


def test_evaluated_is_the_average(runs):
    for one, other in zip(rows(runs / "ema"), rows(runs / "beside"), strict=True):
        assert (one["val/loss"], one["val/accuracy"]) == (other["val_ema/loss"], other["val_ema/accuracy"])
    before = [row["val/loss"] for row in rows(runs / "none")]
    mean = [row["val/loss"] for row in rows(runs / "swa")]
    assert mean[0] == before[0] and mean[1:] != before[1:]  # it begins with epoch 2, its norms counted anew


@pytest.mark.parametrize("name", ["ema", "swa", "beside"])
def test_the_best_weights_give_the_best_figure_and_the_tests(runs, name):
    record = RunDir(runs / name).read_run()
    for which in ("best", "last"):
        built = rebuilt(open_saved(runs / name, which))
        value = built.trainer.evaluate_on(built.trainer.eval_loaders["val"])["accuracy"]
        assert value == record[which][record["monitor"]]
        assert built.trainer.evaluate_on(built.test_loader) == record["test"][which]
    assert set(record["test"]) == ({"best", "last", "ema"} if name == "beside" else {"best", "last"})
    if name == "beside":
        built = rebuilt(open_saved(runs / name, "ema"))
        assert built.trainer.evaluate_on(built.test_loader) == record["test"]["ema"]


@pytest.mark.parametrize("save", ["last", "none"])
def test_the_best_weights_are_the_averages_where_no_file_holds_them(runs, save):
    runner.run([*EMA, f"checkpoint.save={save}"], run_dir="run")
    assert RunDir(Path("run")).read_run()["test"] == RunDir(runs / "ema").read_run()["test"]


def test_a_monitored_average_is_chosen_by_and_the_others_are_raw(runs):
    runner.run([*EMA, "averaging.evaluate=beside", "trainer.monitor=val_ema/accuracy"], run_dir="run")
    record, usual = RunDir(Path("run")).read_run(), RunDir(runs / "none").read_run()
    assert record["test"]["raw"] == usual["test"]["last"]
    assert record["test"]["last"] == RunDir(runs / "ema").read_run()["test"]["last"]
    assert record["chosen_on"] == "val" and record["modes"]["accuracy"] == "max"


def test_each_kind_of_weights_is_loaded_by_its_name(runs):
    raw = final(runs / "ema")[0]["model_state_dict"]
    loaded = {which: dict(runner.load_model(runs / "ema", which).state_dict()) for which in ("last", "ema", "raw")}
    assert_equal(loaded["raw"], dict(raw))
    assert_equal(loaded["last"], loaded["ema"])
    assert not torch.equal(loaded["ema"]["1.weight"], raw["1.weight"])
    usual = dict(runner.load_model(runs / "beside", "last").state_dict())
    assert_equal(usual, dict(raw))
    path = runs / "ema" / "checkpoints" / "last.pt"
    for name, which, has in (("ema", "swa", "ema, of 144 updates"), ("none", "ema", "none")):
        with pytest.raises(InputError) as refused:
            runner.load_model(runs / name, which)
        path = runs / name / "checkpoints" / "last.pt"
        assert str(refused.value) == f"which={which}: {path} holds no such average of the weights; it has: {has}"


def test_a_new_run_begins_from_the_average(runs):
    begun = build(task_config(compose([*SMALL, f"init_from={runs / 'swa'}"], None)[1]))
    assert_equal(dict(begun.trainer.model.state_dict()), dict(runner.load_model(runs / "swa", "swa").state_dict()))


@pytest.mark.parametrize("name", ["ema", "swa"])
@pytest.mark.parametrize("saves", ["all", pytest.param("last", marks=pytest.mark.slow)])
def test_killed_inside_epochs_it_goes_on_with_the_same_bits(runs, name, saves, monkeypatch):
    words = [*{"ema": EMA, "swa": SWA}[name], f"checkpoint.save={saves}", "checkpoint.every_batches=4"]
    runner.run(words, run_dir="whole")
    killed_after(10, monkeypatch, lambda: runner.run(words, run_dir="killed"))
    for batches in (9, 17):
        killed_after(batches, monkeypatch, lambda: resume(Path("killed"), []))
    resume(Path("killed"), [])
    assert_equal(final("killed"), final("whole"))
    assert_equal(final("whole")[1], final(runs / name)[1])


def test_tied_weights_are_averaged_once_and_stay_tied():
    first = nn.Linear(4, 4, bias=False)
    task = Supervised(nn.Sequential(first, nn.ReLU(), first), None)
    average = averaging(task, type="ema", decay=0.5)
    for value in (0.0, 1.0):
        nn.init.constant_(first.weight, value)
        average.update(1, 1, False)
    state = average.state_dict()
    assert set(state["parameters"]) == {"model.0.weight", "model.2.weight"}
    assert all(tensor.eq(0.5).all() for tensor in state["parameters"].values())
    again = averaging(task, type="ema", decay=0.5)
    again.load_state_dict(state)
    with again.applied():
        assert task.model[0].weight is task.model[2].weight and task.model[0].weight.eq(0.5).all()
    assert first.weight.eq(1).all()


def test_an_average_of_another_shape_is_refused():
    task, other = (Supervised(nn.Linear(2, width), None) for width in (3, 6))
    one = averaging(other, type="ema", decay=0.5)
    one.update(1, 1, False)
    with pytest.raises(TypeError, match=r"the average of model.weight is torch.float32 \[6, 2\]"):
        averaging(task, type="ema", decay=0.5).load_state_dict(one.state_dict())


def test_frozen_norms_keep_their_statistics():
    runner.run([*SWA, "freeze=[BatchNorm1d]"], run_dir="run")
    state = final("run")[0]
    assert (
        state["averaging_state_dict"]["statistics"] == {}
        and int(state["model_state_dict"]["2.num_batches_tracked"]) == 0
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["averaging=ema", "averaging.decay=1"], "averaging.decay=1: must be at least 0 and below 1"),
        (["averaging=ema", "averaging.decay=-1"], "averaging.decay=-1: must be a number of at least 0"),
        (["averaging=ema", "averaging.decay=x"], "averaging.decay=x: must be a number, got text"),
        (["averaging=ema", "averaging.every=0"], "averaging.every=0: must be a whole number of at least 1"),
        (["averaging=ema", "averaging.start=-1"], "averaging.start=-1: must be a number of at least 0"),
        (["averaging=ema", "averaging.start=1.5"], "averaging.start=1.5: must be an epoch from 1 to 2, or a share"),
        (["averaging=ema", "averaging.start=3"], "averaging.start=3: must be an epoch from 1 to 2, or a share"),
        (["averaging=ema", "averaging.evaluate=both"], "averaging.evaluate=both: unknown; choices: instead, beside"),
        (["averaging=ema", "averaging.type=sma"], "averaging.type=sma: unknown; choices: none, ema, swa"),
        (["averaging=swa", "+averaging.decay=0.5"], "averaging.decay=0.5: is needed by ema, and taken by nothing else"),
        (["averaging=ema", "~averaging.decay"], "averaging.decay=None: is needed by ema, and taken by nothing else"),
        (["averaging=emma"], "averaging=emma: no such choice; did you mean ema? choices: ema, none, swa"),
        (["averaging=null"], "averaging=null: a run needs the group averaging; choices: ema, none, swa"),
        (
            ["averaging=ema", "averaging.deacy=1"],
            "averaging.deacy=1: averaging has no key 'deacy'; did you mean decay?",
        ),
        (["averaging.decay=0.9"], "averaging.decay=0.9: averaging has no key 'decay'"),
        (
            ["averaging=ema", "trainer.monitor=val_ema/accuracy"],
            "trainer.monitor=val_ema/accuracy: is not logged; did you mean val/accuracy? ch",
        ),
        (
            ["averaging=ema", "averaging.evaluate=beside", "trainer.monitor=val_swa/accuracy"],
            "trainer.monitor=val_swa/accuracy: is not logged; did you mean val_ema/accuracy? choices:"
            " train/loss, train/accuracy, val/loss, val/accuracy, val_ema/loss, val_ema/accuracy",
        ),
    ],
)
def test_bad_input_is_one_line(words, said):
    with pytest.raises(InputError) as refused:
        runner.run([*FAST, *words], run_dir="run")
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)
    assert not Path("run", "run.json").exists()


def test_norms_cannot_count_a_stream_again():
    cfg, stream = task_config(compose(SWA, None)[1]), Stream.__new__(Stream)
    assert make_averaging(cfg, Supervised(nn.Linear(2, 2), None), stream).type == "swa"
    with pytest.raises(InputError, match="averaging=swa: counts the statistics of batch norms over the training data"):
        make_averaging(cfg, Supervised(normed(), None), stream)


def test_a_damaged_average_is_one_line(runs):
    RunDir(Path("run")).path.mkdir()
    Path("run", "checkpoints").mkdir()
    Path("run", "run.json").write_bytes((runs / "ema" / "run.json").read_bytes())
    state = checkpoint.load(runs / "ema" / "checkpoints" / "last.pt")
    path = Path("run", "checkpoints", "last.pt")
    for damaged in ({}, 3, {**state["averaging_state_dict"], "parameters": {"x": 1}}):
        checkpoint.save(path, {**state, "averaging_state_dict": damaged})
        with pytest.raises(
            InputError, match=r"last\.pt: (its averaging_state_dict cannot be read|does not fit|has no)"
        ):
            runner.load_model("run", "last")
        with pytest.raises(InputError, match=r"last\.pt"):
            runner.run([*SMALL, "init_from=run"], run_dir="begun")


def test_a_share_of_the_epochs_is_no_length_to_go_beyond():
    runner.run([*SMALL, "averaging=swa", "trainer.epochs=2"], run_dir="run")
    with pytest.raises(InputError, match="trainer.epochs: 2 -> 4 would change averaging.start=0.75, the length that"):
        resume(Path("run"), ["trainer.epochs=4"])
    with pytest.raises(InputError, match="averaging.start: 0.75 -> 1 would change what this run has trained already"):
        resume(Path("run"), ["averaging.start=1"])


def test_a_config_of_before_has_no_average():
    cfg = task_config(compose(FAST, None)[1])
    now = OmegaConf.to_container(cfg)
    with open_dict(cfg):
        del cfg["averaging"]
    assert result_config(OmegaConf.to_container(cfg)) == result_config(now)
    assert build(cfg).trainer.averaging.type == "none"


def test_a_dry_run_ends_before_its_average_begins():
    record = runner.run([*SMALL, "averaging=ema", "averaging.start=3", "trainer.dry_run=true"], run_dir="run")
    assert record["state"] == "done" and final("run")[0]["averaging_state_dict"]["count"] == 0


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, []),
        (
            {"type": "ema", "decay": 0.9, "start": 2},
            ["average of the weights (ema, exponential, decay 0.9): from epoch 2 on; it is what is evaluated"],
        ),
        (
            {"type": "swa", "evaluate": "beside"},
            [
                "average of the weights (swa, at the ends of epochs): from epoch 1 on; it has rows of its own,"
                " val_swa/* beside val/*"
            ],
        ),
    ],
)
def test_a_line_says_what_is_evaluated(settings, lines):
    assert averaging(nn.Linear(1, 1), **settings).described() == lines
