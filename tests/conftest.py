"""What several tests share."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from processes import SMALL, run_command

# see `pytest_collection_finish`
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but not among what was imported until now, which is kept until the end."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small EDUE run that all tests only read."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run_command("train", [*SMALL, f"hydra.run.dir={folder}"], cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder
