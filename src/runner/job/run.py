"""One run, from a composed config and a claimed directory to its last line."""

import gc
import io
import json
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from runner.errors import InputError
from runner.groups.length import is_usual
from runner.job import own_code
from runner.job.changes import own_overrides
from runner.job.logs import RESULT, Screen, epoch_table, open_logs
from runner.job.record import ending, keep_epochs, new_record, outcome, source_of
from runner.processes import STOP_SIGNALS, StopRequest, stop_signals
from runner.seeding import alone
from runner.storage import identity, provenance
from runner.storage.choices import choices_of
from runner.storage.files import write_atomically
from runner.storage.run_dir import RunDir
from runner.train.events import Listeners, Progress

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from runner.job.built import Built
    from runner.job.listening import Listening
    from runner.train.trainer import Trainer

log = logging.getLogger("runner")

OnBatch = Callable[[Progress, int], None]


class Continued(Protocol):
    """What a run that is continued brings: see runner.job.resuming."""

    record: dict[str, Any]

    @property
    def is_begun(self) -> bool: ...

    def check_data(self, record: dict[str, Any]) -> None: ...

    def put_back(self, run_dir: RunDir, trainer: "Trainer", record: dict[str, Any]) -> None: ...


def train(
    cfg: "DictConfig",
    run_dir: RunDir,
    notes: list[str],
    resumed: Continued | None = None,
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
        InputError: before training; a new run's directory then holds no run. Or another thread trains a run.
        Diverged, Interrupted, OSError, or what user code raises: run.json and the log say so.
    """
    from runner.job.process_state import as_if_alone

    with (
        alone(),
        open_logs(run_dir.log, bool(cfg.quiet), is_shown) as screen,
        stop_signals(stop_on) as stop,
        as_if_alone(),
    ):
        for note in notes:
            log.info(note)
        built, record, listening = prepare(cfg, run_dir, screen, stop, resumed)
        if not gc.isenabled():  # in our own process, see runner.__main__
            gc.freeze()
            gc.enable()
        if on_batch is not None:
            built.trainer.listeners.batch.append(on_batch)
        with closing(built), listening.until(record), outcome(run_dir, record, built):
            if resumed is not None:
                resumed.put_back(run_dir, built.trainer, record)
            run_dir.write_run(record)
            listening.begin(record, run_dir, built.trainer.progress, resumed is not None)
            with refusing_shapes(f"trainer.compile={json.dumps(cfg.trainer.get('compile'))}"):
                built.trainer.fit()
            record["stopped"] = built.trainer.stop_reason
            if built.test_loader is not None:
                record["test"] = built.trainer.test(built.test_loader)
            with built.trainer.averaging.chosen():
                listening.confusion(built)
                save_extras(built)
                text = sample_of(built)
            if text is not None:
                write_atomically(run_dir.sample, f"{text}\n".encode())
        report(run_dir, record)
        if text is not None:
            log.log(RESULT, "a sample, written by the last weights (%s):", run_dir.sample.name)
            for line in text.splitlines():
                log.log(RESULT, "  %s", line)
    return record


def prepare(
    cfg: "DictConfig", run_dir: RunDir, screen: Screen, stop: StopRequest, resumed: Continued | None
) -> tuple["Built", dict[str, Any], "Listening"]:
    """Builds the run's objects and its record, and says who is told what."""
    from runner.config.checks import check_composed
    from runner.job.build import build
    from runner.job.built import describe
    from runner.job.listening import make_listeners

    if resumed is None:
        check_composed(cfg)
    source = resumed.record["config_source"] if resumed else source_of(cfg)
    told = Listeners()
    is_begun = resumed is not None and resumed.is_begun
    built = build(cfg, told, stop, is_new=resumed is None, is_begun=is_begun, folder=run_dir.path)
    trainer = built.trainer
    record = new_record(built, source)
    git, diff = provenance.git_state()
    own = own_code.find(built.config)
    for file in (entry["file"] for entry in own.values() if "on_disk" in entry):
        log.warning("note: %s has changed since it was imported; what runs is what was imported: reload it", file)
    record |= {"overrides": own_overrides(run_dir.path), "choices": choices_of(run_dir.path)}
    record |= {"git": git, "own_code": own, "code": provenance.code_state(git, diff, own_code.digests(own))}
    if resumed is not None:
        resumed.check_data(record)
    for line in describe(built):
        log.info(line)
    if record["chosen_on"] == "test":
        log.warning("no validation part (dataset.val_size is 0): the best epoch is chosen on the test set")
    if resumed is None and diff:
        write_atomically(run_dir.git_diff, diff.encode(errors="surrogateescape"))
    run_id = record["id"] if resumed is None else resumed.record.get("id")
    trainer.checkpoints.open(run_dir.checkpoints, identity.owner(run_id, built.config))
    if screen.live is not None:
        told.batch.append(screen.on_batch)
    if trainer.config.log_every:
        told.steps.append(lambda row: run_dir.steps.append(row, durable=False))
        told.saving.append(run_dir.steps.sync)
    told.epoch += [
        lambda end: run_dir.metrics.append(end.row),  # durable before the epoch's checkpoint is
        keep_epochs(run_dir, record, trainer),
        epoch_table(trainer.config.epochs, None if is_usual(built.config["trainer"]) else trainer.max_steps),
    ]
    listening = make_listeners(cfg, built.device.torch)
    listening.attach(told)
    return built, record, listening


@contextmanager
def refusing_shapes(key: str) -> Iterator[None]:
    """Says in one line that a model was compiled for too many shapes.

    Raises:
        InputError: names `key`.
    """
    from runner.torch_adapter import MOST_SHAPES, is_past_limit

    try:
        yield
    except Exception as error:
        if not is_past_limit(error):
            raise
        raise InputError(
            f"{key}: the model was compiled for {MOST_SHAPES} shapes of its inputs, or values that it reads, and each"
            " takes its seconds; pad the batches to fewer shapes, or choose trainer.compile=null"
        ) from error


def save_extras(built: "Built") -> None:
    """The tutorial's other two ways of saving, where they are asked for: of the last weights."""
    import torch

    from runner.storage.plain import plain

    trainer, directory = built.trainer, built.trainer.checkpoints.directory
    assert directory is not None
    wanted = {"model_state_dict.pt": trainer.checkpoints.state_dict, "model.pt": trainer.checkpoints.whole_model}
    for name in [name for name, is_wanted in wanted.items() if is_wanted]:
        content = io.BytesIO()
        torch.save(trainer.model if name == "model.pt" else plain({"": trainer.model.state_dict()})[""], content)
        write_atomically(directory / name, content.getvalue())


def sample_of(built: "Built") -> str | None:
    """The text that a task's sample() gives, where it has one, from the seed alone."""
    import torch

    from runner.seeding import derive, isolated

    trainer = built.trainer
    if not callable(sample := getattr(trainer.task, "sample", None)):
        return None
    trainer.task.eval()
    with (
        isolated(derive(trainer.config.seed, "sample"), trainer.config.device),
        torch.no_grad(),
        trainer.config.step.precision.autocast,
    ):
        try:
            text = sample()
        except Exception as error:  # the run is trained and tested by now
            log.warning("the task's sample() failed (%s: %s)", type(error).__name__, " ".join(str(error).split()))
            return None
    return None if text is None else str(text)


def report(run_dir: RunDir, record: dict[str, Any]) -> None:
    """The last lines on the screen."""
    if record["stopped"] is not None:
        log.log(RESULT, "%s", ending(record))
    if record["best_epoch"] is not None:
        step = "" if is_usual(record["config"]["trainer"]) else f", step {record['best_step']}"
        at = f"{record['best_epoch']}{step}"
        log.log(RESULT, "best epoch %s: %s %.4f", at, record["monitor"], record["best_value"])
    for which, values in record["test"].items():
        log.log(RESULT, "test (%s weights): %s", which, ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
    log.log(RESULT, "%s", run_dir.path)
