"""Names that tell apart runs of one label: only seeds of one configuration, measured on the same data, share a name.

Two runs are measured on the same data if they have the same cases, images, masks, grid and settings of the metrics;
of metrics beside the usual ones (`metrics.extra`), which only some runs may have, those of one name must be the same.
They are seeds of one method if they also share their label and the settings of `method_settings`. Where runs of one
label or data set differ, their names say in what: `edue, learning_rate=0.003`.

A run of an earlier version may hold less: it is compared by what both know. It joins runs that it agrees with, unless
those differ from each other, whatever the order of the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from scipy.sparse.csgraph import connected_components

from edue_lightning.runs.files import FINGERPRINT, IMAGE_FINGERPRINT, Run
from edue_lightning.runs.record import (
    PARTLY_KNOWN,
    TRAINING_CASES,
    TRAINING_CONTENT,
    TRAINING_SPACING,
    data_settings,
    digest,
    method_settings,
    metric_settings,
    same_method,
)

GroupKey = TypeVar("GroupKey", bound=Hashable)

_CASE = ["case_id", "structure"]
# statistics of a case that depend on its raters and its grid alone
_RATER_COLUMNS = ("sv_star", "sv_star_normalised", "area", "n_raters")
_RELATIVE_TOLERANCE = 1e-6
_MOST_NAMED = 3
_EXTRA = "metrics.extra."


def distinguish(runs: Sequence[Run]) -> list[Run]:
    """Return the runs in their order, renamed where a name would join runs that differ by more than their seed.

    Args:
        runs: see `find_runs`.
    """
    data_of: dict[int, str] = {}
    method_of: dict[int, str] = {}
    for members in grouped(runs, lambda run: (run.data, run.split)).values():
        for data, measured_alike in _data_sets(members).items():
            data_of |= dict.fromkeys(map(id, measured_alike), data)
            for method, seeds in _methods(measured_alike).items():
                method_of |= dict.fromkeys(map(id, seeds), method)
    return [run.named(method_of[id(run)], data_of[id(run)]) for run in runs]


def same_data(first: Run, second: Run) -> bool:
    """Return whether two runs were measured on the same cases, images, masks and grid, with the same metric settings.

    Runs of earlier versions hold no fingerprints of their images, and the first of them none of their masks, which are
    then compared by the statistics of the raters.
    """
    if not _same_metrics(metric_settings(first.configuration), metric_settings(second.configuration)):
        return False
    if first.tested != second.tested:
        return False
    if not first.tested:
        return _counts(first) == _counts(second) and _source(first) == _source(second)
    own, other = (run.cases.drop_duplicates(_CASE).set_index(_CASE).sort_index() for run in (first, second))
    if not own.index.equals(other.index):
        return False
    images_known = IMAGE_FINGERPRINT in own and IMAGE_FINGERPRINT in other
    if images_known and not (own[IMAGE_FINGERPRINT] == other[IMAGE_FINGERPRINT]).all():
        return False
    if FINGERPRINT in own and FINGERPRINT in other:
        return bool((own[FINGERPRINT] == other[FINGERPRINT]).all())
    return all(
        np.allclose(own[name].astype(float), other[name].astype(float), rtol=_RELATIVE_TOLERANCE, equal_nan=True)
        for name in _RATER_COLUMNS
        if name in own and name in other
    )


def _same_metrics(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two settings of the metrics agree, those of extra metrics where both have a metric of the name."""
    shared = _extra_metrics(first) & _extra_metrics(second)

    def compared(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if _extra_metric(key) in (None, *shared)}

    return compared(first) == compared(second)


def _extra_metrics(settings: Mapping[str, Any]) -> set[str]:
    return {name for name in map(_extra_metric, settings) if name is not None}


def _extra_metric(key: str) -> str | None:
    """Return the name of the extra metric that a setting is of, such as `metrics.extra.NAME.scale`."""
    return key.removeprefix(_EXTRA).split(".")[0] if key.startswith(_EXTRA) else None


def _data_sets(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of one data set and split by the name of the data that they were measured on."""
    clusters = _clusters(runs, _measured, same_data)
    settings = [
        {**data_settings(cluster[0].configuration), **metric_settings(cluster[0].configuration)} for cluster in clusters
    ]
    cases = [_cases_named(cluster[0]) for cluster in clusters]
    return dict(zip(_names(runs[0].data, settings, cases), clusters, strict=True))


def _methods(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return runs measured on the same data by the name of their method."""
    named: dict[str, list[Run]] = {}
    for method, members in grouped(runs, lambda run: run.method).items():
        variants = _clusters(members, _method_text, _same_method)
        settings = [_settings_known(variant) for variant in variants]
        fallbacks = [f"settings {digest(f'{item!r}' for item in sorted(known.items()))}" for known in settings]
        unknown = {key for key in PARTLY_KNOWN if any(key not in known for known in settings)}
        certain = [{key: value for key, value in known.items() if key not in unknown} for known in settings]
        if len(set(map(str, certain))) < len(certain):
            partly = dict.fromkeys((TRAINING_CASES, TRAINING_CONTENT, TRAINING_SPACING), "unknown")
            certain = [partly | known for known in settings]
        names = _names(method, certain, fallbacks)
        named |= dict(zip(names, variants, strict=True))
    return named


def _clusters(
    runs: Sequence[Run], known: Callable[[Run], Hashable], alike: Callable[[Run, Run], bool]
) -> list[list[Run]]:
    """Divide runs into clusters in which each is like every other one, whatever the order of the runs.

    Runs that are compared by what both know may be like two others that differ from each other. None of these is then
    joined with runs that know more or less than itself.

    Args:
        runs: runs to divide.
        known: function from a run to all that it is compared by; runs with equal results are alike.
        alike: comparison of two runs by what both know.
    """
    groups = list(grouped(runs, known).values())
    pairs = np.eye(len(groups), dtype=bool)
    for one, two in combinations(range(len(groups)), 2):
        pairs[one, two] = pairs[two, one] = alike(groups[one][0], groups[two][0])
    _, component = connected_components(pairs, directed=False)
    clusters: list[list[Run]] = []
    for number in dict.fromkeys(component.tolist()):
        members = np.flatnonzero(component == number)
        if pairs[np.ix_(members, members)].all():
            together = {id(run) for position in members for run in groups[position]}
            clusters.append([run for run in runs if id(run) in together])
        else:
            clusters += [groups[position] for position in members]
    return clusters


def _measured(run: Run) -> str:
    """Return all that `same_data` compares, as text."""
    settings = sorted(metric_settings(run.configuration).items())
    if not run.tested:
        return repr((settings, sorted(_counts(run).items()), sorted(_source(run).items())))
    columns = _compared_columns(run)
    rows = run.cases.drop_duplicates(_CASE).sort_values(_CASE)[[*_CASE, *columns]]
    # values that are equal but for rounding are alike
    shown = [[f"{value:.6e}" if isinstance(value, float) else value for value in row] for row in rows.to_numpy()]
    return repr((settings, columns, shown))


def _compared_columns(run: Run) -> list[str]:
    """Return the columns of `cases.csv` by which a run's cases are compared, beside their ids."""
    found = [name for name in (FINGERPRINT, IMAGE_FINGERPRINT) if name in run.cases]
    return found if FINGERPRINT in found else [*found, *(name for name in _RATER_COLUMNS if name in run.cases)]


def _method_text(run: Run) -> str:
    return repr(sorted(method_settings(run.configuration).items()))


def _same_method(first: Run, second: Run) -> bool:
    return same_method(method_settings(first.configuration), method_settings(second.configuration))


def _settings_known(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the settings of runs of one method, with what any of them knows."""
    return {key: value for run in runs for key, value in method_settings(run.configuration).items()}


def _names(name: str, settings: Sequence[Mapping[str, Any]], fallbacks: Sequence[str]) -> list[str]:
    """Return one name per group of runs, with the settings that differ between the groups.

    Args:
        name: name that the groups share.
        settings: settings of each group by dotted key.
        fallbacks: what else tells the groups apart.
    """
    if len(settings) == 1:
        return [name]
    differing = _differing(settings)
    of_all = {key: values for key, values in differing.items() if all(key in group for group in settings)}
    if of_all and len(set(zip(*of_all.values(), strict=True))) == len(settings):
        differing = of_all
    titles = _titles(list(differing))
    names = []
    for group in settings:
        shown = [f"{titles[key]}={_value_text(group.get(key))}" for key in list(differing)[:_MOST_NAMED]]
        if len(differing) > _MOST_NAMED:
            shown.append(f"settings {digest(f'{key}={group.get(key)}' for key in differing)}")
        names.append(", ".join([name, *shown]))
    if len(set(names)) < len(names):
        names = [f"{own}, {fallback}" for own, fallback in zip(names, fallbacks, strict=True)]
    return names


def _differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return the keys whose values differ, with their values; of keys that say the same, the shortest."""
    keys = sorted({key for group in settings for key in group}, key=lambda key: (key.count("."), key))
    found: dict[str, tuple[str, ...]] = {}
    for key in keys:
        values = tuple(_value_text(group.get(key)) for group in settings)
        repeated = any(key.split(".")[-1] == known.split(".")[-1] and values == found[known] for known in found)
        if len(set(values)) > 1 and not repeated:
            found[key] = values
    return found


def _titles(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each dotted key, the key itself where another ends likewise or the part says nothing."""
    last = {key: key.split(".")[-1] for key in keys}
    ends = list(last.values())
    return {
        key: key.replace("._target_", "") if ends.count(end) > 1 or end == "_target_" else end
        for key, end in last.items()
    }


def _value_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value_text, value))}]"
    return str(value).removeprefix("edue_lightning.")


def _cases_named(run: Run) -> str:
    """Return the number of the run's cases and a digest of their images and masks."""
    if not run.tested:
        return f"cases of {run.folder}"
    rows = run.cases.sort_values(_CASE)[[*_CASE, *_compared_columns(run)]].astype(str)
    return f"{run.cases['case_id'].nunique()} cases {digest(' '.join(row) for row in rows.to_numpy().tolist())}"


def _counts(run: Run) -> dict[tuple[str, str], int]:
    table = run.metrics
    keys = zip(table["structure"], table["metric"], strict=True)
    return dict(zip(keys, (table["n_cases"] + table["n_undefined"]).tolist(), strict=True))


def _source(run: Run) -> dict[str, Any]:
    settings = data_settings(run.configuration)
    return {key: value for key, value in settings.items() if key.startswith(("data.source", "data.root", "data.frac"))}


def grouped(runs: Sequence[Run], key: Callable[[Run], GroupKey]) -> dict[GroupKey, list[Run]]:
    """Return the runs of each key, in their order."""
    groups: dict[GroupKey, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups
