"""Names what is in pictures: `python -m mixer.predict --checkpoint runs/pets cat.jpg holiday/ --top 3`.

Images are decoded, resized and cropped as the run's evaluation does it, and the model computes in float32 whatever it
was trained in. Probabilities are a softmax over the classes, or, for a run trained with sigmoid cross-entropy, one for
each class: each decides for itself, and they need not add up to one.
"""

import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import tqdm
from absl import flags
from etils import epath, epy

from mixer.config import command_line, recipe
from mixer.data import class_names, folder, image_status
from mixer.runtime import devices
from mixer.runtime.errors import UserError
from mixer.training.step import normalize
from mixer.transfer import weights as transfer_weights
from mixer.transfer.weights import Weights

with epy.lazy_imports():  # they bring TensorFlow, for which neither --help nor an error in the command line waits
    from mixer.data import folder, sources
    from mixer.evaluation import evaluator

_MANY = 100  # images, above which a progress bar is worth a line


class Prediction(NamedTuple):
    """What the model sees in an image.

    Attributes:
      path: of the image.
      top: class numbers and their probabilities, the likeliest first; empty where the image cannot be used.
      error: why it cannot be used; empty where it can.
    """

    path: str
    top: list[tuple[int, float]]
    error: str


def predict(weights: Weights, paths: Sequence[str], *, top: int, batch_size: int) -> Iterator[list[Prediction]]:
    """Yields the predictions of one batch of images after another, in order. All devices compute.

    Args:
      weights: of a model with a head.
      paths: image files, local or gs://.
      top: how many classes to name, at most as many as there are.
      batch_size: the most images at a time; rounded up to a multiple of the number of devices.
    """
    model, mesh = weights.model(), devices.make_mesh()
    batch_size = -(-min(batch_size, len(paths)) // mesh.size) * mesh.size
    config = input_config(weights)
    context = evaluator.Context(model, None, "", config, mesh, batch_size, transfer_weights.cache_folder())
    params = jax.device_put(weights.params, devices.replicated(mesh))
    step = _make_step(weights, mesh, top)

    def fetch(numbers: np.ndarray) -> list[sources.Example]:
        return [sources.Example(folder.file_bytes(paths[n]), ()) for n in numbers]

    source = sources.Source(len(paths), class_names=(), max_labels=1, multi_label=False, fetch=fetch)
    batches = evaluator.split_batches(source, config, context)
    for start, batch in zip(range(0, len(paths), batch_size), batches, strict=True):
        probabilities, classes = jax.device_get(step(params, batch["image"]))
        statuses = jax.device_get(batch["status"])
        found = []
        for row, path in enumerate(paths[start : start + batch_size]):  # the last batch has more rows than images
            error = _reason(path, int(statuses[row]))
            top_of = [] if error else list(zip(classes[row].tolist(), probabilities[row].tolist(), strict=True))
            found.append(Prediction(path, top_of, error))
        yield found


def _make_step(weights: Weights, mesh: jax.sharding.Mesh, top: int) -> Callable[[Any, jax.Array], Any]:
    """Makes the jitted function from (params, images) to the `top` probabilities and their class numbers."""
    model = weights.model()
    link = jax.nn.sigmoid if weights.config is not None and weights.config.loss == "sigmoid_xent" else jax.nn.softmax

    def likeliest(params: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        # By default, TPUs and GPUs round the factors of float32 products to fewer bits.
        with jax.default_matmul_precision("float32"):
            logits: Any = model.apply({"params": params}, normalize(pixels))
        probabilities, classes = jax.lax.top_k(link(logits), top)
        return probabilities, classes

    return jax.jit(likeliest, out_shardings=devices.replicated(mesh))


def input_config(weights: Weights) -> ml_collections.ConfigDict:
    """The `config.input` by which the images are cut: the run's own where the weights are a run's."""
    config = recipe.base().input
    config.image_size = weights.image_size
    if weights.config is not None:
        for name in ("eval_crop", "eval_resize", "max_pixels"):
            config[name] = weights.config.input[name]
    return config


def _reason(path: str, status: int) -> str:
    """Why an image cannot be used; empty if it can."""
    if status == image_status.OK:
        return ""
    if status == image_status.BAD_RECORD:
        try:
            return "unreadable" if epath.Path(path).exists() else "missing"
        except Exception:  # each file system has exceptions of its own
            return "unreadable"
    return image_status.STATUSES[status].replace("_", " ")


def image_files(given: Sequence[str]) -> tuple[list[str], list[Prediction]]:
    """The files among these paths, and in place of each folder all images below it, sorted; hidden ones not.

    Returns:
      The files, and what is said of folders that hold no images.

    Raises:
      UserError: there are no files.
    """
    found, empty = [], []
    for path in given:
        try:
            below = _images_below(epath.Path(path)) if epath.Path(path).is_dir() else [path]
        except Exception:  # each file system has exceptions of its own; whoever reads the file tells of it
            below = [path]
        found += below
        empty += [] if below else [Prediction(path, [], "holds no images")]
    if not given:
        raise UserError("no images given: name image files or folders of them, such as cat.jpg holiday/")
    if not found:
        folders = " and ".join(folder.path for folder in empty)
        raise UserError(f"there are no images in {folders}; looked for {', '.join(folder.IMAGE_SUFFIXES)}")
    return found, empty


def _images_below(folder: epath.Path) -> list[str]:
    found = []
    for root, folders, files in folder.walk():
        folders[:] = [name for name in folders if name[0] != "."]  # walk does not enter what is taken out
        names = (name for name in files if name[0] != "." and name.lower().endswith(folder.IMAGE_SUFFIXES))
        found += [os.fspath(root / name) for name in names]
    return sorted(found)


def names_for(weights: Weights, file: str | None) -> list[str]:
    """A name for each class: from the file, else the run's, else by their number, else that number alone.

    Raises:
      UserError: there are not as many names as classes.
    """
    num_classes = weights.model().num_classes
    names = class_names.read_names(file) if file else weights.class_names
    if names is None:
        names = class_names.published(num_classes)
        if names is None:
            return [f"class {number}" for number in range(num_classes)]
        name = class_names.PUBLISHED[num_classes]
        print(
            f"class names: those of {name}, taken from the number of classes; --classes gives others", file=sys.stderr
        )
    if len(names) != num_classes:
        where = f"--classes {file}" if file else f"classes.txt of {weights.source}"
        raise UserError(f"{where} has {len(names):,} names, the model {num_classes:,} classes: give one name a line")
    return class_names.readable(names)


# ------------------------------------------------------------------------------------------------------- command line


def define_flags() -> None:
    """The command's flags."""
    command_line.define_checkpoint_flags()
    flags.DEFINE_integer("top", 5, "How many classes to name.")
    flags.DEFINE_bool("json", False, "A line of JSON for each image.")
    flags.DEFINE_string("classes", None, "A text file with the classes' names, one a line; the run's if not given.")
    flags.DEFINE_integer("batch_size", 64, "The most images at a time, over all devices.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    checkpoint = command_line.checkpoint()
    for name, value in (("top", given.top), ("batch_size", given.batch_size)):
        if value < 1:
            raise UserError(f"--{name}={value}: expected at least 1")
    paths, empty = image_files(argv[1:])
    weights = transfer_weights.read(checkpoint, given.ema)
    num_classes = weights.model().num_classes
    if num_classes == 0:
        raise UserError(
            f"{weights.source} has no head, so no classes to name: fine-tune it first (configs/finetune.py)"
        )
    names = names_for(weights, given.classes)

    logging.getLogger("mixer.data").setLevel(logging.ERROR)  # each image that cannot be used is told of here
    bad, total = 0, len(paths) + len(empty)
    hidden = total <= _MANY or not sys.stderr.isatty()
    answers = predict(weights, paths, top=min(given.top, num_classes), batch_size=given.batch_size)
    with tqdm.tqdm(total=total, unit=" images", leave=False, disable=hidden) as progress:
        for batch in itertools.chain([empty], answers):
            with tqdm.tqdm.external_write_mode():  # the bar makes room
                try:
                    bad += _show(batch, names, given.json)
                except BrokenPipeError:  # who reads has read enough, as `head` does
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
                    return
            progress.update(len(batch))
    if bad:
        raise UserError(f"{bad:,} of {total:,} images could not be used")


def _show(batch: Sequence[Prediction], names: Sequence[str], as_json: bool) -> int:
    """Prints predictions, and on standard error which images cannot be used; returns the number of these."""
    for found in batch:
        if found.error:
            print(f"skipped {found.path}: {found.error}", file=sys.stderr)
        if as_json:
            print(json_line(found, names), flush=True)
        elif not found.error:
            print(text(found, names), flush=True)
    return sum(bool(found.error) for found in batch)


def text(prediction: Prediction, names: Sequence[str]) -> str:
    """A line with the path, and one for each class."""
    path = os.fsencode(prediction.path).decode(errors="replace")  # a file's name need not be text
    return "\n".join([path, *(f"{share:10.2%}  {names[number]}" for number, share in prediction.top)])


def json_line(prediction: Prediction, names: Sequence[str]) -> str:
    """The prediction as one line of JSON; six digits of each probability."""
    if prediction.error:
        return json.dumps({"image": prediction.path, "error": prediction.error})
    top = [{"class": names[number], "probability": float(f"{share:.6g}")} for number, share in prediction.top]
    return json.dumps({"image": prediction.path, "top": top})


if __name__ == "__main__":
    command_line.run(main, define_flags, takes_arguments=True)
