"""Files that appear whole or not at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from edue_lightning.atomic import write_arrays
from edue_lightning.runs.files import write_table


def test_arrays_are_written_under_the_very_name(tmp_path: Path) -> None:
    arrays = {"values": np.arange(3), "names": np.array(["a", "b"])}
    write_arrays(tmp_path / "some.arrays", arrays)
    with np.load(tmp_path / "some.arrays", allow_pickle=False) as found:
        assert {name: found[name].tolist() for name in found} == {"values": [0, 1, 2], "names": ["a", "b"]}
    assert [path.name for path in tmp_path.iterdir()] == ["some.arrays"]


@pytest.mark.parametrize("kind", ["table", "arrays"])
def test_an_interrupted_write_leaves_the_earlier_file(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics"
    path.write_text("earlier")
    table = pd.DataFrame({"metric": ["nll"], "value": [0.1235]})
    write = {
        "table": partial(write_table, table, list(table), path),
        "arrays": partial(write_arrays, path, {"values": np.arange(3)}),
    }[kind]

    def to_csv(_: pd.DataFrame, file: Path, **options: object) -> None:
        file.write_text("metric,va")
        raise KeyboardInterrupt

    def savez(file: object, **arrays: object) -> None:
        file.write(b"PK")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", to_csv)
    monkeypatch.setattr(np, "savez_compressed", savez)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
