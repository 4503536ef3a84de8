"""Votes without identities: the share of raters per voxel becomes nested level masks with the same q and V*."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from copies import require_known
from few_bits import write_few_bits
from hydra import compose, initialize_config_dir
from PIL import Image
from processes import run_command

from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import DrishtiSource, ManifestSource, RaterDataModule
from edue_lightning.data.conversion import write_manifest as write_converted
from edue_lightning.data.images import ImageError, read_image, read_label_map, read_mask
from edue_lightning.data.votes import CAVEAT, read_votes
from edue_lightning.errors import UserError
from edue_lightning.reporting.data_check import check
from edue_lightning.uncertainty import rater_mean, rater_variance

LEVELS = np.array([0, 64, 128, 191, 255], dtype=np.uint8)
EDGE = 48


def votes(seed: int = 0, raters: int = 4, size: tuple[int, ...] = (EDGE, EDGE), radius: float = 16) -> np.ndarray:
    """Return numbers of votes: concentric shapes around a place that is the seed's."""
    centre = [length // 2 + seed % 3 for length in size]
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.indices(size), centre, strict=True)))
    return np.clip((radius - distance) // 2 + 1, 0, raters).astype(np.uint8)


def write_manifest(folder: Path, raters: int = 4, cases: int = 12, **columns: Any) -> Path:
    folder.mkdir()
    rows = []
    for case in range(cases):
        rng = np.random.default_rng(case)
        Image.fromarray(rng.integers(0, 255, (EDGE, EDGE), dtype=np.uint8)).save(folder / f"c{case}.png")
        for structure, radius in (("disc", 16), ("cup", 9)):
            file = f"c{case}_{structure}.png"
            share = votes(case, raters, radius=radius) * (255 / raters)
            Image.fromarray(np.rint(share).astype(np.uint8)).save(folder / file)
            row = {"case_id": f"c{case}", "image": f"c{case}.png", "votes": file, "n_raters": raters}
            rows.append({**row, "structure": structure, **columns})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


def write_drishti(folder: Path, numbers: range = range(1, 9), tests: range = range(9, 12), gt: str = "Test_GT") -> Path:
    """Write photographs in the layout of DRISHTI-GS1."""
    for number in (*numbers, *tests):
        part = "Test" if number in tests else "Training"
        kind = "GLAUCOMA" if number % 2 else "NORMAL"
        name = f"drishtiGS_{number:03d}"
        rng = np.random.default_rng(number)
        photograph = folder / part / "Images" / kind / f"{name}.png"
        photograph.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (100, 120, 3), dtype=np.uint8)).save(photograph)
        maps = folder / part / (gt if part == "Test" else "GT") / name / "SoftMap"
        maps.mkdir(parents=True)
        for structure, radius in (("OD", 16), ("cup", 9)):
            map_ = LEVELS[votes(number, size=(100, 120), radius=radius)]
            Image.fromarray(map_).save(maps / f"{name}_{structure}segSoftmap.png")
        (maps.parent / "AvgBoundary").mkdir()
        (maps.parent / "AvgBoundary" / f"{name}_diskCenter.txt").write_text("50 60")
    return folder


def test_level_masks_of_a_manifest_have_the_votes_share_and_variance(tmp_path: Path) -> None:
    source = ManifestSource(str(write_manifest(tmp_path / "data")))
    assert source.problems == ()
    assert source.votes
    assert source.raters is None
    assert source.structures == ("disc", "cup")
    sample = source.load("c5")
    assert sample.masks.shape == (4, 2, EDGE, EDGE)
    assert sample.valid.all()
    for k, radius in enumerate((16, 9)):
        q = torch.from_numpy(votes(5, radius=radius)).double() / 4
        masks, valid = sample.masks[None, :, k : k + 1].double(), sample.valid[None]
        torch.testing.assert_close(rater_mean(masks, valid)[0, 0].double(), q, rtol=0, atol=1e-7)
        torch.testing.assert_close(rater_variance(masks, valid)[0, 0].double(), q * (1 - q), rtol=0, atol=1e-7)
    # nested: whoever is strict is within whoever is generous
    assert (sample.masks[1:] <= sample.masks[:-1]).all()


def test_cases_may_have_different_numbers_of_raters(tmp_path: Path) -> None:
    folder = write_manifest(tmp_path / "data")
    table = pd.read_csv(folder / "manifest.csv")
    for structure, radius in (("disc", 16), ("cup", 9)):
        share = np.rint(votes(0, 7, radius=radius) * (65535 / 7)).astype(np.uint16)
        Image.fromarray(share).save(folder / f"c0_{structure}.png")
    table.loc[table.case_id == "c0", "n_raters"] = 7
    table.to_csv(folder / "manifest.csv", index=False)
    source = ManifestSource(str(folder))
    assert source.problems == ()
    assert source.load("c0").valid.sum() == 7
    other = source.load("c1")
    assert other.valid.tolist() == [True] * 4 + [False] * 3
    assert source.facts["votes"].startswith("of 4 or 7 raters")


@pytest.mark.parametrize(
    ("stored", "raters"),
    [
        (votes(), 4),
        (LEVELS[votes()], 4),
        # cut off in place of rounded
        ((votes(raters=6) * (255 / 6)).astype(np.uint8), 6),
        (np.rint(votes(raters=3) * (65535 / 3)).astype(np.uint16), 3),
    ],
)
def test_numbers_and_shares_are_read(tmp_path: Path, stored: np.ndarray, raters: int) -> None:
    Image.fromarray(stored).save(tmp_path / "votes.png")
    np.testing.assert_array_equal(read_votes(tmp_path / "votes.png", raters).array, votes(raters=raters))


@pytest.mark.parametrize(("value", "raters"), [(16, 16), (13, 20), (16, 32)])
def test_few_votes_of_many_raters_are_not_taken_for_numbers(tmp_path: Path, value: int, raters: int) -> None:
    Image.fromarray(np.array([[0, value]], dtype=np.uint8)).save(tmp_path / "votes.png")
    with pytest.raises(ImageError, match=f"may be numbers of raters or few of {raters} raters as shares of 255"):
        read_votes(tmp_path / "votes.png", raters)
    # numbers that are no shares
    Image.fromarray(np.array([[0, 1, 2, 5]], dtype=np.uint8)).save(tmp_path / "votes.png")
    assert read_votes(tmp_path / "votes.png", raters).array.max() == 5


def greys(bits: int) -> list[tuple[int, int, int]]:
    return [(number * 255 // (2**bits - 1),) * 3 for number in range(2**bits)]


def colours(bits: int) -> list[tuple[int, int, int]]:
    return [(0, 0, 0), *((255, number, 9) for number in range(1, 2**bits))]


@pytest.mark.parametrize("raters", [3, 6, 9])
@pytest.mark.parametrize(
    ("name", "bits", "palette"),
    [
        ("v.png", 2, None),
        ("v.png", 4, None),
        ("v.tif", 2, None),
        ("v.tif", 4, None),
        ("v.png", 2, colours(2)),
        ("v.png", 4, colours(4)),
        ("v.tif", 4, colours(4)),
        ("v.bmp", 4, colours(4)),
    ],
)
def test_pictures_of_few_bits_hold_numbers_of_raters(
    tmp_path: Path, name: str, bits: int, palette: Any, raters: int
) -> None:
    given = np.arange(40, dtype=np.uint8).reshape(5, 8) % 4
    write_few_bits(tmp_path / name, given, bits, palette)
    np.testing.assert_array_equal(read_votes(tmp_path / name, raters).array, given)
    np.testing.assert_array_equal(read_label_map(tmp_path / name, {1: "a", 2: "b", 3: "c"}).array, given)
    # as the mask of a rater, and as an image
    write_few_bits(tmp_path / name, given * (given == 3), bits, palette)
    np.testing.assert_array_equal(read_mask(tmp_path / name).array, given == 3)
    if palette is None:
        assert read_image(tmp_path / name).array.max() == pytest.approx(3 / (2**bits - 1))


@pytest.mark.parametrize(("name", "bits"), [("v.png", 2), ("v.png", 4), ("v.tif", 2), ("v.bmp", 4)])
def test_a_palette_of_greys_that_may_be_numbers_is_refused(tmp_path: Path, name: str, bits: int) -> None:
    given = np.arange(40, dtype=np.uint8).reshape(5, 8) % 4
    write_few_bits(tmp_path / name, given, bits, greys(bits))
    with pytest.raises(ImageError, match="may be the greys or the positions in the palette"):
        read_votes(tmp_path / name, 6 if bits == 2 else 30)
    # both readings agree
    np.testing.assert_array_equal(read_votes(tmp_path / name, 2**bits - 1).array, given)


@pytest.mark.parametrize("name", ["v.png", "v.tif"])
def test_one_bit_is_no_number_of_several_raters(tmp_path: Path, name: str) -> None:
    given = np.arange(40, dtype=np.uint8).reshape(5, 8) % 2
    write_few_bits(tmp_path / name, given, 1)
    with pytest.raises(ImageError, match="one bit per pixel, which may be one rater or all"):
        read_votes(tmp_path / name, 4)
    np.testing.assert_array_equal(read_votes(tmp_path / name, 1).array, given)
    np.testing.assert_array_equal(read_label_map(tmp_path / name, {1: "a"}).array, given)
    np.testing.assert_array_equal(read_mask(tmp_path / name, 127).array, given > 0)


def test_votes_of_a_volume_are_read_as_shares(tmp_path: Path) -> None:
    expected = votes(size=(20, 18, 9), radius=7)
    nibabel.save(nibabel.Nifti1Image((expected / 4).astype(np.float32), np.diag([1, 1, 3, 1])), tmp_path / "v.nii.gz")
    found = read_votes(tmp_path / "v.nii.gz", 4)
    np.testing.assert_array_equal(found.array, expected)
    assert found.spacing == (1, 1, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 100, 255]], dtype=np.uint8), "holds the values 100, which are no votes of 4 raters"),
        (np.array([[0, 5, 3]], dtype=np.uint8), "no votes of 4 raters"),
        (np.array([[0, 0.4, 1]], dtype=np.float32), "no votes of 4 raters"),
        (np.array([[0, 1, 1]], dtype=np.float32), "one rater or all"),
        (np.array([[0, -1, 1]], dtype=np.float32), "no votes of 4 raters"),
        (np.array([[0, np.nan, 1]], dtype=np.float32), "NaN or infinity"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    if values.dtype == np.uint8:
        path = tmp_path / "votes.png"
        Image.fromarray(values).save(path)
    else:
        path = tmp_path / "votes.nii.gz"
        nibabel.save(nibabel.Nifti1Image(values[..., None].repeat(3, 2), np.eye(4)), path)
    with pytest.raises(ImageError, match=message):
        read_votes(path, 4)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"n_raters": "four"}, "n_raters 'four' is no whole number from 1 to 64"),
        ({"n_raters": 0}, "n_raters '0' is no whole number"),
        ({"votes": ""}, "votes is empty; name its file"),
        ({"rater": "anna"}, "rater must be empty beside votes"),
        ({"n_raters": 5}, "which are no votes of 5 raters"),
    ],
)
def test_what_is_wrong_with_a_table_of_votes_is_said(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    folder = write_manifest(tmp_path / "data")
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    for name, value in columns.items():
        table.loc[0, name] = str(value)
    table.to_csv(folder / "manifest.csv", index=False)
    assert any(message in line for line in ManifestSource(str(folder)).problems)


def test_drishti_is_read_in_its_layout(tmp_path: Path) -> None:
    root = write_drishti(tmp_path / "Drishti-GS1_files")
    source = DrishtiSource(str(root), crop=None, size=120)
    assert source.problems == ()
    assert source.votes
    assert source.spatial_dims == 2
    splits = {record.case_id: record.split for record in source.cases()}
    assert splits == {f"drishtiGS_{n:03d}": "test" if n > 8 else None for n in range(1, 12)}
    sample = source.load("drishtiGS_003")
    assert sample.image.shape == (3, 120, 120)
    q = torch.zeros(120, 120)
    q[10:110] = torch.from_numpy(votes(3, size=(100, 120)).astype(np.float32)) / 4
    torch.testing.assert_close(sample.masks[:, 0].float().mean(dim=0), q)
    assert (sample.masks[:, 1] <= sample.masks[:, 0]).all()
    data = RaterDataModule("drishti", source)
    assert {record.case_id for record in data.records("test")} == {f"drishtiGS_{n:03d}" for n in range(9, 12)}
    assert data.note == CAVEAT
    # a square around the disc of at least two votes
    cut = DrishtiSource(str(root), structures=["cup"], crop=0.5, size=32).load("drishtiGS_003")
    assert cut.image.shape == (3, 32, 32)
    assert cut.masks.shape == (4, 1, 32, 32)
    assert cut.masks[0].float().mean() > 0.05


@pytest.mark.parametrize("gt", ["GT", "Test_GT", "test_gt"])
def test_soft_maps_of_the_test_part_lie_in_several_folders(tmp_path: Path, gt: str) -> None:
    assert len(DrishtiSource(str(write_drishti(tmp_path / "data", gt=gt)), size=32).cases()) == 11


def test_a_part_without_soft_maps_is_left_out_and_a_missing_map_is_a_problem(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_drishti(tmp_path / "data")
    for path in (root / "Test" / "Test_GT").rglob("*.png"):
        path.unlink()
    source = DrishtiSource(str(root), size=32)
    assert len(source.cases()) == 8
    assert "3 photographs have no soft maps and are left out" in caplog.text
    (root / "Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_cupsegSoftmap.png").unlink()
    (line,) = DrishtiSource(str(root), size=32).problems
    assert "case 'drishtiGS_002': soft map of the cup is missing" in line
    Image.fromarray(np.full((9, 9), 100, dtype=np.uint8)).save(
        root / "Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_cupsegSoftmap.png"
    )
    problems = "\n".join(DrishtiSource(str(root), size=32).problems)
    assert "no votes of 4 raters (0, 63.75, 127.5, 191.25, 255, rounded)" in problems


def test_no_rater_can_be_held_out_of_votes(tmp_path: Path) -> None:
    source = ManifestSource(str(write_manifest(tmp_path / "data")))
    with pytest.raises(UserError, match="who gave which vote is unknown in this data set, so no rater can be held out"):
        RaterDataModule("votes", source, training_raters=[0, 1])
    assert RaterDataModule("votes", source, note="mine").note == f"mine; {CAVEAT}"


def test_check_says_that_votes_are_level_masks(tmp_path: Path) -> None:
    folder = write_manifest(tmp_path / "data")
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        configuration = resolved(
            compose("check", overrides=["data=manifest", f"data.root={folder}", "data.cache=null", "output=x"])
        )
    found = check(configuration, tmp_path / "out")
    assert not found.problems
    text = (tmp_path / "out" / "summary.txt").read_text()
    assert "of 4 raters, read as nested level masks" in text
    assert "those of the level masks" in text


def test_training_on_votes_marks_its_figures_and_refuses_a_member_per_rater(tmp_path: Path) -> None:
    write_manifest(tmp_path / "data")
    quick = ["data=manifest", "data.root=data", "network.features=[4,6,8]", "trainer.max_epochs=1"]
    quick += [
        "bootstrap_resamples=0",
        "figures=false",
        "trainer.accelerator=cpu",
        "logger.mode=disabled",
        "data.fractions.draw=permutation",
    ]
    done = run_command("train", [*quick, "method=edue", "hydra.run.dir=run"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["image_note"] == CAVEAT
    assert f"note: {CAVEAT}" in done.stdout
    report = run_command("report", ["runs=run", "output=report"], cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "those of the level masks" in (tmp_path / "report" / "report.html").read_text()
    refused = run_command(
        "train", [*quick, "method=deep_ensemble_rater_per_member", "hydra.run.dir=other"], cwd=tmp_path
    )
    assert refused.returncode != 0
    assert "who gave which vote is unknown in data=manifest" in refused.stderr


def test_votes_are_converted_as_votes(tmp_path: Path) -> None:
    source = DrishtiSource(str(write_drishti(tmp_path / "data")), size=40)
    assert write_converted(RaterDataModule("drishti", source), tmp_path / "out") == 11
    again = ManifestSource(str(tmp_path / "out"), standardise=False)
    assert again.problems == ()
    assert again.votes
    for record in source.cases():
        first, second = source.load(record.case_id), again.load(record.case_id)
        assert torch.equal(first.masks, second.masks)
        assert torch.equal(first.image, second.image)


def test_a_copy_of_drishti_is_known_however_it_is_prepared(tmp_path: Path) -> None:
    first, copy = (str(write_drishti(tmp_path / n, range(1, 3), range(3, 4))) for n in ("first", "copy"))
    require_known(DrishtiSource(first, size=32), DrishtiSource(copy, size=40, crop=0.9))
