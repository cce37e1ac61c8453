"""Compares our Mixer with timm's under torch.compile, on the CPU: `make bench`.

    python -m scripts.against_timm --models s16 --modes inference

Both models classify the same number of 224 px images, in float32 and in bfloat16 (timm's under torch.autocast). A
training step is forward, backward, clipping and Adam. Each library uses its fastest form, such as torch's fused Adam.
Our step also counts steps that are not finite.

Both models run in one process and take turns, one call each. So a drift of the machine's speed affects both alike. The
column "products" is what our rate would be if only the matrix products took time, each run alone by XLA.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import itertools
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from etils import epy

from mixer.runtime import cpu, machine

cpu.keep_freed_memory()  # before torch starts threads; both libraries gain from it

# timm imports torchvision's transforms. torchvision has no build for CPUs, so its operators cannot be loaded. Nothing
# here uses them; this empty module takes the place of their registration.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))

with epy.lazy_imports():  # --help waits for none of them, and needs neither timm nor torch
    import jax
    import jax.numpy as jnp
    import timm
    import torch

    from mixer import models
    from mixer.performance import model_speed

MODES = ("inference", "train")
DTYPES = ("float32", "bfloat16")
MODELS = {"s16": ("S/16", "mixer_s16_224"), "b16": ("B/16", "mixer_b16_224")}


def ours(variant: str, mode: str, batch_size: int, dtype: str) -> Callable[[], Any]:
    """Returns a function that runs our model once and waits for the result."""
    call = model_speed.ready(variant, mode, batch_size, model_speed.Settings(dtype=dtype))
    return lambda: jax.block_until_ready(call())


def products(variant: str, mode: str, batch_size: int, dtype: str) -> Callable[[], Any]:
    """Returns a function that runs the matrix products of our model one after the other, in its shapes.

    In training each kernel has three: the output, the input's gradient and the kernel's. The stem's input has none.
    """
    model = models.create(variant, 1000)
    tokens, channels = (224 // model.patch_size) ** 2, model.hidden_dim
    blocks = [
        (channels, tokens, model.tokens_mlp_dim), (channels, model.tokens_mlp_dim, tokens),
        (tokens, channels, model.channels_mlp_dim), (tokens, model.channels_mlp_dim, channels),
    ]  # fmt: skip
    forward = jax.jit(lambda x, kernel, gradient: x @ kernel)
    of_input = jax.jit(lambda x, kernel, gradient: gradient @ kernel.T)
    of_kernel = jax.jit(lambda x, kernel, gradient: jnp.einsum("btk,btn->kn", x, gradient))
    calls = []
    for times, inputs, (rows, width, out) in [
        (1, False, (tokens, 3 * model.patch_size**2, channels)), *((model.num_blocks, True, shape) for shape in blocks)
    ]:  # fmt: skip
        arrays = [
            jnp.ones(shape, dtype) for shape in ((batch_size, rows, width), (width, out), (batch_size, rows, out))
        ]
        kinds = [forward, *([of_kernel, *([of_input] * inputs)] if mode == "train" else [])]
        calls += [(kind, arrays) for kind in kinds] * times

    def run() -> None:
        for kind, arrays in calls:
            jax.block_until_ready(kind(*arrays))

    return run


def timms(name: str, mode: str, batch_size: int, dtype: str) -> Callable[[], Any]:
    """Returns a function that runs timm's model once."""
    model = timm.create_model(name, num_classes=1000).train(mode == "train")
    compiled: Any = torch.compile(model)
    images, labels = torch.randn(batch_size, 3, 224, 224), torch.randint(0, 1000, (batch_size,))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    rounded = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def infer() -> Any:
        with torch.inference_mode(), rounded():
            return compiled(images)

    def train() -> Any:
        adam.zero_grad(set_to_none=True)
        with rounded():
            loss = torch.nn.functional.cross_entropy(compiled(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()

    return train if mode == "train" else infer


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns how long one call takes."""
    since = time.perf_counter()
    call()
    return time.perf_counter() - since


def compare(model: str, mode: str, batch_size: int, turns: int, dtype: str, peak: float | None) -> list[str]:
    """Times both models and our products in turns.

    Args:
      model: a key of `MODELS`.
      mode: one of `MODES`.
      batch_size: images for each call.
      turns: timed calls of each.
      dtype: one of `DTYPES`.
      peak: FLOP/s of this machine in that type; None if it is not known.

    Returns:
      Five cells of the table: our images/s, timm's, and our rate divided by timm's, each with median, least and most;
      the rate of our products alone; and our MFU, which is NaN if the peak is not known.
    """
    variant, name = MODELS[model]
    calls = [make(of, mode, batch_size, dtype) for make, of in ((ours, variant), (timms, name), (products, variant))]
    for call in calls * 2:  # compiles, then warms up
        call()
    rates = [[batch_size / seconds_of(call) for call in calls] for _ in range(turns)]
    here, there, alone = zip(*rates, strict=True)
    flops = model_speed.FLOPS_PER_MAC[mode] * models.create(variant, 1000).forward_macs(224)
    ratios = [one / other for one, other in zip(here, there, strict=True)]
    cells = [f"{statistics.median(v):.3g} ({min(v):.3g}-{max(v):.3g})" for v in (here, there, ratios)]
    utilisation = statistics.median(here) * flops / (peak or float("nan"))
    return [*cells, f"{statistics.median(alone):.3g}", f"{utilisation:.0%}"]


def main() -> None:
    """Prints a line for each model and mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which to compare (default: all)")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="what to time (default: both)")
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of activations and products (default: both)")
    add("--batch_size", type=int, default=32, help="images for each call (default: %(default)s)")
    add("--turns", type=int, default=3, help="timed calls of each model (default: %(default)s)")
    given = parser.parse_args()
    if missing := [name for name in ("timm", "torch") if importlib.util.find_spec(name) is None]:
        sys.exit(f"against_timm: {' and '.join(missing)} cannot be imported; `make bench` installs timm and torch")
    torch.set_num_threads(machine.processors())
    peaks = {dtype: model_speed.peak(dtype) for dtype in given.dtypes}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "timm")}
    sources = "; ".join(source for _, source in peaks.values())
    print(f"{machine.processors()} processors; {', '.join(map(' '.join, versions.items()))}; {sources}\n")
    line = "{:<6}{:<11}{:<10}{:>6}{:>22}{:>22}{:>20}{:>10}{:>6}".format
    head = ("here, images/s", "timm, images/s", "ratio", "products", "MFU")
    print(line("model", "mode", "dtype", "batch", *head))
    for model, mode, dtype in itertools.product(given.models, given.modes, given.dtypes):
        cells = compare(model, mode, given.batch_size, given.turns, dtype, peaks[dtype][0])
        print(line(MODELS[model][0], mode, dtype, given.batch_size, *cells), flush=True)


if __name__ == "__main__":
    main()
