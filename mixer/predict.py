"""Classifies pictures: `python -m mixer.predict --checkpoint runs/pets cat.jpg holiday/ --top 3`.

Images are decoded, resized and cropped as in the run's evaluation. The model computes in float32, also if it was
trained in bfloat16. Probabilities are those that the run's loss assumes: a softmax over the classes, or a sigmoid of
each logit, whose probabilities need not add up to one.
"""

from __future__ import annotations

import collections
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tqdm
from absl import flags
from etils import epy

from mixer.config import command_line, help_text
from mixer.data import class_names, sources
from mixer.data.folders import folder_report
from mixer.data.folders.image_files import IMAGE_SUFFIXES, files_bytes
from mixer.data.folders.listing import readable
from mixer.data.pixels import image_status
from mixer.runtime import bucket, files, json_text
from mixer.runtime.errors import UserError
from mixer.transfer import download

with epy.lazy_imports():  # they import JAX, for which --help does not wait
    import jax

    from mixer.evaluation import evaluator
    from mixer.runtime import devices
    from mixer.training import losses
    from mixer.training import step as training_step
    from mixer.transfer import loading

if TYPE_CHECKING:
    from mixer.transfer.weights import Weights

_OTHER_PICTURES = (".heic", ".heif", ".jxl", ".cr2", ".nef", ".arw", ".dng", ".psd", ".svg")  # which no one reads here
_MANY = 100  # with more images, a progress bar is shown


class Prediction(NamedTuple):
    """What the model predicts for an image.

    Attributes:
      path: of the image.
      top: class numbers and their probabilities, the most probable first; empty if the image cannot be used.
      error: why the image cannot be used; empty if it can.
    """

    path: str
    top: list[tuple[int, float]]
    error: str


def predict(weights: Weights, paths: Sequence[str], *, top: int, batch_size: int) -> Iterator[list[Prediction]]:
    """Yields the predictions for one batch of images after the other, in order. All devices compute.

    Args:
      weights: of a model with a head.
      paths: image files, local or gs://.
      top: how many classes to return for each image; at most the number of classes.
      batch_size: the most images at a time; rounded up to a multiple of the number of devices.
    """
    model, mesh = weights.model(), devices.make_mesh()
    batch_size = -(-min(batch_size, len(paths)) // mesh.size) * mesh.size
    config = weights.images()
    context = evaluator.Context(model, None, "", config, mesh, batch_size, download.cache_folder(), light=True)
    params = jax.device_put(weights.params, devices.replicated(mesh))
    step = _make_step(weights, mesh, top)

    def fetch(numbers: np.ndarray) -> list[sources.Example]:
        return [sources.Example(image, ()) for image in files_bytes([paths[n] for n in numbers])]

    remote = any(map(bucket.is_remote, paths))
    source = sources.Source(len(paths), class_names=(), max_labels=1, multi_label=False, fetch=fetch, remote=remote)
    batches = evaluator.split_batches(source, config, context)
    for start, batch in zip(range(0, len(paths), batch_size), batches, strict=True):
        probabilities, classes = jax.device_get(step(params, batch["image"]))
        statuses = jax.device_get(batch["status"])
        found = []
        for row, path in enumerate(paths[start : start + batch_size]):  # the last batch is padded
            error = reason(path, int(statuses[row]))
            top_of = [] if error else list(zip(classes[row].tolist(), probabilities[row].tolist(), strict=True))
            found.append(Prediction(path, top_of, error))
        yield found


def _make_step(weights: Weights, mesh: jax.sharding.Mesh, top: int) -> Callable[[Any, jax.Array], Any]:
    """Makes the jitted function from (params, images) to the `top` probabilities and their class numbers."""
    model = weights.model()
    loss = losses.LOSSES[weights.loss]

    def most_probable(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits: Any = training_step.exact_outputs(model, params, images)
        _, classes = jax.lax.top_k(logits, top)  # probabilities near 1 are equal in float32
        return jax.numpy.take_along_axis(loss.probabilities(logits), classes, axis=1), classes

    return jax.jit(most_probable, out_shardings=devices.replicated(mesh))


def reason(path: str, status: int) -> str:
    """Returns why an image cannot be used; empty if it can."""
    if status == image_status.OK:
        return ""
    if status == image_status.BAD_RECORD:
        try:
            return "unreadable" if files.exists(path) else "missing"
        except (OSError, ValueError):  # ValueError: no file can have this name
            return "unreadable"
    return image_status.STATUSES[status].replace("_", " ")


def image_files(given: Sequence[str]) -> tuple[list[str], list[Prediction]]:
    """Returns the given files and, for each given folder, the images below it, sorted and without hidden ones.

    Says on standard error how many pictures of other kinds a folder has.

    Returns:
      The files; and a prediction with an error for each folder without images.

    Raises:
      UserError: there are no files.
    """
    found, empty = [], []
    for path in given:
        try:
            below = _images_below(path) if files.is_folder(path) else [path]
        except (OSError, ValueError):  # reading the file will report the problem
            below = [path]
        found += below
        empty += [] if below else [Prediction(path, [], "holds no images")]
    if not given:
        raise UserError("no images given: name image files or folders of them, such as cat.jpg holiday/")
    if not found:
        folders = " and ".join(prediction.path for prediction in empty)
        raise UserError(f"there are no images in {folders}; looked for {', '.join(IMAGE_SUFFIXES)}")
    return found, empty


def _images_below(top: str) -> list[str]:
    names = bucket.listing(top) if bucket.is_remote(top) else _files_below(top)
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    images = [name for name in shown if name.lower().endswith(IMAGE_SUFFIXES)]
    endings = (os.path.splitext(name)[1].lower() for name in set(shown) - set(images))
    if others := collections.Counter(ending for ending in endings if ending in _OTHER_PICTURES):
        print(f"{readable(top)}: left out {folder_report.with_other_endings(others)}", file=sys.stderr)
    return sorted(os.path.join(top, name) for name in images)


def _files_below(top: str) -> Iterator[str]:
    """Yields the files below a local folder, relative to it. Links to folders are followed, to each folder once."""
    seen = {os.path.realpath(top)}
    for root, folders, names in os.walk(top, followlinks=True):
        real = {name: os.path.realpath(os.path.join(root, name)) for name in folders}
        # walk enters only the folders that are left here
        folders[:] = [name for name in folders if name[0] != "." and real[name] not in seen]
        seen.update(real[name] for name in folders)
        yield from (os.path.relpath(os.path.join(root, name), top) for name in names)


def names_for(weights: Weights, file: str | None) -> list[str]:
    """Returns a name for each class.

    The names are those in the file. Without a file they are the weights' own; or, if these have none, those of a
    published dataset with this number of classes; or else the class numbers.

    Raises:
      UserError: the number of names is not the number of classes.
    """
    num_classes = weights.model().num_classes
    names = class_names.read_names(file) if file else weights.class_names
    if names is None:
        names = class_names.published(num_classes)
        if names is None:
            return [f"class {number}" for number in range(num_classes)]
        dataset = class_names.PUBLISHED[num_classes]
        print(
            f"class names: those of {dataset}, chosen by the number of classes; --classes gives others",
            file=sys.stderr,
        )
    if len(names) != num_classes:
        raise UserError(
            f"--classes {file} has {len(names):,} names, the model {num_classes:,} classes: give one name a line"
        )
    return class_names.readable(names)


# ------------------------------------------------------------------------------------------------------- command line


def define_flags() -> None:
    """Defines the command's flags."""
    command_line.define_checkpoint_flags("--checkpoint B/16-i1k cat.jpg")
    with help_text.group("What is printed", "--checkpoint runs/pets cat.jpg holiday/ --top 3 --json"):
        flags.DEFINE_integer("top", 5, "How many classes to name.")
        flags.DEFINE_bool("json", False, "Print a line of JSON for each image.")
        flags.DEFINE_string(
            "classes", None, "A text file with the classes' names, one a line; the model's own if not given."
        )
        flags.DEFINE_integer("batch_size", 64, "The most images at a time, over all devices.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    checkpoint = command_line.checkpoint()
    for name, value in (("top", given.top), ("batch_size", given.batch_size)):
        if value < 1:
            raise UserError(f"--{name}={value}: expected at least 1")
    paths, empty = image_files(argv[1:])
    weights = loading.load(checkpoint, given.ema)
    num_classes = weights.model().num_classes
    if num_classes == 0:
        raise UserError(
            f"{weights.source} has no head, so no classes to name: fine-tune it first (configs/finetune.py)"
        )
    names = names_for(weights, given.classes)

    logging.getLogger("mixer.data").setLevel(logging.ERROR)  # images that cannot be used are reported here
    predictions = predict(weights, paths, top=min(given.top, num_classes), batch_size=given.batch_size)
    total = len(paths) + len(empty)
    bad = _print_all(itertools.chain([empty], predictions), total, names, given.json)
    if bad:
        raise UserError(f"{bad:,} of {total:,} images could not be used")


def _print_all(batches: Iterable[Sequence[Prediction]], total: int, names: Sequence[str], as_json: bool) -> int:
    """Prints all predictions, with a progress bar if there are many. Returns how many images cannot be used.

    If the reader of standard output has closed it, as `head` does, it returns 0 at once.
    """
    bad, hidden = 0, total <= _MANY or not sys.stderr.isatty()
    with tqdm.tqdm(total=total, unit=" images", leave=False, disable=hidden) as progress:
        for batch in batches:
            with tqdm.tqdm.external_write_mode():  # hides the bar while lines are printed
                try:
                    bad += _print(batch, names, as_json)
                except BrokenPipeError:
                    # Python flushes standard output at exit, and would report the broken pipe again.
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                    return 0
            progress.update(len(batch))
    return bad


def _print(batch: Sequence[Prediction], names: Sequence[str], as_json: bool) -> int:
    """Prints predictions; on standard error, images that cannot be used. Returns the number of these images."""
    for prediction in batch:
        if prediction.error:
            print(f"skipped {prediction.path}: {prediction.error}", file=sys.stderr)
        if as_json:
            print(json_line(prediction, names), flush=True)
        elif not prediction.error:
            print(text(prediction, names), flush=True)
    return sum(bool(prediction.error) for prediction in batch)


def text(prediction: Prediction, names: Sequence[str]) -> str:
    """Returns a line with the path, and one for each class."""
    path = os.fsencode(prediction.path).decode(errors="replace")  # file names need not be valid text
    return "\n".join([path, *(f"{share:10.2%}  {names[number]}" for number, share in prediction.top)])


def json_line(prediction: Prediction, names: Sequence[str]) -> str:
    """Returns the prediction as one line of JSON, with six digits of each probability."""
    if prediction.error:
        return json_text.dumps({"image": prediction.path, "error": prediction.error})
    top = [{"class": names[number], "probability": float(f"{share:.6g}")} for number, share in prediction.top]
    return json_text.dumps({"image": prediction.path, "top": top})


def run() -> None:
    """Runs the command and exits."""
    command_line.run(main, define_flags, arguments="IMAGE|FOLDER ...")


if __name__ == "__main__":
    run()
