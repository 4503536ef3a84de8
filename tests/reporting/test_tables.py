"""The table of d-AUC and AURC, each by the score that validation data choose."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_files import write_values

from edue_lightning.reporting.tables import selective_table
from edue_lightning.runs.files import read_run

SUBJECT = ("lidc", "test", "nodule")


def test_the_score_is_chosen_on_validation_data_whatever_the_test_says(tmp_path: Path) -> None:
    # on the test cases the other score is the better one
    test = {"d_auc": 0.01, "d_auc_soft_dice": 0.05, "aurc": 0.2, "aurc_patch": 0.3}
    validation = {"d_auc": 0.04, "d_auc_soft_dice": 0.02, "aurc": 0.3, "aurc_patch": 0.1}
    runs = [
        read_run(
            write_values(
                tmp_path / str(seed),
                "levels",
                seed,
                {"nodule": {name: value + 0.01 * seed for name, value in test.items()}},
                {"nodule": validation},
            )
        )
        for seed in range(2)
    ]
    table = selective_table(runs, *SUBJECT)
    assert table.to_dict("records") == [
        {
            "method": "levels",
            "d-AUC ↓": "0.0550",
            "score of d-AUC": "soft_dice_confidence",
            "AURC ↓": "0.3050",
            "score of AURC": "sv_patch",
        }
    ]


@pytest.mark.parametrize("validation", [None, {"nodule": {"dice": 0.9}}])
def test_without_a_value_on_validation_data_no_score_is_chosen(
    tmp_path: Path, validation: dict[str, dict[str, float]] | None
) -> None:
    run = read_run(write_values(tmp_path / "run", "levels", 0, {"nodule": {"d_auc": 0.1}}, validation))
    assert selective_table([run], *SUBJECT).empty
