"""Parts of a verdict: one finding per comparison, and remarks on what was not compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
import pandas as pd

from edue_lightning.reporting.outcomes import Outcome

Part = Literal["usual", "best baseline", "cost"]
Measure = Literal["relative gain", "distance closed", "difference", "limit"]

TEST = "test"
OVER_DATA = "all"
UNDEFINED: Outcome = "undefined"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of `verdict.csv`.

    Attributes:
        part: usual (ensembles), best baseline, or cost.
        method: name of the candidate.
        data: name of the data set; `all` for the average over data sets.
        split: test.
        structure: name of the structure; `mean` for the mean over structures.
        quantity: name of the quantity.
        metric: read-out of the candidate.
        value: value of the candidate.
        baseline: name of the baseline, or of those averaged; empty for a cost.
        baseline_metric: read-out of the baseline.
        baseline_value: value of the baseline.
        measure: definition of `change`. A relative gain is value / baseline - 1, the distance closed is
            (value - baseline) / (1 - baseline), the difference is value - baseline, a limit has the value itself.
        change: change from the baseline to the candidate.
        ci_low: lower end of its 95 % interval over cases and seeds.
        ci_high: upper end.
        p_value: two-sided p-value that `change` equals `target`.
        adjusted_p: the same after Holm's correction over all findings.
        target: value that `change` is compared with: 0 for a difference, a promised gain, or a limit.
        margin: largest distance from `target` that does not matter.
        outcome: better, not distinguishable, worse or undefined, see `outcomes.outcome`.
        within_margin: whether the interval lies within the margin.
        reason: reason for an undefined outcome or an additional baseline; mostly empty.
        seeds: smallest number of seeds among the methods.
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
    p_value: float = np.nan
    adjusted_p: float = np.nan
    target: float = 0.0
    margin: float = 0.0
    outcome: Outcome = UNDEFINED
    within_margin: bool = False
    reason: str = ""
    seeds: int


VERDICT_COLUMNS = tuple(field.name for field in fields(Finding))


@dataclass(frozen=True)
class Verdict:
    """All findings on a candidate.

    Attributes:
        candidate: name of the method.
        findings: findings in the order of the parts, then of the data sets.
        remarks: sentences on what was not compared.
    """

    candidate: str
    findings: Sequence[Finding]
    remarks: Sequence[str]

    def frame(self) -> pd.DataFrame:
        """Return the content of `verdict.csv`."""
        return pd.DataFrame([asdict(finding) for finding in self.findings], columns=list(VERDICT_COLUMNS))
