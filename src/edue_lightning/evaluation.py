"""One evaluation for all methods: metrics, tables, calibration curve and pictures of one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edue_lightning.data import RaterDataModule
from edue_lightning.data.source import Split
from edue_lightning.methods import SegmentationMethod
from edue_lightning.metrics import CaseStatistics, Summary, summarise
from edue_lightning.reporting.figures import panel_figure, reliability_figure
from edue_lightning.reporting.panels import (
    Panel,
    choose_panel_cases,
    displayable,
    most_disputed_slice,
    save_panels,
)
from edue_lightning.reporting.run_folder import (
    BOOTSTRAP_FILE,
    CASES_COLUMNS,
    CASES_FILE,
    METRICS_COLUMNS,
    METRICS_FILE,
    PANELS_FILE,
    RELIABILITY_COLUMNS,
    RELIABILITY_FILE,
    Replicates,
    write_replicates,
    write_table,
)
from edue_lightning.uncertainty import member_variance, rater_variance, sum_of_variances

HEADLINE = ("dice", "nll", "ece", "image_pearson", "pixel_pearson")


@dataclass(frozen=True)
class Evaluation:
    """A method measured on one split.

    Attributes:
        label: the method's name in tables.
        data: the data set's name.
        split: train, val or test.
        structures: names of the K structures.
        case_ids: of the N cases, in their order.
        cases: their statistics.
        summary: every metric over them.
        panels: maps of a few cases.
        members: M.
        note: what a reader of any figure from this data must be told, or None.
    """

    label: str
    data: str
    split: Split
    structures: Sequence[str]
    case_ids: Sequence[str]
    cases: CaseStatistics
    summary: Summary
    panels: Sequence[Panel]
    members: int
    note: str | None

    def metrics_frame(self) -> pd.DataFrame:
        """Return the content of `metrics.csv`."""
        rows = pd.DataFrame([asdict(row) for row in self.summary.rows]).drop(columns="n_undefined")
        return self._identified(rows)

    def cases_frame(self) -> pd.DataFrame:
        """Return the content of `cases.csv`."""
        scalars = {name: value.cpu().numpy() for name, value in vars(self.cases).items() if name != "bins"}
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
        write_replicates(Replicates(tuple(self.case_ids), self.summary.replicates), folder / BOOTSTRAP_FILE)
        save_panels(self.panels, folder / PANELS_FILE)
        pictures = folder / "panels"
        pictures.mkdir(exist_ok=True)
        for panel in self.panels:
            panel_figure(panel, self.note).savefig(pictures / f"{panel.case_id}_{panel.structure}.png", dpi=100)
        # last, since its presence says that the run is finished
        write_table(self.metrics_frame(), METRICS_COLUMNS, folder / METRICS_FILE)

    def log_to(self, run: wandb.Run) -> None:
        """Log summary, calibration curve and panels, under keys that are the same for every run.

        The curve is a table of its own and a line plot of a stock kind, which a dashboard overlays across runs.
        """
        for row in self.summary.rows:
            run.summary[f"{self.split}/{row.structure}/{row.metric}"] = row.value
        reliability = self.reliability_frame()
        logged: dict[str, Any] = {f"{self.split}/reliability": wandb.Table(dataframe=reliability)}
        for structure, curve in reliability[reliability["count"] > 0].groupby("structure", sort=False):
            logged[f"{self.split}/reliability_curve/{structure}"] = wandb.plot.line_series(
                xs=curve["mean_probability"].tolist(),
                ys=[curve["frequency"].tolist()],
                keys=[self.label],
                title=f"Calibration, {structure}",
                xname="predicted probability",
            )
        for panel in self.panels:
            picture = wandb.Image(panel_figure(panel), caption=self.note)
            logged[f"{self.split}/panels/{panel.case_id}_{panel.structure}"] = picture
        run.log(logged)

    def _identified(self, frame: pd.DataFrame) -> pd.DataFrame:
        frame.insert(0, "method", self.label)
        frame.insert(1, "data", self.data)
        frame.insert(2, "split", self.split)
        return frame


def evaluate_method(
    method: SegmentationMethod,
    data: RaterDataModule,
    split: Split,
    trainer: pl.Trainer,
    *,
    label: str,
    resamples: int,
) -> Evaluation:
    """Run a method over a split and compute every metric.

    Args:
        method: trained.
        data: whose cases are measured.
        split: which of them.
        trainer: runs the loop on the configured device.
        label: the method's name in tables.
        resamples: bootstrap resamples behind each interval.
    """
    method.test_cases.reset()
    trainer.test(method, dataloaders=data.evaluation_dataloader(split), verbose=False)
    positions, cases = method.test_cases.cases()
    records = data.records(split)
    panels = []
    for structure in range(len(method.structures)):
        for chosen in choose_panel_cases(cases.sv_star[:, structure].cpu().numpy()):
            panels.append(_panel(method, data, split, int(positions[chosen]), structure))
    return Evaluation(
        label=label,
        data=data.name,
        split=split,
        structures=method.structures,
        case_ids=[records[i].case_id for i in positions.tolist()],
        cases=cases,
        summary=summarise(cases, method.structures, resamples),
        panels=panels,
        members=_probabilities(method, data, split, 0).shape[1],
        note=data.note,
    )


@torch.inference_mode()
def _probabilities(method: SegmentationMethod, data: RaterDataModule, split: Split, position: int) -> torch.Tensor:
    method.eval()
    image = data.single_batch(split, position).image.to(method.device)
    return torch.sigmoid(method(image).float()).cpu()


def _panel(method: SegmentationMethod, data: RaterDataModule, split: Split, position: int, structure: int) -> Panel:
    batch = data.single_batch(split, position)
    probabilities = _probabilities(method, data, split, position)
    between, expert = member_variance(probabilities), rater_variance(batch.masks, batch.valid)
    maps = {
        "image": batch.image[0].numpy(),
        "masks": batch.masks[0, batch.valid[0], structure].numpy(),
        "rater_variance": expert[0, structure].numpy(),
        "member_variance": between[0, structure].numpy(),
        "mean_probability": probabilities.mean(dim=1)[0, structure].numpy(),
    }
    if data.source.spatial_dims == 3:
        shown = most_disputed_slice(maps["rater_variance"])
        maps = {name: np.take(values, shown, axis=values.ndim - 3) for name, values in maps.items()}
    sums = [sum_of_variances(part, batch.voxel_size)[0, structure].item() for part in (between, expert)]
    return Panel(
        case_id=data.records(split)[position].case_id,
        structure=method.structures[structure],
        sv=sums[0],
        sv_star=sums[1],
        **{**maps, "image": displayable(maps["image"])},
    )
