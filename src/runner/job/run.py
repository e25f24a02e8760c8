"""One run, from a composed config and a claimed directory to its last line in run.json."""

import contextlib
import errno
import gc
import io
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from runner.errors import Diverged, InputError, Interrupted
from runner.job.logs import RESULT, Screen, open_logs
from runner.processes import STOP_SIGNALS
from runner.storage import provenance
from runner.storage.files import write_atomically
from runner.storage.run_dir import RunDir, now, resume_command
from runner.train.events import Progress
from runner.train.trainer import Listeners, StopRequest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from runner.job.build import Built
    from runner.train.trainer import Trainer

log = logging.getLogger("runner")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
OnBatch = Callable[[Progress, int], None]


class Resumed(Protocol):
    """What a run that is continued brings: see runner.resuming."""

    record: dict[str, Any]

    def put_back(self, run_dir: RunDir, trainer: "Trainer", record: dict[str, Any]) -> None: ...


def train(
    cfg: "DictConfig",
    run_dir: RunDir,
    notes: list[str],
    resumed: Resumed | None = None,
    on_batch: OnBatch | None = None,
    is_shown: bool = True,
    stop_on: Sequence[signal.Signals] = STOP_SIGNALS,
) -> dict[str, Any]:
    """Runs a config in a directory that is locked, and returns what run.json says at the end.

    Args:
        notes: lines for the log's beginning.
        resumed: what a run that is continued has left; None: a new run.
        on_batch: told after each batch, before anything is saved.
        stop_on: the signals that ask for a stop; all others keep their handlers.
        is_shown: False keeps the screen for somebody else; runner.log has everything.

    Raises:
        InputError: before training; a new run's directory then holds no run.
        Diverged, Interrupted, OSError, or what user code raises: run.json and the log say so.
    """
    with open_logs(run_dir.log, bool(cfg.quiet), is_shown) as screen, stop_signals(stop_on) as stop:
        for note in notes:
            log.info(note)
        built, record = prepare(cfg, run_dir, screen, stop, resumed)
        if not gc.isenabled():  # in our own process, see runner.__main__
            gc.freeze()
            gc.enable()
        if on_batch is not None:
            built.trainer.listeners.batch.append(on_batch)
        with outcome(run_dir, record, built):
            if resumed is not None:
                resumed.put_back(run_dir, built.trainer, record)
            run_dir.write_run(record)
            built.trainer.fit()
            if built.test_loader is not None:
                record["test"] = built.trainer.test(built.test_loader)
            save_extras(built)
        report(run_dir, record)
    return record


def prepare(
    cfg: "DictConfig", run_dir: RunDir, screen: Screen, stop: StopRequest, resumed: Resumed | None
) -> tuple["Built", dict[str, Any]]:
    """Builds the run's objects and its record, and puts a resumed run's state back."""
    from runner.config.checks import check_known
    from runner.job import listeners
    from runner.job.build import build, describe

    if resumed is None:
        check_known(cfg)
    source = resumed.record["config_source"] if resumed else plain_source(cfg)
    told = Listeners()
    built = build(cfg, told, stop, is_new=resumed is None)
    trainer = built.trainer
    record = new_record(built, source)
    for line in describe(built):
        log.info(line)
    if record["chosen_on"] == "test":
        log.warning("no validation part (dataset.val_size is 0): the best epoch is chosen on the test set")
    if resumed is None:
        git, diff = provenance.git_state()
        record["git"], record["code"] = git, provenance.code_state(git, diff)
        if diff:
            run_dir.git_diff.write_text(diff)
    trainer.checkpoints.open(run_dir.checkpoints)
    told.batch.append(screen.on_batch)
    if trainer.log_every:
        told.steps.append(lambda row: run_dir.steps.append(row, durable=False))
        told.saving.append(run_dir.steps.sync)
    told.epoch += [
        lambda end: run_dir.metrics.append(end.row),  # durable before the epoch's checkpoint is
        listeners.run_record(run_dir, record),
        listeners.table(trainer.epochs),
    ]
    return built, record


def new_record(built: "Built", source: dict[str, Any]) -> dict[str, Any]:
    """The first version of run.json."""
    from runner.job.build import count_parameters
    from runner.models import layer_table

    trainer = built.trainer
    return {
        "state": "running",
        "started": now(),
        "ended": None,
        "error": None,
        "failure": None,  # the kind of error: diverged, or the exception's name
        "command": provenance.command_line(),
        "resumed": [],
        **{key: built.config[key] for key in ("name", "tags", "notes", "seed")},
        "epochs": trainer.epochs,
        "epochs_done": 0,
        "monitor": trainer.monitor,
        "mode": trainer.mode,
        "chosen_on": trainer.monitor.split("/")[0],
        "seconds": 0.0,  # of all epochs
        "best_epoch": None,
        "best_value": None,
        "best": {},  # the metrics of the best epoch, and of the last
        "last": {},
        "test": {},
        "device": str(built.device.torch),
        "device_name": built.device.name,
        "threads": built.device.threads,
        "precision": trainer.options.precision.type,
        "placement": built.placement.where,
        "deterministic": built.config["deterministic"],
        "examples": {name: len(part) for name, part in vars(built.parts).items() if part is not None},
        "parameters": count_parameters(trainer.model),
        "layers": layer_table(trainer.model),
        "git": None,
        "code": None,
        **provenance.environment(),
        "config": built.config,
        "config_yaml": trainer.config,  # the same, with what JSON has no words for: infinities, keys that are numbers
        "config_source": source,
    }


def plain_source(cfg: "DictConfig") -> dict[str, Any]:
    """The config as composed, interpolations unresolved: what depends on what."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=False)  # type: ignore[return-value]


@contextmanager
def outcome(run_dir: RunDir, record: dict[str, Any], built: "Built") -> Iterator[None]:
    """Writes to run.json and to the log how its body ended."""
    try:
        try:
            yield
        except Interrupted as stopped:
            record |= {"state": "interrupted", "ended": now()}
            run_dir.write_run(record)
            progress = built.trainer.progress
            where = f"{progress.epoch} epochs and {progress.batch} batches done"
            name = signal.Signals(stopped.signum).name
            log.log(RESULT, "stopped by %s, %s; continue with: %s", name, where, resume_command(run_dir.path))
            raise
        record |= {"state": "done", "ended": now()}
        run_dir.write_run(record)
    except Interrupted:
        raise
    except BaseException as error:
        failed(run_dir, record, error)
        raise


def failed(run_dir: RunDir, record: dict[str, Any], error: BaseException) -> None:
    """Records a failure, as far as the disk lets it, and says it: with a traceback where it may be the code's."""
    kind = "diverged" if isinstance(error, Diverged) else type(error).__name__
    record |= {"state": "failed", "ended": now(), "error": f"{type(error).__name__}: {error}", "failure": kind}
    error.is_logged = True  # type: ignore[attr-defined]
    if isinstance(error, (Diverged, InputError)):
        record["error"] = str(error)
    with contextlib.suppress(OSError):  # a disk that is full takes neither this nor, perhaps, the log
        run_dir.write_run(record)
    with contextlib.suppress(OSError):
        say_failure(run_dir, error)


def say_failure(run_dir: RunDir, error: BaseException) -> None:
    if isinstance(error, (Diverged, InputError)):
        log.error("failed: %s", error)
    elif isinstance(error, OSError) and error.errno in NO_ROOM:
        command = resume_command(run_dir.path)
        log.error("failed: %s; what was saved is whole; once that is mended, continue with: %s", error, command)
    else:
        log.error("failed", exc_info=error)


@contextmanager
def stop_signals(numbers: Sequence[signal.Signals]) -> Iterator[StopRequest]:
    """The first of these signals asks for a stop after the batch; the second ends the process at once."""
    stop = StopRequest()

    def handle(signum: int, frame: object) -> None:
        if stop.signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        stop.signum = signum

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in numbers}
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
    wanted = {"model_state_dict.pt": trainer.checkpoints.state_dict, "model.pt": trainer.checkpoints.whole_model}
    for name in [name for name, is_wanted in wanted.items() if is_wanted]:
        content = io.BytesIO()
        torch.save(trainer.model if name == "model.pt" else trainer.model.state_dict(), content)
        write_atomically(directory / name, content.getvalue())


def report(run_dir: RunDir, record: dict[str, Any]) -> None:
    """The last lines on the screen."""
    if record["best_epoch"] is not None:
        log.log(RESULT, "best epoch %s: %s %.4f", record["best_epoch"], record["monitor"], record["best_value"])
    for which, values in record["test"].items():
        log.log(RESULT, "test (%s weights): %s", which, ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
    log.log(RESULT, "%s", run_dir.path)
