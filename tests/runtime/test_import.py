"""Importing the package leaves the logging and the environment of a notebook as they are."""

from run_python import run_python

IMPORTS = """
import logging
import mixer.evaluate, mixer.predict, mixer.run, mixer.train
mixer.train.pipeline.Batch, mixer.run.readers.READERS  # they are imported when they are first used
print(logging.root.handlers, logging.root.level)
logging.basicConfig(level=logging.INFO)
print(logging.root.level)
"""


def test_imports_give_the_root_logger_no_handler():
    assert run_python(IMPORTS) == ["[] 30", "20"]


ENVIRONMENT = """
import os
before = dict(os.environ)
import mixer.evaluate, mixer.predict, mixer.train
# JAX's and OpenCV's; TensorFlow, imported later, sets more.
others = ("TPU_SKIP_MDS_QUERY", "TF_CPP_MIN_LOG_LEVEL", "LD_LIBRARY_PATH")
print([name for name in os.environ if before.get(name) != os.environ[name] and name not in others])
"""


def test_imports_leave_the_environment_as_it_was():
    assert run_python(ENVIRONMENT) == ["[]"]


def test_tensorflow_finds_the_variables_while_it_is_imported(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os, types\n"
        "print(os.environ['TF_ENABLE_ONEDNN_OPTS'], os.environ['TF_CPP_MIN_LOG_LEVEL'])\n"
        "config = types.SimpleNamespace(set_visible_devices=lambda *_: None)\n"
    )
    code = f"import jax, sys; sys.path.insert(0, {str(tmp_path)!r}); import mixer.data.tensorflow"
    left = "import os; print(os.environ.get('TF_ENABLE_ONEDNN_OPTS'), os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    assert run_python(f"{code}; {left}") == ["0 3", "None 1"]


KERAS = """
import sys
import mixer.data.datasets, mixer.data.tensorflow
import tensorflow as tf
print([name for name in ("keras", "tf_keras", "sklearn", "matplotlib") if name in sys.modules])
import mixer.training.tensorboard
print(tf.keras.__version__.split(".")[0], "keras" in sys.modules)
"""


def test_keras_is_imported_only_for_who_uses_it():
    """TensorFlow would import it, which is a third of the time."""
    assert run_python(KERAS) == ["[]", "3 True"]
