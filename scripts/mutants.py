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
import collections
import functools
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

from scripts.mutations import Mutant, mutants

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
    "mixer/data/pixels/crops.py": ["tests/data/pixels/test_crops.py"],
    "mixer/data/pixels/augmentations.py": ["tests/data/pixels/test_augmentations.py"],
    "mixer/data/pixels/augment.py": ["tests/data/pixels/test_augment.py", "tests/data/pixels/test_crops.py"],
    "mixer/transfer/resolution.py": ["tests/transfer/test_resolution.py"],
}

# Python takes compiled code for current if the source's second and size are the same, so each source gets a second.
_SECONDS = itertools.count(int(time.time()))


def is_equivalent(mutant: Mutant) -> bool:
    """Whether the list of equivalent mutants has it."""
    entry = (mutant.module, mutant.line, mutant.old, mutant.new)
    return (*entry, "") in _equivalents() or (*entry, str(mutant.number)) in _equivalents()


@functools.cache
def _equivalents() -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    module = ""
    for line in EQUIVALENT.read_text().splitlines():
        if heading := re.fullmatch(r"## (mixer/\S+\.py)", line):
            module = heading[1]
        elif entry := re.fullmatch(r"- `(.+)`: `(.+)` -> `(.+)`(?: #(\d+))?: .+", line):
            found.add((module, *entry.groups("")))
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
    chosen = mutants(ROOT, module)
    if args.sample:
        chosen = random.Random(args.seed).sample(chosen, min(args.sample, len(chosen)))
    wanted = "survived" if args.retry else None
    todo = [one for one in chosen if not is_equivalent(one) and results.get(one.key) == wanted]
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
    """Prints the survivors, and the score of each module as a table."""
    found = {module: mutants(ROOT, module) for module in modules}
    print("\n".join(one.key for ones in found.values() for one in ones if outcome_of(one, results) == "survived"))
    print("\n| module | mutants | equivalent | run | killed | score |\n|---|---|---|---|---|---|")
    found["all"] = list(itertools.chain(*found.values()))
    for module, ones in found.items():
        counts = collections.Counter(outcome_of(one, results) for one in ones)
        killed, run = counts["killed"], counts["killed"] + counts["survived"]
        score = f"{100 * killed / run:.1f}%" if run else ""
        print(f"| {module} | {len(ones)} | {counts['equivalent']} | {run} | {killed} | {score} |")


def outcome_of(mutant: Mutant, results: dict[str, str]) -> str | None:
    """Returns killed, survived or equivalent; None for a mutant that was not run."""
    return "equivalent" if is_equivalent(mutant) else results.get(mutant.key)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--modules",
        nargs="+",
        choices=TESTS,
        default=list(TESTS),
        metavar="FILE",
        help="those of `TESTS` (default: all)",
    )
    parser.add_argument("--sample", type=int, help="mutants of each module; all if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--retry", action="store_true", help="run only the survivors of earlier runs")
    parser.add_argument("--processes", type=int, default=2, help="mutants at a time")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "mutants.json", help="where results are kept")
    return parser


if __name__ == "__main__":
    main()
