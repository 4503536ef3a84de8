"""The fingerprint of training cases, against numbers computed by hand and from the files themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from lidc_slice_files import write_data_set
from patients import Patient
from PIL import Image

from edue_lightning.data import HecktorSource, LidcSlices, RaterSample, SplitFractions, SyntheticFundus
from edue_lightning.data.fingerprint import CaseFingerprint, Fingerprint, measure_training_case
from edue_lightning.data.module import RaterDataModule


def sample_of(image: list[list[float]], first: list[list[int]], second: list[list[int]]) -> RaterSample:
    """Return a picture of one channel and one structure, outlined by two of three raters."""
    masks = torch.tensor([[first], [second], [[[0, 0], [0, 0]]]], dtype=torch.uint8)
    valid = torch.tensor([True, True, False])
    return RaterSample(torch.tensor([image]), masks, valid, "a", (0.5, 2.0))


def test_a_case_is_measured_where_a_rater_marked_it() -> None:
    found = measure_training_case(sample_of([[1.0, 2.0], [3.0, 4.0]], [[1, 0], [0, 0]], [[0, 0], [1, 0]]))
    assert (found.size, found.spacing, found.raters) == ((2, 2), (0.5, 2.0), 2)
    assert found.foreground.tolist() == [[1.0, 3.0]]


def test_masks_of_a_rater_who_drew_nothing_and_voxels_beyond_the_region_do_not_count() -> None:
    sample = sample_of([[1.0, 2.0], [3.0, 4.0]], [[1, 1], [0, 0]], [[0, 0], [1, 0]])
    masks = sample.masks.clone()
    masks[2] = 1
    region = torch.tensor([[True, True], [False, True]])
    found = measure_training_case(replace(sample, masks=masks, region=region))
    assert found.foreground.tolist() == [[1.0, 2.0]]


def test_at_most_ten_thousand_values_of_a_case_are_kept_and_always_the_same() -> None:
    masks = torch.ones(1, 1, 120, 120, dtype=torch.uint8)
    sample = RaterSample(torch.rand(2, 120, 120), masks, torch.tensor([True]), "a", None)
    one, two = measure_training_case(sample), measure_training_case(sample)
    assert one.foreground.shape == (2, 10_000)
    assert np.array_equal(one.foreground, two.foreground)


def test_percentiles_are_those_over_the_marked_voxels_of_all_cases() -> None:
    values = [np.arange(0, 101, dtype=np.float32), np.arange(101, 201, dtype=np.float32)]
    cases = [CaseFingerprint((4, 4), None, raters, one[None]) for raters, one in zip((2, 5), values, strict=True)]
    found = Fingerprint.of(SyntheticFundus(2, 32), cases)
    assert found.intensities is not None
    # of 0, 1, ..., 200
    assert found.intensities[0] == pytest.approx((1.0, 100.0, 199.0))
    assert found.raters == (2, 5)
    assert "2 to 5 per case" in found.text()
    assert "spacings        unknown" in found.text()


def test_nothing_marked_leaves_the_intensities_undefined() -> None:
    found = Fingerprint.of(SyntheticFundus(2, 32), [CaseFingerprint((4, 4), None, 1, np.zeros((3, 0), np.float32))])
    assert found.intensities is None
    assert "no voxel is marked" in found.text()


def of_training(data: RaterDataModule) -> Fingerprint:
    records = data.records("train")
    return Fingerprint.of(data.source, [measure_training_case(data.source.load(record.case_id)) for record in records])


def test_the_fingerprint_of_pet_and_ct_is_that_of_the_files(tmp_path: Path) -> None:
    names = ("CHUM-001", "CHUM-002", "CHUS-003", "CHUS-004", "MDA-005", "MDA-006")
    for name in names:
        Patient(name, is_marked=True).write(tmp_path)
    data = RaterDataModule("hecktor", HecktorSource(str(tmp_path)), SplitFractions(0.2, 0.2, draw="permutation"))
    found = of_training(data)
    trained = [record.case_id for record in data.splits["train"]]
    assert 0 < len(trained) < len(names)
    assert found.sizes == ((24, 22, 10),) * len(trained)
    assert np.allclose(np.array(found.spacings), [[1.0, 1.0, 3.0]] * len(trained))
    assert (found.channels, found.structures, found.raters) == (2, ("GTVn",), (3, 3))
    marked = []
    for name in trained:
        ct = np.asarray(nibabel.load(tmp_path / f"imagesTr/{name}__CT.nii.gz").dataobj, dtype=np.float64)
        labels = [np.asarray(nibabel.load(path).dataobj) for path in sorted(tmp_path.glob(f"labelsTr/{name}*"))]
        assert len(labels) == 3
        marked.append((ct[np.any([label == 2 for label in labels], axis=0)].clip(-250, 250) + 250) / 500)
    assert found.intensities is not None
    expected = np.percentile(np.concatenate(marked), (0.5, 50, 99.5))
    assert found.intensities[0] == pytest.approx(expected, abs=1e-6)


def test_the_fingerprint_of_slices_is_that_of_the_pictures(tmp_path: Path) -> None:
    write_data_set(tmp_path)
    source = LidcSlices(str(tmp_path), readers=[4], slices="largest")
    data = RaterDataModule("lidc", source, SplitFractions(0.2, 0.2, draw="permutation"))
    found = of_training(data)
    assert set(found.sizes) == {(32, 32)}
    assert found.raters == (4, 4)
    marked = []
    for record in data.splits["train"]:
        # the largest slice of each nodule is the second one
        folder = tmp_path / record.group / "nodule-0"
        picture = np.asarray(Image.open(folder / "images" / "slice-1.png"), dtype=np.float64)
        masks = [np.asarray(Image.open(folder / f"mask-{reader}" / "slice-1.png")) > 0 for reader in range(4)]
        marked.append(picture[np.any(masks, axis=0)] / 255)
    assert found.intensities is not None
    assert found.intensities[0] == pytest.approx(np.percentile(np.concatenate(marked), (0.5, 50, 99.5)), abs=1e-6)
