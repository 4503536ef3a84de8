"""Finished runs, written as training writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from edue_lightning.metrics import SCORES, interval
from edue_lightning.reporting.panels import Panel, save_panels
from edue_lightning.runs.files import (
    CASES_COLUMNS,
    DETECTION_COLUMNS,
    DETECTION_FILE,
    DISTORTED_CASES_COLUMNS,
    DISTORTED_CASES_FILE,
    DISTORTION_SCORES,
    IDENTITY,
    METRICS_COLUMNS,
    QUALITY_CONTROL_COLUMNS,
    RELIABILITY_COLUMNS,
    VALIDATION_FILE,
    Replicates,
    write_replicates,
    write_table,
)
from edue_lightning.runs.tables import detection_table

METRICS = ("dice", "nll", "ece", "brier", "image_pearson", "image_spearman", "pixel_pearson")
RESAMPLES = 60
KINDS = ("noise", "blur")

Values = Mapping[str, float]


def panel(case_id: str, seed: int = 0) -> Panel:
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, 20, 20), dtype=np.uint8)
    for rater in range(4):
        masks[rater, 5 : 12 + rater, 4:13] = 1
    share = masks.mean(axis=0)
    mean = rng.random((20, 20)).astype(np.float32)
    return Panel(
        case_id=case_id,
        structure="nodule",
        image=rng.random((20, 20)).astype(np.float32),
        masks=masks,
        rater_variance=(share * (1 - share)).astype(np.float32),
        member_variance=(0.25 * rng.random((20, 20))).astype(np.float32),
        mean_probability=mean,
        sv=3.25,
        sv_star=4.5,
    )


def write_run(
    folder: Path, method: str, seed: int, *, cases: int = 9, shift: float = 0.0, data: str = "lidc", split: str = "test"
) -> Path:
    """Write a finished run with values that depend on its seed."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    identity = {"method": method, "data": data, "split": split}
    configuration = {"seed": seed, "label": method, "command": "train <it>", "commit": "abc", "image_note": "not & CT"}
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration))
    ids = tuple(f"case{i}" for i in range(cases))
    replicates = {("nodule", metric): shift + rng.random(RESAMPLES) for metric in METRICS}
    write_replicates(Replicates(ids, replicates), folder / "bootstrap.npz")
    rows = [
        (*identity.values(), *key, float(values.mean()), *interval(values), cases, 0)
        for key, values in replicates.items()
    ]
    write_table(pd.DataFrame(rows, columns=list(METRICS_COLUMNS)), METRICS_COLUMNS, folder / "metrics.csv")
    table = pd.DataFrame({"case_id": ids, "structure": "nodule", "dice": rng.random(cases), "nll": 0.1, "extra": 1})
    # what the raters drew is the same for all methods and seeds
    table = table.assign(sv=rng.random(cases), sv_star=np.random.default_rng(cases).random(cases), **identity)
    write_table(table, CASES_COLUMNS, folder / "cases.csv")
    edges = np.arange(16) / 15
    curve = pd.DataFrame({"bin_low": edges[:-1], "bin_high": edges[1:], "count": 10, "structure": "nodule"})
    curve = curve.assign(mean_probability=edges[:-1], frequency=edges[:-1] ** 2, **identity)
    curve.loc[3, ["count", "mean_probability", "frequency"]] = [0, np.nan, np.nan]
    write_table(curve, RELIABILITY_COLUMNS, folder / "reliability.csv")
    control = pd.DataFrame({"flagged": [0, 0.5, 1], "missed": [0.3, 0.1, 0], "structure": "nodule"}).assign(**identity)
    control = pd.concat([control.assign(score="sv"), control.assign(score="entropy", missed=[0.3, 0.05, 0])])
    write_table(control, QUALITY_CONTROL_COLUMNS, folder / "quality_control.csv")
    save_panels([panel("case0"), panel("case3", 1)], folder / "panels.npz")
    (folder / "model.json").write_text('{"parameters": 1234567, "networks": 1}')
    return folder


def write_values(
    folder: Path,
    method: str,
    seed: int,
    test: Mapping[str, Values],
    validation: Mapping[str, Values] | None = None,
    *,
    data: str = "lidc",
    noise: float = 0.0,
    cases: int = 9,
) -> Path:
    """Write a run with given values by structure and metric; its replicates scatter evenly around them by `noise`."""
    write_run(folder, method, seed, data=data, cases=cases)
    spread = noise * np.linspace(-1, 1, RESAMPLES)
    # in an order of the method's own, or all would rise and fall together
    own = np.random.default_rng(len(method)).permutation(spread)
    ids = tuple(f"case{i}" for i in range(cases))
    arrays = {
        (structure, metric): value + own for structure, values in test.items() for metric, value in values.items()
    }
    write_replicates(Replicates(ids, arrays), folder / "bootstrap.npz")
    write_table(_metrics(method, data, "test", test, cases), METRICS_COLUMNS, folder / "metrics.csv")
    if validation is not None:
        write_table(_metrics(method, data, "val", validation, cases), METRICS_COLUMNS, folder / VALIDATION_FILE)
    return folder


def write_validation(folder: Path, method: str, values: Values) -> None:
    write_table(_metrics(method, "lidc", "val", {"nodule": values}, 5), METRICS_COLUMNS, folder / VALIDATION_FILE)


def write_cost(folder: Path, **cost: float) -> None:
    (folder / "model.json").write_text(json.dumps(cost))


def write_distortions(folder: Path, method: str, seed: int, *, cases: int = 9, has_sv: bool = True) -> None:
    """Write scores of clean and distorted images, and how well they are told apart."""
    rng = np.random.default_rng(seed)
    identity = (method, "lidc", "test")
    rows = []
    for case in range(cases):
        for severity in range(6):
            scores = {name: rng.random() + severity for name in DISTORTION_SCORES}
            if not has_sv:
                scores["sv"] = np.nan
            kind = KINDS[case % 2] if severity else "none"
            rows.append((*identity, f"case{case}", "nodule", kind, severity, *scores.values(), 0.8))
    places = DISTORTED_CASES_COLUMNS[: DISTORTED_CASES_COLUMNS.index("severity") + 1]
    frame = pd.DataFrame(rows, columns=[*places, *DISTORTION_SCORES, "dice"])
    write_table(frame, DISTORTED_CASES_COLUMNS, folder / DISTORTED_CASES_FILE)
    rows = [
        (*identity, "nodule", score, kind, severity, area, area, cases, cases)
        for score, _ in SCORES.values()
        for kind in ("all", *KINDS)
        for severity in range(6)
        for area in [np.nan if score == "sv" and not has_sv else 0.5 + 0.08 * severity + 0.02 * rng.random()]
    ]
    write_table(pd.DataFrame(rows, columns=list(DETECTION_COLUMNS)), DETECTION_COLUMNS, folder / DETECTION_FILE)


def write_distorted_cases(folder: Path, table: pd.DataFrame, method: str, data: str, **distortions: object) -> None:
    """Write scores of distorted images, how well they are told apart, and the settings of the distortions of a run.

    Args:
        folder: the run's folder.
        table: content of `distorted_cases.csv` without the identity of the run.
        method: label of the run.
        data: its data set.
        distortions: `distortions` node of its configuration.
    """
    identity = dict(zip(IDENTITY, (method, data, "test"), strict=True))
    write_table(table.assign(**identity), DISTORTED_CASES_COLUMNS, folder / DISTORTED_CASES_FILE)
    write_table(detection_table(table).assign(**identity), DETECTION_COLUMNS, folder / DETECTION_FILE)
    record = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**record, "distortions": distortions}))


def _metrics(method: str, data: str, split: str, values: Mapping[str, Values], cases: int) -> pd.DataFrame:
    rows: Sequence[tuple[object, ...]] = [
        (method, data, split, structure, metric, value, np.nan, np.nan, cases, 0)
        for structure, of_structure in values.items()
        for metric, value in of_structure.items()
    ]
    return pd.DataFrame(rows, columns=list(METRICS_COLUMNS))
