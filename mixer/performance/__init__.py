"""Measures the speed of models and of the input, and compiles steps for TPU slices without a TPU."""
