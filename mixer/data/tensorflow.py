"""TensorFlow for the input pipeline. It sees no GPU, so that it cannot take memory from JAX."""

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
