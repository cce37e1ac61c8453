"""Weights in: a run's folder, a published or other `.npz`, or timm's `safetensors`, wherever it lies."""

import dataclasses
import difflib
import io
import os
import pathlib
import re
import urllib.request
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from etils import epath
from flax import traverse_util
from ml_collections import FrozenConfigDict

from mixer import models
from mixer.config import run_folder
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime.errors import UserError, first_line
from mixer.training.checkpoint import load_params
from mixer.transfer import npz, resolution, timm

_BUCKET = "https://storage.googleapis.com/mixer_models"

# The checkpoints that the authors of Mixer, SAM and GSAM published.
PUBLISHED = {
    f"{variant}-{short}": f"{_BUCKET}/{folder}/Mixer-{variant.replace('/', '_')}.npz"
    for short, folder, variants in (
        ("i1k", "imagenet1k", ("B/16", "L/16")),
        ("i21k", "imagenet21k", ("B/16", "L/16")),
        ("sam", "sam", ("B/16", "B/32")),
        ("gsam", "gsam", ("B/16", "B/32", "S/8", "S/16", "S/32")),
    )
    for variant in variants
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model's parameters, and what is known of them.

    Attributes:
      params: nested, float32 NumPy arrays under the names of the published checkpoints.
      source: where they came from, as the user named it.
      config: the run's.
      class_names: the run's.
      step: of the run's checkpoint.
      workdir: the run's folder.
    """

    params: Any
    source: str
    config: FrozenConfigDict | None = None
    class_names: list[str] | None = None
    step: int | None = None
    workdir: epath.Path | None = None

    def model(self) -> MlpMixer:
        """The model that these are the parameters of.

        Raises:
          UserError: they are not those of a Mixer; lists what is wrong.
        """
        flat = traverse_util.flatten_dict(self.params, sep="/")
        num_blocks = sum(name.startswith("MixerBlock_") for name in self.params)
        has_head = "head/kernel" in flat or "head/bias" in flat
        # Of the dense layers biases alone: a kernel that is transposed is then found, and named, below.
        lengths = {**_LENGTHS, **({"num_classes": "head/bias"} if has_head else {})}
        wrong = []
        if not flat.keys() >= set(lengths.values()):
            # The names of a Mixer's arrays are known without its widths.
            any_widths = MlpMixer(int(has_head), 1, max(num_blocks, 1), 1, 1, 1)
            wrong = [item for item in mismatches(self.params, _shapes(any_widths, 1)) if item.endswith(_MISSING)]
        here = [(path, flat[path]) for path in lengths.values() if path in flat]
        wrong += [f"{path} has the shape {array.shape}" for path, array in here if array.size == 0 or array.ndim == 0]
        if wrong:
            raise UserError(f"{self.source} is not a Mixer's parameters: {'; '.join(wrong)}")
        length: dict[str, Any] = {"num_classes": 0} | {name: len(flat[path]) for name, path in lengths.items()}
        del length["tokens"]
        model = MlpMixer(num_blocks=num_blocks, **length)
        try:
            size = self.image_size
        except ValueError as error:
            raise UserError(f"{self.source}: {error}") from None
        if wrong := mismatches(self.params, _shapes(model, size)):
            raise UserError(
                f"{self.source} does not hold together as Mixer-{models.name_of(model)}: {'; '.join(wrong)}"
            )
        return model

    def described(self) -> str:
        """What these weights are, such as "Mixer-B/16 for images of 224 pixels"."""
        return f"Mixer-{models.name_of(self.model())} for images of {self.image_size} pixels"

    def at_image_size(self, image_size: int, resize: str) -> "Weights":
        """These weights for images of another size: see `resolution.at_grid`, of which `resize` is the method.

        Raises:
          UserError: they cannot be brought to it; says what is possible.
        """
        model, size = self.model(), self.image_size
        try:
            if image_size % model.patch_size:
                raise ValueError
            grid = image_size // model.patch_size
            return dataclasses.replace(self, params=resolution.at_grid(self.params, grid, resize))
        except ValueError:
            raise UserError(
                f"{self.source} (Mixer-{models.name_of(model)}, patches of {model.patch_size} pixels) has weights for "
                f"images of {size} pixels, which image_size={image_size} does not fit: possible are {size} and its "
                f"multiples ({2 * size}, {3 * size}, ..., Appendix C of the paper), or, beyond the paper, with "
                f"resize=interpolate any multiple of {model.patch_size}"
            ) from None

    @property
    def image_size(self) -> int:
        """Pixels of the side of an image for which these parameters are made."""
        return len(self.params["stem"]["kernel"]) * resolution.grid_of(self.params)


# A model's attributes, and the arrays whose length they are.
_LENGTHS = {
    "tokens": "MixerBlock_0/token_mixing/Dense_1/bias",  # what the image size follows from
    "patch_size": "stem/kernel",
    "hidden_dim": "stem/bias",
    "tokens_mlp_dim": "MixerBlock_0/token_mixing/Dense_0/bias",
    "channels_mlp_dim": "MixerBlock_0/channel_mixing/Dense_0/bias",
}


_BLOCK = re.compile(r"(MixerBlock_)(0|[1-9]\d{0,4})(|/.*)")
_MISSING = "missing there"


def _shapes(model: MlpMixer, image_size: int) -> Any:
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def mismatches(theirs: Any, ours: Any) -> list[str]:
    """Names every array of two trees that is missing, unexpected or of another shape.

    Blocks of which the same is to be said share an item: "MixerBlock_0..11/LayerNorm_0/bias: missing there", or, where
    one tree has nothing of them, "MixerBlock_12..23: not in this model".
    """
    there, here = (traverse_util.flatten_dict(tree, sep="/") for tree in (theirs, ours))
    wrong = [
        *((name, _MISSING) for name in _absent(here, there)),
        *((name, "not in this model") for name in _absent(there, here)),
        *(
            (name, f"{there[name].shape} there, {here[name].shape} here")
            for name in sorted(here.keys() & there.keys())
            if there[name].shape != here[name].shape
        ),
    ]
    blocks: dict[tuple[str, str, str], list[int]] = {}
    for name, problem in wrong:
        before, number, after = block.groups() if (block := _BLOCK.fullmatch(name)) else (name, "", "")
        blocks.setdefault((before, after, problem), []).extend([int(number)] if number else [])
    return [f"{before}{_ranges(found)}{after}: {problem}" for (before, after, problem), found in blocks.items()]


def _absent(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Those of the names that are not among the others; the block alone where the others have nothing of it."""
    parts = {name.partition("/")[0] for name in others}
    found = set()
    for name in set(names) - set(others):
        part = name.partition("/")[0]
        found.add(part if _BLOCK.fullmatch(part) and part not in parts else name)
    return sorted(found)


def _ranges(numbers: list[int]) -> str:
    """Writes numbers as "0..3,7"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ",".join("..".join(map(str, ends)) for ends in ranges)


def read(source: str, ema: bool = False) -> Weights:
    """Reads parameters.

    Args:
      source: a run's folder, or one of its checkpoints/STEP; an `.npz` or `.safetensors` file; local, gs:// or
        https://; or the short name of a published checkpoint, such as B/16-i21k.
      ema: of a run, its averaged parameters.

    Raises:
      UserError: it is none of these, or cannot be read.
    """
    if folder := _folder(source):
        return _read_run(folder, source, ema)
    if ema:
        raise UserError(f"{source} is not the folder of a run: it has no averaged parameters")
    if not (source in PUBLISHED or "://" in source or epath.Path(source).expanduser().exists()):
        raise UserError(f"{source!r}: no such file or folder; {_names_like(source)}")
    suffix = pathlib.PurePath(PUBLISHED.get(source, source)).suffix
    if suffix not in (".npz", ".safetensors"):
        raise UserError(
            f"{source}: expected a run's folder, an .npz or a .safetensors file, not {suffix or 'this'!r} "
            "(files that hold pickles, such as .pth and .bin, are never loaded)"
        )
    with _opened(PUBLISHED.get(source, source)) as file:
        if suffix == ".npz":
            return Weights(npz.read(file, source), source)
        return Weights(timm.read(file.read(), source), source)


_WEB = ("https://", "http://")


def _folder(source: str) -> epath.Path | None:
    """The path, if a folder lies there."""
    if source.startswith(_WEB):
        return None
    try:
        path = epath.Path(source) if "://" in source else epath.Path(source).expanduser()
        return path if path.is_dir() else None
    except Exception as error:  # each file system has exceptions of its own
        reason = "there is no such file system" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{source} cannot be read ({reason}); expected a local path, gs:// or https://") from None


def _read_run(path: epath.Path, source: str, ema: bool) -> Weights:
    step = None
    if path.parent.name == "checkpoints" and path.name.isdigit():
        step, path = int(path.name), path.parent.parent
    step, params = load_params(path, ema, step)
    names = path / run_folder.CLASSES_FILE
    return Weights(
        params=jax.tree.map(np.asarray, params),
        source=source,
        config=run_folder.load_config(path),
        class_names=names.read_text().splitlines() if names.exists() else None,
        step=step,
        workdir=path,
    )


def cache_folder() -> pathlib.Path:
    """Where this project keeps what it has fetched or made for another time."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mixer"


def _opened(location: str) -> io.BufferedIOBase:
    """Opens a file for reading; what lies behind https:// is kept in the cache for the next time."""
    try:
        if location.startswith(_WEB):
            return _downloaded(location).open("rb")
        if "://" in location:
            return io.BytesIO(epath.Path(location).read_bytes())
        return pathlib.Path(location).expanduser().open("rb")
    except Exception as error:  # each file system has exceptions of its own
        raise UserError(f"{location} cannot be read ({first_line(error)})") from None


_MAX_DOWNLOAD = 8 << 30  # bytes; the largest Mixer of the paper, H/14, has 1.7 GB


def _downloaded(url: str) -> pathlib.Path:
    """The file at this address, below $XDG_CACHE_HOME/mixer; it gets its name only when it is whole."""
    name = url.partition("://")[2]
    if name.startswith("/") or ".." in name.split("/"):  # it would lie outside the cache
        raise OSError("expected an address with a host, and without ..")
    path = cache_folder() / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            with tqdm.tqdm.wrapattr(response, "read", total=size or None, desc=path.name) as body:
                while max(size, file.tell()) <= _MAX_DOWNLOAD and (piece := body.read(2**20)):
                    file.write(piece)
            if max(size, file.tell()) > _MAX_DOWNLOAD:
                raise OSError(
                    f"it has more than the {_MAX_DOWNLOAD:,} bytes that are fetched at most; fetch it yourself, and "
                    "give the file's path"
                )
            if size and file.tell() != size:
                raise OSError(f"the connection ended after {file.tell():,} of {size:,} bytes; try again")
        return part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _names_like(source: str) -> str:
    names = {name.lower(): name for name in PUBLISHED}
    near = difflib.get_close_matches(source.lower(), names, n=1, cutoff=0.6)
    return f"did you mean {names[near[0]]}?" if near else f"published checkpoints are {', '.join(PUBLISHED)}"
