"""Runs mutants: one pytest process that has collected the tests, and a fork of it for each mutant."""

import ast
import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from benchmarks import reached
from benchmarks.mutants import KEPT, ROOT, SRC, Mutant, digest_of, files, start

# The tests that are asked. Left out are those about other things, which take long or start many processes.
TESTS = (
    *("changes", "checkpoint", "durability", "files", "hidden", "identity", "lease", "lock", "recovery", "mutations"),
    *("own_code", "own_state", "peek", "plan", "precision", "process_state", "provenance", "ready", "records"),
    *("records_shape", "resume", "resuming", "run_dir", "saved", "shapes", "sizes", "summary", "sweep", "task"),
    *("torch_adapter", "trainer", "trainer_acts", "stream", "terminal", "parameters", "verify"),
)
KILLED, SURVIVED, BROKEN = 1, 0, 71  # how a fork ends; another code is a crash, which is noticed too
LIMIT = 20.0  # seconds for what is judged to be endless, beside five times what its tests took


def run_all(mutants: Sequence[Mutant], jobs: int, seconds: float) -> dict[str, dict[str, Any]]:
    KEPT.mkdir(exist_ok=True)
    plugin = Plugin(mutants, jobs, seconds)
    paths = [ROOT / "tests" / f"test_{name}.py" for name in TESTS]
    words = ["-n", "0", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
    pytest.main([*words, *(str(path) for path in paths if path.exists())], plugins=[plugin])
    return plugin.answers


class Plugin:
    def __init__(self, mutants: Sequence[Mutant], jobs: int, seconds: float) -> None:
        self.mutants, self.jobs, self.seconds = mutants, jobs, seconds
        self.answers: dict[str, dict[str, Any]] = {}
        self.place = Path(tempfile.mkdtemp(prefix="mutants-"))

    def pytest_configure(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for path in files():
            importlib.import_module("runner." + path[:-3].replace("/", ".").removesuffix(".__init__"))
        try:
            self.tests = self.reach(session)
            self.items = {item.nodeid: item for item in session.items}
            code = digest_of(*(path.read_bytes() for path in sorted(SRC.rglob("*.py"))))
            self.try_all(KEPT / f"tried-{code}.json")
        finally:
            shutil.rmtree(self.place, ignore_errors=True)
        return True

    # --- which test reaches what

    def reach(self, session: pytest.Session) -> dict[str, dict[str, Any]]:
        """For each test that passes: its seconds, and the lines that it reaches. Kept as long as the code, or the
        test's file, is the same."""
        code = digest_of(*((SRC / path).read_bytes() for path in files()))
        kept = KEPT / f"reached-{code}.json"
        found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        by_file: dict[Path, list[pytest.Item]] = {}
        for item in session.items:
            by_file.setdefault(item.path, []).append(item)
        tasks: list[tuple[str, Callable[[], int]]] = []
        for path, items in by_file.items():
            digest = digest_of(path.read_bytes())
            if found.get(path.name, {}).get("digest") != digest:
                found.pop(path.name, None)
                tasks.append((path.name, lambda items=items, path=path: self.follow(items, path.name)))
        print(f"\nwhich lines the tests of {len(tasks)} files reach", flush=True)
        for name, _, _ in self.in_forks(tasks, lambda name: 900):
            listed = self.place / f"{name}.json"
            tests = json.loads(listed.read_text()) if listed.exists() else {}
            path = ROOT / "tests" / name
            found[name] = {"digest": digest_of(path.read_bytes()), "tests": tests}
            failed = [test for test, facts in tests.items() if not facts["passed"]]
            print(f"  {name}: {len(tests)} tests; not passed: {failed}", flush=True)
            kept.write_text(json.dumps(found))
        here = {item.nodeid for item in session.items}
        return {t: f for entry in found.values() for t, f in entry["tests"].items() if f["passed"] and t in here}

    def follow(self, items: list[pytest.Item], name: str) -> int:
        site = self.place / f"site-{name}"
        site.mkdir()
        (site / "sitecustomize.py").write_text(reached.SITE)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
        tests: dict[str, Any] = {}
        for index, item in enumerate(items):
            lines = site / f"{index}.lines"
            lines.touch()
            os.environ[reached.WHERE] = str(lines)
            reached.start()
            began = time.monotonic()
            passed = run_item(item, items[index + 1] if index + 1 < len(items) else None)
            sys.settrace(None)
            if not passed:  # one that looks at the stack or counts calls, say, fails where it is followed
                os.environ.pop(reached.WHERE)
                passed = run_item(item, items[index + 1] if index + 1 < len(items) else None)
            facts = {"seconds": round(time.monotonic() - began, 3), "passed": passed}
            tests[item.nodeid] = {**facts, "lines": sorted(set(lines.read_text().split()))}
            (self.place / f"{name}.json").write_text(json.dumps(tests))
        return 0

    # --- mutants

    def try_all(self, kept: Path) -> None:
        tried: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        tasks: list[tuple[str, Callable[[], int]]] = []
        limits: dict[str, float] = {}
        keys: dict[str, str] = {}
        chosen_of: dict[str, list[str]] = {}
        for mutant in self.mutants:
            first, last = mutant.lines
            at = {f"{mutant.path}:{line}" for line in range(first, last + 1)}
            reaching = [test for test, facts in self.tests.items() if at & set(facts["lines"])]
            chosen: list[str] = []
            total = 0.0
            own = f"_{Path(mutant.path).stem}"  # the file's own tests come first
            for test in sorted(reaching, key=lambda t: (own not in t.partition("::")[0], self.tests[t]["seconds"])):
                total += self.tests[test]["seconds"]
                if chosen and total > self.seconds:
                    break
                chosen.append(test)
            keys[mutant.name] = digest_of(mutant.source.encode(), *(test.encode() for test in chosen))
            chosen_of[mutant.name], limits[mutant.name] = chosen, LIMIT + 5 * min(total, self.seconds)
            known = tried.get(keys[mutant.name])
            # A mutant that a test noticed is noticed for good; one that was not is tried again with other tests.
            if known is not None:
                self.answers[mutant.name] = known
            elif not chosen:
                self.answers[mutant.name] = {"killed": False, "by": "no test reaches it", "tried": 0}
            else:
                tasks.append((mutant.name, lambda mutant=mutant, chosen=chosen: self.attempt(mutant, chosen)))
        print(f"{len(tasks)} mutants", flush=True)
        for done, (name, code, seconds) in enumerate(self.in_forks(tasks, limits.__getitem__), 1):
            assert code != BROKEN, f"{name}: see {KEPT / 'errors.txt'}"
            by = self.place / name.replace("/", "_")
            noticed = by.read_text() if by.exists() else ""
            why = noticed or {None: "endless", SURVIVED: "none"}.get(code, f"exit code {code}")
            answer = {"killed": code != SURVIVED, "by": why, "tried": len(chosen_of[name])}
            self.answers[name] = tried[keys[name]] = answer
            kept.write_text(json.dumps(tried))
            print(f"{done}/{len(tasks)} {name} {answer} {seconds:.1f} s", flush=True)

    def attempt(self, mutant: Mutant, tests: list[str]) -> int:
        tree = self.place / f"tree-{os.getpid()}"
        try:
            shutil.copytree(ROOT / "src", tree / "src")
            os.symlink(ROOT / "conf", tree / "conf")
            (tree / "src" / "runner" / mutant.path).write_text(mutant.source)
            src = str(tree / "src")
            sys.path[:] = [src if Path(entry) == ROOT / "src" else entry for entry in sys.path]
            os.environ["PYTHONPATH"] = os.pathsep.join([src, os.environ.get("PYTHONPATH", "")])
            put_in(mutant)
            items = [self.items[test] for test in tests]
            for index, item in enumerate(items):
                (self.place / mutant.name.replace("/", "_")).write_text(item.nodeid)
                if not run_item(item, items[index + 1] if index + 1 < len(items) else None):
                    return KILLED
            (self.place / mutant.name.replace("/", "_")).unlink()
            return SURVIVED
        finally:
            shutil.rmtree(tree, ignore_errors=True)

    # --- processes

    def in_forks(
        self, tasks: list[tuple[str, Callable[[], int]]], limit: Callable[[str], float]
    ) -> Iterator[tuple[str, int | None, float]]:
        """Runs tasks in forks, so many at once; gives name, exit code (None: it took too long) and seconds of each."""
        waiting, running = list(tasks), dict[int, tuple[str, float]]()
        while waiting or running:
            while waiting and len(running) < self.jobs:
                name, task = waiting.pop(0)
                pid = os.fork()
                if pid == 0:
                    self.be_child(task)
                running[pid] = name, time.monotonic()
            for pid, (name, began) in list(running.items()):
                seconds = time.monotonic() - began
                is_late = seconds > limit(name)
                if is_late:
                    kill_group(pid)
                ended, status = os.waitpid(pid, 0 if is_late else os.WNOHANG)
                if ended:
                    kill_group(pid)  # what its tests left
                    shutil.rmtree(self.place / f"child-{pid}", ignore_errors=True)
                    del running[pid]
                    yield name, None if is_late else os.waitstatus_to_exitcode(status), seconds
            time.sleep(0.01)

    def be_child(self, task: Callable[[], int]) -> None:
        """Never returns. It has a folder for tmp_path, and files for captured output, of its own."""
        code = BROKEN
        try:
            os.setsid()
            own = self.place / f"child-{os.getpid()}"
            own.mkdir()
            self.config._tmp_path_factory._basetemp = own  # type: ignore[attr-defined]
            capture: Any = self.config.pluginmanager.getplugin("capturemanager")
            capture.stop_global_capturing()
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            capture.start_global_capturing()
            code = task()
        except BaseException:
            with open(KEPT / "errors.txt", "a") as out:
                out.write(traceback.format_exc())
        finally:
            os._exit(code)


def put_in(mutant: Mutant) -> None:
    """Gives the function, wherever it is referred to, the code of the changed one."""
    file = str(SRC / mutant.path)
    new = code_of(compile(mutant.source, file, "exec"), *mutant.function)
    olds = [
        function
        for function in gc.get_objects()
        if type(function) is FunctionType
        and function.__code__.co_filename == file
        and (function.__code__.co_name, function.__code__.co_firstlineno) == mutant.function
    ]
    assert olds, mutant.name
    tree = ast.parse(mutant.source)
    node = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and (n.name, start(n)) == mutant.function)
    for function in olds:
        function.__code__ = new
        old = list(function.__defaults__ or ())
        function.__defaults__ = tuple(map(literal, node.args.defaults, old)) or None
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
            if default is not None and function.__kwdefaults__:
                function.__kwdefaults__[argument.arg] = literal(default, function.__kwdefaults__[argument.arg])


def literal(node: ast.expr, old: Any) -> Any:
    with contextlib.suppress(ValueError):
        return ast.literal_eval(node)
    return old


def code_of(module: CodeType, name: str, line: int) -> CodeType:
    stack = [module]
    while stack:
        code = stack.pop()
        if (code.co_name, code.co_firstlineno) == (name, line):
            return code
        stack += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    raise AssertionError(name)


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def run_item(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Whether a test passes; one that is skipped is taken as not passed."""
    from _pytest.runner import runtestprotocol

    reports = runtestprotocol(item, log=False, nextitem=following)
    return all(report.passed for report in reports)
