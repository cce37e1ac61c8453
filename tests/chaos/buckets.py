"""Disturbs runs that have their folder and their data in a bucket: as on a disk, and by a bucket's own troubles."""

import pathlib
import signal
import time
from collections.abc import Callable

from tests.bucket.fake_bucket import FakeBucket
from tests.bucket.faults import Fault
from tests.chaos.damages import damage
from tests.chaos.kills import at_a_bad_time, at_any_time, kill, preempt
from tests.chaos.phases import committed, wait_for
from tests.chaos.places import InBucket
from tests.chaos.runs import DEVICES, Run, UnexpectedError
from tests.chaos.trials import Trial

_REQUESTS = 1500  # about as many as a run asks


def in_bucket(trial: Trial) -> None:
    """Gives a run a bucket of its own, perhaps one with troubles. Then kills, stops or damages it, or refuses it."""
    with FakeBucket() as bucket:
        trial.workdir = InBucket(bucket)
        trial.workdir.bring_data(pathlib.Path(trial.bench.data_dir))
        trial.rng.choice(_WAYS)(trial, trial.workdir)
        if trial.outcome.problems:  # the bucket ends here, so keep what is in it
            trial.workdir.download(trial.folder / "bucket")


# ----------------------------------------------------------------------------- troubles that a run must survive; a run
# may take longer. Each says what it is.


def _busy(trial: Trial) -> tuple[str, dict]:
    fails = [Fault(".", status=trial.rng.choice((429, 503)), times=trial.rng.randint(1, 3), skip=_place(trial))
             for _ in range(20)]  # fmt: skip
    return "a busy bucket", {"fail": fails}


def _one_per_second(trial: Trial) -> tuple[str, dict]:
    return "one change of an object a second", {"one_per_second": True}


def _slow(trial: Trial) -> tuple[str, dict]:
    return "a slow bucket", {"latency_ms": trial.rng.choice((10, 30, 100)), "bytes_per_second": 500_000}


def _cut(trial: Trial) -> tuple[str, dict]:
    fails = [Fault(".", cut_after=trial.rng.choice((0, 0, 10, 1000)), times=1, skip=_place(trial)) for _ in range(6)]
    return "cut answers", {"fail": fails}


def _hanging(trial: Trial) -> tuple[str, dict]:
    fails = [Fault(".", hang_seconds=trial.rng.choice((2, 10, 45)), times=1, skip=_place(trial)) for _ in range(2)]
    return "late answers", {"fail": fails}


_TROUBLES: tuple[Callable[[Trial], tuple[str, dict]], ...] = (_busy, _one_per_second, _slow, _cut, _hanging)


def _place(trial: Trial) -> int:
    return trial.rng.randrange(_REQUESTS)


def _trouble(trial: Trial, place: InBucket) -> None:
    what, changes = trial.rng.choice(_TROUBLES)(trial)
    place.bucket.control(**changes)
    trial.did(what)


# --------------------------------------------------------------------------------------------- the ways of disturbance


def _as_on_a_disk(trial: Trial, place: InBucket) -> None:
    """Does what is done to runs on a disk."""
    if trial.rng.random() < 0.3:
        _trouble(trial, place)
    trial.rng.choice((kill, preempt, damage, damage))(trial)


def _troubled(trial: Trial, place: InBucket) -> None:
    """Only makes trouble, through which the run must go."""
    _trouble(trial, place)
    trial.survive()


def _spell(trial: Trial, place: InBucket) -> None:
    """Refuses everything for seconds. The run must go on."""
    status, seconds = trial.rng.choice((429, 503)), trial.rng.uniform(1, 10)
    run = trial.start()
    why = trial.rng.choice((at_any_time, at_a_bad_time))(trial, run)
    place.bucket.control(fail=[Fault(".", status=status)])
    trial.did(f"everything refused with {status} for {seconds:.1f} s at {run.seconds:.2f} s {why}")
    time.sleep(seconds)
    place.bucket.control(fail=[])
    trial.finish(run)
    trial.compare(trial.bench.undisturbed().workdir)


def _forbidden(trial: Trial, place: InBucket) -> None:
    """Takes away the permission, and gives it back after the run has ended or said so."""
    on_error, after = trial.rng.choice(("stop", "stop", "continue")), trial.rng.choice((0, 3, 6, 9, 12))
    what = trial.rng.choice(("(PUT|POST|DELETE) .*checkpoints", "checkpoints", "DELETE .*checkpoints/"))
    run = trial.start(**{"checkpoint.on_error": on_error})
    run.wait_until(lambda: bool(run.said) if not after else max(committed(place), default=0) >= after)
    place.bucket.control(fail=[Fault(what, status=403)])
    trial.did(f"403 for {what!r} after step {run.last_step()}, on_error={on_error}")
    trial.outcome.hits["saving"] += 1
    if on_error == "stop" or not after:  # a run that cannot even open its folder always stops
        trial.one_error(run, r"checkpoint")
        place.bucket.control(fail=[])
    else:
        run.wait_until(lambda: "could not be" in run.stderr)
        place.bucket.control(fail=[])
        status = run.end()
        trial.expect(status == 0, f"expected it to go on, but it ended with status {status}: {run.stderr[-2000:]}")
        trial.expect("Traceback" not in run.stderr, f"a traceback: {run.stderr[-2000:]}")
    trial.expect(max(committed(place), default=0) >= after, f"checkpoint {after} is lost")
    trial.survive()


def _first_save(trial: Trial, place: InBucket) -> None:
    """Kills a run that began with the weights of another one, in its first save. It must begin with them again."""
    pretrained = trial.bench.undisturbed().workdir
    expected = trial.bench.once("init_from", lambda: _begun_from(trial, pretrained))
    place.bucket.upload(pretrained, "pretrained")
    weights = {"init_from": place.bucket.path("pretrained")}
    for _ in range(trial.rng.choice((1, 1, 2))):
        run = trial.start(**weights)
        wait_for(run, "a save begins", 1)
        time.sleep(trial.rng.choice((0, 0.02, 0.1, 0.2, 0.4)))
        trial.hit(run, signal.SIGKILL, "the first save, init_from")
    run = trial.start(**weights)
    trial.finish(run)
    began = run.continued_from() is not None or any(line.startswith("starting from gs://") for line in run.said)
    trial.expect(began, f"it neither continued nor began with the weights: {run.said}")
    trial.compare(expected)


def _begun_from(trial: Trial, pretrained: pathlib.Path) -> pathlib.Path:
    workdir = trial.bench.folder / "undisturbed" / "init_from"
    run = Run(trial.bench, workdir, devices=DEVICES, compiles=True, init_from=str(pretrained))
    if status := run.end():
        raise UnexpectedError(f"a run with init_from ended with status {status}: {run.stderr[-2000:]}")
    return workdir


_WAYS = (_as_on_a_disk,) * 8 + (_troubled,) * 2 + (_spell,) * 2 + (_forbidden,) * 2 + (_first_save,) * 2
