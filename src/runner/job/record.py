"""run.json: what it says at the start, after each epoch, and at the end."""

import contextlib
import errno
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runner.config.names import part_of
from runner.errors import Diverged, InputError, Interrupted
from runner.job import own_code
from runner.job.logs import RESULT
from runner.storage import identity, provenance
from runner.storage.run_dir import RunDir, now, resume_command
from runner.terminal.words import plural
from runner.train.events import EpochEnd

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from runner.job.built import Built
    from runner.train.trainer import Trainer

log = logging.getLogger("runner")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def new_record(built: "Built", source: dict[str, Any]) -> dict[str, Any]:
    """The first version of run.json."""
    from runner.groups.modes import modes
    from runner.models import count_parameters, layer_table

    trainer = built.trainer
    return {
        "id": identity.new_id(),
        "state": "running",
        "started": now(),
        "ended": None,
        "error": None,
        "failure": None,  # the kind of error: diverged, or the exception's name
        "command": provenance.command_line(),
        "resumed": [],
        **{key: built.config[key] for key in ("name", "tags", "notes", "seed")},
        "epochs": trainer.config.epochs,
        "epochs_done": 0,
        "steps": trainer.max_steps if built.config["trainer"].get("steps") is not None else None,  # what was asked for
        "steps_done": 0,
        "stopped": None,  # why it ended before its epochs
        "monitor": trainer.config.monitor,
        "mode": trainer.config.mode,
        "modes": modes(built.config),  # of every metric of which it is known
        "chosen_on": part_of(trainer.config.monitor.partition("/")[0]),
        "seconds": 0.0,  # of training and evaluating, with what was interrupted or had to be done again
        "best_epoch": None,
        "best_step": None,
        "best_value": None,
        "best": {},  # the metrics of the best epoch, and of the last
        "last": {},
        "test": {},
        "device": str(built.device.torch),
        "device_name": built.device.name,
        "threads": built.device.threads,
        "precision": trainer.config.step.precision.type,
        "placement": built.placement.where,
        "deterministic": built.config["deterministic"],
        "examples": {name: count_of(part) for name, part in built.parts.all.items()},
        "parameters": count_parameters(trainer.model),
        "layers": layer_table(trainer.model),
        "git": None,
        "code": None,
        "data": built.data,
        **provenance.environment(),
        "config": built.config,
        # The same, with what JSON has no words for: infinities, keys that are numbers.
        "config_yaml": trainer.config.text,
        "config_source": source,
    }


def unbegun() -> dict[str, Any]:
    """What a record says of a run that has not begun: another training of a run starts from its record with this."""
    counts = {"epochs_done": 0, "steps_done": 0, "seconds": 0.0}
    nothing = dict.fromkeys(("ended", "stopped", "best_epoch", "best_step", "best_value"))
    of_epochs: dict[str, Any] = {key: {} for key in ("best", "last", "test", "known_steps")}
    return {"state": "running", "resumed": [], **counts, **nothing, **of_epochs}


def count_of(part: Any) -> int | None:
    """The examples of a part; None: a stream's are not known."""
    return len(part) if hasattr(part, "__len__") else None


def record_of_no_run(cfg: "DictConfig", error: Exception) -> dict[str, Any]:
    """run.json of a sweep's job whose objects could not be made: a failed run that never began, with its error."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    facts: dict[str, Any] = {key: config[key] for key in ("name", "tags", "notes", "seed")}
    facts |= {key: config["trainer"][key] for key in ("epochs", "monitor", "mode")}
    nothing = dict.fromkeys(("id", "best_epoch", "best_value", "chosen_on", "parameters", "git", "code", "config_yaml"))
    return {
        "state": "failed",
        "started": now(),
        "ended": now(),
        "error": str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}",
        "failure": type(error).__name__,
        "command": provenance.command_line(),
        "resumed": [],
        **facts,
        **nothing,
        "epochs_done": 0,
        "seconds": 0.0,
        "best": {},
        "last": {},
        "test": {},
        "own_code": {},
        "layers": [],
        "device": str(config["device"]["type"]),
        "threads": config["device"]["threads"],
        **provenance.environment(),
        "config": config,
        "config_source": source_of(cfg),
    }


def ending(record: Mapping[str, Any]) -> str:
    """How far a finished run went, and why no further."""
    unit, done, planned = ("epoch", record["epochs_done"], record["epochs"])
    if record.get("steps") is not None:
        unit, done, planned = ("step", record["steps_done"], record["steps"])
    if (reason := record.get("stopped")) is None:
        return f"all {planned} {unit}s are done"
    batches = (record["config"].get("derived") or {}).get("batches_per_epoch") or 1
    if unit == "epoch" and record["steps_done"] % batches:
        unit, done, planned = "step", record["steps_done"], planned * batches
    return f"stopped after {unit} {done} of {planned}: {reason}"


def never_began(record: Mapping[str, Any]) -> bool:
    """Whether a record tells only of a start that made no run: there is nothing to resume or to evaluate."""
    return record.get("config_yaml", "") is None


def source_of(cfg: "DictConfig") -> dict[str, Any]:
    """The config as composed, interpolations unresolved: what depends on what."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=False)  # type: ignore[return-value]


def keep_epochs(run_dir: RunDir, record: dict[str, Any], trainer: "Trainer") -> Callable[[EpochEnd], None]:
    """Keeps the epochs done and the best one in run.json."""

    def write(end: EpochEnd) -> None:
        record.update(epochs_done=end.progress.epoch, steps_done=end.progress.step)
        record.update({key: getattr(end.progress, key) for key in ("best_epoch", "best_step", "best_value")})
        record["seconds"] = round(trainer.seconds_used, 3)
        record["last"] = end.metrics
        if end.is_best:
            record["best"] = end.metrics
        run_dir.write_run(record)

    return write


@contextmanager
def outcome(run_dir: RunDir, record: dict[str, Any], built: "Built") -> Iterator[None]:
    """Writes to run.json and to the log how its body ended."""
    try:
        try:
            yield
        except Interrupted as stopped:
            record |= {"state": "interrupted", "ended": now(), "seconds": round(built.trainer.seconds_used, 3)}
            run_dir.write_run(record)
            progress = built.trainer.progress
            where = f"{plural(progress.epoch, 'epoch')} and {plural(progress.batch, 'batch')} done"
            name = signal.Signals(stopped.signum).name
            command = resume_command(run_dir.path, own_code.to_be_named(record, run_dir.path))
            log.log(RESULT, "stopped by %s, %s; continue with: %s", name, where, command)
            raise
        record |= {"state": "done", "ended": now()}
        run_dir.write_run(record)
    except Interrupted:
        raise
    except BaseException as error:
        record["seconds"] = round(built.trainer.seconds_used, 3)
        failed(run_dir, record, error)
        raise


def failed(run_dir: RunDir, record: dict[str, Any], error: BaseException) -> None:
    """Records a failure, as far as the disk lets it, and says it: with a traceback where it may be the code's."""
    kind = "diverged" if isinstance(error, Diverged) else type(error).__name__
    record |= {"state": "failed", "ended": now(), "error": f"{type(error).__name__}: {error}", "failure": kind}
    error.is_logged = True  # type: ignore[attr-defined]
    if isinstance(error, (Diverged, InputError)):
        record["error"] = str(error)
    with contextlib.suppress(Exception):  # a disk that is full takes neither this nor, perhaps, the log
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
