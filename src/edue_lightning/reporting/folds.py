"""Folds of a cross-validation as one run over all cases: each case is tested once, by the fold that left it out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from edue_lightning.config.build import build_metric_settings
from edue_lightning.config.schema import check_only_ours
from edue_lightning.errors import UserError
from edue_lightning.metrics import MEAN_STRUCTURE, CaseStatistics, summarise
from edue_lightning.reporting.identity import grouped
from edue_lightning.reporting.out_of_distribution import same_distortions
from edue_lightning.runs.files import IDENTITY, METRICS_COLUMNS, TEXT_COLUMNS, Replicates, Run
from edue_lightning.runs.record import (
    CAUTIONS,
    ROOTS,
    TRAINING,
    TRAINING_CASES,
    TRAINING_CONTENT,
    TRAINING_SPACING,
    data_settings,
    method_settings,
    metric_settings,
)
from edue_lightning.runs.tables import quality_control_table

_FOLD = "data.fold"
_TRAINING_CASES = (TRAINING_CASES, TRAINING_CONTENT, TRAINING_SPACING)
_DEFINITION = ["structure", "metric"]


def pool_folds(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with those of one method and seed, each on another fold of the same data, as one run.

    Metrics, curves and resamples of such a run are over the cases of all its folds, as if one model had been measured
    on them. So metrics that rank cases, correlate them or add up their voxels mix the folds' networks; what their mean
    within the folds is, says `value_within_folds`. Distorted images are compared with the clean images of their own
    fold alone. Values on validation data, which only choose between read-outs, and costs are means over the folds.
    Panels are those of the first fold. Trainings without a test stay as they are.

    What an earlier version measured in some folds alone is left out, and so are distorted images that were not
    distorted in the same way in all folds.

    Args:
        runs: see `find_runs`.

    Folds are of the same data wherever these lie (`data.root`). Where a fold or a case is there twice, those of each
    place stand for themselves.

    Raises:
        UserError: if two runs are the same fold, a patient is tested in two, or a run lacks the statistics of its
            cases.
    """
    alike: list[list[Run]] = []
    for members in grouped(runs, _identity).values():
        # one data set may lie in several places, and so may several of one name
        alike += [members] if _is_one_division(members) else grouped(members, _root).values()
    return [
        _pooled(folds) if _fold_of(folds[0]) is not None and folds[0].tested else folds[0] for folds in _each(alike)
    ]


def missing_folds(run: Run) -> list[int]:
    """Return the numbers of the folds that a pooled run lacks."""
    found = {_fold_of(fold) for fold in run.folds}
    return [number for number in range(_count_of(run)) if number not in found] if run.folds else []


def value_within_folds(run: Run, structure: str, metric: str) -> float:
    """Return the mean of a metric's values in the folds of a pooled run, each counted as often as it has cases.

    For means over cases it is the value of the pooled run itself. NaN where no fold defines it.
    """
    counts = [fold.n_cases(structure, metric) for fold in run.folds]
    values = [fold.value(structure, metric) for fold in run.folds]
    total = sum(value * count for value, count in zip(values, counts, strict=True) if count)
    return total / sum(counts) if any(counts) else np.nan


def _is_one_division(runs: Sequence[Run]) -> bool:
    """Return whether each fold is there once, and each case in one fold."""
    cases = [case for run in runs for case in run.replicates.case_ids]
    return len({_fold_of(run) for run in runs}) == len(runs) and len(set(cases)) == len(cases)


def _each(alike: Sequence[list[Run]]) -> list[list[Run]]:
    """Return the groups of folds; runs without folds, and trainings without a test, stand alone."""
    found = []
    for group in alike:
        if _fold_of(group[0]) is None or not group[0].tested:
            found += [[run] for run in group]
        else:
            found.append(group)
    return found


def _fold_of(run: Run) -> int | None:
    fold = (run.configuration.get("data") or {}).get("fold")
    return None if fold is None or run.split != "test" else int(fold)


def _count_of(run: Run) -> int:
    return int(run.configuration["data"]["folds"])


def _identity(run: Run) -> str:
    """Return a text that the folds of one method, seed and data set share, wherever the data lie."""
    settings = {**method_settings(run.configuration), **data_settings(run.configuration)}
    settings = {key: value for key, value in settings.items() if key not in (_FOLD, *_TRAINING_CASES, *ROOTS)}
    parts = [run.label, run.data, run.split, run.seed, run.tested, settings, metric_settings(run.configuration)]
    return json.dumps(parts, sort_keys=True, default=str)


def _root(run: Run) -> str:
    return json.dumps([data_settings(run.configuration).get(key) for key in ROOTS], default=str)


def _pooled(folds: Sequence[Run]) -> Run:
    """Return one run for all folds of a method and seed."""
    folds = sorted(folds, key=lambda run: _fold_of(run) or 0)
    _require_disjoint(folds)
    first = folds[0]
    structures = [name for name in first.metrics["structure"].drop_duplicates() if name != MEAN_STRUCTURE]
    configuration = _configuration(folds)
    node = configuration.get("metrics") or (configuration.get(TRAINING) or {}).get("metrics")
    check_only_ours(node, f"{first.folder}: metrics")
    settings = build_metric_settings(node, structures)
    parts = [_statistics(run, structures) for run in folds]
    shared = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    cases = CaseStatistics.concatenate([CaseStatistics({name: part[name] for name in shared}) for part in parts])
    names = first.metrics["metric"].drop_duplicates()
    groups = [group for run in folds for group in run.replicates.groups]
    resamples = min(min(map(len, run.replicates.arrays.values()), default=0) for run in folds)
    summary = summarise(
        cases,
        structures,
        metrics=[name for name in names if all(name in run.metrics["metric"].tolist() for run in folds)],
        settings=settings,
        resamples=resamples,
        groups=groups,
    )
    case_ids = tuple(case for run in folds for case in run.replicates.case_ids)
    identity = dict(zip(IDENTITY, (first.label, first.data, first.split), strict=True))

    def identified(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([pd.DataFrame(identity, index=frame.index), frame], axis=1)

    alike = same_distortions(folds)
    return replace(
        first,
        configuration=configuration,
        folds=tuple(folds),
        metrics=identified(pd.DataFrame([asdict(row) for row in summary.rows])),
        cases=pd.concat([run.cases for run in folds], ignore_index=True),
        reliability=identified(pd.DataFrame([asdict(row) for row in summary.reliability])),
        quality_control=identified(quality_control_table(cases, structures, settings)),
        replicates=Replicates(case_ids, summary.replicates, tuple(groups)),
        case_arrays={name: values.numpy() for name, values in cases.columns.items() if values.ndim > 2},
        cost=_mean_cost([run.cost for run in folds]),
        validation=_mean_validation([run.validation for run in folds]),
        distorted_cases=_together([run.distorted_cases for run in folds]) if alike else None,
        detection=pooled_detection([run.detection for run in folds]) if alike else None,
        validation_detection=pooled_detection([run.validation_detection for run in folds]) if alike else None,
    )


def _require_disjoint(folds: Sequence[Run]) -> None:
    """Check that each fold is there once, and each case and patient in one fold.

    Raises:
        UserError: naming both runs.
    """
    fold_of: dict[int | None, Run] = {}
    tested_in: dict[tuple[str, str], Run] = {}
    for run in folds:
        number = _fold_of(run)
        if number in fold_of:
            raise UserError(
                f"{fold_of[number].folder} and {run.folder}: both are fold {number} of {run.label} on {run.data} with "
                f"seed {run.seed} and the same settings; remove one, or give one a label of its own (label=NAME)"
            )
        fold_of[number] = run
        names = [("case", case) for case in run.replicates.case_ids]
        names += [("patient", patient) for patient in dict.fromkeys(run.replicates.groups)]
        for name in names:
            if name in tested_in:
                kind, shown = name
                raise UserError(
                    f"{tested_in[name].folder} and {run.folder}: {kind} {shown!r} is tested in both folds, as the data "
                    "have changed in between; train the folds on the same data"
                )
            tested_in[name] = run


def _configuration(folds: Sequence[Run]) -> dict[str, Any]:
    """Return the configuration of the first fold without its number, and the training cases and cautions of all."""

    def without_number(record: Mapping[str, Any]) -> dict[str, Any]:
        data = {key: value for key, value in (record.get("data") or {}).items() if key != "fold"}
        return {**record, "data": data}

    configuration = without_number(folds[0].configuration)
    records = [run.configuration for run in folds]
    if configuration.get(TRAINING):
        configuration[TRAINING] = without_number(configuration[TRAINING])
        records = [record[TRAINING] for record in records]
    for key in _TRAINING_CASES:
        trained = [str(record[key]) for record in records if key in record]
        if trained:
            holder = configuration.get(TRAINING) or configuration
            holder[key] = "; ".join(trained)
    cautions = [
        f"fold {_fold_of(run)}: {caution}" for run in folds for caution in run.configuration.get(CAUTIONS) or ()
    ]
    return {**configuration, CAUTIONS: cautions} if cautions else configuration


def _statistics(run: Run, structures: Sequence[str]) -> CaseStatistics:
    """Return the statistics of a run's cases, in the order of its replicates.

    Raises:
        UserError: if the run does not hold them.
    """
    ids = list(run.replicates.case_ids)
    numbers = [name for name in run.cases.columns if name not in TEXT_COLUMNS]
    listed = [run.cases.loc[run.cases["structure"] == name, "case_id"] for name in structures]
    if any(sorted(cases) != sorted(ids) for cases in listed):
        raise UserError(f"{run.folder}: its tables hold different cases; evaluate again")
    # by name, since the folds may list the structures in different orders
    found = [run.case_columns(name, [*numbers, *run.case_arrays]) for name in structures]
    parts = [columns for columns in found if columns is not None]
    if "bins" not in run.case_arrays or len(parts) < len(found):
        raise UserError(
            f"{run.folder}: lacks the statistics of its cases, so its fold cannot be pooled; evaluate again"
        )
    columns = {name: torch.from_numpy(np.stack([part[name] for part in parts], axis=1)) for name in parts[0]}
    return CaseStatistics(columns)


def _together(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame | None:
    known = [table for table in tables if table is not None]
    return pd.concat(known, ignore_index=True) if len(known) == len(tables) else None


def _mean_validation(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame | None:
    """Return `validation.csv` with the mean of the folds' values, without intervals; NaN where a fold defines none."""
    together = _together(tables)
    if together is None:
        return None
    found = together.groupby([*IDENTITY, *_DEFINITION], sort=False)
    values = found["value"].sum(min_count=len(tables)) / len(tables)
    counts = found[["n_cases", "n_undefined"]].sum()
    frame = pd.concat([values, counts], axis=1).reset_index().assign(ci_low=np.nan, ci_high=np.nan)
    return frame[list(METRICS_COLUMNS)]


def pooled_detection(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame | None:
    """Return `detection.csv` of all folds together; None where one lacks it, and NaN where one defines no value.

    Scores of different networks have different scales, so images are compared within their fold alone: the AUROC is
    over the pairs of a distorted and a clean image of one fold, and the AUPR is the mean precision at a distorted image
    among the images of its fold.
    """
    together = _together(tables)
    if together is None:
        return None
    weights = {"auroc": together["n_clean"] * together["n_distorted"], "aupr": together["n_distorted"]}
    sums = {name: together[name] * weight for name, weight in weights.items()}
    weighted = together.assign(**sums, **{f"{name} weight": weight for name, weight in weights.items()})
    found = weighted.groupby([*IDENTITY, "structure", "score", "distortion", "severity"], sort=False)
    values = {name: found[name].sum(min_count=len(tables)) / found[f"{name} weight"].sum() for name in weights}
    return pd.concat([pd.DataFrame(values), found[["n_clean", "n_distorted"]].sum()], axis=1).reset_index()


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shared = [key for key in costs[0] if all(isinstance(cost.get(key), int | float) for cost in costs)]
    return {key: float(np.mean([cost[key] for cost in costs])) for key in shared}
