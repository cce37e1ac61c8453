"""Weights from runs and files, and the model that follows from their shapes."""

import contextlib
import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict
from random_models import flat, make_model, make_params, make_state, nested, same, write_run

from mixer import models
from mixer.config import recipe
from mixer.evaluation import scoring
from mixer.models import mlp_mixer
from mixer.page import live_model
from mixer.runtime.errors import UserError
from mixer.transfer import format as file_format
from mixer.transfer import formats, init_from, npz, timm
from mixer.transfer.loading import load
from mixer.transfer.weights import Weights

NAMES = ["ant", "bee", "cat", "dog", "elk"]
PARAMS, AVERAGES, EARLIER = (make_params(make_model(), seed=seed) for seed in (1, 2, 3))


def npz_bytes(params):
    file = io.BytesIO()
    npz.save_params(file, params)
    return file.getvalue()


def timm_bytes(params):
    file = io.BytesIO()
    timm.save_params(file, params)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------------ dispatch


@pytest.mark.parametrize(("name", "write"), [("m.npz", npz_bytes), ("m.safetensors", timm_bytes)])
def test_a_file_is_read_by_its_ending(tmp_path, monkeypatch, name, write):
    (tmp_path / name).write_bytes(write(PARAMS))
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (str(tmp_path / name), f"~/{name}"):
        found = load(source)
        assert same(found.params, PARAMS)
        assert found.source == source
        assert found.config is found.class_names is found.step is found.workdir is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    states = [make_state(EARLIER, EARLIER, step=3), make_state(PARAMS, AVERAGES, step=7)]
    return write_run(tmp_path_factory.mktemp("runs") / "small", states, NAMES, ema_decay=0.9)


@pytest.mark.parametrize("ema", [False, True])
def test_a_run_folder_gives_its_newest_checkpoint_config_and_class_names(run, ema):
    found = load(str(run), ema)
    assert same(found.params, AVERAGES if ema else PARAMS)
    assert (found.step, found.class_names, found.workdir) == (7, NAMES, run)
    assert found.config.input.image_size == 8


@pytest.mark.parametrize(("step", "params"), [(3, EARLIER), (7, PARAMS)])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_runs_checkpoint_can_be_chosen(run, step, params, slash):
    found = load(f"{run}/checkpoints/{step}{slash}")
    assert same(found.params, params)
    assert (found.step, found.class_names, found.workdir) == (step, NAMES, run)


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint with params that can be read; give the folder of a run"):
        load(str(tmp_path))


def test_a_folder_of_the_hub_is_its_safetensors_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(timm_bytes(PARAMS))
    (tmp_path / "pytorch_model.bin").write_bytes(b"never looked at")
    (tmp_path / "config.json").write_text('{"architecture": "mixer_b16_224"}')
    for source in (f"{tmp_path}", f"{tmp_path}/"):
        found = load(source)
        assert same(found.params, PARAMS)
        assert (found.config, found.source) == (None, str(tmp_path / "model.safetensors"))
    with pytest.raises(UserError, match=r"is not the folder of a run: it has no averaged parameters"):
        load(str(tmp_path), ema=True)


@pytest.mark.parametrize("names", [NAMES, NAMES[:1], "a text"])
def test_a_folder_of_the_hub_names_classes_and_says_how_pictures_are_normalised(tmp_path, names):
    """The model gives for 2x - 1 what timm's gives for (x - mean) / std."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 1.0)
    (tmp_path / "model.safetensors").write_bytes(timm_bytes(PARAMS))
    (tmp_path / "config.json").write_text(
        json.dumps({"label_names": names, "pretrained_cfg": {"mean": mean, "std": std}})
    )
    found = load(str(tmp_path))
    assert found.class_names == (NAMES if names == NAMES else None)
    x = np.random.default_rng(0).random((2, found.image_size, found.image_size, 3))
    model = found.model()
    expected = model.apply({"params": PARAMS}, jnp.float32((x - np.array(mean)) / std))
    np.testing.assert_allclose(
        model.apply({"params": found.params}, jnp.float32(2 * x - 1)), expected, rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize(
    "cfg",
    [
        {"mean": [0.5]},
        {"std": [1.0, 1.0, 0.0]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"std": "x"},
        {"mean": [{}, 0, 0]},
        {"std": [1, 1, float("inf")]},
    ],
)
def test_a_normalisation_that_is_none_is_refused(tmp_path, cfg):
    (tmp_path / "model.safetensors").write_bytes(timm_bytes(PARAMS))
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
    with pytest.raises(UserError, match=r"config.json: pretrained_cfg has no mean and std of three channels"):
        load(str(tmp_path))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    params = jax.tree.map(np.copy, PARAMS)
    params["head"]["bias"][1] = value
    (tmp_path / "m.npz").write_bytes(npz_bytes(params))
    with pytest.raises(UserError, match=r"m.npz: 1 of the \d values of head/bias are not finite \(NaN or infinite\)"):
        load(str(tmp_path / "m.npz"))


def test_a_folder_of_the_hub_may_be_in_a_bucket(bucket_here, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(timm_bytes(PARAMS))
    (tmp_path / "config.json").write_text("{}")
    bucket_here.upload(tmp_path, "hub")
    assert same(load(bucket_here.path("hub")).params, PARAMS)


def test_a_run_that_holds_an_export_too_is_a_run(tmp_path):
    folder = write_run(tmp_path / "run", [make_state(PARAMS, step=7)], NAMES)
    (folder / "model.safetensors").write_bytes(timm_bytes(EARLIER))
    for source in (folder, folder / "checkpoints" / "7"):
        found = load(str(source))
        assert same(found.params, PARAMS)
        assert (found.step, found.class_names) == (7, NAMES)


def test_a_folder_of_the_hub_with_pickles_alone_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never looked at")
    with pytest.raises(UserError) as caught:
        load(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path} holds no model.safetensors; pytorch_model.bin may hold pickles, which are never loaded: get the "
        "model in the safetensors format"
    )


def renamed_npz(prefix):
    file = io.BytesIO()
    np.savez(file, **{f"{prefix}{name}": array for name, array in flat(PARAMS).items()})
    return file.getvalue()


def renamed_safetensors(prefix):
    tensors = safetensors.numpy.load(timm_bytes(PARAMS))
    return safetensors.numpy.save({f"{prefix}{name}": array for name, array in tensors.items()})


PREFIXES = ["module.", "model.", "_orig_mod.", "_orig_mod.module.", "model._orig_mod.", "module.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("name", "write"), [("m.npz", renamed_npz), ("m.safetensors", renamed_safetensors)])
def test_names_with_the_prefixes_of_wrappers_are_read(tmp_path, prefix, name, write):
    (tmp_path / name).write_bytes(write(prefix))
    assert same(load(str(tmp_path / name)).params, PARAMS)


def test_a_prefix_that_not_all_names_have_is_not_removed(tmp_path):
    tensors = safetensors.numpy.load(renamed_safetensors("module."))
    tensors["norm.bias"] = tensors.pop("module.norm.bias")
    (tmp_path / "m.safetensors").write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(UserError, match=r"is not a timm mixer_\* model: it has 'module\."):
        load(str(tmp_path / "m.safetensors"))
    arrays = {f"model.{name}": array for name, array in flat(PARAMS).items() if name != "stem/bias"}
    np.savez(tmp_path / "m.npz", **arrays, **{"stem/bias": PARAMS["stem"]["bias"]})
    with pytest.raises(UserError, match=r"is not a Mixer's parameters: "):
        load(str(tmp_path / "m.npz")).model()


def test_a_run_of_another_family_is_named():
    config = recipe.base()
    config.model.variant = "ViT-S/16"
    weights = Weights({"cls": np.zeros(3, np.float32)}, "runs/vit", FrozenConfigDict(config))
    with pytest.raises(UserError, match=r"^runs/vit looks like ViT-S/16, but does not match it: Transformer/.*missing"):
        weights.model()


@pytest.mark.parametrize("size", [36, 64])
def test_a_vit_stays_at_its_size(size):
    """Also where its patches do not tile the image."""
    config = recipe.base()
    config.model.variant, config.input.image_size = "ViT-Ti/16", 32
    params = jax.eval_shape(models.create("ViT-Ti/16", 3).init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    weights = Weights(params["params"], "runs/vit", FrozenConfigDict(config))
    with pytest.raises(UserError, match=f"images of 32 pixels, which cannot be brought to image_size={size}: Appendix"):
        weights.at_image_size(size, "extend")


def test_a_convolutional_network_takes_any_image_size():
    config = recipe.base()
    config.model.variant, config.input.image_size = "BiT-R14x0.5", 32
    model = models.create("BiT-R14x0.5", num_classes=3)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"])
    weights = Weights(params, "runs/bit", FrozenConfigDict(config))
    assert weights.model() == model
    larger = weights.at_image_size(64, "extend")
    assert (larger.image_size, larger.images().image_size, larger.params is params) == (64, 64, True)
    config, _ = scoring.input_config(larger, None)
    assert (config.image_size, config.eval_resize) == (64, None)


def test_a_classes_file_that_does_not_fit_is_refused_and_odd_names_are_not(tmp_path):
    odd = ["an\u2028t", "b\x85ee", "c\x0bat", " dog", ""]
    folder = write_run(tmp_path / "run", [make_state(PARAMS, None, step=1)], odd)
    assert load(str(folder)).class_names == load(str(folder)).shown_names() == odd
    with (folder / "classes.txt").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"^classes.txt of .*run has 6 names, the model 5 classes: give one name a lin"):
        load(str(folder))
    (folder / "classes.txt").unlink()
    assert load(str(folder)).class_names is None
    assert load(str(folder)).shown_names() == ["0", "1", "2", "3", "4"]


def test_a_step_without_a_checkpoint_is_refused(run):
    (run / "checkpoints" / "5").mkdir()
    with pytest.raises(UserError, match="small holds no checkpoint of step 5 with params that can be read"):
        load(f"{run}/checkpoints/5")
    with pytest.raises(UserError, match=r"the run has no checkpoint of step 6; those of steps 3, 5, 7 are kept"):
        load(f"{run}/checkpoints/6")


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin", "model.npy", "model.npz.zip", "model"])
def test_files_of_other_kinds_are_refused_unread(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"never looked at")
    path.chmod(0)
    with pytest.raises(
        UserError, match=r"expected a run's folder or a file that ends in \.npz or \.safetensors, not '"
    ):
        load(str(path))


@pytest.mark.parametrize("source", ["B/16-i21", "b/16-i21k", "B16-i21k", "B/16_i21k"])
def test_the_nearest_name_of_a_published_checkpoint_is_offered(source):
    with pytest.raises(UserError, match=r"no such file or folder; did you mean B/16-i21k\?$"):
        load(source)


def test_the_error_for_a_missing_file_lists_the_published_names(tmp_path):
    with pytest.raises(UserError, match="no such file or folder; published checkpoints are B/16-i1k, L/16-i1k, "):
        load(f"{tmp_path}/nowhere.npz")


def test_a_missing_file_or_run_in_a_bucket_is_said(bucket_here):
    for name in ("nowhere.npz", "run", "run/checkpoints/3"):
        with pytest.raises(UserError, match="no such file or folder; published checkpoints are B/16-i1k, L/16-i1k, "):
            load(bucket_here.path(name))


def test_an_unknown_file_system_is_one_line():
    with pytest.raises(UserError, match=r"ftp://host/m.npz: only local paths and gs:// are supported"):
        load("ftp://host/m.npz")


def test_the_home_folder_of_an_unknown_user_has_no_file():
    with pytest.raises(UserError, match="no such file or folder"):
        load("~nobody-of-this-name/m.npz")


def test_averages_of_a_file_are_refused(tmp_path):
    (tmp_path / "m.npz").write_bytes(npz_bytes(PARAMS))
    with pytest.raises(UserError, match="is not the folder of a run: it has no averaged parameters"):
        load(str(tmp_path / "m.npz"), ema=True)


# --------------------------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize(
    ("variant", "classes", "count"), [("S/16", 1000, 18_528_264), ("B/16", 21843, 75_908_739), ("B/16", 0, 59_111_472)]
)
def test_the_model_follows_from_the_arrays(variant, classes, count):
    """The parameter counts are the published ones. Only shapes are needed, so the arrays take no memory."""
    model = models.create(variant, classes)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    found = Weights(params, "m.npz")
    assert found.model() == model
    assert found.image_size == 224
    assert sum(array.size for array in jax.tree.leaves(found.params)) == count


def without(*names):
    return nested({name: array for name, array in flat(PARAMS).items() if name not in names})


def changed(**arrays):
    return nested({**flat(PARAMS), **{name.replace("__", "/"): np.zeros(shape) for name, shape in arrays.items()}})


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({},
         "is not a Mixer's parameters: MixerBlock_0: missing there; pre_head_layer_norm/bias: missing there; "
         "pre_head_layer_norm/scale: missing there; stem/bias: missing there; stem/kernel: missing there"),
        ({**PARAMS, "stem": np.zeros(3)},
         "is not a Mixer's parameters: stem/bias: missing there; stem/kernel: missing there"),
        (without("stem/kernel"), "is not a Mixer's parameters: stem/kernel: missing there"),
        (without("MixerBlock_0/token_mixing/Dense_1/bias"),
         "is not a Mixer's parameters: MixerBlock_0/token_mixing/Dense_1/bias: missing there"),
        (without("stem/kernel", "stem/bias", "MixerBlock_1/LayerNorm_0/scale"),
         "is not a Mixer's parameters: MixerBlock_1/LayerNorm_0/scale: missing there; stem/bias: missing there; "
         "stem/kernel: missing there"),
        (without("head/bias"), "is not a Mixer's parameters: head/bias: missing there"),
        (without("head/kernel"), "looks like Mixer-2x16/4, but does not match it: head/kernel: missing there"),
        (without(*(f"MixerBlock_{n}/{m}_mixing/Dense_0/bias" for n in (0, 1) for m in ("channel", "token"))),
         "is not a Mixer's parameters: MixerBlock_0..1/channel_mixing/Dense_0/bias: missing there; "
         "MixerBlock_0..1/token_mixing/Dense_0/bias: missing there"),
        (changed(stem__kernel=()), "is not a Mixer's parameters: stem/kernel has the shape ()"),
        (changed(stem__kernel=(0, 0, 3, 16)), "is not a Mixer's parameters: stem/kernel has the shape (0, 0, 3, 16)"),
        (changed(head__bias=(), stem__bias=0),
         "is not a Mixer's parameters: stem/bias has the shape (0,); head/bias has the shape ()"),
        (changed(MixerBlock_0__token_mixing__Dense_1__bias=5), "5 tokens are no square grid of patches"),
        (without("MixerBlock_1/LayerNorm_0/scale"),
         "looks like Mixer-2x16/4, but does not match it: MixerBlock_1/LayerNorm_0/scale: missing there"),
        (changed(cls__token=(1, 16)), "looks like Mixer-2x16/4, but does not match it: cls/token: not in this model"),
        (changed(stem__kernel=(4, 2, 3, 16)),
         "looks like Mixer-2x16/4, but does not match it: stem/kernel: (4, 2, 3, 16) there, (4, 4, 3, 16) here"),
        (changed(MixerBlock_1__channel_mixing__Dense_0__kernel=(24, 16)),
         "looks like Mixer-2x16/4, but does not match it: "
         "MixerBlock_1/channel_mixing/Dense_0/kernel: (24, 16) there, (16, 24) here"),
    ],
)  # fmt: skip
def test_wrong_arrays_of_a_model_are_named(params, problem):
    with pytest.raises(UserError) as caught:
        Weights(params, "m.npz").model()
    assert str(caught.value).removeprefix("m.npz").lstrip(": ") == problem


@given(shapes=st.fixed_dictionaries({}, optional={
    name: st.none() | st.lists(st.integers(0, 4), max_size=4) for name in flat(make_params(make_model()))
}))  # fmt: skip
def test_any_arrays_under_these_names_are_a_model_or_refused(shapes):
    arrays = flat(PARAMS)
    for name, shape in shapes.items():
        if shape is None:
            del arrays[name]
        else:
            arrays[name] = np.zeros(shape, np.float32)
    with contextlib.suppress(UserError):
        model = Weights(nested(arrays), "m.npz").model()
        images = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)((1, 8, 8, 3))
        jax.eval_shape(model.apply, {"params": nested(arrays)}, images)


# -------------------------------------------------------------------------------------- a setting that makes a function


@pytest.fixture
def an_option(monkeypatch):
    """`identity_init` counts as an attribute that somebody has added, which changes the function and no shape."""
    same = [name for name in mlp_mixer.SAME_FUNCTION if name != "identity_init"]
    monkeypatch.setattr(mlp_mixer, "SAME_FUNCTION", same)


def test_an_added_option_is_read_from_the_run_and_refused_where_it_has_no_place(an_option, tmp_path):
    states = [make_state(PARAMS, AVERAGES, step=7)]
    run = str(write_run(tmp_path / "run", states, NAMES, **{"model.identity_init": True}))
    weights = load(run)
    model = weights.model()
    assert model.identity_init
    assert models.name_of(model) == "Mixer-2x16/4 (identity_init=True)"
    assert weights.at_image_size(16, "extend").model().identity_init
    for name, form in formats.FORMATS.items():
        with pytest.raises(UserError) if name in ("npz", "timm") else contextlib.nullcontext():
            file_format.check_holds(form, weights.exported())
    with pytest.raises(UserError, match=r"computes the paper's model only, and this is Mixer-2x16/4 \(identity_init=T"):
        live_model.check(weights, weights.images())
    plain = make_model()
    assert init_from.other_function(weights, plain) == "; their identity_init was True, here it is False"
    assert init_from.other_function(weights, plain.clone(identity_init=True)) == ""
    (tmp_path / "m.npz").write_bytes(npz_bytes(PARAMS))
    file = load(str(tmp_path / "m.npz"))
    assert not file.model().identity_init
    assert init_from.other_function(file, model) == "; their identity_init was False, here it is True"


def test_every_setting_of_the_input_is_known_of_a_run(run):
    config = load(str(run)).images()
    ours = recipe.base()
    assert config.keys() == ours.input.keys()
    known = load(str(run)).config.input
    assert json.loads(config.to_json()) == json.loads(known.as_configdict().to_json())


def test_a_run_with_a_setting_that_is_not_here_is_refused():
    config = recipe.base()
    with config.unlocked():
        config.model.activation = "tanh"
    with pytest.raises(UserError, match=r"r is a run of another version of this project: .* has no activation, "):
        Weights(PARAMS, "r", FrozenConfigDict(config)).model()
