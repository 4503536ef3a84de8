"""Files of a run's folder, written and read back with their columns checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from edue_lightning.atomic import write_arrays, write_whole
from edue_lightning.errors import UserError
from edue_lightning.metrics import MEAN_STRUCTURE
from edue_lightning.metrics.bootstrap import group_numbers
from edue_lightning.text import reason_of
from edue_lightning.uncertainty import CASE_SCORES, MAP_SCORES

CONFIGURATION_FILE = "config.yaml"
METRICS_FILE = "metrics.csv"
VALIDATION_FILE = "validation.csv"
CASES_FILE = "cases.csv"
RELIABILITY_FILE = "reliability.csv"
QUALITY_CONTROL_FILE = "quality_control.csv"
DISTORTED_CASES_FILE = "distorted_cases.csv"
DETECTION_FILE = "detection.csv"
VALIDATION_DETECTION_FILE = "validation_detection.csv"
BOOTSTRAP_FILE = "bootstrap.npz"
PANELS_FILE = "panels.npz"
CASE_ARRAYS_FILE = "case_arrays.npz"
COST_FILE = "model.json"

IDENTITY = ("method", "data", "split")
METRICS_COLUMNS = (*IDENTITY, "structure", "metric", "value", "ci_low", "ci_high", "n_cases", "n_undefined")
QUALITY_CONTROL_COLUMNS = (*IDENTITY, "structure", "score", "flagged", "missed")
RELIABILITY_COLUMNS = (*IDENTITY, "structure", "bin_low", "bin_high", "count", "mean_probability", "frequency")
CASES_COLUMNS = (*IDENTITY, "case_id", "structure", "dice", "nll", "sv", "sv_star")
DISTORTION_SCORES = (*(name for name in CASE_SCORES if name != "predicted_area"), *MAP_SCORES)
DISTORTED_CASES_COLUMNS = (
    *(*IDENTITY, "case_id", "structure", "distortion", "severity"),
    # the scores of the first versions; later ones stand behind them
    *("sv", "sv_total", "entropy", "sv_normalised", "layer_agreement", "aula", "model_agreement", "dice"),
)
DETECTION_COLUMNS = (
    *(*IDENTITY, "structure", "score", "distortion", "severity"),
    *("auroc", "aupr", "n_clean", "n_distorted"),
)

DENSITY = "density"
"""Column of `cases.csv` and `distorted_cases.csv`: distance of an image from the training images.

It is missing where the checkpoint has no density."""

FINGERPRINT = "fingerprint"
"""Column of `cases.csv`: digest of the raters' masks of a case and structure, on their grid."""

IMAGE_FINGERPRINT = "image_fingerprint"
"""Column of `cases.csv`: digest of the case's image before it was prepared; absent in tables of earlier versions."""

UNIT = "unit"
"""Column of `cases.csv`: unit of areas, volumes and sums over an image; absent in tables of earlier versions."""

TEXT_COLUMNS = frozenset(
    (
        *(*IDENTITY, "structure", "metric", "case_id", "score", "distortion", "better", "no_interval", "group"),
        *(FINGERPRINT, IMAGE_FINGERPRINT, UNIT),
    )
)
"""Columns that are read as text, whatever they look like: a structure may be called `1`, `NA` or `nan`."""

CLEAN = "none"
"""Name of the undistorted images' distortion, of severity 0."""

POOLED_KINDS = "all"
"""Value of `distortion` in `detection.csv` for all kinds together."""

POOLED_SEVERITY = 0
"""Value of `severity` in `detection.csv` for all severities together."""

# arrays of `bootstrap.npz` beside the replicates
_LABELS = ("case_ids", "groups")
_NAMES, _REPLICATES = "names", "replicates"


@dataclass(frozen=True)
class Replicates:
    """Bootstrap replicates of a run.

    Attributes:
        case_ids: ids of the cases resampled, in their order.
        arrays: replicates by structure and metric, `[resamples]`.
        groups: group of each case, drawn together; empty where cases were drawn one by one, as earlier versions did.
    """

    case_ids: tuple[str, ...]
    arrays: Mapping[tuple[str, str], NDArray[np.float64]]
    groups: tuple[str, ...] = ()

    def pairs_with(self, other: Replicates) -> bool:
        """Return whether both have the same resamples: of the same cases, in the same groups, in any order."""
        return self._numbers == other._numbers

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Number that the draws have for each case: of its group, or its place where cases were drawn one by one."""
        numbers = group_numbers(self.groups).tolist() if self.groups else range(len(self.case_ids))
        return dict(zip(self.case_ids, numbers, strict=True))


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder.

    Attributes:
        folder: the run's folder.
        configuration: content of `config.yaml`.
        method: name of the method in tables: its label, or its label and what differs from other runs of that label.
        data: name of the data set in tables, likewise.
        split: train, val, test or all.
        metrics: content of `metrics.csv`; of `validation.csv` for a training without a test.
        cases: content of `cases.csv`; empty for a training without a test, as the next three.
        reliability: content of `reliability.csv`.
        quality_control: content of `quality_control.csv`.
        replicates: content of `bootstrap.npz`.
        cost: content of `model.json`; empty for an evaluation of a checkpoint.
        validation: content of `validation.csv`; None for an evaluation of a checkpoint, or an older training.
        distorted_cases: content of `distorted_cases.csv`; None where no distortions were measured.
        detection: content of `detection.csv`; None where no distortions were measured.
        validation_detection: content of `validation_detection.csv`, the same of the validation cases; None in addition
            for an evaluation of a checkpoint and for runs of earlier versions.
        case_arrays: content of `case_arrays.npz`, `[N, K, ...]` by name, in the order of the replicates' cases; empty
            in runs of earlier versions.
        folds: runs of the folds, of a run that `reporting.folds.pool_folds` made of them.
    """

    folder: Path
    configuration: Mapping[str, Any]
    method: str
    data: str
    split: str
    metrics: pd.DataFrame
    cases: pd.DataFrame
    reliability: pd.DataFrame
    quality_control: pd.DataFrame
    replicates: Replicates
    cost: Mapping[str, Any]
    validation: pd.DataFrame | None
    distorted_cases: pd.DataFrame | None
    detection: pd.DataFrame | None
    validation_detection: pd.DataFrame | None = None
    case_arrays: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    folds: tuple[Run, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """Method, data set and split."""
        return self.method, self.data, self.split

    @property
    def label(self) -> str:
        """Label of the method in the run's own tables."""
        return str(self.metrics["method"].iloc[0])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.configuration["seed"])

    @property
    def tested(self) -> bool:
        """Whether the run was measured beyond the validation of its training."""
        return (self.folder / METRICS_FILE).is_file()

    def named(self, method: str, data: str) -> Run:
        """Return the run under other names of its method and data set."""
        return replace(self, method=method, data=data)

    def value(self, structure: str, metric: str) -> float:
        """Return a value of `metrics.csv`; NaN where it is undefined or was not measured."""
        return self._values.get((structure, metric), np.nan)

    def validation_value(self, structure: str, metric: str) -> float:
        """Return a value of `validation.csv`; NaN where it is undefined or was not measured."""
        return self._validation_values.get((structure, metric), np.nan)

    def has_interval(self, structure: str, metric: str) -> bool:
        """Return whether enough independent cases and replicates define a metric, see the column `no_interval`."""
        return not self._obstacles.get((structure, metric), "")

    @cached_property
    def _obstacles(self) -> dict[tuple[str, str], str]:
        if "no_interval" not in self.metrics:
            return {}
        columns = (self.metrics[name] for name in ("structure", "metric", "no_interval"))
        return {(structure, metric): reason for structure, metric, reason in zip(*columns, strict=True)}

    def n_cases(self, structure: str, metric: str) -> int:
        """Return the number of cases that define a metric; 0 where it was not measured."""
        return self._n_cases.get((structure, metric), 0)

    def validation_n_cases(self, structure: str, metric: str) -> int:
        """Return the number of validation cases that define a metric; 0 where it was not measured."""
        return self._validation_n_cases.get((structure, metric), 0)

    def defining_cases(self, structure: str, names: Sequence[str]) -> frozenset[str] | None:
        """Return the ids of the cases that define some numbers, see `case_columns`; None where the run lacks one.

        A case defines an array of counts if it has a count. The mean over structures is defined by the cases that
        define all of them.
        """
        structures = self.cases["structure"].unique().tolist() if structure == MEAN_STRUCTURE else [structure]
        defined = np.ones(len(self.replicates.case_ids), dtype=bool)
        for name in structures:
            columns = self.case_columns(name, names)
            if columns is None:
                return None
            for values in columns.values():
                flat = values.reshape(len(values), -1)
                defined &= ~np.isnan(flat).any(axis=1)
                if values.ndim > 1:
                    defined &= (flat != 0).any(axis=1)
        return frozenset(np.array(self.replicates.case_ids)[defined].tolist()) if structures else None

    @cached_property
    def _cases_in_order(self) -> dict[str, tuple[int, pd.DataFrame]]:
        """Position and rows of each structure, in the order of the replicates' cases; without one that lacks a case."""
        ids = list(self.replicates.case_ids)
        found = {}
        for position, structure in enumerate(self.cases["structure"].unique().tolist()):
            own = self.cases[self.cases["structure"] == structure].set_index("case_id")
            if own.index.is_unique and set(ids) <= set(own.index):
                found[structure] = (position, own.loc[ids])
        return found

    def case_columns(self, structure: str, names: Sequence[str]) -> dict[str, NDArray[np.float64]] | None:
        """Return numbers of the cases, one structure's columns of `cases.csv` and arrays of `case_arrays.npz`.

        Args:
            structure: name of a structure, not `mean`.
            names: names of the numbers.

        Returns:
            `[N]` or `[N, ...]` by name, in the order of the replicates' cases; None where the run lacks one of them.
        """
        if structure not in self._cases_in_order:
            return None
        position, own = self._cases_in_order[structure]
        arrays = {name: values for name, values in self.case_arrays.items() if len(values) == len(own)}
        if not all(name in own or name in arrays for name in names):
            return None
        return {
            name: own[name].to_numpy(dtype=np.float64) if name in own else arrays[name][:, position].astype(np.float64)
            for name in names
        }

    @cached_property
    def _validation_n_cases(self) -> dict[tuple[str, str], int]:
        counts = {} if self.validation is None else _by_structure_and_metric(self.validation, "n_cases")
        return {key: int(count) for key, count in counts.items()}

    @cached_property
    def _n_cases(self) -> dict[tuple[str, str], int]:
        counts = _by_structure_and_metric(self.metrics, "n_cases")
        return {key: int(count) for key, count in counts.items()}

    @cached_property
    def _values(self) -> dict[tuple[str, str], float]:
        return _by_structure_and_metric(self.metrics)

    @cached_property
    def _validation_values(self) -> dict[tuple[str, str], float]:
        return {} if self.validation is None else _by_structure_and_metric(self.validation)


def write_table(frame: pd.DataFrame, columns: Sequence[str], path: Path) -> None:
    """Write a table, whole or not at all; floats keep every digit, and an undefined value is an empty field.

    Args:
        frame: table with at least `columns`; others are written after them.
        columns: columns of the file, in this order.
        path: path of the CSV file.
    """
    rest = [column for column in frame.columns if column not in columns]
    write_whole(path, partial(frame[[*columns, *rest]].to_csv, index=False))


def write_replicates(replicates: Replicates, path: Path) -> None:
    """Write bootstrap replicates as an `npz` archive of plain arrays.

    Row n of `replicates` `[N, resamples]` is that of the structure and metric in row n of `names` `[N, 2]`.
    """
    arrays = {
        _NAMES: np.array(list(replicates.arrays), dtype=np.str_).reshape(-1, 2),
        _REPLICATES: np.array(list(replicates.arrays.values()), dtype=np.float64),
    }
    arrays |= {name: np.array(getattr(replicates, name), dtype=np.str_) for name in _LABELS}
    write_arrays(path, arrays)


def find_runs(folder: Path) -> list[Run]:
    """Read every finished run below a folder, at any depth.

    Raises:
        UserError: if the folder does not exist or holds no finished run, or a run's file is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the runs, such as outputs or multirun")
    files = [*folder.rglob(METRICS_FILE), *folder.rglob(VALIDATION_FILE)]
    found = sorted({path.parent for path in files if (path.parent / CONFIGURATION_FILE).is_file()})
    if not found:
        raise UserError(
            f"{folder}: holds no finished run ({METRICS_FILE} or {VALIDATION_FILE} beside {CONFIGURATION_FILE})"
        )
    return [read_run(path) for path in found]


def read_run(folder: Path) -> Run:
    """Read one finished run; a training without a test is read from its validation.

    Raises:
        UserError: naming the file that does not exist or is damaged.
    """
    tested = (folder / METRICS_FILE).is_file() or not (folder / VALIDATION_FILE).is_file()
    file = folder / (METRICS_FILE if tested else VALIDATION_FILE)
    metrics = read_table(file, METRICS_COLUMNS)
    identities = metrics[list(IDENTITY)].drop_duplicates()
    if len(identities) != 1:
        raise UserError(f"{file}: must hold exactly one method, data set and split")
    method, data, split = identities.iloc[0]

    def table(name: str, columns: Sequence[str]) -> pd.DataFrame:
        return read_table(folder / name, columns) if tested else pd.DataFrame(columns=list(columns))

    return Run(
        folder=folder,
        configuration=read_mapping(folder / CONFIGURATION_FILE),
        method=method,
        data=data,
        split=split,
        metrics=metrics,
        cases=table(CASES_FILE, CASES_COLUMNS),
        reliability=table(RELIABILITY_FILE, RELIABILITY_COLUMNS),
        quality_control=table(QUALITY_CONTROL_FILE, QUALITY_CONTROL_COLUMNS),
        replicates=_read_replicates(folder / BOOTSTRAP_FILE, metrics) if tested else Replicates((), {}),
        cost=read_mapping(folder / COST_FILE) if (folder / COST_FILE).is_file() else {},
        validation=_read_optional(folder / VALIDATION_FILE, METRICS_COLUMNS),
        distorted_cases=_read_optional(folder / DISTORTED_CASES_FILE, DISTORTED_CASES_COLUMNS),
        detection=_read_optional(folder / DETECTION_FILE, DETECTION_COLUMNS),
        validation_detection=_read_optional(folder / VALIDATION_DETECTION_FILE, DETECTION_COLUMNS),
        case_arrays=_read_arrays(folder / CASE_ARRAYS_FILE) if (folder / CASE_ARRAYS_FILE).is_file() else {},
    )


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table with at least some columns; `TEXT_COLUMNS` are text, whatever they look like.

    Raises:
        UserError: naming the file, if it cannot be read or lacks a column.
    """
    try:
        # blanks are undefined in columns of numbers alone, so a name such as NA stays a name
        found = pd.read_csv(path, nrows=0).columns
        text = [column for column in found if column in TEXT_COLUMNS]
        undefined = {column: ["", "nan", "NaN"] for column in found if column not in TEXT_COLUMNS}
        frame = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=undefined)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); run the evaluation again") from error
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}; run the evaluation again")
    return frame


def read_mapping(path: Path) -> dict[str, Any]:
    """Read the keys and values of a JSON or YAML file.

    Raises:
        UserError: naming the file, if it cannot be read or holds something else.
    """
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values")
    return content


def _read_optional(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    return read_table(path, columns) if path.is_file() else None


def _by_structure_and_metric(table: pd.DataFrame, column: str = "value") -> dict[tuple[str, str], float]:
    columns = (table["structure"], table["metric"], table[column].astype(float))
    return {(structure, metric): value for structure, metric, value in zip(*columns, strict=True)}


def _read_arrays(path: Path) -> dict[str, NDArray]:
    """Read an `npz` archive of plain arrays.

    Raises:
        UserError: naming the file, if it cannot be read or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = {name: archive[name] for name in archive.files}
        if not all(isinstance(value, np.ndarray) for value in values.values()):
            raise ValueError("holds more than arrays")
    # decoders of damaged files raise errors of many kinds: BadZipFile, zlib.error, TokenError, ...
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); run the evaluation again") from error
    return values


def _read_replicates(path: Path, metrics: pd.DataFrame) -> Replicates:
    """Read the replicates of a run.

    Args:
        path: the file.
        metrics: content of `metrics.csv`, which names the structures and metrics.

    Raises:
        UserError: naming the file, if it cannot be read.
    """
    values = _read_arrays(path)
    if "case_ids" not in values:
        raise UserError(f"{path}: cannot be read (case_ids is missing); run the evaluation again")
    case_ids = tuple(map(str, values.pop("case_ids").tolist()))
    # absent in files of earlier versions
    groups = tuple(map(str, values.pop("groups").tolist())) if "groups" in values else ()
    if _NAMES in values:
        names, rows = values[_NAMES], values.get(_REPLICATES, np.empty((0, 0)))
        if names.shape[1:] != (2,) or rows.ndim > 2 or rows.shape[:1] != names.shape[:1]:
            raise UserError(f"{path}: cannot be read (names and replicates do not fit); run the evaluation again")
        arrays = {(structure, metric): row for (structure, metric), row in zip(names.tolist(), rows, strict=True)}
        return Replicates(case_ids, arrays, groups)
    # earlier versions joined the names, so those of the table tell them apart
    pairs = zip(metrics["structure"], metrics["metric"], strict=True)
    joined = {f"{structure}/{metric}": (structure, metric) for structure, metric in pairs}
    parted = {name: (name.partition("/")[0], name.partition("/")[2]) for name in values}
    return Replicates(case_ids, {(parted | joined)[name]: value for name, value in values.items()}, groups)
