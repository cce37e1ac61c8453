"""What models are measured on: the devices of this machine, or a TPU slice for which they are only compiled."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mixer.performance import model_speed, tpu_topology
from mixer.runtime import machine


class Target(NamedTuple):
    """What models are measured on.

    Attributes:
      device: for the report: the kind, platform and number of the devices, the host's processors and JAX's version.
      measure_at: from (variant, mode, batch size) to a measurement.
      peak: FLOP/s of a core; None if it is not known.
      peak_source: where the peak comes from, in words.
    """

    device: dict[str, Any]
    measure_at: Callable[..., model_speed.Measurement]
    peak: float | None
    peak_source: str


def here(settings: model_speed.Settings) -> Target:
    """Returns the devices that JAX finds."""
    peak, source = model_speed.peak(settings.dtype)
    measure_at = functools.partial(model_speed.measure, settings=settings, peak_flops=peak)
    return Target(device(), measure_at, peak, source)


def of_topology(topology: str, settings: model_speed.Settings) -> Target:
    """Returns a TPU slice, such as v3:2x2, for which programs are compiled but not run."""
    mesh = tpu_topology.mesh_of(topology)
    kind = mesh.devices.flat[0].device_kind
    peak = getattr(tpu_topology.chip_of(topology), settings.dtype)
    about = {"kind": kind, "platform": "tpu", "cores": mesh.size, "host_processors": None, "jax": jax.__version__}
    measure_at = functools.partial(model_speed.estimate, settings=settings, peak_flops=peak, mesh=mesh)
    source = (
        f"the peak of a {kind}; NOT measured, but the compiler's optimistic estimate for {topology}, blind to precision"
    )
    return Target(about, measure_at, peak, source)


def device() -> dict[str, Any]:
    """Describes the devices that JAX uses, and the host's processors."""
    first = jax.devices()[0]
    return {
        "kind": first.device_kind,
        "platform": first.platform,
        "cores": jax.device_count(),
        "host_processors": machine.processors(),
        "jax": jax.__version__,
    }


def described(found: dict[str, Any]) -> str:
    """Returns a target's device in words."""
    words = f"{found['cores']} x {found['kind']} with jax {found['jax']}"
    shared = f": a core is all of this machine's {found['host_processors']} processors, shared by the devices"
    return words + (shared if found["platform"] == "cpu" else "")
