"""The plan of the house: which room may know which, written down once, and held against every import of src/."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
# From the ground up. A room is a folder of src/runner, or a file that stands on its top level; it knows the rooms that
# are named behind it, all of which stand above its own line here: so no arrow runs up, and none in a circle.
ROOMS = {
    # the ground
    "errors": "",
    "values": "",
    "terminal": "",
    "torch_adapter": "",
    "processes": "errors",
    "seeding": "errors",
    "device": "errors",
    # what people name in YAML
    "models": "",
    "losses": "",
    "schedulers": "values",
    "metrics": "errors losses",
    "augment": "seeding",
    "pictures": "",
    "data": "errors seeding pictures",
    "tasks": "errors losses",
    "tracking": "errors values",
    # the rooms; what a target may be, config knows by name
    "config": "errors values models losses schedulers metrics augment data tasks tracking",
    "storage": "errors values terminal",
    "batches": "errors values terminal torch_adapter processes seeding augment",
    "train": "errors values torch_adapter processes seeding metrics tasks storage batches",
    "groups": "errors values torch_adapter seeding device losses schedulers metrics tasks config storage batches train",
    "job": "errors values terminal torch_adapter processes seeding device models tasks config storage batches train"
    " groups",
    "before": "errors values terminal seeding config storage batches train groups job",
    "sweep": "errors values terminal processes batches config storage groups job before",
    "search": "errors values terminal seeding config storage groups job sweep",
    "report": "errors values terminal config storage job sweep",
    "cli": "errors values terminal config storage job before sweep report",
    "__init__": "errors terminal config storage job",
    "__main__": "errors terminal cli",
    "hydra_plugins": "errors sweep search",
}


def module_files():
    return [path for folder in ("runner", "hydra_plugins") for path in sorted((SRC / folder).rglob("*.py"))]


def room_of(module):
    """The room of a dotted name: runner.job.run is in job, runner is __init__."""
    top, _, rest = module.partition(".")
    return "hydra_plugins" if top == "hydra_plugins" else rest.split(".")[0] or "__init__"


def imported(text):
    """Every module that the source names: in imports, wherever they stand, and in strings: a dotted name that is there,
    or the source of a child process.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if is_module(whole) else str(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"runner(\.\w+)+", node.value) and is_module(node.value):
                yield node.value
            elif "\n" in node.value and (found := re.findall(r"^(?:from|import) (runner[\w.]*)", node.value, re.M)):
                yield from found


def is_module(name):
    if name.split(".")[0] not in ("runner", "hydra_plugins"):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def arrows():
    """(from, to) of rooms, with an example of each."""
    found = {}
    for path in module_files():
        name = name_of(path)
        for module in imported(path.read_text()):
            if module.split(".")[0] in ("runner", "hydra_plugins") and room_of(module) != room_of(name):
                found.setdefault((room_of(name), room_of(module)), f"{path.relative_to(SRC)} imports {module}")
    return found


def test_every_room_knows_only_the_rooms_that_the_plan_lets_it_know():
    wrong = [why for (room, other), why in arrows().items() if other not in ROOMS[room].split()]
    assert not wrong


def test_the_plan_runs_down_only():
    order = list(ROOMS)
    for room, known in ROOMS.items():
        assert all(order.index(other) < order.index(room) for other in known.split()), room


def test_the_plan_holds_nothing_that_is_not_so():
    rooms = {room_of(name_of(path)) for path in module_files()}
    assert rooms == set(ROOMS)
    drawn = set(arrows())
    assert {(room, other) for room, known in ROOMS.items() for other in known.split()} == drawn


def name_of(path):
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


def test_no_file_is_reached_from_itself():
    """Nor in a circle inside one room, which the plan of the rooms does not see."""
    known = {name_of(path): {m for m in imported(path.read_text()) if m != name_of(path)} for path in module_files()}

    def way_to(goal, module, seen):
        for other in known.get(module, ()):
            if other == goal:
                return [module, goal]
            if other not in seen:
                seen.add(other)
                if way := way_to(goal, other, seen):
                    return [module, *way]
        return None

    circles = [way for module in known if (way := way_to(module, module, set()))]
    assert circles == []


def test_imports_inside_functions_and_child_processes_count():
    text = 'def f():\n    from runner.job import run\nCHILD = """\nfrom runner.sweep.plan import Job\n"""\n'
    assert list(imported(text)) == ["runner.job.run", "runner.sweep.plan"]
    assert list(imported('P = ["runner.sweep.preload", "runner.nowhere"]')) == ["runner.sweep.preload"]


@pytest.mark.parametrize("path", module_files(), ids=lambda path: str(path.relative_to(SRC)))
def test_no_file_is_over_400_lines_and_each_opens_with_a_sentence(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    assert lines[0].startswith('"""') and lines[0].rstrip('"').endswith((".", ":")), lines[0]


HYDRA_USERS = {  # the modules that import Hydra's public names
    *("config/compose.py", "config/hydra_adapter.py", "config/messages.py", "groups/instantiate.py"),
    *("sweep/combine.py", "sweep/multirun.py", "sweep/run.py", "search/space.py"),
}


def test_only_one_file_prints_and_what_it_prints_is_shown_escaped():
    users = set()
    for path in module_files():
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(called, ast.Name) and called.id == "print" for called in calls):
            users.add(str(path.relative_to(SRC / "runner")))
    assert users == {"terminal/printable.py"}


def test_hydra_is_imported_by_the_entry_of_configs_instantiate_and_the_sweep_only():
    users = set()
    for path in (SRC / "runner").rglob("*.py"):
        if any(module.split(".")[0] == "hydra" for module in imported(path.read_text())):
            users.add(str(path.relative_to(SRC / "runner")))
    assert users == HYDRA_USERS


PRIVATE = {  # the private names of libraries, and the one file that may touch each; its own test fails by its name
    "config/hydra_adapter.py": {
        *("_apply_overrides_to_config", "hydra._internal.callbacks.Callbacks", "omegaconf._utils"),
        *("hydra._internal.config_loader_impl.ConfigLoaderImpl", "hydra._internal.hydra.Hydra"),
        *("hydra._internal.utils.create_config_search_path", "hydra._internal.core_plugins.basic_launcher"),
        "hydra._internal.core_plugins.basic_sweeper",
    },
    "metrics.py": {"_update_count"},
    "processes.py": {"_config"},
    "search/optuna_adapter.py": {"optuna.samplers._cmaes", "_storage", "_study_id"},
    "search/sampler_state.py": {  # what a pickle says, in which no more than these is made
        *("cmaes._cma", "cmaes._cmawm", "cmaes._sepcma", "numpy._core.multiarray", "numpy._core.numeric"),
        *("numpy.random._pickle", "numpy.random._mt19937"),
    },
    "torch_adapter.py": {
        *("_dynamo", "_foreach_copy_", "_inductor", "_opt_called", "_shutdown_workers", "_workers", "torch._dynamo"),
    },
}
DOCUMENTED = {"_fields", "_asdict", "_target_", "_partial_", "_args_", "_recursive_", "_convert_"}  # namedtuple, Hydra
UNDOCUMENTED = {  # names without an underscore that no manual has
    r"\.repo\b|get_gh_backup|create_main_hydra2|f_locals": "config/hydra_adapter.py",
    r"_inductor\.list_mode_options": "torch_adapter.py",
}


def private_names(text):
    """Each name with an underscore in front that the source takes from something which is not its own object."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            yield from [node.attr] if is_private(node.attr) else []
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from filter(is_private, names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[a-z]\w*(\.\w+)+", str(node.value)):
            yield from filter(is_private, [node.value])
    for node in ast.walk(tree):  # getattr(x, "_name"), and a name kept for it
        if isinstance(node, (ast.Call, ast.Assign)):
            values = node.args if isinstance(node, ast.Call) else [node.value]
            for value in values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.isidentifier():
                    yield from [value.value] if is_private(value.value) else []


def is_private(name):
    parts = [part for part in name.split(".") if part not in DOCUMENTED]
    return any(re.match(r"_[^_]", part) for part in parts)


def test_a_private_name_of_a_library_is_touched_in_one_file():
    found = {
        str(p.relative_to(SRC / "runner")): set(private_names(p.read_text())) for p in (SRC / "runner").rglob("*.py")
    }
    assert {file: names for file, names in found.items() if names} == PRIVATE
    for path in (SRC / "hydra_plugins").glob("*.py"):
        assert not set(private_names(path.read_text()))


def test_what_counts_as_a_private_name():
    text = (
        "import a._b\nfrom c import _d\nx._e\nself._f\ngetattr(x, '_g', None)\nN = '_h'\n'i._j'\n'_target_'\nx.__k__\n"
    )
    assert sorted(private_names(text)) == ["_e", "_g", "_h", "a._b", "c._d", "i._j"]


@pytest.mark.parametrize("pattern", UNDOCUMENTED)
def test_an_undocumented_name_of_a_library_is_touched_in_one_file(pattern):
    users = {str(p.relative_to(SRC / "runner")) for p in module_files() if re.search(pattern, p.read_text())}
    assert users == {UNDOCUMENTED[pattern]}
