"""Several evaluated parts by name: their rows, what can be monitored, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import open_dict
from torch.utils.data import TensorDataset

import runner
from conftest import killed_after
from runner.cli import evaluate as verb
from runner.config.compose import compose
from runner.errors import InputError
from runner.job.build import build
from runner.job.built import describe
from runner.job.rebuilding import rebuilt
from runner.job.resuming import resume
from runner.job.saved import open_saved
from runner.storage.run_dir import RunDir
from runner.sweep.combine import task_config
from runner.sweep.plan import result_config
from test_listeners import FAST
from test_tasks import assert_equal, final


class Noisy(TensorDataset):
    """Digits that are none, with noise of a strength."""

    def __init__(self, strength=1.0, count=40, width=8):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, 1, width, width, generator=generator) * strength
        super().__init__(images, torch.arange(count) % 10)


TARGET = "_target_: test_evaluated_parts.Noisy"
MORE = [
    *FAST,
    f"dataset.evaluate={{weak: {{{TARGET}, strength: 0.5}}, strong: {{{TARGET}, strength: 9.0, count: 30}}}}",
]


def rows(path):
    return [json.loads(line) for line in Path(path, "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def run(tmp_path):
    runner.run(MORE, run_dir=tmp_path / "first")
    return tmp_path / "first"


def test_each_part_has_rows_of_its_own_and_changes_no_other(run):
    runner.run(FAST, run_dir="usual")
    for one, other in zip(rows("usual"), rows(run), strict=True):
        same = [key for key in one if "second" not in key]
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
        assert set(other) - set(one) == {"weak/loss", "weak/accuracy", "strong/loss", "strong/accuracy"}
    assert rows(run)[0]["weak/loss"] != rows(run)[0]["strong/loss"]
    record = RunDir(run).read_run()
    assert (record["examples"]["weak"], record["examples"]["strong"], record["chosen_on"]) == (40, 30, "val")
    built = rebuilt(open_saved(run, "last"))
    assert built.trainer.evaluate_on(built.trainer.eval_loaders["strong"])["loss"] == rows(run)[-1]["strong/loss"]
    assert any("weak 40, strong 30" in line for line in describe(built))


def test_any_of_them_is_monitored_and_a_kill_changes_nothing(monkeypatch):
    words = [*MORE, "trainer.monitor=weak/loss", "averaging=ema", "checkpoint.every_batches=3", "trainer.epochs=3"]
    runner.run(words, run_dir="whole")
    killed_after(8, monkeypatch, lambda: runner.run(words, run_dir="killed"))
    killed_after(13, monkeypatch, lambda: resume(Path("killed"), []))
    resume(Path("killed"), [])
    assert_equal(final("killed"), final("whole"))
    record = RunDir(Path("whole")).read_run()
    values = [row["weak/loss"] for row in rows("whole")]
    assert record["best_value"] == min(values) and record["chosen_on"] == "weak" and record["mode"] == "min"


def test_the_average_of_the_weights_is_evaluated_on_each():
    runner.run([*MORE, "averaging=ema", "averaging.evaluate=beside", "trainer.monitor=weak_ema/loss"], run_dir="run")
    names = {name.split("/")[0] for name in rows("run")[0] if "/" in name}
    assert names == {"train", "val", "val_ema", "weak", "weak_ema", "strong", "strong_ema"}
    assert RunDir(Path("run")).read_run()["chosen_on"] == "weak"


def test_evaluate_takes_each_by_its_name(run, capsys):
    verb.main(verb.parser().parse_args([str(run), "--split", "weak", "--which", "last", "--confusion"]))
    told = capsys.readouterr().out
    assert f"weak/accuracy: {rows(run)[-1]['weak/accuracy']!r}" in told and "confusion matrix" in told
    with pytest.raises(InputError) as refused:
        verb.main(verb.parser().parse_args([str(run), "--split", "week"]))
    assert str(refused.value) == (
        "--split week: this run has no such part; did you mean weak? choices: val, weak, strong, test"
    )


def test_workers_and_memory_give_the_same_figures(run):
    runner.run([*MORE, "dataloader.placement=workers", "dataloader.num_workers=1"], run_dir="workers")
    one, other = (
        [{k: v for k, v in row.items() if "second" not in k} for row in rows(path)] for path in (run, "workers")
    )
    assert one == other


def test_without_a_validation_part_they_are_what_there_is():
    words = [word for word in MORE if "val_size" not in word]
    words += ["dataset.val_size=0", "dataset.test_size=0", "trainer.monitor=strong/accuracy"]
    runner.run(words, run_dir="run")
    assert {name.split("/")[0] for name in rows("run")[0] if "/" in name} == {"train", "weak", "strong"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dataset.evaluate=3", "dataset.evaluate=3: must be {NAME: {_target_: your.Dataset}, ...}, or null"),
        ("dataset.evaluate={a: 3}", "dataset.evaluate.a=3: must be {_target_: your.Dataset}"),
        ("dataset.evaluate={a: {x: 1}}", "dataset.evaluate.a={'x': 1}: must be {_target_: your.Dataset}"),
        (f"dataset.evaluate={{test: {{{TARGET}}}}}", "dataset.evaluate.test: is taken, as train, val, test, "),
        (f"dataset.evaluate={{a/b: {{{TARGET}}}}}", "dataset.evaluate.a/b: must be letters, digits and _"),
        (f"dataset.evaluate={{a_ema: {{{TARGET}}}}}", "dataset.evaluate.a_ema: must be letters, digits and _, and not"),
        (
            f"dataset.evaluate={{a: {{{TARGET}, sigma: 1}}}}",
            "dataset.evaluate.a.sigma: test_evaluated_parts.Noisy takes no",
        ),
        (f"dataset.evaluate={{a: {{{TARGET}, width: 9}}}}", "model: runner.models.MLP: "),
        ("dataset.evaluate={a: {_target_: torch.nn.Linear}}", "dataset.evaluate.a._target_=torch.nn.Linear: "),
        ("dataset.evaluat=null", "dataset.evaluat=null: dataset has no key 'evaluat'; did you mean evaluate?"),
        ("trainer.monitor=weak/acuracy", "trainer.monitor=weak/acuracy: is not logged; did you mean weak/accuracy? ch"),
        ("trainer.monitor=week/loss", "trainer.monitor=week/loss: is not logged; did you mean weak/loss? choices: tr"),
    ],
)
def test_bad_input_is_one_line(word, said):
    with pytest.raises(InputError) as refused:
        runner.run([*(MORE if word.startswith("trainer") else FAST), word], run_dir="run")
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)
    assert not Path("run", "run.json").exists()


def test_the_training_examples_are_no_further_part():
    same = "{_target_: runner.data.Digits, mean: '${dataset.mean}', std: '${dataset.std}'}"
    with pytest.raises(InputError, match="dataset.train and dataset.evaluate.same give the same 1,797 examples, so"):
        runner.run([*FAST, f"dataset.evaluate={{same: {same}}}"], run_dir="run")


def test_without_further_parts_a_job_is_the_one_of_before():
    cfg = task_config(compose(FAST, None)[1])
    now = dict(cfg)
    before = {**now, "dataset": {key: value for key, value in cfg.dataset.items() if key != "evaluate"}}
    assert "evaluate" in now["dataset"] and result_config(before) == result_config(now)
    with open_dict(cfg):
        del cfg.dataset["evaluate"]
    assert set(build(cfg).trainer.eval_loaders) == {"val"}
