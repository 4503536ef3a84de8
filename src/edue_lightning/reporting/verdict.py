"""Whether a method keeps its promise on the test split, against baselines that are chosen on validation data.

The promise: clearly higher correlations with the raters' disagreement than the usual ensembles have, and on every data
set at least what the best baseline reaches, at the cost of one network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edue_lightning.metrics import LOWER_IS_BETTER, MEAN_STRUCTURE, SCORES, interval
from edue_lightning.reporting.comparison import (
    group_by_subject,
    mean_over_seeds,
    on_same_cases,
    paired_difference,
    replicates_over_seeds,
)
from edue_lightning.reporting.findings import OVER_DATA, TEST, UNDEFINED, Answer, Finding, Measure, Verdict, listed
from edue_lightning.reporting.selection import best_metric, goodness, validation_mean
from edue_lightning.runs.files import Run

Array = NDArray[np.float64]

FAMILY = "edue"
"""Methods whose label begins so are variants of the candidate, and no baselines."""

USUAL = ("layer_ensemble", "deep_ensemble")
USUAL_TARGETS = {"image_pearson": 0.55, "pixel_pearson": 0.23}
"""Relative gains over the mean of the usual ensembles that are promised, averaged over data sets."""

HALF = 0.5
LARGEST_PARAMETER_RATIO = 1.05
# of a comparison of decimal numbers
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Quantity:
    """What is compared with the best baseline.

    Attributes:
        name: in `verdict.csv`.
        metrics: its read-outs, of which each method has the one that is best on validation data.
        margin: how much worse the candidate may be.
        must_be_shown: whether it holds only with an interval that excludes 0.
    """

    name: str
    metrics: tuple[str, ...]
    margin: float = 0.0
    must_be_shown: bool = False

    @property
    def lower_is_better(self) -> bool:
        """Direction."""
        return self.metrics[0] in LOWER_IS_BETTER


QUANTITIES = (
    Quantity("image_pearson", ("image_pearson", "image_pearson_total"), must_be_shown=True),
    Quantity("image_spearman", ("image_spearman", "image_spearman_total"), must_be_shown=True),
    Quantity("pixel_pearson", ("pixel_pearson", "pixel_pearson_total"), must_be_shown=True),
    Quantity("nll", ("nll",)),
    Quantity("ece", ("ece",)),
    Quantity("d_auc", tuple(f"d_auc{suffix}" for suffix in SCORES)),
    Quantity("dice", ("dice",), margin=0.01),
)


def judge(runs: Sequence[Run], candidate: str) -> Verdict:
    """Return whether a method keeps its promise on the test split.

    Args:
        runs: see `find_runs`.
        candidate: label of the method.

    Raises:
        UserError: if runs contradict each other (see `group_by_subject`), or lack replicates.
    """
    by_data: dict[str, dict[str, list[Run]]] = {}
    for (method, data, split), members in group_by_subject(runs).items():
        if split == TEST:
            by_data.setdefault(data, {})[method] = members
    by_data = {data: methods for data, methods in by_data.items() if candidate in methods}
    findings: list[Finding] = []
    remarks = [] if by_data else [f"No verdict: there is no run of {candidate} on a test split."]
    for data, methods in by_data.items():
        others = [label for label, own in methods.items() if not on_same_cases(own, methods[candidate])]
        if others:
            remarks.append(f"{data}: {listed(others)} left out, measured on other cases than {candidate}.")
        for label in others:
            del methods[label]
    for judged in (_against_usual, _against_best, _cost):
        found, said = judged(by_data, candidate)
        findings += found
        remarks += said
    return Verdict(candidate, findings, remarks)


Methods = Mapping[str, Mapping[str, Sequence[Run]]]
"""The seeds of each method by data set and label, all of a data set on the same cases."""


def _against_usual(by_data: Methods, candidate: str) -> tuple[list[Finding], list[str]]:
    remarks, usable = [], {}
    for data, methods in by_data.items():
        absent = [label for label in USUAL if label not in methods]
        if absent:
            remarks.append(f"{data}: not compared with {listed(USUAL)}, since there is no run of {listed(absent)}.")
        else:
            usable[data] = methods
    findings = []
    for metric, target in USUAL_TARGETS.items():
        gains = [_usual_gain(data, methods, candidate, metric, target) for data, methods in usable.items()]
        findings += [finding for finding, _ in gains]
        if gains:
            findings.append(_average_gain(gains))
    return findings, remarks


def _usual_gain(
    data: str, methods: Mapping[str, Sequence[Run]], candidate: str, metric: str, target: float
) -> tuple[Finding, Array]:
    """Return the gain on a data set, and its replicates `[resamples]`; those that are undefined are NaN."""
    members = [methods[candidate], *(methods[label] for label in USUAL)]
    structures = _structures(members[0])
    structure = MEAN_STRUCTURE if len(structures) > 1 else structures[0]
    value, *usual = (mean_over_seeds(runs, structure, metric) for runs in members)
    own, *others = (replicates_over_seeds(runs, structure, metric, draw) for draw, runs in enumerate(members))
    baseline, baselines = float(np.mean(usual)), np.mean(others, axis=0)
    measure: Measure = "relative gain" if baseline > 0 else "distance closed"
    if measure == "distance closed":
        target = HALF
    elif (1 + target) * baseline > 1:
        target = HALF * (1 - baseline) / baseline
    change = float(_gain(np.array(value), np.array(baseline), measure))
    replicates = _gain(own, baselines, measure)
    low, high = interval(replicates) if not np.isnan(change) else (np.nan, np.nan)
    outcome, holds = _reached(change, target)
    finding = Finding(
        part="usual",
        method=candidate,
        data=data,
        structure=structure,
        quantity=metric,
        metric=metric,
        value=value,
        baseline=" and ".join(USUAL),
        baseline_metric=metric,
        baseline_value=baseline,
        measure=measure,
        change=change,
        ci_low=low,
        ci_high=high,
        target=target,
        outcome=outcome,
        holds=holds,
        seeds=min(len(runs) for runs in members),
    )
    return finding, replicates


def _gain(value: Array, baseline: Array, measure: Measure) -> Array:
    if measure == "distance closed":
        return (value - baseline) / (1 - baseline)
    return value / np.where(baseline > 0, baseline, np.nan) - 1


def _average_gain(gains: Sequence[tuple[Finding, Array]]) -> Finding:
    """Average the relative gains and their targets over data sets; where there is none, its own target must be reached.

    The interval takes the replicates of each data set in an order of its own: cases and seeds of different data sets
    have nothing to do with each other, though their resamples are drawn alike.
    """
    relative = [(finding, values) for finding, values in gains if finding.measure == "relative gain"]
    relative = [(finding, values) for finding, values in relative if not np.isnan(finding.change)]
    others = [finding for finding, _ in gains if finding.measure != "relative gain" or np.isnan(finding.change)]
    first = gains[0][0]
    change = target = low = high = np.nan
    if relative:
        change = float(np.mean([finding.change for finding, _ in relative]))
        target = float(np.mean([finding.target for finding, _ in relative]))
        shortest = min(len(values) for _, values in relative)
        shuffled = [np.random.default_rng(n).permutation(values)[:shortest] for n, (_, values) in enumerate(relative)]
        low, high = interval(np.mean(shuffled, axis=0))
    outcome, holds = _reached(change, target)
    if others and holds == "yes":
        missed = [finding for finding in others if finding.holds != "yes"]
        if missed:
            outcome, holds = f"{outcome}, but not on {listed([finding.data for finding in missed])}", "no"
    return replace(
        first,
        data=OVER_DATA,
        structure=MEAN_STRUCTURE,
        value=np.nan,
        baseline_value=np.nan,
        measure="relative gain",
        change=change,
        ci_low=low,
        ci_high=high,
        target=target,
        outcome=outcome,
        holds=holds,
        seeds=min(finding.seeds for finding, _ in gains),
    )


def _reached(change: float, target: float) -> tuple[str, Answer]:
    if np.isnan(change):
        return UNDEFINED, "undefined"
    return ("reached", "yes") if change >= target - _TOLERANCE else ("not reached", "no")


def _against_best(by_data: Methods, candidate: str) -> tuple[list[Finding], list[str]]:
    findings, remarks = [], []
    for data, methods in by_data.items():
        baselines = {
            label: runs for label, runs in methods.items() if label != candidate and not label.startswith(FAMILY)
        }
        unvalidated = [
            label
            for label, runs in {candidate: methods[candidate], **baselines}.items()
            if any(run.validation is None for run in runs)
        ]
        if not baselines:
            remarks.append(f"{data}: no verdict against the best baseline, since there is no baseline.")
        elif unvalidated:
            remarks.append(
                f"{data}: no verdict against the best baseline, which is chosen on validation data, and runs of "
                f"{listed(unvalidated)} have no validation.csv."
            )
        else:
            findings += [
                _best_finding(data, structure, quantity, methods[candidate], baselines)
                for structure in _structures(methods[candidate])
                for quantity in QUANTITIES
            ]
    return findings, remarks


def _best_finding(
    data: str, structure: str, quantity: Quantity, own: Sequence[Run], baselines: Mapping[str, Sequence[Run]]
) -> Finding:
    metric = best_metric(own, structure, quantity.metrics)
    read_outs = {label: best_metric(runs, structure, quantity.metrics) for label, runs in baselines.items()}
    chosen = {label: read_out for label, read_out in read_outs.items() if read_out is not None}
    best = max(
        chosen,
        key=lambda label: goodness(chosen[label], validation_mean(baselines[label], structure, chosen[label])),
        default=None,
    )
    nothing = Finding(
        part="best baseline",
        method=own[0].key[0],
        data=data,
        structure=structure,
        quantity=quantity.name,
        metric=metric or "",
        measure="difference",
        target=quantity.margin if quantity.lower_is_better else -quantity.margin,
        seeds=len(own),
    )
    if metric is None or best is None:
        return nothing
    found = paired_difference(own, baselines[best], structure, metric, chosen[best])
    outcome, holds = _compared(quantity, found.difference, found.ci_low, found.ci_high)
    return replace(
        nothing,
        value=found.value,
        baseline=best,
        baseline_metric=chosen[best],
        baseline_value=found.other,
        change=found.difference,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        outcome=outcome,
        holds=holds,
        seeds=found.seeds,
    )


def _compared(quantity: Quantity, difference: float, low: float, high: float) -> tuple[str, Answer]:
    """Return the outcome of a difference in words, and whether what was promised holds."""
    if np.isnan(difference):
        return UNDEFINED, "undefined"
    better, worse = ("lower", "higher") if quantity.lower_is_better else ("higher", "lower")
    gain = -difference if quantity.lower_is_better else difference
    if quantity.margin:
        within = gain >= -quantity.margin - _TOLERANCE
        return (f"{'at most' if within else 'more than'} {quantity.margin:g} {worse}"), "yes" if within else "no"
    if gain <= 0:
        return (worse if gain else "equal"), "no"
    if np.isnan(low):
        return f"{better}, without an interval", "not shown" if quantity.must_be_shown else "yes"
    if low > 0 or high < 0:
        return f"{better} with an interval that excludes 0", "yes"
    return f"{better}, but the interval contains 0", "not shown" if quantity.must_be_shown else "yes"


def _cost(by_data: Methods, candidate: str) -> tuple[list[Finding], list[str]]:
    findings = []
    for data, methods in by_data.items():
        for name, limit in (("forward_passes", 1.0), ("parameter_ratio", LARGEST_PARAMETER_RATIO)):
            # the largest, since each seed must keep the limit; NaN if one has none
            value = float(np.max([float(run.cost.get(name, np.nan)) for run in methods[candidate]]))
            outcome, holds = _kept(value, limit)
            findings.append(
                Finding(
                    part="cost",
                    method=candidate,
                    data=data,
                    quantity=name,
                    metric=name,
                    value=value,
                    measure="limit",
                    change=value,
                    target=limit,
                    outcome=outcome,
                    holds=holds,
                    seeds=len(methods[candidate]),
                )
            )
    return findings, []


def _kept(value: float, limit: float) -> tuple[str, Answer]:
    if np.isnan(value):
        return UNDEFINED, "undefined"
    return (f"at most {limit:g}", "yes") if value <= limit + _TOLERANCE else (f"more than {limit:g}", "no")


def _structures(runs: Sequence[Run]) -> list[str]:
    """Return the structures that a method was measured on; without their mean, if there are several."""
    return [structure for structure in runs[0].metrics["structure"].astype(str).unique() if structure != MEAN_STRUCTURE]
