"""CHASE_DB1, STARE and DRIVE in their true layouts."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edue_lightning.data import RaterDataModule, RetinalVessels
from edue_lightning.data.sources.retinal_vessels.layout import list_vessels
from edue_lightning.errors import UserError

REAL = Path(__file__).parents[4] / "shared" / "data" / "chase_db1"
SHAPE = (24, 20)


def colours(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*SHAPE, 3), dtype=np.uint8))


def vessels(rows: int) -> Image.Image:
    """Return a mask of 8 bits whose first rows are marked."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[:rows] = 255
    return Image.fromarray(mask)


def save(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_chase(root: Path, children: int = 6) -> Path:
    for child in range(1, children + 1):
        for eye in "LR":
            save(root / f"Image_{child:02d}{eye}.jpg", colours(child))
            save(root / f"Image_{child:02d}{eye}_1stHO.png", vessels(3).convert("1"))
            save(root / f"Image_{child:02d}{eye}_2ndHO.png", vessels(5).convert("1"))
    return root


def write_stare(root: Path, packed: bool) -> Path:
    for number in range(1, 6):
        for ending, picture in {"": colours(number), ".ah": vessels(3), ".vk": vessels(5)}.items():
            path = root / f"im{number:04d}{ending}.ppm"
            save(path, picture)
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
    return root


def write_drive(root: Path) -> Path:
    for number in range(1, 6):
        save(root / "test" / "images" / f"{number:02d}_test.tif", colours(number))
        save(root / "test" / "1st_manual" / f"{number:02d}_manual1.gif", vessels(3))
        save(root / "test" / "2nd_manual" / f"{number:02d}_manual2.gif", vessels(5))
        save(root / "test" / "mask" / f"{number:02d}_test_mask.gif", vessels(20))
    return root


def marked_rows(source: RetinalVessels, case_id: str) -> list[float]:
    return [float(mask.sum()) / SHAPE[1] for mask in source.load(case_id).masks]


def test_chase_groups_the_eyes_of_a_child(tmp_path: Path) -> None:
    source = RetinalVessels(str(write_chase(tmp_path)))
    records = source.cases()
    assert [record.case_id for record in records][:3] == ["01L", "01R", "02L"]
    assert [record.group for record in records][:3] == ["01", "01", "02"]
    assert (source.spatial_dims, source.channels, source.structures) == (2, 3, ("vessels",))
    assert source.raters == ("1stHO", "2ndHO")
    assert source.facts == {"data set": "CHASE_DB1"}
    assert marked_rows(source, "03R") == [3, 5]
    splits = RaterDataModule("vessels", source).splits
    for record in records:
        assert (
            len({split for split in ("train", "val", "test") if record.group in {r.group for r in splits[split]}}) == 1
        )


@pytest.mark.parametrize("packed", [False, True])
def test_stare_as_it_is_and_packed(tmp_path: Path, packed: bool) -> None:
    source = RetinalVessels(str(write_stare(tmp_path, packed)))
    assert [record.case_id for record in source.cases()] == [f"im{number:04d}" for number in range(1, 6)]
    assert source.raters == ("ah", "vk")
    sample = source.load("im0002")
    np.testing.assert_allclose(sample.image.numpy(), np.moveaxis(np.asarray(colours(2)), -1, 0) / 255, atol=1e-6)
    assert marked_rows(source, "im0002") == [3, 5]


def test_stare_in_one_folder_per_observer(tmp_path: Path) -> None:
    write_stare(tmp_path, packed=False)
    for name in ("ah", "vk"):
        (tmp_path / f"labels-{name}").mkdir()
        for path in list(tmp_path.glob(f"*.{name}.ppm")):
            path.rename(tmp_path / f"labels-{name}" / path.name)
    assert marked_rows(RetinalVessels(str(tmp_path)), "im0004") == [3, 5]


def test_drive_with_its_field_of_view_beside_it(tmp_path: Path) -> None:
    source = RetinalVessels(str(write_drive(tmp_path)))
    assert [record.case_id for record in source.cases()] == ["01", "02", "03", "04", "05"]
    assert source.raters == ("manual1", "manual2")
    assert marked_rows(source, "05") == [3, 5]
    sample = source.load("05")
    assert sample.image.shape == (3, *SHAPE)
    assert sample.region is not None
    np.testing.assert_array_equal(sample.region, np.array(vessels(20)) > 0)


def test_masks_of_drive_end_at_the_field_of_view(tmp_path: Path) -> None:
    save(write_drive(tmp_path) / "test" / "mask" / "02_test_mask.gif", vessels(4))
    assert marked_rows(RetinalVessels(str(tmp_path)), "02") == [3, 4]


def test_a_missing_field_of_view_is_a_problem_if_others_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masks = write_drive(tmp_path) / "test" / "mask"
    (masks / "02_test_mask.gif").unlink()
    with pytest.raises(UserError, match=r"02_test.tif: case '02': has no mask of its field of view, but other cases"):
        RetinalVessels(str(tmp_path)).cases()
    for path in masks.iterdir():
        path.unlink()
    source = RetinalVessels(str(tmp_path))
    assert source.load(source.cases()[0].case_id).region is None
    assert "has no masks of the field of view" in caplog.text


def test_the_training_part_of_drive_has_one_observer(tmp_path: Path) -> None:
    write_drive(tmp_path)
    save(tmp_path / "training" / "images" / "21_training.tif", colours(21))
    save(tmp_path / "training" / "1st_manual" / "21_manual1.gif", vessels(4))
    save(tmp_path / "training" / "mask" / "21_training_mask.gif", vessels(20))
    source = RetinalVessels(str(tmp_path))
    assert source.load("21").valid.tolist() == [True, False]
    assert source.load("01").valid.tolist() == [True, True]


def test_what_is_wrong_is_reported_with_its_file(tmp_path: Path) -> None:
    write_chase(tmp_path)
    (tmp_path / "Image_01L.jpg").unlink()
    save(tmp_path / "Image_02L_1stHO.png", Image.fromarray(np.zeros((9, 9), dtype=np.uint8)))
    save(tmp_path / "Image_03L_3rdHO.png", vessels(1))
    for name in ("Image_04L_1stHO.png", "Image_04L_2ndHO.png"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError) as caught:
        RetinalVessels(str(tmp_path)).cases()
    text = str(caught.value)
    assert "Image_01L_1stHO.png: case '01L': is a mask without its photograph" in text
    assert "Image_02L_1stHO.png: case '02L': is 9x9" in text
    assert "Image_03L_3rdHO.png: is named like no file of CHASE_DB1" in text
    assert "Image_04L.jpg: case '04L': has no mask" in text


def test_two_data_sets_in_one_folder_and_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no case of this data set"):
        RetinalVessels(str(tmp_path)).cases()
    write_chase(tmp_path / "a", 1)
    write_drive(tmp_path / "b")
    with pytest.raises(UserError, match="holds files of CHASE_DB1 and DRIVE"):
        RetinalVessels(str(tmp_path)).cases()


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/chase_db1")
def test_the_real_chase(tmp_path: Path) -> None:
    kind, cases, problems = list_vessels(REAL)
    assert (kind, len(cases), problems) == ("CHASE_DB1", 28, [])
    assert len({case.group for case in cases}) == 14
    for path in REAL.glob("Image_0[12]*"):
        (tmp_path / path.name).symlink_to(path)
    source = RetinalVessels(str(tmp_path))
    sample = source.load("02R")
    assert sample.image.shape == (3, 960, 999)
    first, second = sample.masks.flatten(1).bool()
    assert 0.6 < 2 * (first & second).sum() / (first.sum() + second.sum()) < 0.95
