"""The table of predicted cases: flags, one unit, no infinite numbers, and the order of the cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from untrained import checkpoint

from edue_lightning.config.build import ImageFormat, build_data
from edue_lightning.data.geometry import grid_of, respaced
from edue_lightning.data.preparation import PreparedImage
from edue_lightning.prediction.estimate import Estimate
from edue_lightning.prediction.expected_dice import ExpectedDice, Term
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.triage import RANGE_SCORES, StructureTriage, Triage
from edue_lightning.prediction.triage_table import triage_frame, triage_rows
from edue_lightning.runs.checkpoints import add_results, load_method


def case(spacing: tuple[float, ...] | None, size: int = 8, file: int = 8, **scores: float) -> list[object]:
    """Return a prepared picture, and an estimate of one structure and two members, with scores in pixels."""
    prepared = PreparedImage(torch.zeros(1, size, size), spacing, None, (file, file), None)
    values = {**dict.fromkeys((*RANGE_SCORES, "aula"), 1.0), **scores}
    maps = torch.zeros(1, size, size)
    areas = torch.tensor([[4.0], [6.0]], dtype=torch.float64)
    scored = {name: torch.tensor([value]).double() for name, value in values.items()}
    return [prepared, Estimate(maps, maps, maps, torch.full((1,), 0.5), True, scored, areas)]


def triage(score: str, uncertainties: list[float], spaced: bool = True) -> Triage:
    dice = np.where(np.arange(len(uncertainties)) % 2 == 0, 0.5, 0.9)
    one = StructureTriage(score, 0.8, dice, np.array(uncertainties), {})
    return Triage(1.0, {"a": one}, {}, 5, spaced)


def row(
    known: Triage | None, prepared: object, estimate: object, unusual: Sequence[str] | None = None
) -> dict[str, object]:
    assert isinstance(prepared, PreparedImage)
    assert isinstance(estimate, Estimate)
    sensitivity, spaced = (None, False) if known is None else (1.0, known.spaced)
    (one,) = triage_rows("case", prepared, estimate, ["a"], known, sensitivity, spaced, unusual)
    return one


def test_sizes_are_in_the_unit_of_the_model() -> None:
    spaced = row(triage("sv_total", [8.0, 2.0]), *case((2.0, 3.0), sv_total=2.0, predicted_area=5.0))
    assert (spaced["sv_total"], spaced["volume"], spaced["unit"], spaced["flagged"]) == (12.0, 30.0, "mm2", True)
    assert (spaced["volume_low"], spaced["volume_high"]) == (24.0, 36.0)
    # trained in pixels: an image of known spacing is measured in pixels too
    plain = row(triage("sv_total", [8.0, 2.0], spaced=False), *case((2.0, 3.0), sv_total=2.0, predicted_area=5.0))
    assert (plain["sv_total"], plain["volume"], plain["unit"], plain["flagged"]) == (2.0, 5.0, "pixels", False)


def test_volumes_in_voxels_of_the_file_follow_its_voxel_size() -> None:
    # resampling rounds the number of voxels up, so their ratio is not that of the voxels' sizes
    file = grid_of((20, 20, 10), np.diag([1.3, 1.3, 3.27, 1.0]))
    grid = respaced(file, (2.0, 2.0, 4.0))
    prepared = PreparedImage(torch.zeros(1, *grid.shape), (2.0, 2.0, 4.0), grid, file.shape, file)
    _, estimate = case(None, predicted_area=100.0)
    found = row(None, prepared, estimate)
    assert found["unit"] == "voxels"
    assert found["volume"] == pytest.approx(100 * (2 * 2 * 4) / (1.3 * 1.3 * 3.27))


@pytest.mark.parametrize("rule", ["half", "raters"])
def test_sizes_keep_the_unit_of_the_training_with_other_masks(tmp_path: Path, rule: str) -> None:
    path = checkpoint(tmp_path / "best.ckpt", image_format=ImageFormat(2, 1, ("a",)))
    add_results(path, triage=triage("sv_total", [8.0, 2.0]).as_dict(), mask_facts={"raters": 4})
    model = Model(path, "cpu", mask={"_target_": "edue_lightning.uncertainty.MaskRule", "rule": rule})
    assert (model.triage is None) == (rule != "half")
    image = np.random.default_rng(0).random((8, 8))
    in_mm, in_pixels = (model.predict(image, spacing=spacing).table.iloc[0] for spacing in ((2.0, 3.0), (1.0, 1.0)))
    assert (in_mm["unit"], in_pixels["unit"]) == ("mm2", "mm2")
    for name in ("volume", "volume_high", "sv_total"):
        assert in_mm[name] == pytest.approx(6 * in_pixels[name])


@pytest.mark.parametrize("sv_total", [0.0, 3.0, 1e6])
def test_a_size_of_unknown_unit_is_neither_flagged_nor_cleared(sv_total: float) -> None:
    found = row(triage("sv_total", [8.0, 2.0]), *case(None, sv_total=sv_total))
    assert found["flagged"] is None
    assert found["uncertainty"] is None
    assert found["unit"] == "mm2"
    assert all(math.isnan(float(str(found[name]))) for name in ("sv_total", "entropy", "volume", "volume_low"))
    # a column of its own, since it may be true of all rows and would bury the reasons
    assert (found["voxel_size"], found["out_of_distribution"], found["flag_reason"]) == ("unknown", "", "")


@pytest.mark.parametrize(
    ("spacing", "expected"), [(None, "unknown"), ((2.0, 3.0), "1x1.5"), ((0.7031, 0.70312501), "0.3515x0.3516")]
)
def test_the_voxel_size_of_the_file_has_a_column(spacing: tuple[float, ...] | None, expected: str) -> None:
    found = row(triage("model_agreement", [-0.5, -0.9]), *case(spacing, size=8, file=16))
    assert found["voxel_size"] == expected


OUTSIDE_OF_THE_IMAGE = ["density 32.5 outside 0 to 14.9"]


@pytest.mark.parametrize("known", [None, triage("sv_total", [8.0, 2.0]), triage("sv_total", [math.inf, 2.0])])
@pytest.mark.parametrize("spacing", [None, (1.0, 1.0)])
@pytest.mark.parametrize("sv_total", [0.0, 1e6, math.nan])
def test_a_case_outside_of_the_range_is_flagged_whatever_its_score(
    known: Triage | None, spacing: tuple[float, ...] | None, sv_total: float
) -> None:
    found = row(known, *case(spacing, sv_total=sv_total), unusual=OUTSIDE_OF_THE_IMAGE)
    assert found["flagged"] is True
    assert found["flag_reason"] == "outside of the training's range: density"
    assert found["out_of_distribution"] == OUTSIDE_OF_THE_IMAGE[0]
    assert found["uncertainty"] is None
    inside = row(known, *case(spacing, sv_total=sv_total), unusual=[])
    assert inside["out_of_distribution"] == ""
    assert inside["flagged"] is not True or "sv_total" in str(inside["flag_reason"])


def test_without_a_poor_validation_case_only_cases_outside_of_the_range_are_flagged() -> None:
    none_poor = StructureTriage("sv", 0.4, np.array([0.5, 0.9]), np.array([1.0, 2.0]), {"predicted_area": (2.0, 9.0)})
    known = Triage(1.0, {"a": none_poor}, {"percentile 50 of channel 1": (-1.0, 1.0)}, 5, spaced=False)
    assert row(known, *case(None, predicted_area=3.0))["flagged"] is None
    empty = row(known, *case(None, predicted_area=0.0))
    assert (empty["flagged"], empty["out_of_distribution"]) == (True, "predicted_area 0 outside 2 to 9")
    prepared, estimate = case(None, predicted_area=0.0)
    assert isinstance(prepared, PreparedImage)
    bright = row(known, replace(prepared, image=prepared.image + 5), estimate)
    assert bright["flag_reason"] == "outside of the training's range: percentile 50 of channel 1, predicted_area"


def test_the_expected_dice_is_withheld_outside_of_the_range(tmp_path: Path) -> None:
    dice = ExpectedDice(0.2, {"layer_agreement": Term(0.5, 0.0, 1.0)})
    one = StructureTriage("expected_dice", 0.8, np.array([0.5, 0.9]), np.array([-0.5, -0.9]), {}, dice)
    known = Triage(1.0, {"a": one}, {}, 5, spaced=True)
    inside = row(known, *case((1.0, 1.0)), unusual=[])
    assert inside["score_value"] == pytest.approx(0.7)
    assert inside["flag_reason"] == "expected_dice 0.7 is at most 0.7" if inside["flagged"] else True
    outside = row(known, *case((1.0, 1.0)), unusual=OUTSIDE_OF_THE_IMAGE)
    assert (outside["score"], outside["score_value"], outside["uncertainty"]) == ("expected_dice", None, None)
    frame = triage_frame([inside, {**outside, "case": "other"}])
    assert frame["case"].tolist() == ["other", "case"]
    frame.to_csv(tmp_path / "triage.csv", index=False)
    assert not {"nan", "inf", "-inf", "None"} & set((tmp_path / "triage.csv").read_text().replace("\n", ",").split(","))


def test_a_score_without_unit_is_flagged_at_any_spacing() -> None:
    known = triage("model_agreement", [-0.5, -0.9])
    for spacing in (None, (2.0, 3.0)):
        assert row(known, *case(spacing, model_agreement=0.4))["flagged"] is True
        assert row(known, *case(spacing, model_agreement=0.95))["flagged"] is False


@pytest.mark.parametrize("area", [0.0, 5.0, 40.0])
def test_the_range_of_the_volume_includes_the_mask_whatever_its_threshold(area: float) -> None:
    # the members' masks have 4 and 6 pixels of 6 mm²
    found = row(triage("sv_total", [8.0, 2.0]), *case((2.0, 3.0), predicted_area=area))
    expected = (6 * area, 6 * min(4, area), 6 * max(6, area))
    assert (found["volume"], found["volume_low"], found["volume_high"]) == expected


def test_pixels_of_a_volume_are_those_of_the_file() -> None:
    found = row(triage("sv_total", [8.0, 2.0], spaced=False), *case(None, size=8, file=16, predicted_area=5.0))
    assert (found["volume"], found["volume_low"], found["volume_high"]) == (20.0, 16.0, 24.0)


@pytest.mark.parametrize("uncertainties", [[math.inf, 2.0], [2.0, 2.0], [math.inf, math.inf]])
@pytest.mark.parametrize("sv_total", [math.nan, 0.0, 2.0, 2.0001])
def test_the_table_holds_no_infinite_number(tmp_path: Path, uncertainties: list[float], sv_total: float) -> None:
    found = row(triage("sv_total", uncertainties), *case((1.0, 1.0), sv_total=sv_total))
    triage_frame([found]).to_csv(tmp_path / "triage.csv")
    assert "inf" not in (tmp_path / "triage.csv").read_text()
    assert 0 <= float(str(found["uncertainty"])) <= 100


def test_the_least_sure_cases_come_first_also_beyond_all_validation_cases() -> None:
    known = triage("sv_total", [8.0, 2.0])
    rows = []
    for name, value in (
        ("sure", 1.0),
        ("middle", 5.0),
        ("beyond", 20.0),
        ("far beyond", 90.0),
        ("undefined", math.nan),
    ):
        rows.append({**row(known, *case((1.0, 1.0), sv_total=value)), "case": name})
    rows.append({**row(known, *case(None)), "case": "unknown"})
    order = triage_frame(rows)["case"].tolist()
    assert order == ["unknown", "undefined", "far beyond", "beyond", "middle", "sure"]


def test_without_triage_data_the_scores_order_the_cases() -> None:
    rows = [{**row(None, *case(None, sv_total=value)), "case": str(value)} for value in (1.0, 5.0, 3.0)]
    frame = triage_frame(rows)
    assert frame["case"].tolist() == ["5.0", "3.0", "1.0"]
    assert frame["flagged"].isna().all()
    assert frame["uncertainty"].isna().all()


@pytest.mark.parametrize("sensitivity", [0.3, 0.8, 1.0])
def test_the_validation_cases_themselves_are_flagged_as_promised(trained_run: Path, sensitivity: float) -> None:
    checkpoint = trained_run / "checkpoints" / "best.ckpt"
    model = Model(checkpoint, "cpu", sensitivity=sensitivity)
    data = build_data(load_method(checkpoint).configuration)
    count = len(data.records("val"))
    tables = [model.predict(data.sample("val", position).image.numpy()).table for position in range(count)]
    assert model.triage is not None
    for name, known in model.triage.structures.items():
        flagged = [bool(table.set_index("structure").loc[name, "flagged"]) for table in tables]
        poor = known.dice < known.poor_dice
        assert poor.any()
        assert np.mean(np.array(flagged)[poor]) >= sensitivity
        assert np.mean(flagged) == pytest.approx(known.threshold(sensitivity).flagged)
