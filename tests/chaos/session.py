"""A session of trials: it plans them, runs two at a time, and reports the outcomes."""

import collections
import concurrent.futures
import random
from collections.abc import Callable, Iterable

from tests.chaos.buckets import in_bucket
from tests.chaos.consoles import console, container
from tests.chaos.damages import damage
from tests.chaos.kills import kill, preempt
from tests.chaos.mismatches import mismatch
from tests.chaos.phases import PHASES
from tests.chaos.runs import Bench
from tests.chaos.surroundings import disk, elastic, peer
from tests.chaos.trials import Outcome, Trial, conduct

KINDS: dict[str, Callable[[Trial], None]] = {
    "kill": kill, "preempt": preempt, "damage": damage, "disk": disk, "elastic": elastic, "peer": peer,
    "bucket": in_bucket, "console": console, "container": container, "mismatch": mismatch,
}  # fmt: skip
_SHARES = {
    "kill": 32,
    "preempt": 17,
    "damage": 27,
    "disk": 8,
    "elastic": 8,
    "bucket": 8,
    "console": 4,
    "container": 2,
    "mismatch": 2,
}
_PEERS = 2  # how many trials of two processes a long session has; each takes minutes
LONG = 50  # trials of a long session

SIDE_BY_SIDE = 2


def plan(trials: int, seed: int, kinds: Iterable[str] = ()) -> list[str]:
    """Returns the kind of each trial. The number of each kind follows `_SHARES`; the seed decides the order."""
    chosen = list(kinds) or list(_SHARES)
    shares = {kind: _SHARES[kind] for kind in chosen if kind in _SHARES}
    peers = _PEERS if trials >= LONG and not kinds else 0
    if "peer" in chosen:
        peers = min(_PEERS, trials) if shares else trials
    whole = sum(shares.values())
    planned = ["peer"] * peers
    for kind, share in shares.items():
        planned += [kind] * max((trials - peers) * share // whole, 1)
    rng = random.Random(seed)
    planned = planned[:trials]
    planned += rng.choices(list(shares), list(shares.values()), k=trials - len(planned)) if shares else []
    rng.shuffle(planned)
    return planned


def run(
    bench: Bench, seed: int, trials: dict[int, str], tell: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Conducts the trials, given by number and kind. Calls `tell` with each outcome."""
    bench.undisturbed()  # first, because it fills the compilation cache
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        started = [pool.submit(conduct, bench, seed, number, kind, KINDS[kind]) for number, kind in trials.items()]
        try:
            for future in concurrent.futures.as_completed(started):
                outcomes.append(future.result())
                tell(outcomes[-1])
        except BaseException:  # interrupted: the current trials clean up and end
            pool.shutdown(wait=False, cancel_futures=True)
            bench.close()
            raise
    return sorted(outcomes, key=lambda outcome: outcome.number)


def line(outcome: Outcome) -> str:
    """Describes a trial in one line."""
    verdict = f"skipped, {outcome.skipped}" if outcome.skipped else "FAILED" if outcome.problems else "survived"
    problems = [problem.splitlines()[-1][:200] for problem in outcome.problems[:1]]  # the report has all of it
    words = "; ".join(outcome.done + problems)
    return f"trial {outcome.number}  {outcome.kind}  {outcome.seconds:.0f} s  {verdict}: {words}"


def table(outcomes: list[Outcome]) -> str:
    """Returns a table of the trials by kind, and how often each phase of a run was hit."""
    row = "{:<10}{:>8}{:>14}{:>10}{:>13}{:>9}{:>9}".format
    lines = [row("kind", "trials", "disturbances", "survived", "differences", "skipped", "s/trial")]
    for kind in [*KINDS, "all"]:
        of_kind = [outcome for outcome in outcomes if kind in (outcome.kind, "all")]
        if of_kind:
            lines.append(row(
                kind, len(of_kind), sum(len(outcome.done) for outcome in of_kind),
                sum(not (outcome.problems or outcome.skipped) for outcome in of_kind),
                sum(len(outcome.problems) for outcome in of_kind), sum(bool(outcome.skipped) for outcome in of_kind),
                f"{sum(outcome.seconds for outcome in of_kind) / len(of_kind):.0f}",
            ))  # fmt: skip
    hits = sum((outcome.hits for outcome in outcomes), collections.Counter())
    skipped = {f"{outcome.kind} skipped: {outcome.skipped}" for outcome in outcomes if outcome.skipped}
    return "\n".join([*lines, *sorted(skipped), "hit while " + ", ".join(f"{name} {hits[name]}" for name in PHASES)])


def report(outcome: Outcome, repeat: str) -> str:
    """Describes a failed trial: what was done, what was wrong, and how to repeat it."""
    lines = [f"trial {outcome.number} ({outcome.kind}); to repeat it: {repeat}"]
    lines += [f"  did:   {what}" for what in outcome.done]
    lines += [f"  wrong: {problem}" for problem in outcome.problems]
    return "\n".join(lines)
