"""A config is checked as a whole: every mistake is told in one line."""

import pytest
from ml_collections import ConfigDict

from mixer.config import checks, recipe
from mixer.runtime.errors import UserError


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"loss": "xent"}, "config.loss='xent': expected one of sigmoid_xent, softmax_xent"),
        ({"sharding": "zero"}, "config.sharding='zero': expected one of data_parallel, fully_sharded"),
        ({"model__dtype": "float16"}, "config.model.dtype='float16': expected one of bfloat16, float32"),
        ({"optimizer__name": "sgd"}, "config.optimizer.name='sgd': expected one of adam, momentum"),
        ({"optimizer__decay": "step"}, "config.optimizer.decay='step': expected one of linear, cosine, constant"),
        ({"input__crop": "centre"}, "config.input.crop='centre': expected one of inception, random, pad, resize"),
        ({"input__eval_crop": "x"}, "config.input.eval_crop='x': expected one of resize_small, resize_square"),
        ({"seed": -1}, "config.seed=-1: expected at least 0 and at most 2147483647"),
        ({"batch_size": 0}, "config.batch_size=0: expected at least 1"),
        ({"ema_decay": 1.0}, "config.ema_decay=1.0: expected at least 0 and at most 0.9999"),
        ({"optimizer__epsilon": 0.0}, "config.optimizer.epsilon=0.0: expected at least 1e-30"),
        ({"model__dropout": 1.0}, "config.model.dropout=1.0: expected at least 0 and at most 0.999"),
        ({"model__num_blocks": 0}, "config.model.num_blocks=0: expected at least 1"),
        ({"optimizer__learning_rate": float("nan")}, "config.optimizer.learning_rate=nan: expected at least 0"),
        ({"optimizer__learning_rate": float("inf")}, "config.optimizer.learning_rate=inf: expected at least 0"),
        ({"optimizer__beta1": 1.0}, "config.optimizer.beta1=1.0: expected at least 0 and at most 0.999999"),
        (
            {"optimizer__warmup_from_zero": True, "warmup_steps": 0},
            "config.optimizer.warmup_from_zero=True would not be read: it needs warmup_steps to be set, which is",
        ),
        ({"input__resize_rounding": "up"}, "config.input.resize_rounding='up': expected one of round, truncate"),
        ({"mixup__group": 1}, "config.mixup.group=1: expected at least 2"),
        ({"input__max_bad_share": 1.5}, "config.input.max_bad_share=1.5: expected at least 0 and at most 1"),
        ({"fewshot__seeds": 0}, "config.fewshot.seeds=0: expected at least 1"),
        ({"fewshot__l2": 0.0}, "config.fewshot.l2=0.0: expected at least 0.001"),
        ({"fewshot__eval_crop": "x"}, "config.fewshot.eval_crop='x': expected one of resize_small, resize_square"),
        (
            {"fewshot__dataset": "cifar10", "fewshot__eval_resize": 200},
            "config.fewshot.eval_resize=200 is smaller than input.image_size=224, which",
        ),
        ({"input__permutation": "rows"}, "config.input.permutation='rows': expected one of none, patches, pixels"),
        (
            {"input__permutation": "patches"},
            "config.input.permutation_patch is not set: input.permutation=patches needs the side of patches that",
        ),
        (
            {"input__permutation": "patches", "input__permutation_patch": 15},
            "config.input.permutation_patch=15 does not divide input.image_size=224: input.permutation=patches needs",
        ),
        (
            {"input__permutation": "pixels", "input__permutation_patch": 16},
            "config.input.permutation_patch=16 would not be read: it needs input.permutation=patches, which is",
        ),
        (
            {"input__permutation_seed": 1},
            "config.input.permutation_seed=1 would not be read: it needs input.permutation=patches or pixels, which is",
        ),
        ({"checkpoint__keep_last": 0}, "config.checkpoint.keep_last=0: expected at least 1"),
        ({"log_steps": 0}, "config.log_steps=0: expected a finite number above 0"),
        ({"total_epochs": -1.0}, "config.total_epochs=-1.0: expected a finite number above 0"),
        ({"total_epochs": float("inf")}, "config.total_epochs=inf: expected a finite number above 0"),
        ({"warmup_steps": -1}, "config.warmup_steps=-1: expected at least 0"),
        ({"accumulate_steps": 3}, "config.batch_size=4096 is not divisible by accumulate_steps=3"),
        (
            {"total_steps": 5},
            "exactly one of total_steps, total_examples, total_epochs must be set; here total_steps=5 and "
            'total_epochs=300.0 is: in a config file, recipe.duration(config, "total", epochs=...) sets one and unsets',
        ),
        ({"log_steps": None}, "exactly one of log_steps, log_examples, log_epochs must be set; here none is: in a con"),
        (
            {"model__stochastic_depth": 0.1, "model__num_blocks": 1},
            "config.model.stochastic_depth=0.1 would not be read: it grows from 0 in the first block, and this model",
        ),
        (
            {"model__variant": "B"},
            "config.model.variant: model variant 'B': expected one of Ti, S, B, L, H, a slash",
        ),
        (
            {"model__variant": "ViT-B/16", "model__tokens_mlp_dim": 4},
            "config.model: model variant 'ViT-B/16' has no tokens_mlp_dim, which was set to 4",
        ),
        (
            {"model__variant": "ViT-B/16", "model__token_mixing": "untied"},
            "config.model: model variant 'ViT-B/16' has no token_mixing, which was set to 'untied'",
        ),
        (
            {"model__variant": "BiT-R50x1", "model__pyramid": (64, 16)},
            "config.model: model variant 'BiT-R50x1' has no pyramid, which was set to (64, 16)",
        ),
        ({"model__token_mixing": "tied"}, "config.model.token_mixing='tied': expected one of shared, untied, grouped,"),
        (
            {"model__token_mixing": "untied", "model__token_groups": 5},
            "config.model: token_groups=5 does not divide the 768 channels of hidden_dim",
        ),
        ({"model__pyramid": ()}, "config.model.pyramid=(): expected whole numbers above 0"),
        ({"model__pyramid": (196, 0)}, "config.model.pyramid=(196, 0): expected whole numbers above 0"),
        (
            {"model__pyramid": (196, 49), "model__num_blocks": 3},
            "config.model.pyramid=(196, 49) has 2 numbers for 3 blocks: give the tokens after each block",
        ),
        (
            {"model__pyramid": (196, 50), "model__num_blocks": 2},
            "config.model.pyramid=(196, 50): MixerBlock_1 cannot make 50 tokens of 196, which can become 196, 49, 4, 1",
        ),
        (
            {"model__pyramid": (196, 49), "model__num_blocks": 2, "model__scan": True},
            "config.model: pyramid=(196, 49) has blocks of several shapes, over which scan=True cannot loop",
        ),
        (
            {"input__image_size": 225},
            "config.input.image_size=225 is not a multiple of the patch size of config.model.variant='B/16'; "
            "the nearest that is: 224",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_that_is_not_allowed_is_one_line(base_with, fields, line):
    with pytest.raises(UserError) as caught:
        checks.checked(base_with(**fields))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"optimizer__name": "momentum", "optimizer__beta2": 0.9},
            "config.optimizer.beta2=0.9 would not be read: it needs optimizer.name=adam or muon, which is 'momentum' "
            "here; leave it at 0.999",
        ),
        (
            {"input__crop": "random", "input__crop_area": (0.1, 1.0)},
            "config.input.crop_area=[0.1, 1.0] would not be read: it needs input.crop=inception, which is 'random' "
            "here; leave it at (0.05, 1.0)",
        ),
        (
            {"mixup__group": 4},
            "config.mixup.group=4 would not be read: it needs mixup.p to be set, which is 0.0 here or mixup.cutmix to "
            "be set, which is 0.0 here; leave it at 8",
        ),
        ({"mixup__p": 0.5, "mixup__cutmix": 1.0}, "config.mixup.p=0.5 would not be read: with mixup.cutmix=1 no step"),
        ({"input__crop": "random", "input__scaled_decoding": True}, "config.input.scaled_decoding=True would not be r"),
        ({"input__validation_share": 0.2}, "config.input.validation_share=0.2 would not be read: it needs input.data"),
        ({"input__randaugment__magnitude": 5.0}, "config.input.randaugment.magnitude=5.0 would not be read: it needs"),
        ({"optimizer__decay": "constant", "optimizer__end_factor": 0.0}, "config.optimizer.end_factor=0.0 would not"),
        ({"model__stochastic_depth_rescale": False}, "config.model.stochastic_depth_rescale=False would not be read"),
        (
            {"model__token_groups": 4},
            "config.model.token_groups=4 would not be read: it needs model.token_mixing=untied or grouped or views, "
            "which is 'shared' here; leave it at 1",
        ),
        ({"resize": "interpolate"}, "config.resize='interpolate' would not be read: it needs init_from to be set"),
        ({"fewshot__seeds": 5}, "config.fewshot.seeds=5 would not be read: it needs fewshot.dataset to be set, which"),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_the_run_would_not_read_is_refused(base_with, fields, line):
    with pytest.raises(UserError) as caught:
        checks.checked(base_with(**fields))
    assert str(caught.value).startswith(line)


def test_a_setting_that_the_run_reads_is_accepted(base_with):
    """Each of those above, where its condition holds."""
    read = base_with(
        optimizer__beta2=0.9, input__crop_area=(0.1, 1.0), mixup__p=0.5, mixup__group=4, input__scaled_decoding=True,
        input__dataset="folder", input__validation_share=0.2, input__randaugment__layers=1,
        input__randaugment__magnitude=5.0, optimizer__end_factor=0.0, model__stochastic_depth=0.1,
        model__stochastic_depth_rescale=False, init_from="B/16-i1k", resize="interpolate", fewshot__dataset="digits",
        fewshot__seeds=5,
    )  # fmt: skip
    assert checks.checked(read).mixup.group == 4


def test_the_share_of_a_folder_is_read_by_whatever_takes_images_from_one(base_with):
    share = {"input__validation_share": 0.2}
    assert checks.checked(base_with(fewshot__dataset="folder", **share)).input.validation_share == 0.2
    config = base_with(**share)
    config.evaluators.mine = recipe.evaluator_settings("classification", dataset="folder")
    assert checks.checked(config).input.validation_share == 0.2
    config = base_with(**share)
    config.evaluators.mine = recipe.evaluator_settings("classification", dataset="digits")
    needs = "it needs input.dataset=folder, which is 'imagenet2012' here or fewshot.dataset=folder, which is None here "
    with pytest.raises(UserError, match=f"{needs}or evaluators.*.dataset=folder, which none is here; leave it at 0.1"):
        checks.checked(config)


def test_a_vit_whose_heads_do_not_divide_its_width_is_one_line(base_with):
    with pytest.raises(UserError, match=r"config.model: hidden_dim=100 is not a multiple of the 3 heads of this vari"):
        checks.checked(base_with(model__variant="ViT-Ti/16", model__hidden_dim=100))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"kind": "regression"}, "config.evaluators.v2.kind='regression': expected one of classification, few_shot"),
        ({"shots": (2,)}, "config.evaluators.v2.shots=[2] would not be read: it needs evaluators.v2.kind=few_shot, w"),
        ({"label_key": "a", "dataset": None}, "config.evaluators.v2.label_key='a' would not be read: it needs eval"),
        ({"every_steps": 0}, "config.evaluators.v2.every_steps=0: expected a finite number above 0"),
        ({"every_steps": 5, "every_epochs": 1.0}, "config.evaluators.v2 has every_steps and every_epochs; give one"),
        ({"eval_resize": 200}, "config.evaluators.v2.eval_resize=200 is smaller than input.image_size=224"),
        ({"spilt": "test"}, "config.evaluators.v2.spilt: no such setting; the nearest is config.evaluators.v2.split"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_an_evaluators_settings_is_one_line(base_with, changes, line):
    config = base_with()
    config.evaluators.v2 = recipe.evaluator_settings("classification", dataset="imagenet_v2")
    config.evaluators.v2.unlock()
    config.evaluators.v2.update(changes)
    with pytest.raises(UserError) as caught:
        checks.checked(config)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize("name", ["train", "val", "fewshot", "val_ema", "a/b"])
def test_an_evaluators_name_must_not_be_that_of_other_metrics(base_with, name):
    config = base_with()
    config.evaluators[name] = recipe.evaluator_settings("classification")
    with pytest.raises(UserError, match=f"config.evaluators.{name}: "):
        checks.checked(config)


def test_no_warm_up_and_optional_fields_are_allowed(base_with):
    config = checks.checked(base_with(warmup_steps=0, model__num_blocks=3, input__eval_resize=256))
    assert (config.warmup_steps, config.model.num_blocks) == (0, 3)


def test_flat_names_every_field():
    config = ConfigDict({"a": 1, "b": {"c": (1, 2), "d": {"e": None}}})
    assert checks.flat(config) == {"a": 1, "b.c": [1, 2], "b.d.e": None}


def test_a_copy_can_be_changed_without_a_change_of_the_original(base_with):
    config = checks.checked(base_with())
    before = checks.flat(config)
    copy = checks.unlocked_copy(config)
    copy.input.label_key, copy.input.max_labels, copy.model.remat, copy.seed = "another", 4, True, 5
    copy.evaluators.more = recipe.evaluator_settings("classification")
    assert checks.flat(config) == before
    assert config.is_locked
