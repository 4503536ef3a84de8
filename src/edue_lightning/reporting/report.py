"""The report of a comparison: one self-contained HTML page, with its tables and figures as files beside it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from edue_lightning.reporting.caveats import caveats
from edue_lightning.reporting.charts.draw import FigureForm
from edue_lightning.reporting.charts.of_runs import UniqueNames, file_name
from edue_lightning.reporting.comparison import (
    best_methods,
    compare,
    comparison_table,
    group_by_subject,
    paired_differences,
    shown_metrics,
    to_markdown,
)
from edue_lightning.reporting.findings import Finding, Verdict
from edue_lightning.reporting.folds import pool_folds
from edue_lightning.reporting.identity import distinguish
from edue_lightning.reporting.latex import latex_table
from edue_lightning.reporting.matrix import LEGEND, matrix_findings, matrix_lines
from edue_lightning.reporting.out_of_distribution import with_detection
from edue_lightning.reporting.page.content import PageContent, report_page
from edue_lightning.reporting.terminal_table import terminal_tables
from edue_lightning.reporting.verdict import judge
from edue_lightning.reporting.verdict_text import PARTS, summary, table
from edue_lightning.runs.files import Run, find_runs

FILES = "files.txt"
"""File of a report's folder that lists its figures and LaTeX tables, which the next report there removes."""

_OWN_FOLDERS = ("figures", "latex")
_MATRIX = "Against every other method"


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
        figures: folder with every figure as PNG and SVG, for papers also as PDF.
        latex: folder with the tables in LaTeX.
    """

    tables: str
    folder: Path
    html: Path
    comparison: Path
    verdict: Path
    markdown: Path
    figures: Path
    latex: Path


def write_report(runs_folder: Path, output: Path, reference: str, figures: FigureForm = "screen") -> Report:
    """Compare every finished run below a folder.

    The report is derived from the runs, which are only read; an earlier report in `output` is replaced.

    Args:
        runs_folder: folder that holds the runs, at any depth.
        output: folder for `comparison.csv`, `differences.csv`, `verdict.csv`, `matrix.csv`, `comparison.md`,
            `figures/`, `latex/`, `report.html`, and `files.txt`, the list of the figures and LaTeX tables.
        reference: name of the method to judge and to compare the others with; without a run of it there are neither
            differences nor a verdict.
        figures: size and fonts of the figures' files, see `charts.draw.FORMS`.

    Raises:
        UserError: if no run is finished, a run's file is damaged, two runs differ in nothing, or folds overlap.
    """
    runs = with_detection(distinguish(pool_folds(find_runs(runs_folder))))
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
        figures=output / _OWN_FOLDERS[0],
        latex=output / _OWN_FOLDERS[1],
    )
    matrix = matrix_findings(runs, verdict.candidate)
    tables, names = _value_tables(runs, comparison), UniqueNames()
    # an earlier report stays as it is until all values of this one are known
    for folder in (written.figures, written.latex):
        folder.mkdir(parents=True, exist_ok=True)
    _remove_earlier(output)
    before = _file_times(written)
    comparison.to_csv(written.comparison, index=False)
    differences.to_csv(output / "differences.csv", index=False)
    verdict.frame().to_csv(written.verdict, index=False)
    Verdict(verdict.candidate, matrix, []).frame().to_csv(output / "matrix.csv", index=False)
    for place, values in tables.items():
        path = written.latex / f"{names.unique(f'comparison_{file_name(place)}')}.tex"
        path.write_text(latex_table(values, table_caption(comparison, place), f"tab:{path.stem}"))
    against_best = table(verdict, "best baseline")
    if len(against_best):
        caption = f"{verdict.candidate} against the best baseline, which is chosen on validation data"
        (written.latex / "verdict.tex").write_text(latex_table(against_best, caption, "tab:verdict"))
    written.markdown.write_text("\n".join(_markdown(verdict, matrix, tables, comparison, warnings)))
    command = ["python", "-m", "edue_lightning.report", f"runs={runs_folder}", f"output={output}"]
    command += [f"reference={reference}", *([] if figures == "screen" else [f"figures={figures}"])]
    content = PageContent(
        runs=runs,
        reference=reference,
        verdict=verdict,
        matrix=matrix,
        tables=tables,
        captions={place: table_caption(comparison, place) for place in tables},
        differences=differences,
        warnings=warnings,
        command=shlex.join(command),
    )
    written.html.write_text(report_page(content, written.figures, figures), encoding="utf-8")
    new = [path for path, time in _file_times(written).items() if before.get(path) != time]
    (output / FILES).write_text("".join(f"{path.relative_to(output).as_posix()}\n" for path in sorted(new)))
    return written


def _remove_earlier(output: Path) -> None:
    """Remove the figures and LaTeX tables of an earlier report, of which this one may have no successor."""
    listed = output / FILES
    if not listed.is_file():
        return
    for line in listed.read_text().splitlines():
        folder, _, name = line.partition("/")
        if folder in _OWN_FOLDERS and Path(name).name == name:
            (output / folder / name).unlink(missing_ok=True)
    listed.unlink()


def _file_times(report: Report) -> dict[Path, int]:
    """Return the time of the last change of each figure and LaTeX table."""
    files = [path for folder in (report.figures, report.latex) for path in folder.iterdir() if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files}


def table_caption(comparison: pd.DataFrame, place: tuple[str, str, str]) -> str:
    """Return the caption of a table of values.

    Args:
        comparison: see `compare`.
        place: data set, split and structure.
    """
    data, split, structure = place
    rows = comparison[(comparison["data"] == data) & (comparison["split"] == split)]
    seeds = sorted(set(rows["seeds"]))
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    over = "1 seed" if seeds == [1] else f"mean over {number} seeds"
    return (
        f"{data}, {split}, {structure}: {int(rows['n_cases'].max())} cases; {over}, with 95 % bootstrap "
        "intervals; in bold the best value and all that are not distinguishable from it"
    )


def _value_tables(runs: Sequence[Run], comparison: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Return one table of texts per data set, split and structure: one row per method, the best values in bold."""
    groups = group_by_subject(runs)
    tables = {}
    for data, split, structure in comparison[["data", "split", "structure"]].drop_duplicates().itertuples(index=False):
        methods = {name: members for (name, *where), members in groups.items() if where == [data, split]}
        best = {metric: best_methods(methods, structure, metric) for metric in shown_metrics(comparison)}
        place = (str(data), str(split), str(structure))
        tables[place] = comparison_table(comparison, place, best, bold=lambda text: f"**{text}**")
    return tables


def _markdown(
    verdict: Verdict,
    matrix: Sequence[Finding],
    tables: dict[tuple[str, str, str], pd.DataFrame],
    comparison: pd.DataFrame,
    warnings: Sequence[str],
) -> Iterator[str]:
    yield from (f"- Caution: {warning}" for warning in warnings)
    yield ""
    yield from verdict_markdown(verdict)
    lines = matrix_lines(matrix)
    if lines:
        yield "\n".join([f"## {_MATRIX}\n", f"{LEGEND}.\n", "```text", *lines, "```", ""])
    for place, values in tables.items():
        yield f"### {', '.join(place)}\n\n{table_caption(comparison, place)}\n\n{to_markdown(values)}\n"


def verdict_markdown(verdict: Verdict) -> Iterator[str]:
    """Yield the parts of a verdict in Markdown: summary, remarks and tables."""
    yield f"## {verdict.candidate} against the other methods on the test cases\n"
    if verdict.findings:
        yield f"{summary(verdict)}\n"
    yield from (f"{remark}\n" for remark in verdict.remarks)
    for part, title in PARTS.items():
        found = table(verdict, part)
        if len(found):
            yield f"### {title}\n"
            yield f"{to_markdown(found)}\n"
