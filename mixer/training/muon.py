"""Muon (Jordan 2024), whose work all devices share.

The momentum of a matrix is orthogonalised: five Newton-Schulz iterations bring its singular values to about 1. In data
parallelism each device has a part of the batch, but would orthogonalise every matrix: the fewer images a device has,
the larger a part of its step. Here each device computes a part of the matrices. docs/learning.md has what that saves.
"""

import math
from collections import defaultdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

_BETA = 0.95  # of the momentum
_RMS = 0.2  # of an update's elements, which is about that of Adam's (arXiv 2502.16982)
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's: five bring singular values of 0.01 to 1 to 0.68 to 1.13
_ITERATIONS = 5
_WORTH_SHARING = 2**18  # elements of all matrices of a shape: fewer are done before they are sent (a choice)

_Path = tuple[Any, ...]


class MuonState(NamedTuple):
    """The number of steps, and the momentum of each matrix."""

    count: Any
    mu: Any


class _Axes(NamedTuple):
    """The axes of a leaf that a matrix has as rows and as columns. What is left counts matrices."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


# Of flax's attention kernels.
_ATTENTION = {
    **dict.fromkeys(("query", "key", "value"), _Axes((0,), (1, 2))),  # [width, heads, size]
    "out": _Axes((0, 1), (2,)),  # [heads, size, width]
}


def _axes(path: _Path, leaf: Array) -> _Axes | None:
    """Returns the axes of a leaf that is a matrix, or a stack of matrices; None for others.

    The matrices of untied token mixing lie in one array, and each is orthogonalised by itself. Those of a ViT's
    attention are split into heads, and each is orthogonalised as a whole.
    """
    names = [part.key for part in path]
    if names[-1] != "kernel":
        return None
    if leaf.ndim == 2 or "token_mixing" in names:  # untied: [groups, in, out]
        return _Axes((leaf.ndim - 2,), (leaf.ndim - 1,))
    return _ATTENTION.get(names[-2]) if leaf.ndim == 3 else None


def are_matrices(params: Any) -> Any:
    """Marks the leaves that Muon updates."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _axes(path, leaf) is not None, params)


def scale_by_muon(epsilon: float, mesh: Mesh) -> optax.GradientTransformation:
    """Makes directions of gradients, all of which are matrices: orthogonalised Nesterov momentum of RMS 0.2.

    They are those of `optax.contrib.muon`.

    Args:
      epsilon: added to the norm by which a matrix is divided before the iterations.
      mesh: the devices that share the work.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params))

    def update(updates: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, _BETA, 1)
        ahead = jax.tree.map(
            lambda m, g: _BETA * m + (1 - _BETA) * g,
            optax.tree.bias_correction(mu, _BETA, optax.safe_increment(count)),
            optax.tree.bias_correction(updates, _BETA, count),
        )
        return _orthogonalised(ahead, epsilon, mesh), MuonState(count, mu)

    return optax.GradientTransformation(init, update)


def _orthogonalised(updates: Any, epsilon: float, mesh: Mesh) -> Any:
    """Orthogonalises each matrix of a tree. Matrices of one shape are stacked, so that the devices can share them."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
    forms = [_Form.of(path, leaf) for path, leaf in leaves]
    stacks = [form.stacked(leaf) for form, (_, leaf) in zip(forms, leaves, strict=True)]
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, stack in enumerate(stacks):
        alike[stack.shape[1:]].append(number)
    for shape, numbers in alike.items():
        counts = [len(stacks[number]) for number in numbers]
        if mesh.size > 1 and sum(counts) * math.prod(shape) >= _WORTH_SHARING:
            together = _shared(jnp.concatenate([stacks[number] for number in numbers]), mesh)
            together = newton_schulz(together, epsilon)[..., : shape[1]]
            done = jnp.split(together, np.cumsum(counts)[:-1])
        else:
            done = [newton_schulz(stacks[number], epsilon) for number in numbers]
        for number, part in zip(numbers, done, strict=True):
            stacks[number] = part
    restored = [form.restored(stack) for form, stack in zip(forms, stacks, strict=True)]
    return jax.tree.unflatten(structure, restored)


class _Form(NamedTuple):
    """How a leaf becomes a stack of matrices with no more rows than columns, and a leaf again.

    Attributes:
      order: the leaf's axes, as the stack has them: those that count matrices, then those of its rows, its columns.
      ordered: the shape of the leaf with its axes in this order.
      stack: the shape of the stack.
    """

    order: tuple[int, ...]
    ordered: tuple[int, ...]
    stack: tuple[int, int, int]

    @classmethod
    def of(cls, path: _Path, leaf: Array) -> "_Form":
        axes = _axes(path, leaf)
        assert axes is not None
        sides = sorted(axes, key=lambda side: math.prod(leaf.shape[axis] for axis in side))
        count = tuple(axis for axis in range(leaf.ndim) if axis not in (*axes.rows, *axes.columns))
        number, rows, columns = (math.prod(leaf.shape[axis] for axis in side) for side in (count, *sides))
        order = (*count, *sides[0], *sides[1])
        return cls(order, tuple(leaf.shape[axis] for axis in order), (number, rows, columns))

    def stacked(self, leaf: Array) -> Float[Array, "count rows columns"]:
        return leaf.transpose(self.order).reshape(self.stack)

    def restored(self, stack: Float[Array, "count rows columns"]) -> Array:
        scale = _RMS * math.sqrt(self.stack[2])  # a matrix with orthonormal rows has RMS 1/sqrt(columns)
        back = sorted(range(len(self.order)), key=lambda axis: self.order[axis])
        return (scale * stack).reshape(self.ordered).transpose(back)


def _shared(stack: Float[Array, "count rows columns"], mesh: Mesh) -> Float[Array, "count rows padded"]:
    """Splits a stack over the devices: its matrices as far as they can be divided, then their columns.

    Columns of zeros are added if they cannot be divided otherwise: they change nothing and stay zero. The product of a
    matrix with its transpose is a sum over the devices that have its columns.
    """
    over = math.gcd(len(stack), mesh.size)
    split = PartitionSpec("matrices", None, "columns")
    grid = Mesh(mesh.devices.reshape(over, -1), ("matrices", "columns"))
    stack = jnp.pad(stack, [(0, 0), (0, 0), (0, -stack.shape[2] % grid.shape["columns"])])
    placed: Array = jax.lax.with_sharding_constraint(stack, NamedSharding(grid, split))
    return placed


def newton_schulz(stack: Float[Array, "count rows columns"], epsilon: float) -> Float[Array, "count rows columns"]:
    """Orthogonalises the rows of each matrix, which has no more rows than columns.

    X becomes a X + (b G + c G G) X with G = X X^T, five times; before, X is divided by its norm.
    """
    a, b, c = _NEWTON_SCHULZ
    x: Array = stack / (jnp.linalg.norm(stack, axis=(1, 2), keepdims=True) + epsilon)
    for _ in range(_ITERATIONS):
        gram = x @ x.swapaxes(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
