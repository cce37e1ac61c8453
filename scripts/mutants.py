"""Checks the tests: changes one operator or number at a time in the modules of `TESTS` and sees whether a test fails.

    python -m scripts.mutants                               all mutants, which takes hours
    python -m scripts.mutants --sample 20 --seed 0          20 mutants of each module, chosen by the seed
    python -m scripts.mutants --modules mixer/data/order.py
    python -m scripts.mutants --retry                       the survivors again, after new assertions

A mutant is killed if a test of its module fails or takes too long; otherwise it survives. Mutants that compute the
same as the original are listed with the reason in tests/equivalent_mutants.md and are not run. Results are kept in a
JSON file, so a run that was interrupted goes on where it stopped. The tests run in a copy of the tree, never in place.

The heavy libraries are imported once. Each mutant is a fork of this process, which must therefore never start a backend
of JAX or a thread of TensorFlow; and all share a compilation cache.
"""

import argparse
import ast
import collections
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
EQUIVALENT = ROOT / "tests/equivalent_mutants.md"
COPIED = ("mixer", "tests", "configs", "pyproject.toml")

# Each module, and the tests that must notice what changes in it.
TESTS = {
    "mixer/training/step.py": ["tests/training/test_step.py"],
    "mixer/training/losses.py": ["tests/training/test_losses.py"],
    "mixer/training/optimizer.py": ["tests/training/test_optimizer.py"],
    "mixer/evaluation/accuracy.py": ["tests/evaluation/test_accuracy.py"],
    "mixer/evaluation/few_shot_regression.py": ["tests/evaluation/test_few_shot_regression.py"],
    "mixer/models/layers.py": ["tests/models/test_layers.py", "tests/models/test_mlp_mixer.py"],
    "mixer/models/mlp_mixer.py": ["tests/models/test_mlp_mixer.py"],
    "mixer/data/order.py": ["tests/data/test_order.py"],
    "mixer/data/crops.py": ["tests/data/test_crops.py"],
    "mixer/data/augmentations.py": ["tests/data/test_augmentations.py"],
    "mixer/data/augment.py": ["tests/data/test_augment.py"],
    "mixer/transfer/resolution.py": ["tests/transfer/test_resolution.py"],
}

_BINARY = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_PAIRS = [("min", "max"), ("minimum", "maximum"), ("any", "all"), ("argmin", "argmax"), ("floor", "ceil"),
          ("zeros", "ones"), ("zeros_like", "ones_like"), ("rint", "floor")]  # fmt: skip
_SECONDS = itertools.count(int(time.time()))
_FUNCTIONS = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}


class Mutant(NamedTuple):
    """One change of one module.

    Attributes:
      module: path of the module, from the root of the repository.
      line: the text of the line where the change begins.
      old, new: the code that is replaced, and its replacement, each on one line.
      number: counts mutants of the same text in a module.
      source: the whole changed module.
    """

    module: str
    line: str
    old: str
    new: str
    number: int
    source: str

    @property
    def key(self) -> str:
        return f"{self.module} | {self.line} | {self.old} -> {self.new} | {self.number}"


def changes(node: Any) -> Iterator[tuple[Any, ast.AST]]:
    """Yields changes of one node: what is replaced, which is the node or a condition in it, and the replacement."""
    match node:
        case ast.If(test) | ast.While(test) | ast.IfExp(test) if not isinstance(test, ast.Compare):
            yield test, ast.UnaryOp(ast.Not(), test)
        case ast.comprehension(_, _, conditions):
            yield from ((test, ast.UnaryOp(ast.Not(), test)) for test in conditions)
    yield from ((node, new) for new in _replacements(node))


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.BinOp(left, operator, right) if type(operator) in _BINARY:
            yield ast.BinOp(left, _BINARY[type(operator)](), right)
        case ast.AugAssign(target, operator, value):
            if type(operator) in _BINARY:
                yield ast.AugAssign(target, _BINARY[type(operator)](), value)
            yield ast.Pass()
        case ast.Compare(left, [operator], right):
            yield ast.Compare(left, [_COMPARISONS[type(operator)]()], right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
            if value == 1:
                yield ast.Constant(value - 1)
        case ast.Return(value) if value is not None:
            yield ast.Return(ast.Constant(None))
        case ast.Call(function, arguments, keywords):
            for keyword in keywords:
                if keyword.arg is not None:
                    yield ast.Call(function, arguments, [other for other in keywords if other is not keyword])
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
            if isinstance(function, ast.Attribute) and name in _FUNCTIONS:
                yield ast.Call(ast.Attribute(function.value, _FUNCTIONS[name], ast.Load()), arguments, keywords)
            elif name in _FUNCTIONS:
                yield ast.Call(ast.Name(_FUNCTIONS[name], ast.Load()), arguments, keywords)


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yields a tree's nodes, but for annotations, decorators, docstrings, f-strings and imports."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from nodes(child)


def mutants(module: str) -> list[Mutant]:
    """Returns all mutants of a module, in the order of its text."""
    text = (ROOT / module).read_bytes()
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found, counts = [], collections.Counter[tuple[str, ...]]()
    for node in nodes(ast.parse(text)):
        for at, changed in changes(node):
            begin, end = starts[at.lineno - 1] + at.col_offset, starts[at.end_lineno - 1] + at.end_col_offset
            new = ast.unparse(ast.fix_missing_locations(changed))
            if isinstance(changed, ast.BinOp | ast.BoolOp | ast.Compare | ast.UnaryOp):
                new = f"({new})"
            source = (text[:begin] + new.encode() + text[end:]).decode()
            line = lines[at.lineno - 1].decode().strip()
            old = " ".join(text[begin:end].decode().split())
            counts[line, old, new] += 1
            found.append(Mutant(module, line, old, new, counts[line, old, new], source))
    return found


def equivalents() -> set[tuple[str, ...]]:
    """Reads the list of equivalent mutants: (module, line, old, new)."""
    found: set[tuple[str, ...]] = set()
    module = ""
    for line in EQUIVALENT.read_text().splitlines():
        if heading := re.fullmatch(r"## (mixer/\S+\.py)", line):
            module = heading[1]
        elif entry := re.fullmatch(r"- `(.+)`: `(.+)` -> `(.+)`: .+", line):
            found.add((module, *entry.groups()))
    return found


def import_libraries() -> None:
    """Imports what the tests need, so that forks have it."""
    import beartype, cv2, flax.linen, hypothesis, jax, jaxtyping, ml_collections, optax, optax.contrib, PIL  # noqa: E401, F401, I001
    import pytest, scipy.stats, sklearn.metrics, tensorflow  # noqa: E401, F401

    # A failure is enough: hypothesis need not look for a smaller one.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", deadline=None, derandomize=True, phases=phases)


def start(folder: pathlib.Path, module: str, source: str, log: pathlib.Path) -> int:
    """Starts the tests of a changed module in a copy of the tree, in a fork. Returns the fork's process number."""
    path = folder / module
    path.write_text(source)
    # Python takes compiled code for current if the source's second and size are the same.
    os.utime(path, (second := next(_SECONDS), second))
    if pid := os.fork():
        return pid
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    status = 70
    try:
        import pytest

        quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that are imported already
        options = ["-x", "-m", "not slow", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", *quiet]
        status = int(pytest.main([*TESTS[module], *options]))
    except BaseException:
        traceback.print_exc()
    finally:  # without the clean-up of the process that was forked
        sys.stdout.flush()
        os._exit(status)


def run(todo: list[Mutant], folders: list[pathlib.Path], timeout: float) -> Iterator[tuple[Mutant, str, float]]:
    """Runs mutants, one in each folder at a time, and yields each with its outcome and its seconds."""
    todo, free = todo[::-1], list(folders)
    running: dict[int, tuple[Mutant, pathlib.Path, float]] = {}
    while todo or running:
        while todo and free:
            mutant, folder = todo.pop(), free.pop()
            running[start(folder, mutant.module, mutant.source, folder / "log")] = mutant, folder, time.monotonic()
        time.sleep(0.05)
        for pid, (mutant, folder, since) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            seconds = time.monotonic() - since
            if not done and seconds < timeout:
                continue
            if not done:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            del running[pid]
            free.append(folder)
            shutil.copy(ROOT / mutant.module, folder / mutant.module)
            survived = bool(done) and os.waitstatus_to_exitcode(status) == 0
            yield mutant, "survived" if survived else "killed", seconds


def main() -> None:
    args = _parser().parse_args()
    os.nice(10)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        work = pathlib.Path(scratch)
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(args.results.resolve().with_suffix(".compiled"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        import_libraries()
        folders = [work / str(number) for number in range(args.processes)]
        for folder in folders:
            for name in COPIED:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                folder.mkdir(exist_ok=True)
                copy(ROOT / name, folder / name)
        results = json.loads(args.results.read_text()) if args.results.exists() else {}
        for module in args.modules:
            check(module, folders, results, args)
    report(args.modules, results)


def check(module: str, folders: list[pathlib.Path], results: dict[str, str], args: argparse.Namespace) -> None:
    """Runs the mutants of a module that have no result yet, and keeps their results."""
    same, chosen = equivalents(), mutants(module)
    if args.sample:
        chosen = random.Random(args.seed).sample(chosen, min(args.sample, len(chosen)))
    for mutant in chosen:
        if (module, mutant.line, mutant.old, mutant.new) in same:
            results[mutant.key] = "equivalent"
    todo = [one for one in chosen if results.get(one.key, "survived" if args.retry else "") in ("", "survived")
            and (args.retry or one.key not in results)]  # fmt: skip
    if not todo:
        return
    original = Mutant(module, "", "", "", 0, (ROOT / module).read_text())
    ((_, outcome, usual),) = run([original], folders[:1], 3600)
    if outcome != "survived":
        sys.exit(f"the tests of {module} fail before any change:\n{(folders[0] / 'log').read_text()}")
    for mutant, outcome, seconds in run(todo, folders, 60 + 5 * usual):
        results[mutant.key] = outcome
        args.results.write_text(json.dumps(results, indent=1))
        print(f"{outcome:8} {seconds:4.0f} s  {mutant.key}", flush=True)


def report(modules: list[str], results: dict[str, str]) -> None:
    """Prints the score of each module as a table."""
    print("| module | mutants | run | killed | equivalent | survived | score |\n|---|---|---|---|---|---|---|")
    total = collections.Counter[str]()
    for module in [*modules, "all"]:
        found = mutants(module) if module != "all" else []
        counts = collections.Counter(results[one.key] for one in found if one.key in results)
        counts["mutants"] = len(found)
        total += counts
        counts = total if module == "all" else counts
        killed, survived = counts["killed"], counts["survived"]
        score = f"{100 * killed / (killed + survived):.1f}%" if killed + survived else ""
        ran = killed + survived + counts["equivalent"]
        print(f"| {module} | {counts['mutants']} | {ran} | {killed} | {counts['equivalent']} | {survived} | {score} |")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", choices=TESTS, default=list(TESTS), metavar="FILE")
    parser.add_argument("--sample", type=int, help="mutants of each module; all if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--retry", action="store_true", help="run the survivors of earlier runs again")
    parser.add_argument("--processes", type=int, default=2, help="mutants at a time")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "mutants.json", help="where results are kept")
    return parser


if __name__ == "__main__":
    main()
