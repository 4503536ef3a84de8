"""The patients of a data set reach the bootstrap of an evaluation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edue_lightning.data import CaseRecord
from edue_lightning.evaluation import measure
from edue_lightning.evaluation.measure import Measurement
from edue_lightning.metrics import CaseTable, MetricSettings, resample_counts
from edue_lightning.runs.files import BOOTSTRAP_FILE, read_run

CASES, PATIENTS = 12, 6


def test_an_evaluation_draws_whole_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_panels", lambda *_: [])
    monkeypatch.setattr(measure, "mask_fingerprints", lambda *_: ["same"])
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(CASES, 2, 1, 8, 8, generator=generator)
    masks = torch.rand(CASES, 3, 1, 8, 8, generator=generator) > 0.5
    table = CaseTable(["disc"])
    # batches in another order than the split's
    for case in reversed(range(CASES)):
        part = slice(case, case + 1)
        table.update(logits[part], masks[part], torch.ones(1, 3) > 0, case_index=torch.tensor([case]))
    records = [CaseRecord(f"case{case}", group=f"patient{case % PATIENTS}") for case in range(CASES)]
    data = SimpleNamespace(records=lambda _: records, name="slices", note=None)
    monkeypatch.setattr(measure, "content_of", lambda _: "picture")
    monkeypatch.setattr(measure, "unit_of", lambda _: "mm²")
    found = measure._evaluation(table, data, Measurement("mine", "test", MetricSettings(), 50), None, lambda _: None)
    assert set(found.cases_frame()["unit"]) == {"mm²"}
    assert list(found.groups) == [record.group for record in records]
    counts = resample_counts(CASES, 50, groups=found.groups)
    np.testing.assert_array_equal(counts[:, :PATIENTS], counts[:, PATIENTS:])
    expected = counts @ found.cases["dice"][:, 0].numpy() / counts.sum(axis=1)
    np.testing.assert_allclose(found.summary.replicates["disc", "dice"], expected)
    found.write(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0")
    assert (tmp_path / BOOTSTRAP_FILE).is_file()
    assert read_run(tmp_path).replicates.groups == tuple(found.groups)
