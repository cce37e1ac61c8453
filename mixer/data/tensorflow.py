"""TensorFlow for the input pipeline. It sees no GPU, so that it cannot take memory from JAX."""

from mixer.runtime import environment, libjpeg_lines

libjpeg_lines.begin()  # warnings of the images that TensorFlow decodes
# Nothing here uses Keras, which TensorFlow imports all the same, with scikit-learn and matplotlib: a third of the time.
# Told to take the old Keras, which is not installed, it goes on without. Afterwards `tf.keras` is the new one again.
with environment.prepared(TF_USE_LEGACY_KERAS="1"):
    import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
