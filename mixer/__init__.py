"""MLP-Mixer in JAX and Flax: pre-train, transfer, time and understand it."""

import os
import tempfile

# Before TensorFlow is imported anywhere. Its start-up messages are about nothing that a user here can change; oneDNN
# has nothing to speed up in an input pipeline, and its rounding depends on the processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# Where nobody knows the home folder, as in a container without HOME, TensorFlow's Keras would make a folder called ~.
if os.path.expanduser("~") == "~":
    os.environ.setdefault("KERAS_HOME", os.path.join(tempfile.gettempdir(), ".keras"))
