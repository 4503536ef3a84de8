"""Files for contributors and for a hosted CI are valid, and name targets, files and bounds that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_targets_of_the_makefile(path: Path) -> None:
    workflow = read(path)
    # YAML 1.1 reads the key `on` as true
    assert {"name", True, "jobs"} <= set(workflow)
    for job in workflow["jobs"].values():
        combinations = job.get("strategy", {}).get("matrix", {"": [""]})
        kinds = combinations.get("dependencies", [""])
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert commands
        for command in commands:
            assert command.startswith("make ")
            for kind in kinds:
                assert command.replace("${{ matrix.dependencies }}", kind).split()[1] in TARGETS, command


def test_workflows_lint_document_and_test_on_linux_and_macos() -> None:
    text = "".join(path.read_text() for path in WORKFLOWS)
    for wanted in ("make lint", "make docs", "make test\n", "ubuntu-latest", "macos-latest", "oldest", "newest"):
        assert wanted in text


@pytest.mark.parametrize("path", [path for path in FORMS if path.stem != "config"], ids=lambda path: path.stem)
def test_an_issue_form_has_all_that_a_code_host_asks_for(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in {"input", "textarea", "dropdown", "checkboxes", "markdown"}
        assert field["attributes"]["label"]
    assert any(field.get("validations", {}).get("required") for field in form["body"])


@pytest.mark.parametrize("name", ["CITATION.cff", ".pre-commit-config.yaml", ".github/ISSUE_TEMPLATE/config.yml"])
def test_other_files_in_yaml_can_be_read(name: str) -> None:
    assert read(ROOT / name)


def test_the_oldest_constraints_are_the_lower_bounds_of_the_project() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text().split()
    pins = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(one for extra in ("export", "lidc", "parquet") for one in extras[extra])]
    for requirement in map(Requirement, wanted):
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), requirement
        lowest = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==")]
        # of `>=5` the first release may be 5.0.1, and another package may ask for more
        assert pinned.release[: len(lowest[0].release)] == lowest[0].release, f"{requirement} is tested with {pinned}"


def test_the_committed_constraints_lie_within_the_bounds_of_the_project() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    # those with environments of their own, without these constraints
    apart = ("ray", "networks")
    extras = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name not in apart}
    for text in [*PROJECT["dependencies"], *(one for wanted in extras.values() for one in wanted)]:
        requirement = Requirement(text)
        if requirement.name not in (PROJECT["name"], "hydra-ray-launcher"):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_the_changelog_names_moved_modules_as_they_are_today() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 30
    for earlier, now in rows:
        path = ROOT / "src/edue_lightning" / now.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), now
        old = ROOT / "src/edue_lightning" / earlier.replace(".", "/")
        assert not old.with_suffix(".py").is_file(), earlier


@pytest.mark.xdist_group("marked")
def test_tests_that_share_what_takes_long_to_make_run_in_one_process(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("loadgroup", default=False):
        pytest.skip("the tests are not shared out among processes")
    # by what stands behind the name, pytest-xdist sends a test to a process
    assert request.node.nodeid.endswith("@marked")
