"""The Python interface, which `import mixer` offers: `mixer.load`, `mixer.create` and the model that they return."""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import numpy.typing as npt

from mixer import models, predict
from mixer.config import recipe
from mixer.data import plain_images
from mixer.data.folders import image_files
from mixer.data.pixels import image_status
from mixer.runtime import files
from mixer.training.step import exact_outputs
from mixer.transfer import loading

_AT_ONCE = 64  # images that are computed at a time, which bounds the memory


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model and its parameters.

    Attributes:
      module: the Flax module. `module.apply({"params": params}, x)` takes float32 [n, height, width, 3] in [-1, 1].
      params: nested float32 arrays.
      image_size: height and width of its images in pixels.
      class_names: a name for each logit; None if they are unknown.
    """

    module: Any
    params: Any
    image_size: int
    class_names: list[str] | None
    _input: ml_collections.ConfigDict

    def __repr__(self) -> str:
        parameters = models.num_parameters(self.params)
        classes = f"{self.module.num_classes:,} classes" if self.module.num_classes else "no head"
        return f"Model({models.name_of(self.module)}, {self.image_size} pixels, {classes}, {parameters:,} parameters)"

    def read(self, paths: Sequence[str | os.PathLike[str]]) -> np.ndarray:
        """Reads image files, local or gs://, as the model's evaluation does.

        Returns:
          uint8 [n, image_size, image_size, 3].

        Raises:
          TypeError: one path is given, and not a sequence of paths.
          ValueError: an image cannot be used; says which and why.
        """
        if isinstance(paths, str | os.PathLike):
            raise TypeError(f"read takes a list of paths, such as [{os.fspath(paths)!r}]")
        names = [files.expanded(os.fspath(path)) for path in paths]
        found = []
        for name, data in zip(names, image_files.files_bytes(names), strict=True):
            pixels, status = plain_images.eval_image(data, self._input)
            if status != image_status.OK:
                raise ValueError(f"{name}: {_reason(name, status)}")
            found.append(pixels)
        return np.stack(found) if found else np.zeros((0, *self._shape), np.uint8)

    def features(self, images: npt.ArrayLike) -> np.ndarray:
        """Returns what the head gets, float32 [n, channels]: for a Mixer the mean over its tokens.

        Args:
          images: uint8 [n, image_size, image_size, 3], as `read` returns them.

        Raises:
          ValueError: it is another array.
        """
        return self._outputs(self.module.clone(num_classes=0), images)

    def logits(self, images: npt.ArrayLike) -> np.ndarray:
        """Returns the logits, float32 [n, classes].

        Args:
          images: uint8 [n, image_size, image_size, 3], as `read` returns them.

        Raises:
          ValueError: it is another array, or the model has no head.
        """
        if self.module.num_classes == 0:
            raise ValueError("the model has no head, so no logits: ask for its features")
        return self._outputs(self.module, images)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 3

    def _outputs(self, module: Any, images: npt.ArrayLike) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self._shape:
            raise ValueError(f"images are {images.dtype} {[*images.shape]}; expected uint8 {['n', *self._shape]}")
        if not len(images):  # XLA cannot tile an empty batch
            one = jax.ShapeDtypeStruct((1, *self._shape), np.uint8)
            _, width = jax.eval_shape(partial(exact_outputs, module), self.params, one).shape
            return np.empty((0, width), np.float32)
        parts = (images[first : first + _AT_ONCE] for first in range(0, len(images), _AT_ONCE))
        return np.concatenate([_apply(module, self.params, part) for part in parts])


def _reason(path: str, status: int) -> str:
    if status == image_status.BAD_RECORD and files.is_folder(path):
        return f"a folder; give its files, such as sorted(pathlib.Path({path!r}).glob('*.jpg'))"
    return predict.reason(path, status)


_apply = jax.jit(exact_outputs, static_argnums=0)


def load(source: str | os.PathLike[str], *, ema: bool = False) -> Model:
    """Loads a trained model.

    Args:
      source: what `--checkpoint` takes: a run's folder or one of its checkpoints/STEP, a file in `.npz` or
        `.safetensors`, a folder of the Hugging Face Hub, or the name of a published checkpoint, such as "B/16-i1k".
      ema: load the averaged parameters of a run.

    Raises:
      UserError: `source` is none of these, or cannot be read.
    """
    weights = loading.load(os.fspath(source), ema)
    params = jax.device_put(weights.params)  # once, and not at each call
    return Model(weights.model(), params, weights.image_size, weights.class_names, weights.images())


def create(variant: str, num_classes: int, *, image_size: int = 224, seed: int = 0) -> Model:
    """Makes a model with random parameters.

    Args:
      variant: such as "B/16" (Mixer), "ViT-B/16" or "BiT-R50x1".
      num_classes: width of the head, which is zero at first; 0 for none.
      image_size: height and width of its images in pixels.
      seed: of the parameters.

    Raises:
      ValueError: there is no such variant, the image size is not a multiple of its patches, or a number is too small.
    """
    for name, number, least in (("num_classes", num_classes, 0), ("image_size", image_size, 1)):
        if number < least:
            raise ValueError(f"{name}={number}; it must be at least {least}")
    module = models.create(variant, num_classes)
    image = jnp.zeros((1, image_size, image_size, 3))
    params = jax.jit(module.init)(jax.random.key(seed), image)["params"]
    config = recipe.base().input
    config.image_size = image_size
    return Model(module, params, image_size, None, config)
