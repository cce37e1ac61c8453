"""Damages the files of a killed run: the newest checkpoint, all checkpoints, or the files beside them."""

import pathlib
import random
import re
import signal
from collections.abc import Callable, Sequence

from tests.chaos.phases import committed
from tests.chaos.places import LIST, MARK, InBucket, checkpoint_files
from tests.chaos.runs import Run
from tests.chaos.trials import Trial

_MARKS = (MARK, "_CHECKPOINT_METADATA", "manifest.ocdbt", LIST)
_GARBAGE = b'{"half a li\xff'

# ----------------------------------------------- damages; each takes the folder of a checkpoint and says what it did


def truncate(rng: random.Random, folder: pathlib.Path) -> str:
    path = _pick(rng, folder, lambda path: path.stat().st_size > 0)
    size = rng.randrange(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    return f"{_short(path)} cut to {size} bytes"


def delete(rng: random.Random, folder: pathlib.Path) -> str:
    path = _pick(rng, folder)
    path.unlink()
    return f"{_short(path)} deleted"


def flip(rng: random.Random, folder: pathlib.Path) -> str:
    path = _pick(rng, folder, lambda path: path.stat().st_size > 0)
    data = bytearray(path.read_bytes())
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {at} of {_short(path)} flipped"


def delete_mark(rng: random.Random, folder: pathlib.Path) -> str:
    path = _pick(rng, folder, lambda path: path.name in _MARKS)
    path.unlink()
    return f"{_short(path)} deleted"


def delete_manifest(rng: random.Random, folder: pathlib.Path) -> str:
    """Deletes the index, without which no array can be read."""
    path = folder / "default" / "manifest.ocdbt"
    path.unlink()
    return f"{_short(path)} deleted"


def delete_list(rng: random.Random, folder: pathlib.Path) -> str:
    """Deletes the list of files, without which a checkpoint counts as damaged."""
    path = folder / LIST
    path.unlink()
    return f"{_short(path)} deleted"


def empty(rng: random.Random, folder: pathlib.Path) -> str:
    """Deletes all files, and at random also the folders."""
    for path in _files(folder):
        path.unlink()
    folders = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
    kept = rng.random() < 0.5
    for path in () if kept else folders:
        path.rmdir()
    return f"{folder.name} emptied" + (", its folders kept" if kept else "")


def garbage(rng: random.Random, folder: pathlib.Path) -> str:
    path = _pick(rng, folder, _is_json)
    path.write_bytes(_GARBAGE)
    return f"{_short(path)} replaced by garbage"


Damage = Callable[[random.Random, pathlib.Path], str]

_DAMAGES: tuple[Damage, ...] = (
    truncate, delete, flip, flip, delete_mark, empty, garbage,
)  # fmt: skip

# ------------------------------------------------------------------------------------------------- the kinds of damage


def damage_newest(trial: Trial) -> None:
    """Damages the newest checkpoint. The run must skip it, say why in one line, and continue from the one before."""
    *_, before, newest = committed(trial.workdir)
    with trial.files() as workdir:
        trial.did(trial.rng.choice(_possible(trial, _DAMAGES))(trial.rng, _checkpoint(workdir, newest)))
    run = trial.survive()
    continued, skipped = run.continued_from(), re.findall(r"Checkpoint (\d+) skipped", run.stderr)
    # In a bucket, one that was almost saved when the run was killed is seen too.
    skipped = [step for step in skipped if not isinstance(trial.workdir, InBucket) or int(step) <= newest]
    trial.expect(continued in (before, newest), f"it continued from step {continued}, not {before} or {newest}")
    if continued != newest:  # otherwise the damaged part is never read; the comparison of bits decides
        trial.expect(skipped == [str(newest)], f"expected one line about checkpoint {newest}, not: {run.stderr}")


def damage_all(trial: Trial) -> None:
    """Damages all checkpoints. The run must stop and delete nothing, since somebody may be able to repair one."""
    steps = committed(trial.workdir)
    ways = _possible(trial, (delete_manifest, delete_list, empty))
    with trial.files() as workdir:
        for step in steps:
            trial.did(trial.rng.choice(ways)(trial.rng, _checkpoint(workdir, step)))
        left = _listing(workdir, steps)
    _refused(trial, steps, left)


def lose_marks(trial: Trial) -> None:
    """Deletes all commit marks. In a bucket the lists of files can replace them; on a disk, the run must stop."""
    steps = committed(trial.workdir)
    with trial.files() as workdir:
        for step in steps:
            (_checkpoint(workdir, step) / MARK).unlink()
        left = _listing(workdir, steps)
    trial.did("all commit marks deleted")
    if isinstance(trial.workdir, InBucket):
        continued = trial.survive().continued_from() or 0  # one that was almost saved is complete too
        trial.expect(continued >= steps[-1], f"it continued from step {continued}, not {steps[-1]}")
    else:
        _refused(trial, steps, left)


def _refused(trial: Trial, steps: Sequence[int], left: Sequence[str]) -> None:
    """Expects that the run stops with one line, and that all that was left of its checkpoints remains."""
    run = trial.start()
    trial.one_error(run, rf"none of the ({len(steps)}|{len(steps) + 1}) checkpoints .* can be read")
    with trial.files() as workdir:
        remain = _listing(workdir, steps)
    trial.expect(remain == left, f"of {left} only {remain} remain")


def tear_metrics(trial: Trial) -> None:
    """Cuts off the end of the metrics, within the last line."""
    with trial.files() as workdir:
        path = workdir / "metrics.jsonl"
        data = path.read_bytes()
        last = len(data) - data.rstrip(b"\n").rfind(b"\n") - 1
        lost = trial.rng.randint(1, last)
        path.write_bytes(data[:-lost])
    trial.did(f"metrics.jsonl cut by {lost} of the {last} bytes of its last line")
    trial.survive()


def spoil_config(trial: Trial) -> None:
    """Damages the run's config. The run must warn of it and replace it, or stop with an error that names the file."""
    with trial.files() as workdir:
        whole = (workdir / "config.json").read_bytes()
        spoilt = trial.rng.choice((_GARBAGE, b"", b"[]", whole[: len(whole) // 2]))
        (workdir / "config.json").write_bytes(spoilt)
    trial.did(f"config.json replaced by {spoilt[:20]!r}...")
    run = trial.start()
    if run.end():
        trial.one_error(run, r"config\.json")
        with trial.files() as workdir:
            (workdir / "config.json").write_bytes(whole)
    trial.expect("config.json" in run.stderr, f"no line names the file: {run.stderr}")
    trial.survive()


_WAYS = (damage_newest,) * 7 + (damage_all, lose_marks, tear_metrics, spoil_config)


def damage(trial: Trial) -> None:
    """Kills a run that has two checkpoints or more, then damages its files."""
    run = trial.start()
    run.wait_until(lambda: len(_whole(run)) >= 2)
    moment = run.seconds + trial.rng.uniform(0, 0.2) * trial.bench.undisturbed().seconds
    run.wait_until(lambda: run.seconds >= moment)
    trial.hit(run, signal.SIGKILL)
    trial.rng.choice(_WAYS)(trial)


# --------------------------------------------------------------------------------------------------------------- parts


def _whole(run: Run) -> list[int]:
    found = checkpoint_files(run.workdir)
    return [int(name) for name, files in found.items() if name.isdigit() and MARK in files]


def _possible(trial: Trial, damages: Sequence[Damage]) -> Sequence[Damage]:
    """Leaves out what leaves nothing behind in a bucket, which has no folders."""
    return [damage for damage in damages if damage is not empty or not isinstance(trial.workdir, InBucket)]


def _checkpoint(workdir: pathlib.Path, step: int) -> pathlib.Path:
    return workdir / "checkpoints" / str(step)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _pick(
    rng: random.Random, folder: pathlib.Path, fits: Callable[[pathlib.Path], bool] = lambda path: True
) -> pathlib.Path:
    return rng.choice([path for path in _files(folder) if fits(path)])


def _is_json(path: pathlib.Path) -> bool:
    return path.stat().st_size > 0 and path.read_bytes().lstrip()[:1] in (b"{", b"[")


def _short(path: pathlib.Path) -> str:
    parts = path.parts[path.parts.index("checkpoints") + 1 :]
    return "/".join(parts)


def _listing(workdir: pathlib.Path, steps: Sequence[int]) -> list[str]:
    """Lists the files of some checkpoints. (A run may delete the others, whose saving was interrupted.)"""
    folder = workdir / "checkpoints"
    folders = [folder / str(step) for step in steps]
    return sorted(str(path.relative_to(folder)) for one in folders for path in (one, *one.rglob("*")) if path.exists())
