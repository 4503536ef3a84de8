"""Real images with several raters, where this machine has them: they are read without a workaround."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from processes import run_command

from edue_lightning.data import ManifestSource
from edue_lightning.data.images import read_image, read_mask

PROJECT = Path(__file__).parents[2]
FOLDERS = [PROJECT.parent / "shared" / "data", PROJECT.parents[1] / "shared" / "data"]
SHARED = next((folder for folder in FOLDERS if folder.is_dir()), None)

pytestmark = pytest.mark.skipif(SHARED is None, reason="../shared/data, the developers' real images, is not there")


def shared(name: str) -> Path:
    assert SHARED is not None
    return SHARED / name


def chase_manifest(folder: Path) -> None:
    """Write a manifest of CHASE_DB1 beside a link to its files: both eyes of a child are one patient."""
    (folder / "chase").symlink_to(shared("chase_db1"))
    rows = [
        {
            "case_id": path.stem,
            "image": f"chase/{path.name}",
            "mask": f"chase/{path.stem}_{observer}.png",
            "rater": observer,
            "structure": "vessel",
            "patient": re.sub("[LR]$", "", path.stem),
        }
        for path in sorted(shared("chase_db1").glob("*.jpg"))
        for observer in ("1stHO", "2ndHO")
    ]
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)


def test_masks_of_one_bit_are_what_another_decoder_reads() -> None:
    paths = sorted(shared("chase_db1").glob("*HO.png"))
    assert len(paths) == 56
    for path in paths[::7]:
        with Image.open(path) as picture:
            assert picture.mode == "1"
        np.testing.assert_array_equal(read_mask(path).array, imageio.imread(path).astype(bool))


def test_photographs_are_what_another_decoder_reads() -> None:
    for path in sorted(shared("chase_db1").glob("*.jpg"))[::9]:
        expected = np.moveaxis(imageio.imread(path), -1, 0) / np.float32(255)
        np.testing.assert_array_equal(read_image(path).array, expected)


def test_cells_of_8_and_16_bits_are_what_another_decoder_reads() -> None:
    table = pd.read_csv(shared("bu_bil") / "manifest.csv")
    for name in table["image"].unique()[::12]:
        stored = imageio.imread(shared("bu_bil") / name)
        expected = stored / np.float32(np.iinfo(stored.dtype).max)
        np.testing.assert_allclose(read_image(shared("bu_bil") / name).array[0], expected, rtol=1e-6)
    for name in table["mask"][::97]:
        np.testing.assert_array_equal(
            read_mask(shared("bu_bil") / name).array, imageio.imread(shared("bu_bil") / name) > 0
        )


def test_slices_in_the_archive_are_what_another_decoder_reads(tmp_path: Path) -> None:
    with zipfile.ZipFile(shared("lidc_slices.zip")) as archive:
        start = "LIDC-IDRI-slices/LIDC-IDRI-0001/nodule-0/"
        names = [name for name in archive.namelist() if name.startswith(start) and name.endswith(".png")][:40]
        archive.extractall(tmp_path, names)
    for name in names:
        stored = imageio.imread(tmp_path / name)
        read = read_image(tmp_path / name).array[0] if "/images/" in name else read_mask(tmp_path / name).array
        np.testing.assert_allclose(read, stored / np.float32(255) if "/images/" in name else stored > 0, rtol=1e-6)


@pytest.mark.slow
def test_the_check_passes_on_retinal_vessels(tmp_path: Path) -> None:
    chase_manifest(tmp_path)
    done = run_command("check", ["data=manifest", f"data.root={tmp_path}", "data.cache=null", "output=found"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "28 cases of 14 patients" in done.stdout
    assert "WARNING" not in done.stderr


@pytest.mark.slow
def test_cells_of_five_people_are_healthy() -> None:
    source = ManifestSource(str(shared("bu_bil")))
    assert source.problems == ()
    assert len(source.cases()) == 116
    assert source.raters == ("person1", "person2", "person3", "person4", "person5")


def summary_of(folder: Path, *overrides: str) -> str:
    """Return what the check of a data set says."""
    done = run_command("check", [*overrides, "data.cache=cache", "output=found"], folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def value_of(summary: str, label: str) -> float:
    """Return the number behind a label of a summary."""
    (line,) = [line for line in summary.splitlines() if line.startswith(label)]
    return float(line.removeprefix(label))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_check_of_the_slices_finds_what_was_published(tmp_path: Path) -> None:
    found = summary_of(tmp_path, "data=lidc_slices", f"data.root={shared('lidc_slices.zip')}")
    assert "15548 cases of 875 patients" in found
    assert "2630; marked by readers: 780 by 1, 503 by 2, 486 by 3, 861 by 4" in found
    assert "15548; the largest of 853 nodules is marked by all 4 readers" in found
    # an empty mask is a vote: two of them agree, one of them and an outline do not
    assert value_of(found, "mean pairwise Dice") == pytest.approx(0.53, abs=0.005)
    assert "data.train_draw=one_per_unit: 15548 cases show 2630 units" in found


@pytest.mark.slow
@pytest.mark.exhaustive
def test_four_readers_agree_more_on_the_largest_slices(tmp_path: Path) -> None:
    chosen = ["data.source.readers=[4]", "data.source.readers_of=slice", "data.source.slices=largest"]
    found = summary_of(tmp_path, "data=lidc_slices", f"data.root={shared('lidc_slices.zip')}", *chosen)
    assert "853 cases of" in found
    assert value_of(found, "mean pairwise Dice") == pytest.approx(0.84, abs=0.005)


@pytest.mark.slow
def test_two_observers_of_vessels_and_five_people_agree_as_measured(tmp_path: Path) -> None:
    vessels = summary_of(tmp_path, "data=retinal_vessels", f"data.root={shared('chase_db1')}")
    assert "28 cases of 14 patients" in vessels
    assert value_of(vessels, "mean pairwise Dice") == pytest.approx(0.78, abs=0.005)
    assert "data.folds=5" in vessels
    (tmp_path / "cells").mkdir()
    cells = summary_of(tmp_path / "cells", "data=manifest", f"data.root={shared('bu_bil')}")
    assert "116 cases of 116 patients" in cells
    assert value_of(cells, "mean pairwise Dice") == pytest.approx(0.85, abs=0.005)
    # images of several sizes are advised, not refused
    assert "data.patch.size=[192,192]: images of 192x192 to 811x975 are trained in patches" in cells
