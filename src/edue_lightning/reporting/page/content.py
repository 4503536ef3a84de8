"""Content of the page of a report, section by section."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from edue_lightning.reporting.charts.chart import Chart
from edue_lightning.reporting.charts.differences import forest_chart
from edue_lightning.reporting.charts.draw import FigureForm, draw, write_files
from edue_lightning.reporting.charts.names import place_title, score_title, some_of
from edue_lightning.reporting.charts.of_runs import (
    Methods,
    Place,
    UniqueNames,
    calibration_of,
    detection_of,
    disagreement_of_runs,
    distorted_of,
    file_name,
    lowest_seed,
    quality_control_of,
    unit_of,
)
from edue_lightning.reporting.comparison import group_by_subject
from edue_lightning.reporting.figures import comparison_panel_figure
from edue_lightning.reporting.findings import Finding, Verdict
from edue_lightning.reporting.page.document import Section, document
from edue_lightning.reporting.page.elements import figure, method_name, metrics_table, warnings_box
from edue_lightning.reporting.page.gallery import gallery_cases, gallery_key
from edue_lightning.reporting.page.matrix_table import MATRIX_KEY, matrix_table
from edue_lightning.reporting.page.verdict_table import cost_cards, verdict_cards
from edue_lightning.reporting.panels import Panel, load_panels
from edue_lightning.reporting.tables import cost_table, detection_table, differences_table, selective_table
from edue_lightning.reporting.wording import headline
from edue_lightning.runs.files import PANELS_FILE, POOLED_KINDS, Run
from edue_lightning.text import counted

DEFINITIONS = {
    "Dice ↑": "overlap of the mask (mean prediction p ≥ 0.5, unless another rule is chosen) with that of at "
    "least half of the raters, mean over cases",
    "NLL ↓": "cross-entropy in nats of the mean prediction against every rater, mean over voxels, raters and cases",
    "ECE ↓": "mean gap between predicted probability and the share of raters who marked, in 15 bins, over all voxels",
    "Brier score ↓": "squared error of the mean prediction against every rater",
    "V, V*": "variance between the members of a model, and between the raters, at a voxel",
    "SV, SV*": "their sums over the image",
    "image-level correlation ↑": "correlation over cases of SV with SV*; the rank correlation is the same by ranks",
    "image-level rank correlation by size ↑": "rank correlation of SV and SV*, each over the area of its mask, "
    "so that no method wins because large structures have long edges",
    "pixel-level correlation ↑": "correlation over voxels of the two variance maps, mean over cases",
    "p(1 - p)": "the variance of a single network: the same correlations with p(1 - p) of the mean prediction "
    "instead of V",
    "soft Dice ↑": "Dice of the prediction and the raters' mean, both cut at several thresholds, mean over these",
    "GED² ↓": "squared generalised energy distance between the masks of the members and those of the raters",
    "AURC ↓": "mean of 1 - Dice over the n surest cases by a score, averaged over n: better masks lower it too",
    "normalised AURC ↓": "how far the order of the cases by a score is from the ideal order by Dice: 0 ideal, 1 blind",
    "d-AUC ↓": "area between the quality-control curve of a score and the ideal one, which flags the poor "
    "cases first; its scale depends on the share of a method's own poor cases, so methods are not compared by it",
    "AUROC ↑": "separation of distorted from clean images by a score; 0.5 for a score without information",
}


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """Content of a page.

    Attributes:
        runs: runs of the comparison, under the names that `distinguish` gives.
        reference: name of the method to compare the others with.
        verdict: verdict on it.
        matrix: findings of `matrix_findings`.
        tables: tables of texts by data set, split and structure.
        captions: their captions.
        differences: see `paired_differences`.
        warnings: see `caveats`.
        command: command that made the report.
    """

    runs: Sequence[Run]
    reference: str
    verdict: Verdict
    matrix: Sequence[Finding]
    tables: Mapping[Place, pd.DataFrame]
    captions: Mapping[Place, str]
    differences: pd.DataFrame
    warnings: Sequence[str]
    command: str

    def methods(self) -> list[str]:
        """Return the names of all methods, the reference first."""
        return sorted(dict.fromkeys(run.method for run in self.runs), key=lambda name: name != self.reference)

    def measured(self) -> dict[tuple[str, str], Methods]:
        """Return the seeds of the methods by data set and split, without trainings that were not tested."""
        found: dict[tuple[str, str], dict[str, list[Run]]] = {}
        for (method, data, split), members in group_by_subject([run for run in self.runs if run.tested]).items():
            found.setdefault((data, split), {})[method] = members
        return {
            where: {name: methods[name] for name in sorted(methods, key=lambda name: name != self.reference)}
            for where, methods in found.items()
        }


@dataclass(frozen=True)
class _Figures:
    """Folder and form of the files of figures, and the names that are taken."""

    folder: Path
    form: FigureForm
    names: UniqueNames = field(default_factory=UniqueNames)

    def html(self, charts: Iterable[Chart | None]) -> str:
        """Write charts as files, and return them as HTML."""
        return "".join(self._one(chart) for chart in charts if chart is not None)

    def _one(self, chart: Chart) -> str:
        chart = replace(chart, name=self.names.unique(chart.name))
        picture = write_files(draw(chart, self.form), chart.name, self.folder, self.form)
        if self.form == "screen":
            return figure(chart, picture)
        # the page keeps pictures of a screen's size and resolution
        shown = write_files(draw(chart), f"{chart.name}.screen", self.folder)
        try:
            return figure(chart, shown)
        finally:
            for ending in ("png", "svg"):
                shown.with_suffix(f".{ending}").unlink()


def report_page(content: PageContent, figures: Path, form: FigureForm) -> str:
    """Return the page, and write its figures as files.

    Args:
        content: what the page shows.
        figures: folder of the figures.
        form: size and fonts of the figures' files.

    Raises:
        UserError: if a run's panels do not exist or are damaged.
    """
    files = _Figures(figures, form)
    measured = content.measured()
    places = [
        ((data, split, structure), methods)
        for (data, split), methods in measured.items()
        for structure in next(iter(methods.values()))[0].reliability["structure"].unique()
    ]
    sections = [
        _differences(content, files),
        _of_places("Calibration", places, lambda place, methods: _calibration(content, files, place, methods)),
        _of_places("Quality control", places, lambda place, methods: _quality_control(content, files, place, methods)),
        _of_places("Disagreement", places, lambda place, methods: _disagreement(content, files, place, methods)),
        _of_places("Unusual images", places, lambda place, methods: _unusual(content, files, place, methods)),
        _cases(measured, files),
        _values(content),
        _costs(content),
        _definitions(),
        _origin(content),
    ]
    return document(_title(content), _lead(content), [section for section in sections if section], content.methods())


def _title(content: PageContent) -> str:
    methods, runs = content.methods(), sum(len(run.folds) or 1 for run in content.runs)
    data = some_of(list(dict.fromkeys(run.data for run in content.runs)))
    return f"{counted(len(methods), 'method')} on {data}: {counted(runs, 'run')} compared"


def _lead(content: PageContent) -> str:
    """Return the verdict in one sentence, the warnings, and the matrix of each data set."""
    verdict = content.verdict
    sentence = headline(verdict) if verdict.findings else " ".join(verdict.remarks) or headline(verdict)
    notes = {(run.data, run.configuration.get("image_note")) for run in content.runs}
    remarks = [] if not verdict.findings else verdict.remarks
    texts = [
        *(f"{data}: {note}" for data, note in sorted((d, str(n)) for d, n in notes if n)),
        *content.warnings,
        *remarks,
    ]
    parts = [f'<p class="lead">{html.escape(sentence)}</p>', warnings_box(list(dict.fromkeys(texts)))]
    for data in dict.fromkeys(finding.data for finding in content.matrix):
        of_data = [finding for finding in content.matrix if finding.data == data]
        caption = f"Every method against {of_data[0].method} on {place_title(data, 'test', of_data[0].structure)}"
        parts.append(matrix_table(of_data, caption))
    if content.matrix:
        parts.append(f"<p><small>{html.escape(MATRIX_KEY)}</small></p>")
    return "\n".join(parts)


def _of_places(
    title: str, places: Sequence[tuple[Place, Methods]], body: Callable[[Place, Methods], str]
) -> Section | None:
    """Return a section with one part per data set and structure; without parts if there is only one."""
    bodies = {place: body(place, methods) for place, methods in places}
    shown = {place: text for place, text in bodies.items() if text}
    if len(shown) < 2:
        return Section(title, "".join(shown.values())) if shown else None
    return Section(title, parts=[Section(place_title(*place), text) for place, text in shown.items()])


def _differences(content: PageContent, files: _Figures) -> Section | None:
    parts = []
    for data in dict.fromkeys(finding.data for finding in content.matrix):
        of_data = [finding for finding in content.matrix if finding.data == data]
        reference = of_data[0].method
        chart = forest_chart(
            of_data,
            name=f"differences_{file_name([data, 'test'])}",
            title=f"Differences from {reference} on {place_title(data, 'test', of_data[0].structure)}",
            caption=f"Each method minus {reference} on the same cases, with 95 % intervals over cases and "
            "seeds. The grey bar is "
            "the margin within which a difference does not matter; it is a share of the method's value for NLL "
            "and ECE. Each "
            "method has the read-out (V or p(1 - p)) and the score that are best on its validation data.",
        )
        if chart is not None:
            parts.append(Section(f"All methods on {data}", files.html([chart])))
    parts += [Section(title, body) for title, body in verdict_cards(content.verdict)]
    return Section(f"Differences from {content.verdict.candidate}", parts=parts) if parts else None


def _calibration(content: PageContent, files: _Figures, place: Place, methods: Methods) -> str:
    return files.html([calibration_of(methods, place, content.reference)])


def _quality_control(content: PageContent, files: _Figures, place: Place, methods: Methods) -> str:
    selective = _named(selective_table(content.runs, *place))
    shown = files.html([quality_control_of(methods, place, content.reference)])
    if len(selective):
        caption = "Poor segmentations, found by the score that is best on each method's validation data"
        shown += metrics_table(selective, caption, content.reference)
    return shown


def _named(selective: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the names of the scores that readers say."""
    columns = [column for column in selective.columns if str(column).startswith("score of")]
    return selective.assign(**{column: selective[column].map(score_title) for column in columns})


def _disagreement(content: PageContent, files: _Figures, place: Place, methods: Methods) -> str:
    by_value, by_rank = disagreement_of_runs(methods, place, content.reference)
    return f"{files.html([by_value])}<details><summary>The same by rank</summary>{files.html([by_rank])}</details>"


def _unusual(content: PageContent, files: _Figures, place: Place, methods: Methods) -> str:
    shown = files.html([detection_of(methods, place, content.reference), distorted_of(methods, place)])
    detection = detection_table(content.runs, *place)
    if len(detection):
        caption = "AUROC of distorted images against clean ones, all severities, by score and kind of distortion"
        shown += metrics_table(_by_method(detection), caption, content.reference)
    return shown


def _by_method(detection: pd.DataFrame) -> pd.DataFrame:
    """Return the AUROC with one row per method, and one column per score and kind of distortion."""
    kinds = [column for column in detection.columns if column not in ("method", "score")]
    rows: dict[str, dict[str, str]] = {method: {"method": method} for method in detection["method"].unique()}
    for score in detection["score"].unique():
        for kind in kinds:
            for _, row in detection[detection["score"] == score].iterrows():
                of = "all kinds" if kind == POOLED_KINDS else kind
                rows[row["method"]][f"{score_title(score)}, {of}"] = row[kind]
    return pd.DataFrame(list(rows.values())).fillna("")


def _cases(measured: Mapping[tuple[str, str], Methods], files: _Figures) -> Section | None:
    parts = []
    for (data, split), methods in measured.items():
        runs = lowest_seed(methods)
        by_case: dict[tuple[str, str], dict[str, Panel]] = {}
        for label, run in runs.items():
            # trained without panels
            if run.configuration.get("figures") is not False:
                for panel in load_panels(run.folder / PANELS_FILE):
                    by_case.setdefault((panel.case_id, panel.structure), {})[label] = panel
        for (case_id, structure), panels in by_case.items():
            note = runs[next(iter(panels))].configuration.get("image_note")
            name = f"heatmaps_{file_name([data, split, case_id, structure])}"
            write_files(comparison_panel_figure(panels, note), files.names.unique(name), files.folder, files.form)
        unit = unit_of({label: run.cases for label, run in runs.items()})
        shown = list(gallery_cases(by_case, unit))
        parts += [Section(heading, body, closed=number > 0) for number, (heading, body) in enumerate(shown)]
    if not parts:
        return None
    text = (
        "The same cases for every method, from little to much disagreement of the raters, for the lowest seed, "
        "cropped to the structure. Sums are over the whole image or volume."
    )
    return Section("Cases", f"<p>{text}</p>{gallery_key()}", parts)


def _values(content: PageContent) -> Section:
    parts = []
    for place, values in content.tables.items():
        shown = metrics_table(values, content.captions[place], content.reference)
        different = differences_table(content.differences, *place)
        if len(different):
            of = f"{content.reference} on the same cases (method minus {content.reference})"
            shown += metrics_table(different, f"Difference to {of}, 95 % intervals")
        parts.append(Section(", ".join(place), shown))
    return Section("Tables", parts=parts)


def _costs(content: PageContent) -> Section | None:
    costs, limits = cost_table(content.runs), cost_cards(content.verdict)
    if not len(costs) and not limits:
        return None
    text = (
        "<p>Median over seeds; ratios against one plain U-Net of the same width. Times of a prediction are measured in "
        "alternation with the plain U-Net's; the ratio is the median over the rounds, with its quartiles. Training "
        "seconds include validation and depend on the machine: compare them within one report only.</p>"
    )
    tables = [
        metrics_table(costs[costs["data"] == data].drop(columns="data"), f"Cost on {data}", content.reference)
        for data in (costs["data"].unique() if len(costs) else ())
    ]
    return Section("Cost", text + "".join(tables) + limits)


def _definitions() -> Section:
    terms = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}.</dd>" for term, text in DEFINITIONS.items())
    return Section("Definitions", f"<dl>{terms}</dl>")


def _origin(content: PageContent) -> Section:
    commits = ", ".join(dict.fromkeys(_commit(run) for run in content.runs))
    made = f"<p>Made by</p><pre>{html.escape(content.command)}</pre><p>from runs of commit {html.escape(commits)}.</p>"
    runs = "".join(_listed(content.runs))
    return Section(
        "How this report was made", f"{made}<details><summary>Commands of the runs</summary><ul>{runs}</ul></details>"
    )


def _listed(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        method, data, split = run.key
        for part in run.folds or (run,):
            fold = f", fold {part.configuration['data']['fold']}" if run.folds else ""
            yield (
                f"<li>{method_name(method)} on {html.escape(data)}, {split}, seed {run.seed}{fold}, commit "
                f"{html.escape(_commit(part))}: <code>{html.escape(str(part.configuration.get('command')))}</code></li>"
            )


def _commit(run: Run) -> str:
    return str(run.configuration.get("commit") or "unknown")
