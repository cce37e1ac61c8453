"""Mixer here beside timm's under torch.compile, on the CPU, turn by turn in one process: `make bench`.

Both classify the same number of 224 px images in float32. A training step is forward, backward, clipping and Adam, in
the form that is fastest in each library (torch's Adam is fused); here it counts steps that are not finite besides. Each
turn is one call of each, so that a machine whose speed drifts treats both alike.
"""

import argparse
import importlib.metadata
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from mixer.runtime import cpu

cpu.keep_freed_memory()  # before torch has threads; it helps both

# torchvision, of which timm takes transforms, has no build for CPUs. This stands for its operators, which none uses.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))

import jax  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402

from mixer import models  # noqa: E402
from mixer.performance import model_speed  # noqa: E402
from mixer.runtime import cpu  # noqa: E402

MODELS = {"s16": ("S/16", "mixer_s16_224"), "b16": ("B/16", "mixer_b16_224")}


def ours(variant: str, mode: str, batch_size: int) -> Callable[[], Any]:
    """Runs our model once for each call, and waits for it."""
    call = model_speed.ready(variant, mode, batch_size, model_speed.Settings())
    return lambda: jax.block_until_ready(call())


def timms(name: str, mode: str, batch_size: int) -> Callable[[], Any]:
    """Runs timm's model once for each call."""
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
    """How long one call takes."""
    since = time.perf_counter()
    call()
    return time.perf_counter() - since


def main() -> None:
    """Prints a row for each model and mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=model_speed.MODES, default=list(model_speed.MODES))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(cpu.processors())
    peak, source = model_speed.peak("float32")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "timm")}
    print(f"{cpu.processors()} processors; {', '.join(map(' '.join, versions.items()))}; {source}\n")
    row = "{:<6}{:<11}{:>6}{:>24}{:>24}{:>22}{:>10}".format
    print(row("model", "mode", "batch", "here, images/s", "timm, images/s", "ratio", "here, MFU"))
    for model in given.models:
        for mode in given.modes:
            variant, name = MODELS[model]
            calls = (ours(variant, mode, given.batch_size), timms(name, mode, given.batch_size))
            for call in calls * 2:  # compile, and warm up
                call()
            turns = [[given.batch_size / seconds_of(call) for call in calls] for _ in range(given.turns)]
            here, there = zip(*turns, strict=True)
            flops = (6 if mode == "train" else 2) * models.create(variant, 1000).forward_macs(224)
            mfu = statistics.median(here) * flops / (peak or float("nan"))
            ratios = [one / other for one, other in turns]
            cells = [f"{statistics.median(v):.3g} ({min(v):.3g}-{max(v):.3g})" for v in (here, there, ratios)]
            print(row(variant, mode, given.batch_size, *cells, f"{mfu:.0%}"), flush=True)


if __name__ == "__main__":
    main()
