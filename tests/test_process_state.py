"""A job in a worker equals the single run, whatever ran before it in that process."""

import gc
import importlib
import io
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import runner
from runner import torch_adapter
from runner.__main__ import main
from runner.cli.verify import differences
from runner.config import admission
from runner.device import set_deterministic
from runner.errors import InputError
from runner.job import process_state
from runner.job.process_state import SWITCHES, as_if_alone, put, switches
from runner.job.resuming import resume
from runner.job.run import refusing_shapes
from runner.storage import provenance
from runner.storage.run_dir import RunDir
from runner.sweep.worker import work
from runner.terminal import printable
from test_resume import crash_at

WORDS = ["trainer.limit_batches=4", "trainer.epochs=2", "quiet=true", "device.threads=1", "model=mlp"]

OWN = '''
import random, numpy, torch
from runner.data import Digits
from runner.models import MLP

class Shuffled(Digits):
    """Digits whose labels and brightness are drawn when it is made."""
    def __init__(self, mean, std):
        super().__init__(mean, std)
        self.images = self.images + random.random() + numpy.random.rand() + torch.rand(())
        self.targets = torch.randint(10, (len(self.targets),)).tolist()

class Careless(MLP):
    """It leaves every switch where it should not be."""
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.autograd.set_detect_anomaly(True)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("medium")
        torch.manual_seed(99), random.seed(99), numpy.random.seed(99)
'''
PRECISE = """
import torch
from runner.models import MLP
torch.set_default_dtype(torch.float64)  # once, when it is imported

class Precise(MLP):
    def forward(self, x):
        return super().forward(x.double()).float()
"""


@pytest.fixture
def own(cli, monkeypatch):
    (cli.cwd / "careless.py").write_text(OWN)
    (cli.cwd / "precise.py").write_text(PRECISE)
    monkeypatch.syspath_prepend(str(cli.cwd))
    monkeypatch.setattr(process_state, "_of_modules", [])
    yield cli
    for name in ("careless", "precise"):
        sys.modules.pop(name, None)


def assert_equal_runs(one, other):
    assert list(differences(RunDir(Path(one)), RunDir(Path(other)))) == []


@pytest.mark.slow
def test_a_job_after_a_careless_one_is_the_run_of_a_process_of_its_own(own):
    assert own(*WORDS, "hydra.run.dir=alone").returncode == 0
    found = switches()
    runner.run([*WORDS, "model._target_=careless.Careless"], run_dir="careless_run")
    assert switches() == found
    runner.run(WORDS, run_dir="after")
    assert_equal_runs("alone", "after")


@pytest.mark.slow
def test_what_a_module_sets_when_it_is_imported_holds_for_its_jobs_and_for_no_others(own):
    precise = [*WORDS, "model._target_=precise.Precise"]
    for name, words in (("alone", WORDS), ("precise_alone", precise)):
        assert own(*words, f"hydra.run.dir={name}").returncode == 0
    for number, words in enumerate((precise, WORDS, precise)):
        runner.run(words, run_dir=f"run{number}")
    assert_equal_runs("precise_alone", "run0")
    assert_equal_runs("alone", "run1")
    assert_equal_runs("precise_alone", "run2")
    state = torch.load("run2/checkpoints/last.pt", weights_only=True)["model_state_dict"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float64}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
def test_a_dataset_that_draws_while_it_is_made_is_the_same_in_every_process_and_every_job(own):
    words = [*WORDS, "dataset.train._target_=careless.Shuffled"]
    assert own(*words, "hydra.run.dir=alone").returncode == 0
    torch.manual_seed(5), np.random.seed(5)
    for number in range(2):
        runner.run(words, run_dir=f"run{number}")
        assert_equal_runs("alone", f"run{number}")
    record = json.loads(Path("run1/run.json").read_text())
    resume(Path("run1"), ["trainer.epochs=3"])
    runner.run([*words, "trainer.epochs=3"], run_dir="longer")
    assert_equal_runs("longer", "run1")
    assert record["state"] == "done"


def test_threads_that_are_not_given_are_those_of_the_process(own):
    torch.set_num_threads(2)
    runner.run(WORDS, run_dir="one")
    record = runner.run([word for word in WORDS if "threads" not in word], run_dir="two")
    assert record["threads"] == 2


OTHER = {
    "dtype": torch.float64,
    "threads": 3,
    "grad": False,
    "anomaly": True,
    "deterministic": (True, True),
    "cublas": ":16:8",
    "cudnn.enabled": False,
    "cudnn.benchmark": True,
    "cudnn.deterministic": True,
    "matmul": "medium",
    "flash": False,
    "efficient": False,
    "math": False,
    "device": torch.device("meta"),
    "mkldnn.enabled": False,
    "denormals": True,
    "autocast.cpu": (True, torch.float16),
    "autocast.cuda": (True, torch.bfloat16),
    "sharing": "file_system",
    "numpy": {"divide": "raise", "over": "warn", "under": "ignore", "invalid": "warn"},
    "compile": torch_adapter.EVERY_SHAPE,
    **{name: "ieee" for name in process_state.PRECISIONS},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_is_put_back(name, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    importlib.import_module("torch._dynamo")  # where a switch of it is asked for, as after the first compiled model
    other = {**OTHER, "directory": str(tmp_path / "elsewhere")}[name]
    before = switches()
    assert before[name] != other
    with as_if_alone():
        put({name: other})
        assert switches()[name] == other
    assert switches() == before


def test_a_deterministic_run_is_so_where_the_process_only_warned():
    with as_if_alone():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True
        set_deterministic(True)
        assert not torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.fixture
def command(monkeypatch, capsys):
    """The command in this process: its exit code, and what it said on stderr."""

    def start(*words, **streams):
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
            patched.setattr(sys, "argv", ["runner", *words])
            for name, stream in streams.items():
                patched.setattr(sys, name, stream)
            main()
        return ended.value.code, capsys.readouterr().err

    return start


def test_a_command_whose_stdout_was_full_says_nothing_of_the_next_ones(command, tmp_path):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    assert command("--version", stdout=Full())[0] == 1
    assert command("--version") == (0, "")
    with open(tmp_path / "text", "w") as text:
        assert command("--version", stdout=text) == (0, "")


def test_a_command_in_somebodys_process_leaves_nothing_changed(command):
    def state():
        hooks = sys.excepthook, warnings.formatwarning, signal.getsignal(signal.SIGTERM)
        ours = gc.isenabled(), printable.owns_streams, admission.granted(), sys.stdout.errors
        return hooks, ours, list(sys.path), list(warnings.filters), dict(os.environ), switches(), Path.cwd()

    before = state()
    Path("outputs").mkdir()
    for words in (["--version"], ["ls"], ["optimizer.lr=x"], ["evaluate", "nowhere", "--trust-all"], ["nothing"]):
        command(*words)
        assert state() == before, words


def test_what_one_command_grants_to_a_record_no_later_one_does(command, tmp_path):
    assert command("evaluate", str(tmp_path), "--trust-all")[0] == 2
    assert admission.granted() == (frozenset(), False)


def test_each_command_says_what_it_left_out_also_the_second_one(command):
    assert command("trainer.dry_run=true", "hydra.run.dir=outputs/good")[0] == 0
    Path("outputs/bad").mkdir(parents=True)
    Path("outputs/bad/run.json").write_text("{")
    Path("outputs/bad/run.lock").touch()
    first, second = command("ls"), command("ls")
    assert first == second and "outputs/bad" in first[1]
    for _ in range(2):
        assert len(runner.runs()) == 1


def test_a_sweeps_job_in_this_process_leaves_the_sweeps_command_behind_in_none(tmp_path):
    before = provenance.command_line()
    (tmp_path / "sweep.json").write_text(json.dumps({"command": ["typed"]}))
    assert work(None, str(tmp_path / "job"), 1)["state"] == "failed"
    assert provenance.command_line() == before


def test_warning_filters_are_put_back_also_after_an_error():
    before = list(warnings.filters)
    with pytest.raises(ZeroDivisionError), as_if_alone():
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float64)
        raise ZeroDivisionError
    assert warnings.filters == before and torch.get_default_dtype() == torch.float32


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_what_was_compiled_before_is_forgotten():
    from torch._dynamo.testing import CompileCounter

    class Own(nn.Linear):  # torch 2.9 compiles no forward of torch.nn itself
        def forward(self, x):
            return super().forward(x)

    def jobs(is_alone):
        counter = CompileCounter()
        for width in range(1, 13):  # each job has a model of another width, of the same class
            with as_if_alone() if is_alone else torch.no_grad():
                model = Own(width, 2)
                model.compile(backend=counter, dynamic=False)
                model(torch.zeros(3, width))
        torch.compiler.reset()
        return counter.frame_count

    assert jobs(is_alone=False) < 12
    assert jobs(is_alone=True) == 12


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_a_model_is_compiled_for_each_of_its_shapes_and_too_many_are_refused(monkeypatch):
    from torch._dynamo.testing import CompileCounter

    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    def shapes(count):
        model, counter = Own(2, 2), CompileCounter()
        model.compile(backend=counter, dynamic=False)
        for size in range(2, count + 2):
            model(torch.zeros(size, 2))
        return counter.frame_count

    torch.compiler.reset()
    before = torch_adapter.compile_limits()
    with as_if_alone():
        torch_adapter.set_compile_limits(torch_adapter.EVERY_SHAPE)
        assert shapes(20) == 20
    assert torch_adapter.compile_limits() == before
    with as_if_alone(), pytest.raises(InputError, match=r"trainer\.compile=true"):
        torch_adapter.set_compile_limits((3, *torch_adapter.EVERY_SHAPE[1:]))
        with refusing_shapes("trainer.compile=true"):
            shapes(5)
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_run_of_many_shapes_is_exact_after_a_kill(tmp_path, monkeypatch):
    (tmp_path / "growing.py").write_text(
        "import torch\nfrom runner.tasks import Supervised\n\n\n"
        "class Growing(Supervised):\n    def forward(self, batch):\n"
        "        rows = 8 + int(batch[0].sum() * 1000) % 12\n"
        "        return super().forward((batch[0].repeat(1, 1, 3, 1)[:, :, :rows], batch[1]))\n\n\n"
        "class Pooled(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(8, 10)\n\n"
        "    def forward(self, x):\n        return super().forward(torch.nn.functional.dropout(x, 0.2).mean((1, 2)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [*(word for word in WORDS if word[:5] != "model"), "~model", "+model={_target_: growing.Pooled}"]
    words += ["~task", "+task={_target_: growing.Growing}", "trainer.compile=true", "trainer.limit_batches=12"]
    runner.run(words, run_dir="whole")
    crash_at(14, "crashed", words)
    resume(Path("crashed"), [])
    assert_equal_runs("whole", "crashed")


@pytest.mark.slow
def test_a_compiled_job_late_in_a_worker_is_the_compiled_run(cli):
    words = [*WORDS, "trainer.compile=true", "model.dropout=0.1"]  # compiled, it draws other numbers than run eagerly
    assert cli(*words, "seed=6", "hydra.run.dir=alone", timeout=400).returncode == 0
    for seed in range(1, 7):
        width = 8 * seed if seed < 6 else 256  # each a graph of its own, and the last one the default's
        runner.run([*words, f"seed={seed}", f"model.hidden=[{width},128]"], run_dir=f"run{seed}")
    assert_equal_runs("alone", "run6")
