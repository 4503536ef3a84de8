"""Structures that exclude each other: read from label maps and mask files, and refused where they overlap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from nnunet_files import PICTURE, REGIONS, VERSION_2, write_nnunet
from PIL import Image

from edue_lightning.config.build import ImageFormat
from edue_lightning.data import CaseRecord, CaseSource, ManifestSource, NnunetSource, QubiqSource, RaterDataModule
from edue_lightning.data.exclusive import Shared, shared_voxels
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.sources.hecktor.source import HecktorSource
from edue_lightning.data.splits import SplitFractions
from edue_lightning.errors import UserError


def pictures(root: Path, description: dict[str, Any] | None = None) -> Path:
    description = {**(description or VERSION_2), "file_ending": ".png"}
    return write_nnunet(root, description, cases=6, shape=PICTURE, ending=".png")


def write_masks(folder: Path, overlap: bool) -> Path:
    """Write a case whose raters have one mask file per structure; those of ANNA share voxels with `overlap`."""
    folder.mkdir(exist_ok=True)
    rows = []
    pixels = np.random.default_rng(0).integers(0, 255, (12, 14), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "one.png")
    for rater in ("ANNA", "BEN"):
        for structure, columns in (("node", slice(1, 6)), ("tumour", slice(6, 10))):
            mask = np.zeros((12, 14), dtype=np.uint8)
            mask[3:8, columns] = 255
            if overlap and (rater, structure) == ("ANNA", "tumour"):
                mask[3, 2:5] = 255
            Image.fromarray(mask).save(folder / f"{rater}_{structure}.png")
            row = {"case_id": "one", "image": "one.png", "mask": f"{rater}_{structure}.png"}
            rows.append({**row, "rater": rater, "structure": structure})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


def test_label_maps_are_read_as_exclusive_and_the_model_knows(tmp_path: Path) -> None:
    source = NnunetSource(str(pictures(tmp_path)), exclusive=True)
    data = RaterDataModule("nnunet", source, SplitFractions(0.2, 0.2, draw="permutation"))
    image_format = ImageFormat.of(data.source)
    assert image_format.exclusive
    assert ImageFormat.from_dict(image_format.as_dict()) == image_format
    batch = next(iter(data.train_dataloader()))
    assert batch.masks.sum(dim=2).max() == 1
    assert batch.masks.flatten(3).any(dim=3)[batch.valid].all()


def test_formats_of_earlier_checkpoints_are_of_structures_that_may_overlap(tmp_path: Path) -> None:
    known = ImageFormat.of(NnunetSource(str(pictures(tmp_path))))
    assert not known.exclusive
    assert "exclusive" not in known.as_dict()
    assert ImageFormat.from_dict(known.as_dict()) == known
    assert known != ImageFormat.of(NnunetSource(str(tmp_path), exclusive=True))


def test_regions_that_nest_are_no_exclusive_structures(tmp_path: Path) -> None:
    folder = pictures(tmp_path, REGIONS)
    assert NnunetSource(str(folder)).structures == ("liver", "tumour")
    with pytest.raises(
        UserError, match=r"dataset\.json: number 2 belongs both to liver and to tumour.*exclusive=false"
    ):
        NnunetSource(str(folder), exclusive=True)
    # one of them alone excludes nothing
    assert NnunetSource(str(folder), structures=["tumour"], exclusive=True).exclusive


def test_nested_labels_of_a_manifest_are_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 14), dtype=np.uint8)
    labels = np.zeros((12, 14), dtype=np.uint8)
    labels[2:8, 2:9], labels[4:6, 4:6] = 1, 2
    Image.fromarray(pixels).save(tmp_path / "one.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    rows = [{"case_id": "one", "image": "one.png", "mask": "labels.png", "rater": rater} for rater in "A"]
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(UserError, match=r"data\.source\.labels: number 2 belongs both to disc and to cup"):
        ManifestSource(str(tmp_path), labels={"disc": [1, 2], "cup": 2}, exclusive=True)
    source = ManifestSource(str(tmp_path), labels={"rim": 1, "cup": 2}, exclusive=True)
    assert source.load("one").masks.sum(dim=1).max() == 1


@pytest.mark.parametrize("cached", [False, True])
def test_a_rater_whose_structures_overlap_is_one_line_with_file_case_and_rater(tmp_path: Path, cached: bool) -> None:
    folder = write_masks(tmp_path / "data", overlap=True)
    cache = str(tmp_path / "cache") if cached else None
    # prepared before the structures are said to exclude each other
    assert not ManifestSource(str(folder), cache=cache).problems
    source = ManifestSource(str(folder), cache=cache, exclusive=True)
    assert source.problems == (
        "ANNA_tumour.png: case 'one': rater 'ANNA' gave 3 voxels both to node and to tumour, but "
        "data.source.exclusive=true says that structures exclude each other; correct the mask, or set "
        "data.source.exclusive=false",
    )
    with pytest.raises(UserError, match="1 problem"):
        RaterDataModule("manifest", source)


def test_mask_files_that_do_not_overlap_are_exclusive(tmp_path: Path) -> None:
    source = ManifestSource(str(write_masks(tmp_path / "data", overlap=False)), exclusive=True)
    assert not source.problems
    assert source.load("one").masks.flatten(2).sum(dim=2).tolist() == [[25, 20], [25, 20]]


def test_votes_are_of_no_rater_so_they_are_refused(tmp_path: Path) -> None:
    share = np.zeros((12, 14), dtype=np.uint8)
    share[3:8, 3:8] = 2
    Image.fromarray(share).save(tmp_path / "one.png")
    Image.fromarray(share).save(tmp_path / "votes.png")
    row = {"case_id": "one", "image": "one.png", "votes": "votes.png", "n_raters": 2}
    pd.DataFrame([{**row, "structure": name} for name in ("a", "b")]).to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(UserError, match="votes do not say which rater gave a voxel to which structure"):
        ManifestSource(str(tmp_path), exclusive=True)


def test_tasks_of_qubiq_that_overlap_are_told_by_file_and_rater(tmp_path: Path) -> None:
    folder = tmp_path / "brain-tumor" / "Training" / "case01"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    nibabel.save(nibabel.Nifti1Image(rng.normal(size=(12, 14)).astype(np.float32), np.eye(4)), folder / "image.nii.gz")
    for task, rows in ((1, slice(2, 6)), (2, slice(6, 9))):
        for rater in (1, 2):
            mask = np.zeros((12, 14), dtype=np.uint8)
            mask[rows, 3:8] = 1
            if (task, rater) == (2, 2):
                mask[5, 3] = 1
            nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / f"task{task:02d}_seg{rater:02d}.nii.gz")
    source = QubiqSource(str(tmp_path), exclusive=True)
    (problem,) = source.problems
    assert problem.startswith("brain-tumor/Training/case01/task02_seg02.nii.gz: case ")
    assert "gave 1 voxels both to " in problem


class Overlapping(CaseSource):
    """A source of the user's own, which checks nothing."""

    spatial_dims, channels, structures, exclusive = 2, 1, ("a", "b"), True

    def cases(self) -> Sequence[CaseRecord]:
        return [CaseRecord(str(number), str(number)) for number in range(6)]

    def load(self, case_id: str) -> RaterSample:
        masks = torch.zeros(3, 2, 8, 8, dtype=torch.uint8)
        masks[:, 0, :4] = 1
        masks[1, 1, 3:5, :2] = 1
        return RaterSample(torch.zeros(1, 8, 8), masks, torch.ones(3, dtype=torch.bool), case_id)


def test_a_source_of_ones_own_is_checked_before_training() -> None:
    source = Overlapping()
    assert shared_voxels(source.load("0")) == [Shared(1, (0, 1), 2)]
    data = RaterDataModule("own", source, SplitFractions(0.2, 0.2, draw="permutation"))
    with pytest.raises(UserError, match=r"case '\d': rater 2 gave 2 voxels both to a and to b"):
        data.require("train")


def test_a_voxel_halfway_between_two_structures_goes_to_the_first(tmp_path: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    shape, affine = (16, 12, 10), np.diag([1.0, 1.0, 1.0, 1.0])
    rng = np.random.default_rng(0)
    ct = rng.normal(0, 100, shape).astype(np.float32)
    ct[:3] = -1000
    label = np.zeros(shape, dtype=np.uint8)
    label[3:8, 3:9, 3:8], label[8:13, 3:9, 3:8] = 1, 2
    label[:, 3] = np.roll(label[:, 3], 1, axis=0)
    for name, values in (("CT", ct), ("PT", rng.uniform(0, 9, shape).astype(np.float32))):
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "imagesTr" / f"CHUM-001__{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, affine), tmp_path / "labelsTr" / "CHUM-001.nii.gz")
    settings: dict[str, Any] = {"structures": ["GTVp", "GTVn"], "spacing": [2.0, 1.0, 1.0]}
    either = HecktorSource(str(tmp_path), **settings).load("CHUM-001").masks[0]
    source = HecktorSource(str(tmp_path), **settings, exclusive=True)
    assert not source.problems
    masks = source.load("CHUM-001").masks[0]
    assert either.sum(dim=0).max() == 2
    assert torch.equal(masks[0], either[0])
    assert torch.equal(masks[1], either[1] & ~either[0])
