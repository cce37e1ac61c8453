"""Every default of a run, and the paper's pre-training recipe. The files in `configs/` are calls of these functions.

Durations come in three units, of which one is set: `total_steps`, `total_examples` or `total_epochs`, and likewise for
warmup, log, eval and checkpoint. Setting one on the command line unsets its siblings.
"""

import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mixer.tasks import Task

UNITS = ("steps", "examples", "epochs")


def duration(config: ConfigDict, name: str, **unit: float) -> None:
    """Sets a duration and unsets its other units, for example duration(config, "total", epochs=300)."""
    for u in UNITS:
        kind = float if u == "epochs" else int
        if f"{name}_{u}" not in config:
            config[f"{name}_{u}"] = placeholder(kind)
        config[f"{name}_{u}"] = kind(unit[u]) if u in unit else None


def base() -> ConfigDict:
    """A run with nothing special about it: Adam, linear warm-up and decay, Inception crops and flips."""
    config = ConfigDict()
    config.seed = 0  # of parameters, order, augmentation and dropout
    config.batch_size = 4096  # global: over all devices and hosts (Section 3)
    config.accumulate_steps = 1  # parts of a batch whose gradients are added up, to need less memory
    duration(config, "total", epochs=300)
    duration(config, "warmup", steps=10_000)  # Section 3
    duration(config, "log", steps=50)
    duration(config, "eval", epochs=5)
    duration(config, "checkpoint", steps=1_000)
    config.loss = "sigmoid_xent"  # or softmax_xent; the paper is silent, the published ImageNet-1k config says sigmoid
    config.ema_decay = 0.0  # of a moving average of the parameters, evaluated beside them; 0 for none
    config.max_nonfinite_steps = 0  # steps left out, their loss or gradient not finite; at one more the run stops
    config.sharding = "data_parallel"  # or fully_sharded: parameters and optimizer state split over the devices
    config.init_from = placeholder(str)  # a run's workdir, .npz, .safetensors or B/16-i21k; new head for other classes
    config.resize = "extend"  # its token mixing to a multiple of its image size (Appendix C); or interpolate, to any

    config.model = ConfigDict()
    # Ti, S, B, L or H, and the patch size in pixels; or what Mixer is compared with, such as ViT-B/16 or BiT-R50x1.
    config.model.variant = "B/16"
    # These replace the variant's when set, where the model has them.
    config.model.num_blocks = placeholder(int)
    config.model.hidden_dim = placeholder(int)
    config.model.tokens_mlp_dim = placeholder(int)
    config.model.channels_mlp_dim = placeholder(int)
    config.model.dropout = 0.0  # Table 4
    config.model.stochastic_depth = 0.0  # probability at the last block, linear from 0 at the first (Appendix B)
    config.model.stochastic_depth_rescale = True  # False: the published code's form, which does not rescale
    config.model.head_bias_init = 0.0
    config.model.dtype = "bfloat16"  # or float32: of activations and matrix products
    config.model.remat = False  # recompute activations in the backward pass: less memory, a third more work
    config.model.scan = False  # compile one block and loop over it; without remat it takes several times the memory

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # or momentum, muon
    config.optimizer.learning_rate = 1e-3  # at the end of warm-up
    config.optimizer.decay = "linear"  # or cosine, constant
    config.optimizer.end_factor = 1e-5  # of the learning rate, at the end; as published
    config.optimizer.beta1 = 0.9  # Section 3; the momentum of "momentum"
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.1  # as in the paper: multiplied by the learning rate; on kernels only
    config.optimizer.clip_norm = 1.0  # of the gradient, over all parameters; 0 for no clipping

    config.mixup = ConfigDict()
    config.mixup.p = 0.0  # lambda ~ Beta(p, p); 0 for none
    config.mixup.group = 8  # rows within which partners lie; divides the rows of a device and of an accumulation step

    config.input = ConfigDict()
    config.input.dataset = "imagenet2012"  # a TFDS name; fractals/..., digits; or folder
    config.input.data_dir = placeholder(str)  # where it lies; TFDS' own default if not set
    config.input.train_split = "train"  # TFDS notation, such as train[:99%]
    config.input.eval_split = "validation"
    config.input.validation_share = 0.1  # of a folder without a validation folder
    config.input.max_labels = placeholder(int)  # an example's, for multi-label data that does not say
    config.input.image_size = 224  # pixels
    config.input.label_key = placeholder(str)  # the feature with the class or classes; found by its type if not set
    config.input.crop = "inception"  # or random (of the image as evaluation resizes it), pad (reflect an eighth and
    # shift), resize (the whole image)
    config.input.crop_area = (0.05, 1.0)  # of the image, for inception
    config.input.crop_aspect = (0.75, 4 / 3)
    config.input.flip = True
    config.input.scaled_decoding = False  # JPEGs at 1/2, 1/4 or 1/8 where a crop has pixels to spare; not the paper's
    config.input.randaugment = ConfigDict({"layers": 0, "magnitude": 10.0})  # Table 4; 0 layers for none
    config.input.eval_crop = "resize_small"  # or resize_square: then the central image_size pixels (Section 3)
    config.input.eval_resize = placeholder(int)  # pixels before the crop; 8/7 of image_size (256 for 224) if not set
    config.input.shuffle_block = 1  # records that stay neighbours; 16 or more for remote storage
    config.input.shuffle_window = 0  # blocks among which they are shuffled; 0 for all
    config.input.max_pixels = 100_000_000  # larger images are refused undecoded
    config.input.max_bad_share = 0.01  # of the images seen, at least 1000, that cannot be used; above it the run stops

    # Linear regression from frozen features at every evaluation. The paper's, on ImageNet: dataset=imagenet2012,
    # train_split=train[:65000] (30 images of each class, as published), test_split=validation.
    config.fewshot = ConfigDict()
    config.fewshot.dataset = placeholder(str)  # as for input; none if not set
    config.fewshot.data_dir = placeholder(str)  # where it lies; input.data_dir if not set
    config.fewshot.train_split = "train"  # all of it is read once, for its labels
    config.fewshot.test_split = "test"
    config.fewshot.shots = (1, 5, 10, 25)  # images of each class
    config.fewshot.seeds = 3  # choices of them, over which accuracy is averaged
    config.fewshot.l2 = 1024.0  # as published
    config.fewshot.eval_crop = "resize_square"  # or resize_small; as published
    config.fewshot.eval_resize = placeholder(int)  # as in input

    config.checkpoint = ConfigDict()
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every = 0  # steps: also keep those whose step this divides; 0 for none
    config.checkpoint.keep_best = 1  # by accuracy, among those saved right after an evaluation
    config.checkpoint.on_error = "stop"  # or continue: when it or the metrics cannot be written, as on a full disk

    config.profile_steps = 0  # steps to trace for TensorBoard's profiler, from the tenth; 0 for none
    return config


def pretrain(variant: str, *, dataset: str, epochs: float, learning_rate: float, weight_decay: float) -> ConfigDict:
    """What all pre-training runs of the paper share (Section 3, Table 4)."""
    config = base()
    config.model.variant = variant
    config.input.dataset = dataset
    duration(config, "total", epochs=epochs)
    config.optimizer.learning_rate = learning_rate
    config.optimizer.weight_decay = weight_decay
    return config


def imagenet1k(variant: str, *, magnitude: float = 15.0, mixup: float = 0.5) -> ConfigDict:
    """ImageNet-1k, 300 epochs (Table 4); tuned on the last per cent of train, as the published config does."""
    config = pretrain(variant, dataset="imagenet2012", epochs=300, learning_rate=1e-3, weight_decay=0.1)
    config.input.train_split = "train[:99%]"
    _regularise(config, magnitude, mixup)
    config.model.head_bias_init = -6.9  # -ln 1000, as published
    return config


def imagenet21k(variant: str, *, magnitude: float, mixup: float) -> ConfigDict:
    """ImageNet-21k as prepared by scripts/prepare.py, 300 epochs (Table 4)."""
    config = pretrain(variant, dataset="imagenet21k", epochs=300, learning_rate=1e-3, weight_decay=0.1)
    config.input.train_split, config.input.eval_split = "train[:99%]", "train[99%:]"  # the archive has no validation
    _regularise(config, magnitude, mixup)
    config.model.head_bias_init = -10.0  # -ln 21843; the paper is silent, the published ViT config for this data has it
    duration(config, "eval", epochs=10)
    return config


def jft(variant: str, *, epochs: float, learning_rate: float) -> ConfigDict:
    """A JFT-300M-like multi-label collection prepared by scripts/prepare.py: crops and flips alone (Section 3)."""
    config = pretrain(variant, dataset="multilabel", epochs=epochs, learning_rate=learning_rate, weight_decay=0.03)
    config.model.head_bias_init = -math.log(18_291)  # JFT-300M's classes; the paper is silent, as on the loss
    duration(config, "eval", epochs=0.5)
    return config


def finetune(variant: str, task: Task, image_size: int) -> ConfigDict:
    """Fine-tuning of a pre-trained model (Section 3 and Appendix A.2; ViT, arXiv 2010.11929, Appendix B.1.1)."""
    task.check_trainable()
    config = base()
    config.batch_size = 512
    duration(config, "total", steps=task.steps)
    duration(config, "warmup", steps=task.warmup_steps)
    duration(config, "eval", steps=min(task.steps, 1_000))
    duration(config, "checkpoint", steps=500)
    config.loss = "softmax_xent"
    config.model.variant = variant
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = task.learning_rates[len(task.learning_rates) // 2]  # 0.03
    config.optimizer.decay = "cosine"
    config.optimizer.end_factor = 0.0
    config.optimizer.weight_decay = 0.0
    config.input.dataset = task.dataset
    config.input.train_split, config.input.eval_split = task.train, task.test
    config.input.label_key, config.input.max_labels = task.label_key, task.max_labels
    config.input.image_size = image_size
    # The paper is silent on the crop in training; Inception crops did not help it (Appendix A.2). As in BiT, on which
    # ViT's fine-tuning is modelled: a random crop of the image as evaluation resizes it.
    config.input.crop = "random"
    return config


def small_model(config: ConfigDict) -> None:
    """Four blocks of width 96 with the usual ratios; patches of 4 pixels make 64 tokens of a 32-pixel image."""
    config.model.variant = "Ti/4"
    config.model.hidden_dim, config.model.tokens_mlp_dim, config.model.channels_mlp_dim = 96, 48, 384
    config.model.dtype = "float32"  # a CPU has no bfloat16 units


def _regularise(config: ConfigDict, magnitude: float, mixup: float) -> None:
    config.input.randaugment = ConfigDict({"layers": 2, "magnitude": magnitude})
    config.mixup.p = mixup
    config.model.stochastic_depth = 0.1
