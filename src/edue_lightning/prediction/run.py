"""Prediction of new images into a folder: the body of `predict`."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import yaml
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from edue_lightning import __version__
from edue_lightning.atomic import write_whole
from edue_lightning.config.build import build_inference_changes
from edue_lightning.config.schema import check_configuration
from edue_lightning.config.slices import chosen_slicing
from edue_lightning.data.images import ImageError, parts_of
from edue_lightning.data.listing import PREDICTION_FILE, RECORDS
from edue_lightning.data.new_images import ImageCase, find_images, warn_of_unoriented
from edue_lightning.errors import UserError
from edue_lightning.prediction.dicom_results import Maker
from edue_lightning.prediction.limits import rate_in_words
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.outputs import write_estimate
from edue_lightning.prediction.result_files import Format, result_files
from edue_lightning.prediction.triage_page import PAGE_FILE, triage_page
from edue_lightning.prediction.triage_table import OUTSIDE, UNKNOWN, properties_of, triage_frame
from edue_lightning.runs.folder import sole_writer
from edue_lightning.runs.record import command_line
from edue_lightning.text import is_result_of, named

log = logging.getLogger(__name__)

TRIAGE_FILE, FAILED_FILE = "triage.csv", "failed.csv"
_SECONDS_BETWEEN_LINES = 20.0
_VOLUME = 3
_STARTED = ".started"
_OVERLAYS = ("all", "flagged", "none")
# threads that write files, cases that wait for them, and values of their maps (0.5 GB)
_MOST_THREADS, _MOST_WAITING, _MOST_VALUES_WAITING = 4, 8, 2**27
_VERSION = 6
"""Number of the code's version that made a prediction, raised whenever its results change for the same settings."""


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
    mask: dict[str, Any] | None = None
    format: str | None = None
    overlay: str = "all"
    members: bool = False
    slice_axis: str | int | None = None
    slice_directions: str | None = None
    slice_window: list[float] | None = None
    slice_batch: int = 8


@dataclass(frozen=True)
class Predicted:
    """Result of a prediction.

    Attributes:
        triage: content of `triage.csv`.
        failed: reason by case or file, for those that could not be predicted.
    """

    triage: pd.DataFrame
    failed: Mapping[str, str]


def predict(configuration: Mapping[str, Any], folder: Path) -> Predicted:
    """Predict new images; `docs/predict.md` describes the content of the folder.

    Cases that the folder already contains are not predicted again, so an interrupted prediction is resumed.

    Args:
        configuration: resolved and plain, as `conf/predict.yaml` composes it.
        folder: folder for the results, new or that of the same prediction.

    Raises:
        UserError: if the configuration, checkpoint or input cannot be used, before anything is predicted; if the folder
            contains another prediction and `overwrite` is false; or if a file cannot be written.
    """
    check_configuration(configuration, PredictConfiguration)
    for name in ("ckpt", "input", "output"):
        if configuration[name] is None:
            raise UserError(f"{name}: not set; give ckpt=PATH input=FILE|FOLDER|TABLE output=DIR")
    form = configuration.get("format")
    if form is not None and form not in get_args(Format):
        raise UserError(f"format={form}: choose among {', '.join(get_args(Format))}, or null for that of each image")
    overlay = configuration.get("overlay", _OVERLAYS[0])
    if overlay not in _OVERLAYS:
        raise UserError(f"overlay={overlay}: must be one of {', '.join(_OVERLAYS)}")
    path = Path(configuration["ckpt"])
    model = Model(
        path,
        configuration["device"],
        build_inference_changes(configuration.get("inference")),
        configuration["sensitivity"],
        configuration.get("mask"),
        chosen_slicing(configuration),
    )
    if model.slicing is not None:
        log.warning(
            "%s: predicts volumes slice by slice; its limits were set on 2D images, so no volume is flagged", path
        )
    elif not model.has_triage_data and not model.other_masks:
        log.warning(
            "%s: has no triage data, so no case will be flagged%s; resume the training if it was interrupted, or train "
            "with a triage_sensitivity",
            path,
            "" if model.density is None else " by its uncertainty",
        )
    given = Path(configuration["input"])
    if given.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"output={folder}: contains the input; choose another folder")
    found = find_images(given, model.image_format.channels, folder)
    failed = dict(found.problems)
    for name, reason in failed.items():
        log.error("%s: %s", name, reason)
    if model.image_format.spatial_dims == _VOLUME:
        warn_of_unoriented(found.cases, str(given))
    with sole_writer(folder, folder / RECORDS):
        _begin(configuration, folder)
        maker = Maker(__version__, type(model.method).__name__, _digest([path]))
        work = _Work(model, folder, form, maker, overlay, configuration.get("members", False))
        failed |= work.run(found.cases)
        rows = [row for case in found.cases for row in work.rows.get(case.case_id, [])]
        _warn_of_others(folder, set(work.rows))
        _warn_of_units(rows)
        _warn_of_resampling(len(work.resampled), len(found.cases))
        _warn_of_range(rows, model)
        frame = triage_frame(rows)
        write_whole(folder / TRIAGE_FILE, lambda path: frame.to_csv(path, index=False))
        reasons = pd.DataFrame({"case": list(failed), "reason": list(failed.values())})
        write_whole(folder / FAILED_FILE, lambda path: reasons.to_csv(path, index=False))
        _write_page(folder, frame, model)
    return Predicted(frame, failed)


def _write_page(folder: Path, frame: pd.DataFrame, model: Model) -> None:
    """Write the page on which the cases of a folder are looked at."""
    key = hashlib.sha256((folder / PREDICTION_FILE).read_bytes()).hexdigest()[:16]
    content = triage_page(frame, len(model.structures), key, _rate(model))
    write_whole(folder / PAGE_FILE, lambda path: path.write_text(content, encoding="utf-8"))


class _Work:
    """Prediction of the cases that a folder does not contain yet.

    Files are written by a few threads, while the next cases are predicted.
    """

    def __init__(
        self, model: Model, folder: Path, form: Format | None, maker: Maker, overlay: str, members: bool
    ) -> None:
        self.model = model
        self.folder = folder
        self.form = form
        self.maker = maker
        self.overlay = overlay
        self.members = members
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.failed: dict[str, str] = {}
        self.resampled: set[str] = set()
        self._threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "writer")
        self._waiting: deque[tuple[str, int, Future[list[dict[str, Any]]]]] = deque()

    def run(self, cases: Sequence[ImageCase]) -> dict[str, str]:
        """Predict the cases, and return the reasons why some failed.

        Raises:
            UserError: if a file cannot be written.
        """
        try:
            with logging_redirect_tqdm():
                for case in _with_progress(cases):
                    self._collect(case.case_id, partial(self._start, case))
                    # so many cases and voxels at most are kept in memory
                    while len(self._waiting) > _MOST_WAITING or self._values_waiting() > _MOST_VALUES_WAITING:
                        self._finish_first()
                while self._waiting:
                    self._finish_first()
        finally:
            # files that are being written are finished, those of other cases are not begun
            self._threads.shutdown(wait=True, cancel_futures=True)
        return self.failed

    def _values_waiting(self) -> int:
        # the next case needs no memory of the last one if nothing else waits
        return sum(values for _, values, _ in self._waiting) if len(self._waiting) > 1 else 0

    def _finish_first(self) -> None:
        case_id, _, writing = self._waiting.popleft()
        self._collect(case_id, writing.result)

    def _collect(self, case_id: str, rows: Callable[[], list[dict[str, Any]] | None]) -> None:
        """Add the rows of a case, once they are known, or the reason why it failed."""
        try:
            found = rows()
        except ImageError as error:
            self.failed[case_id] = str(error)
            log.error("%s: %s", case_id, error)
        else:
            if found is not None:
                self.rows[case_id] = found

    def _start(self, case: ImageCase) -> list[dict[str, Any]] | None:
        """Predict a case, and return None until its files are written; or return the rows of an earlier prediction."""
        record = self.folder / RECORDS / f"{case.case_id}.json"
        # everything that decides the prediction of this case beside the settings of the folder
        parts = [part for file in case.files for part in parts_of(file)]
        key = {"images": _digest(parts), "spacing": None if case.spacing is None else list(case.spacing)}
        if record.is_file():
            held = _read_record(record)
            if any(held[name] != value for name, value in key.items()):
                raise ImageError(
                    f"{case.files[0].name}: {self.folder} contains a prediction of this name from other image files or "
                    "another spacing; choose another output or set overwrite=true"
                )
            if all((self.folder / name).is_file() for name in held["files"]):
                if held["resampled"]:
                    self.resampled.add(case.case_id)
                rows: list[dict[str, Any]] = held["rows"]
                return rows
        prepared = self.model.read(case)
        if prepared.resampled:
            self.resampled.add(case.case_id)
        files = result_files(case.files[0], self.form, self.maker)
        try:
            found = self.model.estimate(prepared, self.members)
        except ImageError as error:
            raise ImageError(f"{case.files[0].name}: {error}") from error
        new_rows = self.model.rows(case.case_id, prepared, found)
        titles = {row["structure"]: _title(row) for row in new_rows if self._draws(row)}

        def write() -> list[dict[str, Any]]:
            # by this mark the files of a case whose record was never written are known
            started = record.with_name(f"{case.case_id}{_STARTED}")
            started.touch()
            try:
                names = write_estimate(self.folder, case, prepared, found, self.model.structures, titles, files)
            except ImageError:
                started.unlink()
                raise
            content = json.dumps({**key, "files": names, "rows": new_rows, "resampled": prepared.resampled})
            # last, since the record marks the case as finished
            write_whole(record, lambda path: path.write_text(content))
            started.unlink()
            return new_rows

        kept = found.members + 3 if self.members else 3
        self._waiting.append((case.case_id, kept * found.probability.numel(), self._threads.submit(write)))
        return None

    def _draws(self, row: Mapping[str, Any]) -> bool:
        return self.overlay == "all" or (self.overlay == "flagged" and bool(row["flagged"]))


def _read_record(record: Path) -> dict[str, Any]:
    """Return the record of a case.

    Raises:
        ImageError: if it is damaged.
    """
    try:
        held = json.loads(record.read_text())
        names = held["files"]
        # its own folder's files only, since they may be removed
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("names files elsewhere")
        # the first formats had no spacing, and did not say whether the case was resampled
        return {
            "images": held["images"],
            "spacing": held.get("spacing"),
            "files": names,
            "rows": list(held["rows"]),
            "resampled": bool(held.get("resampled", False)),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{record}: is damaged; remove it, or set overwrite=true") from error


def _begin(configuration: Mapping[str, Any], folder: Path) -> None:
    """Record the settings of the prediction, or check that the folder has the same ones."""
    path = folder / PREDICTION_FILE
    settings = {
        "version": _VERSION,
        "checkpoint": _digest([Path(configuration["ckpt"])]),
        **{name: configuration.get(name) for name in ("sensitivity", "mask", "format")},
        "inference": _changes_of(configuration.get("inference")),
        "overlay": configuration.get("overlay", "all"),
        "members": configuration.get("members", False),
        **{name: configuration.get(name) for name in ("slice_axis", "slice_directions", "slice_window")},
    }
    if path.is_file() and not configuration["overwrite"]:
        try:
            held = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            held = None
        differing = [name for name, value in settings.items() if not isinstance(held, dict) or held.get(name) != value]
        if differing:
            # a prediction by an earlier version of this code has no number, or a lower one
            what = "version of this program" if "version" in differing else "checkpoint or other settings"
            raise UserError(
                f"{folder}: contains a prediction by another {what}; choose another output or set overwrite=true"
            )
        return
    others = [path.name for path in folder.iterdir() if path.name not in (".lock", RECORDS)]
    if others and not configuration["overwrite"]:
        raise UserError(
            f"{folder}: contains {others[0]}, which is not part of a prediction; choose another output or set "
            "overwrite=true"
        )
    (folder / RECORDS).mkdir(exist_ok=True)
    _remove_earlier(folder)
    content = yaml.safe_dump({**configuration, **settings, "command": command_line()}, sort_keys=False)
    write_whole(path, lambda temporary: temporary.write_text(content))


def _changes_of(inference: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the settings that a node `inference` changes; None for none, as earlier versions recorded it."""
    return {
        name: value for name, value in (inference or {}).items() if name != "_target_" and value is not None
    } or None


def _remove_earlier(folder: Path) -> None:
    """Remove an earlier prediction: its tables, the files that its records list, and those of unfinished cases."""
    for name in (TRIAGE_FILE, FAILED_FILE, PAGE_FILE):
        (folder / name).unlink(missing_ok=True)
    for record in (folder / RECORDS).glob("*.json"):
        with suppress(ImageError):
            for name in _read_record(record)["files"]:
                (folder / name).unlink(missing_ok=True)
        record.unlink()
    for started in (folder / RECORDS).glob(f"*{_STARTED}"):
        for path in folder.iterdir():
            if is_result_of(started.name.removesuffix(_STARTED), path.name):
                path.unlink()
        started.unlink()


def _warn_of_others(folder: Path, cases: Set[str]) -> None:
    """Warn of cases in the folder that are no longer in the input, or failed now."""
    held = {path.name.removesuffix(end) for end in (".json", _STARTED) for path in (folder / RECORDS).glob(f"*{end}")}
    others = sorted(held - cases)
    if others:
        log.warning(
            "%s: also contains earlier files of %s, which this input does not give or which failed now; overwrite=true "
            "removes them",
            folder,
            named(others, most=1),
        )


def _warn_of_units(rows: Sequence[Mapping[str, Any]]) -> None:
    """Warn of cases whose score cannot be compared, since their voxel size is unknown."""
    cases = {row["case"] for row in rows if _needs_voxel_size(row)}
    if cases:
        log.warning(
            "%d cases are not flagged, since their voxel size is unknown: give it in the column spacing of a table",
            len(cases),
        )


def _warn_of_resampling(resampled: int, cases: int) -> None:
    """Warn of cases whose volumes are not those of their mask files."""
    if resampled:
        log.warning(
            "%d of the %d cases are resampled for the model: the volumes and sums in %s are measured on its voxels, "
            "so volumes differ from those of the mask files, which have the voxels of the images",
            resampled,
            cases,
            TRIAGE_FILE,
        )


def _warn_of_range(rows: Sequence[Mapping[str, Any]], model: Model) -> None:
    """Warn of cases outside of the training's range, with what they differ in most often."""
    outside = {row["case"]: row["out_of_distribution"] for row in rows if row["out_of_distribution"]}
    if outside:
        names = Counter(name for text in outside.values() for name in properties_of(text))
        shown = ", ".join(f"{name}: {count}" for name, count in names.most_common(3))
        rate = _rate(model)
        log.warning(
            "%d of %d cases lie %s (%s): they are flagged, and estimates such as the expected Dice are withheld. %s",
            len(outside),
            len({row["case"] for row in rows}),
            OUTSIDE,
            shown,
            rate,
        )


def _rate(model: Model) -> str:
    return rate_in_words(model.false_alarms, None if model.triage is None else model.triage.validation_cases)


def _with_progress(cases: Sequence[ImageCase]) -> Iterator[ImageCase]:
    """Yield the cases with a progress bar on a terminal, otherwise with a line from time to time."""
    last = time.monotonic()
    for number, case in enumerate(tqdm(cases, unit="case", disable=None), 1):
        yield case
        if not sys.stderr.isatty() and time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("%d of %d cases", number, len(cases))


def _title(row: Mapping[str, Any]) -> str:
    if row["flagged"]:
        return f"review: {row['flag_reason']}"
    if _needs_voxel_size(row):
        return f"not compared, since the voxel size is unknown: {row['score']}"
    flag = "no threshold" if row["flagged"] is None else "no flag"
    return f"{flag}, {row['score']} {row['score_value']:.4g}"


def _needs_voxel_size(row: Mapping[str, Any]) -> bool:
    """Return whether a case's score cannot be compared with the threshold, since its voxel size is unknown."""
    known = row["flagged"] is not None or row["uncertainty"] is not None
    return not known and row["threshold"] is not None and row["voxel_size"] == UNKNOWN


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ImageError(f"{path.name}: cannot be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()
