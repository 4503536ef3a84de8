"""The region of a case on its way from files into batches, prepared cases, converted folders and trainings."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edue_lightning.convert import convert
from edue_lightning.data import (
    Augmentation,
    CaseRecord,
    ManifestSource,
    PatchSampling,
    RaterDataModule,
    RaterSample,
    collate_samples,
)
from edue_lightning.data.augmentation import augment
from edue_lightning.data.identity import CaseIdentity
from edue_lightning.errors import UserError
from edue_lightning.evaluation.measure import mask_fingerprints
from edue_lightning.reporting.data_overview import measure_case

SHAPE = (12, 10)
INSIDE = np.zeros(SHAPE, dtype=np.uint8)
INSIDE[2:9, 3:8] = 255


def mask_from(row: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[row : row + 5, 1:6] = 255
    return mask


def write_cases(folder: Path, cases: int = 9) -> Path:
    """Write pictures that two raters outlined, every second with a region."""
    rows = []
    Image.fromarray(INSIDE).save(folder / "seen.png")
    for number in range(cases):
        pixels = np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        for place, rater in enumerate("AB"):
            Image.fromarray(mask_from(1 + place + number % 3)).save(folder / f"{number}{rater}.png")
            row = {"case_id": f"case{number}", "image": f"{number}.png", "mask": f"{number}{rater}.png"}
            rows.append({**row, "rater": rater, "structure": "cell", "region": "seen.png" if number % 2 else ""})
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def source_of(folder: Path, cache: Path | None = None) -> ManifestSource:
    return ManifestSource(str(folder), cache=None if cache is None else str(cache))


def sample_with_region() -> RaterSample:
    region = torch.zeros(6, 6, dtype=torch.bool)
    region[:2, 1:] = True
    masks = torch.ones(2, 1, 6, 6, dtype=torch.uint8) * region
    image = torch.arange(1.0, 37.0).reshape(1, 6, 6)
    return RaterSample(image, masks, torch.ones(2) > 0, "a", region=region)


@pytest.mark.parametrize("cached", [False, True])
def test_a_manifest_names_the_region_of_a_case_and_masks_end_there(tmp_path: Path, cached: bool) -> None:
    write_cases(tmp_path)
    source = source_of(tmp_path, tmp_path / "cache" if cached else None)
    sample = source.load("case1")
    assert sample.region is not None
    np.testing.assert_array_equal(sample.region, INSIDE > 0)
    np.testing.assert_array_equal(sample.masks[0, 0], (mask_from(2) > 0) & (INSIDE > 0))
    whole = source.load("case2")
    assert whole.region is None
    np.testing.assert_array_equal(whole.masks[0, 0], mask_from(3) > 0)


def test_a_changed_region_is_another_prepared_case(tmp_path: Path) -> None:
    write_cases(tmp_path)
    source_of(tmp_path, tmp_path / "cache")
    Image.fromarray(np.roll(INSIDE, 1, axis=0)).save(tmp_path / "seen.png")
    region = source_of(tmp_path, tmp_path / "cache").load("case1").region
    assert region is not None
    np.testing.assert_array_equal(region, np.roll(INSIDE, 1, axis=0) > 0)


@pytest.mark.parametrize(
    ("pixels", "line"),
    [
        (np.zeros(SHAPE, dtype=np.uint8), "its region is empty, so nothing would count"),
        (np.ones((5, 5), dtype=np.uint8), "seen.png: case 'case1': is 5x5, but 1.png is 12x10"),
        (np.arange(120, dtype=np.uint8).reshape(SHAPE), "seen.png: case 'case1': holds the values 0, 1, 2"),
    ],
)
def test_a_region_that_cannot_be_used_is_reported(tmp_path: Path, pixels: np.ndarray, line: str) -> None:
    write_cases(tmp_path)
    Image.fromarray(pixels).save(tmp_path / "seen.png")
    with pytest.raises(UserError) as caught:
        source_of(tmp_path).cases()
    assert line in str(caught.value)


def test_a_batch_has_a_region_if_one_of_its_cases_has_one(tmp_path: Path) -> None:
    source = source_of(write_cases(tmp_path))
    mixed = collate_samples([source.load("case1"), source.load("case2")], [0, 1], [0, 0])
    assert mixed.region is not None
    assert mixed.to("cpu").region is not None
    np.testing.assert_array_equal(mixed.region[0], INSIDE > 0)
    assert mixed.region[1].all()
    whole = collate_samples([source.load("case0"), source.load("case2")], [0, 1], [0, 0])
    assert whole.region is None
    assert whole.to("cpu").region is None


def test_augmentation_moves_the_region_with_the_image() -> None:
    sample = sample_with_region()
    transform = Augmentation(flip=0.5, rotate90=0.5).transform(2)
    seen = set()
    for key in range(30):
        moved = augment(sample, transform, key)
        assert moved.region is not None
        assert torch.equal(moved.region, moved.masks[0, 0] > 0)
        values = sample.image[0][sample.region]
        assert sorted(moved.image[0][moved.region].tolist()) == values.tolist()
        seen.add(tuple(moved.region.flatten().tolist()))
    assert len(seen) > 3


def test_a_rotated_region_has_no_values_between_and_ends_at_the_image() -> None:
    sample = replace(sample_with_region(), region=torch.ones(6, 6, dtype=torch.bool))
    moved = augment(sample, Augmentation(flip=0, rotation=0.8).transform(2), 2)
    assert moved.region is not None
    assert moved.region.dtype == torch.bool
    assert not moved.region.all()
    without = augment(replace(sample, region=None), Augmentation(flip=0, rotation=0.8).transform(2), 2)
    assert torch.equal(without.image, moved.image)
    # the mask goes on beyond the border of the image, and counts nowhere there
    assert torch.equal(without.masks * moved.region, moved.masks)


def test_a_patch_is_padded_as_outside() -> None:
    sample = sample_with_region()
    patch = PatchSampling([8, 4], foreground=0).draw(sample, 1)
    assert patch.region is not None
    assert patch.region.shape == (8, 4)
    assert torch.equal(patch.region, patch.masks[0, 0] > 0)
    assert not patch.region[0].any()


def test_a_region_of_another_shape_or_type_is_refused() -> None:
    sample = sample_with_region()
    for region in (torch.ones(5, 6) > 0, torch.ones(6, 6)):
        with pytest.raises(ValueError, match="region must be bool"):
            replace(sample, region=region)


def test_the_identity_of_a_case_has_its_region() -> None:
    sample = sample_with_region()
    other = replace(sample, region=torch.ones(6, 6, dtype=torch.bool))
    record = CaseRecord("a", "a")
    digests = {CaseIdentity.of(record, one).masks for one in (sample, other, replace(sample, region=None))}
    assert len(digests) == 3
    assert len({mask_fingerprints(one)[0] for one in (sample, other, replace(sample, region=None))}) == 3


def test_the_overview_counts_the_voxels_of_the_region() -> None:
    measured = measure_case(CaseRecord("a", "a"), sample_with_region())
    assert measured.marked_by.tolist() == [[0, 0, 10]]


def test_a_converted_folder_keeps_the_regions(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = source_of(write_cases(tmp_path / "in"))
    target = {"_target_": "edue_lightning.data.ManifestSource", "root": str(tmp_path / "in")}
    data = {"_target_": "edue_lightning.data.RaterDataModule", "name": "cells", "source": target}
    convert({"seed": 0, "output": str(tmp_path / "out"), "data": data}, tmp_path / "out")
    again = ManifestSource(str(tmp_path / "out"), standardise=False)
    for record in source.cases():
        first, second = source.load(record.case_id), again.load(record.case_id)
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.masks, second.masks)
        assert (first.region is None) == (second.region is None)
        if first.region is not None:
            assert torch.equal(first.region, second.region)  # type: ignore[arg-type]


def test_training_batches_carry_the_region(tmp_path: Path) -> None:
    data = RaterDataModule("cells", source_of(write_cases(tmp_path)), batch_size=9)
    batches = list(data.train_dataloader())
    assert any(batch.region is not None for batch in batches)
