"""Disturbs real runs at random and compares their results bit for bit: python -m tests.chaos --trials 100 --seed 0.

The seed and a trial's number decide everything that is drawn. Only the machine's speed differs when `--only` repeats a
trial.
"""

import argparse
import contextlib
import pathlib
import signal
import sys
import tempfile
import time

from mixer.runtime import environment
from tests.chaos import session
from tests.chaos.runs import Bench, UnexpectedError


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    known = ",".join(session.KINDS)
    parser.add_argument(
        "--kinds", default="", help=f"some of {known}; by default all, peer only from {session.LONG} trials on"
    )
    parser.add_argument("--only", type=int, help="the number of a trial to repeat; give the other arguments as before")
    parser.add_argument(
        "--folder", type=pathlib.Path, help="a new folder to work in; the files of failed trials stay there"
    )
    arguments = parser.parse_args()
    arguments.kinds = [kind for kind in arguments.kinds.split(",") if kind]
    if unknown := set(arguments.kinds) - session.KINDS.keys():
        parser.error(f"--kinds {','.join(sorted(unknown))}: expected some of {known}")
    if arguments.only is not None and not 0 <= arguments.only < arguments.trials:
        parser.error(f"--only {arguments.only}: expected a number below --trials {arguments.trials}")
    return arguments


def main() -> int:
    arguments = _arguments()
    environment.prepare()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an interrupted session still ends its processes
    since = time.monotonic()
    planned = dict(enumerate(session.plan(arguments.trials, arguments.seed, arguments.kinds)))
    if arguments.only is not None:
        planned = {arguments.only: planned[arguments.only]}
    folder = contextlib.nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory()
    with folder as place, contextlib.closing(Bench(pathlib.Path(place).resolve())) as bench:
        print(f"an undisturbed run takes {bench.undisturbed().seconds:.0f} s; {len(planned)} trials follow", flush=True)
        outcomes = session.run(bench, arguments.seed, planned, lambda outcome: print(session.line(outcome), flush=True))
    print(f"\n{session.table(outcomes)}")
    failed = [outcome for outcome in outcomes if outcome.problems]
    kinds = f" --kinds {','.join(arguments.kinds)}" if arguments.kinds else ""
    for outcome in failed:
        again = f"python -m tests.chaos --trials {arguments.trials} --seed {arguments.seed}{kinds}"
        print(f"\n{session.report(outcome, f'{again} --only {outcome.number}')}")
    print(f"\n{len(failed)} of {len(outcomes)} trials failed; {(time.monotonic() - since) / 60:.1f} minutes")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UnexpectedError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
