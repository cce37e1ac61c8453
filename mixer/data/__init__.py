"""From sources through decoded images to augmented batches. TensorFlow is imported in `tensorflow.py` alone."""
