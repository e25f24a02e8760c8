"""Tasks: what is done with a batch. Each is a module of its own to copy from; runner.train.task has the contract."""

from runner.train.task import Step, Supervised

__all__ = ["Step", "Supervised"]
