"""The quality-control curves that an evaluation writes, one a structure and score."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from edue_lightning.evaluation.result import Evaluation
from edue_lightning.metrics import SCORES, MetricSettings, case_statistics, quality_control_curve, summarise
from edue_lightning.runs.files import QUALITY_CONTROL_COLUMNS

STRUCTURES = ("disc", "cup")
CASES = 6


def evaluation(members: int) -> Evaluation:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(CASES, members, 2, 8, 8, generator=generator)
    masks = torch.rand(CASES, 3, 2, 8, 8, generator=generator).round()
    valid = torch.ones(CASES, 3, dtype=torch.bool)
    # rated by nobody: has no Dice
    valid[-1] = False
    settings = MetricSettings(poor_dice=0.5)
    cases = case_statistics(logits, masks, valid, None, STRUCTURES, settings=settings)
    return Evaluation(
        label="edue",
        data="fundus",
        split="test",
        structures=STRUCTURES,
        case_ids=[str(case) for case in range(CASES)],
        groups=[str(case) for case in range(CASES)],
        cases=cases,
        summary=summarise(cases, STRUCTURES, settings=settings, resamples=5),
        settings=settings,
        panels=[],
        members=members,
        note=None,
    )


def test_every_score_has_its_curve() -> None:
    found = evaluation(3)
    frame = found.quality_control_frame()
    assert list(frame.columns) == list(QUALITY_CONTROL_COLUMNS)
    assert set(frame["score"]) == {score for score, _ in SCORES.values()}
    for (structure, score), curve in frame.groupby(["structure", "score"]):
        k = STRUCTURES.index(str(structure))
        sign = -1 if score in {"aula", "model_agreement", "soft_dice_confidence"} else 1
        columns = (found.cases[name][:-1, k].numpy() for name in (str(score), "dice"))
        uncertainty, dice = columns
        expected = quality_control_curve(sign * uncertainty, (dice < 0.5).astype(float))
        assert curve["flagged"].tolist() == pytest.approx(expected.flagged)
        assert curve["missed"].tolist() == pytest.approx(expected.missed)


def test_a_single_network_has_no_curve_of_the_variance_between_members(tmp_path: Path) -> None:
    found = evaluation(1)
    assert not {"sv", "sv_normalised"} & set(found.quality_control_frame()["score"])
    found.write(tmp_path)
    assert (tmp_path / "quality_control.png").is_file()
    assert pd.read_csv(tmp_path / "quality_control.csv")["score"].iloc[0] == "sv_total"


def test_without_a_rated_case_there_is_no_curve() -> None:
    found = evaluation(3)
    found.cases.columns["dice"][:] = torch.nan
    frame = found.quality_control_frame()
    assert frame.empty
    assert list(frame.columns) == list(QUALITY_CONTROL_COLUMNS)
