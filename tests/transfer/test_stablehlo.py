"""The text of the exported forward pass. tests/test_export.py runs it without this project."""

import io
import re

import jax
import numpy as np
import pytest
from jax import export
from random_models import make_model, make_params

from mixer.transfer import model_card, stablehlo
from mixer.transfer.format import Program
from mixer.transfer.formats import FORMATS
from mixer.transfer.weights import Weights

WEIGHTS = Weights(make_params(make_model()), "m.npz")


def data(program=None, save=stablehlo.save_program):
    file = io.BytesIO()
    save(file, WEIGHTS.exported()._replace(program=program or Program()))
    return file.getvalue()


def written(program=None):
    return export.deserialize(bytearray(data(program)))


def card(program=None):
    return model_card.card(WEIGHTS, to="stablehlo", file="my m.stablehlo", command="", measured={}, program=program)


def test_products_are_float32_on_every_platform():
    program = written().mlir_module()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line or ".convolution" in line]
    count = 2 * 4 + 2  # two blocks of two MLPs, the stem and the head
    assert len(products) in (count, len(Program().platforms) * count)  # JAX may write one program for each platform
    for line in products:
        assert re.search(r"precision(_config)? = \[[^\]]*HIGHEST[^\]]*HIGHEST", line), line
        assert "bf16" not in line


def test_images_of_another_size_or_type_are_refused():
    exported = written()
    with pytest.raises(ValueError, match="8"):
        exported.call(np.zeros((1, 12, 12, 3), np.uint8))
    with pytest.raises(ValueError, match="float32"):
        exported.call(np.zeros((1, 8, 8, 3), np.float32))


def test_a_fixed_batch_and_given_platforms():
    exported = written(Program(2, ("tpu", "cpu")))
    assert exported.platforms == ("tpu", "cpu")
    assert str(exported.in_avals[0]) == "uint8[2,8,8,3]"
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(exported.call(images[:2]), written().call(images)[:2], atol=1e-6)
    with pytest.raises(ValueError, match="2"):
        exported.call(images)


@pytest.mark.parametrize("program", [Program(), Program(3, ("cpu",))])
def test_the_module_beside_it_is_portable_and_takes_only_the_images(program):
    module = data(program, FORMATS["stablehlo"].beside[1])
    assert b"_platform_index" not in module
    assert (b"_platform_index" in written(program).mlir_module_serialized) == (len(program.platforms) > 1)
    assert f"StableHLO {stablehlo.version_of(module)} in portable bytecode" in card(program)
    with pytest.raises(ValueError, match=r"it begins with b'module"):
        stablehlo.version_of(b"module @jit_forward")


def test_the_card_says_who_can_read_it():
    free, fixed = card(), card(Program(3, ("cpu",)))
    for text in (free, fixed):
        assert f"written by jax {jax.__version__}, the oldest that is sure to read it" in text
        assert "`my m.stablehlo.mlir` is the same program alone, for cpu" in text
    assert "- **Input:** uint8 [batch, 8, 8, 3]" in free
    assert "- **Input:** uint8 [3, 8, 8, 3]" in fixed
    assert "- **Output:** float32 [3, 5], logits" in fixed
    assert "for cpu, cuda, tpu\n" in free
    assert "artifact, for cpu\n" in fixed
    assert "IREE 3.13.0 takes it with a fixed batch only: export it with `--batch_size`" in free
    assert "iree-compile" not in free
    assert "iree-compile 'my m.stablehlo.mlir' -o model.vmfb" in fixed
    assert "images = numpy.resize(images, (3, 8, 8, 3))" in fixed
    assert "numpy.resize" not in card(Program(1))
