"""The weights of a trained model, checked by their names and shapes. `loading.py` reads them."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict, FrozenConfigDict

from mixer import models
from mixer.config import checks, recipe
from mixer.config.settings import SETTINGS
from mixer.data.class_names import readable
from mixer.models import layers, mlp_mixer
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime.errors import UserError
from mixer.training import losses
from mixer.transfer import published, resolution
from mixer.transfer.format import CARRIED, Exported
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
      averaged: whether they are the averaged parameters of their run.
      workdir: the folder of their run.
      carried: the settings of `format.CARRIED` that a file has, by dotted name; None if it has none, or of a run.
      resized_from: the image size in pixels that they were for, if they were brought to another one.
      size: the image size in pixels that a convolutional network's weights were brought to; None for all others.
    """

    params: Any
    source: str
    config: FrozenConfigDict | None = None
    class_names: list[str] | None = None
    step: int | None = None
    workdir: epath.Path | None = None
    resized_from: int | None = None
    carried: Mapping[str, Any] | None = None
    size: int | None = None
    averaged: bool = False

    @property
    def called(self) -> str:
        """What a text calls them: a run's averaged parameters, or its weights."""
        return "averaged parameters" if self.averaged else "weights"

    @property
    def settings(self) -> dict[str, Any]:
        """What is known of the loss and of `config.input`, by dotted name: of the run, or what a file carries."""
        if self.config is None:
            return dict(self.carried or {})
        known = checks.flat(ConfigDict(self.config))
        wanted = (name for name in SETTINGS if name == "loss" or name.startswith("input."))
        return {name: known[name] for name in wanted if name in known}  # a run of an earlier version has not all

    @property
    def loss(self) -> str:
        """The loss by which logits become probabilities: a key of `losses.LOSSES`."""
        return str(self.settings.get("loss", "softmax_xent"))

    def model(self) -> models.Model:
        """Returns the model of these parameters. A Mixer's widths follow from their names and shapes.

        What does not follow from shapes, such as the token mixings of the paper's Appendix A.1, is as in the run's
        config, and the paper's in a file. A run's ViT or BiT is that of its config.

        Raises:
          UserError: they are not the parameters of this model; lists what is wrong.
        """
        of_run, model = self._model_of_run, self._as_configured
        if model is None:
            model = self._model_by_lengths().clone(**(of_run.options if isinstance(of_run, MlpMixer) else {}))
        try:
            size = self.image_size
        except ValueError as error:
            raise UserError(f"{self.source}: {error}") from None
        if wrong := mismatches(self.params, _shapes(model, size)):
            raise UserError(
                f"{self.source} looks like {models.name_of(model)}, but does not match it: {'; '.join(wrong)}"
            )
        return model

    def mixer(self) -> MlpMixer:
        """Returns the model of these parameters, which has to be a Mixer.

        Raises:
          UserError: it is another model, or `model` raises it.
        """
        model = self.model()
        if not isinstance(model, MlpMixer):
            raise UserError(
                f"{self.source} is a run of {models.name_of(model)}, and this takes a Mixer; mixer.evaluate, "
                "mixer.predict, mixer.load and config.init_from take other models too"
            )
        return model

    @property
    def _model_of_run(self) -> models.Model | None:
        """The model of the run's config; None for weights that are not a run's."""
        if self.config is None:
            return None
        return model_of_run(self.config, len(self.params.get("head", {}).get("bias", ())), self.source)

    @property
    def _as_configured(self) -> models.Model | None:
        """The model of the run's config, if lengths of arrays do not give it: not of the paper's Mixer."""
        model = self._model_of_run
        return None if isinstance(model, MlpMixer) and not model.ablation else model

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

    def shown_names(self) -> list[str]:
        """Returns a name for each class to show to people: its number, if the names are unknown."""
        return readable(self.class_names or [str(number) for number in range(self.model().num_classes)])

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
        model = self.mixer()
        has_tanh_gelu = self.config is not None or self.carried is not None or self.published_as != ""
        return Exported(
            self.params, model, self.image_size, has_tanh_gelu, self.images(), self.class_names,
            probabilities=losses.LOSSES[self.loss].assumes if model.num_classes else "",
            carried={name: self.settings[name] for name in CARRIED if name in self.settings} or None,
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
        if not isinstance(model, MlpMixer):
            with contextlib.suppress(ValueError):  # its patches do not tile the image
                if not mismatches(self.params, _shapes(model, image_size)):  # a convolutional network takes any size
                    return dataclasses.replace(self, size=image_size)
            raise UserError(
                f"{self.source} ({models.name_of(model)}) has weights for images of {size} pixels, which cannot be "
                f"brought to image_size={image_size}: Appendix C of the paper extends Mixers only"
            )
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
        if self.size is not None:
            return self.size
        if self.config is not None and self._as_configured is not None:
            return int(self.config.input.image_size)
        return len(self.params["stem"]["kernel"]) * resolution.grid_of(self.params)


# Attributes of a model, and the arrays whose length is their value. Of dense layers these are the biases, so that a
# transposed kernel is reported by its name instead of changing the model.
_LENGTHS = {
    "tokens": "MixerBlock_0/token_mixing/Dense_1/bias",  # gives the image size
    "patch_size": "stem/kernel",
    "hidden_dim": "stem/bias",
    "tokens_mlp_dim": "MixerBlock_0/token_mixing/Dense_0/bias",
    "channels_mlp_dim": "MixerBlock_0/channel_mixing/Dense_0/bias",
}


def model_of_run(config: FrozenConfigDict, num_classes: int, source: str) -> models.Model:
    """Returns the model of a run's config; what changes its speed alone is left out.

    Args:
      config: of the run.
      num_classes: width of the head; 0 for none.
      source: what a message calls the run.

    Raises:
      UserError: this version has no such model.
    """
    given = {name: value for name, value in config.model.items() if name not in mlp_mixer.SAME_FUNCTION}
    try:
        model: models.Model = models.create(num_classes=num_classes, **given)
    except ValueError as error:
        raise UserError(f"{source} is a run of another version of this project: {error}") from None
    return model


_shapes = functools.cache(models.shapes)  # the model of the same weights is asked for several times
