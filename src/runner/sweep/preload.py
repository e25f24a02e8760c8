"""What the workers' fork server imports once: torch, and all that a job needs."""

import gc

from runner.processes import die_with_parent

die_with_parent()  # the imports below take seconds, in which the server would not notice that the sweep is gone

gc.disable()  # see runner.__main__; and a page of memory that no collection writes to stays shared by all workers

import torch

import runner.config.compose
import runner.job.build
import runner.job.resuming
import runner.job.run
import runner.sweep.worker  # noqa: F401

torch.set_num_threads(1)
gc.freeze()
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # the first optimizer imports torch._dynamo
