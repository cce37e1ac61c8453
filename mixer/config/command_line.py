"""Turns a command line into a config, and explains in one line what is wrong with it."""

import contextlib
import errno
import functools
import gc
import operator
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from absl import app, flags
from etils import epy
from ml_collections import ConfigDict, config_flags

from mixer.config import config_file, help_text, tasks
from mixer.config.durations import one_unit_each
from mixer.config.evaluator_settings import EVALUATOR
from mixer.config.settings import SETTINGS
from mixer.runtime import bucket, ending, environment, files, interrupt, libjpeg_lines, owners, streams
from mixer.runtime.errors import UserError, first_line, quiet_libraries

with epy.lazy_imports():  # they import jax, for which --help does not wait
    from mixer.config import checks
    from mixer.runtime import cpu

_MISSING = "--config is missing: give a file, or the name of one that comes with mixer, such as --config quickstart"

# A full disk, a read-only folder, a lost permission or device: the user can mend these, so they get one line.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}


def run(main: Callable[[list[str]], None], define_flags: Callable[[], None], *, arguments: str = "") -> NoReturn:
    """Runs a command and exits. If the user has something to mend, the status is 1 and the message one line.

    Args:
      main: gets the command line without its flags. The docstring of its module begins with what the command does.
      define_flags: defines them.
      arguments: what is allowed besides flags, as the help shows it, such as "IMAGE ..."; nothing by default.
    """

    def quiet_main(argv: list[str]) -> None:
        quiet_libraries()
        if len(argv) > 1 and not arguments:
            raise UserError(
                f"unexpected argument {argv[1]!r}; flags look like --NAME=VALUE, settings of a run like "
                "--config.NAME=VALUE"
            )
        main(argv)

    environment.prepare()
    streams.open_missing()
    streams.write_any_text()
    define_flags()
    if help_text.is_asked_for(sys.argv):
        try:
            print(help_text.of(sys.modules[main.__module__], arguments), flush=True)
        except BrokenPipeError:
            _discard_output()
        sys.exit()
    interrupt.leave_in_one_line()
    owners.do_without()
    cpu.keep_freed_memory()
    end = ending.Ending()
    problem: int | str
    try:
        with bucket.as_os_errors("gs://"), libjpeg_lines.counted():
            app.run(quiet_main, flags_parser=parse_flags)
    except SystemExit as leaving:
        end.status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        raise
    except KeyboardInterrupt:
        end.status = problem = interrupt.EXIT_STATUS
        print(interrupt.MESSAGE, file=sys.stderr)
    except BrokenPipeError:  # whoever read the output wants no more of it
        _discard_output()
        problem = 1
    except Exception as error:
        problem = _problem(error)
        if not problem:
            raise
    # Outside the handlers, what the error's traceback holds is freed, arrays and the input's threads. One of its
    # frames, absl's app.run, refers to the error.
    gc.collect()
    sys.exit(problem)


def _discard_output() -> None:
    """Sends what is still printed nowhere, since its reader has gone: Python would report the broken pipe at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _problem(error: Exception) -> str:
    """Returns the line for an error that the user can mend; nothing for one of the program."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, OSError) and (error.errno in _DISK_ERRORS or bucket.is_remote(str(error.filename))):
        return f"error: {error}"
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):  # of XLA, in compiling or in running
        return (
            f"error: the devices have too little memory ({first_line(error)}): give them fewer images at a time; in "
            "training by more config.accumulate_steps, then try config.sharding=fully_sharded and config.model.remat"
        )
    platforms = os.environ.get("JAX_PLATFORMS")
    if not platforms or not isinstance(error, RuntimeError | AssertionError):  # the second: cuda without a GPU (0.10.2)
        return ""
    if "backend" not in f"{error}{traceback.extract_tb(error.__traceback__)[-1].name}":
        return ""
    return (
        f"error: JAX_PLATFORMS={platforms}: JAX finds no such device here{f' ({error})' if str(error) else ''}; "
        "leave the variable out, or give cpu"
    )


def refuse_unread(names: Iterable[str], why: str) -> None:
    """Checks that none of these flags was given, since the command would not read them.

    Raises:
      UserError: one was; `why` ends the sentence, as in "without --fewshot".
    """
    for name in names:
        if flags.FLAGS[name].present:
            raise UserError(f"--{name} would not be read {why}; leave it out")


def define_config_flag(about: str = "The run's config") -> None:
    """Defines --config, and with it --config.NAME."""
    config_flags.DEFINE_config_file(
        "config", None,
        f"{about}: a file or the name of one that comes with mixer, and after a colon its arguments. "
        "--config.NAME=VALUE changes a setting; docs/configuration.md lists all.",
    )  # fmt: skip


def define_checkpoint_flags(example: str) -> None:
    """Defines the flags of every command that takes a trained model."""
    with help_text.group("The model", example):
        flags.DEFINE_string(
            "checkpoint",
            None,
            "A run's folder, for its newest checkpoint; one of its checkpoints/STEP; .npz, .safetensors, or B/16-i1k.",
        )
        flags.DEFINE_bool("ema", False, "A run's averaged parameters.")


def checkpoint() -> str:
    """Returns the value of --checkpoint.

    Raises:
      UserError: it was not given.
    """
    if not flags.FLAGS.checkpoint:
        raise UserError("--checkpoint is missing: give a run's folder, a file, or the name of a published checkpoint")
    return str(flags.FLAGS.checkpoint)


def workdir(name: str) -> str:
    """Returns the value of --workdir, or runs/NAME.

    Raises:
      UserError: it is empty, as where a shell's variable is not set.
    """
    given = flags.FLAGS.workdir
    if given == "":
        raise UserError(f"--workdir is empty: give a folder, or leave it out for runs/{name}")
    return f"runs/{name}" if given is None else str(given)


def task() -> tuple[str | None, tasks.Task | None]:
    """Returns the full name of --task, and the task; none if the flag was not given.

    Raises:
      UserError: there is no such task.
    """
    try:
        return tasks.find(flags.FLAGS.task) if flags.FLAGS.task else (None, None)
    except ValueError as error:
        raise UserError(f"--{error}") from None


@contextlib.contextmanager
def flags_in_messages(dataset: str | None = None) -> Iterator[None]:
    """Replaces the names of settings in an error by the flags of a command that takes no settings.

    Args:
      dataset: the flag that was given for it; None if it is that of the run.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
        for group in ("config.input", "config.fewshot"):
            message = message.replace(f"{group}.data_dir", "--data_dir")
            message = message.replace(f"{group}.dataset", dataset or "the run's dataset")
        raise type(error)(message) from None


def parse_flags(argv: list[str]) -> list[str]:
    """Parses a command line with --config FILE[:ARGUMENTS] and --config.NAME=VALUE; returns the other arguments.

    A value or an argument that begins with ~ is a path in a home folder, which a shell does not expand after an =.

    Raises:
      UserError: a file, a name or a value is wrong; names the nearest right one.
    """
    argv = _with_config_found([_with_home(argument) for argument in argv])
    for_absl, unset = _without_unset(argv)
    if spec := _config_spec(argv):  # modules beside a config file can be imported, as beside a script
        sys.path.insert(0, str(pathlib.Path(spec.split(":", 1)[0]).absolute().parent))
    try:
        others: list[str] = flags.FLAGS(for_absl)
        if unset:
            config_flags.get_override_values(flags.FLAGS["config"]).update(dict.fromkeys(unset))
        return others
    except Exception as error:  # this includes whatever a config file raises
        raise UserError(_explanation(argv, error)) from None


def _without_unset(argv: list[str]) -> tuple[list[str], list[str]]:
    """Takes --config.NAME=None of optional settings out of a command line: absl refuses it where a number was set.

    Returns:
      The other arguments, and the names of these settings.
    """
    others, names = [], dict[str, None]()
    for argument in argv:
        name, equals, value = re.sub("^--?config[.]", "", argument).partition("=")
        setting = EVALUATOR.get(name.rpartition(".")[2]) if name.startswith("evaluators.") else SETTINGS.get(name)
        if argument[:1] != "-" or not equals or setting is None or setting.kind is None:
            others.append(argument)
        elif value == "None":
            names[name] = None
        else:
            names.pop(name, None)
            others.append(argument)
    return others, list(names)


def _with_home(argument: str) -> str:
    flag, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return flag + equals + files.expanded(value)


def config_name() -> str | None:
    """Returns the name of the file that --config gives, without the ending; None without --config."""
    flag = flags.FLAGS["config"]
    return pathlib.Path(config_flags.get_config_filename(flag).split(":")[0]).stem if flag.present else None


def from_flags() -> tuple[ConfigDict, str]:
    """Returns the checked config that the flags describe, and the name of its file without the ending.

    Raises:
      UserError: there is no config, or a value is not allowed.
    """
    spec, overrides = spec_and_overrides()
    config = config_file.run(spec)  # as the file makes it; a missing one is an error
    return checks.checked(with_overrides(config, overrides)), str(config_name())


def spec_and_overrides() -> tuple[str, dict[str, Any]]:
    """Returns the config file with its arguments, and the values of --config.NAME=VALUE, as absl parsed them.

    Raises:
      UserError: there is no config.
    """
    if config_name() is None:
        raise UserError(_MISSING)
    flag = flags.FLAGS["config"]
    return config_flags.get_config_filename(flag), dict(config_flags.get_override_values(flag))


def with_overrides(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """Returns the config with the values of --config.NAME=VALUE, as absl parsed them."""
    before = checks.flat(config)
    unset = ("None", (None,))  # an optional text takes any word, and optional numbers what reads as a sequence
    nothing = {name: None for name, value in overrides.items() if value in unset}
    names = {
        name: tuple(filter(None, ",".join(map(str, value)).split(",")))
        for name, value in overrides.items()
        if name in SETTINGS and SETTINGS[name].is_names
    }
    given = overrides | nothing | names
    config.update_from_flattened_dict({name: given[name] for name in given.keys() - nothing.keys() - names.keys()})
    with config.ignore_type():
        config.update_from_flattened_dict(nothing | names)
    config = one_unit_each(config, given)
    checks.reset_unread(config, before, given)
    return config


def _with_config_found(argv: list[str]) -> list[str]:
    """Returns a command line in which the value of --config is a file, if there is one."""
    found = list(argv)
    for place, argument in enumerate(argv):
        if match := re.fullmatch(r"(--?config=)(.+)", argument):
            found[place] = match[1] + config_file.find(match[2])
        elif argument in ("-config", "--config") and place + 1 < len(argv):
            found[place + 1] = config_file.find(argv[place + 1])
    return found


def _config_spec(argv: list[str]) -> str | None:
    """Returns the value of --config in a command line."""
    given = re.findall(r"(?m)^--?config[=\n](.+)$", "\n".join(argv))
    return given[-1] if given else None


def _explanation(argv: list[str], error: Exception) -> str:
    """Returns what is wrong with a command line that could not be parsed."""
    line = "\n".join(argv)
    given = _config_spec(argv)
    overrides = re.findall(r"(?m)^--?(?:no)?config\.([^=\n]+)", line)
    if overrides and not given:
        if "config" in flags.FLAGS:
            return _MISSING
        return f"--config.{overrides[0]}: this command takes the settings of the run; --help lists its own flags"
    if isinstance(error, flags.UnrecognizedFlagError):
        modules = flags.FLAGS.flags_by_module_dict().items()
        known = [flag.name for module, defined in modules for flag in defined if not module.startswith("absl.")]
        return f"--{error.flagname}: no such flag{checks.nearest(error.flagname, known, '--')}"
    if not given:
        return first_line(error)
    try:
        config = config_file.run(given)
    except UserError as problem:
        return str(problem)
    known = list(checks.flat(config))
    for name in overrides:
        if any(path.startswith(f"{name}.") for path in known):
            return f"config.{name} is a group of settings; give each by itself, such as --config.{name}.NAME=VALUE"
        if name not in known:
            return f"--config.{name}: no such setting{checks.nearest(name, known, '--config.')}"
    if wrong := re.match(r"(?s)flag --config\.([^=]+)=(.*)", str(error).removesuffix(f": {error.__context__}")):
        *groups, name = wrong[1].split(".")
        kind = functools.reduce(operator.getitem, groups, config).get_type(name)
        return f"config.{wrong[1]}={wrong[2]!r}: expected {_EXPECTED.get(kind, kind.__name__)}"
    return first_line(error)
