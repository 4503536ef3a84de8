"""A data set as a folder with a manifest, which gives the same samples again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lidc_slice_files import write_data_set
from patients import Patient
from processes import run_command

from edue_lightning.config.build import build_data
from edue_lightning.convert import convert
from edue_lightning.data import HecktorSource, LidcSlices, ManifestSource, RaterDataModule
from edue_lightning.data.conversion import write_manifest
from edue_lightning.errors import UserError

FUNDUS = {
    "_target_": "edue_lightning.data.RaterDataModule",
    "name": "synthetic",
    "source": {
        "_target_": "edue_lightning.data.SyntheticFundus",
        "n_cases": 9,
        "size": 32,
        "raters": 3,
        "seed": 0,
        "missing_rater_rate": 0.4,
    },
}


def read_back(folder: Path, data: RaterDataModule) -> None:
    """Compare a converted folder with its origin."""
    again = RaterDataModule("manifest", ManifestSource(str(folder), standardise=False))
    assert again.source.structures == data.source.structures
    assert again.source.raters == data.source.raters
    for split in ("train", "val", "test"):
        assert again.splits[split] == [replace(r, split=split, stratum="") for r in data.splits[split]]
    for record in data.splits["all"]:
        first, second = data.source.load(record.case_id), again.source.load(record.case_id)
        for name in ("image", "masks", "valid"):
            assert torch.equal(getattr(first, name), getattr(second, name)), (record.case_id, name)
        assert first.spacing == second.spacing
        if first.affine is not None:
            assert second.affine is not None
            torch.testing.assert_close(first.affine, second.affine, atol=1e-5, rtol=0)


def test_pictures_come_back_with_missing_raters(tmp_path: Path) -> None:
    configuration = {"seed": 0, "output": str(tmp_path / "out"), "data": FUNDUS}
    assert convert(configuration, tmp_path / "out") == 9
    read_back(tmp_path / "out", build_data(configuration))
    with pytest.raises(UserError, match="is not empty; choose another folder"):
        convert(configuration, tmp_path / "out")


def test_more_than_nine_raters_keep_their_places(tmp_path: Path) -> None:
    data = {**FUNDUS, "source": {**FUNDUS["source"], "raters": 12, "missing_rater_rate": 0.2}}  # type: ignore[dict-item]
    configuration = {"seed": 0, "output": str(tmp_path / "out"), "data": data}
    convert(configuration, tmp_path / "out")
    origin, again = build_data(configuration).source, ManifestSource(str(tmp_path / "out"), standardise=False)
    assert again.raters == tuple(f"{name} {n}" for name in [again.raters[0].split()[0]] for n in range(1, 13))
    for record in origin.cases():
        assert torch.equal(origin.load(record.case_id).masks, again.load(record.case_id).masks)


def test_raters_out_of_natural_order_keep_their_places(tmp_path: Path) -> None:
    data = build_data({"seed": 0, "data": FUNDUS})
    # as CHASE_DB1 and others name them: the expert first
    data.source.raters = ("second 2", "first 10", "first 9")
    assert write_manifest(data, tmp_path / "out") == 9
    read_back(tmp_path / "out", data)
    header = (tmp_path / "out" / "manifest.csv").read_text().partition("\n")[0]
    assert header.endswith(",rater,structure,rater_position")


def test_volumes_of_unknown_voxel_size_are_not_written_as_voxels_of_1_mm(tmp_path: Path) -> None:
    write_data_set(tmp_path / "slices", [1, 2, 3])
    sources = [LidcSlices(str(tmp_path / "slices"), volumes=volumes) for volumes in (True, False)]
    stacked, flat = (RaterDataModule("lidc_slices", source) for source in sources)
    with pytest.raises(UserError, match=r"data=lidc_slices: the voxel size of its volumes is unknown"):
        write_manifest(stacked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert write_manifest(flat, tmp_path / "out") == 12
    again = ManifestSource(str(tmp_path / "out"), standardise=False)
    for record in flat.splits["all"]:
        found, expected = again.load(record.case_id), flat.source.load(record.case_id)
        assert found.spacing is None
        assert torch.equal(found.masks, expected.masks)


@pytest.mark.slow
def test_volumes_come_back_through_the_command(tmp_path: Path) -> None:
    for name in ("CHUM-001", "CHUS-002", "MDA-003"):
        Patient(name, is_marked=True).write(tmp_path / "data")
    done = run_command("convert", ["data=hecktor", "data.root=data", "data.cache=null", "output=out"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read_back(tmp_path / "out", RaterDataModule("hecktor", HecktorSource(str(tmp_path / "data"))))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]
    refused = run_command("convert", ["data=hecktor", "data.root=nowhere", "output=other"], cwd=tmp_path)
    assert refused.returncode == 2
    assert "data.root=nowhere: no such folder" in refused.stderr
    assert not (tmp_path / "other").exists()
