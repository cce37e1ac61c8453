"""MLP-Mixer in JAX and Flax: pre-train, transfer, time and understand it."""

import os

# Before TensorFlow is imported anywhere. Its start-up messages are about nothing that a user here can change; oneDNN
# has nothing to speed up in an input pipeline, and its rounding depends on the processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
