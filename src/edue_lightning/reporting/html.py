"""The report: one self-contained HTML page, readable on a phone, with the tables and figures as files beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from edue_lightning.reporting.comparison import (
    compare,
    comparison_table,
    group_by_subject,
    paired_differences,
    to_markdown,
)
from edue_lightning.reporting.figures import (
    comparison_panel_figure,
    disagreement_scatter_figure,
    quality_control_figure,
    reliability_figure,
)
from edue_lightning.reporting.panels import Panel, load_panels
from edue_lightning.reporting.run_folder import PANELS_FILE, Run, find_runs

REFERENCE = "edue"
DIFFERENCE_METRICS = ("dice", "nll", "ece", "image_pearson", "image_spearman_normalised", "pixel_pearson")

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 70rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left; white-space: nowrap; }
img { max-width: 100%; height: auto; }
.note { background: #fff6dd; border-left: 4px solid #e69f00; padding: .6rem 1rem; }
code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere; }
"""

_DEFINITIONS = {
    "dice ↑": "overlap of the mean prediction (p ≥ 0.5) with the mask of at least half of the raters, mean over cases",
    "nll ↓": "cross-entropy in nats of the mean prediction against every rater, mean over voxels, raters and cases",
    "ece ↓": "mean gap between predicted probability and the share of raters who marked, in 15 bins, over all voxels",
    "brier ↓": "squared error of the mean prediction against every rater",
    "image_pearson ↑": "correlation over cases of the summed variance between members (SV) with that between raters",
    "image_spearman ↑": "the same by ranks",
    "image_spearman_normalised ↑": "by ranks, of SV and SV* each over the area of its mask, so that no method wins "
    "because large structures have long edges",
    "pixel_pearson ↑": "correlation over voxels of the two variance maps, mean over cases",
    "…_total ↑": "the same with p(1 - p) of the mean prediction in the place of the variance between members",
}


@dataclass(frozen=True)
class ReportPaths:
    """Where a report lies.

    Attributes:
        folder: that holds all of it.
        html: the self-contained page.
        comparison: `comparison.csv`.
        markdown: the tables in Markdown.
        figures: folder with every figure as PNG.
    """

    folder: Path
    html: Path
    comparison: Path
    markdown: Path
    figures: Path


def write_report(runs_folder: Path, output: Path) -> ReportPaths:
    """Compare every finished run below a folder.

    The report is derived from the runs, which are only read; an earlier report in `output` is replaced.

    Args:
        runs_folder: holds the runs, at any depth.
        output: folder for `comparison.csv`, `differences.csv`, `comparison.md`, `figures/` and `report.html`.

    Raises:
        UserError: if there is no finished run, a run's file is damaged, or two runs are the same method and seed.
    """
    runs = find_runs(runs_folder)
    comparison = compare(runs)
    differences = paired_differences(runs, REFERENCE)
    paths = ReportPaths(
        folder=output,
        html=output / "report.html",
        comparison=output / "comparison.csv",
        markdown=output / "comparison.md",
        figures=output / "figures",
    )
    paths.figures.mkdir(parents=True, exist_ok=True)
    comparison.to_csv(paths.comparison, index=False)
    differences.to_csv(output / "differences.csv", index=False)

    markdown = []
    body = [f"<h1>Comparison of {len(runs)} runs</h1>", *_notes(runs)]
    for data, split, structure in comparison[["data", "split", "structure"]].drop_duplicates().itertuples(index=False):
        title = f"{data}, {split}, {structure}"
        cases = int(comparison[(comparison["data"] == data) & (comparison["split"] == split)]["n_cases"].max())
        caption = f"{cases} cases; mean over seeds, with 95 % bootstrap intervals; the best value of a column in bold"
        table = comparison_table(comparison, data, split, structure, bold=lambda text: f"**{text}**")
        markdown.append(f"### {title}\n\n{caption}\n\n{to_markdown(table)}\n")
        body += [f"<h2>{html.escape(title)}</h2>", f"<p>{caption}.</p>", _html_table(table)]
        body += _differences_section(differences, data, split, structure)
    body += _cost_section(runs)
    for name, figure in _figures(runs):
        path = paths.figures / f"{name}.png"
        figure.savefig(path, dpi=110)
        body.append(f"<h2>{html.escape(name.replace('_', ' '))}</h2>{_image(figure, name)}")
    body += ["<h2>What the figures mean</h2><ul>"]
    body += [f"<li><b>{term}</b>: {meaning}</li>" for term, meaning in _DEFINITIONS.items()]
    body += ["</ul>", *_runs_section(runs)]
    paths.markdown.write_text("\n".join(markdown))
    paths.html.write_text(_page("\n".join(body)))
    return paths


def _page(body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>edue-lightning report</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    notes = {(run.key[1], run.configuration.get("image_note")) for run in runs}
    for data, note in sorted((data, note) for data, note in notes if note):
        yield f'<p class="note"><b>{html.escape(data)}</b>: {html.escape(str(note))}.</p>'


def _html_table(table: pd.DataFrame) -> str:
    """Return a table of texts, in which `**` marks bold."""

    def cell(text: object) -> str:
        escaped = html.escape(str(text))
        for tag in ("<b>", "</b>"):
            escaped = escaped.replace("**", tag, 1)
        return f"<td>{escaped}</td>"

    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table.to_numpy().tolist())
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _differences_section(differences: pd.DataFrame, data: str, split: str, structure: str) -> Iterator[str]:
    chosen = differences[
        (differences["data"] == data)
        & (differences["split"] == split)
        & (differences["structure"] == structure)
        & differences["metric"].isin(DIFFERENCE_METRICS)
    ]
    if chosen.empty:
        return
    table = pd.DataFrame({"method": list(dict.fromkeys(chosen["method"]))})
    for metric in DIFFERENCE_METRICS:
        rows = chosen[chosen["metric"] == metric].set_index("method").reindex(table["method"])
        numbers = rows[["difference", "ci_low", "ci_high"]].to_numpy(dtype=float).tolist()
        table[metric] = [
            "undefined" if value != value else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" for value, low, high in numbers
        ]
    yield f"<p>Difference to <b>{REFERENCE}</b> on the same cases (method minus {REFERENCE}), 95 % intervals:</p>"
    yield _html_table(table)


def _cost_section(runs: Sequence[Run]) -> Iterator[str]:
    rows = {
        run.key[0]: {"method": run.key[0], **{k: f"{v:,.0f}" for k, v in run.cost.items()}} for run in runs if run.cost
    }
    if rows:
        yield "<h2>Cost</h2><p>Training seconds are one machine's and include validation; compare, don't quote.</p>"
        yield _html_table(pd.DataFrame(list(rows.values())).rename(columns=lambda name: name.replace("_", " ")))


def _figures(runs: Sequence[Run]) -> Iterator[tuple[str, Figure]]:
    """Yield calibration curves, scatter plots and panels; of several seeds the lowest is drawn."""
    first_seed = {
        subject: min(members, key=lambda run: run.seed) for subject, members in group_by_subject(runs).items()
    }
    for data, split in dict.fromkeys((data, split) for _, data, split in first_seed):
        drawn = {run.key[0]: run for (_, d, s), run in first_seed.items() if (d, s) == (data, split)}
        for structure in dict.fromkeys(next(iter(drawn.values())).reliability["structure"]):
            name = f"{data}_{split}_{structure}"
            curves = {label: _of_structure(run.reliability, structure) for label, run in drawn.items()}
            yield f"calibration_{name}", reliability_figure(curves)
            controls = {label: _of_structure(run.quality_control, structure) for label, run in drawn.items()}
            yield f"quality_control_{name}", quality_control_figure(controls)
            cases = {label: _of_structure(run.cases, structure) for label, run in drawn.items()}
            yield f"disagreement_{name}", disagreement_scatter_figure(cases)
        for (case_id, structure), panels in _panels_by_case(drawn).items():
            figure = comparison_panel_figure(panels, next(iter(drawn.values())).configuration.get("image_note"))
            yield f"heatmaps_{data}_{split}_{case_id}_{structure}", figure


def _of_structure(frame: pd.DataFrame, structure: str) -> pd.DataFrame:
    return frame[frame["structure"] == structure]


def _panels_by_case(runs: Mapping[str, Run]) -> dict[tuple[str, str], dict[str, Panel]]:
    by_case: dict[tuple[str, str], dict[str, Panel]] = {}
    for label, run in runs.items():
        for panel in load_panels(run.folder / PANELS_FILE):
            by_case.setdefault((panel.case_id, panel.structure), {})[label] = panel
    return by_case


def _image(figure: Figure, name: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">'


def _runs_section(runs: Sequence[Run]) -> Iterator[str]:
    yield "<h2>Runs</h2><ul>"
    for run in runs:
        method, data, split = run.key
        commit = run.configuration.get("commit") or "unknown"
        yield (
            f"<li>{html.escape(method)} on {html.escape(data)}, {split}, seed {run.seed}, commit "
            f"{html.escape(str(commit))}: <code>{html.escape(str(run.configuration.get('command')))}</code></li>"
        )
    yield "</ul>"
