"""The weights of a trained model: read from a run's folder or from a file, and checked by their names and shapes."""

import contextlib
import dataclasses
import functools
import io
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict, FrozenConfigDict

from mixer import models
from mixer.config import checks, recipe, run_folder
from mixer.config.settings import SETTINGS
from mixer.models import layers, mlp_mixer
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime import bucket, bucket_check, files
from mixer.runtime.errors import UserError, first_line
from mixer.training import history, losses
from mixer.training.checkpoint_reader import load_params
from mixer.transfer import hub, published, resolution
from mixer.transfer.download import downloaded
from mixer.transfer.format import CARRIED, Exported, Format
from mixer.transfer.formats import FORMATS
from mixer.transfer.mismatch import MISSING, mismatches


@dataclasses.dataclass(frozen=True)
class Weights:
    """The parameters of a model, and what is known about them.

    Attributes:
      params: nested float32 NumPy arrays under the names of the published checkpoints.
      source: where they are from, as the user named it.
      config: the config of their run. This, `step` and `workdir` are None if the weights are not those of a run.
      class_names: the names of the classes, from their run or their file; None if unknown.
      step: the step of their checkpoint.
      workdir: the folder of their run.
      carried: the settings of `format.CARRIED` that a file has, by dotted name; None if it has none, or of a run.
      resized_from: the image size in pixels that they were for, if they were brought to another one.
    """

    params: Any
    source: str
    config: FrozenConfigDict | None = None
    class_names: list[str] | None = None
    step: int | None = None
    workdir: epath.Path | None = None
    resized_from: int | None = None
    carried: Mapping[str, Any] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of `format.CARRIED` that are known, by dotted name: those of the run, or of the file."""
        if self.config is None:
            return dict(self.carried or {})
        known = checks.flat(ConfigDict(self.config))
        return {name: known[name] for name in CARRIED if name in known}  # a run of an earlier version has not all

    @property
    def loss(self) -> str:
        """The loss by which logits become probabilities: a key of `losses.LOSSES`."""
        return str(self.settings.get("loss", "softmax_xent"))

    def model(self) -> MlpMixer:
        """Returns the model of these parameters, which follows from their names and shapes.

        Only models of the paper's Appendix A.1 do not follow from shapes alone: their run's config tells them.

        Raises:
          UserError: they are not the parameters of a Mixer; lists what is wrong.
        """
        of_run = self._model_of_run
        if of_run is not None and not isinstance(of_run, MlpMixer):
            raise UserError(f"{self.source} is a run of {models.name_of(of_run)}, which is no Mixer")
        model = self._ablation or self._model_by_lengths()
        try:
            size = self.image_size
        except ValueError as error:
            raise UserError(f"{self.source}: {error}") from None
        if wrong := mismatches(self.params, _shapes(model, size)):
            raise UserError(
                f"{self.source} looks like {models.name_of(model)}, but does not match it: {'; '.join(wrong)}"
            )
        return model

    @property
    def _model_of_run(self) -> models.Model | None:
        """The model of the run's config; None for weights that are not a run's."""
        if self.config is None:
            return None
        given = {name: value for name, value in self.config.model.items() if name in _OPTIONS}
        model: models.Model = models.create(num_classes=len(self.params.get("head", {}).get("bias", ())), **given)
        return model

    @property
    def _ablation(self) -> MlpMixer | None:
        """The model of the run's config, if it is one of Appendix A.1; else None."""
        model = self._model_of_run
        return model if isinstance(model, MlpMixer) and model.ablation else None

    def _model_by_lengths(self) -> MlpMixer:
        """Returns the model whose widths are the lengths of a few arrays; the other arrays are not checked.

        Raises:
          UserError: one of these arrays is missing or empty; lists all arrays that are missing.
        """
        flat = traverse_util.flatten_dict(self.params, sep="/")
        num_blocks = sum(name.startswith("MixerBlock_") for name in self.params)
        has_head = "head/kernel" in flat or "head/bias" in flat
        arrays = {**_LENGTHS, **({"num_classes": "head/bias"} if has_head else {})}
        wrong = []
        if not flat.keys() >= set(arrays.values()):
            # The widths are unknown, but the names of a Mixer's arrays do not depend on them.
            any_widths = MlpMixer(int(has_head), 1, max(num_blocks, 1), 1, 1, 1)
            wrong = [item for item in mismatches(self.params, _shapes(any_widths, 1)) if item.endswith(MISSING)]
        present = [(name, flat[name]) for name in arrays.values() if name in flat]
        wrong += [f"{name} has the shape {array.shape}" for name, array in present if not (array.ndim and array.size)]
        if wrong:
            raise UserError(f"{self.source} is not a Mixer's parameters: {'; '.join(wrong)}")
        widths: dict[str, Any] = {"num_classes": 0} | {width: len(flat[name]) for width, name in arrays.items()}
        del widths["tokens"]
        return MlpMixer(num_blocks=num_blocks, **widths)

    def described(self) -> str:
        """Returns the model in words, such as "Mixer-B/16 for images of 224 pixels"."""
        return f"{models.name_of(self.model())} for images of {self.image_size} pixels"

    @property
    def published_as(self) -> str:
        """The end of a published checkpoint's name, such as "i21k"; empty for all other weights."""
        is_published = self.config is None and self.source in published.PUBLISHED
        return self.source.rpartition("-")[2] if is_published else ""

    def exported(self) -> Exported:
        """Returns what a format needs to know of these weights.

        Raises:
          UserError: they are not the parameters of a Mixer.
        """
        has_tanh_gelu = self.config is not None or self.published_as != ""
        model = self.model()
        loss = losses.LOSSES[self.loss]
        return Exported(
            self.params, model, self.image_size, has_tanh_gelu, self.images(), self.class_names,
            probabilities=loss.probabilities.__name__ if model.num_classes else "", carried=self.settings or None,
        )  # fmt: skip

    def images(self) -> ConfigDict:
        """Returns the `config.input` by which pictures are prepared: as the run or the file says, else the defaults."""
        config = recipe.base()
        config.update_from_flattened_dict(self.settings)
        config.input.image_size = self.image_size
        return config.input

    def at_image_size(self, image_size: int, method: str) -> "Weights":
        """Returns these weights for images of another size.

        Args:
          image_size: in pixels.
          method: a key of `resolution.METHODS`.

        Raises:
          UserError: the method cannot reach this size; says which sizes are possible.
        """
        model, size = self.model(), self.image_size
        if size == image_size:
            return dataclasses.replace(self, resized_from=None)
        if model.ablation:
            raise UserError(
                f"{self.source} ({models.name_of(model)}) has weights for images of {size} pixels, which cannot be "
                f"brought to image_size={image_size}: Appendix C of the paper extends its own token mixing only"
            )
        try:
            layers.check_patches(image_size, image_size, model.patch_size)
            params = resolution.at_grid(self.params, image_size // model.patch_size, method)
        except ValueError:
            raise UserError(
                f"{self.source} ({models.name_of(model)}, patches of {model.patch_size} pixels) has weights for "
                f"images of {size} pixels, which image_size={image_size} does not fit: possible are {size} and its "
                f"multiples ({2 * size}, {3 * size}, ..., Appendix C of the paper), or, beyond the paper, with "
                f"resize=interpolate any multiple of {model.patch_size}"
            ) from None
        return dataclasses.replace(self, params=params, resized_from=size)

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images of this model.

        Raises:
          ValueError: the number of tokens is not a square.
        """
        if self.config is not None and self._ablation is not None:
            return int(self.config.input.image_size)
        return len(self.params["stem"]["kernel"]) * resolution.grid_of(self.params)


# Settings of a run's model on which the parameters depend.
_OPTIONS = ("variant", *mlp_mixer.Variant.__dataclass_fields__, "token_mixing", "token_groups", "pyramid")

# Attributes of a model, and the arrays whose length is their value. Of dense layers these are the biases, so that a
# transposed kernel is reported by its name instead of changing the model.
_LENGTHS = {
    "tokens": "MixerBlock_0/token_mixing/Dense_1/bias",  # gives the image size
    "patch_size": "stem/kernel",
    "hidden_dim": "stem/bias",
    "tokens_mlp_dim": "MixerBlock_0/token_mixing/Dense_0/bias",
    "channels_mlp_dim": "MixerBlock_0/channel_mixing/Dense_0/bias",
}


@functools.cache
def _shapes(model: MlpMixer, image_size: int) -> Any:
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def load(source: str, ema: bool = False) -> Weights:
    """Reads the weights of a model.

    Args:
      source: a run's folder, for its newest checkpoint; one of its checkpoints/STEP; a file in one of the `formats`
        that can be read, such as `.npz`, at a local path, gs:// or https://; a folder of the Hugging Face Hub with
        such a file; or the name of a published checkpoint, such as B/16-i21k.
      ema: read the averaged parameters of a run.

    Raises:
      UserError: `source` is none of these, or cannot be read.
    """
    if folder := _folder(source):
        within = hub.weights_file(folder, source)
        return load(within, ema) if within else _load_run(folder, source, ema)
    if ema:
        raise UserError(f"{source} is not the folder of a run: it has no averaged parameters")
    location = published.PUBLISHED.get(source, source)
    if not (bucket.is_remote(location) or epath.Path(location).expanduser().exists()):
        raise UserError(f"{source!r}: no such file or folder; {published.suggestion(source)}")
    readable = {form.suffix: form for form in FORMATS.values() if form.load is not None}
    suffix = pathlib.PurePath(location).suffix
    if suffix not in readable:
        raise UserError(
            f"{source}: expected a run's folder or a file that ends in {' or '.join(readable)}, not "
            f"{suffix or 'this'!r} (files that hold pickles, such as .pth and .bin, are never loaded)"
        )
    with _opened(location) as file:
        return _load_file(file, source, readable[suffix])


_WEB = ("https://", "http://")


def _folder(source: str) -> epath.Path | None:
    """Returns the path if it is a folder, else None."""
    if source.startswith(_WEB):
        return None
    bucket_check.check(source)
    path = epath.Path(source) if bucket.is_remote(source) else epath.Path(source).expanduser()
    try:
        return path if files.is_folder(path) else None
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be read ({first_line(error)})") from None


def _load_run(path: epath.Path, source: str, ema: bool) -> Weights:
    path, step = run_folder.of_checkpoint(path)
    step, params = load_params(path, ema, step)
    return Weights(
        params=jax.tree.map(np.asarray, params),
        source=source,
        config=run_folder.load_config(path),
        class_names=history.class_names(path, step),
        step=step,
        workdir=path,
    )


def _load_file(file: io.BufferedIOBase, source: str, form: Format) -> Weights:
    assert form.load is not None
    params = form.load(file, source)
    carried = form.load_carried(file) if form.load_carried else None
    names = form.load_class_names(file) if form.load_class_names else None
    biases = traverse_util.flatten_dict(params, sep="/").get("head/bias")
    if names is not None and (biases is None or biases.shape != (len(names),)):
        names = None  # somebody gave the model another head
    return Weights(params, source, class_names=names, carried=_checked(carried))


def _checked(carried: Any) -> dict[str, Any] | None:
    """Returns the settings that a file carries; None if they are not all that this version knows and allows."""
    try:
        for name in CARRIED:
            SETTINGS[name].check(name, carried[name])
        settings = {name: carried[name] for name in CARRIED}
        recipe.base().update_from_flattened_dict(settings)  # raises TypeError for another type
    except (UserError, KeyError, TypeError):
        return None
    return settings


@contextlib.contextmanager
def _opened(location: str) -> Iterator[io.BufferedIOBase]:
    """Opens a file for reading. A file from the web is downloaded first."""
    try:
        if location.startswith(_WEB):
            file: io.BufferedIOBase = downloaded(location).open("rb")
        elif bucket.is_remote(location):
            file = io.BytesIO(files.read_bytes(location))
        else:
            file = pathlib.Path(location).expanduser().open("rb")
    except (OSError, ValueError) as error:
        raise UserError(f"{location} cannot be read ({first_line(error)})") from None
    with file:
        yield file
