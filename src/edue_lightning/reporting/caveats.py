"""Caveats on a comparison, to read before its numbers: degenerate models, few cases, one seed, folds, overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edue_lightning.metrics import MEAN_STRUCTURE
from edue_lightning.reporting.charts.names import some_of
from edue_lightning.reporting.comparison import TABLE_METRICS, group_by_subject, mean_over_seeds
from edue_lightning.reporting.folds import missing_folds, value_within_folds
from edue_lightning.reporting.out_of_distribution import differing_distortions, halved_cases
from edue_lightning.reporting.outcomes import ENOUGH_GROUPS, MARGINS, is_degenerate
from edue_lightning.reporting.selection import best_metric
from edue_lightning.reporting.shared_cases import independent_groups
from edue_lightning.reporting.verdict import QUANTITIES
from edue_lightning.runs.files import Run
from edue_lightning.runs.record import CAUTIONS
from edue_lightning.text import listed


def caveats(runs: Sequence[Run]) -> list[str]:
    """Return one line per caveat on the methods of each data set and split.

    Args:
        runs: see `find_runs`.
    """
    by_data: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for (method, data, split), members in group_by_subject(runs).items():
        by_data.setdefault((data, split), {})[method] = members
    lines = []
    distorted_otherwise, halved = differing_distortions(runs), halved_cases(runs)
    for (data, split), methods in by_data.items():
        where = f"{data}, {split}"
        structures = next(iter(methods.values()))[0].metrics["structure"].unique().tolist()
        for structure in [name for name in structures if name != MEAN_STRUCTURE]:
            texts = [*_of_structure(methods, structure), *_mixed_folds(methods, structure)]
            lines += [f"{where}, {structure}: {text}" for text in texts]
        for method, members in methods.items():
            lines += [
                f"{where}: {method}, seed {run.seed}: folds {listed(list(map(str, missing)))} of "
                f"{run.configuration['data']['folds']} are missing, so their cases are not tested"
                for run in members
                if (missing := missing_folds(run))
            ]
            lines += [
                f"{where}: {method}, seed {run.seed}: not all folds have images distorted in the same way "
                "(distortions=...), so distorted images are left out"
                for run in members
                if run.distorted_cases is None and any(fold.distorted_cases is not None for fold in run.folds)
            ]
            lines += [
                f"{where}: {method}, seed {run.seed}: {caution}"
                for run in members
                for caution in run.configuration.get(CAUTIONS) or ()
            ]
        if any(run.folds and run.validation is not None for members in methods.values() for run in members):
            lines.append(
                f"{where}: read-outs and baselines are chosen by means over the folds, on validation cases that other "
                "folds test"
            )
        if (data, split) in distorted_otherwise:
            lines.append(
                f"{where}: the runs' images were distorted in different ways (distortions=...), so methods are not "
                "compared by their AUROC for distorted images"
            )
        if (data, split) in halved:
            choosing, judged = halved[data, split]
            lines.append(
                f"{where}: not all runs have distorted validation images, so the scores and the baseline of the AUROC "
                f"for distorted images are chosen on {choosing} test cases, and compared on the {judged} of other "
                "patients"
            )
        alone = [method for method, members in methods.items() if len(members) == 1]
        if alone:
            lines.append(f"{where}: one seed of {some_of(alone)}; intervals leave out differences between trainings")
    return lines


def _of_structure(methods: dict[str, list[Run]], structure: str) -> list[str]:
    dice = {method: mean_over_seeds(members, structure, "dice") for method, members in methods.items()}
    degenerate = [f"{method} ({value:.3f})" for method, value in dice.items() if is_degenerate(value)]
    lines = []
    if degenerate:
        lines.append(f"Dice near 0: {some_of(degenerate)}; degenerate models, whose other values mean nothing")
    few: dict[int, list[str]] = {}
    for metric in TABLE_METRICS:
        defined = [
            independent_groups([([run], metric)], structure)
            for members in methods.values()
            for run in members
            if run.n_cases(structure, metric)
        ]
        if defined and min(defined) < ENOUGH_GROUPS:
            few.setdefault(min(defined), []).append(metric)
    for groups, metrics in few.items():
        of = "all metrics" if len(metrics) == len(TABLE_METRICS) else some_of(metrics)
        lines.append(
            f"{groups} independent cases or groups of cases (patients) for {of}, fewer than {ENOUGH_GROUPS}; "
            "values are unreliable, and intervals too narrow"
        )
    return lines


def _mixed_folds(methods: dict[str, list[Run]], structure: str) -> list[str]:
    """Return one line per quantity in which a method's value over all folds is far from that within its folds."""
    lines = []
    for quantity in QUANTITIES:
        found = []
        for method, members in methods.items():
            metric = best_metric(members, structure, quantity.metrics) or quantity.metrics[0]
            whole = mean_over_seeds(members, structure, metric)
            within = float(np.mean([value_within_folds(run, structure, metric) for run in members]))
            if abs(whole - within) > MARGINS[quantity.name].of(within):
                found.append(f"{method} ({whole:.4g}, within folds {within:.4g})")
        if found:
            lines.append(
                f"{quantity.name} mixes the networks of the folds, and differs from its mean within them by more than "
                f"the margin: {some_of(found)}"
            )
    return lines
