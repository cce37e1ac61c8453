"""Sources -> decoded images -> augmented batches. The one room where TensorFlow lives; it gets no accelerator."""

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")
