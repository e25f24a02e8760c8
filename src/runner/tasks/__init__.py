"""Tasks: what is done with a batch, as one module that owns the model and the loss, their modes and their state.

Contract: a task is any torch.nn.Module whose forward(batch) gives a Step, in train and in eval mode. Its constructor
takes `model` and keeps it as self.model; it may ask for `criterion` (what the group loss is) and `dataset` (the
training set) by these names, and takes the keys of its YAML. Its parameters are trained; its state_dict() and the
buffers that this leaves out go into the checkpoints. It is called in the run's precision (torch.autocast), and what is
random in it draws from torch's global generators.
"""

from runner.tasks.auxiliary import Auxiliary
from runner.tasks.distillation import Distillation
from runner.tasks.language import NextToken
from runner.tasks.mixup import MixUp
from runner.tasks.reconstruction import Reconstruction
from runner.tasks.step import Step
from runner.tasks.supervised import Supervised

__all__ = ["Auxiliary", "Distillation", "MixUp", "NextToken", "Reconstruction", "Step", "Supervised"]
