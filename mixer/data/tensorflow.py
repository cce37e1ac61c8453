"""TensorFlow for the input pipeline. It sees no GPU, so that it cannot take memory from JAX."""

from mixer.runtime import environment, libjpeg_lines

libjpeg_lines.begin()  # warnings of the images that TensorFlow decodes
with environment.prepared():
    import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
