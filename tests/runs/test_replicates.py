"""Bootstrap replicates in a run's folder: the cases and groups they were drawn from decide what is paired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_files import write_run

from edue_lightning.errors import UserError
from edue_lightning.reporting.comparison import compare, paired_differences
from edue_lightning.runs.files import BOOTSTRAP_FILE, Replicates, Run, read_run, write_replicates

ALONE = tuple(f"patient{case}" for case in range(9))
IN_PAIRS = tuple(f"patient{case // 2}" for case in range(9))


def run_with(folder: Path, method: str, groups: tuple[str, ...], seed: int = 0) -> Run:
    write_run(folder, method, seed)
    written = read_run(folder).replicates
    write_replicates(Replicates(written.case_ids, written.arrays, groups), folder / BOOTSTRAP_FILE)
    return read_run(folder)


def test_groups_are_stored(tmp_path: Path) -> None:
    found = run_with(tmp_path / "run", "edue", IN_PAIRS).replicates
    assert found.groups == IN_PAIRS
    assert ("groups", "") not in found.arrays
    assert all(len(values) == 60 for values in found.arrays.values())


def test_a_file_of_an_earlier_version_has_no_groups(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "edue", 0)
    archive = dict(np.load(folder / BOOTSTRAP_FILE))
    archive.pop("groups")
    np.savez_compressed(folder / BOOTSTRAP_FILE, **archive)
    found = read_run(folder).replicates
    assert found.groups == ()
    assert found.case_ids == tuple(f"case{case}" for case in range(9))


NAMES = [("left/lung", "dice"), ("left", "lung/dice"), ("groups", "dice/of/mine"), ("nodule", "dice")]


def test_names_with_a_slash_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "edue", 0)
    arrays = {name: np.full(5, float(number)) for number, name in enumerate(NAMES)}
    write_replicates(Replicates(("case0",), arrays, ("patient0",)), folder / BOOTSTRAP_FILE)
    found = read_run(folder).replicates
    assert {name: values.tolist() for name, values in found.arrays.items()} == {
        name: [float(number)] * 5 for number, name in enumerate(NAMES)
    }
    assert (found.case_ids, found.groups) == (("case0",), ("patient0",))


def test_joined_names_of_an_earlier_version_are_those_of_the_table(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "edue", 0)
    table = pd.read_csv(folder / "metrics.csv").assign(structure="left/lung")
    table.to_csv(folder / "metrics.csv", index=False)
    joined = {"left/lung/dice": np.ones(3), "nodule/ece": np.zeros(3), "case_ids": np.array(["case0"])}
    np.savez_compressed(folder / BOOTSTRAP_FILE, **joined)
    assert set(read_run(folder).replicates.arrays) == {("left/lung", "dice"), ("nodule", "ece")}


def test_replicates_without_their_names_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "edue", 0)
    archive = dict(np.load(folder / BOOTSTRAP_FILE))
    archive["names"] = archive["names"][1:]
    np.savez_compressed(folder / BOOTSTRAP_FILE, **archive)
    with pytest.raises(UserError, match=r"names and replicates do not fit\); run the evaluation again"):
        read_run(folder)


@pytest.mark.parametrize(
    ("first", "second", "paired"),
    [
        ((), (), True),
        ((), ALONE, True),
        # each draw takes groups by name, so it draws other cases
        (ALONE, tuple(reversed(ALONE)), False),
        (IN_PAIRS, IN_PAIRS, True),
        (IN_PAIRS, ALONE, False),
        (IN_PAIRS, (), False),
    ],
)
def test_runs_are_paired_if_cases_and_groups_are_the_same(
    tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...], paired: bool
) -> None:
    runs = [run_with(tmp_path / "a", "edue", first), run_with(tmp_path / "b", "single", second)]
    differences = paired_differences(runs, "edue")
    assert len(differences)
    assert differences["ci_low"].notna().all() == paired
    assert differences["ci_low"].isna().all() == (not paired)
    seeds = [runs[0], run_with(tmp_path / "c", "edue", second, seed=1)]
    averaged = compare(seeds)
    assert set(averaged["seeds"]) == {2}
    assert averaged["ci_low"].notna().all() == paired
    assert averaged["ci_low"].isna().all() == (not paired)
