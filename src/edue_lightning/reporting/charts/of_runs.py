"""Charts of a report, made from its runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from edue_lightning.reporting.charts.calibration import calibration_chart, quality_control_chart
from edue_lightning.reporting.charts.chart import Chart
from edue_lightning.reporting.charts.disagreement import disagreement_charts
from edue_lightning.reporting.charts.distortion import detection_chart, distorted_boxes_chart
from edue_lightning.reporting.charts.names import place_title, score_title
from edue_lightning.reporting.charts.styles import method_styles
from edue_lightning.reporting.comparison import mean_over_seeds
from edue_lightning.reporting.curves import (
    DRAWN_SEVERITY,
    auroc_by_severity,
    distorted_groups,
    pooled_reliability,
    quality_control,
)
from edue_lightning.reporting.outcomes import is_degenerate
from edue_lightning.reporting.tables import DETECTION_SCORES
from edue_lightning.runs.files import UNIT, Run
from edue_lightning.runs.record import digest
from edue_lightning.text import counted

_MOST_NAME_BYTES = 100
BOX_SCORES = ("layer_agreement", "model_agreement", "sv")

Methods = Mapping[str, Sequence[Run]]
"""Seeds by method, all measured on the same data."""

Place = tuple[str, str, str]
"""Data set, split and structure."""


def calibration_of(methods: Methods, place: Place, reference: str) -> Chart:
    """Return the calibration curves of one structure, all seeds of a method together."""
    structure = place[2]
    curves = {label: pooled_reliability(members, structure) for label, members in methods.items()}
    errors = {label: mean_over_seeds(members, structure, "ece") for label, members in methods.items()}
    sound = {
        label: error
        for label, error in errors.items()
        if not np.isnan(error) and not is_degenerate(mean_over_seeds(methods[label], structure, "dice"))
    }
    alt = f"Calibration curves of {counted(len(curves), 'method')} for {structure}, beside the diagonal."
    if sound:
        best, worst = min(sound, key=lambda name: sound[name]), max(sound, key=lambda name: sound[name])
        alt += f" The calibration error is smallest for {best} (ECE {sound[best]:.4f})"
        alt += f" and largest for {worst} ({sound[worst]:.4f})." if worst != best else "."
    return calibration_chart(
        curves,
        method_styles(list(methods), reference),
        name=f"calibration_{file_name(place)}",
        title=f"Calibration on {place_title(*place)}",
        caption="Share of raters who marked a voxel against its predicted probability, all seeds together; a "
        "calibrated model lies on the diagonal. Below: voxel-rater pairs in each bin.",
        alt=alt,
    ).of(_all(methods))


def quality_control_of(methods: Methods, place: Place, reference: str) -> Chart | None:
    """Return the quality-control curves of one structure; None if no method has poor segmentations to find."""
    structure = place[2]
    found = {label: quality_control(members, structure) for label, members in methods.items()}
    controls = {label: one for label, one in found.items() if one is not None and one.curve["missed"].iloc[0] > 0}
    if not controls:
        return None
    poor = {label: float(one.curve["missed"].iloc[0]) for label, one in controls.items()}
    of = reference if reference in controls else next(iter(controls))
    # area below the share that is found; 1/2 for a random order
    areas = {label: _area(one.curve) for label, one in controls.items()}
    best = max(areas, key=lambda label: areas[label])
    without = [label for label in methods if label not in controls]
    caption = (
        "Share of the poor segmentations that is found when the cases a score calls most uncertain are flagged first, "
        "mean over seeds; each method by the score in brackets, the one with the smallest d-AUC on validation "
        "data where "
        f"that is defined. The ideal order is drawn for {of}, {poor[of]:.0%} of whose segmentations are poor"
    )
    if len(poor) > 1:
        # the corner of the ideal line depends on the share
        caption += f" ({min(poor.values()):.0%} to {max(poor.values()):.0%} among all methods"
        caption += "; one with fewer can lie above the line)"
    caption += "." + (f" Without poor segmentations or curves: {', '.join(without)}." if without else "")
    return quality_control_chart(
        {label: one.curve for label, one in controls.items()},
        method_styles(list(methods), reference),
        reference=of,
        names={label: f"{label} ({score_title(one.score)})" for label, one in controls.items()},
        name=f"quality_control_{file_name(place)}",
        title=f"Quality control on {place_title(*place)}",
        caption=caption,
        alt=f"Quality-control curves of {counted(len(controls), 'method')} for {structure}, between the lines "
        f"of an ideal and of a random order. Poor segmentations are found earliest by {best}.",
    ).of(_all({label: methods[label] for label in controls}))


def _area(curve: pd.DataFrame) -> float:
    found = 1 - curve["missed"] / curve["missed"].iloc[0]
    return float(np.trapezoid(found, curve["flagged"]))


def disagreement_of_runs(methods: Methods, place: Place, reference: str) -> list[Chart]:
    """Return scatter plots of each case's disagreement, by value and by rank, for the lowest seed."""
    runs = lowest_seed(methods)
    said = "In mm² or mm³, or in pixels or voxels where their size is unknown."
    cases = {label: run.cases[run.cases["structure"] == place[2]] for label, run in runs.items()}
    unit = unit_of(cases)
    charts = disagreement_charts(
        cases,
        method_styles(list(methods), reference),
        unit,
        name=f"disagreement_{file_name(place)}",
        title=f"Disagreement on {place_title(*place)}",
        caption="One point per case, for the lowest seed: the model's disagreement against the raters' SV*. A single "
        "network has no variance between members; its sum of p(1 - p) is drawn." + ("" if unit else f" {said}"),
    )
    return [chart.of(list(runs.values())) for chart in charts]


def unit_of(cases: Mapping[str, pd.DataFrame]) -> str:
    """Return the unit of the sums of variances, or an empty text: tables of earlier versions do not hold it."""
    units = {unit for table in cases.values() if UNIT in table for unit in table[UNIT].dropna().unique()}
    return " or ".join(sorted(units))


def distorted_of(methods: Methods, place: Place) -> Chart | None:
    """Return box plots of the scores of one structure with none, half and all of the images distorted."""
    distorted = _measured(methods, lambda run: run.distorted_cases)
    if not distorted:
        return None
    groups = {
        score: {label: distorted_groups(members, place[2], score) for label, members in distorted.items()}
        for score in BOX_SCORES
    }
    chart = distorted_boxes_chart(
        groups,
        name=f"distorted_{file_name(place)}",
        title=f"Scores as images are distorted, on {place_title(*place)}",
        caption=f"Scores with none, half and all of the images distorted, at severity {DRAWN_SEVERITY}, all "
        "seeds. A score that notices distortions moves from group to group.",
    )
    return chart.of(_all(distorted)) if chart.plots else None


def detection_of(methods: Methods, place: Place, reference: str) -> Chart | None:
    """Return how well the scores of one structure find distorted images, by severity."""
    measured = _measured(methods, lambda run: run.detection)
    if not measured:
        return None
    areas = {
        score: {label: auroc_by_severity(members, place[2], score) for label, members in measured.items()}
        for score in DETECTION_SCORES
    }
    chart = detection_chart(
        areas,
        method_styles(list(methods), reference),
        name=f"detection_{file_name(place)}",
        title=f"Distorted images found by a score, on {place_title(*place)}",
        caption="Area under the ROC curve of distorted against clean images, over all kinds of distortion, "
        "mean over seeds: "
        "1 if every distorted image has a higher score than every clean one, 0.5 for a score without information.",
    )
    return chart.of(_all(measured)) if chart.plots else None


def file_name(parts: Sequence[str]) -> str:
    """Return a text that can be a part of a file's name, whatever path or setting is in it."""
    text = "_".join(parts)
    name = re.sub(r"[^\w.=+-]+", "_", text)
    return name if len(name.encode()) <= _MOST_NAME_BYTES else f"{name[:20]}_{digest([text])}"


class UniqueNames:
    """Names of files that differ from each other, also where upper and lower case are one.

    Parts that differ may be joined to one name, or differ in characters that are replaced in it.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, name: str) -> str:
        """Return a name, with a number behind it if it is taken."""
        found, number = name, 1
        while found.casefold() in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found.casefold())
        return found


def lowest_seed(methods: Methods) -> dict[str, Run]:
    """Return the run of the lowest seed of each method."""
    return {label: min(members, key=lambda run: run.seed) for label, members in methods.items()}


def _measured(methods: Methods, table: Callable[[Run], pd.DataFrame | None]) -> Methods:
    """Return the methods whose runs all have a table."""
    return {label: runs for label, runs in methods.items() if all(table(run) is not None for run in runs)}


def _all(methods: Methods) -> list[Run]:
    return [run for members in methods.values() for run in members]
