"""The text of the exported forward pass. tests/test_export.py runs it without this project."""

import io
import re

import numpy as np
import pytest
from jax import export
from random_models import make_model, make_params

from mixer.runtime.errors import UserError
from mixer.transfer import stablehlo


def written(params, model, size):
    file = io.BytesIO()
    stablehlo.save_program(file, params, model, size)
    return export.deserialize(bytearray(file.getvalue()))


def test_products_are_float32_on_every_platform():
    program = written(make_params(make_model()), make_model(), 8).mlir_module()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line or ".convolution" in line]
    count = 2 * 4 + 2  # two blocks of two MLPs, the stem and the head
    assert len(products) in (count, len(stablehlo.PLATFORMS) * count)  # JAX may write one program for each platform
    for line in products:
        assert re.search(r"precision(_config)? = \[[^\]]*HIGHEST[^\]]*HIGHEST", line), line
        assert "bf16" not in line


def test_images_of_another_size_or_type_are_refused():
    exported = written(make_params(make_model()), make_model(), 8)
    with pytest.raises(ValueError, match="8"):
        exported.call(np.zeros((1, 12, 12, 3), np.uint8))
    with pytest.raises(ValueError, match="float32"):
        exported.call(np.zeros((1, 8, 8, 3), np.float32))


def test_parameters_too_large_for_the_format_are_refused():
    """H/14 at 448 pixels is too large, for example. These zeros take no memory."""
    params = {"stem": {"kernel": np.broadcast_to(np.float32(0), (2**29,))}}
    with pytest.raises(UserError, match=r"take 2\.00 GiB, and a \.stablehlo file cannot hold more than 2: use"):
        stablehlo.save_program(io.BytesIO(), params, make_model(), 8)
