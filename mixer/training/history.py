"""The history of a run: a line for each start, in history.jsonl. Lines are added and never changed.

The first line says how the run began: what an epoch is, and how many steps its durations are. The names of its classes
are in classes.txt. A later start is compared with what was before:

    other classes or other data      refused, unless allowed
    more or fewer classes            refused: the head does not fit
    other software or machine        a warning, because bits may differ
    another size of the batch        refused, unless allowed; the schedule keeps its steps, and no image is skipped
"""

import contextlib
import dataclasses
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from mixer.config import run_folder
from mixer.config.checks import flat
from mixer.runtime import files
from mixer.runtime.errors import UserError, first_line

FILE = "history.jsonl"
_SHOWN = 3  # differences of data in a message, and names of classes
_ONLY_TOLD = ("commit",)  # facts of software that do not change what is computed


@dataclasses.dataclass(frozen=True)
class Start:
    """A start of a run.

    Attributes:
      step: at which the run stood.
      time: in UTC.
      command: as it was given.
      software: versions and options by name.
      machine: devices, processes, and processors where they compute.
      batch_size: images in a step, from this start on.
      begun: what an epoch and a step of the run's durations are; see `Begun`.
      steps: the run's durations in steps, as `durations.Steps` has them.
      data: facts of each split (see `facts.of_source`).
      config_changes: differences to the config before, such as "seed: 0 before, 1 now".
      data_changes: differences of the data, in the same form.
      class_names: the names of the classes, if the run did not always have these. Others have to be allowed.
      weights: the `source`, `step` and `digest` of the weights from which the run started; None if it continued, or
        started from random ones.
      decided: the values of `run_folder.DECIDED`, in case the run's config is damaged.
    """

    step: int
    time: str
    command: str
    software: dict[str, str]
    machine: dict[str, str]
    batch_size: int
    begun: dict[str, int]
    steps: dict[str, float]
    data: dict[str, str]
    config_changes: Sequence[str] = ()
    data_changes: Sequence[str] = ()
    class_names: Sequence[str] | None = None
    weights: dict[str, str | int | None] | None = None
    decided: dict[str, str | int | None] = dataclasses.field(default_factory=dict)


class Begun(NamedTuple):
    """What an epoch and a step of a run's durations are, from its beginning on.

    Attributes:
      num_examples: images in an epoch.
      batch_size: images in a step.
    """

    num_examples: int
    batch_size: int


def read(workdir: epath.PathLike) -> list[Start]:
    """Returns the starts of a run, the first one first; none if its folder has no history.

    Lines that are damaged are left out. Raises OSError if the file cannot be read.
    """
    try:
        written = files.read_bytes(epath.Path(workdir) / FILE)
    except FileNotFoundError:
        return []
    return [start for line in written.splitlines() if (start := _parsed(line))]


def _parsed(line: bytes) -> Start | None:
    known = {field.name for field in dataclasses.fields(Start)}
    try:
        return Start(**{name: value for name, value in json.loads(line).items() if name in known})
    except (ValueError, AttributeError, TypeError):
        return None


def add(workdir: epath.PathLike, start: Start) -> None:
    """Adds a line. The file is written whole, so that no line is ever cut short, and lines before stay as they are.

    Raises:
      UserError: the folder cannot be written to.
    """
    path = epath.Path(workdir) / FILE
    try:
        try:
            before = files.read_bytes(path)
        except FileNotFoundError:
            before = b""
        files.write_bytes(path, before + json.dumps(dataclasses.asdict(start)).encode() + b"\n")
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written to ({first_line(error)}): make it possible") from None


def now() -> dict[str, str]:
    """Returns the time and the command line of this start."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"time": time, "command": shlex.join(sys.orig_argv)}


def class_names(workdir: epath.PathLike, step: int | None = None) -> list[str] | None:
    """Returns the names of a run's classes; None if they are unknown.

    Args:
      workdir: the run's folder.
      step: of the checkpoint that is meant, in a run whose classes were changed on the way; by default its last.
    """
    names = run_folder.load_class_names(workdir)
    for start in since_it_began(read(workdir)):
        if start.class_names is not None and (step is None or start.step < step):
            names = list(start.class_names)
    return names


def other_names(workdir: epath.PathLike, before: Sequence[str] | None, now: Sequence[str]) -> Sequence[str] | None:
    """Returns the `Start.class_names` of a run that continues: its names now, or None if it always had these.

    Args:
      workdir: the run's folder.
      before: from `class_names`.
      now: the names of its data.
    """
    began = run_folder.load_class_names(workdir)
    return None if began is None or began == before == list(now) else now


def since_it_began(starts: Sequence[Start]) -> list[Start]:
    """Returns the starts of a run since the last one at step 0, which began it anew."""
    began = max((number for number, start in enumerate(starts) if start.step == 0), default=0)
    return list(starts[began:])


def first_weights(starts: Sequence[Start]) -> dict[str, str | int | None]:
    """Returns the `Start.weights` from which a run began; none if they are unknown or random."""
    return next((start.weights for start in since_it_began(starts) if start.step == 0 and start.weights), {})


def settings(workdir: epath.PathLike) -> dict[str, Any]:
    """Returns the settings of a run by name. If its config cannot be read, those that its last start decided, if any.

    Raises:
      OSError: the history cannot be read.
    """
    try:
        return flat(run_folder.load_config(workdir))
    except UserError:
        return dict(next((start.decided for start in reversed(since_it_began(read(workdir)))), {}))


def begun(workdir: epath.PathLike, starts: Sequence[Start], otherwise: Begun) -> Begun:
    """Returns how a run that continues began.

    Args:
      workdir: the run's folder.
      starts: of the run.
      otherwise: if the run is older than the history, and its folder does not say.
    """
    if starts:
        return Begun(**starts[-1].begun)
    with contextlib.suppress(UserError):
        return otherwise._replace(batch_size=run_folder.load_config(workdir).batch_size)
    return otherwise


def not_undone(starts: Sequence[Start]) -> list[Start]:
    """Returns the starts that count: a start undoes what earlier ones did after its step."""
    kept: list[Start] = []
    for start in starts:
        kept = [one for one in kept if one.step < start.step] + [start]
    return kept


def images_seen(starts: Sequence[Start], step: int, batch_size: int) -> int:
    """Returns how many images a run has taken in before a step, also if its batch size changed on the way.

    Args:
      starts: of the run.
      step: up to which to count.
      batch_size: of the steps before the first start.
    """
    parts = [(0, batch_size), *((start.step, start.batch_size) for start in not_undone(starts))]
    ends = [*(first for first, _ in parts[1:]), step]
    return sum(max(min(end, step) - first, 0) * size for (first, size), end in zip(parts, ends, strict=True))


# ------------------------------------------------------------------------------------------------------------- compare


def data_changes(
    starts: Sequence[Start], names_before: Sequence[str] | None, data: dict[str, str], names: Sequence[str]
) -> list[str]:
    """Returns how data differ from those of a run. Facts that only one of the two has are not compared.

    Args:
      starts: of the run.
      names_before: the run's classes; None if they are unknown.
      data: facts of all splits.
      names: the classes of the training data.
    """
    before: dict[str, str] = {}
    for start in starts:
        before |= start.data
    differing = [name for name in data if before.get(name, data[name]) != data[name]]
    numbers = [name for name in differing if not name.startswith("the digest")]
    # Where a split has another number of images or classes, its digests differ too, and say nothing more.
    resized = tuple(_split_of(name) for name in numbers)
    digests = [name for name in differing if name not in numbers and not name.endswith(resized)]
    classes = _class_changes(names_before or names, names)
    if classes:
        digests = [name for name in digests if "class names" not in name]
    return classes + [f"{name}: {before[name]} before, {data[name]} now" for name in numbers + digests]


def _split_of(number: str) -> str:
    """Returns the split in the name of such a fact, as in "the number of examples of the training data"."""
    return number.split(" of ", 2)[2]


def _class_changes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    if list(before) == list(now):
        return []
    gone, new = ([name for name in some if name not in set(others)] for some, others in ((before, now), (now, before)))
    if not gone and not new:
        at, one, other = next((n, a, b) for n, (a, b) in enumerate(zip(before, now, strict=False)) if a != b)
        return [f"the order of the classes: class {at} was {one!r} and is {other!r}"]
    said = [f"{what} {_listed(some)}" for what, some in (("gone", gone), ("new", new)) if some]
    if len(before) == len(now):  # otherwise nothing can continue
        moved = [name for one, name in zip(before, now, strict=True) if one != name and name in before]
        said += [f"the output of {before[now.index(name)]!r} would become that of {name!r}" for name in moved[:1]]
    return [f"the classes, {len(before):,} before, {len(now):,} now: {', '.join(said)}"]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def check_classes(before: Sequence[str] | None, now: Sequence[str], workdir: epath.PathLike) -> None:
    """Checks the number of classes, which nothing can allow to change while a run continues.

    Raises:
      UserError: it is another.
    """
    if before is not None and len(before) != len(now):
        raise UserError(
            f"{workdir} holds a run on other data ({_class_changes(before, now)[0]}), whose head does not fit: start "
            f"another run from its weights, with another --workdir and --config.init_from={workdir}"
        )


def check_data(changes: Sequence[str], workdir: epath.PathLike, allow_change: bool | None) -> None:
    """Checks that a run has the data that it had.

    Args:
      changes: from `data_changes`.
      workdir: the run's folder.
      allow_change: whether --allow_data_change is given; None where there is no such flag.

    Raises:
      UserError: there are changes, and they are not allowed.
    """
    if changes and not allow_change:
        more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        instead = "" if allow_change is None else ", or --allow_data_change to continue it with these"
        raise UserError(
            f"{workdir} holds a run on other data ({'; '.join(changes[:_SHOWN])}{more}): give the same data, or "
            f"another folder{instead}"
        )


def warnings(last: Start, this: Start) -> list[str]:
    """Returns a line for other software and one for other devices than at the last start."""
    said = []
    for what, before, here in (("software", last.software, this.software), ("devices", last.machine, this.machine)):
        changes = [
            f"{name} {before.get(name) or 'none'} before, {here.get(name) or 'none'} now"
            for name in sorted({*before, *here} - set(_ONLY_TOLD))
            if before.get(name) != here.get(name)
        ]
        if changes:
            said.append(
                f"The run continues with other {what} ({'; '.join(changes)}): the same bits as "
                "without a stop are not promised."
            )
    return said
