"""Trackers: what a run told is all there once, also after kills, and the run is the one without them.

Those that need a tracker's package are slow: the default tests are installed without them.
"""

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch

import runner
from conftest import killed_after
from runner.__main__ import dispatch
from runner.cli.verify import differences
from runner.config import admission
from runner.errors import InputError
from runner.job.listening import Listening
from runner.job.resuming import resume
from runner.storage.run_dir import RunDir
from runner.tracking import matrix
from runner.tracking.mlflow import Times, allowed
from test_listeners import FAST, rows
from test_tasks import assert_equal, final

PLAIN = [*FAST, "trainer.epochs=3", "checkpoint.every_batches=4", "trainer.log_every=3"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy's, about MLflow
NEEDED = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny sqlalchemy alembic"}


def of_tensorboard(folder):
    """{tag: [(step, value), ...]} of the event files, read back as TensorBoard does."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    found = reader.EventAccumulator(str(Path(folder, "tensorboard")), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def of_mlflow(folder):
    client, run = mlflow_run(folder)
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(one.step, one.value) for one in told] for name, told in histories.items()}


def mlflow_run(folder, experiment="runner"):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    where = client.get_experiment_by_name(experiment).experiment_id
    (run,) = client.search_runs([where], f"tags.path = '{Path(folder).absolute()}'")
    return client, run


TRACKERS = {"tensorboard": of_tensorboard, "mlflow": of_mlflow}


@pytest.fixture(params=TRACKERS)
def tracker(request):
    pytest.importorskip(request.param, reason=f"the optional extra [{request.param}]")
    return request.param


def timeless(points):
    return {name: told for name, told in points.items() if "second" not in name}


def gone_after(batches, monkeypatch, start):
    """As killed_after, and no tracker is told of the end."""
    with monkeypatch.context() as patched:
        patched.setattr("runner.job.listening.Listening.until", lambda self, record: contextlib.nullcontext())
        killed_after(batches, monkeypatch, start)


@pytest.mark.slow
def test_each_step_is_there_once_also_after_kills_and_the_run_is_the_same(tracker, monkeypatch):
    words, told = [*PLAIN, f"tracking={tracker}"], TRACKERS[tracker]
    runner.run(PLAIN, run_dir="plain")
    runner.run(words, run_dir="whole")
    for stop in (2, 6, 11, 30):  # the first one before there is a checkpoint
        start = (lambda: resume(Path("killed"), [])) if Path("killed/run.json").exists() else None
        gone_after(stop, monkeypatch, start or (lambda: runner.run(words, run_dir="killed")))
    resume(Path("killed"), [])
    assert_equal(final("plain"), final("killed"))
    assert not list(differences(RunDir(Path("plain")), RunDir(Path("killed"))))
    whole, killed = told("whole"), told("killed")
    assert timeless(whole) == timeless(killed)
    for tag, points in killed.items():
        assert len({step for step, _ in points}) == len(points), tag
    losses = [round(value, 6) for _, value in whole["epoch/val/loss"]]
    assert losses == [round(row["val/loss"], 6) for row in rows("plain")]
    steps = [json.loads(line)["step"] for line in Path("plain/steps.jsonl").read_text().splitlines()]
    assert [step for step, _ in whole["step/train/loss"]] == steps


@pytest.mark.slow
def test_a_tracker_that_comes_later_is_told_what_was_before(tracker, monkeypatch):
    runner.run([*PLAIN, f"tracking={tracker}"], run_dir="whole")
    gone_after(14, monkeypatch, lambda: runner.run(PLAIN, run_dir="late"))
    resume(Path("late"), [f"tracking={tracker}"])
    assert timeless(TRACKERS[tracker]("late")) == timeless(TRACKERS[tracker]("whole"))


@pytest.mark.slow
def test_track_tells_what_is_finished_as_often_as_one_likes(tracker, capsys):
    runner.run([*PLAIN, f"tracking={tracker}"], run_dir="whole")
    runner.run(PLAIN, run_dir="later/a")
    for _ in range(2):
        assert dispatch(["track", "later", "--to", tracker]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"later/a: told to {tracker}"
    assert timeless(TRACKERS[tracker]("later/a")) == timeless(TRACKERS[tracker]("whole"))


def test_track_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="nowhere"):
        dispatch(["track", "nowhere", "--to", "tensorboard"])
    runner.run(FAST, run_dir="run")
    with pytest.raises(InputError, match="--to none: tells nobody"):
        dispatch(["track", "run", "--to", "none"])
    with pytest.raises(InputError, match="tracking=wandb: .*choices: mlflow, none, tensorboard"):
        dispatch(["track", "run", "--to", "wandb"])


@pytest.mark.slow
def test_mlflow_has_parameters_tags_state_matrix_and_checkpoint():
    pytest.importorskip("mlflow", reason="the optional extra [mlflow]")
    words = [*PLAIN, "tracking=mlflow", "tracking.mlflow.checkpoint=best", "name=one", "tags=[a,b]", "notes='x, y'"]
    record = runner.run(words, run_dir="run")
    client, run = mlflow_run("run")
    assert (run.info.run_name, run.info.status) == ("one", "FINISHED")
    assert run.data.params["optimizer.lr"] == str(record["config"]["optimizer"]["lr"])
    tags = run.data.tags
    assert (tags["runner.id"], tags["seed"], tags["state"], tags["tag.a"], tags["tag.b"]) == (
        *(record["id"], "1", "done"),
        *("true", "true"),
    )
    assert tags["mlflow.note.content"] == "x, y"
    assert float(tags["test/best/loss"]) == record["test"]["best"]["loss"]
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {
        *("checkpoints", "confusion_test.json", "confusion_test.png")
    }
    kept = client.download_artifacts(run.info.run_id, "checkpoints/best.pt", str(Path("run")))
    assert Path(kept).read_bytes() == Path("run/checkpoints/best.pt").read_bytes()
    found = json.loads(Path(client.download_artifacts(run.info.run_id, "confusion_test.json", ".")).read_text())
    right = sum(found["counts"][one][one] for one in range(10))
    assert right / sum(map(sum, found["counts"])) == pytest.approx(record["test"]["last"]["accuracy"])
    resume(Path("run"), ["trainer.epochs=4"])
    _, run = mlflow_run("run")
    assert run.data.params["trainer.epochs"] == "3" and "trainer.epochs=4" in run.data.tags["changed"]
    assert [step for step, _ in of_mlflow("run")["epoch/val/loss"]] == [row["step"] for row in rows("run")]


@pytest.mark.slow
def test_the_jobs_of_a_sweep_share_an_experiment_of_its_name(cli):
    pytest.importorskip("mlflow", reason="the optional extra [mlflow]")
    done = cli("-m", "seed=1,2,3", "sweep.name=three", "trainer.dry_run=true", "tracking=[tensorboard,mlflow]")
    assert done.returncode == 0, done.stderr
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{cli.cwd}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("three").experiment_id])
    assert sorted(run.data.tags["seed"] for run in found) == ["1", "2", "3"]
    assert {run.data.tags["sweep"] for run in found} == {"three"}
    assert len(list(cli.cwd.glob("outputs/sweeps/three/*/tensorboard/events.*"))) == 3


@pytest.mark.slow
def test_a_tracker_that_cannot_be_reached_is_one_warning(tmp_path):
    pytest.importorskip("mlflow", reason="the optional extra [mlflow]")
    runner.run(FAST, run_dir="plain")
    words = [*FAST, "tracking=mlflow", "tracking.mlflow.tracking_uri=nonsense://x"]
    assert runner.run(words, run_dir="run")["state"] == "done"
    (line,) = [line for line in Path("run/runner.log").read_text().splitlines() if "tracking.mlflow" in line]
    assert "begin() failed, it is told nothing more" in line and line.endswith("the run goes on")
    assert_equal(final("plain"), final("run"))
    assert dispatch(["track", "plain", "--to", "mlflow", "--set", "tracking.mlflow.tracking_uri=nonsense://x"]) == 1


@pytest.mark.parametrize(
    ("node", "is_told"),
    [
        ({"_target_": "runner.tracking.TensorBoard"}, True),
        ({"_target_": "runner.tracking.MLflow", "tracking_uri": "sqlite:////tmp/x.db"}, False),
        ({"_target_": "runner.tracking.TensorBoard", "folder": "/tmp"}, False),
        ({"_target_": "runner.tracking.MLflow", "tracking_uri": None}, False),
    ],
)
def test_a_record_does_not_choose_who_is_told(node, is_told, caplog):
    from runner.job.listening import is_to_be_told

    assert is_to_be_told("tracking", "one", node) is True
    with admission.admitting(admission.of_record(Path())):
        assert is_to_be_told("tracking", "one", node) is is_told
    assert ("tracking.one: left out" in caplog.text) is not is_told
    Path("mlflow.db").touch()
    with admission.admitting(admission.of_record(Path())):
        assert is_to_be_told("tracking", "one", node) is (is_told or node.get("tracking_uri", "") is None)
    with admission.granting(["runner.tracking"]), admission.admitting(admission.of_record(Path())):
        assert is_to_be_told("tracking", "one", node) is True


@pytest.mark.parametrize(("name", "packages"), NEEDED.items())
def test_without_its_package_the_extra_is_named(name, packages, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    expected = f"^tracking.{name}: the package {name} is missing; pip install {packages}$"
    with pytest.raises(InputError, match=expected):
        runner.run([*FAST, f"tracking={name}"])


def test_another_trackers_name_is_refused():
    with pytest.raises(InputError, match="tracking=wandb: .*choices: mlflow, none, tensorboard"):
        runner.run([*FAST, "tracking=wandb"])


def test_a_checkpoint_by_another_word_is_refused():
    with pytest.raises(InputError, match=r"tracking.mlflow.checkpoint=all: unknown; choices: null, best, last"):
        runner.run([*FAST, "tracking=mlflow", "tracking.mlflow.checkpoint=all"])


def test_a_matrix_is_shaded_by_the_shares_of_its_rows():
    image = matrix.picture_of({"names": ["a", "b"], "counts": [[4, 0], [1, 3]]})
    corner = [image.getpixel((80 + 36 * column + 30, 80 + 36 * row + 3)) for row in (0, 1) for column in (0, 1)]
    assert corner[0] < corner[3] < corner[2] < corner[1] == (255, 255, 255)
    assert matrix.picture_of({"names": list(map(str, range(31))), "counts": [[0] * 31] * 31}) is None
    table = matrix.table_of({"names": ["a|b", "c"], "counts": [[4, 0], [1, 3]]})
    assert table.splitlines()[2] == "| **a_b** | 4 | 0 |"


def test_names_and_times_for_mlflow():
    assert allowed("epoch/val/f1@5 (macro)") == "epoch/val/f1_5 _macro_"
    epochs = [{"step": 1, "seconds": 1.5}, {"step": 2, "seconds": None}, {"step": 3, "seconds": 2}]
    times = Times("2026-11-26T00:00:00.000+00:00")
    epochs = [{**one, "step": 10 * one["step"]} for one in epochs]
    assert [times.of({"step": step}, epochs) - times.began for step in (1, 10, 11, 20, 21, 30)] == [
        *(1500, 1500, 1500, 1500, 3500, 3500),
    ]


class Confused:
    """A listener that is told the confusion matrix."""

    def __init__(self):
        self.found = []

    def confusion(self, found):
        self.found.append(found)


def built_for(*words):
    from runner.config.compose import compose
    from runner.job.build import build
    from runner.sweep.combine import task_config

    return build(task_config(compose([*FAST, *words], None)[1]), is_new=True)


def test_a_matrix_is_told_without_a_trace_in_the_model(caplog):
    made, listener = built_for("model=mlp", "model.batch_norm=true"), Confused()
    listening = Listening({"own": listener}, torch.device("cpu"))
    task = made.trainer.task.train()
    before, drawn = [module.training for module in task.modules()], torch.get_rng_state()
    listening.confusion(made)
    (found,) = listener.found
    assert (found["part"], found["weights"], len(found["names"])) == ("test", "last", 10)
    assert sum(map(sum, found["counts"])) == len(made.parts.test)
    assert [module.training for module in task.modules()] == before and torch.equal(torch.get_rng_state(), drawn)


def test_a_matrix_that_cannot_be_is_not_told_and_fails_nothing(caplog, monkeypatch):
    made, listener = built_for(), Confused()
    listening = Listening({"own": listener}, torch.device("cpu"))
    for error, said in ((InputError("no classes"), ""), (RuntimeError("out of memory"), "out of memory")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr("runner.job.listening.confusion", fail)
        listening.confusion(made)
        assert said in caplog.text and bool(caplog.text) is bool(said)
    assert listener.found == []
