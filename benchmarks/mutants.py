"""Small changes of the code that the tests must notice: a sample of mutmut's mutants, the same for the same seed.

    python -m benchmarks.mutants [--sample 200] [--seed 0] [--jobs 2] [--only storage/] [--again]

From the project's root. mutmut makes the mutants; here they are run, because torch's import for each would take hours:
one pytest process collects the tests once and forks for each mutant, where the changed function's code takes the place
of the old one; a process that a test starts finds the changed file on PYTHONPATH. A mutant is tried by the tests that
reach its lines, in this process or in one that they start, the quickest first, until one fails. What is tried is kept
in mutants/, so that a run that was stopped goes on; it is forgotten when the code or that mutant's tests change.
"""

import argparse
import ast
import difflib
import hashlib
import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "runner"
FILES = ("storage/*.py", "train/*.py", "sweep/plan.py", "sweep/ready.py")
FILES += tuple(f"job/{name}.py" for name in ("resuming", "saved", "changes", "recovery", "own_code"))
KEPT = ROOT / "mutants"
EXPLAINED = ROOT / "benchmarks" / "mutants_explained.json"  # a mutant's diff -> why no test notices it


@dataclass(frozen=True)
class Mutant:
    """One small change: of a function, and of which of its lines."""

    name: str  # storage/files.py:open_regular__mutmut_3
    path: str  # storage/files.py
    function: tuple[str, int]  # its name, and the line of its `def`
    lines: tuple[int, int]  # of the changed statement
    source: str  # of the whole changed file

    @property
    def diff(self) -> str:
        old, new = (SRC / self.path).read_text(), self.source
        lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))
        return "\n".join(line for line in lines[2:] if not line.startswith("@@"))


def files() -> list[str]:
    return sorted({str(path.relative_to(SRC)) for pattern in FILES for path in SRC.glob(pattern)})


class Mutations:
    """All mutants that mutmut makes of a file; the changed source is written only of those that are asked for."""

    def __init__(self, path: str) -> None:
        from libcst import FunctionDef
        from mutmut.mutation import file_mutation

        self.path, self.code = path, (SRC / path).read_text()
        self.module, found, _, _ = file_mutation.create_mutations(path, self.code)
        self.found = [m for m in found if isinstance(m.contained_by_top_level_function, FunctionDef)]

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Mutant:
        from mutmut.mutation import file_mutation

        mutation = self.found[index]
        source = file_mutation.deep_replace(self.module, mutation.original_node, mutation.mutated_node).code  # type: ignore
        owner = mutation.contained_by_top_level_function
        number = sum(m.contained_by_top_level_function is owner for m in self.found[: index + 1])
        changed = difflib.SequenceMatcher(None, self.code.splitlines(), source.splitlines(), autojunk=False)
        first = next(block[1] for block in changed.get_opcodes() if block[0] != "equal") + 1
        function, lines = enclosing(ast.parse(self.code), first)
        return Mutant(f"{self.path}:{function[0]}__mutmut_{number}", self.path, function, lines, source)


def enclosing(tree: ast.Module, line: int) -> tuple[tuple[str, int], tuple[int, int]]:
    """The outermost function around a line, and the lines of the innermost statement (of a compound one its head)."""
    body, function, lines = tree.body, None, (line, line)
    while True:
        inner = next((s for s in body if start(s) <= line <= (s.end_lineno or 0)), None)
        if inner is None:
            break
        nested = [s for s in ast.walk(inner) if isinstance(s, ast.stmt) and s is not inner]
        head = min((start(s) for s in nested), default=(inner.end_lineno or 0) + 1) - 1
        lines = inner.lineno, max(head, inner.lineno)
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if function is None:
                function = inner.name, start(inner)  # as co_firstlineno
            lines = inner.lineno, inner.end_lineno or 0  # a default, say: seen by whoever calls
        body = [s for s in ast.iter_child_nodes(inner) if isinstance(s, (ast.stmt, ast.excepthandler))]  # type: ignore
    assert function is not None, line
    return function, lines


def start(statement: Any) -> int:
    return min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])


def sample(size: int, seed: int, only: str) -> tuple[list[Mutant], dict[str, int]]:
    """Mutants by chance, from each file as many as it has among all (largest remainders); and how many there are."""
    all_of = {path: Mutations(path) for path in files() if path.startswith(only)}
    counts = {path: len(found) for path, found in all_of.items() if len(found)}
    total = sum(counts.values())
    size = min(size, total)
    share = {path: size * count / total for path, count in counts.items()}
    chosen = {path: math.floor(part) for path, part in share.items()}
    for path in sorted(share, key=lambda p: chosen[p] - share[p])[: size - sum(chosen.values())]:
        chosen[path] += 1
    rng = random.Random(seed)
    made = [all_of[path][index] for path in counts for index in sorted(rng.sample(range(counts[path]), chosen[path]))]
    return made, counts


def share(killed: int, of: int) -> str:
    """A share in percent, with Wilson's 95 % interval."""
    part, square = killed / of, 1.959964**2 / of
    middle, spread = part + square / 2, math.sqrt(square * (part * (1 - part) + square / 4))
    low, high = (100 * (middle + sign * spread) / (1 + square) for sign in (-1, 1))
    return f"{killed} of {of} ({100 * part:.1f} %, 95 %: {low:.1f} to {high:.1f} %)"


def digest_of(*content: bytes) -> str:
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=200, help="how many mutants (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once (default: 2)")
    parser.add_argument("--only", default="", help="files that begin so, as storage/")
    parser.add_argument("--names", nargs="*", help="those of the sample with these names, again")
    parser.add_argument("--seconds", type=float, default=40, help="of tests a mutant, at most (default: 40)")
    parser.add_argument("--control", type=int, default=0, help="so many times nothing is changed: no test may fail")
    options = parser.parse_args()
    from benchmarks.mutants_run import run_all

    chosen, counts = sample(options.sample, options.seed, options.only)
    if options.names:
        chosen = [mutant for mutant in chosen if mutant.name in options.names]
    if options.control:
        chosen = random.Random(1).sample(chosen, options.control)
        chosen = [Mutant(m.name, m.path, m.function, m.lines, (SRC / m.path).read_text()) for m in chosen]
    answers = run_all(chosen, options.jobs, options.seconds)
    explained: dict[str, str] = json.loads(EXPLAINED.read_text()) if EXPLAINED.exists() else {}
    table: dict[str, Counter[str]] = {}
    for mutant in chosen:
        answer = answers[mutant.name]
        kind = "killed" if answer["killed"] else "explained" if mutant.diff in explained else "survived"
        table.setdefault(mutant.path, Counter())[kind] += 1
        if kind == "survived" or options.names or (options.control and answer["killed"]):
            print(f"{mutant.name}: {kind}, by {answer['by']}, {answer['tried']} tests\n{mutant.diff}\n")
    print("\n| file | mutants | tried | killed | explained | not noticed |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for path, row in table.items():
        print(f"| {path} | {counts[path]} | {row.total()} | {row['killed']} | {row['explained']} | {row['survived']} |")
    total = sum(table.values(), Counter())
    print(f"\nseed {options.seed}, a sample of {total.total()} of {sum(counts.values())}:")
    print(f"killed {share(total['killed'], total.total())}")
    print(f"of those without an explanation {share(total['killed'], total.total() - total['explained'])}")


if __name__ == "__main__":
    main()
