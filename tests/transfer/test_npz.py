"""The format of the published checkpoints."""

import contextlib
import io
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import flat, make_model, make_params, nested, same

from mixer.runtime.errors import UserError
from mixer.transfer import npz


def written(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    return file


def block_names(number):
    return {
        f"MixerBlock_{number}/{name}"
        for name in (
            "LayerNorm_0/scale", "LayerNorm_0/bias", "token_mixing/Dense_0/kernel", "token_mixing/Dense_0/bias",
            "token_mixing/Dense_1/kernel", "token_mixing/Dense_1/bias", "LayerNorm_1/scale", "LayerNorm_1/bias",
            "channel_mixing/Dense_0/kernel", "channel_mixing/Dense_0/bias", "channel_mixing/Dense_1/kernel",
            "channel_mixing/Dense_1/bias",
        )
    }  # fmt: skip


def test_the_names_are_those_of_the_published_files():
    params, file = make_params(make_model()), io.BytesIO()
    npz.save_params(file, params)
    file.seek(0)
    with np.load(file) as arrays:
        assert set(arrays.files) == block_names(0) | block_names(1) | {
            "stem/kernel", "stem/bias", "pre_head_layer_norm/scale", "pre_head_layer_norm/bias", "head/kernel",
            "head/bias",
        }  # fmt: skip
        assert arrays["stem/kernel"].shape == (4, 4, 3, 16)
        assert arrays["MixerBlock_0/token_mixing/Dense_0/kernel"].shape == (4, 12)
    file.seek(0)
    assert same(npz.load_params(file, "m.npz"), params)


def test_the_names_of_the_classes_are_no_array_of_their_own():
    """big_vision's merge_params refuses a file with an array that the model does not have. NumPy reads the names."""
    params, file, names = make_params(make_model()), io.BytesIO(), ["ant", "bee", "cat", "dog", "猫"]
    npz.save_params(file, params, names)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays.files == list(flat(params))
        for name, array in flat(params).items():
            np.testing.assert_array_equal(arrays[name], array)
    with zipfile.ZipFile(file) as archive, archive.open("head/bias.npy") as member:
        np.testing.assert_array_equal(np.load(member, allow_pickle=False), params["head"]["bias"])
        np.testing.assert_array_equal(np.load(member, allow_pickle=False), names)
        assert member.read() == b""
    assert zipfile.ZipFile(file).testzip() is None


def array_bytes(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "after",
    [b"\0", b"\x93NUMPY", array_bytes(np.arange(5)), array_bytes(np.array(["a"], object)),
     array_bytes(np.str_("abcde")), array_bytes(np.array(list("abcde")))[:-1]],
)  # fmt: skip
def test_other_bytes_after_the_biases_are_no_names(after):
    params = make_params(make_model())
    members = {f"{name}.npy": array_bytes(array) for name, array in flat(params).items()}
    file = packed({**members, "head/bias.npy": members["head/bias.npy"] + after})
    assert same(npz.load_params(file, "m.npz"), params)
    assert npz.load_class_names(file) is None


@pytest.mark.parametrize("names", [None, [f"n{number:08d} of a collection" for number in range(21_843)]])
def test_a_changed_bit_of_the_biases_is_told_also_with_names_after_them(names):
    biases, file = np.arange(21_843, dtype=np.float32), io.BytesIO()
    npz.save_params(file, {"head": {"bias": biases, "kernel": np.ones((4, 21_843), np.float32)}}, names)
    data = bytearray(file.getvalue())
    data[data.find(biases.tobytes())] ^= 1
    with pytest.raises(UserError, match=r"m\.npz cannot be read: Bad CRC-32 for file 'head/bias\.npy'"):
        npz.load_params(io.BytesIO(bytes(data)), "m.npz")


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_names_below_a_prefix_of_big_vision_are_read(prefix):
    params = make_params(make_model())
    arrays = {f"{prefix}{name}": array for name, array in flat(params).items()}
    assert same(npz.load_params(written(arrays), "m.npz"), params)


@pytest.mark.parametrize(("prefix", "state"), [("params/", "opt/mu"), ("opt/target/", "opt/state/mu")])
def test_the_optimizer_state_in_the_file_is_ignored(prefix, state):
    params = make_params(make_model())
    arrays = {f"{prefix}{name}": array for name, array in flat(params).items()}
    arrays |= {f"{state}/{name}": 0 * array for name, array in flat(params).items()}
    assert same(npz.load_params(written({**arrays, "opt/step": np.int64(7)}), "m.npz"), params)


def older_layout(params):
    """Returns the arrays with the names, numbers and axes that big_vision's published loader renames."""
    arrays = {"embedding/kernel": params["stem"]["kernel"], "embedding/bias": params["stem"]["bias"]}
    arrays |= {f"head/{leaf}": array for leaf, array in params["head"].items()}
    arrays |= {f"Mixer/encoder_norm/{leaf}": array for leaf, array in params["pre_head_layer_norm"].items()}
    for number in range(2):
        block, name = params[f"MixerBlock_{number}"], f"Mixer/encoderblock_{number}"
        for leaf in ("scale", "bias"):
            arrays[f"{name}/LayerNorm_0/{leaf}"] = block["LayerNorm_0"][leaf]
            arrays[f"{name}/LayerNorm_2/{leaf}"] = block["LayerNorm_1"][leaf]
        for mixing in ("token_mixing", "channel_mixing"):
            for layer in (0, 1):
                dense = block[mixing][f"Dense_{layer}"]
                arrays[f"{name}/{mixing}_phase_0/kernel{layer + 1}"] = dense["kernel"][None, :, None, :]
                arrays[f"{name}/{mixing}_phase_0/bias{layer + 1}"] = dense["bias"][None]
    return arrays


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
@pytest.mark.parametrize("second", ["LayerNorm_2", "LayerNorm_1", "LayerNorm_10"])
def test_the_older_internal_layout_is_renamed(prefix, second):
    params = make_params(make_model())
    arrays = {name.replace("LayerNorm_2", second): array for name, array in older_layout(params).items()}
    read = npz.load_params(written({f"{prefix}{name}": array for name, array in arrays.items()}), "m.npz")
    assert same(read, params)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32(dtype):
    params = make_params(make_model())
    read = npz.load_params(written({name: array.astype(dtype) for name, array in flat(params).items()}), "m.npz")
    expected = {name: array.astype(dtype).astype(np.float32) for name, array in flat(params).items()}
    for name, array in flat(read).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("prefix", ["", "params/"])
def test_bfloat16_is_read_though_numpy_gives_it_back_as_bytes(prefix):
    params = make_params(make_model())
    arrays = {f"{prefix}{name}": array.astype(ml_dtypes.bfloat16) for name, array in flat(params).items()}
    assert np.load(written(arrays))[f"{prefix}head/bias"].dtype == "V2"
    expected = {name: array.astype(ml_dtypes.bfloat16).astype(np.float32) for name, array in flat(params).items()}
    assert same(npz.load_params(written(arrays), "m.npz"), nested(expected))


@pytest.mark.parametrize("value", [np.zeros(5, "V1"), np.zeros(5, "V4"), np.zeros(5, [("a", "V2")])])
def test_other_bytes_without_a_type_are_refused(value):
    arrays = {**flat(make_params(make_model())), "head/bias": value}
    message = r"^m\.npz is not a Mixer's parameters: head/bias: .*V[124]'?\)?\]?$"
    with pytest.raises(UserError, match=message) as caught:
        npz.load_params(written(arrays), "m.npz")
    assert "\n" not in str(caught.value)


class Trap:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_the_trap_of_the_next_test_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung"))).close()
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("where", ["a plain pickle", "an array of objects", "an array of objects in an .npz"])
def test_pickles_are_refused_and_not_executed(tmp_path, where):
    trap, file = Trap(tmp_path / "sprung"), io.BytesIO()
    if where == "a plain pickle":
        pickle.dump(trap, file)
    elif where == "an array of objects":
        np.save(file, np.array([trap], object), allow_pickle=True)
    else:
        np.savez(file, **{**flat(make_params(make_model())), "stem/bias": np.array([trap], object)})
    file.seek(0)
    with pytest.raises(UserError, match=r"^m\.npz cannot be read: it is a pickle or no \.npz at all, and pickles are"):
        npz.load_params(file, "m.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "value", [np.int32(1), np.arange(16), np.zeros(16, bool), np.zeros(16, complex), np.array("x")]
)
def test_anything_but_floating_point_is_refused(value):
    arrays = {**flat(make_params(make_model())), "stem/bias": value}
    with pytest.raises(UserError, match=f"is not a Mixer's parameters: stem/bias: {value.dtype}"):
        npz.load_params(written(arrays), "m.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "No data left in file"),
        (b"stem,1\n", "it is a pickle or no .npz at all"),
        (written({}).getvalue(), "it is empty"),
        (b"\x93NUMPY" + b"\x01\x00", "cannot be read"),
    ],
)
def test_files_of_another_kind_are_refused(content, message):
    with pytest.raises(UserError, match=message) as caught:
        npz.load_params(io.BytesIO(content), "m.npz")
    assert "\n" not in str(caught.value)


def test_a_single_array_is_refused():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    file.seek(0)
    with pytest.raises(UserError, match="it holds a single array"):
        npz.load_params(file, "m.npz")


@pytest.mark.parametrize(
    "arrays", [{"stem": np.ones(3), "stem/bias": np.ones(3)}, {"stem/a/b": np.ones(3), "stem": 1.0}]
)
def test_a_name_that_is_also_a_folder_is_refused(arrays):
    with pytest.raises(UserError, match="is not a Mixer's parameters: stem is an array and a folder"):
        npz.load_params(written(arrays), "m.npz")


def packed(members, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def says_it_has(content, size):
    """Returns the zip with this uncompressed size in every entry of its list of contents, which readers trust."""
    content, at = bytearray(content), 0
    while (at := content.find(b"PK\1\2", at)) >= 0:
        content[at + 24 : at + 28] = size.to_bytes(4, "little")
        at += 4
    return io.BytesIO(bytes(content))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    many = {f"a{i}.npy": b"\0" * 1000 for i in range(3)}
    bomb = says_it_has(packed(many).getvalue(), 10**9)  # each file is below the limit, all together are not
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("was unpacked"))
    size = len(bomb.getvalue())
    with pytest.raises(UserError) as caught:
        npz.load_params(bomb, "m.npz")
    assert str(caught.value) == (
        f"m.npz cannot be read: its {size} bytes would unpack to 3,000,000,000, but weights unpack to at most 10 "
        "times their size; use a file from another source"
    )


def test_the_limits_allow_all_weights(monkeypatch):
    """Every model up to H/14 is read, even if it is all zeros; larger files only up to ten times their size."""
    h14 = 431_000_000 + 21_843 * (1280 + 1)  # Table 1, and a head for ImageNet-21k
    assert 4 * h14 < npz._ALWAYS_READ
    zeros = {"stem/kernel": np.zeros(10**5, np.float32)}
    for save, is_read in ((np.savez, True), (np.savez_compressed, False)):
        file = io.BytesIO()
        save(file, **zeros)
        monkeypatch.undo()
        assert flat(npz.load_params(file, "m.npz"))["stem/kernel"].size == 10**5
        monkeypatch.setattr(npz, "_ALWAYS_READ", 1000)
        with contextlib.nullcontext() if is_read else pytest.raises(UserError, match="would unpack to"):
            npz.load_params(file, "m.npz")


def test_compressed_weights_are_read():
    params, file = make_params(make_model()), io.BytesIO()
    np.savez_compressed(file, **flat(params))
    file.seek(0)
    assert same(npz.load_params(file, "m.npz"), params)


def test_a_file_is_not_unpacked_beyond_its_stated_size():
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(10**6))
    # The checksum is that of all bytes. The error shows that only the first thousand were unpacked.
    with pytest.raises(UserError, match="Bad CRC-32"):
        npz.load_params(says_it_has(file.getvalue(), 1000), "m.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_zipfile_does_not_limit_is_refused(method):
    with pytest.raises(UserError, match=f"^m.npz cannot be read: a.npy is packed by method {method} of zip, but"):
        npz.load_params(packed({"a.npy": b"\0" * 1000}, method), "m.npz")


def test_files_that_are_not_arrays_are_named():
    with pytest.raises(UserError, match=r"^m\.npz is not a Mixer's parameters: readme\.txt: \|S5$"):
        npz.load_params(packed({"readme.txt": b"hello"}), "m.npz")


SMALL = {"stem/kernel": np.ones((2, 2, 3, 4), np.float32), "stem/bias": np.ones(4, np.float32)}


@given(data=st.data(), compressed=st.booleans())
def test_a_damaged_file_is_read_or_refused(data, compressed):
    """With bytes changed or cut off anywhere, no other error is raised, such as one of zipfile, zlib or NumPy."""
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **SMALL)
    content = bytearray(file.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    with contextlib.suppress(UserError):
        read = npz.load_params(io.BytesIO(bytes(content)), "m.npz")
        assert all(array.dtype == np.float32 for array in flat(read).values())


def test_a_wrong_checksum_is_an_error():
    content = bytearray(written(SMALL).getvalue())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        content[archive.getinfo("stem/bias.npy").header_offset + 200] ^= 1
    with pytest.raises(UserError, match="cannot be read"):
        npz.load_params(io.BytesIO(content), "m.npz")
