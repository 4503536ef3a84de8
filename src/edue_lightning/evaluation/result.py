"""What a measurement found: metrics, tables, curves and pictures of one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edue_lightning.data.source import Subset
from edue_lightning.metrics import (
    SCORES,
    CaseStatistics,
    MetricSettings,
    QualityControl,
    Summary,
    quality_control_curves,
)
from edue_lightning.reporting.figures import panel_figure, quality_control_figure, reliability_figure
from edue_lightning.reporting.panels import Panel, save_panels
from edue_lightning.runs.files import (
    BOOTSTRAP_FILE,
    CASES_COLUMNS,
    CASES_FILE,
    METRICS_COLUMNS,
    METRICS_FILE,
    PANELS_FILE,
    QUALITY_CONTROL_COLUMNS,
    QUALITY_CONTROL_FILE,
    RELIABILITY_COLUMNS,
    RELIABILITY_FILE,
    Replicates,
    write_replicates,
    write_table,
)

HEADLINE = ("dice", "nll", "ece", "image_pearson", "pixel_pearson")


@dataclass(frozen=True)
class Evaluation:
    """A method measured on one split.

    Attributes:
        label: the method's name in tables.
        data: the data set's name.
        split: train, val, test or all.
        structures: names of the K structures.
        case_ids: of the N cases, in their order.
        cases: their statistics.
        summary: every metric over them.
        settings: of the metrics.
        panels: maps of a few cases.
        members: M.
        note: what a reader of any figure from this data must be told, or None.
    """

    label: str
    data: str
    split: Subset
    structures: Sequence[str]
    case_ids: Sequence[str]
    cases: CaseStatistics
    summary: Summary
    settings: MetricSettings
    panels: Sequence[Panel]
    members: int
    note: str | None

    def metrics_frame(self) -> pd.DataFrame:
        """Return the content of `metrics.csv`."""
        return self._identified(pd.DataFrame([asdict(row) for row in self.summary.rows]))

    def cases_frame(self) -> pd.DataFrame:
        """Return the content of `cases.csv`."""
        scalars = {name: value.cpu().numpy() for name, value in self.cases.scalars.items()}
        parts = []
        for k, structure in enumerate(self.structures):
            columns = {name: values[:, k] for name, values in scalars.items()}
            parts.append(pd.DataFrame({"case_id": list(self.case_ids), "structure": structure, **columns}))
        frame = pd.concat(parts, ignore_index=True)
        frame["n_raters"] = frame["n_raters"].astype(int)
        return self._identified(frame)

    def reliability_frame(self) -> pd.DataFrame:
        """Return the content of `reliability.csv`."""
        return self._identified(pd.DataFrame([asdict(row) for row in self.summary.reliability]))

    def quality_control_frame(self) -> pd.DataFrame:
        """Return the content of `quality_control.csv`, a curve a structure and score, over the cases that define both.

        The order of the scores is that of `SCORES`; one that no case defines, such as the variance between the members
        of a single network, has no curve.
        """
        parts = [pd.DataFrame(columns=["structure", "score", *QualityControl._fields])]
        curves = {
            score: quality_control_curves(self.cases, self.structures, self.settings, score, sign)
            for score, sign in SCORES.values()
        }
        for k, structure in enumerate(self.structures):
            for score, of_structures in curves.items():
                # without a case there is nothing but the start
                if len(of_structures[k].flagged) > 1:
                    parts.append(pd.DataFrame({"structure": structure, "score": score, **of_structures[k]._asdict()}))
        return self._identified(pd.concat(parts[1:] or parts, ignore_index=True))

    def headline(self) -> str:
        """Return the metrics that matter most as a few lines of text."""
        frame = self.metrics_frame()
        frame = frame[frame["metric"].isin(HEADLINE)]
        shown = [
            f"  {row.structure:>10}  {row.metric:<14} {row.value:.4f}  [{row.ci_low:.4f}, {row.ci_high:.4f}]  "
            f"{row.n_cases} cases"
            for row in frame.itertuples()
        ]
        return "\n".join([f"{self.label} on {self.data}, {self.split}:", *shown])

    @rank_zero_only
    def write(self, folder: Path) -> None:
        """Write tables, calibration curve, bootstrap replicates and panels into a run's folder."""
        write_table(self.cases_frame(), CASES_COLUMNS, folder / CASES_FILE)
        reliability = self.reliability_frame()
        write_table(reliability, RELIABILITY_COLUMNS, folder / RELIABILITY_FILE)
        curves = {str(structure): curve for structure, curve in reliability.groupby("structure", sort=False)}
        reliability_figure(curves).savefig(folder / "reliability.png", dpi=120)
        quality_control = self.quality_control_frame()
        write_table(quality_control, QUALITY_CONTROL_COLUMNS, folder / QUALITY_CONTROL_FILE)
        # of the first score that is defined: SV, or of a single network the total variance
        curves = {
            str(structure): own[own["score"] == own["score"].iloc[0]]
            for structure, own in quality_control.groupby("structure", sort=False)
        }
        quality_control_figure(curves).savefig(folder / "quality_control.png", dpi=120)
        write_replicates(Replicates(tuple(self.case_ids), self.summary.replicates), folder / BOOTSTRAP_FILE)
        save_panels(self.panels, folder / PANELS_FILE)
        pictures = folder / "panels"
        pictures.mkdir(exist_ok=True)
        for panel in self.panels:
            panel_figure(panel, self.note).savefig(pictures / f"{panel.case_id}_{panel.structure}.png", dpi=100)
        # last, since its presence says that the run is finished
        write_table(self.metrics_frame(), METRICS_COLUMNS, folder / METRICS_FILE)

    def _identified(self, frame: pd.DataFrame) -> pd.DataFrame:
        frame.insert(0, "method", self.label)
        frame.insert(1, "data", self.data)
        frame.insert(2, "split", self.split)
        return frame
