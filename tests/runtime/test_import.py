"""Importing the package leaves the logging of a notebook as it is."""

from run_python import run_python

IMPORTS = """
import logging
import mixer.evaluate, mixer.predict, mixer.train
mixer.train.pipeline.Batch, mixer.train.readers.READERS  # they are imported when they are first used
print(logging.root.handlers, logging.root.level)
logging.basicConfig(level=logging.INFO)
print(logging.root.level)
"""


def test_imports_give_the_root_logger_no_handler():
    assert run_python(IMPORTS) == ["[] 30", "20"]
