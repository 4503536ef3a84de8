"""Result of a measurement: metrics, tables, curves and figures of one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edue_lightning.atomic import write_arrays
from edue_lightning.data.source import Subset
from edue_lightning.metrics import CaseStatistics, MetricSettings, Summary
from edue_lightning.metrics.bootstrap import NO_RESAMPLES
from edue_lightning.reporting.figures import panel_figure, quality_control_figure, reliability_figure
from edue_lightning.reporting.panels import Panel, save_panels
from edue_lightning.runs.files import (
    BOOTSTRAP_FILE,
    CASE_ARRAYS_FILE,
    CASES_COLUMNS,
    CASES_FILE,
    DENSITY,
    FINGERPRINT,
    IMAGE_FINGERPRINT,
    METRICS_COLUMNS,
    METRICS_FILE,
    PANELS_FILE,
    QUALITY_CONTROL_COLUMNS,
    QUALITY_CONTROL_FILE,
    RELIABILITY_COLUMNS,
    RELIABILITY_FILE,
    UNIT,
    Replicates,
    write_replicates,
    write_table,
)
from edue_lightning.runs.tables import quality_control_table

HEADLINE = ("dice", "nll", "ece", "image_pearson", "pixel_pearson")

# of a correlation
_FEWEST_CASES = 3


@dataclass(frozen=True)
class Evaluation:
    """Result of a method on one split.

    Attributes:
        label: name of the method in tables.
        data: name of the data set.
        split: train, val, test or all.
        structures: names of the K structures.
        case_ids: ids of the N cases, in their order.
        groups: group of each case, such as its patient; the bootstrap draws whole groups.
        cases: statistics of the cases.
        summary: every metric over the cases.
        settings: settings of the metrics.
        panels: maps of a few cases.
        members: number of members M.
        note: caveat to show with every result on this data set, or None.
        fingerprints: digest of the raters' masks of each case and structure, `[N][K]`, or None.
        image_fingerprints: digest of each case's image before it was prepared, `[N]`, or None.
        density: distance of each case's image from the training images, `[N]`, or None.
        units: unit of areas, volumes and sums of each case, `[N]`, or None.
        figures: whether `write` draws figures, and the panels of single cases.
    """

    label: str
    data: str
    split: Subset
    structures: Sequence[str]
    case_ids: Sequence[str]
    groups: Sequence[str]
    cases: CaseStatistics
    summary: Summary
    settings: MetricSettings
    panels: Sequence[Panel]
    members: int
    note: str | None
    fingerprints: Sequence[Sequence[str]] | None = None
    image_fingerprints: Sequence[str] | None = None
    density: Sequence[float] | None = None
    units: Sequence[str] | None = None
    figures: bool = True

    def metrics_frame(self) -> pd.DataFrame:
        """Return the content of `metrics.csv`."""
        return self._identified(pd.DataFrame([asdict(row) for row in self.summary.rows]))

    def cases_frame(self) -> pd.DataFrame:
        """Return the content of `cases.csv`."""
        scalars = {name: value.cpu().numpy() for name, value in self.cases.scalars.items()}
        parts = []
        for k, structure in enumerate(self.structures):
            columns = {name: values[:, k] for name, values in scalars.items()}
            part = pd.DataFrame({"case_id": list(self.case_ids), "structure": structure, **columns})
            if self.density is not None:
                part[DENSITY] = list(self.density)
            if self.fingerprints is not None:
                part[FINGERPRINT] = [digests[k] for digests in self.fingerprints]
            if self.image_fingerprints is not None:
                part[IMAGE_FINGERPRINT] = list(self.image_fingerprints)
            if self.units is not None:
                part[UNIT] = list(self.units)
            parts.append(part)
        frame = pd.concat(parts, ignore_index=True)
        frame["n_raters"] = frame["n_raters"].astype(int)
        return self._identified(frame)

    def reliability_frame(self) -> pd.DataFrame:
        """Return the content of `reliability.csv`."""
        return self._identified(pd.DataFrame([asdict(row) for row in self.summary.reliability]))

    def quality_control_frame(self) -> pd.DataFrame:
        """Return the content of `quality_control.csv`, see `quality_control_table`."""
        return self._identified(quality_control_table(self.cases, self.structures, self.settings))

    def headline(self) -> str:
        """Return the most important metrics as a few lines of text."""
        shown = []
        for row in self.summary.rows:
            if row.metric in HEADLINE:
                ends = "no interval" if np.isnan(row.ci_low) else f"{row.ci_low:.4f}, {row.ci_high:.4f}"
                shown.append(f"  {row.structure:>10}  {row.metric:<14} {row.value:.4f}  [{ends}]  {row.n_cases} cases")
        note = [] if self.note is None else [f"  note: {self.note}"]
        return "\n".join([f"{self.label} on {self.data}, {self.split}:", *shown, *note])

    def undefined_line(self, file: str = METRICS_FILE) -> str | None:
        """Return one line on the number of undefined metrics and the reasons, or None if all are defined.

        Args:
            file: name of the table that lists them all.
        """
        undefined = [row for row in self.summary.rows if np.isnan(row.value)]
        if not undefined:
            return None
        rest = [row for row in undefined if self.members > 1 or row.n_cases]
        few = [row for row in rest if row.n_cases < _FEWEST_CASES]
        reasons = {
            "no variance between members of a single network": len(rest) < len(undefined),
            "too few cases": bool(few),
            "no variation between cases": len(few) < len(rest),
        }
        named = "; ".join(reason for reason, applies in reasons.items() if applies)
        return f"{len(undefined)} of {len(self.summary.rows)} values undefined, empty in {file}: {named}"

    def missing_intervals_line(self, file: str = METRICS_FILE) -> str | None:
        """Return one line on the values without an interval and the reasons, or None if there are none.

        Args:
            file: name of the table that lists them all.
        """
        rows = [row for row in self.summary.rows if not np.isnan(row.value)]
        missing = [row for row in rows if row.no_interval not in ("", NO_RESAMPLES)]
        if not missing:
            return None
        reasons = list(dict.fromkeys(row.no_interval for row in missing))
        more = f"; {len(reasons) - 1} more reasons" if len(reasons) > 1 else ""
        return (
            f"{len(missing)} of {len(rows)} values without an interval, see the column no_interval of {file}: "
            f"{reasons[0]}{more}"
        )

    @rank_zero_only
    def write(self, folder: Path) -> None:
        """Write tables, curves, bootstrap replicates and figures into a run's folder."""
        write_table(self.cases_frame(), CASES_COLUMNS, folder / CASES_FILE)
        reliability = self.reliability_frame()
        write_table(reliability, RELIABILITY_COLUMNS, folder / RELIABILITY_FILE)
        quality_control = self.quality_control_frame()
        write_table(quality_control, QUALITY_CONTROL_COLUMNS, folder / QUALITY_CONTROL_FILE)
        write_replicates(
            Replicates(tuple(self.case_ids), self.summary.replicates, tuple(self.groups)), folder / BOOTSTRAP_FILE
        )
        arrays = {name: value.cpu().numpy() for name, value in self.cases.columns.items() if value.ndim > 2}
        write_arrays(folder / CASE_ARRAYS_FILE, arrays)
        if self.figures:
            self._write_figures(reliability, quality_control, folder)
        # last, since this file marks the run as finished
        write_table(self.metrics_frame(), METRICS_COLUMNS, folder / METRICS_FILE)

    def _write_figures(self, reliability: pd.DataFrame, quality_control: pd.DataFrame, folder: Path) -> None:
        curves = {str(structure): curve for structure, curve in reliability.groupby("structure", sort=False)}
        reliability_figure(curves).savefig(folder / "reliability.png", dpi=120)
        # the first defined score: SV, or the total variance for a single network
        curves = {
            str(structure): own[own["score"] == own["score"].iloc[0]]
            for structure, own in quality_control.groupby("structure", sort=False)
        }
        quality_control_figure(curves).savefig(folder / "quality_control.png", dpi=120)
        save_panels(self.panels, folder / PANELS_FILE)
        panels = folder / "panels"
        panels.mkdir(exist_ok=True)
        for panel in self.panels:
            panel_figure(panel, self.note).savefig(panels / f"{panel.case_id}__panel__{panel.structure}.png", dpi=100)

    def _identified(self, frame: pd.DataFrame) -> pd.DataFrame:
        frame.insert(0, "method", self.label)
        frame.insert(1, "data", self.data)
        frame.insert(2, "split", self.split)
        return frame
