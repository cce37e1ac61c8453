"""Weights that do not fit are refused in one line, and the run's folder does not change."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny_run import data_dir, tiny  # noqa: F401

from mixer import models, train
from mixer.config import run_folder
from mixer.runtime.errors import UserError

WRONG_WEIGHTS = {
    "pickle.npz": "is a pickle or no .npz at all, and pickles are never loaded",
    "text.npz": "text.npz cannot be read",
    "missing.npz": "MixerBlock_1/token_mixing/Dense_1/kernel: missing there",
    "transposed.npz": "MixerBlock_0/token_mixing/Dense_0/kernel: (8, 4) there, (4, 8) here",
    "wider.npz": "stem/kernel: (8, 8, 3, 24) there, (8, 8, 3, 16) here",
    "variant.npz": "it is Mixer-3x16/4 for images of 16 pixels, the model is Mixer-2x16/8 for images of 16 pixels: ",
    "patches.npz": "patches.npz (Mixer-2x16/5, patches of 5 pixels) has weights for images of 15 pixels, which image_s",
    "empty": "holds no checkpoint with params that can be read",
    "nothing": "no such file or folder",
    "weights.pth": "files that hold pickles, such as .pth and .bin, are never loaded",
}


def make_weights(
    path: pathlib.Path, hidden: int = 16, blocks: int = 2, patch: int = 8, **changed: np.ndarray | None
) -> str:
    """Saves weights for TINY's model with five classes. `changed` replaces arrays, or leaves them out if None."""
    model = models.create(f"Ti/{patch}", 5, num_blocks=blocks, hidden_dim=hidden, tokens_mlp_dim=8, channels_mlp_dim=32)
    pixels = 16 - 16 % patch
    params = model.init(jax.random.key(1), jnp.zeros((1, pixels, pixels, 3)))["params"]
    flat = traverse_util.flatten_dict(params, sep="/") | changed
    np.savez(path, **{name: array for name, array in flat.items() if array is not None})
    return str(path)


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_one_line_and_change_no_file(data_dir, tmp_path, name):
    path, workdir = tmp_path / name, tmp_path / "run"
    if name == "pickle.npz":
        path.write_bytes(pickle.dumps({"stem/kernel": np.zeros(3)}))
    elif name in ("text.npz", "weights.pth"):
        path.write_text("weights\n")
    elif name == "empty":
        path.mkdir()
    elif name == "missing.npz":
        make_weights(path, **{"MixerBlock_1/token_mixing/Dense_1/kernel": None})
    elif name == "transposed.npz":
        make_weights(path, **{"MixerBlock_0/token_mixing/Dense_0/kernel": np.zeros((8, 4), np.float32)})
    elif name == "wider.npz":
        make_weights(path, hidden=24)
    elif name == "variant.npz":
        make_weights(path, blocks=3, patch=4)
    elif name == "patches.npz":
        make_weights(path, patch=5)
    with pytest.raises(UserError) as caught:
        train.train(tiny(data_dir, init_from=str(path), total_steps=1), workdir)
    assert WRONG_WEIGHTS[name] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (workdir / run_folder.CONFIG_FILE).exists()


def test_weights_that_do_not_fit_change_no_file_of_another_run(data_dir, tmp_path):
    workdir = tmp_path / "run"

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}

    train.train(tiny(data_dir, total_steps=1), workdir)
    before = files()
    assert str(workdir / run_folder.CONFIG_FILE) in before
    bad = make_weights(tmp_path / "wider.npz", hidden=24)
    with pytest.raises(UserError) as caught:
        train.train(tiny(data_dir, init_from=bad, total_steps=2, **{"optimizer.learning_rate": 0.5}), workdir)
    assert "init_from" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files() == before


def test_a_run_can_use_the_folder_of_a_refused_one_and_continue_without_its_weights(data_dir, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match="does not fit this model"):
        train.train(tiny(data_dir, init_from=make_weights(tmp_path / "wider.npz", hidden=24), total_steps=1), workdir)
    right = make_weights(tmp_path / "right.npz")
    config = tiny(data_dir, init_from=right, total_steps=1)
    assert train.train(config, workdir)["val/count"] == 8
    pathlib.Path(right).unlink()
    assert train.train(config, workdir)["val/count"] == 8
