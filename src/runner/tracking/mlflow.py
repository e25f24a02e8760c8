"""A run of MLflow for each run, in a database or on a server."""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.tracking.facts import finals, need, scalars
from runner.tracking.matrix import picture_of
from runner.values import flatten

MOST_METRICS, MOST_PARAMS = 1000, 100  # that MLflow takes at once
LONGEST = 6000  # letters of a parameter's value


class MLflow:
    """A run of MLflow: parameters, tags, the rows by step, the confusion matrix, and a checkpoint where asked for.

    A resumed run goes on in the same one, which is found by its id. MLflow takes no metric back; what an unfinished
    run told beyond its checkpoint is told again with the same figures, and is left out. A row is with MLflow before
    the checkpoint that comes after it is written.

    Args:
        tracking_uri: an address as MLflow has it; null: the environment's MLFLOW_TRACKING_URI, else the file
            `mlflow.db` in the working directory.
        experiment: where MLflow shows the run; null: the sweep's folder, or "runner" for a run of its own.
        checkpoint: best or last is kept as an artifact at the end; null: none.

    Raises:
        InputError: the package mlflow is not installed, or checkpoint is another word.
    """

    def __init__(
        self, tracking_uri: str | None = None, experiment: str | None = None, checkpoint: str | None = None
    ) -> None:
        if checkpoint not in (None, "best", "last"):
            raise InputError(f"tracking.mlflow.checkpoint={checkpoint}: unknown; choices: null, best, last")
        need("mlflow", "tracking.mlflow", "mlflow-skinny sqlalchemy alembic")
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"
        self.experiment, self.checkpoint = experiment, checkpoint
        self.client: Any = None
        self.pending: list[Any] = []
        self.known: dict[str, int] = {}  # of each metric the last step that MLflow has

    def begin(self, run: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else MLflow tells its makers of each use
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # which tables a database gets is nothing to say
            logging.getLogger(name).setLevel(logging.WARNING)
        self.path = Path(run["path"])
        with one_at_a_time(self.uri):
            self.client = MlflowClient(self.uri)
            experiment = self.experiment_id(self.experiment or run["sweep"] or "runner")
        found = self.client.search_runs([experiment], f"tags.`runner.id` = '{run['id']}'", max_results=1)
        values = {key: str(value)[:LONGEST] for key, value in flatten(run["config"]).items()}
        self.times = Times(run["started"])
        self.has_more = bool(found)  # than `known`
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            told = found[0].data.params  # a parameter cannot be changed
            if changed := [f"{key}={value}" for key, value in values.items() if told.get(key, value) != value]:
                self.client.set_tag(self.run_id, "changed", ", ".join(changed)[:5000])
            values = {key: value for key, value in values.items() if key not in told}
        else:
            made = self.client.create_run(experiment, self.times.began, tags_of(run), run["name"] or self.path.name)
            self.run_id = made.info.run_id
        self.log_params(values)
        for row in run["step_rows"]:
            self.add("step", row, self.times.of(row, run["epoch_rows"]))
        for row in run["epoch_rows"]:
            self.add("epoch", row, self.times.of(row, run["epoch_rows"]))
        self.send()

    def experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:  # another job of the sweep was faster
                found = self.client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def log_params(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(allowed(key), value) for key, value in values.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.run_id, params=params[start : start + MOST_PARAMS])

    def step(self, row: Mapping[str, Any]) -> None:
        self.add("step", row, time.time_ns() // 1_000_000)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.add("epoch", row, time.time_ns() // 1_000_000)
        self.send()

    def add(self, prefix: str, row: Mapping[str, Any], milliseconds: int) -> None:
        from mlflow.entities import Metric

        for name, value in scalars(row):
            key = allowed(f"{prefix}/{name}")
            if row["step"] > self.last_step(key):
                self.pending.append(Metric(key, float(value), milliseconds, row["step"]))
                self.known[key] = row["step"]
        if len(self.pending) > MOST_METRICS // 2:
            self.send()

    def last_step(self, key: str) -> int:
        if key not in self.known:
            told = self.client.get_metric_history(self.run_id, key) if self.has_more else []
            self.known[key] = max((one.step for one in told), default=-1)
        return self.known[key]

    def send(self) -> None:
        pending, self.pending = self.pending, []
        for start in range(0, len(pending), MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=pending[start : start + MOST_METRICS])

    def saving(self) -> None:
        if self.client is not None:
            self.send()

    def confusion(self, found: Mapping[str, Any]) -> None:
        self.client.log_dict(self.run_id, dict(found), f"confusion_{found['part']}.json")
        if (image := picture_of(found)) is not None:
            self.client.log_image(self.run_id, image, artifact_file=f"confusion_{found['part']}.png")

    def end(self, record: Mapping[str, Any]) -> None:
        if self.client is None:
            return
        self.send()
        for name, value in finals(record):
            self.client.set_tag(self.run_id, name, repr(value))  # a metric would be there once a resumption
        self.client.set_tag(self.run_id, "state", record["state"])
        if self.checkpoint and record["state"] == "done":
            kept = self.path / "checkpoints" / f"{self.checkpoint}.pt"
            self.client.log_artifact(self.run_id, str(kept), "checkpoints")
        state = {"done": "FINISHED", "interrupted": "KILLED"}.get(record["state"], "FAILED")
        ended = record.get("ended")
        self.client.set_terminated(self.run_id, state, None if ended is None else Times(ended).began)


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Among processes, where the address is a file: MLflow makes its tables twice when two begin at once. The folder is
    locked, so that no file is left behind.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not path.absolute().parent.is_dir():
        yield
        return
    import fcntl

    folder = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


class Times:
    """When rows were written that are told later: an evaluation was done once all had taken their time, and the steps
    before it with it.
    """

    def __init__(self, started: str) -> None:
        self.began = round(datetime.fromisoformat(started).timestamp() * 1000)

    def of(self, row: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> int:
        seconds = 0.0
        for one in epochs:
            seconds += one.get("seconds") or 0
            if one["step"] >= row["step"]:
                break
        return self.began + round(seconds * 1000)


def allowed(key: str) -> str:
    """A name with the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def tags_of(run: Mapping[str, Any]) -> dict[str, str]:
    tags = {"runner.id": run["id"], "command": str(run["command"]), "path": str(Path(run["path"]).absolute())}
    tags |= {"seed": str(run["seed"]), "monitor": str(run["monitor"])}
    tags |= {"sweep": run["sweep"]} if run["sweep"] else {}
    tags |= {"mlflow.note.content": str(run["notes"])} if run["notes"] else {}
    return tags | {f"tag.{allowed(str(tag))}": "true" for tag in run["tags"]}
