"""Check of a data set before training: its cases, its problems, a summary and a contact sheet; the body of `check`."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from edue_lightning.config.build import ImageFormat, build, network_factory, refused_size
from edue_lightning.config.plan import PlannedConfiguration, PlanSettings, fingerprint_of, measured_node, with_plan
from edue_lightning.config.schema import check_configuration, configuration_folder
from edue_lightning.data import CaseSource, RaterDataModule
from edue_lightning.data.fingerprint import CaseFingerprint, Fingerprint, measure_training_case
from edue_lightning.data.source import Split
from edue_lightning.data.votes import CAVEAT
from edue_lightning.errors import UserError
from edue_lightning.reporting.contact_sheet import SheetPanel, choose_sheet_cases, contact_sheet, sheet_panel
from edue_lightning.reporting.data_advice import advice
from edue_lightning.reporting.data_overview import CASES_COLUMNS, CaseOverview, DataOverview, measure_case, number_text
from edue_lightning.runs.files import CASES_FILE, write_table
from edue_lightning.runs.record import write_configuration
from edue_lightning.text import counted, one_line

log = logging.getLogger(__name__)

SUMMARY_FILE = "summary.txt"
SHEET_FILE = "contact_sheet.png"
_SECONDS_BETWEEN_LINES = 20.0


@dataclass
class CheckConfiguration:
    """Top level of `conf/check.yaml`."""

    seed: int
    output: str
    data: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None


@dataclass(frozen=True)
class DataCheck:
    """Result of a check.

    Attributes:
        overview: numbers of the readable cases.
        problems: reasons why the data cannot be trained on, one line each; empty if it can.
        warnings: what is suspicious about the data or its splits, one line each, as in the log.
        advice: settings that fit the data, one line each, see `data_advice.advice`.
        plan: fingerprint of the training cases, and the plan that `train plan=auto` takes; None without one.
    """

    overview: DataOverview
    problems: Sequence[str]
    warnings: Sequence[str] = ()
    advice: Sequence[str] = ()
    plan: PlannedConfiguration | None = None

    def text(self) -> str:
        """Return the numbers of the data set, and the settings that fit it."""
        parts = [self.overview.text()]
        if self.advice:
            parts.append("\n".join(["settings that fit:", *(f"- {line}" for line in self.advice)]))
        if self.plan is not None:
            parts.append(self.plan.text())
        return "\n\n".join(parts)

    def problems_text(self) -> str:
        """Return the number of problems, and one line per problem."""
        number = counted(len(self.problems), "problem")
        return "\n".join([f"{number}, so this data cannot be trained on:", *self.problems])


def check(configuration: Mapping[str, Any], folder: Path) -> DataCheck:
    """Read all cases of a data set, one at a time, and write a summary, a table and a contact sheet.

    Args:
        configuration: resolved plain configuration of `conf/check.yaml`.
        folder: folder for the results, new or without results.

    Raises:
        UserError: if the configuration is invalid, the source cannot be opened at all, or the folder holds results.
    """
    check_configuration(configuration, CheckConfiguration)
    data = configuration.get("data")
    if data is None:
        known = ", ".join(sorted(path.stem for path in Path(configuration_folder(), "data").glob("[!_]*.yaml")))
        raise UserError(f"no data set to check; choose one with data=NAME, one of {known}")
    with _noted_warnings() as warnings:
        source, problems, splits, cases, training = _examine(configuration, data, folder)
    overview = DataOverview(
        data["name"], _note(data, source), source.structures, source.raters, cases, splits, _facts(source)
    )
    plan = None if problems else _plan(configuration, source, training)
    result = DataCheck(overview, problems, list(dict.fromkeys(warnings)), advice(data, source, cases), plan)
    _write(result, source, folder)
    return result


def _facts(source: CaseSource) -> Mapping[str, str]:
    """Return what only this data set has, by label."""
    if not source.exclusive:
        return source.facts
    return {**source.facts, "exclusive": "structures exclude each other (data.source.exclusive=true)"}


def _note(data: Mapping[str, Any], source: CaseSource) -> str | None:
    """Return the caveats on a data set, or None."""
    return "; ".join(filter(None, [data.get("note"), CAVEAT if source.votes else None])) or None


def _examine(
    configuration: Mapping[str, Any], data: Mapping[str, Any], folder: Path
) -> tuple[CaseSource, list[str], dict[str, Split], list[CaseOverview], list[CaseFingerprint]]:
    """Build the data set and measure its cases; return also its problems, and the split of each case.

    The last are the training cases as the plan needs them.
    """
    # reuses the source: building it again would read all files twice
    make_module = build({key: data[key] for key in data if key != "source"} | {"_partial_": True}, "data")
    source: CaseSource = build(data["source"], "data.source")
    write_configuration(configuration, data["name"], _note(data, source), folder)
    problems = list(source.problems)
    splits: dict[str, Split] = {}
    seen: Sequence[int] | None = None
    if not problems:
        try:
            module: RaterDataModule = make_module(source=source)
            splits = {record.case_id: split for split in get_args(Split) for record in module.splits[split]}
            seen = module.raters_seen("train")
            module.require(*get_args(Split))
        except UserError as error:
            problems.append(str(error))
    cases, training = _measure(source, problems, {case_id for case_id in splits if splits[case_id] == "train"}, seen)
    if configuration.get("network") is not None:
        problems += _refused_sizes(configuration["network"], data, source, cases)
    return source, problems, splits, cases, training


def _plan(
    configuration: Mapping[str, Any], source: CaseSource, training: Sequence[CaseFingerprint]
) -> PlannedConfiguration | None:
    """Return the plan of a training on the data, or None if none is asked for."""
    if configuration.get("plan") is None or configuration.get("network") is None:
        return None
    settings: PlanSettings = build(configuration["plan"], "plan")
    data = configuration["data"]
    # the cases were read with the voxels of the configuration
    on_own_voxels = measured_node(data, settings.keep) == data
    fingerprint = Fingerprint.of(source, training) if on_own_voxels else fingerprint_of(data, settings.keep)
    return with_plan(configuration, settings, fingerprint)


@contextmanager
def _noted_warnings() -> Iterator[list[str]]:
    """Collect the warnings that this package logs meanwhile."""
    lines: list[str] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(one_line(record.getMessage()))

    handler, package = Noting(logging.WARNING), logging.getLogger(__name__.partition(".")[0])
    package.addHandler(handler)
    try:
        yield lines
    finally:
        package.removeHandler(handler)


def _measure(
    source: CaseSource, problems: list[str], training_ids: Container[str], seen: Sequence[int] | None
) -> tuple[list[CaseOverview], list[CaseFingerprint]]:
    """Measure the readable cases, and add those that cannot be read to the problems.

    Cases with other axes or channels than most are among the problems already, and are left out.

    Args:
        source: the data set.
        problems: list that grows.
        training_ids: training cases.
        seen: positions of the raters that the training sees, or None for all.

    Returns:
        all cases, and the training cases as a plan needs them.
    """
    records = source.healthy()
    cases, training = [], []
    logged = time.monotonic()
    for number, record in enumerate(records, start=1):
        try:
            sample = source.load(record.case_id)
            cases.append(measure_case(record, sample))
            if record.case_id in training_ids:
                training.append(measure_training_case(sample if seen is None else sample.of_raters(seen)))
        except UserError as error:
            problems += str(error).splitlines()
        if time.monotonic() - logged > _SECONDS_BETWEEN_LINES:
            logged = time.monotonic()
            log.info("measured %d of %d cases", number, len(records))
    usual = Counter(case.kind for case in cases).most_common(1)
    return [case for case in cases if case.kind == usual[0][0]], training


def _refused_sizes(
    network: Mapping[str, Any], data: Mapping[str, Any], source: CaseSource, cases: Sequence[CaseOverview]
) -> list[str]:
    """Return one line per size that the network cannot take: that of the patches, or of the images."""
    if not cases:
        # without a case the number of axes is unknown
        return []
    make_network = network_factory(network, ImageFormat.of(source))
    patch = (data.get("patch") or {}).get("size")
    sizes = {case.size: f"case {case.record.case_id}" for case in reversed(cases)}
    if patch is not None:
        sizes = {tuple(patch): f"data.patch.size={list(patch)}"}
    reasons = {where: refused_size(make_network, source.channels, size) for size, where in sizes.items()}
    return [f"{where}: {reason}" for where, reason in reasons.items() if reason is not None]


def _write(result: DataCheck, source: CaseSource, folder: Path) -> None:
    overview = result.overview
    write_table(overview.cases_frame(), CASES_COLUMNS, folder / CASES_FILE)
    if overview.cases:
        _draw(overview, source, folder / SHEET_FILE)
    text = result.text()
    if result.warnings:
        number = counted(len(result.warnings), "warning")
        text += "\n\n" + "\n".join([f"{number}:", *result.warnings])
    if result.problems:
        text += "\n\n" + result.problems_text()
    (folder / SUMMARY_FILE).write_text(text + "\n")


def _draw(overview: DataOverview, source: CaseSource, path: Path) -> None:
    disagreement = np.array([case.sv_star.sum() for case in overview.cases])
    panels = [_panel(overview.cases[position], source) for position in choose_sheet_cases(disagreement)]
    who = "at least {} votes" if source.votes else "rater {}"
    raters = source.raters or [who.format(slot) for slot in range(1, len(panels[0].masks) + 1)]
    notes = [] if source.raters or source.votes else ["the same colour may be a different person in each case"]
    notes += [overview.note] if overview.note else []
    contact_sheet(panels, raters, overview.structures, notes).savefig(path, dpi=150)


def _panel(case: CaseOverview, source: CaseSource) -> SheetPanel:
    sample = source.load(case.record.case_id)
    raters = counted(case.n_raters, "rater")
    return sheet_panel(
        case_id=sample.case_id,
        caption=f"{raters}, SV* {number_text(case.sv_star.sum())} {case.unit}" if case.n_raters >= 2 else raters,
        image=sample.image.numpy(),
        masks=sample.masks.numpy(),
        valid=sample.valid.numpy(),
        spacing=sample.spacing,
        affine=None if sample.affine is None else sample.affine.numpy(),
        storage=source.storage,
    )
