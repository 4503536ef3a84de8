"""Verdict on one method on the test split, against baselines that are chosen on validation data.

Every comparison has one of three outcomes by the rule of `outcomes.outcome`. Methods of the EDUE family are also
compared with the gains over the usual ensembles that EDUE promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edue_lightning.metrics import LOWER_IS_BETTER, MEAN_STRUCTURE, interval
from edue_lightning.reporting.comparison import (
    PairedDifference,
    group_by_subject,
    mean_over_seeds,
    paired_difference,
    paired_replicates,
    values_of_seeds,
)
from edue_lightning.reporting.findings import OVER_DATA, TEST, UNDEFINED, Finding, Measure, Verdict
from edue_lightning.reporting.out_of_distribution import DENSITY_AUROC, OOD_AUROC, PREFIX, UNCERTAINTY_AUROC
from edue_lightning.reporting.outcomes import MARGINS, Outcome, holm, is_degenerate, outcome, two_sided_p, within_margin
from edue_lightning.reporting.selection import best_metric, eligible_metrics, goodness, scores_of, validation_mean
from edue_lightning.reporting.shared_cases import differing_cases, independent_groups, on_shared_cases
from edue_lightning.runs.files import Run
from edue_lightning.text import listed

Array = NDArray[np.float64]

FAMILY = "edue"
"""Label of EDUE, and with `_` after it the beginning of its variants' labels."""

CEILING = "deep_ensemble_levels"
"""Beginning of the labels of ensembles of EDUE's own networks: what five passes could reach, no baseline of it."""

USUAL = ("layer_ensemble", "deep_ensemble")
USUAL_TARGETS = {"image_pearson": 0.55, "pixel_pearson": 0.23}
"""Promised relative gains of EDUE over the mean of the usual ensembles, averaged over data sets.

Where one would lead above 1, the target is half the distance to 1.
"""

HALF = 0.5
COST_LIMITS = {"forward_passes": 1.0, "parameter_ratio": 1.05}
"""Largest costs that a method may have, relative to one plain U-Net."""

# of a comparison of decimal numbers
_TOLERANCE = 1e-9

Methods = Mapping[str, Mapping[str, Sequence[Run]]]
"""Seeds by data set and method, all of a data set measured on the same data."""


@dataclass(frozen=True)
class Quantity:
    """Quantity that is compared with the baselines.

    Attributes:
        name: name in `verdict.csv` and `MARGINS`.
        metrics: its read-outs; each method has the one that is best on validation data, see `selection.best_metric`.
        on_request: further read-outs, which count only where all methods that are compared have them.
    """

    name: str
    metrics: tuple[str, ...]
    on_request: tuple[str, ...] = ()

    @property
    def sign(self) -> int:
        """-1 where lower is better."""
        return -1 if self.metrics[0] in LOWER_IS_BETTER else 1


# not d-AUC: its scale grows with the share of a method's own poor cases, so a blind score can have the smaller one
QUANTITIES = (
    Quantity("image_pearson", ("image_pearson", "image_pearson_total")),
    Quantity("image_spearman", ("image_spearman", "image_spearman_total")),
    Quantity("image_spearman_normalised", ("image_spearman_normalised",)),
    Quantity("pixel_pearson", ("pixel_pearson", "pixel_pearson_total")),
    Quantity("nll", ("nll",)),
    Quantity("ece", ("ece",)),
    # the risk that is left by a selection, and how much of it is due to the order alone
    Quantity("aurc", tuple(scores_of("aurc"))),
    Quantity("normalised_aurc", tuple(scores_of("normalised_aurc"))),
    # those on request are measured with metrics=mask_rules
    Quantity("dice", ("dice",), ("dice_by_raters", "dice_by_expected_dice")),
    Quantity("d_soft", ("d_soft",), ("d_soft_by_expected_dice",)),
    Quantity("ged2", ("ged2",)),
    Quantity("ood_auroc", tuple(OOD_AUROC)),
    # the density is a score of every method, and hides what the maps of uncertainty say of unusual images
    Quantity("ood_auroc_uncertainty", tuple(UNCERTAINTY_AUROC)),
)
"""Quantities of a verdict. Margins are in `outcomes.MARGINS`.

The last two are compared where the candidate was measured on distorted images, see `out_of_distribution`."""


def measured_quantities(runs: Sequence[Run], others: Sequence[Run], structure: str) -> list[Quantity]:
    """Return the quantities of some runs with the read-outs by which they are compared with others.

    Those of distorted images are left out if one of `runs` was not measured on such images, and a read-out on request
    if one of all runs lacks it, since the others would then have more to choose from.
    """
    found = []
    for quantity in QUANTITIES:
        if not _is_measured(quantity, runs, structure):
            continue
        of_all = [
            metric for metric in quantity.on_request if all(run.n_cases(structure, metric) for run in (*runs, *others))
        ]
        found.append(replace(quantity, metrics=(*quantity.metrics, *of_all)))
    return found


def _is_measured(quantity: Quantity, runs: Sequence[Run], structure: str) -> bool:
    """Return whether all runs were measured on distorted images, if the quantity is one of these."""
    return not quantity.metrics[0].startswith(PREFIX) or all(
        any(run.n_cases(structure, metric) for metric in quantity.metrics) for run in runs
    )


def judge(runs: Sequence[Run], candidate: str) -> Verdict:
    """Return the verdict on a method on the test split.

    Args:
        runs: see `find_runs`.
        candidate: name of the method; its label, if all runs of that label are seeds of one method.

    Raises:
        UserError: if two runs differ in nothing (see `group_by_subject`).
    """
    by_data: dict[str, dict[str, list[Run]]] = {}
    for (method, data, split), members in group_by_subject(runs).items():
        if split == TEST:
            by_data.setdefault(data, {})[method] = members
    remarks = [] if by_data else [f"No verdict: there is no run of {candidate} on a test split."]
    for data in [data for data, methods in by_data.items() if candidate not in methods]:
        remarks.append(_without_candidate(data, by_data.pop(data), candidate))
    findings: list[Finding] = []
    for compared in (_against_usual, _against_best, _cost):
        found, said = compared(by_data, candidate)
        findings += found
        remarks += said
    return Verdict(candidate, with_outcomes(findings), remarks)


def _without_candidate(data: str, methods: Mapping[str, Sequence[Run]], candidate: str) -> str:
    variants = [name for name, runs in methods.items() if runs[0].label == candidate]
    if variants:
        choices = " or ".join(f"reference='{name}'" for name in variants)
        return f"{data}: no verdict, since runs of {candidate} differ by more than their seed; choose {choices}."
    return f"{data}: no verdict, since {candidate} was not measured on this data with these settings of the metrics."


def with_outcomes(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with their outcomes, after Holm's correction over all of them that are not refused."""
    adjusted = holm([np.nan if _is_refused(finding) else finding.p_value for finding in findings])
    return [_with_outcome(finding, float(p_value)) for finding, p_value in zip(findings, adjusted, strict=True)]


def _with_outcome(finding: Finding, adjusted_p: float) -> Finding:
    if finding.part == "cost":
        return finding
    sign = -1 if finding.metric in LOWER_IS_BETTER else 1
    ends = (sign * (finding.ci_low - finding.target), sign * (finding.ci_high - finding.target))
    gain, low, high = sign * (finding.change - finding.target), min(ends), max(ends)
    found = outcome(gain, low, high, finding.margin, adjusted_p) if not _is_refused(finding) else UNDEFINED
    reason = finding.reason or ("no interval" if found == UNDEFINED and not np.isnan(gain) else "")
    return replace(
        finding,
        adjusted_p=adjusted_p,
        outcome=found,
        within_margin=bool(found != UNDEFINED and within_margin(low, high, finding.margin)),
        reason=reason or ("undefined" if found == UNDEFINED else ""),
    )


def _is_refused(finding: Finding) -> bool:
    return finding.reason.startswith("degenerate")


def _degeneracy(runs: Sequence[Run], structure: str) -> str:
    """Return why a method's values mean nothing, or an empty text."""
    dice = mean_over_seeds(runs, structure, "dice")
    return f"degenerate model, Dice {dice:.3f}" if is_degenerate(dice) else ""


def _is_family(name: str) -> bool:
    return name == FAMILY or name.startswith((f"{FAMILY}_", f"{FAMILY},"))


def _against_usual(by_data: Methods, candidate: str) -> tuple[list[Finding], list[str]]:
    """Compare with the gains that EDUE promises; other methods promise none."""
    if not _is_family(candidate):
        return [], []
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
        findings += [gain.finding for gain in gains]
        # the average over one data set would be the same comparison again
        if len(gains) > 1:
            findings.append(_average_gain(gains))
    return findings, remarks


@dataclass(frozen=True)
class _Gain:
    """Gain over the usual ensembles on a data set.

    Attributes:
        finding: the gain with its interval.
        replicates: `[resamples]`; undefined ones are NaN.
        groups: number of independent groups of cases.
        of_seeds: for each method, the gain with each of its seeds in place of their mean.
    """

    finding: Finding
    replicates: Array
    groups: int
    of_seeds: Sequence[Array]

    @property
    def is_relative(self) -> bool:
        """Whether it is a relative gain, and defined."""
        return self.finding.measure == "relative gain" and not np.isnan(self.finding.change)


def _usual_gain(data: str, methods: Mapping[str, Sequence[Run]], candidate: str, metric: str, target: float) -> _Gain:
    """Return the gain on a data set."""
    measured = [methods[candidate], *(methods[label] for label in USUAL)]
    structures = _structures(measured[0])
    structure = MEAN_STRUCTURE if len(structures) > 1 else structures[0]
    groups = independent_groups([(runs, metric) for runs in measured], structure)
    members = on_shared_cases([(runs, metric) for runs in measured], structure)
    of_own, *of_usual = (values_of_seeds(runs, structure, metric) for runs in members)
    value, usual = float(of_own.mean()), [float(values.mean()) for values in of_usual]
    own, *others = paired_replicates([(runs, metric) for runs in members], structure)
    baseline, baselines = float(np.mean(usual)), np.mean(others, axis=0)
    measure: Measure = "relative gain" if 0 < (1 + target) * baseline <= 1 else "distance closed"
    if measure == "distance closed":
        target = HALF
    change = float(_gain(np.array(value), np.array(baseline), measure))
    of_seeds = [_gain(of_own, np.full(len(of_own), baseline), measure)]
    for values, mean in zip(of_usual, usual, strict=True):
        of_seeds.append(_gain(np.full(len(values), value), baseline + (values - mean) / len(usual), measure))
    replicates = _gain(own, baselines, measure)
    if np.isnan(change):
        replicates = np.full_like(replicates, np.nan)
    low, high = interval(replicates)
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
        p_value=two_sided_p(replicates - target, groups, of_seeds),
        target=target,
        reason=next(filter(None, (_degeneracy(runs, structure) for runs in measured)), "")
        or differing_cases([(runs, metric) for runs in measured], structure),
        seeds=min(len(runs) for runs in members),
    )
    return _Gain(finding, replicates, groups, of_seeds)


def _gain(value: Array, baseline: Array, measure: Measure) -> Array:
    if measure == "distance closed":
        return (value - baseline) / (1 - baseline)
    return value / np.where(baseline > 0, baseline, np.nan) - 1


def _average_gain(gains: Sequence[_Gain]) -> Finding:
    """Average the relative gains over the data sets whose target is one.

    A degenerate model on any data set leaves the outcome undefined, whatever the order of the data sets.

    The replicates of each data set are shuffled: cases and seeds of different data sets are independent, though their
    resamples are drawn alike.
    """
    relative = [gain for gain in gains if gain.is_relative]
    others = [gain.finding.data for gain in gains if not gain.is_relative]
    first = gains[0].finding
    change = low = high = p_value = np.nan
    target = USUAL_TARGETS[first.quantity]
    if relative:
        change = float(np.mean([gain.finding.change for gain in relative]))
        shortest = min(len(gain.replicates) for gain in relative)
        shuffled = [np.random.default_rng(n).permutation(gain.replicates)[:shortest] for n, gain in enumerate(relative)]
        if not any(np.isnan(gain.finding.ci_low) for gain in relative):
            averages = np.mean(shuffled, axis=0)
            low, high = interval(averages)
            of_seeds = [values / len(relative) for gain in relative for values in gain.of_seeds]
            p_value = two_sided_p(averages - target, min(gain.groups for gain in relative), of_seeds)
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
        p_value=p_value,
        target=target,
        reason=_average_reason(gains, others),
        seeds=min(gain.finding.seeds for gain in gains),
    )


def _average_reason(gains: Sequence[_Gain], without: Sequence[str]) -> str:
    findings = [gain.finding for gain in gains]
    refused = [f"{finding.reason} on {finding.data}" for finding in findings if _is_refused(finding)]
    if refused:
        return "; ".join(sorted(refused))
    if without:
        return f"without {listed(without)}, whose target is no relative gain"
    return "; ".join(f"{finding.reason} on {finding.data}" for finding in findings if finding.reason)


def _against_best(by_data: Methods, candidate: str) -> tuple[list[Finding], list[str]]:
    findings: list[Finding] = []
    remarks: list[str] = []
    for data, methods in by_data.items():
        label = methods[candidate][0].label
        # variants of one method are no baselines of each other, nor are ensembles of them
        baselines = {
            name: runs
            for name, runs in methods.items()
            if name != candidate
            and runs[0].label != label
            and not (_is_family(candidate) and (_is_family(runs[0].label) or runs[0].label.startswith(CEILING)))
        }
        unvalidated = [
            name
            for name, runs in {candidate: methods[candidate], **baselines}.items()
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
            for structure in _structures(methods[candidate]):
                rivals = {name: runs for name, runs in baselines.items() if not _degeneracy(runs, structure)}
                remarks += [
                    f"{data}, {structure}: {name} is no baseline: {_degeneracy(runs, structure)}."
                    for name, runs in baselines.items()
                    if name not in rivals
                ]
                of_rivals = [run for runs in rivals.values() for run in runs]
                for quantity in measured_quantities(methods[candidate], of_rivals, structure):
                    without = [name for name, runs in rivals.items() if not _is_measured(quantity, runs, structure)]
                    if without:
                        remarks.append(
                            f"{data}, {structure}: {quantity.name} is not compared with {listed(without)}, since their "
                            "runs have no distorted images."
                        )
                    measured = {name: runs for name, runs in rivals.items() if name not in without}
                    found = _compared(data, structure, quantity, methods[candidate], measured)
                    findings += [finding for finding in found if not _is_repeated(finding, findings)]
    return findings, remarks


def _is_repeated(finding: Finding, earlier: Sequence[Finding]) -> bool:
    """Return whether another structure had the same comparison: the density is a score of the whole image."""

    def what(one: Finding) -> tuple[str, ...]:
        return (one.data, one.quantity, one.metric, one.baseline, one.baseline_metric)

    return {finding.metric, finding.baseline_metric} == {DENSITY_AUROC} and what(finding) in map(what, earlier)


def _compared(
    data: str, structure: str, quantity: Quantity, own: Sequence[Run], baselines: Mapping[str, Sequence[Run]]
) -> list[Finding]:
    """Return one finding on the baseline that is best on validation data, and one per baseline undefined there."""
    metric = best_metric(own, structure, quantity.metrics)
    read_outs = {name: best_metric(runs, structure, quantity.metrics) for name, runs in baselines.items()}
    chosen = {name: read_out for name, read_out in read_outs.items() if read_out is not None}
    best = max(
        chosen,
        key=lambda name: goodness(chosen[name], validation_mean(baselines[name], structure, chosen[name])),
        default=None,
    )
    rivals = {} if best is None else {best: (chosen[best], "")}
    for name, runs in baselines.items():
        measured = [
            read_out
            for read_out in eligible_metrics(runs, structure, quantity.metrics)
            if not np.isnan(mean_over_seeds(runs, structure, read_out))
        ]
        if name not in chosen and measured:
            # it cannot be ranked, and might be the best
            rivals[name] = (measured[0], "undefined on validation data, so compared beside the best baseline")
    nothing = Finding(
        part="best baseline",
        method=own[0].method,
        data=data,
        structure=structure,
        quantity=quantity.name,
        metric=metric or quantity.metrics[0],
        measure="difference",
        seeds=len(own),
    )
    if metric is None or not rivals:
        of = f"of {own[0].method}" if metric is None else "of every baseline"
        return [replace(nothing, reason=f"{of} undefined on validation data")]
    degenerate = _degeneracy(own, structure) if quantity.name != "dice" else ""
    return [
        _difference(nothing, own, baselines[name], name, read_out, degenerate or reason)
        for name, (read_out, reason) in rivals.items()
    ]


def _difference(
    nothing: Finding, own: Sequence[Run], others: Sequence[Run], name: str, read_out: str, reason: str
) -> Finding:
    found = paired_difference(own, others, nothing.structure, nothing.metric, read_out)
    reason = reason or differing_cases([(own, nothing.metric), (others, read_out)], nothing.structure)
    return replace(with_difference(nothing, name, read_out, found), reason=reason)


def with_difference(finding: Finding, baseline: str, read_out: str, found: PairedDifference) -> Finding:
    """Return a finding with its difference from a baseline, and the margin of its quantity.

    Args:
        finding: finding with the candidate, its read-out, the data and the quantity.
        baseline: name of the baseline.
        read_out: read-out of the baseline.
        found: difference of the candidate from the baseline.
    """
    return replace(
        finding,
        value=found.value,
        baseline=baseline,
        baseline_metric=read_out,
        baseline_value=found.other,
        change=found.difference,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        p_value=found.p_value,
        target=0.0,
        margin=MARGINS[finding.quantity].of(found.other),
        seeds=found.seeds,
    )


def _cost(by_data: Methods, candidate: str) -> tuple[list[Finding], list[str]]:
    findings = []
    for data, methods in by_data.items():
        for name in COST_LIMITS:
            # the largest, since each seed must keep the limit; NaN if a seed has none
            value = float(np.max([float(run.cost.get(name, np.nan)) for run in methods[candidate]]))
            findings.append(cost_finding(candidate, data, name, value, len(methods[candidate])))
    return findings, []


def cost_finding(method: str, data: str, name: str, value: float, seeds: int) -> Finding:
    """Return whether a cost keeps its limit, see `COST_LIMITS`.

    Args:
        method: name of the method.
        data: name of the data set.
        name: name of the cost.
        value: its value; NaN if it was not measured.
        seeds: number of seeds that it was measured for.
    """
    limit = COST_LIMITS[name]
    kept: Outcome = "not distinguishable" if value <= limit + _TOLERANCE else "worse"
    return Finding(
        part="cost",
        method=method,
        data=data,
        quantity=name,
        metric=name,
        value=value,
        measure="limit",
        change=value,
        target=limit,
        outcome=UNDEFINED if np.isnan(value) else kept,
        within_margin=bool(value <= limit + _TOLERANCE),
        reason="not measured" if np.isnan(value) else "",
        seeds=seeds,
    )


def _structures(runs: Sequence[Run]) -> list[str]:
    """Return the structures that a method was measured on; without their mean, if there are several."""
    return [structure for structure in runs[0].metrics["structure"].unique() if structure != MEAN_STRUCTURE]
