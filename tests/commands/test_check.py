"""The check of a data set: its numbers against plain loops, its pictures, and the command as a user runs it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray
from PIL import Image
from processes import run_command
from sklearn.metrics import cohen_kappa_score, f1_score

from edue_lightning.config.schema import check_configuration, configuration_folder, resolved
from edue_lightning.data import CaseRecord, CaseSource, RaterSample, SyntheticFundus
from edue_lightning.errors import UserError
from edue_lightning.reporting.contact_sheet import SheetPanel, choose_sheet_cases, contact_sheet, sheet_panel
from edue_lightning.reporting.data_advice import advice
from edue_lightning.reporting.data_check import CheckConfiguration, DataCheck, check
from edue_lightning.reporting.data_overview import (
    CASES_COLUMNS,
    CaseOverview,
    DataOverview,
    fleiss_kappa,
    marking_histogram,
    measure_case,
)
from edue_lightning.reporting.panels import LARGEST_WHOLE, SMALLEST_CROP
from edue_lightning.uncertainty import rater_variance, sum_of_variances

STRUCTURES = ("disc", "cup")


def random_sample(
    seed: int, raters: int, valid: int, size: Sequence[int] = (5, 6), spacing: tuple[float, ...] | None = None
) -> RaterSample:
    """Return a case of two structures and two channels, whose first raters alone are valid."""
    rng = np.random.default_rng(seed)
    is_valid = torch.arange(raters) < valid
    chance = rng.choice([0.0, 0.2, 0.8], size=(raters, 2))
    masks = torch.from_numpy(rng.random((raters, 2, *size)) < chance.reshape(raters, 2, *[1] * len(size))).byte()
    masks[~is_valid] = 0
    image = torch.from_numpy(rng.normal(size=(2, *size))).float()
    return RaterSample(image, masks, is_valid, f"case{seed}", spacing)


def measured(sample: RaterSample, **record: Any) -> CaseOverview:
    return measure_case(CaseRecord(**{"case_id": sample.case_id, "group": sample.case_id, **record}), sample)


def overview_of(cases: Sequence[CaseOverview], raters: Sequence[str] | None = None) -> DataOverview:
    return DataOverview("mine", None, STRUCTURES, raters, cases, {})


def rated(*counts: Sequence[int]) -> NDArray[np.int64]:
    """Return the histogram of one structure: voxels that 0, 1, ... raters marked."""
    return np.array(counts, dtype=np.int64)


samples = st.builds(
    random_sample,
    st.integers(0, 10**6),
    st.just(5),
    st.integers(0, 5),
    st.sampled_from([(5, 6), (3, 4, 2)]),
)


@given(samples)
@settings(max_examples=50)
def test_numbers_of_a_case_are_those_of_plain_loops(sample: RaterSample) -> None:
    case = measured(sample)
    drawn = sample.masks[sample.valid].flatten(2).numpy()
    n = len(drawn)
    assert case.n_raters == n
    expert = rater_variance(sample.masks[None], sample.valid[None])
    reference = sum_of_variances(expert, torch.ones(1))[0].numpy()
    for k in range(2):
        marked = [sum(int(mask[k, voxel]) for mask in drawn) for voxel in range(drawn.shape[2])]
        assert case.marked_by[k].tolist() == [marked.count(m) for m in range(n + 1)]
        assert case.mask_sizes[k].tolist() == [int(mask[k].sum()) for mask in drawn]
        assert case.empty[k] == sum(not mask[k].any() for mask in drawn)
        if n < 2:
            assert np.isnan([case.sv_star[k], case.mean_v_star[k], case.pairwise_dice[k]]).all()
            continue
        assert case.sv_star[k] == pytest.approx(reference[k], rel=1e-6)
        pairs = [f1_score(a[k], b[k], zero_division=1.0) for a, b in itertools.combinations(drawn, 2)]
        assert case.pairwise_dice[k] == pytest.approx(np.mean(pairs))
        somewhere = [expert[0, k].flatten()[voxel].item() for voxel, count in enumerate(marked) if count]
        assert case.mean_v_star[k] == pytest.approx(np.mean(somewhere) if somewhere else np.nan, nan_ok=True)


def test_volumes_are_in_millimetres_where_the_spacing_is_known() -> None:
    plain, scaled = (measured(random_sample(3, 3, 3, spacing=spacing)) for spacing in (None, (0.5, 4.0)))
    assert (plain.unit, scaled.unit) == ("pixels", "mm²")
    np.testing.assert_allclose(scaled.volumes, 2 * plain.volumes)
    np.testing.assert_allclose(scaled.sv_star, 2 * plain.sv_star)
    np.testing.assert_array_equal(scaled.mean_v_star, plain.mean_v_star)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(2, 5)), min_size=1, max_size=4))
@settings(max_examples=50)
def test_kappa_is_that_of_a_plain_loop_and_of_scikit_learn(cases: list[tuple[int, int]]) -> None:
    masks = [random_sample(seed, raters, raters).masks.flatten(2) for seed, raters in cases]
    kappa = fleiss_kappa(marking_histogram(mask).numpy() for mask in masks)
    for k in range(2):
        agreement, share, weights = [], [], []
        first: list[int] = []
        second: list[int] = []
        for mask in masks:
            for labels in mask[:, k].T.tolist():
                n, m = len(labels), sum(labels)
                agreement.append((m * (m - 1) + (n - m) * (n - m - 1)) / (n * (n - 1)))
                share.append(m / n)
                # Cohen's kappa of every rater against every other, each voxel with the same weight
                for a, b in itertools.permutations(labels, 2):
                    first.append(a)
                    second.append(b)
                    weights.append(1 / (n * (n - 1)))
        by_chance = np.mean(share) ** 2 + (1 - np.mean(share)) ** 2
        if by_chance == 1:
            assert np.isnan(kappa[k])
            continue
        assert kappa[k] == pytest.approx((np.mean(agreement) - by_chance) / (1 - by_chance))
        assert kappa[k] == pytest.approx(cohen_kappa_score(first, second, sample_weight=weights))


def test_kappa_in_closed_form() -> None:
    assert fleiss_kappa([rated([6, 0, 0, 4])]) == pytest.approx(1)
    # two raters who never agree: P = 0, q = 1/2
    assert fleiss_kappa([rated([0, 8, 0])]) == pytest.approx(-1)
    # raters who toss a coin: of n, C(n, m) voxels are marked by m
    assert fleiss_kappa([rated([1, 4, 6, 4, 1]), rated([1, 2, 1])]) == pytest.approx(0)
    # mean P = (7 + 3 / 3) / 10, mean q = 1/3, P_e = 5/9
    assert fleiss_kappa([rated([5, 2, 1, 2])]) == pytest.approx((0.8 - 5 / 9) / (4 / 9))


def test_kappa_is_undefined_where_nothing_or_everything_is_marked() -> None:
    assert np.isnan(fleiss_kappa([rated([9, 0, 0]), rated([4, 0, 0, 0])])).all()
    assert np.isnan(fleiss_kappa([rated([0, 0, 9])])).all()


def test_counts_over_cases() -> None:
    everyone, nobody, only_first = (torch.zeros(3, 2, 2, 2, dtype=torch.uint8) for _ in range(3))
    everyone[:] = 1
    only_first[0, :, 0, 0] = 1
    image = torch.zeros(1, 2, 2)
    present = torch.tensor([True, True, True])
    overview = overview_of(
        [
            measured(RaterSample(image, everyone, present, "everyone", (2.0, 3.0))),
            measured(RaterSample(image, nobody, present, "nobody", (2.0, 3.0))),
            measured(RaterSample(image, only_first, torch.tensor([True, True, False]), "first", (2.0, 3.0))),
        ],
        "ABC",
    )
    # of eight masks four are empty, three hold four pixels and one a single one
    assert overview.structures_frame()["cup"].tolist() == [8, 4, 1, 24]
    expected = {
        "mean pairwise Dice": (1 + 1 + 0) / 3,
        # of twelve voxels one has P = 0 and the others P = 1; q is 1 four times, and once 1/2
        "Fleiss' kappa over all voxels": 1 - (1 / 12) / (2 * 0.375 * 0.625),
        "mean V* where any rater marked": (0 + 0.25) / 2,
        "mean SV*, mm²": (0 + 0 + 0.25 * 6) / 3,
    }
    assert overview.disagreement_frame()["cup"].to_dict() == pytest.approx(expected)
    assert "raters per case 2 raters in 1 case, 3 raters in 2 cases\n" in overview.text()
    assert "cases per rater A 3, B 3, C 2\n" in overview.text()


def test_a_case_of_one_rater_takes_no_part_in_disagreement() -> None:
    alone, pair = measured(random_sample(1, 3, 1)), measured(random_sample(2, 3, 2))
    both = overview_of([alone, pair])
    pd.testing.assert_frame_equal(both.disagreement_frame(), overview_of([pair]).disagreement_frame())
    assert "disagreement over 1 case with two raters or more; 1 case with fewer left out" in both.text()
    assert "guidance (method=edue) needs two raters per case" in overview_of([alone]).text()
    assert "kappa" not in overview_of([alone]).text()


def test_figures_that_no_case_defines_are_called_undefined() -> None:
    sample = random_sample(0, 2, 2)
    sample.masks[:] = 0
    lines = [line for line in overview_of([measured(sample)]).text().splitlines() if "undefined" in line]
    assert [" ".join(line.split()[:-2]) for line in lines] == [
        "median area of non-empty masks, pixels",
        "Fleiss' kappa over all voxels",
        "mean V* where any rater marked",
    ]


def test_text_tells_sizes_spacings_and_intensities() -> None:
    samples_of_sizes = [
        random_sample(0, 2, 2, (5, 6), (0.5, 1.0)),
        random_sample(1, 2, 2, (7, 6), (0.5, 2.0)),
        random_sample(2, 2, 2, (9, 6)),
    ]
    strata = ("north", "south", "south")
    text = overview_of([measured(s, stratum=name) for s, name in zip(samples_of_sizes, strata, strict=True)]).text()
    assert "strata          north 1, south 2\n" in text
    assert "images          2D, 2 channels\n" in text
    assert "sizes           3 different\n" in text
    assert "spacings        2 different, unknown in 1 case\n" in text
    rows = {" ".join(line.split()[:-3]): line.split()[-3:] for line in text.splitlines()}
    assert rows["size, pixels, axis 1"] == ["5", "7", "9"]
    assert rows["spacing, mm, axis 2"] == ["1", "1.5", "2"]
    expected = [np.mean([np.percentile(s.image[1], rank) for s in samples_of_sizes]) for rank in (1, 50, 99)]
    shown = [float(value) for value in rows["intensity of channel 2, mean over cases"]]
    assert shown == pytest.approx(expected, rel=1e-3)
    assert "mean SV*, mm² (pixels where the spacing is unknown)" in text


def test_the_cases_to_draw_span_all_disagreement() -> None:
    sv_star = np.random.default_rng(0).permutation(100).astype(float)
    sv_star[5] = np.nan
    values = sv_star[choose_sheet_cases(sv_star)]
    assert len(values) == 12
    assert (np.diff(values) > 0).all()
    assert (values[0], values[-1]) == (np.nanmin(sv_star), np.nanmax(sv_star))
    assert choose_sheet_cases(np.array([2.0, np.nan, 1.0])) == [2, 0]
    assert choose_sheet_cases(np.full(3, np.nan)) == [0, 1, 2]
    assert choose_sheet_cases(np.full(30, np.nan))[-1] == 29


@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.lists(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), max_size=4),
)
@settings(max_examples=60)
def test_a_large_image_is_cut_to_what_is_outlined(size: tuple[int, int], marks: list[tuple[float, float]]) -> None:
    masks = np.zeros((2, 1, *size), dtype=np.uint8)
    for row, column in marks:
        masks[0, 0, int(row * size[0]), int(column * size[1])] = 1
    panel = sheet_panel("a", "b", np.zeros((1, *size), dtype=np.float32), masks, np.array([True, True]))
    drawn = panel.masks.shape[2:]
    assert panel.pictures[0].shape == drawn
    assert panel.masks.sum() == masks.sum()
    if max(size) <= LARGEST_WHOLE or not marks:
        assert drawn == size
    assert all(edge >= min(whole, SMALLEST_CROP) for edge, whole in zip(drawn, size, strict=True))
    assert (drawn == size) == (panel.title == "a\nb")


def test_of_a_volume_the_most_disputed_slice_is_drawn() -> None:
    masks = np.zeros((2, 2, 6, 8, 9), dtype=np.uint8)
    valid = np.array([True, True])
    image = np.random.default_rng(0).random((2, 6, 8, 9)).astype(np.float32)
    assert "slice 4 of 6" in sheet_panel("a", "b", image, masks, valid).title
    # all agree on much of slice 2, and disagree on a little of slice 5
    masks[:, 0, 1] = 1
    assert "slice 2 of 6" in sheet_panel("a", "b", image, masks, valid).title
    masks[0, 1, 4, 2:4, 2:4] = 1
    panel = sheet_panel("a", "b", image, masks, valid, spacing=(3.0, 2.0, 1.0))
    assert "slice 5 of 6" in panel.title
    assert len(panel.pictures) == 2
    assert panel.aspect == 2
    np.testing.assert_array_equal(panel.masks, masks[:, :, 4])


def test_a_single_raters_volume_shows_the_slice_with_most_of_the_outline() -> None:
    masks = np.zeros((2, 1, 5, 6, 6), dtype=np.uint8)
    masks[0, 0, 2, :2], masks[0, 0, 3, :4] = 1, 1
    image = np.zeros((1, 5, 6, 6), dtype=np.float32)
    assert "slice 4 of 5" in sheet_panel("a", "b", image, masks, np.array([True, False])).title


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_a_placed_volume_is_drawn_as_radiologists_see_it(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    # in RAS, with values that tell right from left and anterior from posterior
    shape = (7, 8, 5)
    to_the_right, to_the_front, _ = np.indices(shape).astype(np.float32)
    masks = np.zeros((2, 1, *shape), dtype=np.uint8)
    masks[0, 0, 5:, 1, 3] = 1
    turn = np.stack([axes, flips], axis=1)

    def stored(array: NDArray) -> NDArray:
        return np.moveaxis(apply_orientation(np.moveaxis(array, range(-3, 0), range(3)), turn), range(3), range(-3, 0))

    affine = np.diag([1.0, 2.0, 5.0, 1.0]) @ inv_ornt_aff(turn, shape)
    spacing = nibabel.affines.voxel_sizes(affine).tolist()
    image = stored((to_the_right + 10 * to_the_front)[None])
    panel = sheet_panel("a", "b", image, stored(masks), np.array([True, True]), spacing, affine)
    (picture,) = panel.pictures
    assert panel.title.endswith("axial slice 4 of 5")
    assert picture.shape == (8, 7)
    assert panel.aspect == 2
    # the patient's right on the left, anterior on top
    assert (np.diff(picture, axis=0) <= 0).all()
    assert (np.diff(picture, axis=1) <= 0).all()
    assert np.argwhere(panel.masks[0, 0]).tolist() == [[6, 0], [6, 1]]


def test_grey_is_spread_over_the_intensities_near_the_outlines() -> None:
    image = np.full((1, 100, 100), -1000, dtype=np.float32)
    image[0, :, :70] = np.random.default_rng(0).uniform(30, 60, (100, 70))
    masks = np.zeros((1, 1, 100, 100), dtype=np.uint8)
    masks[0, 0, 40:50, 20:30] = 1
    (picture,) = sheet_panel("a", "b", image, masks, np.array([True])).pictures
    assert picture[:, 70:].max() == 0
    assert picture[:, :70].std() == pytest.approx(12**-0.5, abs=0.02)


def test_three_channels_are_colours_in_a_plane_alone() -> None:
    valid = np.array([True])
    rng = np.random.default_rng(0)

    def panel(*shape: int) -> SheetPanel:
        masks = np.zeros((1, 1, *shape[1:]), dtype=np.uint8)
        return sheet_panel("a", "b", rng.random(shape).astype(np.float32), masks, valid)

    assert [picture.shape for picture in panel(3, 4, 5).pictures] == [(4, 5, 3)]
    assert [picture.shape for picture in panel(3, 3, 4, 5).pictures] == [(4, 5)] * 3
    many = panel(7, 4, 5)
    assert len(many.pictures) == 4
    assert "channels 1 to 4 of 7" in many.title


@pytest.mark.parametrize(("raters", "channels", "cases"), [(1, 1, 1), (6, 1, 12), (9, 2, 5), (2, 4, 3)])
def test_every_outline_is_drawn_in_its_raters_colour(tmp_path: Path, raters: int, channels: int, cases: int) -> None:
    image = np.random.default_rng(0).random((channels, 12, 10)).astype(np.float32)
    masks = np.zeros((raters, 2, 12, 10), dtype=np.uint8)
    # a single pixel at the edge of each, and the whole image
    for rater in range(raters):
        masks[rater, 0, 0, rater] = 1
    masks[0, 1] = 1
    panel = sheet_panel("a", "b", image, masks, np.ones(raters, dtype=bool))
    names = [f"person {number}" for number in range(raters)]
    figure = contact_sheet([panel] * cases, names, STRUCTURES, ["mind this"])
    figure.savefig(tmp_path / "sheet.png")
    assert [text.get_text() for text in figure.legends[0].texts] == [*names, *STRUCTURES]
    outlines = [collection for collection in figure.axes[0].collections if collection.get_zorder() == 3]
    assert len(outlines) == channels * (raters + 1)
    middles = [outline.get_paths()[0].get_extents().get_points().mean(axis=0).tolist() for outline in outlines]
    assert middles[: raters + 1] == [[0, 0], [4.5, 5.5], *([rater, 0] for rater in range(1, raters))]
    assert len({tuple(outline.get_edgecolor()[0]) for outline in outlines}) == raters
    assert figure.get_supxlabel() == "mind this"


class MemorySource(CaseSource):
    """Random cases of given sizes, some of which cannot be loaded."""

    spatial_dims = 2
    channels = 2
    structures = STRUCTURES
    raters = ("A", "B", "C")

    def __init__(self, sizes: Sequence[Sequence[int]], problems: Sequence[str] = (), lost: Sequence[int] = ()) -> None:
        self.sizes = sizes
        self.problems = problems
        self.lost = lost
        self.loaded: list[int] = []

    def healthy(self) -> Sequence[CaseRecord]:
        return [CaseRecord(str(number), f"patient{number // 2}") for number in range(len(self.sizes))]

    def cases(self) -> Sequence[CaseRecord]:
        if self.problems:
            raise UserError("\n".join(self.problems))
        return self.healthy()

    def load(self, case_id: str) -> RaterSample:
        number = int(case_id)
        if number in self.lost:
            raise UserError(f"{case_id}.png: case {case_id!r}: gone\n{case_id}_A.png: case {case_id!r}: gone too")
        return dataclasses.replace(random_sample(number, 3, 3, self.sizes[number]), case_id=case_id)


def checked(folder: Path, **source: Any) -> DataCheck:
    data = {
        "_target_": "edue_lightning.data.RaterDataModule",
        "name": "memory",
        "source": {"_target_": f"{__name__}.MemorySource", **source},
        "note": "made up",
    }
    return check({"seed": 0, "output": str(folder), "data": data}, folder)


def test_a_check_leaves_a_summary_a_table_and_a_sheet(tmp_path: Path) -> None:
    finding = checked(tmp_path, sizes=[(8, 9)] * 16)
    assert finding.problems == []
    summary = (tmp_path / "summary.txt").read_text()
    assert summary.startswith(finding.overview.text() + "\n\nsettings that fit:\n- data.folds=5")
    assert "data=memory: 16 cases of 8 patients\nnote: made up\n" in finding.overview.text()
    assert "splits          train 8, val 2, test 6\n" in finding.overview.text()
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 500
    cases = pd.read_csv(tmp_path / "cases.csv", dtype={"case_id": str})
    assert tuple(cases.columns) == CASES_COLUMNS
    assert len(cases) == 32
    assert cases.groupby("patient")["split"].nunique().eq(1).all()
    row = cases.iloc[7]
    case = measured(random_sample(3, 3, 3, (8, 9)))
    assert row[["case_id", "patient", "n_raters", "size", "structure"]].tolist() == ["3", "patient1", 3, "8x9", "cup"]
    assert pd.isna(row["spacing"])
    numbers = [case.volumes[1].mean(), case.pairwise_dice[1], case.mean_v_star[1], case.sv_star[1]]
    assert row[["mean_volume", "pairwise_dice", "mean_v_star", "sv_star"]].tolist() == pytest.approx(numbers)


def test_warnings_stand_in_the_summary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # so few that a split gets none by chance
    finding = checked(tmp_path, sizes=[(8, 9)] * 6)
    (warning,) = finding.warnings
    assert "groups are too few to draw" in warning
    assert warning in caplog.text
    assert f"\n\n1 warning:\n{warning}\n" in (tmp_path / "summary.txt").read_text()


def test_with_problems_the_healthy_cases_are_told_all_the_same(tmp_path: Path) -> None:
    lines = [f"{number}.png: case 'x{number}': bad; mend it" for number in range(70)]
    finding = checked(tmp_path, sizes=[(8, 9)] * 4, problems=lines, lost=[2])
    assert finding.problems == [*lines, "2.png: case '2': gone", "2_A.png: case '2': gone too"]
    written = (tmp_path / "summary.txt").read_text()
    assert "data=memory: 3 cases of 2 patients" in written
    assert "not drawn because of the problems below" in written
    assert "72 problems" in written
    assert written.endswith("\n".join(finding.problems) + "\n")
    assert pd.read_csv(tmp_path / "cases.csv")["split"].isna().all()


def test_cases_of_another_kind_than_most_are_left_out_of_the_figures(tmp_path: Path) -> None:
    finding = checked(tmp_path, sizes=[(4, 4, 4), (8, 9), (8, 9)], problems=["0.nii: case '0': is 3D"])
    assert [case.record.case_id for case in finding.overview.cases] == ["1", "2"]


def test_without_a_case_the_network_is_not_checked(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        composed = compose("check", ["data=hecktor", f"data.root={tmp_path / 'data'}", f"output={tmp_path / 'out'}"])
    (problem,) = check(resolved(composed), tmp_path / "out").problems
    assert "holds no case of this data set" in problem or "imagesTr" in problem


def test_where_no_case_is_left_there_is_nothing_to_draw(tmp_path: Path) -> None:
    finding = checked(tmp_path, sizes=[])
    assert len(finding.problems) == 1
    assert "no case is left for train, val, test" in finding.problems[0]
    assert not (tmp_path / "contact_sheet.png").exists()
    assert (tmp_path / "cases.csv").read_text().strip() == ",".join(CASES_COLUMNS)


def test_a_single_case_is_told_but_cannot_be_trained_on(tmp_path: Path) -> None:
    finding = checked(tmp_path, sizes=[(8, 9)])
    assert "no case is left for train" in finding.problems[0]
    assert "1 case of 1 patient" in finding.overview.text()


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    checked(tmp_path, sizes=[(8, 9)] * 6)
    with pytest.raises(UserError, match="already holds a run"):
        checked(tmp_path, sizes=[(8, 9)] * 5)


def test_the_command_tells_what_there_is(tmp_path: Path) -> None:
    overrides = ["data=synthetic", "data.source.n_cases=6", "data.source.size=32", "output=found"]
    overrides.append("data.fractions.draw=permutation")
    done = run_command("check", overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "found" / "summary.txt").read_text()
    assert done.stdout.startswith(summary)
    assert "data=synthetic: 6 cases of 6 patients" in summary
    assert (tmp_path / "found" / "contact_sheet.png").is_file()
    assert len(pd.read_csv(tmp_path / "found" / "cases.csv")) == 12
    again = run_command("check", overrides, cwd=tmp_path)
    assert again.returncode == 2
    assert "already holds a run; choose another folder, or remove it" in again.stderr


def test_the_command_lists_every_problem_of_a_folder(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
    rows = ["case_id,image,mask,rater,structure"]
    for number in range(70):
        Image.fromarray(np.roll(pixels, number)).save(tmp_path / f"c{number}.png")
        rows += [f"c{number},c{number}.png,c{number}_{rater}.png,{rater},disc" for rater in "AB"]
        Image.fromarray((pixels > 99).view(np.uint8)).save(tmp_path / f"c{number}_A.png")
    # the second rater's masks are there for five cases alone
    for number in range(5):
        Image.fromarray((pixels > 120).view(np.uint8)).save(tmp_path / f"c{number}_B.png")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    done = run_command("check", ["data=manifest", f"data.root={tmp_path}", "output=found"], cwd=tmp_path)
    assert done.returncode == 1
    first, *lines, size = done.stderr.splitlines()
    assert first.startswith("66 problems")
    assert size.startswith("case c0: image of size [8, 8] is too small")
    assert [line.split(":")[0] for line in lines] == [f"c{number}_B.png" for number in range(5, 70)]
    assert "data=manifest: 5 cases of 5 patients" in done.stdout
    assert "cases per rater A 5, B 5" in done.stdout


DATA_SETS = (
    "curvas, dicom, drishti, hecktor, lidc, lidc_dicom, lidc_slices, manifest, nnunet, papila, qubiq, retinal_vessels, "
    "riga, synthetic, synthetic_petct"
)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], f"no data set to check; choose one with data=NAME, one of {DATA_SETS}\n"),
        (["data=synthetic", "data.source.size=4"], "data.source.size"),
        (["data=synthetic", "+data.source.colour=red"], "data.source.colour: unknown key"),
    ],
)
def test_an_invalid_configuration_is_one_clear_message(tmp_path: Path, overrides: list[str], words: str) -> None:
    done = run_command("check", [*overrides, "output=found"], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "found" / "config.yaml").exists()


def test_the_configuration_is_complete() -> None:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        plain = resolved(compose("check", ["data=synthetic", "output=somewhere"]))
    check_configuration(plain, CheckConfiguration)


@pytest.mark.parametrize(
    ("sizes", "groups", "setting", "expected"),
    [
        ([(64, 96), (192, 975)], 100, {}, "data.patch.size=[64,96]: images of 64x96 to 192x975 are trained in patches"),
        ([(2048, 1760)], 100, {}, "data.patch.size=[256,256]: whole images of 2048x1760 need much memory"),
        ([(64, 64)], 100, {"patch": {"size": [96, 96]}}, "data.patch.size=[64,64]: patches of 96x96 are larger than"),
        ([(64, 64)], 12, {}, "data.folds=5 data.fold=0,1,2,3,4 (with --multirun): 12 patients leave few"),
        ([(64, 64)], 100, {}, None),
        ([(64, 64)], 12, {"folds": 5, "fold": 1}, None),
        ([(64, 96), (192, 975)], 100, {"patch": {"size": [64, 64]}}, None),
    ],
)
def test_settings_that_fit_are_advice(
    sizes: list[tuple[int, ...]], groups: int, setting: dict[str, Any], expected: str | None
) -> None:
    cases = []
    for number in range(120):
        size = sizes[number % len(sizes)]
        record = CaseRecord(f"c{number}", f"p{number % groups}")
        masks = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
        measured = measure_case(record, RaterSample(torch.rand(1, 4, 4), masks, torch.ones(2) > 0, record.case_id))
        cases.append(dataclasses.replace(measured, size=size))
    lines = advice(setting, SyntheticFundus(n_cases=1, size=24), cases)
    assert len(lines) == (expected is not None)
    assert expected is None or lines[0].startswith(expected)


def test_units_of_many_cases_and_single_raters_get_advice() -> None:
    def case(number: int, raters: int) -> CaseOverview:
        record = CaseRecord(f"c{number}", f"p{number % 100}", unit=f"n{number % 100}")
        masks = torch.zeros(raters, 1, 4, 4, dtype=torch.uint8)
        return measure_case(record, RaterSample(torch.rand(1, 4, 4), masks, torch.ones(raters) > 0, record.case_id))

    source = SyntheticFundus(n_cases=1, size=24)
    (line,) = advice({}, source, [case(number, 2) for number in range(600)])
    assert line.startswith("data.train_draw=one_per_unit: 600 cases show 100 units, up to 6 cases the same one")
    assert advice({"train_draw": "one_per_unit"}, source, [case(number, 2) for number in range(600)]) == []
    (line,) = advice({}, source, [case(number, 1) for number in range(100)])
    assert line.startswith("method=single: no case has two raters")
