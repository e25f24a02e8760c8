"""The learning-rate range test: its curve is the run's own steps, its suggestion fastai's rule, its doubts are said."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.__main__ import dispatch
from runner.before import lr_range as module
from runner.before.lr_range import range_test
from runner.before.suggestion import has_diverged, longest_fall, next_mean, suggest
from runner.cli.find_lr import parser
from runner.config.compose import compose
from runner.errors import InputError
from runner.sweep.combine import task_config
from runner.terminal.plot import plot

MLP = ["model=mlp", "model.hidden=[8]", "optimizer=sgd", "device.threads=1", "quiet=true"]


def of(*words, low=1e-4, high=10.0, steps=40):
    return range_test(task_config(compose([*MLP, *words], None)[1]), low, high, steps)


# ------------------------------------------------------------------------------------------------------- the curve


def test_the_first_losses_are_those_of_the_run_and_nothing_is_left_behind():
    import runner

    before = torch.get_rng_state()
    found = of("optimizer.lr=0.1", low=0.1, high=0.1 * (1 + 1e-12), steps=20)
    assert torch.equal(before, torch.get_rng_state()) and not list(Path().iterdir())
    runner.run([*MLP, "optimizer.lr=0.1", "scheduler=constant", "trainer.epochs=1", "trainer.log_every=1"], run_dir="b")
    steps = [json.loads(line) for line in Path("b/steps.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in steps[:20]] == pytest.approx(found.losses, rel=1e-6)


def test_the_scheduler_is_left_out_and_every_group_keeps_its_ratio(monkeypatch):
    seen = []
    step = module.train_step
    monkeypatch.setattr(
        module,
        "train_step",
        lambda task, opt, *rest: (seen.append([g["lr"] for g in opt.param_groups]), step(task, opt, *rest))[1],
    )
    groups = "optimizer.groups=[{match: '1', lr_scale: 0.1}, {match: '3', lr: 0.5}]"
    found = of(groups, "optimizer.lr=0.25", "scheduler=onecycle", low=1e-3, high=1e-1, steps=21)
    assert [rates[0] / found.rates[n] for n, rates in enumerate(seen)] == pytest.approx([0.1] * 21)
    assert all(rates[1] == pytest.approx(20 * rates[0]) for rates in seen)
    assert found.rates[10] == pytest.approx(1e-2)
    said = " ".join(found.said)
    assert (
        "each group keeps its ratio to optimizer.lr: 1 0.1, 3 2" in said
        and "optimizer.groups.1.lr does not follow" in said
    )
    with pytest.raises(InputError, match=r"optimizer.lr=0.0: optimizer.groups has rates of its own"):
        of("optimizer.lr=0.0", "optimizer.groups=[{match: '1', lr: 0.1}]")


def test_what_is_not_finite_ends_the_range_and_is_no_error():
    found = of(low=1e-307, high=1e308, steps=20)
    assert found.rates[0] == 1e-307
    found = of(low=1.0, high=1e30, steps=20)
    assert found.ended is not None and len(found.rates) == len(found.losses) == len(found.smooth) < 20
    assert found.suggestion.valley is None and "begin lower, with --from" in found.suggestion.doubts[0]
    assert all(map(math.isfinite, found.losses))
    flat = of(low=1e-12, high=1e-11)
    assert flat.ended is None and flat.suggestion.valley is None and "hardly falls" in flat.suggestion.doubts[0]


def test_data_that_begins_again_is_said():
    said = of("trainer.limit_batches=7", steps=20).said
    assert said == [line for line in said if "batches in an epoch: 7; from step 8 on" in line] != []
    assert not of("scheduler=onecycle", steps=20).said
    assert (
        "schedule goes up to 0.5, not to the optimizer's 0.01"
        in of("scheduler=onecycle", "scheduler.max_lr=0.5", steps=20).said[0]
    )
    assert "1.3 to 5 times too low for Adadelta" in of("optimizer=adadelta", low=1e-3, high=100.0, steps=60).said[0]


# -------------------------------------------------------------------------------------------------- the suggestion


def test_the_longest_fall_is_the_longest_falling_subsequence():
    assert longest_fall([3.0, 5.0, 4.0, 4.0, 2.0, 6.0, 1.0, 9.0]) == (6, 4)
    assert longest_fall([1.0, 2.0, 3.0]) == (0, 1)


def test_the_running_mean_has_no_bias_to_zero():
    means = []
    for _ in range(5):
        means.append(next_mean(means, 3.0))
    assert means == pytest.approx([3.0] * 5)
    assert next_mean([2.0], 4.0) == pytest.approx((0.9 * 0.1 * 2 + 0.1 * 4) / (1 - 0.81))


def curve(loss, steps=60):
    rates = [1e-5 * 10 ** (step / 10) for step in range(steps)]
    losses = [loss(step) for step in range(steps)]
    return rates, losses, losses


def test_the_suggestion_lies_in_the_middle_of_the_fall():
    found = suggest(*curve(lambda step: 2.0 if step < 20 else max(0.5, 2.0 - (step - 20) * 0.1)), True)
    assert 1e-5 * 10**2 < found.valley < 1e-5 * 10**3.5 and not found.doubts
    assert found.fall == (pytest.approx(1e-3), pytest.approx(1e-5 * 10**3.5))
    assert found.steepest == pytest.approx(1e-5 * 10**2, rel=0.3) and found.below_lowest == pytest.approx(
        1e-5 * 10**2.5
    )
    still = suggest(*curve(lambda step: 3.0 - step * 0.01), True)
    assert "still falls at the end" in still.doubts[0] and "falls from the beginning" in still.doubts[1]


@pytest.mark.parametrize(
    ("first", "low", "high"), [(2.3, 2.3, 4.7), (-1.0, -3.0, 1.1), (0.0, -1.0, 1.1), (2.3, 0.1, 4.7)]
)
def test_a_loss_diverges_far_above_its_beginning_whatever_its_sign(first, low, high):
    assert not has_diverged([first, low, first]) and has_diverged([first, low, high])


# -------------------------------------------------------------------------------------------------------- the verb


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--from", "0"], "--from 0: must be a finite number above 0"),
        (["--to", "nan"], "--to nan: must be a finite number above 0"),
        (["--to", "inf"], "--to inf: must be a finite number above 0"),
        (["--from", "1", "--to", "1"], "--from 1: must be below --to 1"),
        (["--steps", "19"], "--steps 19: must be a whole number of 20 to 10,000"),
        (["--steps", "1.5"], "--steps: invalid int value: '1.5'"),
        (["-o", "nowhere/lr.html"], "-o nowhere/lr.html: there is no folder nowhere"),
        (["-o", "mine.txt"], "-o mine.txt: is no page of ours"),
        (["optimizer=adam,sgd"], "optimizer: has several values"),
        (["optimizer.lrr=1"], "optimizer.lrr=1: .*did you mean lr"),
        (["optimizer=sgdd"], "sgd"),
        (["dataset.val_size=7.0"], "dataset.val_size=7.0"),
    ],
)
def test_wrong_input_is_one_line(words, line):
    Path("mine.txt").write_text("mine")
    with pytest.raises(InputError, match=line) as refused:
        dispatch(["find-lr", *MLP[:-1], *words])
    assert "\n" not in str(refused.value)


def test_the_screen_the_page_and_json_say_the_same(capsys):
    words = ["find-lr", *MLP, "--from", "1e-3", "--steps", "60"]
    assert dispatch([*words, "-o", "lr.html", "trust=[]"]) == 0
    said = capsys.readouterr().out
    assert dispatch([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rate = f"{float(format(found['suggestion']['valley'], '.1e')):g}"
    assert (
        f"suggestion: optimizer.lr={rate} (valley rule), in the middle of the fall from " in said
        and f"▲ {rate}" in said
    )
    page = Path("lr.html").read_text()
    assert f'"value":"{rate}"' in page and '"logX":true' in page and "seed=1,2,3" in page
    assert "where to look: python -m runner -m model=mlp" in said
    assert dispatch([*words, "-o", "lr.html"]) == 0  # a page of ours is written again


def test_the_mark_below_a_picture_stands_between_the_ends():
    picture = plot([("", [1.0, 2.0, 3.0])], ("1", "3"), 40, 3, [(0.5, "2")])
    assert picture[-1].index("▲") == pytest.approx(len(picture[-2]) / 2 + 2, abs=3) and "▲ 2" in picture[-1]
    assert "▲" not in plot([("", [1.0, 2.0])], ("1", "3"), 40, 3, [(0.0, "1")])[-1]


def test_help_imports_no_torch():
    code = "import sys; from runner.cli.find_lr import parser; parser().format_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert "--steps" in parser().format_help()
