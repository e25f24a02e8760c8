"""A run's length in steps, and evaluations at other moments than the ends of epochs."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import runner
from conftest import killed_after
from runner.before.preview import preview
from runner.cli.preview import lines
from runner.config.compose import compose
from runner.errors import InputError
from runner.groups.length import Length, evaluations, every_of, length_of, said
from runner.job.resuming import resume
from runner.storage import checkpoint
from runner.storage.identity import config_digest
from runner.storage.run_dir import RunDir
from runner.sweep.combine import task_config
from runner.sweep.plan import result_config
from runner.train.stopping import Stopping
from test_listeners import FAST
from test_tasks import assert_equal, final
from test_trainer import assert_equal_states, make, rows_of


def slow(words):
    return pytest.param(words, marks=pytest.mark.slow)


NORMED = ["model.batch_norm=true"]
LONG = [word for word in FAST if "epochs" not in word]  # 36 batches an epoch


def rows(path):
    return [json.loads(line) for line in Path(path, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("trainer", "length"),
    [
        ({"epochs": 3}, Length(3, 30, 10)),
        ({"epochs": 3, "evaluate_every": 2}, Length(3, 30, 20)),
        ({"epochs": 3, "evaluate_every": "2 epochs"}, Length(3, 30, 20)),
        ({"epochs": 3, "evaluate_every": "7 steps"}, Length(3, 30, 7)),
        ({"epochs": 3, "steps": 25}, Length(3, 25, 10)),
        ({"epochs": 3, "steps": 25, "evaluate_every": 4}, Length(3, 25, 4)),
        ({"epochs": 3, "steps": 25, "evaluate_every": "1 epoch"}, Length(3, 25, 10)),
        ({"epochs": 9, "steps": 1, "evaluate_every": "1step"}, Length(1, 1, 1)),
        ({"epochs": 9, "steps": 70, "evaluate_every": 4, "dry_run": True}, Length(1, 10, 10)),
    ],
)
def test_how_long_a_run_is_and_when_it_is_evaluated(trainer, length):
    assert length_of(trainer, 10) == length


def test_what_is_said_of_a_length():
    assert said({"epochs": 3}, 10) == [] and said({"epochs": 3, "steps": 5, "dry_run": True}, 10) == []
    lines = {
        "length: 25 steps, 2.5 epochs of 10; evaluated after every 4 steps and at the end": {
            "steps": 25,
            "evaluate_every": 4,
        },
        "length: 30 steps, 3 epochs of 10; evaluated after every 2 epochs and at the end": {"evaluate_every": 2},
        "length: 5 steps, 0.5 epochs of 10; evaluated after every epoch and at the end": {"steps": 5},
    }
    for line, trainer in lines.items():
        assert said({"epochs": 3, **trainer}, 10) == [line]


@pytest.mark.parametrize(
    ("words", "moments", "epochs"),
    [
        (["trainer.steps=80"], [36, 72, 80], [1, 2, 3]),
        (["trainer.steps=80", "trainer.evaluate_every=30"], [30, 60, 80], [1, 2, 3]),
        (["trainer.steps=20"], [20], [1]),
        (["trainer.epochs=5", "trainer.evaluate_every=2"], [72, 144, 180], [2, 4, 5]),
        (["trainer.epochs=2", "trainer.evaluate_every=18 steps"], [18, 36, 54, 72], [1, 1, 2, 2]),
        (["trainer.epochs=2", "trainer.evaluate_every=99"], [72], [2]),
        (["trainer.steps=80", "trainer.evaluate_every=2 epochs"], [72, 80], [2, 3]),
    ],
)
def test_rows_are_of_evaluations_and_training_is_the_same_whenever_it_is_evaluated(words, moments, epochs):
    record = runner.run([*LONG, *words], run_dir="run")
    found = rows("run")
    assert [row["step"] for row in found] == moments and [row["epoch"] for row in found] == epochs
    assert record["steps_done"] == moments[-1] and record["best_step"] in moments
    best = max(found, key=lambda row: row["val/accuracy"])
    assert (record["best_value"], record["best_step"], record["best_epoch"]) == (
        best["val/accuracy"],
        best["step"],
        best["epoch"],
    )
    usual = [word for word in words if "evaluate_every" not in word]
    runner.run([*LONG, *usual], run_dir="usual")
    for key in ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "rng"):
        assert_equal(final("run")[0][key], final("usual")[0][key])


def test_a_row_is_of_the_batches_since_the_one_before():
    runner.run([*LONG, "trainer.steps=72", "trainer.evaluate_every=24", "trainer.log_every=1"], run_dir="run")
    steps = [json.loads(line) for line in Path("run", "steps.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in steps]
    assert [row["epoch"] for row in steps] == [1] * 36 + [2] * 36
    found = rows("run")
    assert found[0]["train/loss"] == pytest.approx(sum(losses[:24]) / 24)  # whole batches all
    last = rows("run")[1]["train/loss"]
    assert min(losses[24:48]) < last < max(losses[24:48])
    assert all(row["examples_per_second"] > 0 for row in found)


def test_a_schedule_of_epochs_steps_at_their_ends_and_a_plateau_after_evaluations():
    runner.run([*LONG, "trainer.epochs=4", "trainer.evaluate_every=2", "scheduler=step"], run_dir="run")
    assert [row["lr"] for row in rows("run")] == pytest.approx([0.7, 0.7**3])
    words = ["scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "scheduler.threshold=10"]
    runner.run([*LONG, "trainer.steps=72", "trainer.evaluate_every=12", *words], run_dir="plateau")
    assert [row["lr"] for row in rows("plateau")] == [1.0, 1.0, 0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.steps=100", "trainer.evaluate_every=14", "checkpoint.every_batches=5"],
        ["trainer.epochs=3", "trainer.evaluate_every=18 steps"],
        ["trainer.epochs=5", "trainer.evaluate_every=2", "checkpoint.every_batches=7", "scheduler=plateau"],
        [
            "trainer.steps=60",
            "trainer.evaluate_every=10",
            "averaging=swa",
            "averaging.start=1",
            "model.batch_norm=true",
        ],
        ["trainer.steps=60", "dataloader.placement=workers", "dataloader.num_workers=1", "trainer.evaluate_every=25"],
    ],
)
def test_killed_anywhere_it_goes_on_with_the_same_bits(words, monkeypatch):
    words = [*LONG, "model.dropout=0.3", *words]
    runner.run(words, run_dir="whole")
    killed_after(21, monkeypatch, lambda: runner.run(words, run_dir="killed"))
    killed_after(26, monkeypatch, lambda: resume(Path("killed"), []))
    resume(Path("killed"), [])
    assert_equal(final("killed"), final("whole"))
    one, two = (RunDir(Path(name)).read_run() for name in ("killed", "whole"))
    assert all(one[key] == two[key] for key in ("best_epoch", "best_step", "best_value", "steps_done", "test", "best"))


@pytest.mark.parametrize("batches", range(1, 16))
def test_stopped_after_any_batch_it_goes_on(tmp_path, batches):
    def trainer(place):
        return make(place, epochs=3, steps=15, eval_every=4)

    whole, first = trainer(tmp_path / "whole"), trainer(tmp_path / "parts")
    whole_rows, kept = rows_of(whole), rows_of(first)
    whole.fit()

    class Enough(Exception):
        pass

    def count(progress, num_batches):
        if progress.step == batches:
            first.save_checkpoint(is_evaluated=False)
            raise Enough

    first.listeners.batch.append(count)
    with pytest.raises(Enough):
        first.fit()
    second = trainer(tmp_path / "parts")
    second.state.load_state_dict(checkpoint.load(tmp_path / "parts" / "checkpoints" / "last.pt"))
    kept = kept[: len(second.state.rows)] + (more := rows_of(second))
    second.fit()
    assert [row for row in kept if row not in more] + more == whole_rows
    assert_equal_states(second.state.state_dict()["model_state_dict"], whole.state.state_dict()["model_state_dict"])
    assert second.progress == whole.progress and len(whole_rows) == 4


def test_what_is_kept_of_each_epoch_is_of_its_end():
    runner.run([*LONG, "trainer.epochs=3", "trainer.evaluate_every=18 steps", "checkpoint.every=1"], run_dir="run")
    kept = sorted(path.name for path in Path("run", "checkpoints").glob("epoch_*.pt"))
    assert kept == ["epoch_0001.pt", "epoch_0002.pt", "epoch_0003.pt"]
    for number, name in enumerate(kept, 1):
        assert checkpoint.load(Path("run", "checkpoints", name))["step"] == 36 * number


def test_a_longer_run_is_one_that_was_longer_from_the_start():
    runner.run([*LONG, "trainer.steps=48", "trainer.evaluate_every=24", "scheduler=constant"], run_dir="run")
    with pytest.raises(InputError, match=r"trainer.steps=40: this run is planned for 48 steps, 48 of them are done"):
        resume(Path("run"), ["trainer.steps=40"])
    with pytest.raises(InputError, match=r"trainer.epochs=40: this run's length is trainer.steps=48; raise that"):
        resume(Path("run"), ["trainer.epochs=40"])
    with pytest.raises(InputError, match=r"trainer.evaluate_every: 24 -> 12 would change what this run has trained"):
        resume(Path("run"), ["trainer.evaluate_every=12"])
    resume(Path("run"), ["trainer.steps=96"])
    runner.run([*LONG, "trainer.steps=96", "trainer.evaluate_every=24", "scheduler=constant"], run_dir="whole")
    assert_equal(final("run"), final("whole"))


def test_an_end_that_was_evaluated_out_of_turn_cannot_be_gone_beyond():
    runner.run([*LONG, "trainer.epochs=3", "trainer.evaluate_every=2", "scheduler=constant"], run_dir="run")
    with pytest.raises(InputError, match=r"trainer.epochs=4: this run's end, which was evaluated, is no multiple of"):
        resume(Path("run"), ["trainer.epochs=4"])
    runner.run([*LONG, "trainer.epochs=2"], run_dir="epochs")
    with pytest.raises(InputError, match=r"trainer.steps=400: this run's length is trainer.epochs=2; raise that"):
        resume(Path("epochs"), ["trainer.steps=400"])


def test_every_sentence_tells_steps(capsys):
    import importlib

    runner.run([*LONG, "trainer.steps=80", "trainer.evaluate_every=30", "quiet=false"], run_dir="run")
    told = capsys.readouterr().out
    assert "length: 80 steps, 2.222 epochs of 36; evaluated after every 30 steps and at the end" in told
    assert "\n step " in told and "\n30/80 " in told and "\n80/80 " in told
    record = RunDir(Path("run")).read_run()
    assert f"best epoch {record['best_epoch']}, step {record['best_step']}: val/accuracy" in told
    resume(Path("run"), [])
    assert "run: finished, all 80 steps are done" in capsys.readouterr().out
    for name, words, text in (
        ("show", ["run"], "done, 80 of 80 steps in"),
        ("watch", ["run"], "done, 80 of 80 steps"),
        ("ls", ["."], "80/80 steps"),
    ):
        module = importlib.import_module(f"runner.cli.{name}")
        module.main(module.parser().parse_args(words))
        assert text in capsys.readouterr().out
    report = importlib.import_module("runner.cli.report")
    report.main(report.parser().parse_args(["run", "-o", "r.html"]))
    assert '"label":"steps","value":"80 of 80"' in Path("r.html").read_text().replace('": ', '":').replace(', "', ',"')


def test_a_stop_inside_an_epoch_names_the_step():
    rows = [{"epoch": 1, "step": 10, "a": 1.0}, {"epoch": 1, "step": 20, "a": 1.0}]
    assert Stopping(patience=1).reason(rows, "a", "max", 0.0) == (
        "a has not been better than that of step 10 for 1 evaluation"
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trainer.steps=0", "trainer.steps=0: must be a whole number of at least 1 or null"),
        ("trainer.steps=1.5", "trainer.steps=1.5: must be a whole number of at least 1 or null"),
        (
            "trainer.evaluate_every=0",
            "trainer.evaluate_every=0: must be a whole number of at least 1, or one with its unit",
        ),
        ("trainer.evaluate_every=-5", "trainer.evaluate_every=-5: must be a whole number of at least 1, or one with"),
        ("trainer.evaluate_every=1.5", "trainer.evaluate_every=1.5: must be a whole number or text or null"),
        (
            "trainer.evaluate_every=5 stps",
            "trainer.evaluate_every=5 stps: must be a whole number of at least 1, or one",
        ),
        (
            "trainer.evaluate_every=0 steps",
            "trainer.evaluate_every=0 steps: must be a whole number of at least 1, or one",
        ),
        ("trainer.evaluate_every=true", "trainer.evaluate_every=true: must be"),
        (
            "trainer.evalute_every=5",
            "trainer.evalute_every=5: trainer has no key 'evalute_every'; did you mean evaluate",
        ),
        ("trainer.step=5", "trainer.step=5: trainer has no key 'step'; did you mean steps?"),
    ],
)
def test_bad_input_is_one_line(word, said):
    with pytest.raises(InputError) as refused:
        runner.run([*FAST, word], run_dir="run")
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)
    assert not Path("run", "run.json").exists()


def test_a_unit_that_is_nearly_right_is_guessed():
    with pytest.raises(InputError, match="or '2 epochs'; did you mean '5 steps'\\?$"):
        every_of({"evaluate_every": "5 stps"})


def test_a_config_of_before_says_the_same_as_one_of_today():
    now = OmegaConf.to_container(task_config(compose(FAST, None)[1]), resolve=True)
    trainer = {key: value for key, value in now["trainer"].items() if key not in ("steps", "evaluate_every")}
    before = {**now, "trainer": trainer}
    assert result_config(before) == result_config(now)
    assert config_digest({**now, "trainer": {**trainer, "steps": 5}}) == config_digest(before)
    assert result_config({**now, "trainer": {**trainer, "steps": 5}}) != result_config(before)


def test_a_preview_is_as_long_as_the_run():
    cfg = task_config(compose([*LONG, "trainer.steps=80", "scheduler=onecycle"], None)[1])
    assert len(preview(cfg).rates[0]) == 80
    of_epochs = preview(task_config(compose([*LONG, "trainer.steps=80", "scheduler=step"], None)[1]))
    assert (len(of_epochs.rates[0]), of_epochs.epochs, of_epochs.batches) == (80, 3, 36)
    assert lines([("scheduler=step", of_epochs)], 80)[-1].startswith(
        "scheduler=step: 80 steps, in epochs of 36; first 1"
    )


@pytest.mark.slow
def test_a_sweeps_sentences_are_of_steps(cli):
    words = ["-m", *LONG, "trainer.steps=80", "trainer.evaluate_every=30", "seed=1,2", "sweep.name=s"]
    done = cli(*words, "trainer.epochs=14")
    assert done.returncode == 0, done.stderr
    told = " ".join(cli("show", "outputs/sweeps/s").stdout.split())
    assert ", 80 steps; 2 of 2 jobs done" in told and "is the maximum over 3 evaluations" in told
    assert cli("report", "outputs/sweeps/s", "-o", "r.html").returncode == 0
    assert "80/80 steps" in (cli.cwd / "r.html").read_text()
    assert cli("-m", *words[1:], "scheduler=step,constant").returncode == 0


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"trainer": {"epochs": 3}}, 3),
        ({"trainer": {"epochs": 3, "evaluate_every": 2}, "derived": {"batches_per_epoch": 10}}, 2),
        ({"trainer": {"epochs": 3, "steps": 25, "evaluate_every": 4}, "derived": {"batches_per_epoch": 10}}, 7),
    ],
)
def test_how_often_a_run_is_evaluated(config, count):
    assert evaluations(config) == count
