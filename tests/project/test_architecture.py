"""Dependencies run from the doors down to the ground: no module imports from a floor above its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import edue_lightning

ROOT = Path(edue_lightning.__file__).parent
GROUND = {"errors", "text", "atomic"}
DOORS = {"train", "evaluate", "predict", "report", "check", "convert", "export"}
FLOORS: tuple[set[str], ...] = (
    {"text", "atomic"},
    {"errors"},
    {"networks", "uncertainty", "distortions"},
    {"losses", "metrics", "data"},
    {"methods"},
    {"config"},
    {"runtime"},
    {"runs"},
    {"reporting"},
    {"evaluation", "prediction"},
    # a training ends with the measurement of its best checkpoint, and with its triage
    {"training"},
    {"exporting"},
    DOORS,
)
"""Rooms and modules from the ground up; those of one floor do not know each other."""

PURE = {"networks", "losses", "uncertainty", "metrics", "distortions"}
FRAMEWORKS = {"hydra", "omegaconf", "wandb", "pytorch_lightning"}
MOST_TOP_FILES = 13


def floor_of(name: str) -> int:
    return next(height for height, names in enumerate(FLOORS) if name in names)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def rooms() -> list[str]:
    return sorted(set().union(*FLOORS))


def files_of(name: str) -> list[Path]:
    module = ROOT / f"{name}.py"
    return [module] if module.is_file() else sorted((ROOT / name).rglob("*.py"))


@pytest.mark.parametrize("name", rooms())
def test_no_import_runs_up(name: str) -> None:
    files = files_of(name)
    assert files
    for path in files:
        for module in imports(path):
            if module.startswith("edue_lightning."):
                other = module.split(".")[1]
                below = other == name or floor_of(other) < floor_of(name)
                assert below, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_rooms_know_no_framework(name: str) -> None:
    for path in files_of(name):
        frameworks = {module.split(".")[0] for module in imports(path)} & FRAMEWORKS
        assert not frameworks, f"{path.relative_to(ROOT)} imports {frameworks}"


def test_every_room_has_a_floor() -> None:
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    assert modules == GROUND | DOORS
    assert folders == set().union(*FLOORS) - GROUND - DOORS


def test_the_top_folder_holds_the_doors_and_the_ground_alone() -> None:
    assert len(list(ROOT.glob("*.py"))) <= MOST_TOP_FILES


def test_the_guide_for_contributors_shows_the_floors_that_are_tested() -> None:
    table = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text().split("| floor | modules |")[1].split("\n\n")[0]
    rows = [set(re.findall(r"`(\w+)`", line)) for line in table.splitlines()]
    assert [row for row in rows if row] == [set(floor) for floor in reversed(FLOORS)]
