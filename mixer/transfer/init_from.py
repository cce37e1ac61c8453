"""config.init_from: a run starts from given weights. They are fitted to its model and placed on its devices."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from mixer import models
from mixer.config import checks
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime.errors import UserError
from mixer.training import facts
from mixer.training.step import TrainState
from mixer.transfer.loading import load
from mixer.transfer.mismatch import mismatches
from mixer.transfer.weights import Weights


def with_token_width(
    config: ml_collections.ConfigDict, weights: Weights | None, before: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns the config with the model.tokens_mlp_dim of the weights, if the config does not set it.

    Weights that were extended to a larger image size have wider token-mixing MLPs than their variant.

    Args:
      config: of the run.
      weights: those of config.init_from, at the run's image size. None if the run has a checkpoint: its weights may
        have been deleted.
      before: the settings of a run that has one, by name (see `history.settings`).
    """
    if not config.init_from or config.model.tokens_mlp_dim is not None:
        return config
    is_mixer = isinstance(models.create(num_classes=0, **config.model), MlpMixer)
    of_before = getattr(weights.model(), "tokens_mlp_dim", None) if weights else before.get("model.tokens_mlp_dim")
    width = of_before if is_mixer else None
    if width is None:
        return config
    config = checks.unlocked_copy(config)
    config.model.tokens_mlp_dim = width
    return config.lock()


def loaded(config: ml_collections.ConfigDict) -> Weights:
    """Returns the weights that a config names, at its image size.

    Raises:
      UserError: they cannot be read, or cannot be brought to this size.
    """
    weights = load(config.init_from, config.init_ema)
    return weights.at_image_size(config.input.image_size, config.resize)


def noted(weights: Weights) -> dict[str, str | int | None]:
    """Returns what a run's history says of the weights from which it starts."""
    return {"source": weights.source, "step": weights.step, "digest": facts.digest_of_weights(weights.params)}


class Head(NamedTuple):
    """What becomes of the weights' head.

    Attributes:
      kept: whether the run starts with it, and not with a new one.
      said: this and the reason in words.
    """

    kept: bool
    said: str


def head_of(weights: Weights, class_names: Sequence[str]) -> Head:
    """Decides whether a run starts with the head of these weights: if the classes are the same, as far as is known.

    Args:
      weights: of a whole model.
      class_names: of the run's data.
    """
    theirs, ours = weights.class_names, list(class_names)
    count = weights.model().num_classes
    if count == 0:
        return Head(False, f"a new head for {len(ours):,} classes: the weights have none")
    if count != len(ours):
        return Head(False, f"a new head: {count:,} classes there, {len(ours):,} here")
    if theirs is None:
        return Head(
            True, f"the head is kept: the weights do not name their {count:,} classes, which are as many as here"
        )
    if theirs == ours and all(name.isdigit() for name in ours):  # TFDS calls classes without names so
        return Head(True, f"the head is kept: {count:,} classes there and here, which are only numbered")
    if theirs == ours:
        return Head(True, f"the head is kept: the same {count:,} classes")
    if sorted(theirs) == sorted(ours):
        return Head(False, "a new head: the classes are in another order")
    number, there, here = next((n, a, b) for n, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return Head(False, f"a new head: the classes differ (class {number} is {there!r} there, {here!r} here)")


# Settings on which the meaning of a pixel depends. Fine-tuning may have any crop, size or loss.
_PIXELS = ("input.transparent", "input.exif", "input.permutation", "input.permutation_patch", "input.permutation_seed")


def other_pixels(weights: Weights, config: ml_collections.ConfigDict) -> str:
    """Returns how a run's images differ from those that the weights have seen, in words that follow others; or ""."""
    here = checks.flat(ml_collections.ConfigDict(config))
    there = {name: value for name, value in weights.settings.items() if name in _PIXELS and value != here[name]}
    said = "".join(f"; their {name} was {value}, here it is {here[name]}" for name, value in there.items())
    size = weights.settings.get("input.image_size", config.input.image_size)
    permuted = weights.settings.get("input.permutation") == config.input.permutation != "none"
    if permuted and size != config.input.image_size:
        said += f"; their pixels were permuted at {size} pixels, which says nothing of the order at another size"
    return said


def other_function(weights: Weights, model: models.Model) -> str:
    """Returns how a run's model differs from the weights' where shapes do not, in words that follow others; or ""."""
    before = weights.model()
    if not (isinstance(model, MlpMixer) and isinstance(before, MlpMixer)):
        return ""
    there = {name: value for name, value in before.options.items() if value != model.options[name]}
    return "".join(f"; their {name} was {value}, here it is {model.options[name]}" for name, value in there.items())


def with_weights(
    state: TrainState, weights: Weights, class_names: Sequence[str], shardings: TrainState, *, model: str
) -> TrainState:
    """Returns a new state with these weights as its parameters. The head stays new unless `head_of` keeps theirs.

    Args:
      state: with new parameters.
      weights: at the image size of the run.
      class_names: of the run's data.
      shardings: of the state.
      model: the run's model in words, as `Weights.described` has them.

    Raises:
      UserError: arrays other than the head do not fit.
    """
    params = fitted(weights, state.params, model=model, keep_head=head_of(weights, class_names).kept)
    return with_params(state, params, shardings)


def with_params(state: TrainState, params: Any, shardings: TrainState) -> TrainState:
    """Returns a new state with these parameters, placed on the devices; `shardings` are those of the state."""
    # Parameters and their average are separate copies: the step donates both, and no buffer can be donated twice.
    place = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.params)
    ema_params = None if state.ema_params is None else place(params)
    return state.replace(params=place(params), ema_params=ema_params)


def fitted(weights: Weights, params: Any, *, model: str, keep_head: bool = True) -> Any:
    """Returns the parameters of the weights for a model with the parameters `params`; `model` describes it in words.

    The head is that of `params` if its shape differs or `keep_head` is False.

    Raises:
      UserError: arrays outside the head are missing, unexpected or of another shape; lists all of them.
    """
    loaded, head = weights.params, params.get("head")
    if head and not (keep_head and jax.tree.map(jnp.shape, loaded.get("head")) == jax.tree.map(jnp.shape, head)):
        loaded = {**loaded, "head": head}
    if wrong := mismatches(loaded, params):
        before = ""
        if weights.resized_from:
            width = f"config.model.tokens_mlp_dim={weights.mixer().tokens_mlp_dim}"
            before = f" (brought from {weights.resized_from}, which makes {width})"
        raise UserError(
            f"config.init_from={weights.source!r} does not fit this model: it is {weights.described()}{before}, the "
            f"model is {model}: {'; '.join(wrong)}"
        )
    return loaded
