"""Verdict on the folds of a study over the test cases that no fold has for validation.

python experiments/comparison/unvalidated.py RUNS [--reference METHOD]

In a cross-validation the validation cases of one fold are test cases of another, and read-outs and baselines are chosen
on validation cases. Here these cases choose as before, and are left out of what is judged.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from edue_lightning.reporting import find_runs, pool_folds
from edue_lightning.reporting.out_of_distribution import with_detection
from edue_lightning.reporting.report import verdict_markdown
from edue_lightning.reporting.verdict import judge
from edue_lightning.runs.checkpoints import BEST, CHECKPOINTS, read_checkpoint, training_cases
from edue_lightning.runs.files import Run


def validated(runs: Sequence[Run]) -> set[str]:
    """Return the ids of the validation cases of all folds, which one checkpoint per fold names.

    Raises:
        SystemExit: if no run of a fold has a checkpoint.
    """
    found: set[str] = set()
    for fold in sorted({run.configuration["data"]["fold"] for run in runs}):
        paths = [run.folder / CHECKPOINTS / BEST for run in runs if run.configuration["data"]["fold"] == fold]
        path = next((path for path in paths if path.is_file()), None)
        cases = None if path is None else training_cases(read_checkpoint(path))
        if cases is None:
            raise SystemExit(f"fold {fold}: no run has a checkpoint that names its validation cases; keep checkpoints")
        found |= {case.case_id for case in cases["val"]}
    return found


def without(run: Run, cases: set[str]) -> Run:
    """Return a run, as its folder holds it, without the statistics and distorted images of some cases.

    Its metrics and resamples stay those of all cases until `pool_folds` computes them anew.
    """
    kept = [position for position, case in enumerate(run.replicates.case_ids) if case not in cases]
    replicates, distorted = run.replicates, run.distorted_cases
    ids = tuple(replicates.case_ids[position] for position in kept)
    # empty in runs of earlier versions
    groups = tuple(replicates.groups[position] for position in kept) if replicates.groups else ()
    return replace(
        run,
        cases=_without(run.cases, cases),
        distorted_cases=None if distorted is None else _without(distorted, cases),
        case_arrays={name: values[kept] for name, values in run.case_arrays.items()},
        replicates=replace(replicates, case_ids=ids, groups=groups),
    )


def _without(table: pd.DataFrame, cases: set[str]) -> pd.DataFrame:
    return table[~table["case_id"].isin(cases)].reset_index(drop=True)


def main() -> None:
    """Print the number of cases and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder above the runs, with their checkpoints")
    parser.add_argument("--reference", default="edue_levels_mask")
    options = parser.parse_args()
    runs = find_runs(options.runs)
    cases = validated(runs)
    pooled = with_detection(pool_folds([without(run, cases) for run in runs]))
    counts = sorted({len(run.replicates.case_ids) for run in pooled})
    print(f"{len(cases)} validation cases left out; {', '.join(map(str, counts))} test cases judged\n")
    print("\n".join(verdict_markdown(judge(pooled, options.reference))))


if __name__ == "__main__":
    main()
