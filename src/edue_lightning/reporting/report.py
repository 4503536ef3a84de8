"""The report of a comparison: one self-contained HTML page, with its tables and figures as files beside it."""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from edue_lightning.reporting.caveats import caveats
from edue_lightning.reporting.comparison import (
    best_methods,
    compare,
    comparison_table,
    group_by_subject,
    paired_differences,
    shown_metrics,
    to_markdown,
)
from edue_lightning.reporting.findings import OVER_DATA, Verdict
from edue_lightning.reporting.folds import pool_folds
from edue_lightning.reporting.identity import distinguish
from edue_lightning.reporting.matrix import LEGEND, matrix_findings, matrix_lines
from edue_lightning.reporting.page import html_list, html_table, page, write_figure
from edue_lightning.reporting.report_figures import drawings
from edue_lightning.reporting.tables import cost_table, detection_table, differences_table, selective_table
from edue_lightning.reporting.terminal_table import terminal_tables
from edue_lightning.reporting.verdict import judge
from edue_lightning.reporting.verdict_text import PARTS, sentences, summary, table
from edue_lightning.runs.files import Run, find_runs

_MATRIX = "Against every other method"
_DEFINITIONS = {
    "dice ↑": "overlap of the mean prediction (p ≥ 0.5) with the mask of at least half of the raters, mean over cases",
    "nll ↓": "cross-entropy in nats of the mean prediction against every rater, mean over voxels, raters and cases",
    "ece ↓": "mean gap between predicted probability and the share of raters who marked, in 15 bins, over all voxels",
    "brier ↓": "squared error of the mean prediction against every rater",
    "image_pearson ↑": "correlation over cases of the summed variance between members (SV) with that between raters",
    "image_spearman ↑": "the same by ranks",
    "image_spearman_normalised ↑": "rank correlation of SV and SV*, each over the area of its mask, so that no method "
    "wins because large structures have long edges",
    "pixel_pearson ↑": "correlation over voxels of the two variance maps, mean over cases",
    "…_total ↑": "the same with p(1 - p) of the mean prediction instead of the variance between members",
    "normalised AURC ↓": "how far the order of the cases by a score is from the ideal order by Dice: 0 ideal, 1 blind",
    "d-AUC ↓": "area between the quality-control curve of a score and the ideal one, which flags the poor cases first; "
    "its scale depends on the share of a method's own poor cases, so methods are not compared by it",
    "AUROC ↑": "separation of distorted from clean images by a score; 0.5 for a score without information",
}


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        tables: its short tables for a terminal, and caveats.
        folder: folder with all of its files.
        html: the self-contained page.
        comparison: `comparison.csv`.
        verdict: `verdict.csv`.
        markdown: verdict and tables in Markdown.
        figures: folder with every figure as PNG and SVG.
    """

    tables: str
    folder: Path
    html: Path
    comparison: Path
    verdict: Path
    markdown: Path
    figures: Path


def write_report(runs_folder: Path, output: Path, reference: str) -> Report:
    """Compare every finished run below a folder.

    The report is derived from the runs, which are only read; an earlier report in `output` is replaced.

    Args:
        runs_folder: folder that holds the runs, at any depth.
        output: folder for `comparison.csv`, `differences.csv`, `verdict.csv`, `matrix.csv`, `comparison.md`,
            `figures/` and `report.html`.
        reference: name of the method to judge and to compare the others with; without a run of it there are neither
            differences nor a verdict.

    Raises:
        UserError: if no run is finished, a run's file is damaged, two runs differ in nothing, or folds overlap.
    """
    runs = distinguish(pool_folds(find_runs(runs_folder)))
    comparison, differences, warnings = compare(runs), paired_differences(runs, reference), caveats(runs)
    if any(reference in (run.method, run.label) for run in runs):
        verdict = judge(runs, reference)
    else:
        missing = f"No run has the label {reference}, so there are no differences from it and no verdict on it."
        verdict = Verdict(reference, [], [missing])
    written = Report(
        tables="\n\n".join(filter(None, [terminal_tables(comparison), "\n".join(warnings)])),
        folder=output,
        html=output / "report.html",
        comparison=output / "comparison.csv",
        verdict=output / "verdict.csv",
        markdown=output / "comparison.md",
        figures=output / "figures",
    )
    written.figures.mkdir(parents=True, exist_ok=True)
    comparison.to_csv(written.comparison, index=False)
    differences.to_csv(output / "differences.csv", index=False)
    verdict.frame().to_csv(written.verdict, index=False)
    matrix = Verdict(verdict.candidate, matrix_findings(runs, verdict.candidate), [])
    matrix.frame().to_csv(output / "matrix.csv", index=False)

    lines = matrix_lines(matrix.findings)
    markdown = [*(f"- Caution: {warning}" for warning in warnings), "", *verdict_markdown(verdict)]
    if lines:
        markdown.append("\n".join([f"## {_MATRIX}\n", f"{LEGEND}.\n", "```text", *lines, "```", ""]))
    body = [
        f"<h1>Comparison of {sum(len(run.folds) or 1 for run in runs)} runs</h1>",
        *_notes(runs, warnings),
        *_verdict_section(verdict, _HTML),
    ]
    if lines:
        shown = html.escape("\n".join(lines))
        body += [f"<h2>{_MATRIX}</h2>", f"<p>{html.escape(LEGEND)}.</p>", f"<pre>{shown}</pre>"]
    groups = group_by_subject(runs)
    for data, split, structure in comparison[["data", "split", "structure"]].drop_duplicates().itertuples(index=False):
        title = f"{data}, {split}, {structure}"
        cases = int(comparison[(comparison["data"] == data) & (comparison["split"] == split)]["n_cases"].max())
        caption = (
            f"{cases} cases; mean over seeds, with 95 % bootstrap intervals; in bold the best value of a column and "
            "all that are not distinguishable from it"
        )
        methods = {name: members for (name, *where), members in groups.items() if where == [data, split]}
        best = {metric: best_methods(methods, structure, metric) for metric in shown_metrics(comparison)}
        values = comparison_table(comparison, (data, split, structure), best, bold=lambda text: f"**{text}**")
        markdown.append(f"### {title}\n\n{caption}\n\n{to_markdown(values)}\n")
        body += [f"<h2>{html.escape(title)}</h2>", f"<p>{caption}.</p>", html_table(values)]
        body += _further_tables(runs, differences, reference, (data, split, structure))
    body += _cost_section(runs)
    command = ["python", "-m", "edue_lightning.report"]
    command += [f"runs={runs_folder}", f"output={output}", f"reference={reference}"]
    for drawing in drawings(runs):
        caption = f"{drawing.caption} {_origin(shlex.join(command), drawing.runs)}"
        body.append(f"<h2>{html.escape(drawing.name.replace('_', ' '))}</h2>")
        body.append(write_figure(drawing.figure, drawing.name, caption, written.figures))
    body += ["<h2>Definitions</h2><ul>"]
    body += [f"<li><b>{term}</b>: {meaning}</li>" for term, meaning in _DEFINITIONS.items()]
    body += ["</ul>", *_runs_section(runs)]
    written.markdown.write_text("\n".join(markdown))
    written.html.write_text(page("\n".join(body)))
    return written


def _verdict_title(verdict: Verdict) -> str:
    return f"{verdict.candidate} against the other methods on the test cases"


@dataclass(frozen=True)
class _Form:
    """Functions that write the parts of a text in one language, each from plain text."""

    heading: Callable[[int, str], str]
    summary: Callable[[str], str]
    remark: Callable[[str], str]
    table: Callable[[pd.DataFrame], str]
    items: Callable[[Sequence[str]], str]


_MARKDOWN = _Form(
    heading=lambda level, text: f"{'#' * level} {text}\n",
    summary=lambda text: f"{text}\n",
    remark=lambda text: f"{text}\n",
    table=lambda values: f"{to_markdown(values)}\n",
    items=lambda texts: "\n".join(f"- {text}" for text in texts) + "\n",
)
_HTML = _Form(
    heading=lambda level, text: f"<h{level}>{html.escape(text)}</h{level}>",
    summary=lambda text: f"<p><b>{html.escape(text)}</b></p>",
    remark=lambda text: f'<p class="note">{html.escape(text)}</p>',
    table=html_table,
    items=html_list,
)


def verdict_markdown(verdict: Verdict) -> Iterator[str]:
    """Yield the parts of a verdict in Markdown: summary, remarks, tables, and sentences per data set."""
    return _verdict_section(verdict, _MARKDOWN)


def _verdict_section(verdict: Verdict, form: _Form) -> Iterator[str]:
    yield form.heading(2, _verdict_title(verdict))
    if verdict.findings:
        yield form.summary(summary(verdict))
    yield from map(form.remark, verdict.remarks)
    for part, title in PARTS.items():
        found = table(verdict, part)
        if len(found):
            yield form.heading(3, title)
            yield form.table(found)
    for data, said in sentences(verdict).items():
        yield form.heading(3, _data_title(data))
        yield form.items(said)


def _data_title(data: str) -> str:
    return "Over all data sets" if data == OVER_DATA else data


def _notes(runs: Sequence[Run], warnings: Sequence[str]) -> Iterator[str]:
    notes = {(run.data, run.configuration.get("image_note")) for run in runs}
    for data, note in sorted((data, note) for data, note in notes if note):
        yield f'<p class="note"><b>{html.escape(data)}</b>: {html.escape(str(note))}.</p>'
    yield from (f'<p class="note">{html.escape(warning)}.</p>' for warning in warnings)


def _further_tables(
    runs: Sequence[Run], differences: pd.DataFrame, reference: str, subject: tuple[str, str, str]
) -> Iterator[str]:
    different = differences_table(differences, *subject)
    if len(different):
        label = html.escape(reference)
        yield f"<p>Difference to <b>{label}</b> on the same cases (method minus {label}), 95 % intervals:</p>"
        yield html_table(different)
    selective = selective_table(runs, *subject)
    if len(selective):
        yield "<p>Poor segmentations, found by the score that is best on each method's validation data:</p>"
        yield html_table(selective)
    detection = detection_table(runs, *subject)
    if len(detection):
        yield "<p>AUROC of distorted images against clean ones, all severities, by kind of distortion:</p>"
        yield html_table(detection)


def _cost_section(runs: Sequence[Run]) -> Iterator[str]:
    costs = cost_table(runs)
    if len(costs):
        yield (
            "<h2>Cost</h2><p>Median over seeds; ratios against one plain U-Net of the same width. Times of a "
            "prediction are measured in alternation with the plain U-Net's; the ratio is the median over the rounds, "
            "with its quartiles. Training seconds include validation and depend on the machine: compare them within "
            "one report only.</p>"
        )
        yield html_table(costs)


def _origin(command: str, runs: Sequence[Run]) -> str:
    commits = ", ".join(html.escape(commit) for commit in dict.fromkeys(_commit(run) for run in runs))
    return f"Made by <code>{html.escape(command)}</code> from runs of commit {commits}."


def _commit(run: Run) -> str:
    return str(run.configuration.get("commit") or "unknown")


def _runs_section(runs: Sequence[Run]) -> Iterator[str]:
    yield "<h2>Runs</h2><ul>"
    for run in runs:
        method, data, split = run.key
        for part in run.folds or (run,):
            fold = f", fold {part.configuration['data']['fold']}" if run.folds else ""
            yield (
                f"<li>{html.escape(method)} on {html.escape(data)}, {split}, seed {run.seed}{fold}, commit "
                f"{html.escape(_commit(part))}: <code>{html.escape(str(part.configuration.get('command')))}</code></li>"
            )
    yield "</ul>"
