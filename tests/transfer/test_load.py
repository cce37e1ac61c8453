"""An earlier run's parameters as the start of a new one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixer import models
from mixer.errors import UserError
from mixer.training import sharding
from mixer.training.checkpoint import Checkpoints
from mixer.training.step import TrainState
from mixer.transfer.load import fitted, initial_params


def make_params(classes, seed, pixels=8, **widths):
    """Random parameters of a small Mixer."""
    sizes = {"num_blocks": 1, "hidden_dim": 16, "tokens_mlp_dim": 12, "channels_mlp_dim": 24, **widths}
    model = models.create("Ti/4", classes, **sizes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, pixels, pixels, 3)))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def make_state(params, ema=False):
    """A fresh state of these parameters on all devices, and its shardings."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optax.trace(0.9).init(params),
        ema_params=params if ema else None, bad_images=jnp.zeros(7, jnp.int32),
    )  # fmt: skip
    shardings = sharding.state_sharding(jax.eval_shape(lambda: state), sharding.make_mesh(), "data_parallel")
    return jax.device_put(state, shardings), shardings


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The folder of a run of five classes, and its parameters."""
    folder, params = tmp_path_factory.mktemp("earlier"), make_params(5, seed=1)
    checkpoints = Checkpoints(folder, 1, 0, 0)
    checkpoints.save(make_state(params)[0], {})
    checkpoints.close()
    return folder, params


@pytest.mark.parametrize("classes", [5, 3])
@pytest.mark.parametrize("ema", [False, True])
def test_a_run_starts_from_an_earlier_ones_parameters(earlier, classes, ema):
    folder, before = earlier
    fresh, shardings = make_state(make_params(classes, seed=2), ema)
    state = initial_params(fresh, folder, shardings)
    expected = before if classes == 5 else {**before, "head": fresh.params["head"]}
    assert same(state.params, expected)
    assert not same(state.params, fresh.params)
    assert (state.ema_params is None) if not ema else same(state.ema_params, expected)
    assert int(state.step) == 0
    assert same(state.opt_state, fresh.opt_state)
    for leaf, place in zip(jax.tree.leaves(state.params), jax.tree.leaves(shardings.params), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_the_state_can_be_donated(earlier):
    """The step gives its buffers away: parameters and their average must not share one."""
    fresh, shardings = make_state(make_params(3, seed=2), ema=True)
    state = initial_params(fresh, earlier[0], shardings)
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 1, s), donate_argnums=0)(state))


@pytest.mark.parametrize("missing", ["folder", "checkpoints"])
def test_a_folder_that_is_not_a_run_is_refused(tmp_path, missing):
    state, shardings = make_state(make_params(5, seed=2))
    folder = tmp_path / "nowhere" if missing == "folder" else tmp_path
    with pytest.raises(UserError, match="holds no checkpoint with params that can be read; give the --workdir of"):
        initial_params(state, folder, shardings)


def test_every_mismatch_is_named_in_one_line():
    loaded = make_params(5, seed=1, num_blocks=2, tokens_mlp_dim=6)
    params = make_params(3, seed=2, pixels=16)
    with pytest.raises(UserError) as caught:
        fitted(loaded, params, source="runs/b16")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("config.init_from='runs/b16' does not fit this model: ")
    listed = set(line.partition("this model: ")[2].split("; "))
    block, second = "MixerBlock_0/token_mixing", "MixerBlock_1"
    assert {item for item in listed if not item.startswith(second)} == {
        f"{block}/Dense_0/kernel: (4, 6) there, (16, 12) here",
        f"{block}/Dense_0/bias: (6,) there, (12,) here",
        f"{block}/Dense_1/kernel: (6, 4) there, (12, 16) here",
        f"{block}/Dense_1/bias: (4,) there, (16,) here",
    }
    names = ["/".join(key.key for key in path) for path, _ in jax.tree.leaves_with_path(loaded[second])]
    unexpected = {f"{second}/{name}: not in this model" for name in names}
    assert {item for item in listed if item.startswith(second)} == unexpected


def test_missing_parameters_are_named():
    params = make_params(5, seed=1)
    loaded = {key: value for key, value in params.items() if key not in ("stem", "head")}
    with pytest.raises(UserError, match="head/bias: missing there; head/kernel: missing there; stem/bias: missing the"):
        fitted(loaded, params, source="runs/b16")


def test_a_head_that_only_one_of_the_models_has_is_named():
    with_head, without = make_params(5, seed=1), make_params(0, seed=1)
    with pytest.raises(UserError, match="head/bias: not in this model; head/kernel: not in this model"):
        fitted(with_head, without, source="runs/b16")


def test_nothing_is_taken_from_the_fresh_model_when_all_fits():
    loaded, params = make_params(5, seed=1), make_params(5, seed=2)
    assert same(fitted(loaded, params, source="runs/b16"), loaded)
