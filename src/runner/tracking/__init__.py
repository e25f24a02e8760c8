"""Trackers: listeners that tell a run to somebody else's program (see docs/trackers.md).

Contract: a failure of one is one warning and never the run's; a resumed run tells no step twice.
"""

from runner.tracking.mlflow import MLflow
from runner.tracking.tensorboard import TensorBoard

__all__ = ["MLflow", "TensorBoard"]
