"""Prepared datasets: `tfds_dataset.py` is the reader, the rest gives it records by their numbers."""
