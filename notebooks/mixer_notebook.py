# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # MLP-Mixer from two matrix products
#
# A Mixer sees an image as a table: one row for each patch, one column for each channel.
# It has two kinds of layers. One mixes the rows of the table, the other mixes its columns.
#
# You will build one by hand, check it, train it on handwritten digits, look inside it, and shuffle its patches.
# Everything runs on a CPU in a few minutes and downloads no data.

# %% [markdown]
# ## Install
#
# Where `mixer` is installed, this cell does nothing. On Colab, put the address of the repository in place of
# `REPOSITORY`.

# %%
import importlib.util
import subprocess
import sys

REPOSITORY = "https://REPOSITORY"
if importlib.util.find_spec("mixer") is None:
    package = f"mixer-jax[quickstart] @ git+{REPOSITORY}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %%
import dataclasses
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tensorflow_datasets as tfds
from IPython.display import Image

import mixer
from mixer.analysis import drawings, lens, units
from mixer.config import checks, config_file, recipe
from mixer.runtime.errors import quiet_libraries
from mixer.train import train

quiet_libraries()  # their logs would stand between the lines of training

# %% [markdown]
# ## An image is a table of patches
#
# An image of 32 x 32 pixels has 64 patches of 4 x 4 pixels.
# Each patch has 48 numbers: 16 pixels in three colours.


# %%
def patches(images, side):
    """Cuts images [n, height, width, 3] into patches [n, tokens, numbers], row by row."""
    n, height, width, colours = images.shape
    grid = images.reshape(n, height // side, side, width // side, side, colours).swapaxes(2, 3)
    return grid.reshape(n, -1, side * side * colours)


print("n, tokens, numbers:", patches(np.zeros((1, 32, 32, 3)), 4).shape)

# %% [markdown]
# ## Two matrix products
#
# All layers but the first and the last are of this kind: a matrix product, a smooth step (GELU), and another product.


# %%
def mlp(p, x):
    """Applies two dense layers to the last axis."""
    hidden = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def norm(p, x):
    """Gives the channels of each token mean 0 and variance 1, then scales and shifts them."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


# %% [markdown]
# ## One block
#
# The same MLP is used in two directions. Transposed, it mixes **tokens**: each channel looks over the whole image.
# Not transposed, it mixes **channels**: each token thinks about itself.
# Both add to what was there before.


# %%
def block(p, x):
    """Mixes tokens, then channels. x is [n, tokens, channels]."""
    x = x + mlp(p["token_mixing"], norm(p["LayerNorm_0"], x).swapaxes(1, 2)).swapaxes(1, 2)
    return x + mlp(p["channel_mixing"], norm(p["LayerNorm_1"], x))


# %% [markdown]
# ## The whole model
#
# A matrix turns each patch into channels. The blocks follow. The mean over all tokens goes to a linear classifier.


# %%
def mixer_by_hand(p, images):
    """Maps images [n, height, width, 3] in [-1, 1] to logits [n, classes]."""
    stem = p["stem"]["kernel"]  # [side, side, 3, channels]
    x = patches(images, len(stem)) @ stem.reshape(-1, stem.shape[-1]) + p["stem"]["bias"]
    for number in range(sum(name.startswith("MixerBlock") for name in p)):
        x = block(p[f"MixerBlock_{number}"], x)
    x = norm(p["pre_head_layer_norm"], x).mean(axis=1)
    return x @ p["head"]["kernel"] + p["head"]["bias"]


# %% [markdown]
# ## Is it right?
#
# `mixer.create` makes a model of this project with random parameters. A new model has zeros in its head and in its
# biases, which would hide mistakes. So we add noise to every parameter. The two models must agree.

# %%
model = mixer.create("Ti/4", num_classes=10, image_size=32)
rng = np.random.default_rng(0)
noisy = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape).astype(np.float32), model.params)
model = dataclasses.replace(model, params=noisy)

pixels = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
ours = model.logits(pixels)
with jax.default_matmul_precision("float32"):  # GPUs and TPUs round more by default
    by_hand = mixer_by_hand(model.params, pixels / np.float32(127.5) - 1)
print("largest logit", np.abs(ours).max(), "largest difference", np.abs(ours - by_hand).max())
np.testing.assert_allclose(by_hand, ours, rtol=0, atol=1e-5)

# %% [markdown]
# ## Handwritten digits
#
# scikit-learn comes with 1,797 digits of 8 x 8 pixels. Enlarged to 32 x 32, each patch is about one pixel of the digit.
# So one patch says almost nothing, and the model has to mix tokens.
#
# The project keeps 1,497 of them in a split called `test`. Here 1,200 of these are for training, and 297 for testing.

# %%
TRAIN, TEST = "test[:1200]", "test[1200:]"
folder = tempfile.mkdtemp()

config = config_file.run(config_file.find("quickstart:digits"))
recipe.small_model(config)  # 4 blocks of 96 channels, patches of 4 pixels
config.input.dataset, config.input.data_dir = "digits/32", folder  # black and white
config.input.train_split, config.input.eval_split = TRAIN, TEST
config.mixup.p = 0.0  # no mixed pictures
for name, steps in {"total": 400, "warmup": 40, "log": 50, "eval": 100, "checkpoint": 400}.items():
    recipe.duration(config, name, steps=steps)

# %% [markdown]
# ## Forget the random start
#
# Weights begin as random numbers. Weight decay shrinks them, and what is left was learnt.
# The paper decays by 0.03 to 0.1, over 90,000 steps and more. For 400 steps, it has to be stronger.

# %%
config.optimizer.weight_decay = 10.0

# %% [markdown]
# ## Train
#
# This is the training loop of the command `python -m mixer.train`. It takes a minute or two. Watch the loss fall.

# %%
result = train(checks.checked(config), f"{folder}/run")
print(f"accuracy on {result['val/count']:.0f} digits that it has not seen: {result['val/accuracy']:.1%}")

# %% [markdown]
# ## What does it answer?

# %%
trained = mixer.load(f"{folder}/run")
test = tfds.as_numpy(tfds.load("digits/32", split=TEST, data_dir=folder, batch_size=-1))
pictures, labels = test["image"], test["label"]


def accuracy(logits):
    """Returns the share of right answers."""
    return np.mean(np.argmax(logits, axis=-1) == labels)


def show(images, titles):
    """Draws images side by side."""
    _, axes = plt.subplots(1, len(images), figsize=(1.3 * len(images), 1.7))
    for axis, image, title in zip(axes, images, titles, strict=True):
        axis.imshow(image)
        axis.set_title(title)
        axis.axis("off")
    plt.show()


answers = np.argmax(trained.logits(pictures), axis=-1)
show(pictures[:10], answers[:10])

# %% [markdown]
# ## An answer after each block
#
# Every block adds to the same table of numbers. So the classifier can read it early, as if the model ended there.

# %%
after_blocks = lens.logits_after_blocks(trained.module, trained.params, pictures / np.float32(127.5) - 1)
shares = [accuracy(logits) for logits in after_blocks]
Image(drawings.png(drawings.lens_figure("digits: accuracy after each block", shares, chance=0.1)))

# %% [markdown]
# ## What do the units look for?
#
# A hidden unit of token mixing has one weight for each patch. So its weights are a picture of the image.
# Red adds, blue subtracts. To the right of a unit stands, of those that are left, the one closest to its negative.

# %%
of_block = units.of_block(trained.params, block=0)
structure = units.structure(of_block)
Image(drawings.png(drawings.units_figure("token-mixing units of the first block", of_block, structure)))

# %% [markdown]
# ## Are they in pairs?
#
# In the first blocks of the paper's models, which saw millions of photographs, many units have an opposite.
# A correlation of -1 is an exact pair. Random units come near an opposite by chance, so compare with them.
# Here decay leaves few patterns, the fewest in the last block: many units there share one, or its negative.

# %%
for number in range(trained.module.num_blocks):
    found = units.structure(units.of_block(trained.params, number))
    print(f"block {number}: {found.opposite:.2f}, random units: {found.opposite_at_random:.2f}")

# %% [markdown]
# ## Shuffle the patches
#
# The same shuffle for every picture. You cannot read the digits any more, and the model cannot either.

# %%
side = trained.module.patch_size
grid = trained.image_size // side  # patches in a row
order = np.random.default_rng(1).permutation(grid**2)


def shuffled(images):
    """Puts patch order[i] of each image in place i."""
    cut = images.reshape(-1, grid, side, grid, side, 3).swapaxes(2, 3).reshape(-1, grid**2, side, side, 3)[:, order]
    return cut.reshape(-1, grid, grid, side, side, 3).swapaxes(2, 3).reshape(images.shape)


show(shuffled(pictures[:10]), np.argmax(trained.logits(shuffled(pictures[:10])), axis=-1))
print(f"accuracy: {accuracy(trained.logits(pictures)):.1%}")
print(f"accuracy, patches shuffled: {accuracy(trained.logits(shuffled(pictures))):.1%}")

# %% [markdown]
# ## Shuffle the weights alike
#
# Only token mixing knows which patch is which. Shuffle its weights in the same way, and the answers return.

# %%
params = jax.tree.map(np.array, trained.params)
for number in range(trained.module.num_blocks):
    token_mixing = params[f"MixerBlock_{number}"]["token_mixing"]
    first, second = token_mixing["Dense_0"], token_mixing["Dense_1"]
    first["kernel"] = first["kernel"][order]  # [tokens, units]
    second["kernel"] = second["kernel"][:, order]  # [units, tokens]
    second["bias"] = second["bias"][order]  # [tokens]
adapted = dataclasses.replace(trained, params=params)

show(shuffled(pictures[:10]), np.argmax(adapted.logits(shuffled(pictures[:10])), axis=-1))
print(f"accuracy, patches and weights shuffled: {accuracy(adapted.logits(shuffled(pictures))):.1%}")
np.testing.assert_allclose(adapted.logits(shuffled(pictures)), trained.logits(pictures), rtol=0, atol=1e-3)

# %% [markdown]
# ## What this means
#
# To a Mixer the order of the patches is only a matter of names: trained on shuffled pictures, it would learn as well.
# A convolution looks at neighbours, so a shuffle destroys what it can see.
#
# Now change something: the patch size (`config.model.variant = "Ti/8"` after `recipe.small_model(config)`), the number
# of blocks (`config.model.num_blocks`), the seed of the shuffle.
# `docs/understanding.md` goes on from here.
