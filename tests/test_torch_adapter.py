"""torch's and multiprocessing's names that are not public: each has a test that fails by its name if it moves."""

import multiprocessing
import subprocess
import sys
import time
import warnings

import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from runner import torch_adapter
from runner.processes import allow_children


def test_opt_called_tells_a_scheduler_that_a_step_has_come_before():
    def step(marked):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        if marked:
            torch_adapter.mark_as_stepped(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler.step()

    step(marked=True)
    with pytest.raises(UserWarning, match="optimizer.step"):
        step(marked=False)


def test_list_mode_options_names_torch_compiles_modes():
    assert {"default", "reduce-overhead", "max-autotune"} <= set(torch_adapter.compile_modes())


def slow(samples):
    time.sleep(600 if samples[0] else 0)
    return samples


@pytest.mark.parametrize("is_persistent", [False, True])
def test_shutdown_workers_ends_them_at_once(is_persistent):
    iterator = iter(DataLoader(range(100), num_workers=2, persistent_workers=is_persistent))
    next(iterator)
    workers = psutil.Process().children()
    assert len(workers) >= 2
    torch_adapter.end_loader_workers(iterator)
    assert not any(worker.is_running() for worker in workers)


def test_workers_that_are_in_the_middle_of_something_long_are_killed():
    iterator = iter(DataLoader(range(4), num_workers=1, collate_fn=slow))
    assert next(iterator) == [0]
    (worker,) = psutil.Process().children()
    began = time.monotonic()
    torch_adapter.end_loader_workers(iterator, grace=0.5)
    assert time.monotonic() - began < 300  # the sample would take 600 s
    assert not worker.is_running()


def test_an_iterator_without_workers_has_nothing_to_end():
    iterator = iter(DataLoader(range(4)))
    next(iterator)
    torch_adapter.end_loader_workers(iterator)
    torch_adapter.end_loader_workers(None)


def child(queue):
    if queue is None:
        return
    allow_children()
    grandchild = multiprocessing.get_context("fork").Process(target=child, args=(None,))
    grandchild.start()
    grandchild.join()
    queue.put(grandchild.exitcode)


def test_current_process_config_lets_a_daemon_have_children():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=60) == 0
    process.join()


def test_foreach_copy_copies_each_source_into_its_tensor():
    tensors, sources = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.full((3,), 2.0)]
    torch_adapter.copy_all(tensors, tuple(sources))
    assert all(torch.equal(tensor, source) for tensor, source in zip(tensors, sources, strict=True))


@pytest.mark.slow
def test_dynamo_is_where_a_compiled_model_leads():
    code = "import torch\nfrom runner.torch_adapter import may_have_compiled as may\nbefore = may()\n"
    code += "torch.compile(torch.nn.Linear(1, 1), backend='eager')(torch.ones(1, 1))\nprint(before, may())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_update_count_tells_torchmetrics_that_an_update_has_come_before():
    torchmetrics = pytest.importorskip("torchmetrics", reason="the optional extra [metrics]")
    from runner.metrics import load_metric, prepare

    def metric():
        return prepare(torchmetrics.SumMetric(), torch.device("cpu"))

    updated, again = metric(), metric()
    updated.update(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_metric(again, updated.state_dict(), torch.device("cpu"))
        assert again.compute() == 2
        with pytest.raises(UserWarning, match="update"):
            metric().compute()
