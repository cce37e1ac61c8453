"""A small run of `mixer.train` on fractals, which tests of several commands read."""

from configs import quickstart
from mixer.config import checks, durations
from mixer.train import train

DATASET = "fractals/4x40x16"  # 144 training and 16 validation images of four classes, 16 pixels
TINY = {
    "model.variant": "Ti/4",
    "model.num_blocks": 2,
    "model.hidden_dim": 16,
    "model.channels_mlp_dim": 32,
    "model.dtype": "float32",  # as mixer.evaluate and the page compute what the run measured
    "input.dataset": DATASET,
    "input.image_size": 16,
    "input.eval_resize": 16,
    "batch_size": 16,
    "total_steps": 90,
    "warmup_steps": 5,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1e-2,
    "eval_steps": 90,
    "checkpoint_steps": 90,
    "metrics.writers": (),
}


def make_run(folder, data_dir, **changes):
    """Trains in `folder` on the data set that was prepared in `data_dir`; changes are settings by dotted names."""
    settings = {**TINY, "input.data_dir": str(data_dir), **changes}
    config = quickstart.get_config("fractals")
    config.update_from_flattened_dict(settings)
    train(checks.checked(durations.one_unit_each(config, settings)), folder)
    return folder
