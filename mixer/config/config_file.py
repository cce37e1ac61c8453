"""Finds and runs a config file, and explains in one line what is wrong with it."""

import contextlib
import inspect
import pathlib
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator

from etils import epy
from ml_collections import ConfigDict, FrozenConfigDict

import mixer
from mixer.runtime import files
from mixer.runtime.errors import ArgumentError, UserError, first_line

with epy.lazy_imports():  # it imports jax, for which --help does not wait
    from mixer.config import checks


def find(spec: str) -> str:
    """Returns a config file with the arguments after its colon, given the same or the name of a file of this package.

    The name may have its ending and folder, as in configs/b16_i21k.py, so that a command line for a clone works
    everywhere. A file of the user comes first.
    """
    spec = files.expanded(spec)
    path, colon, arguments = spec.partition(":")
    given = pathlib.Path(path)
    if not given.is_file() and given.parent in (pathlib.Path(), pathlib.Path("configs")):
        shipped = _shipped() / f"{given.name.removesuffix('.py')}.py"
        return f"{shipped}{colon}{arguments}" if shipped.is_file() else spec
    return spec


def _shipped() -> pathlib.Path:
    """Returns the folder of the config files that come with this package: within it, or beside it in a clone."""
    package = pathlib.Path(mixer.__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def run(spec: str) -> ConfigDict:
    """Runs a config file with the argument after its colon. Unlike config_flags, it reports an error in one line."""
    path, *argument = spec.split(":", 1)
    if not pathlib.Path(path).is_file():
        if pathlib.Path(spec).is_file():
            raise UserError(f"--config {spec}: what follows the first colon are arguments; give a path without a colon")
        known = [file.stem for file in _shipped().glob("*.py")]
        hint = checks.nearest(path, known, "") if "/" not in path else ""
        raise UserError(f"--config {spec}: no such file{hint}")
    try:
        with _neighbours_importable(path):
            scope = runpy.run_path(path)
            if "get_config" not in scope:
                raise UserError(f"--config {spec}: the file has no function get_config")
            _check_arguments(spec, scope["get_config"], argument)
            config = scope["get_config"](*argument)
    except UserError:
        raise
    except ArgumentError as error:
        raise UserError(f"--config {spec}: {error}") from None
    except SyntaxError as error:
        raise UserError(f"--config {spec}: line {error.lineno}: {error.msg}") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"line {lines[-1]}: " if lines else ""
        raise UserError(f"--config {spec}: {where}{type(error).__name__}: {first_line(error)}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config {spec}: get_config() returns {config!r:.40}, not a ConfigDict")
    if isinstance(config, FrozenConfigDict):
        raise UserError(f"--config {spec}: get_config() returns a FrozenConfigDict; return ConfigDict(it) instead")
    return config


@contextlib.contextmanager
def _neighbours_importable(path: str) -> Iterator[None]:
    """Lets modules beside a config file be imported within the block, as beside a script."""
    folder = str(pathlib.Path(path).absolute().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _check_arguments(spec: str, get_config: Callable[..., object], argument: list[str]) -> None:
    """Raises UserError if a config file wants an argument after a colon and has none, or has one and wants none."""
    expected = inspect.signature(get_config)
    try:
        expected.bind(*argument)
    except TypeError:
        if argument:
            raise UserError(f"--config {spec}: this config takes no arguments; leave out :{argument[0]}") from None
        raise UserError(f"--config {spec}: an argument is missing: {spec}:{next(iter(expected.parameters))}") from None
