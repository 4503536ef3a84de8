"""RIGA in its three releases: outlines found, crops around the disc, the usual split, and every fault told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from riga_files import Eye, mask_of, save, write_drawn

from edue_lightning.data import RaterDataModule, RaterSample, RigaSource
from edue_lightning.data.sources.riga.releases import list_riga
from edue_lightning.errors import UserError

SIZE = 120
"""Pixels of a crop of half of the photographs' height: nothing is scaled."""


def dice(first: torch.Tensor, second: np.ndarray) -> float:
    both = (first.numpy() > 0) & second
    return float(2 * both.sum() / ((first > 0).sum().item() + second.sum()))


def crop_of(sample: RaterSample, eye: Eye) -> tuple[slice, slice]:
    """Return where in the photograph the sample's image lies, by its content."""
    picture = eye.photograph()[..., 1].astype(float) / 255
    seen = sample.image[1, ::7, ::7].numpy()

    def difference(at: tuple[int, int]) -> float:
        return float(np.abs(picture[at[0] : at[0] + SIZE : 7, at[1] : at[1] + SIZE : 7] - seen).mean())

    best = min(((row, column) for row in range(30, 75) for column in range(105, 155)), key=difference)
    return slice(best[0], best[0] + SIZE), slice(best[1], best[1] + SIZE)


def write_release(root: Path, masks: bool = False) -> list[str]:
    """Write twelve cases of three origins, and return their folders."""
    folders = ["BinRushed/BinRushed1-Corrected", "BinRushed/BinRushed2", "Magrabia/MagrabiFemale", "MESSIDOR"]
    for texture, folder in enumerate(folders):
        for number in (1, 2, 10):
            endings = ("jpg", "tif") if folder.startswith("Bin") else ("tif", "tif")
            write_drawn(root, folder, Eye(number, texture=texture), endings)
    return folders


def test_drawn_outlines_become_masks_around_the_disc(tmp_path: Path) -> None:
    eye = Eye(7)
    write_drawn(tmp_path, "BinRushed/BinRushed2", eye, ("jpg", "tif"))
    source = RigaSource(str(tmp_path), size=SIZE)
    assert source.raters == tuple(f"rater {number}" for number in range(1, 7))
    (record,) = source.cases()
    assert record.case_id == "BinRushed2_image7"
    sample = source.load(record.case_id)
    assert sample.image.shape == (3, SIZE, SIZE)
    assert 0 <= sample.image.min() < sample.image.max() <= 1
    assert sample.valid.all()
    box = crop_of(sample, eye)
    for slot, rater in enumerate(eye.raters):
        for k, truth in enumerate(eye.raters[rater]):
            assert dice(sample.masks[slot, k], truth[box]) > 0.97
    # the crop follows the consensus alone, and lies around it
    discs = sample.masks[:, 0].float().mean(dim=0) >= 0.5
    rows, columns = (torch.nonzero(discs.any(dim=axis)).flatten() for axis in (1, 0))
    for positions in (rows, columns):
        assert abs((positions[0] + positions[-1]).item() / 2 - SIZE / 2) <= 1.5


def test_a_crop_is_scaled_to_the_size(tmp_path: Path) -> None:
    write_drawn(tmp_path, "MESSIDOR", Eye(7), ("tif", "tif"))
    full = RigaSource(str(tmp_path), size=SIZE).load("MESSIDOR_image7")
    half = RigaSource(str(tmp_path), size=SIZE // 2).load("MESSIDOR_image7")
    wide = RigaSource(str(tmp_path), size=SIZE, crop=1.0).load("MESSIDOR_image7")
    areas = [sample.masks.flatten(2).sum(dim=2).float() for sample in (full, half, wide)]
    torch.testing.assert_close(areas[1] * 4, areas[0], rtol=0.05, atol=0)
    torch.testing.assert_close(areas[2] * 4, areas[0], rtol=0.05, atol=0)
    mean = torch.nn.functional.avg_pool2d(full.image, 2)
    assert (half.image - mean).abs().mean() < 0.01


def test_magrabia_is_tested_on_and_the_others_are_divided_by_origin(tmp_path: Path) -> None:
    write_release(tmp_path)
    data = RaterDataModule("riga", RigaSource(str(tmp_path), size=32, structures=["cup"]))
    assert data.source.structures == ("cup",)
    names = {split: [record.case_id for record in data.records(split)] for split in ("train", "val", "test")}
    assert names["test"] == ["MagrabiFemale_image1", "MagrabiFemale_image2", "MagrabiFemale_image10"]
    # by the hashes of nine cases: 0.15 / 0.75 of them on average
    assert len(names["val"]) == 2
    assert len(names["train"]) == 7
    assert {record.stratum for record in data.splits["all"]} == {"BinRushed", "Magrabia", "MESSIDOR"}


def test_a_drawing_without_inner_outline_is_an_empty_cup(tmp_path: Path) -> None:
    eye = Eye(3)
    folder = write_drawn(tmp_path, "MESSIDOR", eye, ("tif", "tif"))
    save(eye.drawing("4", with_cup=False), folder / "image3-4.tif")
    sample = RigaSource(str(tmp_path), size=SIZE).load("MESSIDOR_image3")
    assert sample.valid.all()
    assert sample.masks[:, 1].flatten(1).any(dim=1).tolist() == [True, True, True, False, True, True]
    assert sample.masks[:, 0].flatten(1).any(dim=1).all()


def test_a_missing_rater_is_missing(tmp_path: Path) -> None:
    folder = write_drawn(tmp_path, "MESSIDOR", Eye(3), ("tif", "tif"))
    (folder / "image3-2.tif").unlink()
    assert RigaSource(str(tmp_path), size=32).load("MESSIDOR_image3").valid.tolist() == [True, False, *[True] * 4]


def test_what_cannot_be_used_is_a_problem_or_left_out_by_choice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    eye = Eye(1)
    folder = write_drawn(tmp_path / "data", "MESSIDOR", eye, ("tif", "tif"))
    save(eye.photograph(), folder / "image1-2.tif")
    torn = eye.drawing("5")
    torn[:, :190] = eye.photograph()[:, :190]
    save(torn, folder / "image1-5.tif")
    (folder / "image1-6.tif").write_bytes((folder / "image1-6.tif").read_bytes()[:5000])
    save(Eye(9).drawing("1"), folder / "image9-1.tif")
    source = RigaSource(str(tmp_path / "data"), size=SIZE, cache=str(tmp_path / "cache"))
    starts = [
        "MESSIDOR/image9-1.tif: case 'MESSIDOR_image9': is a drawing without its photograph imageNprime; add",
        "MESSIDOR/image1-2.tif: case 'MESSIDOR_image1': ",
        "MESSIDOR/image1-5.tif: case 'MESSIDOR_image1': ",
        "MESSIDOR/image1-6.tif: case 'MESSIDOR_image1': cannot be read (",
    ]
    assert len(source.problems) == len(starts)
    assert all(line.startswith(start) for line, start in zip(source.problems, starts, strict=True)), source.problems
    assert all("data.source.leave_out_unusable=true" in line for line in source.problems)
    for _ in range(2):
        caplog.clear()
        kept = RigaSource(str(tmp_path / "data"), size=SIZE, cache=str(tmp_path / "cache"), leave_out_unusable=True)
        assert not kept.problems
        assert [record.case_id for record in kept.cases()] == ["MESSIDOR_image1"]
        assert kept.load("MESSIDOR_image1").valid.tolist() == [True, False, True, True, False, False]
        assert "3 drawings are left out" in caplog.text
        assert "MESSIDOR_image9" in caplog.text


def test_discregion_is_read_by_its_tables(tmp_path: Path) -> None:
    eye = Eye(4, shape=(96, 96), middle=(48.0, 50.0))
    rows = [",imgName,maskName,label,center,xmin,ymin,xmax,ymax,width,height,discFlag,rater"]
    for origin in ("BinRushed", "Magrabia"):
        save(replace(eye, texture=len(origin)).photograph(), tmp_path / f"{origin}/Images/image4.jpg")
        lines = list(rows)
        for rater in range(7):
            name = "FinalLabel" if rater == 0 else f"Rater{rater}"
            save(mask_of(eye, str(rater or 1), rim=128, cup=255), tmp_path / f"{origin}/{name}/image4.png")
            mask = f"{origin}\\{name}\\image4.png"
            lines.append(f"{rater},{origin}\\Images\\image4.jpg,{mask},0,ä,0,0,0,0,96,96,1,{rater}")
        (tmp_path / f"Glaucoma_multirater_{origin}.csv").write_text("\n".join(lines), encoding="gbk", errors="replace")
    source = RigaSource(str(tmp_path), size=96)
    assert [(record.case_id, record.split) for record in source.cases()] == [
        ("BinRushed_image4", None),
        ("Magrabia_image4", "test"),
    ]
    sample = source.load("Magrabia_image4")
    for slot, rater in enumerate(eye.raters):
        for k, truth in enumerate(eye.raters[rater]):
            np.testing.assert_array_equal(sample.masks[slot, k], truth)
    table = tmp_path / "Glaucoma_multirater_Magrabia.csv"
    whole = table.read_bytes()
    table.write_bytes(whole + b"\n7,,,0,,0,0,0,0,96,96,1,5")
    (problem,) = RigaSource(str(tmp_path), size=96).problems
    assert problem == "Glaucoma_multirater_Magrabia.csv: has an empty imgName; fill it in, or download it again"
    table.write_bytes(whole)
    header, *lines = table.read_text(encoding="gbk").splitlines()
    for changed in (
        [line for line in lines if line.endswith(",0")],  # the consensus alone
        [f"{line}.0" for line in lines],  # saved again by another program
    ):
        table.write_text("\n".join([header, *changed]), encoding="utf-8")
        again = RigaSource(str(tmp_path), size=96).load("Magrabia_image4")
        assert torch.equal(again.masks, sample.masks)
    (tmp_path / "BinRushed/Rater3/image4.png").unlink()
    (line,) = RigaSource(str(tmp_path), size=96).problems
    assert line == "BinRushed/Rater3/image4.png: case 'BinRushed_image4': not found; add it"


def test_riga_plus_is_read_by_its_two_trees(tmp_path: Path) -> None:
    eye = Eye(5, shape=(96, 96), middle=(48.0, 50.0))
    for folder in ("BinRushed/BinRushed1", "MESSIDOR_Base1/Labeled", "Magrabia/MagrabiaMale"):
        save(replace(eye, texture=len(folder)).photograph(), tmp_path / f"RIGA/{folder}/image5.tif")
        for rater in eye.raters:
            save(mask_of(eye, rater, rim=255, cup=128), tmp_path / f"RIGA-mask/{folder}/image5-{rater}.tif")
    save(eye.photograph(), tmp_path / "RIGA/MESSIDOR_Base1/Unlabeled/image9.tif")
    source = RigaSource(str(tmp_path), size=96)
    assert [(record.case_id, record.stratum) for record in source.cases()] == [
        ("BinRushed1_image5", "BinRushed"),
        ("MESSIDOR_Base1_image5", "MESSIDOR"),
        ("MagrabiaMale_image5", "Magrabia"),
    ]
    sample = source.load("MESSIDOR_Base1_image5")
    for slot, rater in enumerate(eye.raters):
        for k, truth in enumerate(eye.raters[rater]):
            np.testing.assert_array_equal(sample.masks[slot, k], truth)
    save(np.array([[0, 1, 2, 3]] * 96, dtype=np.uint8), tmp_path / "RIGA-mask/BinRushed/BinRushed1/image5-2.tif")
    (tmp_path / "RIGA-mask/Magrabia/MagrabiaMale/image5-1.tif").unlink()
    (line,) = RigaSource(str(tmp_path), size=96).problems
    start = "RIGA-mask/BinRushed/BinRushed1/image5-2.tif: case 'BinRushed1_image5': holds the values 0, 1, 2, 3; a mask"
    assert line.startswith(start)


def test_riga_plus_with_a_white_background_holds_the_same_masks(tmp_path: Path) -> None:
    eye = Eye(5, shape=(96, 96), middle=(48.0, 50.0))
    folder = "BinRushed/BinRushed1"
    save(eye.photograph(), tmp_path / f"RIGA/{folder}/image5.tif")
    for rater in eye.raters:
        # 0 background, 1 rim, 2 cup
        stored = np.array([255, 128, 0], dtype=np.uint8)[mask_of(eye, rater, rim=1, cup=2)]
        save(stored, tmp_path / f"RIGA-mask/{folder}/image5-{rater}.tif")
    sample = RigaSource(str(tmp_path), size=96).load("BinRushed1_image5")
    for slot, rater in enumerate(eye.raters):
        for k, truth in enumerate(eye.raters[rater]):
            np.testing.assert_array_equal(sample.masks[slot, k], truth)
    stored[stored == 0] = 128
    save(stored, tmp_path / f"RIGA-mask/{folder}/image5-2.tif")
    (line,) = RigaSource(str(tmp_path), size=96).problems
    assert "image5-2.tif: case 'BinRushed1_image5': its border is 255, and no pixel is 0; correct the mask" in line


def test_riga_plus_in_a_folder_that_is_called_as_the_masks(tmp_path: Path) -> None:
    eye = Eye(5, shape=(96, 96), middle=(48.0, 50.0))
    root = tmp_path / "RIGA-mask" / "copy"
    save(eye.photograph(), root / "RIGA/MESSIDOR/image5.tif")
    for rater in eye.raters:
        save(mask_of(eye, rater, rim=1, cup=2), root / f"RIGA-mask/MESSIDOR/image5-{rater}.tif")
    source = RigaSource(str(root), size=96)
    assert not source.problems
    assert [record.case_id for record in source.cases()] == ["MESSIDOR_image5"]


def test_a_second_copy_of_riga_plus_replaces_no_mask(tmp_path: Path) -> None:
    eye = Eye(5, shape=(96, 96), middle=(48.0, 50.0))
    photograph, masks = "RIGA/BinRushed/BinRushed1/image5.tif", "RIGA-mask/BinRushed/BinRushed1"
    for copy in ("one", "two"):
        save(eye.photograph(), tmp_path / copy / photograph)
        for rater in eye.raters:
            save(mask_of(eye, rater, rim=255, cup=128), tmp_path / copy / f"{masks}/image5-{rater}.tif")
    problems = RigaSource(str(tmp_path), size=96).problems
    assert len(problems) == 1 + len(eye.raters)
    second = f"two/{photograph}: case 'image5': is the photograph, and so is one/{photograph}; remove one"
    assert second in problems
    assert sum("is the mask of rater 2, and so is one/RIGA-mask" in line for line in problems) == 1


def test_quirks_of_the_raw_release(tmp_path: Path) -> None:
    def touch(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    touch("unzipped/BinRushed/BinRushed1-Corrected/image1prime.jpg", "unzipped/BinRushed/BinRushed1/image1-1.jpg")
    touch(
        "unzipped/BinRushed/BinRushed1-Corrected/Image1-1.JPG", "unzipped/BinRushed/BinRushed1-Corrected/image1-3.tif"
    )
    touch("unzipped/Magrabia/MagrabiaMale/Image 12 Prime.tif", "unzipped/Magrabia/MagrabiaMale/image_012_4.tif")
    touch("unzipped/MESSIDOR/image2prime.tif", "unzipped/MESSIDOR/Thumbs.db", "unzipped/__MACOSX/image3-1.jpg")
    touch("unzipped/MESSIDOR/image2-1.tif", "unzipped/MESSIDOR/image2-1.jpg", "unzipped/MESSIDOR/image2-7.tif")
    touch("unzipped/MESSIDOR/notes.png", "unzipped/elsewhere/image8prime.jpg", "unzipped/elsewhere/image8-1.jpg")
    cases, problems, _ = list_riga(tmp_path)
    assert [(case.case_id, case.origin, sorted(case.raters)) for case in cases] == [
        ("BinRushed1_image1", "BinRushed", ["1", "3"]),
        ("MagrabiaMale_image12", "Magrabia", ["4"]),
        ("MESSIDOR_image2", "MESSIDOR", ["1"]),
    ]
    starts = [
        "unzipped/MESSIDOR/image2-7.tif: case 'MESSIDOR_image2': belongs to rater 7, but raters are 1 to 6; ",
        "unzipped/MESSIDOR/notes.png: is named neither imageNprime nor imageN-R; ",
        "unzipped/MESSIDOR/image2-1.tif: case 'MESSIDOR_image2': is the drawing of rater 1, and so is ",
        "unzipped/elsewhere/image8prime.jpg: case 'elsewhere_image8': lies in no folder whose name begins with ",
    ]
    assert len(problems) == len(starts)
    assert all(line.startswith(start) for line, start in zip(problems, starts, strict=True)), problems
    touch(
        "female/MagrabiFemale/image48-1.tif", "female/MagrabiFemale/Image48-1.tif", "female/MagrabiFemale/image48-2.tif"
    )
    _, strict, _ = list_riga(tmp_path / "female")
    _, lenient, left_out = list_riga(tmp_path / "female", leave_out_unusable=True)
    assert len(strict) == 2
    assert not lenient
    assert left_out == strict
    assert list_riga(tmp_path / "unzipped/MESSIDOR")[0][0].case_id == "MESSIDOR_image2"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structures": ["rim"]}, "data.source.structures"),
        ({"crop": 0.0}, "data.source: crop="),
        ({"size": 0}, "data.source: crop="),
    ],
)
def test_settings_that_are_none(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RigaSource(str(tmp_path), **settings)
    with pytest.raises(UserError, match="holds no case of this data set"):
        RigaSource(str(tmp_path)).cases()
