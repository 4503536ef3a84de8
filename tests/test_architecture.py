"""Dependencies point one way: commands -> methods -> {networks, losses, uncertainty, metrics}; data knows none."""

import ast
from pathlib import Path

import pytest

import edue_lightning

ROOT = Path(edue_lightning.__file__).parent
ALLOWED = {
    "uncertainty": {"uncertainty"},
    "networks": {"networks"},
    "losses": {"losses", "uncertainty"},
    "metrics": {"metrics", "uncertainty", "errors"},
    "data": {"data", "errors"},
    "methods": {"methods", "networks", "losses", "metrics", "uncertainty", "data"},
    "distortions": {"distortions"},
    "reporting": {"reporting", "metrics", "errors"},
}
UNKNOWN_TO_PURE_CODE = {"hydra", "omegaconf", "wandb", "pytorch_lightning"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_knows_only_what_lies_below_it(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            if module.startswith("edue_lightning."):
                assert module.split(".")[1] in ALLOWED[package], f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("package", ["networks", "losses", "uncertainty", "metrics", "distortions", "reporting"])
def test_pure_packages_know_no_framework(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        frameworks = {module.split(".")[0] for module in imports(path)} & UNKNOWN_TO_PURE_CODE
        assert not frameworks, f"{path.relative_to(ROOT)} imports {frameworks}"


def test_every_package_is_ruled() -> None:
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert packages == set(ALLOWED)
