"""Compares our Mixer with timm's under torch.compile, on the CPU: `make bench`.

    python -m scripts.against_timm --models s16 --modes inference

Both models classify the same number of 224 px images in float32. A training step is forward, backward, clipping and
Adam. Each library uses its fastest form, such as torch's fused Adam. Our step also counts steps that are not finite.

Both models run in one process and take turns, one call each. So a drift of the machine's speed affects both alike.
"""

import argparse
import importlib.metadata
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from etils import epy

from mixer.runtime import cpu

cpu.keep_freed_memory()  # before torch starts threads; both libraries gain from it

# timm imports torchvision's transforms. torchvision has no build for CPUs, so its operators cannot be loaded. Nothing
# here uses them; this empty module takes the place of their registration.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))

with epy.lazy_imports():  # --help waits for none of them, and needs neither timm nor torch
    import jax
    import timm
    import torch

    from mixer import models
    from mixer.performance import model_speed

MODES = ("inference", "train")
MODELS = {"s16": ("S/16", "mixer_s16_224"), "b16": ("B/16", "mixer_b16_224")}


def ours(variant: str, mode: str, batch_size: int) -> Callable[[], Any]:
    """Returns a function that runs our model once and waits for the result."""
    call = model_speed.ready(variant, mode, batch_size, model_speed.Settings())
    return lambda: jax.block_until_ready(call())


def timms(name: str, mode: str, batch_size: int) -> Callable[[], Any]:
    """Returns a function that runs timm's model once."""
    model = timm.create_model(name, num_classes=1000).train(mode == "train")
    compiled: Any = torch.compile(model)
    images, labels = torch.randn(batch_size, 3, 224, 224), torch.randint(0, 1000, (batch_size,))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def infer() -> Any:
        with torch.inference_mode():
            return compiled(images)

    def train() -> Any:
        adam.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(compiled(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()

    return train if mode == "train" else infer


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns how long one call takes."""
    since = time.perf_counter()
    call()
    return time.perf_counter() - since


def compare(model: str, mode: str, batch_size: int, turns: int, peak: float | None) -> tuple[list[str], float]:
    """Times both models in turns.

    Args:
      model: a key of `MODELS`.
      mode: one of `MODES`.
      batch_size: images for each call.
      turns: timed calls of each model.
      peak: FLOP/s of this machine; None if it is not known.

    Returns:
      Three cells of the table, each with median, least and most: our images/s, timm's images/s, and our rate divided by
      timm's; and our MFU, which is NaN if the peak is not known.
    """
    variant, name = MODELS[model]
    calls = (ours(variant, mode, batch_size), timms(name, mode, batch_size))
    for call in calls * 2:  # compiles, then warms up
        call()
    rates = [[batch_size / seconds_of(call) for call in calls] for _ in range(turns)]
    here, there = zip(*rates, strict=True)
    flops = model_speed.FLOPS_PER_MAC[mode] * models.create(variant, 1000).forward_macs(224)
    ratios = [one / other for one, other in rates]
    cells = [f"{statistics.median(v):.3g} ({min(v):.3g}-{max(v):.3g})" for v in (here, there, ratios)]
    return cells, statistics.median(here) * flops / (peak or float("nan"))


def main() -> None:
    """Prints a line for each model and mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which to compare (default: all)")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="what to time (default: both)")
    add("--batch_size", type=int, default=32, help="images for each call (default: %(default)s)")
    add("--turns", type=int, default=3, help="timed calls of each model (default: %(default)s)")
    given = parser.parse_args()
    if missing := [name for name in ("timm", "torch") if importlib.util.find_spec(name) is None]:
        sys.exit(f"against_timm: {' and '.join(missing)} cannot be imported; `make bench` installs timm and torch")
    torch.set_num_threads(cpu.processors())
    peak, source = model_speed.peak("float32")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "timm")}
    print(f"{cpu.processors()} processors; {', '.join(map(' '.join, versions.items()))}; {source}\n")
    line = "{:<6}{:<11}{:>6}{:>24}{:>24}{:>22}{:>10}".format
    print(line("model", "mode", "batch", "here, images/s", "timm, images/s", "ratio", "here, MFU"))
    for model in given.models:
        for mode in given.modes:
            cells, mfu = compare(model, mode, given.batch_size, given.turns, peak)
            print(line(MODELS[model][0], mode, given.batch_size, *cells, f"{mfu:.0%}"), flush=True)


if __name__ == "__main__":
    main()
