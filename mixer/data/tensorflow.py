"""TensorFlow as the input pipeline uses it: on the host's processors alone, so that accelerators are left to JAX."""

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
