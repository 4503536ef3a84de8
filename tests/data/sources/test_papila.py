"""PAPILA in its true layout: contours of two experts, copies of contour files, both eyes of a patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from copies import require_known
from PIL import Image

from edue_lightning.data import PapilaSource, RaterDataModule
from edue_lightning.data.images import ImageError
from edue_lightning.data.sources.papila.layout import fill_contour, read_contour
from edue_lightning.errors import UserError

HEIGHT, WIDTH = 60, 80
FOLDER = "PapilaDB-PAPILA-17f8fa7746adb20275b5b6a0d99dc9dfe3007e9f"


def circle(column: float, row: float, radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([column + radius * np.cos(angles), row + radius * np.sin(angles)], axis=1)


def write_contour(folder: Path, name: str, points: np.ndarray, newline: str = "\n") -> None:
    text = newline.join(f"   {x:.7e}   {y:.7e}" for x, y in points) + newline
    (folder / name).write_bytes(text.encode())


def write_papila(root: Path, patients: int = 5) -> Path:
    """Write both eyes of some patients; expert 2 draws larger. Return the folder of the contours."""
    images, contours = root / FOLDER / "FundusImages", root / FOLDER / "ExpertsSegmentations" / "Contours"
    for folder in (images, contours, root / FOLDER / "ClinicalData"):
        folder.mkdir(parents=True)
    (root / FOLDER / "README.txt").write_text("clinical data")
    for number in range(2, 2 + patients):
        for eye in ("OD", "OS"):
            name = f"RET{number:03d}{eye}"
            pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels + np.uint8(eye == "OS")).save(images / f"{name}.jpg", quality=95)
            for expert in (1, 2):
                write_contour(contours, f"{name}_disc_exp{expert}.txt", circle(50, 20, 8 + expert))
                write_contour(contours, f"{name}_cup_exp{expert}.txt", circle(50, 20, 3 + expert))
    return contours


def test_contours_become_masks_of_the_pixels_inside(tmp_path: Path) -> None:
    write_papila(tmp_path)
    source = PapilaSource(str(tmp_path), crop=None)
    assert source.structures == ("disc", "cup")
    assert source.raters == ("exp1", "exp2")
    sample = source.load("RET003OS")
    assert sample.image.shape == (3, HEIGHT, WIDTH)
    rows, columns = np.indices((HEIGHT, WIDTH))
    for expert in (0, 1):
        for structure, radius in enumerate((9 + expert, 4 + expert)):
            expected = np.hypot(columns - 50, rows - 20) <= radius + 1e-6
            found = sample.masks[expert, structure].numpy().astype(bool)
            # a polygon of 40 points lies within its circle
            assert not (found & ~expected).any()
            assert (expected & ~found).sum() < 0.1 * expected.sum()


def test_a_square_around_the_disc_is_cut_out_and_resized(tmp_path: Path) -> None:
    write_papila(tmp_path)
    source = PapilaSource(str(tmp_path), size=90)
    sample = source.load("RET002OD")
    assert sample.image.shape == (3, 90, 90)
    assert float(sample.image.min()) >= 0
    assert float(sample.image.max()) <= 1
    rows, columns = np.nonzero(sample.masks[0, 0].numpy())
    # the square of 30 pixels is enlarged three times
    assert abs(rows.mean() - 45) < 2.5
    assert abs(columns.mean() - 45) < 2.5
    assert abs(len(rows) - 9 * np.pi * 81) < 0.1 * 9 * np.pi * 81


def test_both_eyes_of_a_patient_stay_together(tmp_path: Path) -> None:
    write_papila(tmp_path, patients=12)
    source = PapilaSource(str(tmp_path))
    assert [record.group for record in source.cases()][:3] == ["002", "002", "003"]
    splits = RaterDataModule("papila", source).splits
    groups = [{record.group for record in splits[split]} for split in ("train", "val", "test")]
    assert sum(map(len, groups)) == 12


def test_copies_of_contours_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    contours = write_papila(tmp_path)
    write_contour(contours, "RET002OD_cup_exp2 2.txt", circle(50, 20, 5), newline="\r\n")
    source = PapilaSource(str(tmp_path))
    assert len(source.cases()) == 10
    assert "1 copies of contours are skipped, such as RET002OD_cup_exp2 2.txt" in caplog.text


def test_a_copy_with_other_points_is_a_problem(tmp_path: Path) -> None:
    contours = write_papila(tmp_path)
    write_contour(contours, "RET002OD_cup_exp2 2.txt", circle(50, 20, 4))
    write_contour(contours, "RET099OD_cup_exp2 2.txt", circle(50, 20, 4))
    with pytest.raises(UserError) as caught:
        PapilaSource(str(tmp_path)).cases()
    assert "RET002OD_cup_exp2 2.txt: differs from RET002OD_cup_exp2.txt, of which it should be a copy" in str(
        caught.value
    )
    assert "RET099OD_cup_exp2 2.txt: is a copy without its original; rename it to" in str(caught.value)


def test_problems_are_named(tmp_path: Path) -> None:
    contours = write_papila(tmp_path)
    (contours / "RET002OD_cup_exp2.txt").unlink()
    (contours / "RET003OD_disc_exp1.txt").write_text("1 2 3\n4 5 6\n7 8 9\n")
    (contours / "RET004OD_disc_exp1.txt").write_text("a b\n")
    write_contour(contours, "RET005OD_disc_exp1.txt", circle(79, 20, 9))
    (contours / "RET006OD_disc_exp3.txt").write_text("1 2\n")
    (tmp_path / FOLDER / "FundusImages" / "RET006OS.jpg").unlink()
    with pytest.raises(UserError) as caught:
        PapilaSource(str(tmp_path)).cases()
    text = str(caught.value)
    assert "RET002OD.jpg: case 'RET002OD': has no contour of the cup of exp2; add it" in text
    assert "RET003OD_disc_exp1.txt: case 'RET003OD': must hold at least three points" in text
    assert "RET004OD_disc_exp1.txt: case 'RET004OD': cannot be read as one point per line" in text
    assert "RET005OD_disc_exp1.txt: case 'RET005OD': has points outside of the photograph of 60x80 pixels" in text
    assert "RET006OD_disc_exp3.txt: is named like no file of PAPILA" in text
    assert "case 'RET006OS': is a contour without its photograph; add that" in text


def test_an_expert_may_be_missing(tmp_path: Path) -> None:
    contours = write_papila(tmp_path)
    for structure in ("disc", "cup"):
        (contours / f"RET002OD_{structure}_exp1.txt").unlink()
    assert PapilaSource(str(tmp_path)).load("RET002OD").valid.tolist() == [False, True]


def test_the_rule_of_pixels() -> None:
    square = np.array([[0.5, 0.5], [3.5, 0.5], [3.5, 2.5], [0.5, 2.5]])
    expected = np.zeros((4, 6), dtype=bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(fill_contour(square, (4, 6)), expected)
    # centres on the line count
    expected[:3, :4] = True
    np.testing.assert_array_equal(fill_contour(np.floor(square), (4, 6)), expected)
    with pytest.raises(ImageError, match="has points outside of the photograph of 4x6 pixels"):
        fill_contour(square + 4, (4, 6))


@pytest.mark.parametrize("text", ["", "1 2\n3 4\n", "1 2\n3 nan\n5 6\n", "1,2\n3,4\n5,6\n", "\x00\x01"])
def test_files_that_are_no_contour(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ImageError, match=r"at least three points|cannot be read as one point per line"):
        read_contour(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("settings", "line"), [({"size": 0}, "size=0"), ({"crop": 0}, "crop=0"), ({"crop": 2}, "crop=2")]
)
def test_settings_that_are_invalid(tmp_path: Path, settings: dict[str, float], line: str) -> None:
    with pytest.raises(UserError, match=f"data.source.{line}"):
        PapilaSource(str(tmp_path), **settings)  # type: ignore[arg-type]


def test_a_copy_is_known_however_it_is_prepared(tmp_path: Path) -> None:
    for name in ("first", "copy"):
        write_papila(tmp_path / name, patients=2)
    require_known(PapilaSource(str(tmp_path / "first"), size=32), PapilaSource(str(tmp_path / "copy"), 40, crop=0.9))
