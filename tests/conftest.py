"""Fixtures and settings that several tests share."""

from __future__ import annotations

import gc
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from processes import SMALL, run_command

# how long an example takes is that of the machine
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests without garbage collection, and leave what was imported out of later collections."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small EDUE run that all tests only read."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run_command("train", [*SMALL, f"hydra.run.dir={folder}"], cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder
