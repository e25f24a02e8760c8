"""Whose code runs: a run's own modules come from where they were, and another file is other code."""

import hashlib
import importlib
import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch

import runner
from runner.config import admission
from runner.errors import InputError
from runner.job import own_code
from runner.storage.record_schema import SweepRecord, read_record, write_record
from runner.storage.run_dir import RunDir
from runner.values import targets_in

MODEL = """
import torch
from layers import act

class Net(torch.nn.Module):
    def __init__(self, input_shape=None, num_classes=10, width={width}):
        super().__init__()
        linear = torch.nn.Linear
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), linear(64, width), act(), linear(width, 10))
    def forward(self, x):
        return self.layers(x)
"""
LAYERS = "import torch\n\ndef act():\n    return torch.nn.{act}()\n"
WORDS = ["model={_target_: model.Net}", "trainer.epochs=2", "trainer.limit_batches=20", "device.threads=1"]
WORDS += ["scheduler=constant"]


@pytest.fixture
def projects(tmp_path, monkeypatch):
    """Two projects, each with a model.py and a layers.py of its own."""
    for name, width, act in (("A", 8, "ReLU"), ("B", 32, "Tanh")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(MODEL.format(width=width))
        (tmp_path / name / "layers.py").write_text(LAYERS.format(act=act))
    before = dict(sys.modules)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    yield tmp_path
    for name in ("model", "layers"):
        sys.modules.pop(name, None)
        if name in before:
            sys.modules[name] = before[name]


@pytest.fixture
def runs(projects, cli):
    for name in "AB":
        cli.cwd = projects / name
        done = cli("trainer.epochs=1", *WORDS[:1], *WORDS[2:], "hydra.run.dir=run")
        assert done.returncode == 0, done.stderr
    return projects


def test_run_json_keeps_the_own_modules_and_what_they_import(runs):
    record = json.loads((runs / "A" / "run" / "run.json").read_text())
    assert set(record["own_code"]) == {"model", "layers"}
    assert record["own_code"]["layers"]["file"] == str(runs / "A" / "layers.py")
    assert record["code"]["own"].keys() == {"model", "layers"}


def test_evaluate_from_another_projects_folder_runs_the_runs_own_code_or_none(runs, cli):
    cli.cwd = runs / "A"
    refused = cli("evaluate", "../B/run")
    assert refused.returncode == 2 and "--trust model" in refused.stderr, "and not the model.py that is here"
    shown = cli("evaluate", "../B/run", "--trust", "model")
    record = json.loads((runs / "B" / "run" / "run.json").read_text())
    assert shown.stdout.splitlines() == [f"test/{k}: {v!r}" for k, v in record["test"]["best"].items()], shown.stderr


@pytest.mark.slow
def test_two_models_of_one_name_open_in_one_process_and_nothing_stays_behind(runs, monkeypatch):
    before = set(sys.modules)
    one = runner.load_model(runs / "A" / "run", trust=["model"])
    two = runner.load_model(runs / "B" / "run", trust=["model"])
    assert one.layers[1].out_features == 8 and isinstance(one.layers[2], torch.nn.ReLU)
    assert two.layers[1].out_features == 32 and isinstance(two.layers[2], torch.nn.Tanh)
    assert not {"model", "layers"} & (set(sys.modules) - before)
    monkeypatch.chdir(runs / "A")
    monkeypatch.setattr(admission, "beside", lambda: (runs / "A",))
    monkeypatch.syspath_prepend(str(runs / "A"))
    import model

    again = runner.load_model(runs / "B" / "run", trust=["model"])
    assert again.layers[1].out_features == 32 and sys.modules["model"] is model
    assert type(runner.load_model(runs / "A" / "run")) is model.Net  # the same file: the caller's own class


@pytest.mark.slow
def test_resume_from_another_projects_folder_trains_with_the_runs_own_code(projects, cli):
    cli.cwd = projects / "B"
    stopped = cli(*WORDS, "hydra.run.dir=run")
    assert stopped.returncode == 0, stopped.stderr
    cli.cwd = projects / "A"
    done = cli("resume", str(projects / "B" / "run"), "trainer.epochs=3", "--trust", "model")
    assert done.returncode == 0, done.stderr
    record = json.loads((projects / "B" / "run" / "run.json").read_text())
    assert record["epochs_done"] == 3 and record["parameters"] == 64 * 32 + 32 + 32 * 10 + 10
    assert record["own_code"]["model"]["file"] == str(projects / "B" / "model.py")


@pytest.mark.slow
def test_a_sweep_resumed_from_another_folder_trains_its_own_code(projects, cli):
    cli.cwd = projects / "B"
    assert cli("-m", "seed=1", "sweep.name=s", *WORDS).returncode == 0
    place = projects / "B" / "outputs" / "sweeps" / "s"
    record = read_record(place / "sweep.json", SweepRecord)
    record["arguments"] = [word.replace("seed=1", "seed=1,2") for word in record["arguments"]]
    write_record(place / "sweep.json", record)
    cli.cwd = projects / "A"
    done = cli("resume", str(place), "--trust", "model")
    assert done.returncode == 0, done.stdout + done.stderr
    sizes = [json.loads(path.read_text())["parameters"] for path in place.glob("*/run.json")]
    assert sizes == [64 * 32 + 32 + 32 * 10 + 10] * 2


@pytest.mark.slow
def test_an_edited_own_file_is_other_code_for_a_sweep(projects, cli):
    cli.cwd = projects / "A"
    assert cli("-m", "seed=1", "sweep.name=s", *WORDS).returncode == 0
    (projects / "A" / "layers.py").write_text(LAYERS.format(act="Tanh"))
    again = cli("-m", "seed=1,2", "sweep.name=s", *WORDS)
    assert again.returncode == 2 and "own module layers" in again.stderr, again.stderr
    assert len(list(projects.glob("A/outputs/sweeps/s/*/run.json"))) == 1
    forced = cli("-m", "seed=2", "sweep.name=s", "sweep.force=true", *WORDS)
    assert forced.returncode == 0, forced.stderr
    summary = json.loads((projects / "A/outputs/sweeps/s/summary.json").read_text())
    assert len(rows := (projects / "A/outputs/sweeps/s/summary.csv").read_text().splitlines()) == 3, rows
    assert "code" in rows[0] and summary


@pytest.mark.slow
def test_a_run_whose_own_file_has_changed_says_so_when_it_goes_on_and_keeps_its_beginning(runs, cli):
    cli.cwd = runs / "A"
    before = json.loads((runs / "A" / "run" / "run.json").read_text())
    (runs / "A" / "layers.py").write_text(LAYERS.format(act="Tanh"))
    shown = cli("evaluate", "run")
    assert shown.returncode == 1, "its figures are not the run's"
    assert "layers.py has changed since" in shown.stderr and "what has changed since: own module layers" in shown.stderr
    assert cli("resume", "run", "trainer.epochs=2").returncode == 0
    record = json.loads((runs / "A" / "run" / "run.json").read_text())
    assert record["own_code"] == before["own_code"] and record["code"] == before["code"]
    assert any("own module layers" in change for change in record["resumed"][0]["changes"])
    assert "not all is as it was when this run began" in (runs / "A" / "run" / "runner.log").read_text()


@pytest.mark.slow
def test_another_torch_or_machine_is_said_and_kept_and_never_overwrites_the_beginning(runs, cli):
    cli.cwd = runs / "A"
    path = runs / "A" / "run" / "run.json"
    record = RunDir(path.parent).read_run()
    record["packages"]["torch"], record["python"], record["machine"] = "1.0", "3.0", "abacus"
    RunDir(path.parent).write_run(record)
    assert cli("resume", "run", "trainer.epochs=2").returncode == 0
    after = json.loads(path.read_text())
    assert (after["packages"]["torch"], after["python"], after["machine"]) == ("1.0", "3.0", "abacus")
    changes = " ".join(after["resumed"][0]["changes"])
    assert "torch: 1.0 ->" in changes and "python: 3.0 ->" in changes and "machine: abacus ->" in changes


@pytest.mark.slow
def test_a_run_whose_own_file_is_gone_takes_the_same_file_and_no_other(runs, cli, monkeypatch):
    (runs / "B").rename(runs / "moved")
    cli.cwd = runs / "moved"
    assert cli("evaluate", "run").returncode == 0
    cli.cwd = runs / "A"
    refused = cli("evaluate", "../moved/run")
    assert refused.returncode == 2
    assert str(runs / "B" / "layers.py") in refused.stderr and str(runs / "A" / "layers.py") in refused.stderr
    monkeypatch.chdir(runs)
    with pytest.raises(InputError, match="is gone; put it back"):
        runner.load_model(runs / "moved" / "run", trust=["model"])


def test_what_is_imported_relatively_or_inside_functions_is_own_too(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text("from . import a\nfrom .b import x\ndef f():\n    import c\n    import json\n")
    for path in (package / "a.py", package / "b.py", tmp_path / "c.py"):
        path.write_text("")
    found = own_code.imported_from_the_same_folder("pack.net", package / "net.py")
    assert {name for name, _ in found} == {"pack", "pack.a", "pack.b", "c"}


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def entry(path):
    return {"file": str(path), "sha256": sha(path)}


@pytest.fixture
def imported(projects, monkeypatch):
    """Project A, with its model imported in this process."""
    monkeypatch.syspath_prepend(str(projects / "A"))
    importlib.invalidate_caches()
    importlib.import_module("model")
    return projects / "A"


def test_the_own_modules_of_a_config_are_what_it_names_and_what_these_import(imported):
    assert targets_in({"a": {"_target_": "x.Y", "b": [{"_target_": "z"}]}, "c": ({"_target_": 5}, 1)}) == {
        "x.Y",
        "z",
    }
    (imported / "pack").mkdir()
    (imported / "pack" / "__init__.py").write_text("from pack.inner import Net as Shown\n")
    (imported / "pack" / "inner.py").write_text("class Net: ...\n")
    importlib.import_module("pack")
    config = {
        "model": {"_target_": "model.Net", "act": [{"_target_": "torch.nn.ReLU"}]},
        "loss": {"_target_": "pack.Shown"},
    }
    expected = {name: entry(imported / f"{name}.py") for name in ("layers", "model")}
    expected |= {"pack": entry(imported / "pack" / "__init__.py"), "pack.inner": entry(imported / "pack" / "inner.py")}
    found = own_code.find(config)
    assert found == expected and list(found) == sorted(expected)
    assert own_code.digests(found) == {name: facts["sha256"] for name, facts in expected.items()}
    assert own_code.find({}) == {} and own_code.find({"_target_": "torch.nn.ReLU"}) == {}


def written(path, text):
    """Other text, as Python sees it too, which takes a file of the same size and second for the same."""
    path.write_text(text)
    os.utime(path, (time := path.stat().st_mtime + 10, time))


def of_model():
    return own_code.find({"_target_": "model.Net"})["model"]


def test_a_module_that_is_loaded_again_is_recorded_as_what_it_is_now(imported):
    """As importlib.reload and %autoreload 2 do it, which keep the module's object."""
    first = of_model()
    written(imported / "model.py", MODEL.format(width=9))
    stale = of_model()
    assert stale == {**first, "on_disk": sha(imported / "model.py")}, "what runs is what was imported"
    importlib.reload(sys.modules["model"])
    assert of_model() == entry(imported / "model.py") != first
    written(imported / "model.py", MODEL.format(width=8))
    assert of_model()["sha256"] == stale["on_disk"]
    importlib.reload(sys.modules["model"])
    assert of_model() == first


@pytest.mark.parametrize(
    "text",
    [
        MODEL.format(width=9),
        MODEL.format(width=8) + "\ndef another(): ...\n",
        MODEL.format(width=8).replace("self.layers(x)", "self.layers(x) * 2"),
        MODEL.format(width=8) + "\nWIDTH = 5\n",
        "def broken(",
    ],
)
def test_a_file_that_was_edited_between_its_import_and_the_run_is_not_what_ran(text, imported):
    before = sha(imported / "model.py")
    written(imported / "model.py", text)
    found = of_model()
    assert found["on_disk"] == sha(imported / "model.py") and found["sha256"] not in (before, found["on_disk"])
    assert of_model() == found


def test_functions_that_are_put_into_a_module_are_not_its_files(imported, monkeypatch):
    first = of_model()
    monkeypatch.setattr(sys.modules["model"].Net, "forward", forward := lambda self, x: x)
    forward.__module__ = "__main__"
    assert of_model()["sha256"] != first["sha256"] and of_model()["on_disk"] == first["sha256"]


def test_a_text_in_which_functions_are_decorated_or_defined_again_is_that_of_its_module(imported):
    text = """
import dataclasses, functools, torch
COUNT = 1
COUNT = COUNT + 1
seen = 0
@dataclasses.dataclass
class Options:
    a: int = 1
@functools.lru_cache
def cached(x=3): return x
def again(a=1): ...
def again(b=2): ...
class Net(torch.nn.Module):
    @property
    def size(self): return 1
    @size.setter
    def size(self, value): ...
    @staticmethod
    def half(a, b=2): return a
    @torch.no_grad()
    def many(self, x): return [y for y in range(x)]
"""
    (imported / "decorated.py").write_text(text)
    module = importlib.import_module("decorated")
    module.seen = 5  # a counter
    for count in range(100):
        module.Net().many(count)
    assert own_code.find({"_target_": "decorated.Net"})["decorated"] == entry(imported / "decorated.py")


def test_a_class_of_a_notebook_is_told_from_another_of_its_name(monkeypatch):
    notebook = types.ModuleType("__main__")
    notebook.__spec__ = None
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    text = "import torch\nS = {s}\ndef h(x): return x * {k} + S\nclass Net(torch.nn.Module):\n"
    text += "    def __init__(self, w={w}):\n"
    text += "        super().__init__()\n    def forward(self, x): return h(x)\n"

    def cell(count, **values):
        source = "\n" * count + text.format(**{"s": 1, "k": 1, "w": 1, **values})
        exec(compile(source, f"<ipython-input-{count}>", "exec"), notebook.__dict__)
        return own_code.digests(own_code.find({"_target_": "__main__.Net"}))["__main__"]

    found = [cell(1), cell(2, s=2), cell(3, k=2), cell(4, w=2)]
    assert len(set(found)) == 4 and cell(5) == found[0]


@pytest.mark.slow
def test_two_runs_around_a_reload_are_not_counted_once(projects, monkeypatch, capsys):
    from runner.cli import compare

    monkeypatch.chdir(projects / "A")
    monkeypatch.syspath_prepend(str(projects / "A"))
    runner.run(WORDS, run_dir="runs/one")
    written(projects / "A" / "model.py", MODEL.format(width=9))
    runner.run(WORDS, run_dir="runs/stale")
    assert "model.py has changed since it was imported" in Path("runs/stale/runner.log").read_text()
    importlib.reload(sys.modules["model"])
    runner.run(WORDS, run_dir="runs/two")
    one, stale, two = (json.loads(Path(f"runs/{name}/run.json").read_text()) for name in ("one", "stale", "two"))
    assert one["code"]["own"]["model"] == stale["code"]["own"]["model"] != two["code"]["own"]["model"]
    assert two["own_code"]["model"] == entry(projects / "A" / "model.py")
    capsys.readouterr()
    compare.main(compare.parser().parse_args(["runs/one", "runs/two"]))
    assert "counted once" not in "".join(capsys.readouterr())


def test_the_module_that_really_defines_a_target_is_found(imported):
    names = [name for name, _ in own_code.modules_of("model.act")]  # defined in layers, seen in model
    assert names == ["model", "layers"]
    assert list(own_code.modules_of("model.Net")) == [("model", imported / "model.py")] * 2
    assert list(own_code.modules_of("nowhere.Net")) == []


def test_relative_imports_are_followed_from_packages_and_from_the_level_they_name(tmp_path):
    for folder in ("top", "top/sub"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    for name in ("top/a.py", "top/sub/b.py", "top/sub/c.py", "a.py", "b.py"):
        (tmp_path / name).write_text("")
    deep = tmp_path / "top" / "sub" / "net.py"
    deep.write_text("from .. import a\nfrom . import b\nimport top.sub.c, json\n")
    found = dict(own_code.imported_from_the_same_folder("top.sub.net", deep))
    expected = {"top": "top/__init__.py", "top.a": "top/a.py", "top.sub": "top/sub/__init__.py"}
    expected |= {"top.sub.b": "top/sub/b.py", "top.sub.c": "top/sub/c.py"}
    assert found == {name: (tmp_path / path).resolve() for name, path in expected.items()}
    package = tmp_path / "top" / "sub" / "__init__.py"
    package.write_text("from .b import x\nfrom ..a import y\n")
    found = dict(own_code.imported_from_the_same_folder("top.sub", package))
    assert set(found) == {"top", "top.a", "top.sub", "top.sub.b"}
    for broken in (b"def", b"\0"):
        deep.write_bytes(broken)
        assert own_code.imported_from_the_same_folder("top.sub.net", deep) == []
    deep.unlink()
    assert own_code.imported_from_the_same_folder("top.sub.net", deep) == []


def recorded(folder, own, **more):
    return {"own_code": own, "working_directory": str(folder), "config": {"model": {"_target_": "model.Net"}}, **more}


def test_an_own_file_that_is_not_what_it_was_is_named(projects):
    paths = [projects / "A" / f"{name}.py" for name in ("layers", "model")]
    record, run = recorded(projects / "A", {path.stem: entry(path) for path in paths}), projects / "runs"
    assert own_code.changed(record, run) == []
    paths[0].write_text("# another\n")
    assert own_code.changed(record, run) == [f"{paths[0]} has changed since (layers)"]


def places(record, run, *trust):
    with admission.granting(trust):
        return own_code.places(record, own_code.policy_of(record, run))


def test_a_file_that_is_gone_is_taken_from_where_the_command_is_started_if_it_is_the_same(projects, monkeypatch):
    monkeypatch.setattr(admission, "beside", lambda: (Path.cwd().resolve(),))
    path = projects / "A" / "model.py"
    record, run = recorded(projects / "A", {"model": entry(path)}), projects / "runs"
    assert places(record, run, "model") == {"model": path}
    path.rename(projects / "model.py")
    (projects / "C").mkdir()
    monkeypatch.chdir(projects / "C")
    assert places(record, run) == {}, "nothing is here, and nothing was named"
    with pytest.raises(InputError, match="is gone; put it back, or start the command in the folder that holds it"):
        places(record, run, "model")
    monkeypatch.chdir(projects)
    assert places(record, run) == {"model": projects / "model.py"}
    monkeypatch.chdir(projects / "B")
    with pytest.raises(InputError) as refused:
        places(record, run)
    assert str(path) in str(refused.value) and f"{projects / 'B' / 'model.py'} is not the same" in str(refused.value)
    assert places(record, projects / "B" / "run") == {"model": projects / "B" / "model.py"}, "of the run's project"


def test_a_record_says_neither_where_modules_come_from_nor_where_the_process_works(projects, monkeypatch):
    monkeypatch.setattr(admission, "beside", lambda: (projects / "elsewhere",))
    record, run = recorded(projects / "A", {"model": entry(projects / "A" / "model.py")}), projects / "runs"
    path, folder = list(sys.path), os.getcwd()
    with own_code.as_it_was_started(record, run):
        assert sys.path == path and os.getcwd() == folder
    with admission.granting(["model"]), own_code.as_it_was_started(record, run):
        assert sys.path == [str(projects / "A"), *path] and os.getcwd() == folder
    monkeypatch.setattr(admission, "granted", lambda: (frozenset(), True))
    with own_code.as_it_was_started(record, run):
        assert sys.path == [str(projects / "A"), *path] and os.getcwd() == str(projects / "A")
    assert sys.path == path and os.getcwd() == folder
    with own_code.as_it_was_started({**record, "working_directory": str(projects / "gone")}, run):
        assert sys.path == [str(projects / "A"), *path] and os.getcwd() == folder
    with own_code.as_it_was_started({**record, "working_directory": str(projects)}, run):
        assert sys.path == [str(projects / "A"), str(projects), *path]
    assert sys.path == path and os.getcwd() == folder


@pytest.mark.parametrize(
    ("name", "file"),
    [("a/b", "/x/a/b.py"), ("model", "/x/other.py"), ("model", "model.py"), ("model", "/\0/model.py"), ("", "/x/.py")],
)
def test_a_module_of_a_record_is_a_name_and_a_file_of_that_name(name, file, tmp_path):
    record = recorded(tmp_path, {name: {"file": file, "sha256": "0"}, "x": {}})
    assert places(record, tmp_path / "run", "model", "a/b") == {}


def test_what_is_installed_is_nobodys_own():
    assert not own_code.is_own(Path(torch.__file__)) and not own_code.is_own(Path(json.__file__))
    assert not own_code.is_own(Path(runner.__file__)) and own_code.is_own(Path(__file__))


def test_the_console_script_beside_a_users_runner_py_says_so(tmp_path, cli):
    import subprocess

    (tmp_path / "runner.py").write_text("print('mine')\n")
    script = "import sys; sys.argv = ['runner', '--help']; from runner.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    if sys.version_info < (3, 11):
        pytest.skip("python -P came with 3.11")
    assert done.returncode == 2 and "runner.py" in done.stderr and "rename" in done.stderr, done.stderr


def test_a_module_that_nobody_has_imported_yet_is_own_by_its_file(imported):
    (imported / "lazy.py").write_text("")
    (imported / "late.py").write_text("def f():\n    import lazy\n")
    importlib.import_module("late")
    assert own_code.find({"_target_": "late.f"})["lazy"] == entry(imported / "lazy.py")
    assert "lazy" not in sys.modules


def test_a_module_of_the_same_name_from_elsewhere_is_another(imported, projects):
    assert not own_code._is_another("model", imported / "model.py")
    assert own_code._is_another("model", projects / "B" / "model.py")
    for name in "AB":
        (projects / name / "pack").mkdir()
        (projects / name / "pack" / "__init__.py").write_text("")
        (projects / name / "pack" / "inner.py").write_text("")
    assert not own_code._is_another("pack.inner", projects / "B" / "pack" / "inner.py")  # nothing has its name
    importlib.import_module("pack")
    assert not own_code._is_another("pack.inner", imported / "pack" / "inner.py")
    assert own_code._is_another("pack.inner", projects / "B" / "pack" / "inner.py")


def test_what_an_import_would_find_here_may_stay(imported, monkeypatch):
    assert own_code._is_found_here("model") and own_code._is_found_here("never_imported_by_anyone")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(imported)])
    assert not own_code._is_found_here("model")
