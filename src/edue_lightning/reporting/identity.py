"""Names that tell apart runs of one label: only seeds of one configuration, measured on the same data, share a name.

Two runs are measured on the same data if they have the same cases, masks, grid and settings of the metrics. They are
seeds of one method if they also share their label and the settings of `method_settings`. Where runs of one label or
data set differ, their names say in what: `edue, learning_rate=0.003`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edue_lightning.runs.files import FINGERPRINT, Run
from edue_lightning.runs.record import (
    PARTLY_KNOWN,
    data_settings,
    digest,
    method_settings,
    metric_settings,
    same_method,
)

_CASE = ["case_id", "structure"]
# statistics of a case that depend on its raters and its grid alone
_RATER_COLUMNS = ("sv_star", "sv_star_normalised", "area", "n_raters")
_RELATIVE_TOLERANCE = 1e-6
_MOST_NAMED = 3


def distinguish(runs: Sequence[Run]) -> list[Run]:
    """Return the runs in their order, renamed where a name would join runs that differ by more than their seed.

    Args:
        runs: see `find_runs`.
    """
    data_of: dict[int, str] = {}
    method_of: dict[int, str] = {}
    for members in _grouped(runs, lambda run: (run.data, run.split)).values():
        for data, measured_alike in _data_sets(members).items():
            data_of |= dict.fromkeys(map(id, measured_alike), data)
            for method, seeds in _methods(measured_alike).items():
                method_of |= dict.fromkeys(map(id, seeds), method)
    return [run.named(method_of[id(run)], data_of[id(run)]) for run in runs]


def same_data(first: Run, second: Run) -> bool:
    """Return whether two runs were measured on the same cases, masks and grid, with the same settings of the metrics.

    Runs of earlier versions hold no fingerprints of their masks; they are compared by the statistics of the raters.
    """
    if metric_settings(first.configuration) != metric_settings(second.configuration):
        return False
    if first.tested != second.tested:
        return False
    if not first.tested:
        return _counts(first) == _counts(second) and _source(first) == _source(second)
    own, other = (run.cases.drop_duplicates(_CASE).set_index(_CASE).sort_index() for run in (first, second))
    if not own.index.equals(other.index):
        return False
    if FINGERPRINT in own and FINGERPRINT in other:
        return bool((own[FINGERPRINT] == other[FINGERPRINT]).all())
    return all(
        np.allclose(own[name].astype(float), other[name].astype(float), rtol=_RELATIVE_TOLERANCE, equal_nan=True)
        for name in _RATER_COLUMNS
        if name in own and name in other
    )


def _data_sets(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of one data set and split by the name of the data that they were measured on."""
    clusters: list[list[Run]] = []
    for run in runs:
        alike = next((cluster for cluster in clusters if same_data(cluster[0], run)), None)
        if alike is None:
            clusters.append([run])
        else:
            alike.append(run)
    settings = [
        {**data_settings(cluster[0].configuration), **metric_settings(cluster[0].configuration)} for cluster in clusters
    ]
    cases = [_cases_named(cluster[0]) for cluster in clusters]
    return dict(zip(_names(runs[0].data, settings, cases), clusters, strict=True))


def _methods(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return runs measured on the same data by the name of their method."""
    named: dict[str, list[Run]] = {}
    for method, members in _grouped(runs, lambda run: run.method).items():
        variants: list[tuple[dict[str, Any], list[Run]]] = []
        for run in members:
            settings = method_settings(run.configuration)
            alike = next((own for known, own in variants if same_method(known, settings)), None)
            if alike is None:
                variants.append((settings, [run]))
            else:
                alike.append(run)
        known = [settings for settings, _ in variants]
        fallbacks = [f"settings {digest(f'{item!r}' for item in sorted(settings.items()))}" for settings in known]
        unknown = {key for key in PARTLY_KNOWN if any(key not in settings for settings in known)}
        known = [{key: value for key, value in settings.items() if key not in unknown} for settings in known]
        named |= dict(zip(_names(method, known, fallbacks), [own for _, own in variants], strict=True))
    return named


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
    """Return the number of the run's cases and a digest of what the raters drew on them."""
    if not run.tested:
        return f"cases of {run.folder}"
    columns = [FINGERPRINT] if FINGERPRINT in run.cases else [name for name in _RATER_COLUMNS if name in run.cases]
    rows = run.cases.sort_values(_CASE)[[*_CASE, *columns]].astype(str)
    return f"{run.cases['case_id'].nunique()} cases {digest(' '.join(row) for row in rows.to_numpy().tolist())}"


def _counts(run: Run) -> dict[tuple[str, str], int]:
    table = run.metrics
    keys = zip(table["structure"], table["metric"], strict=True)
    return dict(zip(keys, (table["n_cases"] + table["n_undefined"]).tolist(), strict=True))


def _source(run: Run) -> dict[str, Any]:
    settings = data_settings(run.configuration)
    return {key: value for key, value in settings.items() if key.startswith(("data.source", "data.root", "data.frac"))}


def _grouped(runs: Sequence[Run], key: Any) -> dict[Any, list[Run]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups
