"""What a verdict consists of: a finding a comparison, and what could not be judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
import pandas as pd

Answer = Literal["yes", "no", "not shown", "undefined"]
Part = Literal["usual", "best baseline", "cost"]
Measure = Literal["relative gain", "distance closed", "difference", "limit"]

TEST = "test"
OVER_DATA = "all"
UNDEFINED = "undefined"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of `verdict.csv`.

    Attributes:
        part: usual (ensembles), best baseline, or cost.
        method: the candidate.
        data: data set; `all` for the average over data sets.
        split: test.
        structure: its name; `mean` for the mean over structures.
        quantity: what is compared.
        metric: the candidate's read-out of it.
        value: of the candidate.
        baseline: label, or the labels of those averaged; empty for a cost.
        baseline_metric: the baseline's read-out.
        baseline_value: of the baseline.
        measure: what `change` is. A relative gain is value / baseline - 1, the distance closed is
            (value - baseline) / (1 - baseline), the difference is value - baseline, a limit has the value itself.
        change: how the candidate differs from the baseline.
        ci_low: lower end of its 95 % interval over cases and seeds.
        ci_high: upper end.
        target: what `change` must reach, or for a quantity of which less is better must not exceed.
        outcome: in words.
        holds: yes, no, not shown (higher, but the interval contains 0) or undefined.
        seeds: the smallest number among the methods.
    """

    part: Part
    method: str
    data: str
    split: str = TEST
    structure: str = ""
    quantity: str
    metric: str = ""
    value: float = np.nan
    baseline: str = ""
    baseline_metric: str = ""
    baseline_value: float = np.nan
    measure: Measure
    change: float = np.nan
    ci_low: float = np.nan
    ci_high: float = np.nan
    target: float
    outcome: str = UNDEFINED
    holds: Answer = "undefined"
    seeds: int


VERDICT_COLUMNS = tuple(field.name for field in fields(Finding))


@dataclass(frozen=True)
class Verdict:
    """All findings on a candidate.

    Attributes:
        candidate: its label.
        findings: in the order of the parts, then of the data sets.
        remarks: sentences on what could not be judged.
    """

    candidate: str
    findings: Sequence[Finding]
    remarks: Sequence[str]

    def frame(self) -> pd.DataFrame:
        """Return the content of `verdict.csv`."""
        return pd.DataFrame([asdict(finding) for finding in self.findings], columns=list(VERDICT_COLUMNS))


def listed(labels: Sequence[str]) -> str:
    """Return labels as they stand in a sentence."""
    return " and ".join(", ".join(labels).rsplit(", ", 1))
