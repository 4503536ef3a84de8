"""AUROC of scores for distorted images as metrics of a run, so that methods are compared by it like by any other.

The value is that of `detection.csv` over all kinds and severities: the clean images of the cases against all distorted
ones, in a cross-validation those of the same fold. Its replicates draw the patients of the other metrics' resamples,
each with the clean and the distorted images of its cases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from edue_lightning.metrics import MEAN_STRUCTURE, SCORES, interval, resample_counts
from edue_lightning.metrics.bootstrap import few_groups, group_numbers, usable_replicates
from edue_lightning.metrics.definition import Estimate
from edue_lightning.metrics.ties import tied
from edue_lightning.reporting.identity import grouped
from edue_lightning.runs.files import CLEAN, DENSITY, IDENTITY, METRICS_COLUMNS, POOLED_KINDS, POOLED_SEVERITY, Run

Array = NDArray[np.float64]

PREFIX = "ood_auroc_"
"""Beginning of the names of these metrics; the name of the score follows."""

UNCERTAINTY_AUROC = {f"{PREFIX}{score}": (score, sign) for score, sign in SCORES.values()}
"""Score of uncertainty and its sign, by the name of its AUROC."""

DENSITY_AUROC = f"{PREFIX}{DENSITY}"
"""AUROC of the density, the same for all structures."""

OOD_AUROC = {DENSITY_AUROC: (DENSITY, 1), **UNCERTAINTY_AUROC}
"""The same with the density, a score of every method for unusual images."""

# distorted images per step, for the memory of the replicates
_IMAGES_AT_ONCE = 2000


def with_detection(runs: Sequence[Run]) -> list[Run]:
    """Return the runs in their order, those with distorted images also with the metrics of `OOD_AUROC`.

    Read-outs and baselines are chosen by the AUROC on distorted validation images (`validation_detection.csv`). Where a
    training on the same data has none, as in earlier versions, half of the patients serve as validation for all runs on
    this data, and the metrics are over the other half. A hash of the patient's name decides, so no value does.

    Runs measured under different distortions cannot be compared by them and stay as they are, see
    `differing_distortions`.

    Args:
        runs: runs under the names that `distinguish` gives.
    """
    changed: dict[int, Run] = {}
    for measured in _measured(runs).values():
        if not same_distortions(measured):
            continue
        changed |= {id(run): _with_detection(run, _is_halved(measured)) for run in measured}
    return [changed.get(id(run), run) for run in runs]


def halved_cases(runs: Sequence[Run]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the numbers of cases that serve as validation and that are judged, by data set and split.

    Data sets whose runs have distorted validation images are left out, see `with_detection`.
    """
    found = {}
    for place, measured in _measured(runs).items():
        if _is_halved(measured) and same_distortions(measured):
            choosing = _choosing(measured[0])
            found[place] = (int(choosing.sum()), int((~choosing).sum()))
    return found


def differing_distortions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return the data sets and splits whose runs were measured under different distortions."""
    return [place for place, measured in _measured(runs).items() if not same_distortions(measured)]


def same_distortions(runs: Sequence[Run]) -> bool:
    """Return whether the settings of the distortions under which runs were measured are the same."""
    settings = [run.configuration.get("distortions") or {} for run in runs]
    return all(one == settings[0] for one in settings)


def auroc_replicates(
    clean: Array,
    distorted: Array,
    case_of: NDArray[np.intp],
    counts: Array,
    fold_of: NDArray[np.intp] | None = None,
) -> Array:
    """Return the AUROC of a score for distorted images, where each case counts as often as a resample draws it.

    It is the share of pairs of a distorted and a clean image in which the distorted one has the higher score; equal
    scores count half. Images with an undefined score are left out.

    Args:
        clean: score of each case's clean image, `[N]`; NaN where undefined.
        distorted: score of each distorted image, `[D]`; likewise.
        case_of: position of its case, `[D]`.
        counts: number of times that each case is drawn, `[B, N]`.
        fold_of: fold of each case, `[N]`; pairs of two folds, with scores of two networks, are left out.

    Returns:
        `[B]`; NaN where no clean or no distorted image is drawn.
    """
    surpassed, pairs = np.zeros(len(counts)), np.zeros(len(counts))
    folds = np.zeros(len(clean), dtype=np.intp) if fold_of is None else fold_of
    for fold in np.unique(folds):
        cases, images = np.flatnonzero(folds == fold), np.flatnonzero(folds[case_of] == fold)
        own = np.searchsorted(cases, case_of[images])
        of_fold = _surpassed(clean[cases], distorted[images], own, counts[:, cases])
        surpassed, pairs = surpassed + of_fold[0], pairs + of_fold[1]
    return np.divide(surpassed, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def _surpassed(clean: Array, distorted: Array, case_of: NDArray[np.intp], counts: Array) -> tuple[Array, Array]:
    """Return the number of pairs in which the distorted image has the higher score, and that of all pairs, `[B]`."""
    clean, distorted = np.split(tied(np.concatenate([clean, distorted])), [len(clean)])
    known = np.flatnonzero(~np.isnan(clean))
    order = known[np.argsort(clean[known], kind="stable")]
    # number of drawn clean images with one of the lowest scores
    lowest = np.concatenate([np.zeros((len(counts), 1)), counts[:, order].cumsum(axis=1)], axis=1)
    surpassed, drawn = np.zeros(len(counts)), np.zeros(len(counts))
    defined = np.flatnonzero(~np.isnan(distorted))
    for start in range(0, len(defined), _IMAGES_AT_ONCE):
        images = defined[start : start + _IMAGES_AT_ONCE]
        below, up_to = (np.searchsorted(clean[order], distorted[images], side) for side in ("left", "right"))
        weights = counts[:, case_of[images]]
        surpassed += (weights * (lowest[:, below] + lowest[:, up_to])).sum(axis=1) / 2
        drawn += weights.sum(axis=1)
    return surpassed, drawn * lowest[:, -1]


class _Scores(NamedTuple):
    """A score of one structure: of the clean images `[N]` and the distorted ones `[D]`, cases `[D]` and folds `[N]`."""

    clean: Array
    distorted: Array
    case_of: NDArray[np.intp]
    fold_of: NDArray[np.intp]

    def estimate(self, counts: Array) -> Estimate:
        """Return the AUROC for each row of counts, and the cases with a score for each of their images, `[N]`."""
        complete = ~np.isnan(self.clean)
        complete[self.case_of[np.isnan(self.distorted)]] = False
        values = auroc_replicates(self.clean, self.distorted, self.case_of, counts, self.fold_of)
        return Estimate(values, complete)


def _measured(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Return the runs with scores of distorted images of the cases that they resample, by data set and split."""
    measured = []
    for run in runs:
        cases = run.distorted_cases
        if cases is not None and len(cases) and set(cases["case_id"]) == set(run.replicates.case_ids):
            measured.append(run)
    return grouped(measured, lambda run: (run.data, run.split))


def _is_halved(runs: Sequence[Run]) -> bool:
    """Return whether a training lacks distorted validation images; evaluations of checkpoints choose nothing."""
    return any(run.validation is not None and run.validation_detection is None for run in runs)


def _choosing(run: Run) -> NDArray[np.bool_]:
    """Return whether each case of a run is of the half of the patients that serves as validation, `[N]`."""
    names = run.replicates.groups or run.replicates.case_ids
    digests = [hashlib.sha256(f"out of distribution {name}".encode()).digest() for name in names]
    return np.array([digest[0] % 2 == 0 for digest in digests], dtype=bool)


def _with_detection(run: Run, halved: bool) -> Run:
    """Return a run with the metrics of `OOD_AUROC`, of all cases or of half of them, see `with_detection`."""
    cases = run.distorted_cases
    assert cases is not None, "checked"
    ids, groups = run.replicates.case_ids, run.replicates.groups or None
    numbers = group_numbers(groups or range(len(ids)))
    resamples = min(map(len, run.replicates.arrays.values()), default=0)
    counts = np.concatenate([np.ones((1, len(ids))), resample_counts(len(ids), resamples, groups=groups)])
    choosing = _choosing(run) & halved
    rows, arrays, chosen = [], dict(run.replicates.arrays), []
    fold_of_case = {case: n for n, fold in enumerate(run.folds) for case in fold.replicates.case_ids}
    fold_of = np.array([fold_of_case.get(case, 0) for case in ids], dtype=np.intp)
    for structure, scores in _by_structure(cases, ids, fold_of):
        for metric, parts in scores.items():
            estimates = [part.estimate(counts * ~choosing) for part in parts]
            values = np.mean([one.values for one in estimates], axis=0)  # noqa: PD011
            defined = np.logical_and.reduce([one.defined for one in estimates])
            few = few_groups(numbers, Estimate(values, defined & ~choosing))
            replicates, reason = usable_replicates(values, few)
            ends = (np.nan, np.nan) if reason else interval(replicates)
            arrays[structure, metric] = replicates
            n_defined, n_judged = int((defined & ~choosing).sum()), int((~choosing).sum())
            place = (structure, metric)
            rows.append((*place, float(values[0]), *ends, n_defined, n_judged - n_defined, "high", reason))
            if halved:
                value = np.mean([part.estimate(choosing[None].astype(float)).values for part in parts])  # noqa: PD011
                n_defined = int((defined & choosing).sum())
                n_undefined = int(choosing.sum()) - n_defined
                chosen.append((*place, float(value), np.nan, np.nan, n_defined, n_undefined, "high", ""))
    validation = chosen if halved else list(_of_validation(run.validation_detection))
    return replace(
        run,
        metrics=_with_rows(run.metrics, rows),
        validation=None if run.validation is None else _with_rows(run.validation, validation),
        replicates=replace(run.replicates, arrays=arrays),
    )


def _by_structure(
    cases: pd.DataFrame, ids: Sequence[str], fold_of: NDArray[np.intp]
) -> Iterator[tuple[str, dict[str, list[_Scores]]]]:
    """Yield each structure with its scores by metric, and then their mean, where there are several structures."""
    own = {structure: _scores(rows, ids, fold_of) for structure, rows in cases.groupby("structure", sort=False)}
    yield from (
        (str(structure), {metric: [one] for metric, one in scores.items()}) for structure, scores in own.items()
    )
    if len(own) > 1:
        first = next(iter(own.values()))
        yield MEAN_STRUCTURE, {metric: [scores[metric] for scores in own.values()] for metric in first}


def _scores(rows: pd.DataFrame, ids: Sequence[str], fold_of: NDArray[np.intp]) -> dict[str, _Scores]:
    """Return the scores of one structure by metric, larger for images that look more distorted."""
    is_clean = rows["distortion"] == CLEAN
    clean = rows[is_clean].drop_duplicates("case_id").set_index("case_id").reindex(list(ids))
    distorted = rows[~is_clean]
    position = {case: number for number, case in enumerate(ids)}
    case_of = np.array([position[case] for case in distorted["case_id"]], dtype=np.intp)
    return {
        metric: _Scores(sign * clean[score].to_numpy(float), sign * distorted[score].to_numpy(float), case_of, fold_of)
        for metric, (score, sign) in OOD_AUROC.items()
        # measurements of earlier versions lack the later scores
        if score in rows
    }


def _of_validation(detection: pd.DataFrame | None) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of `validation.csv` from `validation_detection.csv`, as those of `_with_rows`."""
    if detection is None:
        return
    pooled = detection[(detection["distortion"] == POOLED_KINDS) & (detection["severity"] == POOLED_SEVERITY)]
    found = []
    for row in pooled.to_dict("records"):
        metric, count = f"{PREFIX}{row['score']}", int(row["n_distorted"])
        found.append((row["structure"], metric, float(row["auroc"]), np.nan, np.nan, count, 0, "high", ""))
    yield from found
    if len(pooled["structure"].unique()) > 1:
        for metric in dict.fromkeys(row[1] for row in found):
            of_metric = [row for row in found if row[1] == metric]
            value, count = np.mean([row[2] for row in of_metric]), min(row[5] for row in of_metric)
            yield (MEAN_STRUCTURE, metric, float(value), np.nan, np.nan, count, 0, "high", "")


def _with_rows(table: pd.DataFrame, rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """Return a table of metrics with further rows: `METRICS_COLUMNS` but the identity, `better` and `no_interval`."""
    columns = [*METRICS_COLUMNS[len(IDENTITY) :], "better", "no_interval"]
    further = pd.DataFrame(rows, columns=columns).assign(**table.iloc[0][list(IDENTITY)])
    # tables of earlier versions lack the last two
    known = {"better": table.get("better", ""), "no_interval": table.get("no_interval", "")}
    return pd.concat([table.assign(**known), further], ignore_index=True)
