#!/usr/bin/env bash
# On a batch tf.image flips each image by its own draw; it crops, brightens and colours all by one draw.
#
# Guess: all of tf.image's random operations treat a batch alike.
# In TensorFlow 2.21.0 flips draw for each image. A random crop cuts one window out of all images, and brightness,
# contrast, saturation and hue have one strength for the batch. So the same lines before and after .batch() are two
# augmentations.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'tensorflow-cpu==2.21.0' 'numpy==2.4.6'
export TF_CPP_MIN_LOG_LEVEL=3
venv/bin/python - << 'PYTHON' 2> messages.txt || { cat messages.txt; exit 1; }
import numpy as np
import tensorflow as tf

image = np.random.default_rng(0).uniform(0.2, 0.8, (8, 8, 3)).astype(np.float32)
batch, seed = tf.constant(np.stack([image] * 32)), (1, 2)
operations = {
    "flip, left to right": lambda x: tf.image.stateless_random_flip_left_right(x, seed),
    "flip, up to down": lambda x: tf.image.stateless_random_flip_up_down(x, seed),
    "crop": lambda x: tf.image.stateless_random_crop(x, (32, 4, 4, 3), seed),
    "brightness": lambda x: tf.image.stateless_random_brightness(x, 0.2, seed),
    "contrast": lambda x: tf.image.stateless_random_contrast(x, 0.5, 1.5, seed),
    "saturation": lambda x: tf.image.stateless_random_saturation(x, 0.5, 1.5, seed),
    "hue": lambda x: tf.image.stateless_random_hue(x, 0.2, seed),
}
results = {name: len({one.tobytes() for one in operate(batch).numpy()}) for name, operate in operations.items()}
for name, number in results.items():
    print(f"{name}: 32 copies of an image become {number} images")
assert list(results.values()) == [2, 2, 1, 1, 1, 1, 1]
PYTHON
# Output seen on 2026-11-28, Python 3.11.7 on x86-64 Linux:
#   flip, left to right: 32 copies of an image become 2 images
#   flip, up to down: 32 copies of an image become 2 images
#   crop: 32 copies of an image become 1 images
#   brightness: 32 copies of an image become 1 images
#   contrast: 32 copies of an image become 1 images
#   saturation: 32 copies of an image become 1 images
#   hue: 32 copies of an image become 1 images
