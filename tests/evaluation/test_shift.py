"""Scores under distortions, and how well they tell distorted cases from clean ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from method_parts import parts_of
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from edue_lightning.data import RaterDataModule, SyntheticFundus
from edue_lightning.distortions import Distortions
from edue_lightning.evaluation.shift import measure_shift
from edue_lightning.methods import SegmentationMethod, SingleNetwork
from edue_lightning.metrics import SCORES, MetricSettings, case_statistics
from edue_lightning.networks import HeadLayout
from edue_lightning.runs.files import DETECTION_COLUMNS, DISTORTED_CASES_COLUMNS


class Reading(SegmentationMethod):
    """Members that read their probabilities off the image, so that the scores are known functions of it."""

    def __init__(self) -> None:
        super().__init__(parts_of())
        self.modes: list[tuple[bool, bool]] = []

    @property
    def label(self) -> str:
        return "reading"

    def forward(self, image: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        return torch.stack([image[:, :2], image[:, :2] - 1, 2 * image[:, :2]], dim=1)

    def training_loss(self, batch: object) -> dict[str, Tensor]:
        raise NotImplementedError


@pytest.fixture
def data() -> RaterDataModule:
    return RaterDataModule("synthetic", SyntheticFundus(24, 24), eval_batch_size=4)


def test_each_case_is_measured_clean_and_once_a_severity(data: RaterDataModule) -> None:
    distortions = Distortions(kinds=["noise", "gamma"], severities=[1, 4])
    shift = measure_shift(Reading(), data, distortions, "reading", "test", MetricSettings())
    frame = shift.cases_frame()
    assert tuple(frame.columns[: len(DISTORTED_CASES_COLUMNS)]) == DISTORTED_CASES_COLUMNS
    ids = [record.case_id for record in data.records("test")]
    assert len(frame) == len(ids) * 3 * 2
    for (severity, structure), own in frame.groupby(["severity", "structure"]):
        assert own["case_id"].tolist() == ids, (severity, structure)
        dealt = own["distortion"].value_counts()
        assert set(dealt.index) == ({"none"} if severity == 0 else {"noise", "gamma"})
        assert dealt.max() - dealt.min() <= 1

    position = 2
    batch = data.single_batch("test", position)
    image = distortions.apply(batch.image[0], distortions.kind_of(position, 4), 4, position)
    expected = case_statistics(Reading()(image[None]), batch.masks, batch.valid, batch.spacing, ("disc", "cup"))
    (row,) = frame[
        (frame["case_id"] == ids[position]) & (frame["severity"] == 4) & (frame["structure"] == "cup")
    ].to_dict("records")
    for name in ("sv", "entropy", "model_agreement", "dice", "layer_agreement"):
        assert row[name] == pytest.approx(float(expected[name][0, 1]))


def test_the_batch_of_a_case_changes_nothing() -> None:
    frames = [
        measure_shift(
            Reading(),
            RaterDataModule("synthetic", SyntheticFundus(24, 24), eval_batch_size=size),
            Distortions(),
            "reading",
            "test",
            MetricSettings(),
        ).cases_frame()
        for size in (1, 32)
    ]
    order = ["severity", "structure", "case_id"]
    alone, together = (frame.sort_values(order, ignore_index=True) for frame in frames)
    pd.testing.assert_frame_equal(alone, together)


def test_the_settings_of_the_metrics_reach_the_scores(data: RaterDataModule) -> None:
    dice = [
        measure_shift(Reading(), data, Distortions(severities=[1]), "reading", "test", settings).cases["dice"]
        for settings in (MetricSettings(majority_tie="foreground"), MetricSettings(majority_tie="background"))
    ]
    assert not dice[0].equals(dice[1])


def test_detection_is_that_of_scikit_learn_on_the_same_cases(data: RaterDataModule, tmp_path: Path) -> None:
    distortions = Distortions(kinds=["noise", "contrast", "blur"], severities=[2, 5])
    shift = measure_shift(Reading(), data, distortions, "reading", "test", MetricSettings())
    shift.write(tmp_path)
    cases, found = (pd.read_csv(tmp_path / name) for name in ("distorted_cases.csv", "detection.csv"))
    assert tuple(found.columns) == DETECTION_COLUMNS
    assert len(found) == 2 * (1 + 3) * (1 + 2) * len(SCORES)
    signs = dict(SCORES.values())
    for row in found.itertuples():
        own = cases[cases["structure"] == row.structure]
        distorted = own[own["severity"] > 0]
        if row.distortion != "all":
            distorted = distorted[distorted["distortion"] == row.distortion]
        if row.severity:
            distorted = distorted[distorted["severity"] == row.severity]
        clean = own[(own["severity"] == 0) & own["case_id"].isin(distorted["case_id"])]
        both = pd.concat([clean, distorted]).dropna(subset=[row.score])
        truth, score = both["severity"] > 0, signs[row.score] * both[row.score]
        assert (row.n_clean, row.n_distorted) == (int((~truth).sum()), int(truth.sum()))
        assert row.auroc == pytest.approx(roc_auc_score(truth, score))
        assert row.aupr == pytest.approx(average_precision_score(truth, score))


def test_a_single_network_has_no_variance_to_detect_with(data: RaterDataModule) -> None:
    method = SingleNetwork(parts_of(), HeadLayout("last"))
    shift = measure_shift(method, data, Distortions(severities=[3]), "single", "test", MetricSettings())
    found = shift.detection_frame().set_index(["structure", "score", "distortion", "severity"])
    assert np.isnan(found.loc[("disc", "sv", "all", 0), "auroc"])
    assert found.loc[("disc", "sv", "all", 0), "n_distorted"] == 0
    assert 0 <= found.loc[("disc", "entropy", "all", 0), "auroc"] <= 1


def test_prediction_is_in_evaluation_mode_and_without_gradients(data: RaterDataModule) -> None:
    method = Reading().train()
    measure_shift(method, data, Distortions(severities=[1]), "reading", "val", MetricSettings())
    assert not method.training
    assert set(method.modes) == {(False, True)}
