"""Prediction of new images into a folder: the body of `predict`."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from edue_lightning.atomic import write_whole
from edue_lightning.config.schema import check_configuration
from edue_lightning.data.images import ImageError
from edue_lightning.data.new_images import ImageCase, find_images
from edue_lightning.errors import UserError
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.outputs import write_estimate
from edue_lightning.prediction.triage_table import triage_frame
from edue_lightning.runs.folder import sole_writer
from edue_lightning.runs.record import command_line

log = logging.getLogger(__name__)

TRIAGE_FILE, FAILED_FILE, SETTINGS_FILE, RECORDS = "triage.csv", "failed.csv", "prediction.yaml", "records"
_SECONDS_BETWEEN_LINES = 20.0


@dataclass
class PredictConfiguration:
    """Top level of `conf/predict.yaml`."""

    ckpt: str | None
    input: str | None
    output: str | None
    sensitivity: float | None
    overwrite: bool
    device: str
    inference: dict[str, Any] | None = None


@dataclass(frozen=True)
class Predicted:
    """What a prediction came to.

    Attributes:
        triage: content of `triage.csv`.
        failed: reason by case or file, of those that could not be predicted.
    """

    triage: pd.DataFrame
    failed: Mapping[str, str]


def predict(configuration: Mapping[str, Any], folder: Path) -> Predicted:
    """Predict new images as a configuration says; see `docs/predict.md` for what the folder will hold.

    Cases that the folder already holds are not predicted again, so that a prediction that was cut off goes on.

    Args:
        configuration: resolved and plain, as `conf/predict.yaml` composes it.
        folder: for the results; new, or that of the same prediction.

    Raises:
        UserError: for a configuration, checkpoint or input that cannot be used, before anything is predicted; if the
            folder holds another prediction, or what it holds was made from other images, and `overwrite` is false; or
            if a file cannot be written.
    """
    check_configuration(configuration, PredictConfiguration)
    for name in ("ckpt", "input", "output"):
        if configuration[name] is None:
            raise UserError(f"{name}: not set; give ckpt=PATH input=FILE|FOLDER|TABLE output=DIR")
    path = Path(configuration["ckpt"])
    model = Model(path, configuration["device"], configuration.get("inference"), configuration["sensitivity"])
    if model.triage is None:
        log.warning("%s: tells nothing of its validation cases, so no case is flagged; train it to its end", path)
    found = find_images(Path(configuration["input"]), model.image_format.channels, folder)
    failed = dict(found.problems)
    for name, reason in failed.items():
        log.error("%s: %s", name, reason)
    with sole_writer(folder, folder / RECORDS):
        _begin(configuration, folder)
        work = _Work(model, folder, bool(configuration["overwrite"]))
        failed |= work.run(found.cases)
        rows = [row for case in found.cases for row in work.rows.get(case.case_id, [])]
        frame = triage_frame(rows)
        write_whole(folder / TRIAGE_FILE, lambda path: frame.to_csv(path, index=False))
        reasons = pd.DataFrame({"case": list(failed), "reason": list(failed.values())})
        write_whole(folder / FAILED_FILE, lambda path: reasons.to_csv(path, index=False))
    return Predicted(frame, failed)


class _Work:
    """Predicts the cases that a folder does not hold yet."""

    def __init__(self, model: Model, folder: Path, overwrite: bool) -> None:
        self.model = model
        self.folder = folder
        self.overwrite = overwrite
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def run(self, cases: Sequence[ImageCase]) -> dict[str, str]:
        """Predict the cases, and return why some could not be."""
        failed: dict[str, str] = {}
        with logging_redirect_tqdm():
            for case in _told(cases):
                try:
                    self.rows[case.case_id] = self._rows(case)
                except ImageError as error:
                    failed[case.case_id] = str(error)
                    log.error("%s: %s", case.case_id, error)
        return failed

    def _rows(self, case: ImageCase) -> list[dict[str, Any]]:
        record = self.folder / RECORDS / f"{case.case_id}.json"
        digest = _digest(case.files)
        if record.is_file() and not self.overwrite:
            held = self._held(record)
            if held["images"] == digest:
                rows: list[dict[str, Any]] = held["rows"]
                return rows
            raise ImageError(
                f"{case.files[0].name}: {self.folder} holds a prediction of another image of this name, and nothing is "
                "overwritten; choose another output, or overwrite=true"
            )
        prepared = self.model.read(case)
        try:
            found = self.model.estimate(prepared)
        except ImageError as error:
            raise ImageError(f"{case.files[0].name}: {error}") from error
        rows = self.model.rows(case.case_id, prepared, found)
        titles = {row["structure"]: _title(row) for row in rows}
        names = write_estimate(self.folder, case, prepared, found, self.model.structures, titles)
        content = json.dumps({"images": digest, "files": names, "rows": rows}, indent=1)
        # last, since its presence says that the case is finished
        write_whole(record, lambda path: path.write_text(content))
        return rows

    def _held(self, record: Path) -> dict[str, Any]:
        try:
            held: dict[str, Any] = json.loads(record.read_text())
            held["images"], held["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImageError(f"{record}: is damaged; remove it, or overwrite=true") from error
        return held


def _begin(configuration: Mapping[str, Any], folder: Path) -> None:
    """Note the settings of the prediction, or check that the folder's are the same."""
    path = folder / SETTINGS_FILE
    settings = {
        "checkpoint": _digest([Path(configuration["ckpt"])]),
        **{name: configuration.get(name) for name in ("sensitivity", "inference")},
    }
    if path.is_file() and not configuration["overwrite"]:
        try:
            held = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            held = None
        if not isinstance(held, dict) or any(held.get(name) != value for name, value in settings.items()):
            raise UserError(
                f"{folder}: holds a prediction by another checkpoint or with other settings, and nothing is "
                "overwritten; choose another output, or overwrite=true"
            )
        return
    others = [path.name for path in folder.iterdir() if path.name not in (".lock", RECORDS)]
    if others and not configuration["overwrite"]:
        raise UserError(
            f"{folder}: holds {others[0]}, which is no prediction, and nothing is overwritten; choose another output, "
            "or overwrite=true"
        )
    (folder / RECORDS).mkdir(exist_ok=True)
    for record in (folder / RECORDS).glob("*.json"):
        record.unlink()
    content = yaml.safe_dump({**configuration, **settings, "command": command_line()}, sort_keys=False)
    write_whole(path, lambda temporary: temporary.write_text(content))


def _told(cases: Sequence[ImageCase]) -> Iterator[ImageCase]:
    """Yield the cases with a progress bar on a terminal, else with a line from time to time."""
    told = time.monotonic()
    for number, case in enumerate(tqdm(cases, unit="case", disable=None), 1):
        yield case
        if not sys.stderr.isatty() and time.monotonic() - told > _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            log.info("%d of %d cases", number, len(cases))


def _title(row: Mapping[str, Any]) -> str:
    flag = "look at it" if row["flagged"] else "no flag" if row["flagged"] is not None else "no threshold"
    return f"{flag}, {row['score']} {row['score_value']:.4g}"


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ImageError(f"{path.name}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()
