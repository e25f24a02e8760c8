"""One run, from a composed config and a claimed directory to its last line in run.json."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runner import provenance
from runner.errors import Diverged, InputError, Interrupted
from runner.loading import STOP_SIGNALS
from runner.logs import RESULT, Screen, open_logs
from runner.run_dir import RunDir, now
from runner.trainer import Listeners, StopRequest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from runner.build import Built

log = logging.getLogger("runner")


def train(cfg: "DictConfig", run_dir: RunDir, notes: list[str]) -> dict[str, Any]:
    """Runs a config in a directory that is claimed, and returns what run.json says at the end.

    Raises:
        InputError: before training; the directory then holds no run.
        Diverged, Interrupted, or what user code raises: run.json says so.
    """
    with open_logs(run_dir.log, bool(cfg.quiet)) as screen, stop_signals() as stop:
        for note in notes:
            log.info(note)
        built, record = prepare(cfg, run_dir, screen, stop)
        run_dir.write_run(record)
        with outcome(run_dir, record):
            built.trainer.fit()
            if built.test_loader is not None:
                record["test"] = built.trainer.test(built.test_loader)
            save_extras(built)
        report(run_dir, record)
    return record


def prepare(cfg: "DictConfig", run_dir: RunDir, screen: Screen, stop: StopRequest) -> tuple["Built", dict[str, Any]]:
    """Builds the run's objects and the first version of its record."""
    from runner import listeners
    from runner.build import build, count_parameters, describe
    from runner.models import layer_table

    source = plain_source(cfg)
    told = Listeners()
    built = build(cfg, told, stop)
    trainer = built.trainer
    git, diff = provenance.git_state()
    record: dict[str, Any] = {
        "state": "running",
        "started": now(),
        "ended": None,
        "error": None,
        "command": provenance.command_line(),
        **{key: built.config[key] for key in ("name", "tags", "notes", "seed")},
        "epochs": trainer.epochs,
        "epochs_done": 0,
        "monitor": trainer.monitor,
        "mode": trainer.mode,
        "chosen_on": trainer.monitor.split("/")[0],
        "best_epoch": None,
        "best_value": None,
        "test": {},
        "device": str(built.device.torch),
        "device_name": built.device.name,
        "threads": built.device.threads,
        "deterministic": built.config["deterministic"],
        "examples": {name: len(part) for name, part in vars(built.parts).items() if part is not None},
        "parameters": count_parameters(trainer.model),
        "layers": layer_table(trainer.model),
        "git": git,
        **provenance.environment(),
        "config": built.config,
        "config_source": source,
    }
    for line in describe(built):
        log.info(line)
    if record["chosen_on"] == "test":
        record["chosen_on_test"] = True
        log.warning("no validation part (dataset.val_size is 0): the best epoch is chosen on the test set")
    if diff:
        run_dir.git_diff.write_text(diff)
    trainer.checkpoints.open(run_dir.checkpoints)
    told.batch.append(screen.on_batch)
    if trainer.log_every:
        told.steps.append(listeners.steps_file(run_dir))
    told.epoch += [
        listeners.metrics_file(run_dir),
        listeners.run_record(run_dir, record),
        listeners.table(trainer.epochs),
    ]
    return built, record


def plain_source(cfg: "DictConfig") -> dict[str, Any]:
    """The config as composed, interpolations unresolved: what depends on what."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=False)  # type: ignore[return-value]


@contextmanager
def outcome(run_dir: RunDir, record: dict[str, Any]) -> Iterator[None]:
    """Writes to run.json how its body ended."""
    try:
        yield
        record["state"] = "done"
    except Interrupted:
        record["state"] = "interrupted"
        raise
    except Diverged as error:
        record |= {"state": "failed", "error": str(error)}
        log.error("diverged: %s", error)
        raise
    except BaseException as error:
        record |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
        if not isinstance(error, InputError):
            log.exception("failed")
        raise
    finally:
        record["ended"] = now()
        run_dir.write_run(record)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """The first SIGINT, SIGTERM or SIGUSR1 asks for a stop after the batch; the second ends the process at once."""
    stop = StopRequest()

    def handle(signum: int, frame: object) -> None:
        if stop.signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        stop.signum = signum

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def save_extras(built: "Built") -> None:
    """The tutorial's other two ways of saving, where they are asked for: of the last weights."""
    import torch

    trainer, directory = built.trainer, built.trainer.checkpoints.directory
    assert directory is not None
    if trainer.checkpoints.state_dict:
        torch.save(trainer.model.state_dict(), directory / "model_state_dict.pt")
    if trainer.checkpoints.whole_model:
        torch.save(trainer.model, directory / "model.pt")


def report(run_dir: RunDir, record: dict[str, Any]) -> None:
    """The last lines on the screen."""
    if record["best_epoch"] is not None:
        log.log(RESULT, "best epoch %s: %s %.4f", record["best_epoch"], record["monitor"], record["best_value"])
    for which, values in record["test"].items():
        log.log(RESULT, "test (%s weights): %s", which, ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
    log.log(RESULT, "%s", run_dir.path)
