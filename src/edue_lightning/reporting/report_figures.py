"""Figures of a report, drawn from its runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from matplotlib.figure import Figure

from edue_lightning.reporting.comparison import group_by_subject
from edue_lightning.reporting.curves import (
    DRAWN_SEVERITY,
    auroc_by_severity,
    distorted_groups,
    pooled_reliability,
    quality_control,
)
from edue_lightning.reporting.distortion_figures import detection_figure, distorted_boxes_figure
from edue_lightning.reporting.figures import (
    comparison_panel_figure,
    disagreement_scatter_figure,
    quality_control_figure,
    reliability_figure,
)
from edue_lightning.reporting.panels import Panel, load_panels
from edue_lightning.reporting.tables import DETECTION_SCORES
from edue_lightning.runs.files import PANELS_FILE, Run
from edue_lightning.runs.record import digest

_MOST_NAME_BYTES = 100
BOX_SCORES = ("layer_agreement", "model_agreement", "sv")

Methods = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Drawing:
    """A figure of a report.

    Attributes:
        name: name of its files.
        figure: the figure.
        caption: description of the figure and its seeds.
        runs: runs it is drawn from.
    """

    name: str
    figure: Figure
    caption: str
    runs: Sequence[Run]


def drawings(runs: Sequence[Run]) -> Iterator[Drawing]:
    """Yield the figures of each data set and split: curves of each structure, then the panels of each case.

    Each has a name of its own.

    Raises:
        UserError: if a run's panels do not exist or are damaged.
    """
    taken: set[str] = set()
    for drawing in _drawings(runs):
        # parts that differ may be joined to one name, or differ in characters that are replaced in it
        name, number = drawing.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{drawing.name}_{number}"
        taken.add(name.casefold())
        yield replace(drawing, name=name)


def _drawings(runs: Sequence[Run]) -> Iterator[Drawing]:
    groups = group_by_subject([run for run in runs if run.tested])
    for data, split in dict.fromkeys((data, split) for _, data, split in groups):
        methods = {method: members for (method, d, s), members in groups.items() if (d, s) == (data, split)}
        for structure in next(iter(methods.values()))[0].reliability["structure"].unique():
            yield from _curves(methods, structure, _file_name(f"{data}_{split}_{structure}"))
            yield from _distortions(methods, structure, _file_name(f"{data}_{split}_{structure}"))
        yield from _panels(methods, _file_name(f"{data}_{split}"))


def _curves(methods: Methods, structure: str, name: str) -> Iterator[Drawing]:
    runs = _all(methods)
    reliability = {label: pooled_reliability(members, structure) for label, members in methods.items()}
    caption = "Share of raters who marked against the predicted probability, all seeds together."
    yield Drawing(f"calibration_{name}", reliability_figure(reliability), caption, runs)
    controls = {label: quality_control(members, structure) for label, members in methods.items()}
    curves = {f"{label} ({found.score})": found.curve for label, found in controls.items() if found is not None}
    if curves:
        caption = (
            "Poor segmentations that are not flagged against cases flagged, mean over seeds; each method by the score "
            "in brackets, the one with the smallest d-AUC on validation data where that is defined."
        )
        yield Drawing(f"quality_control_{name}", quality_control_figure(curves), caption, runs)
    lowest = _lowest_seed(methods)
    cases = {label: run.cases[run.cases["structure"] == structure] for label, run in lowest.items()}
    caption = "One point per case, for the lowest seed."
    yield Drawing(f"disagreement_{name}", disagreement_scatter_figure(cases), caption, list(lowest.values()))


def _distortions(methods: Methods, structure: str, name: str) -> Iterator[Drawing]:
    distorted = {
        label: members for label, members in methods.items() if all(run.distorted_cases is not None for run in members)
    }
    if distorted:
        groups = {
            score: {label: distorted_groups(members, structure, score) for label, members in distorted.items()}
            for score in BOX_SCORES
        }
        caption = f"Scores with none, half and all of the images distorted, at severity {DRAWN_SEVERITY}, all seeds."
        yield Drawing(f"distorted_{name}", distorted_boxes_figure(groups), caption, _all(distorted))
    measured = {
        label: members for label, members in methods.items() if all(run.detection is not None for run in members)
    }
    if measured:
        areas: dict[str, dict[str, pd.Series]] = {
            score: {label: auroc_by_severity(members, structure, score) for label, members in measured.items()}
            for score in DETECTION_SCORES
        }
        caption = "How well a score separates distorted from clean images, over all kinds, mean over seeds."
        yield Drawing(f"detection_{name}", detection_figure(areas), caption, _all(measured))


def _panels(methods: Methods, name: str) -> Iterator[Drawing]:
    lowest = _lowest_seed(methods)
    by_case: dict[tuple[str, str], dict[str, Panel]] = {}
    for label, run in lowest.items():
        if run.configuration.get("figures") is False:
            # trained without panels
            continue
        for panel in load_panels(run.folder / PANELS_FILE):
            by_case.setdefault((panel.case_id, panel.structure), {})[label] = panel
    for (case_id, structure), panels in by_case.items():
        drawn = [lowest[label] for label in panels]
        figure = comparison_panel_figure(panels, drawn[0].configuration.get("image_note"))
        caption = (
            "Variance between the members above, p(1 - p) for a single network; prediction below. For the lowest seed."
        )
        yield Drawing(f"heatmaps_{name}_{case_id}_{structure}", figure, caption, drawn)


def _file_name(text: str) -> str:
    """Return a text that can be a part of a file's name, whatever path or setting is in it."""
    name = re.sub(r"[^\w.=+-]+", "_", text)
    return name if len(name.encode()) <= _MOST_NAME_BYTES else f"{name[:20]}_{digest([text])}"


def _lowest_seed(methods: Methods) -> dict[str, Run]:
    return {label: min(members, key=lambda run: run.seed) for label, members in methods.items()}


def _all(methods: Methods) -> list[Run]:
    return [run for members in methods.values() for run in members]
