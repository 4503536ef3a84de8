"""Crops of LIDC's slices, packed for another machine, and photographs at half their resolution."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lidc_slice_files import REAL, write_data_set, write_slice, zipped
from PIL import Image
from processes import PATIENCE

from edue_lightning.data import LidcSlices

SCRIPT = Path(__file__).parents[2] / "experiments" / "comparison" / "crops.py"
sys.path.insert(0, str(SCRIPT.parent))

import crops  # noqa: E402
import halve  # noqa: E402


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, timeout=PATIENCE)


def assert_same_cases(first: LidcSlices, second: LidcSlices, step: int = 1) -> None:
    assert first.cases() == second.cases()
    for record in first.cases()[::step]:
        one, other = first.load(record.case_id), second.load(record.case_id)
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.masks, other.masks)
        assert torch.equal(one.valid, other.valid)


@pytest.mark.parametrize(("slices", "parts"), [("all", "1"), ("largest", "3")])
def test_unpacked_crops_hold_the_same_cases_with_the_same_values(tmp_path: Path, slices: str, parts: str) -> None:
    folder = write_data_set(tmp_path / "slices")
    # marks beyond the crop: the case is left out of both
    write_slice(folder, 9, 0, 0, [14, 14, 14, 14])
    write_slice(folder, 9, 1, 0, [5, 6, 7, 5])
    archive = zipped(folder, tmp_path / "original.zip")
    run("pack", str(archive), str(tmp_path / "packed"), "--size", "20", "--parts", parts)
    assert len(list((tmp_path / "packed").iterdir())) == int(parts)
    run("unpack", str(tmp_path / "packed"), str(tmp_path / "again.zip"))
    first, second = (
        LidcSlices(str(tmp_path / name), slices=slices, size=20, cache=None) for name in ("original.zip", "again.zip")
    )
    assert len(first.cases()) == {"all": 8 * 4 + 1, "largest": 8 * 2 + 1}[slices]
    assert_same_cases(first, second)


def test_crops_are_not_unpacked_while_a_part_is_missing(tmp_path: Path) -> None:
    archive = zipped(write_data_set(tmp_path / "slices"), tmp_path / "original.zip")
    crops.pack(archive, tmp_path / "packed", size=20, parts=3)
    assert crops.missing_parts(tmp_path / "packed") == []
    shutil.rmtree(tmp_path / "packed" / "1")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "unpack", str(tmp_path / "packed"), str(tmp_path / "again.zip")],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 3
    assert "lacks the parts [1]" in done.stdout
    assert not (tmp_path / "again.zip").exists()
    with pytest.raises(ValueError, match=r"lacks the parts \[1\]"):
        crops.unpack(tmp_path / "packed", tmp_path / "again.zip")
    assert crops.missing_parts(tmp_path) == [0]


def test_crops_are_packed_into_an_empty_folder_and_are_no_larger_than_the_images(tmp_path: Path) -> None:
    archive = zipped(write_data_set(tmp_path / "slices"), tmp_path / "original.zip")
    with pytest.raises(ValueError, match="smaller than --size 200"):
        crops.pack(archive, tmp_path / "large", size=200)
    crops.pack(archive, tmp_path / "packed", size=20, parts=3)
    with pytest.raises(ValueError, match="holds packed slices; choose another folder"):
        crops.pack(archive, tmp_path / "packed", size=20)


def test_names_regions_and_colours_are_halved_too(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(2, 2, 4)[..., :3]).save(whole / "a.png")
    Image.fromarray(np.full((2, 2), 255, dtype=np.uint8)).save(whole / "region.png")
    rows = "case_id,image,mask,rater,structure,region\n007,a.png,,01,cell,region.png\n"
    (whole / "manifest.csv").write_text(rows)
    assert halve.halve(whole, tmp_path / "half") == 1
    assert (tmp_path / "half" / "manifest.csv").read_text() == rows
    assert np.asarray(Image.open(tmp_path / "half" / "a.png")).tolist() == [[[6, 7, 8]]]
    assert np.asarray(Image.open(tmp_path / "half" / "region.png")).tolist() == [[255]]


def test_what_cannot_be_halved_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("case_id,image,mask,rater,structure,spacing\na,a.png,b.png,1,cell,1x1\n")
    with pytest.raises(ValueError, match="has the column spacing, which cannot be halved"):
        halve.halve(tmp_path, tmp_path / "half")
    with pytest.raises(ValueError, match="is the source; choose another folder"):
        halve.halve(tmp_path, tmp_path)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_halved_images_have_means_and_masks_majorities(tmp_path: Path, kind: type) -> None:
    rows = [("a", "images/a.png", f"masks/a_{rater}.png", rater, "cell") for rater in ("one", "two")]
    (tmp_path / "whole" / "images").mkdir(parents=True)
    (tmp_path / "whole" / "masks").mkdir()
    pixels = np.array([[10, 12, 0, 0, 9], [14, 16, 2, 4, 9], [7, 7, 7, 8, 9]], dtype=kind)
    Image.fromarray(pixels).save(tmp_path / "whole" / "images" / "a.png")
    for number, (_, _, mask, _, _) in enumerate(rows):
        marked = np.array([[1, number, 1, 0, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=np.uint8)
        Image.fromarray(255 * marked).save(tmp_path / "whole" / mask)
    table = pd.DataFrame(rows, columns=["case_id", "image", "mask", "rater", "structure"])
    table.to_csv(tmp_path / "whole" / "manifest.csv", index=False)
    assert halve.halve(tmp_path / "whole", tmp_path / "half") == 1
    image = np.asarray(Image.open(tmp_path / "half" / "images" / "a.png"))
    assert image.dtype == kind
    # 52 / 4, and 6 / 4, which is rounded to the even number
    assert image.tolist() == [[13, 2]]
    masks = [np.asarray(Image.open(tmp_path / "half" / mask)).tolist() for mask in table["mask"]]
    assert masks == [[[0, 255]], [[255, 255]]]
    assert pd.read_csv(tmp_path / "half" / "manifest.csv").equals(table)


@pytest.mark.skipif(not REAL.is_file(), reason="the slices of LIDC-IDRI are not on this machine")
@pytest.mark.slow
@pytest.mark.exhaustive
def test_unpacked_crops_of_the_real_slices_are_the_same(tmp_path: Path) -> None:
    run("pack", str(REAL), str(tmp_path / "packed"))
    assert sum(path.stat().st_size for path in (tmp_path / "packed" / "0").iterdir()) < 40e6
    run("unpack", str(tmp_path / "packed"), str(tmp_path / "again.zip"))
    sources = [LidcSlices(str(path), size=64, cache=str(tmp_path)) for path in (REAL, tmp_path / "again.zip")]
    assert_same_cases(*sources, step=50)
