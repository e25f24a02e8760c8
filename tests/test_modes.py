"""Whether a metric is better low or high: one answer for the best epoch, plateau, Optuna and listings, or none."""

import json
import sys

import pytest

import runner
from runner.cli import select
from runner.errors import InputError
from runner.groups.modes import metric_name, mode_of, modes
from runner.metrics import usual_mode
from runner.search.search import direction
from runner.storage import records
from test_conf import FAKE


class Silent:
    """A metric that says nothing of itself."""

    def update(self, output, target): ...
    def compute(self):
        return 0.5

    def reset(self): ...


class Falling(Silent):
    """Gets better: its values fall from epoch to epoch."""

    higher_is_better = False

    def __init__(self):
        self.values = [0.44, 0.4, 0.27, 0.3]  # the last is the test's

    def compute(self):
        return self.values.pop(0)


class Torchlike(Silent):
    """Says it by a property, as some of torchmetrics' do."""

    @property
    def higher_is_better(self):
        return False


def made(**arguments):
    """A metric out of a function, whose class a config does not name."""
    return Torchlike()


def config(name="it", target="Silent", **trainer):
    node = {"_target_": f"test_modes.{target}"}
    return {"metrics": {name: node}, "trainer": {"monitor": f"val/{name}", "mode": None, **trainer}}


@pytest.fixture(autouse=True)
def findable(monkeypatch):
    monkeypatch.setitem(sys.modules, "test_modes", sys.modules[__name__])


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(
            (n, "min")
            for n in ("loss", "mae", "rmse", "perplexity", "error", "err", "nll_loss", "focalloss", "top5_error")
        ),
        *(
            (n, "max")
            for n in ("accuracy", "acc1", "f1", "f1_macro", "auroc", "mean_iou", "r2", "r2_score", "ndcg10", "PSNR")
        ),
        *((n, None) for n in ("foo", "score", "margin", "neg_mse", "accuracy_error", "one_minus_accuracy", "lr", "")),
    ],
)
def test_usual_names_say_which_way_is_better_and_others_say_nothing(name, mode):
    assert usual_mode(name) == mode


def test_the_metric_is_asked_first():
    assert mode_of("trainer", config("accuracy", "Falling")) == "min"
    assert mode_of("trainer", config("it", "Torchlike")) == "min"
    assert mode_of("trainer", config("it", "made")) == "min"
    assert mode_of("trainer", config("mae")) == "min"
    assert mode_of("trainer", config(monitor="train/loss")) == "min"
    assert metric_name("lr") == "lr" and metric_name("val/a/b") == "a/b"


def test_what_nobody_says_is_not_guessed():
    with pytest.raises(InputError, match=r"trainer.monitor=val/it: .*set trainer.mode=min or trainer.mode=max"):
        mode_of("trainer", config())
    assert mode_of("trainer", config(mode="min")) == "min"


@pytest.mark.parametrize(
    "settings",
    [
        {"monitor": "val/loss", "mode": "max"},
        {"name": "it", "target": "Falling", "mode": "max"},
        {"name": "it", "target": "made", "mode": "max"},
    ],
)
def test_a_mode_against_what_the_metric_says_is_refused(settings):
    with pytest.raises(InputError, match="trainer.mode=max: val/.* is better low"):
        mode_of("trainer", config(**settings))
    assert mode_of("trainer", config(**settings), is_new=False) == "max"  # an older version's, of a run that goes on


def test_a_mode_against_a_mere_name_is_taken_and_said(caplog):
    assert mode_of("trainer", config("mae", mode="max")) == "max"
    assert "mae is usually better the other way" in caplog.text


def test_torchmetrics_are_asked():
    pytest.importorskip("torchmetrics", reason="the optional extra [metrics]")
    for target, mode in (
        ("torchmetrics.MeanAbsoluteError", "min"),
        ("torchmetrics.classification.MulticlassF1Score", "max"),
        ("torchmetrics.text.Perplexity", "min"),
        ("torchmetrics.R2Score", "max"),
    ):
        node = {"_target_": target, **({"num_classes": 3} if "F1" in target else {})}
        assert mode_of("trainer", {"metrics": {"it": node}, "trainer": {"monitor": "val/it", "mode": None}}) == mode
    task = {"_target_": "torchmetrics.Accuracy", "task": "multiclass", "num_classes": 3}
    assert mode_of("trainer", {"metrics": {"it": task}, "trainer": {"monitor": "val/it", "mode": None}}) == "max"


def test_optuna_goes_the_same_way():
    assert direction(config("mae")) == "minimize"
    assert direction(config("it", "Falling")) == "minimize"
    assert direction(config("accuracy")) == "maximize"
    with pytest.raises(InputError, match="val/loss is better low"):
        direction(config(monitor="val/loss", mode="max"))


WORDS = [*FAKE, "device.threads=1", "quiet=true", "trainer.epochs=3", "dataloader.batch_size=20"]
METRIC = "+metrics.it={_target_: test_modes.Falling}"


def test_the_best_epoch_of_a_metric_that_is_better_low_is_its_lowest(tmp_path):
    record = runner.run([*WORDS, METRIC, "trainer.monitor=val/it", "scheduler=plateau"], run_dir=tmp_path / "run")
    assert (record["best_epoch"], record["best_value"], record["mode"]) == (3, 0.27, "min")
    assert record["config"]["scheduler"]["mode"] == "min"
    assert record["modes"] == {"loss": "min", "accuracy": "max", "it": "min"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["modes"] == record["modes"]


def test_plateaus_mode_is_checked_as_well(tmp_path):
    words = [*WORDS, "scheduler=plateau", "scheduler.monitor=val/loss"]
    with pytest.raises(InputError, match="scheduler.mode=max: val/loss is better low"):
        runner.run([*words, "scheduler.mode=max"], run_dir=tmp_path / "run")
    silent = "+metrics.it={_target_: test_modes.Silent}"
    with pytest.raises(InputError, match="scheduler.monitor=val/it: is it better low or high"):
        runner.run([*words[:-1], silent, "scheduler.monitor=val/it"], run_dir=tmp_path / "run")


def test_a_scheduler_goes_the_way_of_the_trainer_where_they_watch_the_same_metric(tmp_path):
    silent = "+metrics.it={_target_: test_modes.Silent}"
    words = [*WORDS, silent, "trainer.monitor=val/it", "trainer.mode=min", "scheduler=plateau", "trainer.dry_run=true"]
    record = runner.run(words, run_dir=tmp_path / "run")
    assert (record["config"]["scheduler"]["mode"], record["modes"]["it"]) == ("min", "min")


def test_a_metric_of_unknown_direction_that_nobody_monitors_is_no_mistake(tmp_path):
    silent = "+metrics.it={_target_: test_modes.Silent}"
    record = runner.run([*WORDS, silent, "trainer.dry_run=true"], run_dir=tmp_path / "run")
    assert record["modes"] == {"loss": "min", "accuracy": "max"}
    assert modes({**record["config"], "trainer": {"monitor": "val/it", "mode": "min"}})["it"] == "min"


def test_listings_follow(tmp_path):
    def row(name, value, **more):
        return {"path": name, "monitor": "val/accuracy", "mode": "max", "modes": {}, "best/val/it": value, **more}

    rows = [row("a", 1.0), row("b", 3.0), row("c", 2.0)]
    assert [r["path"] for r in select.ordered(rows, "val/it")] == ["b", "c", "a"]  # an older run.json: nobody knows
    rows = [{**r, "modes": {"it": "min"}} for r in rows]
    assert [r["path"] for r in select.ordered(rows, "val/it")] == ["a", "c", "b"]
    rows = [{**r, "test/best/it": -r["best/val/it"]} for r in rows]
    assert [r["path"] for r in select.ordered(rows, "test/best/it")] == ["b", "c", "a"]
    runner.run([*WORDS, "trainer.dry_run=true"], run_dir=tmp_path / "run")
    assert records.read(tmp_path / "run")["modes"] == {"loss": "min", "accuracy": "max"}
