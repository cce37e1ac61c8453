"""MLP-Mixer in JAX and Flax: pre-train, transfer, time and understand it."""
