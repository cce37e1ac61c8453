"""Sources -> decoded images -> augmented batches. Only the pipeline and the readers import TensorFlow."""
