"""The format of timm, tested without timm. test_timm_model.py loads such files into timm's models."""

import contextlib
import io
import json
import math

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from random_models import flat, make_model, make_params, same

from mixer import models
from mixer.runtime.errors import UserError
from mixer.transfer import timm


def written(params):
    file = io.BytesIO()
    timm.save_params(file, params)
    return file.getvalue()


def encoded(tensors):
    """Returns the bytes of a safetensors file by its definition: length of the header, JSON, data."""
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_names_and_axes_are_timms():
    """A model of one block. PyTorch's layers have the outputs first, and height and width of a convolution last."""
    params = make_params(make_model(num_blocks=1))
    block = params["MixerBlock_0"]
    expected = {
        "stem.proj.weight": np.einsum("hwio->oihw", params["stem"]["kernel"]),
        "stem.proj.bias": params["stem"]["bias"],
        "blocks.0.norm1.weight": block["LayerNorm_0"]["scale"],
        "blocks.0.norm1.bias": block["LayerNorm_0"]["bias"],
        "blocks.0.mlp_tokens.fc1.weight": np.einsum("io->oi", block["token_mixing"]["Dense_0"]["kernel"]),
        "blocks.0.mlp_tokens.fc1.bias": block["token_mixing"]["Dense_0"]["bias"],
        "blocks.0.mlp_tokens.fc2.weight": np.einsum("io->oi", block["token_mixing"]["Dense_1"]["kernel"]),
        "blocks.0.mlp_tokens.fc2.bias": block["token_mixing"]["Dense_1"]["bias"],
        "blocks.0.norm2.weight": block["LayerNorm_1"]["scale"],
        "blocks.0.norm2.bias": block["LayerNorm_1"]["bias"],
        "blocks.0.mlp_channels.fc1.weight": np.einsum("io->oi", block["channel_mixing"]["Dense_0"]["kernel"]),
        "blocks.0.mlp_channels.fc1.bias": block["channel_mixing"]["Dense_0"]["bias"],
        "blocks.0.mlp_channels.fc2.weight": np.einsum("io->oi", block["channel_mixing"]["Dense_1"]["kernel"]),
        "blocks.0.mlp_channels.fc2.bias": block["channel_mixing"]["Dense_1"]["bias"],
        "norm.weight": params["pre_head_layer_norm"]["scale"],
        "norm.bias": params["pre_head_layer_norm"]["bias"],
        "head.weight": np.einsum("io->oi", params["head"]["kernel"]),
        "head.bias": params["head"]["bias"],
    }
    tensors = safetensors.numpy.load(written(params))
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], array)
    assert expected["blocks.0.mlp_tokens.fc1.weight"].shape == (12, 4)  # [D_S, S]
    assert expected["stem.proj.weight"].shape == (16, 3, 4, 4)


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ('{"format": "pt", "class_names": "[\\"ant\\", \\"bee\\"]"}', ["ant", "bee"]),
        ('{"format": "pt"}', None),
        ("null", None),
        ('{"class_names": "ant,bee"}', None),
        ('{"class_names": "{\\"0\\": \\"ant\\"}"}', None),
        ('{"class_names": "[0, 1]"}', None),
        ('{"class_names": "' + 100_000 * "[" + '"}', None),
    ],
)  # fmt: skip
def test_names_are_a_list_in_the_metadata(metadata, names):
    tensor = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    text = f'{{"__metadata__": {metadata}, "norm.weight": {tensor}}}'.encode()
    file = io.BytesIO(len(text).to_bytes(8, "little") + text + bytes(4))
    timm.load_params(file, "m.safetensors")
    assert timm.load_class_names(file) == names


def test_files_are_marked_as_pytorchs():
    """The transformers library needs this entry, for example."""
    content = written(make_params(make_model()))
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize("classes", [0, 5])
def test_parameters_are_read_back_bit_for_bit(classes):
    params = make_params(make_model(classes, num_blocks=11))  # block numbers of two digits
    assert same(timm.load_params(io.BytesIO(written(params)), "m.safetensors"), params)


@pytest.mark.parametrize(
    ("name", "dtype"), [("BF16", ml_dtypes.bfloat16), ("F16", np.float16), ("F32", np.float32), ("F64", np.float64)]
)
def test_any_precision_is_read_to_float32(name, dtype):
    array = np.random.default_rng(0).normal(size=(2, 3)).astype(dtype)
    read = timm.load_params(
        io.BytesIO(encoded({"head.weight": (name, array), "head.bias": (name, array[:, 0])})), "m.safetensors"
    )
    assert same(read, {"head": {"kernel": array.T.astype(np.float32), "bias": array[:, 0].astype(np.float32)}})


@pytest.mark.parametrize(("name", "dtype"), [("I64", np.int64), ("BOOL", bool), ("F8_E4M3", ml_dtypes.float8_e4m3fn)])
def test_other_numbers_are_refused(name, dtype):
    with pytest.raises(
        UserError, match=rf"m\.safetensors: norm\.weight is {name}; expected one of F64, F32, F16, BF16"
    ):
        timm.load_params(io.BytesIO(encoded({"norm.weight": (name, np.ones(3, dtype))})), "m.safetensors")


@pytest.mark.parametrize(
    "name",
    ["blocks.0.attn.qkv.weight", "cls_token", "stem.proj.scale", "blocks.x.norm1.bias", "blocks.0.norm1", "norm.a.bias",
     "model.head.bias", ""],
)  # fmt: skip
def test_a_tensor_of_another_model_is_named(name):
    content = encoded({"norm.bias": ("F32", np.ones(3, np.float32)), name: ("F32", np.ones(3, np.float32))})
    with pytest.raises(UserError) as caught:
        timm.load_params(io.BytesIO(content), "m.safetensors")
    assert str(caught.value).startswith(
        f"m.safetensors is not a timm mixer_* model: it has {name!r}; such a model has "
    )


@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(data):
    content = bytearray(encoded({"head.weight": ("BF16", np.ones((2, 3), ml_dtypes.bfloat16)),
                                 "head.bias": ("F32", np.ones(2, np.float32))}))  # fmt: skip
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    with contextlib.suppress(UserError):
        read = timm.load_params(io.BytesIO(bytes(content)), "m.safetensors")
        assert all(array.dtype == np.float32 for array in flat(read).values())


@pytest.mark.parametrize("shape", [[0, 2**61], [1] * 100])
def test_a_shape_that_numpy_refuses_is_one_line(shape):
    header = {"norm.bias": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * (0 not in shape)]}}
    text = json.dumps(header).encode()
    with pytest.raises(UserError, match=r"^m\.safetensors: norm\.bias has a shape that no array can have: [^\n]+$"):
        timm.load_params(
            io.BytesIO(len(text).to_bytes(8, "little") + text + bytes(4 * (0 not in shape))), "m.safetensors"
        )


@pytest.mark.parametrize("length", [2**27, 2**63, 2**64 - 1])
def test_a_header_that_says_it_is_huge_is_refused(length):
    with pytest.raises(UserError, match=r"cannot be read as safetensors: .*header too large"):
        timm.load_params(io.BytesIO(length.to_bytes(8, "little") + b"{}"), "m.safetensors")


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [([3], [0, 8]), ([2], [0, 2**42]), ([2**33, 2**33], [0, 8]), ([-2], [0, 8]), ([2], [8, 0]), ([1], [4, 8])],
)
def test_a_header_that_does_not_match_its_data_is_refused(shape, offsets):
    text = json.dumps({"norm.bias": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    with pytest.raises(UserError, match=r"^m\.safetensors cannot be read as safetensors: [^\n]+$"):
        timm.load_params(io.BytesIO(len(text).to_bytes(8, "little") + text + bytes(8)), "m.safetensors")


def test_text_is_refused():
    with pytest.raises(UserError, match=r"^m\.safetensors cannot be read as safetensors: [^\n]+$"):
        timm.load_params(io.BytesIO(b"stem,1\n"), "m.safetensors")


NAMED = {"S/32": "mixer_s32_224", "S/16": "mixer_s16_224", "B/32": "mixer_b32_224", "B/16": "mixer_b16_224",
         "L/32": "mixer_l32_224", "L/16": "mixer_l16_224"}  # fmt: skip


@pytest.mark.parametrize("variant", NAMED)
def test_the_papers_models_are_made_by_name(variant):
    made = timm.constructor(models.create(variant, 21843), 224)
    assert made == f'timm.create_model("{NAMED[variant]}", num_classes=21843)'


@pytest.mark.parametrize(
    ("model", "size", "widths"),
    [
        (models.create("H/14", 10), 224, "patch_size=14, num_blocks=32, embed_dim=1280, mlp_ratio=(0.5, 4.0)"),
        (models.create("B/16", 10), 448, "patch_size=16, num_blocks=12, embed_dim=768, mlp_ratio=(0.5, 4.0)"),
        (models.create("B/16", 10, tokens_mlp_dim=1536), 224,
         "patch_size=16, num_blocks=12, embed_dim=768, mlp_ratio=(2.0, 4.0)"),
        (models.create("Ti/4", 10), 32, "patch_size=4, num_blocks=4, embed_dim=128, mlp_ratio=(0.5, 4.0)"),
    ],
)  # fmt: skip
def test_other_models_are_made_by_their_widths(model, size, widths):
    assert timm.constructor(model, size) == f"timm.models.mlp_mixer.MlpMixer(num_classes=10, img_size={size}, {widths})"


def test_timm_resizes_to_the_same_side():
    """As `transforms_imagenet_eval` of timm 1.0.31 has it."""
    for size in (32, 112, 192, 224, 225, 384, 443, 448, 815):
        for resize in range(size, 2 * size):
            assert math.floor(size / timm._crop_pct(size, resize)) == resize
    assert timm._crop_pct(224, 256) == 0.875


@given(hidden=st.integers(1, 2000), tokens=st.integers(1, 9000), channels=st.integers(1, 9000))
def test_timm_computes_the_same_widths_from_the_ratios(hidden, tokens, channels):
    """timm computes int(ratio * width). Rounding can make this one less than the width that is meant."""
    model = models.create("Ti/4", 10, hidden_dim=hidden, tokens_mlp_dim=tokens, channels_mlp_dim=channels)
    made = {}
    fake = type("timm", (), {"models": type("models", (), {"mlp_mixer": type("m", (), {"MlpMixer": made.update})})})
    eval(timm.constructor(model, 32), {"timm": fake})
    assert made["embed_dim"] == hidden
    assert [int(ratio * hidden) for ratio in made["mlp_ratio"]] == [tokens, channels]
