"""Out-of-distribution detection against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from edue_lightning.metrics import OutOfDistributionAUPR, OutOfDistributionAUROC, ood_aupr, ood_auroc


@settings(max_examples=60)
@given(seed=st.integers(0, 1000), n=st.integers(2, 30), scale=st.sampled_from([0.1, 1.0, 1e6]), ties=st.booleans())
def test_equals_scikit_learn(seed: int, n: int, scale: float, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, n) * scale if ties else rng.normal(size=n) * scale
    distorted = rng.random(n) > 0.5
    distorted[:2] = [True, False]
    arguments = torch.from_numpy(score.astype(float)), torch.from_numpy(distorted)
    assert float(ood_auroc(*arguments)) == pytest.approx(roc_auc_score(distorted, score), abs=1e-13)
    assert float(ood_aupr(*arguments)) == pytest.approx(average_precision_score(distorted, score), abs=1e-13)
    for kind, function in ((OutOfDistributionAUROC, ood_auroc), (OutOfDistributionAUPR, ood_aupr)):
        metric = kind()
        for part in zip(*(a.split([1, n - 1]) for a in arguments), strict=True):
            metric.update(*part)
        assert metric.compute() == function(*arguments)


@pytest.mark.parametrize("distorted", [[True, True], [False, False]])
def test_images_of_one_kind_are_undefined(distorted: list[bool]) -> None:
    score = torch.tensor([0.1, 0.2])
    assert ood_auroc(score, torch.tensor(distorted)).isnan()
    assert ood_aupr(score, torch.tensor(distorted)).isnan()


def test_an_undefined_score_makes_the_area_undefined() -> None:
    assert ood_auroc(torch.tensor([0.1, torch.nan]), torch.tensor([True, False])).isnan()


def test_half_precision_gives_the_areas_of_its_values() -> None:
    score, distorted = torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([False, False, True, True])
    assert float(ood_auroc(score.bfloat16(), distorted)) == pytest.approx(0.875)


def test_areas_are_exact_for_many_images() -> None:
    rng = np.random.default_rng(0)
    distorted = rng.random(50_000) > 0.3
    score = rng.normal(size=50_000) + 0.5 * distorted
    arguments = torch.from_numpy(score), torch.from_numpy(distorted)
    assert float(ood_auroc(*arguments)) == pytest.approx(roc_auc_score(distorted, score), rel=1e-13)
    assert float(ood_aupr(*arguments)) == pytest.approx(average_precision_score(distorted, score), rel=1e-13)
