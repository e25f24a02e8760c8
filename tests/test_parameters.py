"""Parameters that are trained differently: the optimizer's groups, and what is frozen."""

from pathlib import Path

import pytest
import torch

import runner
from conftest import killed_after
from runner.config.compose import compose
from runner.errors import InputError
from runner.groups.parameters import described, make_freezing, named_parameters
from runner.job.build import build
from runner.job.resuming import resume
from runner.schedulers import one_cycle
from runner.sweep.combine import task_config
from runner.sweep.plan import result_config
from test_listeners import FAST
from test_tasks import assert_equal, final

MLP = [*FAST, "model=mlp", "model.hidden=[16,8]", "model.batch_norm=true", "trainer.epochs=4"]
RECIPE = [
    *("optimizer=sgd", "optimizer.weight_decay=0.1", "optimizer.no_decay=true"),
    "optimizer.groups=[{match: '1', lr_scale: 0.1}, {match: [Linear], lr: 0.05, momentum: 0.5}]",
    *("freeze=[BatchNorm1d,'4']", "unfreeze_at={BatchNorm1d: 3}"),
]


def built(*words):
    return build(task_config(compose([*MLP, *words], None)[1]), is_new=True)


def groups_of(made):
    names = {id(one.parameter): one.name for one in named_parameters(made.trainer.task)}
    keys = ("lr", "weight_decay")
    return [
        ([names[id(p)] for p in g["params"]], *(g[key] for key in keys)) for g in made.trainer.optimizer.param_groups
    ]


def test_the_first_rule_that_fits_takes_a_parameter_and_the_others_come_first():
    made = built(
        "optimizer=sgd", "optimizer.lr=0.2", "optimizer.groups=[{match: '1', lr_scale: 0.5}, {match: Linear, lr: 3}]"
    )
    assert groups_of(made) == [
        (["2.weight", "2.bias", "5.weight", "5.bias"], 0.2, 0.0),
        (["1.weight", "1.bias"], 0.1, 0.0),
        (["4.weight", "4.bias", "7.weight", "7.bias"], 3, 0.0),
    ]


def test_norms_and_biases_do_not_decay():
    made = built("optimizer=adamw", "optimizer.no_decay=true", "optimizer.groups=[{match: '7', weight_decay: 0.5}]")
    norms = ["1.bias", "2.weight", "2.bias", "4.bias", "5.weight", "5.bias"]
    lr = made.trainer.optimizer.defaults["lr"]
    assert groups_of(made) == [
        (["1.weight", "4.weight"], lr, 0.01),
        (norms, lr, 0.0),
        (["7.weight", "7.bias"], lr, 0.5),
    ]


def test_without_a_rule_there_is_one_group_as_before():
    (group,) = built().trainer.optimizer.param_groups
    assert "says" not in group and len(group["params"]) == 10


@pytest.mark.parametrize("scheduler", ["step", "cosine", "onecycle", "warmup_cosine", "polynomial", "lambda"])
def test_every_schedule_keeps_the_ratio_of_the_groups(scheduler):
    trainer = built(f"scheduler={scheduler}", "optimizer=sgd", "optimizer.groups=[{match: '1', lr_scale: 0.1}]").trainer
    rates = list(trainer.schedule.rates)
    assert len(rates) > 3
    ratios = [second / first for first, second in rates if first > 1e-6]
    exact = scheduler not in ("onecycle", "cosine", "warmup_cosine", "polynomial")  # whose lowest rate is one for all
    assert all(ratio == pytest.approx(0.1, rel=1e-6 if exact else 0.5) for ratio in ratios[:-1])
    assert ratios[0] == pytest.approx(0.1)


def test_a_schedule_has_a_value_for_each_group():
    words = ["scheduler=lambda", "scheduler.lr_lambda=['1','0.5 ** epoch']", "optimizer=sgd", "optimizer.lr=1"]
    trainer = built(*words, "optimizer.groups=[{match: '1'}]").trainer
    assert [rates[:2] for rates in trainer.schedule.rates][:3] == [(1.0, 1.0), (1.0, 0.5), (1.0, 0.25)]
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(2)], lr=1.0)
    assert [group["max_lr"] for group in one_cycle(optimizer, [0.1, 0.2], 10).optimizer.param_groups] == [0.1, 0.2]


def test_a_step_is_torchs_own_with_these_groups():
    made = built("optimizer=sgd", "optimizer.weight_decay=0.1", *RECIPE[1:4])
    task, optimizer = made.trainer.task, made.trainer.optimizer
    named = {one.name: one.parameter for one in named_parameters(task)}
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer.step()
    lr = optimizer.defaults["lr"]
    for name, rate, decay in (
        ("1.weight", lr * 0.1, 0.1),
        ("1.bias", lr * 0.1, 0),
        ("7.weight", 0.05, 0.1),
        ("2.weight", lr, 0),
    ):
        torch.testing.assert_close(named[name], before[name] - rate * (1 + decay * before[name]))


def tensors(state):
    return {name: value.clone() for name, value in state["model_state_dict"].items()}


def test_what_is_frozen_stays_and_thaws_at_the_beginning_of_its_epoch():
    words = ["freeze=[BatchNorm1d,'4']", "unfreeze_at={BatchNorm1d: 3}", "checkpoint.every=1"]
    runner.run([*MLP, *words], run_dir="run")
    first = tensors(built(*words).trainer.state.state_dict())
    after = [tensors(torch.load(f"run/checkpoints/epoch_000{epoch}.pt", weights_only=True)) for epoch in (1, 2, 3, 4)]
    for name, value in first.items():
        is_norm = name[0] in "25"
        kept = [torch.equal(value, each[name]) for each in after]
        assert kept == ([True, True, False, False] if is_norm else [name[0] == "4"] * 4), name
    log = Path("run/runner.log").read_text()
    assert "frozen for good: 136 parameters in 2 tensors" in log
    assert "frozen until epoch 3 begins: 48 parameters in 4 tensors" in log


def test_a_run_that_is_killed_goes_on_with_the_same_groups_and_thaws_at_the_same_time(monkeypatch):
    words = [*MLP, *RECIPE, "checkpoint.every_batches=4"]
    runner.run(words, run_dir="whole")
    killed_after(6, monkeypatch, lambda: runner.run(words, run_dir="killed"))
    for batches in (30, 40, 37):
        killed_after(batches, monkeypatch, lambda: resume(Path("killed"), []))
    resume(Path("killed"), [])
    assert_equal(final("whole"), final("killed"))


def test_a_frozen_norm_without_weights_keeps_its_statistics():
    cfg = task_config(compose([*MLP, "freeze=[BatchNorm1d]"], None)[1])
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3, affine=False), torch.nn.BatchNorm1d(3))
    task = torch.nn.Module()
    task.model = model
    freezing = make_freezing(cfg, task)
    freezing.train(task, 1)
    assert [module.training for module in model] == [True, False, False]


def test_an_older_config_is_the_same_setting():
    composed = task_config(compose(MLP, None)[1])
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(composed)
    older = {key: value for key, value in config.items() if key not in ("freeze", "unfreeze_at")}
    older["optimizer"] = {k: v for k, v in config["optimizer"].items() if k not in ("groups", "no_decay")}
    assert result_config(older) == result_config(config)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "optimizer.groups=[{match: 1, lrscale: 0.1}]",
            r"optimizer.groups.0.lrscale: .* mean lr_scale\?",
        ),
        (
            "optimizer.groups=[{match: Liner}]",
            r"optimizer.groups.0.match=Liner: .* mean Linear\?",
        ),
        ("optimizer.groups=[{match: '*', lr: -1}]", "optimizer.groups.0.lr=-1: must be a number of at least 0"),
        ("optimizer.groups=[{match: '*', lr_scale: x}]", "optimizer.groups.0.lr_scale=x: must be a number"),
        ("optimizer.groups=[{match: '*', weight_decay: -1}]", "optimizer.groups.0.weight_decay=-1: Invalid"),
        ("optimizer.groups=[{match: '*'},{match: 1}]", "optimizer.groups.1.match=1: all that it fits is taken"),
        ("optimizer.groups=[{lr: 1}]", "optimizer.groups.0.match=None: must be a pattern"),
        ("optimizer.groups=[{match: 1, lr: 1, lr_scale: 2}]", "optimizer.groups.0.lr_scale=2: lr is given too"),
        ("optimizer.groups=[3]", "optimizer.groups"),
        ("optimizer.no_decay=3", "optimizer.no_decay=3: must be true or false"),
        ("freeze=[layer]", "freeze=layer: fits no parameter; .*choices: 1, 2, 4, 5, 7, BatchNorm1d, Linear, MLP"),
        ("freeze=[3.5]", "freeze=.*3.5.*: must be a pattern"),
        ("freeze=['*']", "freeze=.*: leaves nothing to train in epoch 1"),
        ("unfreeze_at={a: 3}", "unfreeze_at=a: freeze holds nothing"),
        ("unfreeze_at={a: 99}", "unfreeze_at.a=99: must be an epoch from 2 to the run's last, 4"),
        ("unfreeze_at=3", "unfreeze_at=3"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(word, line):
    with pytest.raises(InputError, match=f"^{line}"):
        runner.run([*MLP, word], run_dir="run")
    assert not Path("run/run.json").exists()


class Lazy(torch.nn.Sequential):
    """A model that knows no shape before its first batch, batch norm and a second branch in it."""

    def __init__(self, is_whole=True):
        layers = [torch.nn.LazyConv2d(4, 3), torch.nn.LazyBatchNorm2d(), torch.nn.ReLU(), torch.nn.Flatten()]
        super().__init__(*layers, torch.nn.LazyLinear(10))
        self.second = torch.nn.Identity() if is_whole else torch.nn.LazyLinear(3)

    def forward(self, x):
        for index in range(5):
            x = self[index](x)
        return x


LAZY = [*(word for word in FAST if not word.startswith("model")), "~model", "+model={_target_: test_parameters.Lazy}"]
LAZY += ["optimizer=sgd", "optimizer.no_decay=true", "optimizer.weight_decay=0.1", "freeze=['4.bias']"]


def test_lazy_layers_get_shapes_and_weights_from_the_seed(monkeypatch):
    runner.run(LAZY, run_dir="whole")
    made = build(task_config(compose(LAZY, None)[1]), is_new=True)
    groups = made.trainer.optimizer.param_groups
    assert [tuple(p.shape) for group in groups for p in group["params"]] == [(4, 1, 3, 3), (10, 144), (4,), (4,), (4,)]
    again = build(task_config(compose(LAZY, None)[1]), is_new=False)
    other = build(task_config(compose([*LAZY, "seed=2"], None)[1]), is_new=False)
    weights = [each.trainer.model.state_dict() for each in (made, again, other)]
    assert_equal(dict(weights[0]), dict(weights[1]))
    assert not torch.equal(weights[0]["4.weight"], weights[2]["4.weight"])
    killed_after(10, monkeypatch, lambda: runner.run([*LAZY, "checkpoint.every_batches=3"], run_dir="killed"))
    resume(Path("killed"), [])
    assert_equal(final("killed"), final("whole"))
    model = runner.load_model("whole", which="last")
    assert_equal(dict(model.state_dict()), dict(final("whole")[0]["model_state_dict"]))
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    begun = build(task_config(compose([*LAZY, "init_from=whole"], None)[1]))
    assert_equal(dict(begun.trainer.model.state_dict()), dict(model.state_dict()))


def test_a_lazy_layer_that_no_example_reaches_is_refused():
    with pytest.raises(InputError) as refused:
        runner.run([*LAZY, "+model.is_whole=false"], run_dir="run")
    assert str(refused.value) == "model: second.weight is lazy, and the first examples do not reach it"


def test_a_lazy_model_that_takes_no_example_says_so():
    with pytest.raises(InputError, match=r"model: Lazy: .*[Ee]xpected"):
        runner.run([*LAZY, "dataset=diabetes", "loss=squared_error", "metrics=regression"], run_dir="run")


def test_a_group_is_shown_with_the_rate_that_was_set_and_the_one_that_a_warm_up_begins_with():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(2)], "says": "all", "lr": 0.01}], lr=0.1)
    assert "lr 0.01" in described(optimizer)[0] and "first" not in described(optimizer)[0]
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 5)
    assert "lr 0.01 (at first 0)" in described(optimizer)[0]


def test_fused_sgd_trains_on_where_some_parameters_of_a_group_are_unfrozen_later():
    words = [*MLP, "optimizer=sgd", "optimizer.momentum=0.9", "freeze=['*.weight']", "unfreeze_at={*.weight: 2}"]
    fused, looped = (runner.run([*words, f"optimizer.fused={fused}"], run_dir=fused) for fused in ("true", "false"))
    assert fused["epochs_done"] == 4
    assert fused["last"]["train/loss"] == pytest.approx(looped["last"]["train/loss"], rel=1e-3)
