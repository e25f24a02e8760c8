"""All objects of a run, made again from its record, with the weights of one of its checkpoints."""

from runner.job.build import build
from runner.job.built import Built
from runner.job.own_code import as_it_was_started
from runner.job.saved import Saved, fitting, saved_config, say_changes
from runner.train.weights import load_weights


def rebuilt(saved: Saved) -> Built:
    """The run's objects, made again from its resolved config, with the checkpoint's weights."""
    with as_it_was_started(saved.record, saved.folder):
        say_changes(saved.record, saved.folder)
        built = build(saved_config(saved.record))
    with fitting(saved):
        load_weights(built.trainer.task, saved.state)
    return built
