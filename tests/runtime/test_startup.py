"""Start of a command: libraries are imported without garbage collection, in its own process only."""

from __future__ import annotations

import ast
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edue_lightning
from edue_lightning.__main__ import COMMANDS
from edue_lightning.runtime.startup import imports_of_command


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("module", ["__main__", "__mp_main__"])
def test_what_a_command_imports_is_never_visited_again(module: str) -> None:
    before = gc.get_freeze_count()
    with imports_of_command(module):
        assert not gc.isenabled()
        kept = [[]]
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    assert not any(one is kept for one in gc.get_objects())


def test_a_program_that_imports_a_command_keeps_its_collector() -> None:
    before = gc.get_freeze_count()
    with imports_of_command("edue_lightning.train"):
        assert gc.isenabled()
    assert gc.get_freeze_count() <= before


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    with imports_of_command("__main__"):
        pass
    assert not gc.isenabled()


def test_the_collector_is_back_after_a_failed_import() -> None:
    with pytest.raises(ImportError), imports_of_command("__main__"):
        raise ImportError
    assert gc.isenabled()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_imports_its_libraries_this_way(name: str) -> None:
    body = ast.parse((Path(edue_lightning.__file__).parent / f"{name}.py").read_text()).body
    own = {node.module for node in body if isinstance(node, ast.ImportFrom)} - {"__future__", *sys.stdlib_module_names}
    own = {module for module in own if module is not None and module.split(".")[0] not in sys.stdlib_module_names}
    assert own == {"edue_lightning.runtime.startup"}
    assert not [node for node in body if isinstance(node, ast.Import) and node.names[0].name not in {"logging", "sys"}]
