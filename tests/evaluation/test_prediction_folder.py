"""Measuring the predictions of any model: the command on files, and everything that can be wrong with them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from metric_cases import naive_dice
from PIL import Image
from processes import run_command

from edue_lightning.data import Grid, ManifestSource, RaterSample, SyntheticFundus
from edue_lightning.errors import UserError
from edue_lightning.evaluation.prediction_folder import READOUT_FILE, PredictionFolder, nifti_name
from edue_lightning.evaluation.prediction_writer import write_prediction
from edue_lightning.metrics import case_statistics

AFFINE = np.array([[0.5, 0.1, 0, 10], [-0.1, 0.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])


def random_masks(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Return the masks of two raters who nearly agree, of two structures, `[2, 2, *S]`."""
    masks = np.zeros((2, 2, *size), dtype=np.uint8)
    for rater in range(2):
        for structure in range(2):
            low = rng.integers(1, 3 + structure, size=len(size))
            masks[(rater, structure, *(slice(start, start + 6 - 2 * structure) for start in low))] = 1
    return masks


def write_data(folder: Path, *, volumes: bool = False, structures: tuple[str, ...] = ("disc", "cup")) -> np.ndarray:
    """Write a manifest of five cases, of which three are tested, and return the masks `[5, 2, K, *S]`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    size = (9, 10, 8) if volumes else (10, 12)
    ending = "nii.gz" if volumes else "png"

    def write(name: str, values: np.ndarray) -> str:
        if volumes:
            nibabel.save(nibabel.Nifti1Image(values, AFFINE), folder / f"{name}.{ending}")
        else:
            Image.fromarray(values).save(folder / f"{name}.{ending}")
        return f"{name}.{ending}"

    rows, everyone = [], []
    for number, split in enumerate(["train", "val", "test", "test", "test"]):
        masks = random_masks(rng, size)[:, : len(structures)]
        everyone.append(masks)
        image = write(f"image{number}", rng.integers(0, 255, size=size).astype(np.uint8))
        for rater in range(2):
            for k, structure in enumerate(structures):
                mask = write(f"mask{number}_{rater}_{structure}", masks[rater, k] * np.uint8(255))
                rows.append([f"case{number}", image, mask, f"rater{rater}", structure, split])
    columns = ["case_id", "image", "mask", "rater", "structure", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
    return np.stack(everyone)


def write_predictions(folder: Path, masks: np.ndarray, cases: range = range(2, 5)) -> np.ndarray:
    """Write three members a case, near the masks, and return them `[cases, 3, K, *S]`."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    members = np.clip(masks[:, :1] * 0.6 + 0.4 * rng.random((len(masks), 3, *masks.shape[2:])), 0, 1)
    for number in cases:
        np.savez_compressed(folder / f"case{number}.npz", members=members[number])
    return members[list(cases)]


def evaluate(tmp_path: Path, *overrides: str) -> tuple[int, str]:
    done = run_command(
        "evaluate",
        [
            "predictions=predictions",
            "data=manifest",
            "data.root=data",
            "output=out",
            "bootstrap_resamples=50",
            "figures=false",
            *overrides,
        ],
        cwd=tmp_path,
    )
    return done.returncode, done.stderr


def test_any_models_predictions_are_measured_like_our_own(tmp_path: Path) -> None:
    masks = write_data(tmp_path / "data")
    members = write_predictions(tmp_path / "predictions", masks)
    code, error = evaluate(tmp_path, "figures=true")
    assert code == 0, error
    cases = pd.read_csv(tmp_path / "out" / "cases.csv")
    assert cases.case_id.tolist() == ["case2", "case3", "case4"] * 2
    expected = case_statistics(
        torch.from_numpy(members), torch.from_numpy(masks[2:]), torch.ones(3, 2) > 0, contents="probabilities"
    )
    for name, values in expected.scalars.items():
        np.testing.assert_allclose(cases[name], values.T.flatten(), rtol=1e-6, equal_nan=True, err_msg=name)
    naive = [naive_dice(members[i, :, 1].mean(axis=0) >= 0.5, masks[2 + i, :, 1].mean(axis=0) >= 0.5) for i in range(3)]
    metrics = pd.read_csv(tmp_path / "out" / "metrics.csv").set_index(["structure", "metric"])
    assert metrics.loc[("cup", "dice"), "value"] == pytest.approx(np.mean(naive))
    assert set(metrics.method) == {"predictions"}
    assert (metrics.n_cases + metrics.n_undefined == 3).all()
    for name in ("reliability.csv", "reliability.png", "quality_control.csv", "quality_control.png", "config.yaml"):
        assert (tmp_path / "out" / name).is_file()
    assert len(list((tmp_path / "out" / "panels").glob("*.png"))) == 6
    reported = run_command("report", ["runs=out", "output=report"], cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert set(pd.read_csv(tmp_path / "report" / "comparison.csv").method) == {"predictions"}


def test_a_case_has_the_same_digest_in_any_order_of_the_manifest_and_another_for_other_masks(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", write_data(tmp_path / "data"))
    manifest = tmp_path / "data" / "manifest.csv"

    def digests(output: str) -> pd.Series:
        code, error = evaluate(tmp_path, f"output={output}")
        assert code == 0, error
        cases = pd.read_csv(tmp_path / output / "cases.csv", dtype={"fingerprint": str})
        assert cases.fingerprint.str.fullmatch("[0-9a-f]{12}").all()
        return cases.set_index(["case_id", "structure"]).fingerprint.sort_index()

    first = digests("first")
    # as written with figures=false
    assert not (tmp_path / "first" / "panels").exists()
    assert not (tmp_path / "first" / "panels.npz").exists()
    assert not list((tmp_path / "first").glob("*.png"))
    header, *rows = manifest.read_text().splitlines()
    # whole cases in another order, of the same raters and structures
    blocks = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    manifest.write_text("\n".join([header, *(row for block in blocks[::-1] for row in block)]) + "\n")
    assert digests("second").equals(first)
    # a mask turned by 180 degrees has the same area and the same variance
    for rater in range(2):
        path = tmp_path / "data" / f"mask3_{rater}_cup.png"
        Image.fromarray(np.ascontiguousarray(np.array(Image.open(path))[::-1, ::-1])).save(path)
    turned = digests("third")
    assert turned[turned != first].index.tolist() == [("case3", "cup")]
    reported = run_command("report", ["runs=.", "reference=predictions", "output=report"], cwd=tmp_path)
    assert reported.returncode == 2
    assert "both are predictions on manifest, " in reported.stderr


def test_all_cases_can_be_measured_under_another_name(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", write_data(tmp_path / "data"), range(5))
    code, error = evaluate(
        tmp_path, "split=all", "label=theirs", "metrics=default", "metrics.poor_dice={disc: 0.9, cup: 0.7}"
    )
    assert code == 0, error
    metrics = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert set(metrics.method) == {"theirs"}
    assert set(metrics.split) == {"all"}
    assert metrics[metrics.metric == "dice"].n_cases.tolist() == [5, 5, 5]


def test_every_problem_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    masks = write_data(tmp_path / "data")
    members = write_predictions(tmp_path / "predictions", masks)
    folder = tmp_path / "predictions"
    (folder / "case2.npz").unlink()
    np.savez(folder / "case0.npz", members=members[0])
    np.savez(folder / "stranger.npz", members=members[0])
    np.savez(folder / "case3.npz", members=members[0][:, :, :5])
    np.savez(folder / "case4.npz", members=members[0] * np.nan)
    code, error = evaluate(tmp_path)
    assert code == 2
    assert error.splitlines() == [
        "error: predictions=predictions: 5 problems",
        "  case0: belongs to another split; set split=all or remove its files",
        "  stranger: is no case of the data set; remove its files",
        "  case2: missing; add case2.npz",
        "  case3: case3.npz: members has shape [3, 2, 5, 12], expected [M, 2, 10, 12]",
        "  case4: holds NaN; replace these values",
    ]
    assert not (tmp_path / "out" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ckpt=some.ckpt"], "set either ckpt=PATH"),
        (["predictions=nowhere"], "predictions=nowhere: no such folder"),
        (["predictions=data"], "holds no prediction; expected CASE_ID.npz"),
        (["data.root=nowhere"], "data.root=nowhere: no such folder"),
        (["metrics=default", "metrics.poor_dice={disc: 0.9}"], "poor_dice must name the structures disc, cup"),
        (["metrics=default", "metrics.ged_distance=hamming"], "metrics.ged_distance='hamming'"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path: Path, overrides: list[str], words: str) -> None:
    write_predictions(tmp_path / "predictions", write_data(tmp_path / "data"))
    code, error = evaluate(tmp_path, *overrides)
    assert code == 2
    assert words in error
    assert "Traceback" not in error


def problems(folder: Path, data: Path) -> list[str]:
    source = ManifestSource(str(data))
    records = [record for record in source.cases() if record.split == "test"]
    with pytest.raises(UserError) as error:
        PredictionFolder(folder, source.structures).check(records, source.cases(), source)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 not really", "cannot be read"),
        ({"members": np.full((3, 2, 10, 12), 1.01)}, "holds values from 1.01 to 1.01; probabilities lie in [0, 1]"),
        ({"members": np.full((3, 2, 10, 12), -0.5)}, "holds values from -0.5"),
        ({"members": np.full((3, 2, 10, 12), np.inf)}, "holds values from inf"),
        ({"members": np.zeros((0, 2, 10, 12))}, "shape [0, 2, 10, 12]"),
        ({"members": np.zeros((2, 10, 12))}, "shape [2, 10, 12]"),
        ({"members": np.zeros(())}, "shape []"),
        ({"members": np.zeros((3, 1, 10, 12))}, "expected [M, 2, 10, 12]"),
        ({"member": np.zeros((3, 2, 10, 12))}, "holds no array named 'members'"),
        ({"members": np.full((3, 2, 10, 12), "x")}, "holds <U1"),
        ({"members": np.full((3, 2, 10, 12), None)}, "holds object"),
        ({"members": np.zeros((2, 2, 10, 12))}, "has 2 members, but most cases have 3"),
    ],
)
def test_a_broken_archive_is_named(tmp_path: Path, content: bytes | dict[str, np.ndarray], words: str) -> None:
    write_predictions(tmp_path / "predictions", write_data(tmp_path / "data"))
    path = tmp_path / "predictions" / "case3.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, allow_pickle=True, **content)
    (line,) = problems(tmp_path / "predictions", tmp_path / "data")
    assert line.startswith("case3: ")
    assert words in line


@pytest.mark.parametrize("cut", [10, 100, 400])
def test_a_truncated_archive_is_named(tmp_path: Path, cut: int) -> None:
    write_predictions(tmp_path / "predictions", write_data(tmp_path / "data"))
    path = tmp_path / "predictions" / "case3.npz"
    path.write_bytes(path.read_bytes()[:-cut])
    (line,) = problems(tmp_path / "predictions", tmp_path / "data")
    assert line.startswith("case3: case3.npz: cannot be read")


def test_an_archive_that_claims_too_much_is_not_unpacked(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", write_data(tmp_path / "data"))
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 2, 10**6, 10**6)}
    import io
    import zipfile

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(tmp_path / "predictions" / "case3.npz", "w") as archive:
        archive.writestr("members.npy", buffer.getvalue())
    (line,) = problems(tmp_path / "predictions", tmp_path / "data")
    assert "has shape [1000000, 2, 1000000, 1000000]" in line


def test_nifti_members_equal_an_archive(tmp_path: Path) -> None:
    masks = write_data(tmp_path / "data", volumes=True)
    members = write_predictions(tmp_path / "archives", masks)
    images = tmp_path / "images"
    images.mkdir()
    for i, case in enumerate(("case2", "case3", "case4")):
        for m in range(3):
            for k, structure in enumerate(("disc", "cup")):
                volume = nibabel.Nifti1Image(members[i, m, k].astype(np.float32), AFFINE)
                nibabel.save(volume, images / f"{case}__member{m}__{structure}.nii.gz")
    source = ManifestSource(str(tmp_path / "data"))
    records = [record for record in source.cases() if record.split == "test"]
    folders = [PredictionFolder(tmp_path / name, source.structures) for name in ("archives", "images")]
    for folder in folders:
        folder.check(records, source.cases(), source)
    for i, record in enumerate(records):
        loaded = [folder.load(source.load(record.case_id)) for folder in folders]
        torch.testing.assert_close(loaded[0], torch.from_numpy(members[i]))
        torch.testing.assert_close(loaded[1], loaded[0].float())

    nibabel.save(
        nibabel.Nifti1Image(np.zeros((9, 10, 8), np.float32), np.eye(4)), images / "case2__member1__cup.nii.gz"
    )
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 10, 7), np.float32), AFFINE), images / "case3__member0__disc.nii.gz")
    (images / "case4__member2__cup.nii.gz").unlink()
    (images / "notes.nii").write_bytes(b"")
    assert problems(images, tmp_path / "data") == [
        "notes.nii: is not named CASE_ID__memberM.nii.gz; rename or remove it",
        "case2: case2__member1__cup.nii.gz: lies on another grid (affine) than the case",
        "case3: case3__member0__disc.nii.gz: has shape [9, 10, 7], expected [9, 10, 8]",
        "case4: lacks a file for cup of member 2",
    ]


def test_a_slice_of_a_picture_is_refused_as_its_axes_differ(tmp_path: Path) -> None:
    masks = write_data(tmp_path / "data", structures=("node",))
    members = write_predictions(tmp_path / "predictions", masks)
    for m in range(3):
        values = members[0, m, 0].astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "predictions" / f"case2__member{m}.nii")
    (tmp_path / "predictions" / "case2.npz").unlink()
    (line,) = problems(tmp_path / "predictions", tmp_path / "data")
    assert line == (
        "case2: case2__member0.nii: is stored as NIfTI slice RA, but the images as picture, with other axes; save "
        "case2.npz instead"
    )


def test_a_slice_of_images_whose_axes_are_unknown_is_refused(tmp_path: Path) -> None:
    source = SyntheticFundus(2, 24)
    for record in source.cases():
        for structure in source.structures:
            # square, so that its shape does not show which axis comes first
            image = nibabel.Nifti1Image(np.full((24, 24), 0.5, np.float32), np.eye(4))
            nibabel.save(image, tmp_path / nifti_name(record.case_id, 0, structure))
    folder = PredictionFolder(tmp_path, source.structures)
    with pytest.raises(UserError, match="2 problems") as caught:
        folder.check(source.cases(), source.cases(), source)
    assert "it is unknown how the axes of the images run; save " in str(caught.value)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_axes_of_a_slice_are_compared_with_those_of_its_own_image(tmp_path: Path, mixed: bool) -> None:
    data, predictions = tmp_path / "data", tmp_path / "predictions"
    data.mkdir()
    predictions.mkdir()
    towards, away = np.diag([1.0, 1, 1, 1]), np.diag([-1.0, -1, 1, 1])
    rows = []
    for number in range(3):
        affine = away if mixed and number == 2 else towards
        mask = np.zeros((8, 8), np.uint8)
        mask[1:4, 2:3] = 1
        nibabel.save(nibabel.Nifti1Image(np.full((8, 8), number, np.float32), affine), data / f"image{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, affine), data / f"mask{number}.nii.gz")
        rows.append([f"case{number}", f"image{number}.nii.gz", f"mask{number}.nii.gz", "rater", "node"])
        stored = (mask[::-1, ::-1], away) if number == 0 else (mask, affine)
        member = nibabel.Nifti1Image(stored[0].astype(np.float32), stored[1])
        nibabel.save(member, predictions / f"case{number}__member0.nii.gz")
    pd.DataFrame(rows, columns=["case_id", "image", "mask", "rater", "structure"]).to_csv(
        data / "manifest.csv", index=False
    )
    source = ManifestSource(str(data))
    folder = PredictionFolder(predictions, source.structures)
    with pytest.raises(UserError, match="1 problem") as caught:
        folder.check(source.cases(), source.cases(), source)
    assert "case0__member0.nii.gz: is stored as NIfTI slice LP, but the images as NIfTI slice RA" in str(caught.value)


def test_a_single_structure_needs_no_name_and_two_forms_of_one_case_are_refused(tmp_path: Path) -> None:
    masks = write_data(tmp_path / "data", volumes=True, structures=("node",))
    members = write_predictions(tmp_path / "predictions", masks)
    for m in range(3):
        volume = nibabel.Nifti1Image(members[0, m, 0].astype(np.float32), AFFINE)
        nibabel.save(volume, tmp_path / "predictions" / f"case2__member{m}.nii")
    (line,) = problems(tmp_path / "predictions", tmp_path / "data")
    assert line == "case2: exists as case2.npz and as NIfTI; remove one"
    (tmp_path / "predictions" / "case2.npz").unlink()
    source = ManifestSource(str(tmp_path / "data"))
    loaded = PredictionFolder(tmp_path / "predictions", source.structures).load(source.load("case2"))
    torch.testing.assert_close(loaded, torch.from_numpy(members[0]).float())


def test_an_archive_that_names_its_structures_is_read_by_name(tmp_path: Path) -> None:
    masks = write_data(tmp_path / "data")
    members = write_predictions(tmp_path / "predictions", masks)
    archive = tmp_path / "predictions" / "case2.npz"
    source = ManifestSource(str(tmp_path / "data"))
    np.savez(archive, members=members[0][:, ::-1], structures=np.array(["cup", "disc"]))
    loaded = PredictionFolder(archive.parent, source.structures).load(source.load("case2"))
    torch.testing.assert_close(loaded, torch.from_numpy(members[0]))
    np.savez(archive, members=members[0], structures=np.array(["cup", "rim"]))
    assert problems(archive.parent, tmp_path / "data") == [
        "case2: case2.npz: holds the structures cup, rim, expected disc, cup"
    ]
    np.savez(archive, members=members[0], structures=np.array([["cup", "disc"]]))
    (line,) = problems(archive.parent, tmp_path / "data")
    assert "structures is not a list of names" in line


def test_our_own_archives_name_their_structures(tmp_path: Path) -> None:
    source = SyntheticFundus(1, 32)
    sample = source.load(source.cases()[0].case_id)
    members = torch.rand(2, 2, 32, 32)
    write_prediction(tmp_path, sample, members, source.structures)
    with_others = PredictionFolder(tmp_path, source.structures[::-1])
    torch.testing.assert_close(with_others.load(sample), members.flip(1))


def test_names_of_cases_and_structures_may_hold_the_separator(tmp_path: Path) -> None:
    structures = ("disc", "left__disc")
    for case in ("x", "x__member0", "x__left", "x__decision__disc"):
        for structure in structures:
            (tmp_path / nifti_name(case, 0, structure)).touch()
    folder = PredictionFolder(tmp_path, structures)
    files = {case: {key: path.name for key, path in found.items()} for case, found in folder._images.items()}
    assert files == {
        case: {(0, name): nifti_name(case, 0, name) for name in structures}
        for case in ("x", "x__member0", "x__left", "x__decision__disc")
    }


def test_probabilities_a_rounding_off_are_cut(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", write_data(tmp_path / "data"))
    above = np.full((3, 2, 10, 12), np.nextafter(np.float32(1), 2))
    above[0] = -1e-9
    np.savez(tmp_path / "predictions" / "case3.npz", members=above)
    source = ManifestSource(str(tmp_path / "data"))
    folder = PredictionFolder(tmp_path / "predictions", source.structures)
    folder.check([record for record in source.cases() if record.split == "test"], source.cases(), source)
    loaded = folder.load(source.load("case3"))
    assert loaded.unique().tolist() == [0, 1]
    np.savez(tmp_path / "predictions" / "case3.npz", members=above + 2e-5)
    (line,) = problems(tmp_path / "predictions", tmp_path / "data")
    assert line.startswith("case3: holds values from 1.99")


def test_members_whose_checksum_does_not_match(tmp_path: Path) -> None:
    masks = write_data(tmp_path / "data", volumes=True, structures=("node",))
    write_predictions(tmp_path / "predictions", masks)
    folder = tmp_path / "predictions"
    for case in ("case2", "case3", "case4"):
        (folder / f"{case}.npz").unlink()
        for member in range(3):
            path = folder / f"{case}__member{member}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(np.full((9, 10, 8), 0.5, np.float32), AFFINE), path)
    damaged = folder / "case3__member1.nii.gz"
    content = bytearray(damaged.read_bytes())
    content[-8] ^= 1
    damaged.write_bytes(content)
    (line,) = problems(folder, tmp_path / "data")
    assert line.startswith("case3: case3__member1.nii.gz: cannot be read (CRC check failed")


def test_archives_that_hold_more_than_they_claim(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", write_data(tmp_path / "data"))
    path = tmp_path / "predictions" / "case3.npz"
    with zipfile.ZipFile(path) as archive:
        content = archive.read("members.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("members.npy", content + bytes(64))
    (line,) = problems(tmp_path / "predictions", tmp_path / "data")
    assert line.startswith("case3: case3.npz: cannot be read (it claims ")


def test_two_files_of_one_member_are_refused(tmp_path: Path) -> None:
    for name in ("x__member0.nii.gz", "x__member0__disc.nii"):
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5), np.float32), np.eye(4)), tmp_path / name)
    with pytest.raises(UserError, match=r"x__member0\.nii\.gz and x__member0__disc\.nii are both member 0 of case x"):
        PredictionFolder(tmp_path, ("disc",))


def test_a_file_with_several_channels_is_no_member(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.float32), AFFINE), tmp_path / "x__member0.nii.gz")
    turned = torch.from_numpy(AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0]))
    sample = RaterSample(
        torch.zeros(1, 4, 5, 6),
        torch.zeros(1, 1, 4, 5, 6, dtype=torch.uint8),
        torch.ones(1, dtype=torch.bool),
        "x",
        affine=turned,
        origin=Grid((4, 5, 6), torch.from_numpy(AFFINE)),
    )
    with pytest.raises(UserError, match="holds 2 channels"):
        PredictionFolder(tmp_path, ("disc",)).load(sample)


def sample_of(size: tuple[int, ...] = (4, 5), case_id: str = "a") -> RaterSample:
    """Return a case of one structure and two raters, without a grid."""
    return RaterSample(torch.zeros(1, *size), torch.zeros(2, 1, *size, dtype=torch.uint8), torch.ones(2) > 0, case_id)


def test_arrays_of_other_names_are_no_maps_unless_the_folder_says_so(tmp_path: Path) -> None:
    members, decision = np.full((2, 1, 4, 5), 0.25), np.full((1, 4, 5), 0.75)
    np.savez(tmp_path / "a.npz", members=members, decision=decision)
    folder = PredictionFolder(tmp_path, ("s",))
    assert torch.equal(folder.load(sample_of()), torch.from_numpy(members))
    (tmp_path / READOUT_FILE).write_text('{"own_maps": ["decision"]}')
    folder = PredictionFolder(tmp_path, ("s",))
    found = folder.load(sample_of())
    assert torch.equal(folder.readout.members(found[None])[0], torch.from_numpy(members))
    assert torch.equal(folder.readout.decision(found[None])[0], torch.from_numpy(decision))
    assert float(folder.readout.probability(found[None]).max()) == 0.25


def test_a_map_that_the_folder_names_must_be_in_every_case(tmp_path: Path) -> None:
    (tmp_path / READOUT_FILE).write_text('{"own_maps": ["decision"]}')
    members = np.full((2, 1, 4, 5), 0.25)
    np.savez(tmp_path / "a.npz", members=members)
    np.savez(tmp_path / "b.npz", members=members, decision=members)
    np.savez(tmp_path / "c.npz", members=members, decision=np.full((1, 4, 5), 1.5))
    folder = PredictionFolder(tmp_path, ("s",))
    with pytest.raises(UserError, match=r"a\.npz: holds no array named 'decision'"):
        folder.load(sample_of(case_id="a"))
    with pytest.raises(UserError, match=r"b\.npz: decision has shape \[2, 1, 4, 5\], expected \[1, 4, 5\]"):
        folder.load(sample_of(case_id="b"))
    with pytest.raises(UserError, match=r"values from 0\.25 to 1\.5; probabilities lie in \[0, 1\]"):
        folder.load(sample_of(case_id="c"))


@pytest.mark.parametrize("tie", ["foreground", "background"])
def test_masks_of_levels_follow_the_majority_that_they_are_measured_against(tmp_path: Path, tie: str) -> None:
    """Levels that say exactly how many of four raters mark a pixel have a Dice of 1, whatever a tie counts as."""
    data, predictions = tmp_path / "data", tmp_path / "predictions"
    data.mkdir()
    predictions.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        masks = rng.random((4, 10, 12)) < np.linspace(0, 1, 12)
        Image.fromarray(rng.integers(0, 255, (10, 12)).astype(np.uint8)).save(data / f"image{number}.png")
        for rater in range(4):
            Image.fromarray(masks[rater].astype(np.uint8) * 255).save(data / f"mask{number}_{rater}.png")
            rows.append([f"case{number}", f"image{number}.png", f"mask{number}_{rater}.png", f"r{rater}", "node"])
        levels = [(masks.sum(axis=0) >= count)[None].astype(np.float32) for count in range(1, 5)]
        np.savez(predictions / f"case{number}.npz", members=np.stack(levels))
    columns = ["case_id", "image", "mask", "rater", "structure"]
    pd.DataFrame(rows, columns=columns).to_csv(data / "manifest.csv", index=False)
    (predictions / READOUT_FILE).write_text('{"levels": true}')
    status, errors = evaluate(tmp_path, "split=all", "metrics=default", f"metrics.majority_tie={tie}")
    assert status == 0, errors
    found = pd.read_csv(tmp_path / "out" / "metrics.csv").set_index("metric")["value"]
    assert found[["dice", "hd95", "nsd"]].tolist() == [1.0, 0.0, 1.0]


def test_levels_of_a_folder_must_descend(tmp_path: Path) -> None:
    (tmp_path / READOUT_FILE).write_text('{"levels": true}')
    levels = np.sort(np.random.default_rng(0).random((3, 1, 4, 5)), axis=0)
    np.savez(tmp_path / "a.npz", members=levels)
    with pytest.raises(UserError, match="members must descend from member 0 to member 2"):
        PredictionFolder(tmp_path, ("s",)).load(sample_of())
    # but for rounding, which is sorted away
    levels = np.full((3, 1, 4, 5), 0.5)
    levels[1] += 1e-6
    np.savez(tmp_path / "a.npz", members=levels)
    found = PredictionFolder(tmp_path, ("s",)).load(sample_of())
    assert (found.diff(dim=0) <= 0).all()


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", "[" * 4000, '{"level": true}', '{"levels": 1}'),
        *('{"own_maps": ["mask"]}', '{"own_maps": "decision"}', '{"majority_tie": "both"}'),
    ],
)
def test_an_invalid_read_out_of_a_folder_is_refused(tmp_path: Path, content: str) -> None:
    np.savez(tmp_path / "a.npz", members=np.zeros((2, 1, 4, 5)))
    (tmp_path / READOUT_FILE).write_text(content)
    with pytest.raises(UserError, match=r"readout\.json: cannot be read .*; write for example"):
        PredictionFolder(tmp_path, ("s",))


def test_files_of_maps_need_the_read_out(tmp_path: Path) -> None:
    grid = nibabel.Nifti1Image(np.full((4, 5, 3), 0.5, dtype=np.float32), AFFINE)
    sample = sample_of((4, 5, 3))
    for name in ("a__member0__s", "a__member1__s", "a__decision__s"):
        nibabel.save(grid, tmp_path / f"{name}.nii.gz")
    assert PredictionFolder(tmp_path, ("s",))._unnamed == ["a__decision__s.nii.gz"]
    (tmp_path / READOUT_FILE).write_text('{"own_maps": ["decision"]}')
    folder = PredictionFolder(tmp_path, ("s",))
    assert folder._unnamed == []
    assert folder.load(sample).shape == (3, 1, 4, 5, 3)
    (tmp_path / "a__decision__s.nii.gz").unlink()
    with pytest.raises(UserError, match="lacks a file for s of decision"):
        PredictionFolder(tmp_path, ("s",)).load(sample)
