"""The shared parts of all commands: Hydra, one-line errors, paths of any letters, and the job's folder."""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from edue_lightning.config.schema import configuration_folder
from edue_lightning.errors import UserError, memory_as_user_error
from edue_lightning.text import listed, one_line

Result = TypeVar("Result")

_FULL_ERROR = "HYDRA_FULL_ERROR"
_KEY = re.compile(r"[+~]{0,2}[\w./@-]+")
_PATH_KEYS = {"ckpt", "input", "output", "runs", "predictions", "resume", "data.root", "data.cache"}
_PATH_KEYS |= {"hydra.run.dir", "hydra.sweep.dir"}
_WITH_VALUE = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p"}
_MULTIRUN = {"-m", "--multirun"}
# errors of a folder or disk rather than of this program
_OF_THE_DISK = {
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ENOLCK, errno.ELOOP),
}


def command(name: str) -> Callable[[Callable[[DictConfig], Result]], Callable[[], None]]:
    """Make a function a command with the configuration `conf/NAME.yaml`, run by Hydra on the command line.

    A `UserError`, or that memory or disk is too small, is reported in one line with exit status 2, an interrupt in one
    line with exit status 130. In a sweep the other runs go on, and the first error is reported again at its end. Values
    that Hydra's grammar cannot parse, such as paths with umlauts, are quoted.
    """

    def decorate(function: Callable[[DictConfig], Result]) -> Callable[[], None]:
        @functools.wraps(function)
        def job(config: DictConfig) -> Result:
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                with _one_line_errors():
                    return function(config)
            # an error, unlike an exit, lets the other runs of a sweep go on, and a search count it as a failed trial
            try:
                with _user_errors():
                    return function(config)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                raise UserError(f"not every run of the sweep has finished: {error}") from error

        by_hydra = hydra.main(version_base="1.3", config_path=configuration_folder(), config_name=name)(job)

        @functools.wraps(function)
        def main() -> None:
            with _one_line_errors():
                sys.argv[1:] = quoted_overrides(with_known_groups(sys.argv[1:], name))
            if _FULL_ERROR in os.environ:
                by_hydra()
                return
            # else Hydra prints the traceback of every error before anybody can catch it
            os.environ[_FULL_ERROR] = "1"
            try:
                with _one_line_errors():
                    by_hydra()
            except CompactHydraException as error:
                cause = [str(error.__cause__)] if isinstance(error.__cause__, OmegaConfBaseException) else []
                print("\n".join([str(error), *cause]), file=sys.stderr)
                sys.exit(1)
            finally:
                del os.environ[_FULL_ERROR]

        return main

    return decorate


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        with _user_errors():
            yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn the error of a memory or disk that is too small into a `UserError`."""
    try:
        with memory_as_user_error():
            yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK or error.filename is None:
            raise
        reason = f"{error.filename}: {error.strerror}; choose another folder, or check its permissions and free space"
        raise UserError(one_line(reason)) from error


def with_known_groups(arguments: Sequence[str], name: str) -> list[str]:
    """Return command-line arguments with `~GROUP` for `GROUP=null`, which Hydra refuses without naming the group.

    Args:
        arguments: arguments of the command.
        name: name of the command's configuration.

    Raises:
        UserError: if a group is null that needs a choice, or is null for a part of a sweep; or if this command has no
            choice of a group, but settings of its own of that name.
    """
    defaults, settings = _parts(name)
    found = []
    for argument in arguments:
        group, _, value = argument.partition("=")
        folder = Path(configuration_folder()) / group.lstrip("+")
        own = settings.get(group)
        if isinstance(own, dict) and group not in defaults and folder.is_dir():
            names = listed([f"{group}.{key}" for key in own if key != "_target_"])
            raise UserError(f"{argument}: {name} has no choice of {group}; leave it out, and set {names} alone")
        if not _KEY.fullmatch(group) or "null" not in value.split(",") or not folder.is_dir():
            found.append(argument)
        elif value == "null" and group in defaults and defaults[group] is None:
            found.append(f"~{group}")
        else:
            choices = ", ".join(sorted(path.stem for path in folder.glob("[!_]*.yaml")))
            raise UserError(f"{argument}: choose among {choices}, or leave {folder.name} out")
    return found


def _parts(name: str) -> tuple[dict[str, str | None], dict[str, object]]:
    """Return the chosen groups of a configuration, and its own settings."""
    settings = yaml.safe_load((Path(configuration_folder()) / f"{name}.yaml").read_text())
    entries = settings.pop("defaults", [])
    return {key: choice for entry in entries if isinstance(entry, dict) for key, choice in entry.items()}, settings


def quoted_overrides(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments with quotes around the values that Hydra's grammar cannot parse.

    `input=ün` becomes `input='ün'`, as do blanks, brackets, `=`, `~` and so on. Of paths, `~/` becomes the home folder,
    and a name that looks like a number stays a name. In a sweep each value between commas is quoted by itself.
    """
    parser = OverridesParser.create()
    sweep = bool(_MULTIRUN & set(arguments))
    return [
        argument if argument.startswith("-") or before in _WITH_VALUE else _quoted(argument, parser, sweep)
        for before, argument in zip(["", *arguments], arguments, strict=False)
    ]


def _quoted(argument: str, parser: OverridesParser, sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    if not equals or not _KEY.fullmatch(key):
        return argument
    is_path = key.lstrip("+") in _PATH_KEYS
    try:
        parsed = parser.parse_override(argument).value()
        if not is_path or not isinstance(parsed, bool | int | float):
            return argument
    except HydraException:
        pass
    values = value.split(",") if sweep else [value]
    return f"{key}={','.join(_quoted_value(key, one, is_path, parser, len(values) > 1) for one in values)}"


def _quoted_value(key: str, value: str, is_path: bool, parser: OverridesParser, one_of_many: bool) -> str:
    if one_of_many and _quoted(f"{key}={value}", parser, sweep=False) == f"{key}={value}":
        return value
    if is_path and (value == "~" or value.startswith("~/")):
        value = str(Path(value).expanduser())
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    # backslashes count where a quote follows, as the closing one does
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{escaped[len(escaped) - trailing :]}'"


def stated_keys() -> list[str]:
    """Return the keys of this job's configuration that its command line sets, such as `data.batch_size`.

    Choices of a group, such as `data=riga`, are left out.
    """
    keys = [_KEY.match(override) for override in HydraConfig.get().overrides.task]
    found = {key.group().lstrip("+~") for key in keys if key is not None}
    return sorted(key for key in found if "." in key and not key.startswith("plan."))


def job_folder() -> Path:
    """Return the output folder that Hydra made for this job."""
    return Path(HydraConfig.get().runtime.output_dir)
