"""Every setting of a run, declared once: default, unit, bounds or choices, meaning, and the file that reads it.

`recipe.base()` makes a config of the defaults; `checks.checked` checks a config; docs/configuration.md and
`mixer.train --print_config` are written from here.

Durations have three units, of which one is set: `total_steps`, `total_examples` or `total_epochs`, and likewise warmup,
log, eval and checkpoint.
"""

from typing import Any

from mixer.config.schema import Needs, Registry, Setting

UNITS: dict[str, type] = {"steps": int, "examples": int, "epochs": float}
DURATIONS = ("total", "warmup", "log", "eval", "checkpoint")

_INCEPTION = (Needs("input.crop", ("inception",)),)
_MIXED = (Needs("mixup.p"), Needs("mixup.cutmix"))
_ADAPTIVE = (Needs("optimizer.name", ("adam", "muon")),)
_FEW_SHOT = (Needs("fewshot.dataset"),)
_PERMUTED = "data/pixels/permutation.py"
_TFDS = "data/records/tfds_dataset.py"

EVAL_CROPS = Registry("mixer.data.pixels.crops:EVAL_CROPS")


def _duration(name: str, meaning: str, **default: float) -> dict[str, Setting]:
    """The three settings of a duration; its default is given in one unit."""
    bound: Any = {"low": 0} if name == "warmup" else {"positive": True}
    return {
        f"{name}_{unit}": Setting(
            kind(default[unit]) if unit in default else None,
            meaning,
            "config/durations.py",
            kind=kind,
            unit=unit,
            **bound,
        )
        for unit, kind in UNITS.items()
    }


SETTINGS: dict[str, Setting] = {
    "seed": Setting(
        0, "random seed of parameters, data order, augmentation and dropout", "train.py", low=0, high=2**31 - 1,
    ),
    "batch_size": Setting(
        4096, "images in a step, over all devices and hosts (Section 3)", "runtime/devices.py", unit="images", low=1,
    ),
    "accumulate_steps": Setting(
        1, "number of parts in which a batch is processed; their gradients are added, which needs less memory",
        "training/step.py", unit="parts", low=1,
    ),
    **_duration("total", "length of the run", epochs=300),
    **_duration("warmup", "linear warm-up of the learning rate (Section 3)", steps=10_000),
    **_duration("log", "interval between lines of metrics", steps=50),
    **_duration("eval", "interval between evaluations; an evaluator may have its own", epochs=5),
    **_duration("checkpoint", "interval between checkpoints", steps=1_000),
    "eval_at_start": Setting(False, "whether to evaluate before the first step as well", "run.py"),
    "loss": Setting(
        "sigmoid_xent", "loss function; the paper does not name it, its published ImageNet-1k config uses the sigmoid",
        "training/step.py", choices=Registry("mixer.training.losses:LOSSES"),
    ),
    "label_smoothing": Setting(
        0.0, "share of an image's label that training gives to all classes alike; the paper names none",
        "training/step.py", low=0, high=0.999,
    ),
    "ema_decay": Setting(
        0.0, "decay of a moving average of the parameters, which is evaluated too; 0 for none; at 0.9999 a float32 "
        "average already stops 5e-4 short of them", "training/step.py", low=0, high=0.9999,
    ),
    "max_nonfinite_steps": Setting(
        0, "steps whose loss or gradient is not finite, which are skipped; one more ends the run",
        "training/step.py", unit="steps", low=0,
    ),
    "sharding": Setting(
        "data_parallel", "data_parallel copies parameters and optimizer state to every device, fully_sharded splits "
        "each large array over the devices, if they divide an axis of it", "training/setup.py",
        choices=Registry("mixer.training.sharding:SHARDINGS"),
    ),
    "init_from": Setting(
        None, "weights to start from: a run's folder, .npz, .safetensors or a name such as B/16-i21k. The head is new "
        "if the classes are others", "train.py", kind=str,
    ),
    "init_ema": Setting(
        False, "start from the averaged parameters of a run", "transfer/init_from.py", needs=(Needs("init_from"),),
    ),
    "resize": Setting(
        "extend", "how token mixing reaches another image size: extend goes to a multiple of the old one (Appendix C), "
        "interpolate to any", "transfer/init_from.py", choices=Registry("mixer.transfer.resolution:METHODS"),
        needs=(Needs("init_from"),),
    ),
    "stem_init": Setting(
        "random", "first kernel of a Mixer's stem: random, or whitening, from patches of training images "
        "(docs/learning.md)", "training/whitening.py", choices=("random", "whitening"),
        needs=(Needs("init_from", (None,)),),
    ),
    # ------------------------------------------------------------------------------------------------------------ model
    "model.variant": Setting(
        "B/16", "Ti, S, B, L or H and the patch size in pixels; or a model to compare with: ViT-B/16, BiT-R50x1",
        "models/__init__.py",
    ),
    **{
        f"model.{width}": Setting(None, f"{meaning}; replaces the variant's", "models/mlp_mixer.py", kind=int, low=1)
        for width, meaning in {
            "num_blocks": "number of blocks", "hidden_dim": "C, channels of a token",
            "tokens_mlp_dim": "D_S, width of the token-mixing MLP",
            "channels_mlp_dim": "D_C, width of the channel-mixing MLP",
        }.items()
    },
    "model.token_mixing": Setting(
        "shared", "shared, one MLP mixes the tokens of each channel, as in the paper; or what its Appendix A.1 tried: "
        "untied, an MLP for each group of channels; grouped, several channels at once; views, learned views at once",
        "models/token_mixing.py", choices=Registry("mixer.models.token_mixing:TOKEN_MIXINGS"),
    ),
    "model.token_groups": Setting(
        1, "G, the groups of untied, or the channels or views that grouped and views mix at once; divides hidden_dim",
        "models/token_mixing.py", low=1, needs=(Needs("model.token_mixing", ("untied", "grouped", "views")),),
    ),
    "model.pyramid": Setting(
        None, "tokens after each block, such as 64,16,16,16 (Appendix A.1); not with scan", "models/token_mixing.py",
        kind=tuple,
    ),
    "model.identity_init": Setting(
        False, "whether the second kernel of each MLP is zero at first, so that every block starts as the identity; "
        "the paper does not (docs/learning.md)", "models/mlp_mixer.py", needs=(Needs("init_from", (None,)),),
    ),
    "model.dropout": Setting(
        0.0, "probability of dropping a unit after each dense layer (Table 4)", "models/mlp_mixer.py", low=0,
        high=0.999,
    ),
    "model.stochastic_depth": Setting(
        0.0, "probability of dropping a branch in the last block; grows linearly from 0 in the first (Appendix B)",
        "models/mlp_mixer.py", low=0, high=0.999,
    ),
    "model.stochastic_depth_rescale": Setting(
        True, "whether kept branches are divided by 1 - p; the paper's configs do not, as published "
        "(docs/fidelity.md)", "models/mlp_mixer.py",
        needs=(Needs("model.stochastic_depth"),),
    ),
    "dropout_keys": Setting(
        "threefry", "what draws the bits of dropout and stochastic depth: threefry, the same on all devices; rbg, the "
        "device's own generator, much cheaper on TPUs, where another layout then has other bits (docs/preflight.md)",
        "training/step.py", choices=Registry("mixer.training.step:DROPOUT_KEYS"),
        needs=(Needs("model.dropout"), Needs("model.stochastic_depth")),
    ),
    "model.head_bias_init": Setting(
        None, "initial value of every logit; if not set, -ln(classes) for a loss of sigmoids, 0 for one of a softmax",
        "training/setup.py", kind=float,
    ),
    "model.dtype": Setting(
        "bfloat16", "type of activations and matrix products; parameters are float32. auto: bfloat16, but float32 on a "
        "CPU or GPU that multiplies it no faster; a run keeps what it began with", "models/mlp_mixer.py",
        choices=("bfloat16", "float32", "auto"),
    ),
    "model.remat": Setting(
        False,
        "whether to recompute activations in the backward pass: less memory, a third more work. On a CPU, jax 0.10 "
        "does the work and saves no memory unless `model.scan` is on too; jax 0.12 does",
        "models/mlp_mixer.py",
    ),
    "model.scan": Setting(
        False, "whether to compile one block and loop over it; without remat this takes several times the memory",
        "models/mlp_mixer.py",
    ),
    # -------------------------------------------------------------------------------------------------------- optimizer
    "optimizer.name": Setting(
        "adam", "update rule; muon updates matrices, adam all else: also convolutions, so of a BiT all but the head",
        "training/optimizer.py", choices=Registry("mixer.training.optimizer:OPTIMIZERS"),
    ),
    "optimizer.learning_rate": Setting(1e-3, "learning rate at the end of warm-up", "training/optimizer.py", low=0),
    "optimizer.warmup_from_zero": Setting(
        False, "whether warm-up begins at learning rate 0, as published, so that the first step changes nothing; "
        "otherwise at its first share, peak / warm-up (docs/fidelity.md)", "training/optimizer.py",
        needs=tuple(Needs(f"warmup_{unit}") for unit in UNITS),
    ),
    "optimizer.decay": Setting(
        "linear", "schedule of the learning rate after warm-up", "training/optimizer.py",
        choices=Registry("mixer.training.optimizer:DECAYS"),
    ),
    "optimizer.end_factor": Setting(
        1e-5, "learning rate at the end, as a share of that at the end of warm-up; as published",
        "training/optimizer.py", low=0, needs=(Needs("optimizer.decay", ("linear", "cosine")),),
    ),
    "optimizer.beta1": Setting(
        0.9, "decay of the gradient's average in adam (Section 3); the momentum of momentum; with muon, for what Adam "
        "updates there: its own momentum is 0.95", "training/optimizer.py", low=0, high=0.999999,
    ),
    "optimizer.beta2": Setting(
        0.999, "decay of the squared gradient's average", "training/optimizer.py", low=0, high=0.9999999,
        needs=_ADAPTIVE,
    ),
    "optimizer.epsilon": Setting(
        1e-8, "added to the root of the squared gradient's average; with muon also to a matrix's norm, by which it is "
        "divided before it is made orthogonal; not 0, which would make NaN of a zero", "training/optimizer.py",
        low=1e-30, needs=_ADAPTIVE,
    ),
    "optimizer.weight_decay": Setting(
        0.1, "the paper's number, which is multiplied by the learning rate; applies to kernels only",
        "training/optimizer.py", low=0,
    ),
    "optimizer.multipliers": Setting(
        None, "factors of the learning rate by how a parameter's name begins, such as stem=0,MixerBlock_*=0.1,head=10: "
        "* is any part of a name, 0 leaves parameters as they are, and the last that fits counts",
        "training/optimizer.py", kind=str,
    ),
    "optimizer.clip_norm": Setting(
        1.0, "largest norm of the gradient, over all parameters; 0 for no clipping", "training/optimizer.py", low=0,
    ),
    # ------------------------------------------------------------------------------------------------------------ mixup
    "mixup.p": Setting(
        0.0, "parameter of the distribution of lambda, Beta(p, p); 0 for no mixup", "training/mixing.py", low=0,
    ),
    "mixup.cutmix": Setting(
        0.0, "share of the steps that paste a box of another image into each (CutMix) and do not blend them; the paper "
        "has none", "training/mixing.py", low=0, high=1,
    ),
    "mixup.group": Setting(
        8, "size of the groups of rows within which examples are mixed; must divide the rows of a device and of an "
        "accumulation step", "training/mixing.py", unit="rows", low=2, needs=_MIXED,
    ),
    # ------------------------------------------------------------------------------------------------------------ input
    "input.dataset": Setting(
        "imagenet2012", "a TFDS name; fractals/64x200x32, leaves/2000x48 or digits/32, which need no download; or "
        "folder", "data/readers.py",
    ),
    "input.data_dir": Setting(
        None, "folder of the dataset; TFDS' own default if not set", "data/records/tfds_dataset.py", kind=str,
    ),
    "input.train_split": Setting("train", "training split in TFDS notation, such as train[:99%]", "run.py"),
    "input.eval_split": Setting("validation", "split of the evaluator val", "evaluation/evaluators.py"),
    "input.validation_share": Setting(
        0.1, "share of each class that is kept for validation, if the folder has no validation folder",
        "data/folders/folder.py", low=0, high=0.9,
        needs=tuple(Needs(f"{of}.dataset", ("folder",)) for of in ("input", "fewshot", "evaluators.*")),
    ),
    "input.max_labels": Setting(
        None, "the most labels of an example, for multi-label data that does not say", _TFDS, kind=int, low=1,
    ),
    "input.image_size": Setting(
        224, "height and width of the model's input", "data/pixels/crops.py", unit="pixels", low=1,
    ),
    "input.label_key": Setting(
        None, "the feature with the class or classes; if not set, the sequence labels, label, or the only such feature",
        _TFDS, kind=str,
    ),
    "input.crop": Setting(
        "inception", "what training sees of an image: inception, a random window of 5 to 100% of it; random, a random "
        "part of the image as evaluation resizes it; pad, reflect an eighth on each side and shift; resize, all of it",
        "data/pixels/crops.py", choices=Registry("mixer.data.pixels.crops:CROPS"),
    ),
    "input.crop_area": Setting(
        (0.05, 1.0), "area of the window as a share of the image's", "data/pixels/crops.py", high=1.0, needs=_INCEPTION,
    ),
    "input.crop_aspect": Setting(
        (0.75, 4 / 3), "width of the window over its height", "data/pixels/crops.py", needs=_INCEPTION,
    ),
    "input.flip": Setting(True, "whether to mirror half of the images", "data/pixels/augmentations.py"),
    "input.scaled_decoding": Setting(
        False, "whether to decode JPEGs at 1/2, 1/4 or 1/8 of their size where a crop has pixels to spare; the paper "
        "does not", "data/pixels/augment.py", needs=(Needs("input.crop", ("inception", "pad", "resize")),),
    ),
    "input.randaugment.layers": Setting(
        0, "number of RandAugment operations on each image (Table 4); 0 for none", "data/pixels/augmentations.py",
        low=0, high=16,
    ),
    "input.randaugment.magnitude": Setting(
        10.0, "magnitude of these operations", "data/pixels/augmentations.py", low=0,
        needs=(Needs("input.randaugment.layers"),),
    ),
    "input.randaugment.contrast": Setting(
        "pil", "what Contrast blends an image with: pil, the mean of its gray pixels; published, the number of its "
        "pixels over 256, which is 196 at 224 pixels (docs/fidelity.md)", "data/pixels/randaugment.py",
        choices=Registry("mixer.data.pixels.randaugment:CONTRASTS"), needs=(Needs("input.randaugment.layers"),),
    ),
    "input.color_jitter": Setting(
        0.0, "strength of random changes of hue, saturation, contrast and brightness; 1 gives any hue, and a fifth of "
        "the images in grey; the paper has none", "data/pixels/augmentations.py", low=0, high=1,
    ),
    "input.eval_crop": Setting(
        "resize_small", "in evaluation, before the central image_size pixels are taken (Section 3): resize the shorter "
        "side, or both sides", "data/pixels/augment.py", choices=EVAL_CROPS,
    ),
    "input.eval_resize": Setting(
        None, "size before that crop; 8/7 of image_size (256 for 224) if not set", "data/pixels/crops.py", kind=int,
        unit="pixels", low=1,
    ),
    "input.resize_rounding": Setting(
        "round", "how the pixels of a resized image become uint8, in training and evaluation: round; truncate, as "
        "published, which makes images half a level darker (docs/fidelity.md)", "data/pixels/crops.py",
        choices=Registry("mixer.data.pixels.crops:RESIZE_ROUNDINGS"),
    ),
    "input.shuffle_block": Setting(
        0, "number of records that stay neighbours in every epoch; 0 for 1 on a local disk and 16 for records in a "
        "bucket, which is then the run's for good", "data/pipeline.py", unit="records", low=0,
    ),
    "input.shuffle_window": Setting(
        0, "number of neighbouring blocks that are shuffled among each other; 0 for all", "data/pipeline.py",
        unit="blocks", low=0,
    ),
    "input.max_pixels": Setting(
        100_000_000, "size of an image above which it is not decoded; an image is resized in as much memory",
        "data/pixels/images.py", unit="pixels", low=1,
    ),
    "input.transparent": Setting(
        "drop", "transparent pixels: drop leaves the colours under them, often black, as published; white lays the "
        "image on white", "data/pixels/images.py", choices=Registry("mixer.data.pixels.images:TRANSPARENT"),
    ),
    "input.exif": Setting(
        "rotate", "a picture that its EXIF orientation says is stored turned: rotate turns it upright; ignore leaves "
        "it, as published", "data/pixels/images.py", choices=Registry("mixer.data.pixels.images:EXIF"),
    ),
    "input.permutation": Setting(
        "none", "permutation of pixels after augmentation, the same in all images (Figure 4): patches, patches and, "
        "alike in each, the pixels within a patch; pixels, all pixels", _PERMUTED,
        choices=Registry("mixer.data.pixels.permutation:PERMUTATIONS"),
    ),
    "input.permutation_patch": Setting(
        None, "side of these patches, such as the model's; must divide image_size", _PERMUTED, kind=int, unit="pixels",
        low=1, needs=(Needs("input.permutation", ("patches",)),),
    ),
    "input.permutation_seed": Setting(
        0, "random seed of the permutation; the run's own seed does not change it", _PERMUTED, low=0, high=2**31 - 1,
        needs=(Needs("input.permutation", ("patches", "pixels")),),
    ),
    "input.max_bad_share": Setting(
        0.01, "share of unusable images above which the run stops; each counts once, in at least 1,000 images",
        "training/health.py", low=0, high=1,
    ),
    # ------------------------------------------------------------------------------- evaluators besides the first split
    "fewshot.dataset": Setting(
        None, "the evaluator fewshot: linear regression from frozen features. The paper's: imagenet2012, "
        "train_split=train[:65000] (at least 30 images a class), test_split=validation", "evaluation/evaluators.py",
        kind=str,
    ),
    "fewshot.data_dir": Setting(
        None, "folder of the dataset; input.data_dir if not set", "evaluation/classification.py", kind=str,
        needs=_FEW_SHOT,
    ),
    "fewshot.label_key": Setting(
        None, "input.label_key of this dataset", "evaluation/classification.py", kind=str, needs=_FEW_SHOT,
    ),
    "fewshot.train_split": Setting(
        "train", "split from which images are chosen; read once as a whole, for its labels", "evaluation/few_shot.py",
        needs=_FEW_SHOT,
    ),
    "fewshot.test_split": Setting(
        "test", "split on which accuracy is measured", "evaluation/evaluators.py", needs=_FEW_SHOT,
    ),
    "fewshot.shots": Setting(
        (1, 5, 10, 25), "numbers of images of each class, each evaluated", "evaluation/few_shot.py", needs=_FEW_SHOT,
    ),
    "fewshot.seeds": Setting(
        3, "number of random choices of these images, over which accuracy is averaged", "evaluation/few_shot.py", low=1,
        needs=_FEW_SHOT,
    ),
    "fewshot.l2": Setting(
        1024.0, "regularisation of the regression, as published", "evaluation/few_shot.py", low=1e-3, needs=_FEW_SHOT,
    ),
    "fewshot.eval_crop": Setting(
        "resize_square", "crop in both splits, as published", "evaluation/few_shot.py", choices=EVAL_CROPS,
        needs=_FEW_SHOT,
    ),
    "fewshot.eval_resize": Setting(
        None, "size before that crop; 8/7 of image_size if not set", "evaluation/few_shot.py", kind=int, unit="pixels",
        low=1, needs=_FEW_SHOT,
    ),
    # ------------------------------------------------------------------------------------------------------ checkpoints
    "checkpoint.keep_last": Setting(2, "number of newest checkpoints that are kept", "training/checkpoint.py", low=1),
    "checkpoint.keep_every": Setting(
        0, "the first checkpoint at or after each multiple of so many steps is kept too; 0 for none",
        "training/checkpoint.py", unit="steps", low=0,
    ),
    "checkpoint.keep_best": Setting(
        1, "number of most accurate checkpoints that are kept; if not 0, each evaluation of val is followed by a save",
        "training/checkpoint.py", low=0,
    ),
    "checkpoint.on_error": Setting(
        "stop", "what to do if a checkpoint or metrics cannot be written, as on a full disk", "training/checkpoint.py",
        choices=("stop", "continue"),
    ),
    # ---------------------------------------------------------------------------------------------------------- metrics
    "metrics.train_accuracy": Setting(
        True, "whether lines of training have accuracy and top-5 accuracy; they cost a pass over the logits",
        "training/step.py",
    ),
    "metrics.norms": Setting(
        "total", "norms of the last step in lines of training: total, of gradient and parameters; updates, also of the "
        "update as a share of the parameters; layers, all three for each layer too", "training/step.py",
        choices=("total", "updates", "layers"),
    ),
    "metrics.writers": Setting(
        ("tensorboard",), "where metrics go besides metrics.jsonl; wandb is Weights & Biases, an extra", "run.py",
        choices=Registry("mixer.training.writers:WRITERS"),
    ),
    "profile_steps": Setting(
        0, "number of steps to trace for TensorBoard's profiler, after the tenth; 0 for none", "train.py", unit="steps",
        low=0,
    ),
}  # fmt: skip
