"""Names of cases that cannot be names of files: problems, before anything is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from edue_lightning.check import check
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.convert import convert
from edue_lightning.data import CaseRecord, CaseSource, RaterDataModule, RaterSample
from edue_lightning.data.file_source import FileCase, FileSource
from edue_lightning.data.prepared import PreparedCases
from edue_lightning.errors import UserError
from edue_lightning.evaluation.run import evaluate
from edue_lightning.text import can_be_in_file_name, is_plain_name
from edue_lightning.training.run import train

BAD_NAMES = ("../../esc", "N/A", "..", "/no folder/esc", "a\\b", "C:\\esc", "a\0b", "x" * 200)
PIXELS = torch.arange(12).reshape(1, 3, 4).float()
MASKS = (PIXELS > 5).to(torch.uint8)[None].repeat(2, 1, 1, 1)


class Named(FileSource):
    """A data set whose folder lists a file per case, under any name."""

    structures = ("a",)

    def __init__(self, root: str, names: Sequence[str], cache: str) -> None:
        super().__init__(root, cache)
        self.read: list[str] = []
        self.check([FileCase(CaseRecord(name, name), {"image": self.root / "x.png"}) for name in names], [], {})

    def _read(self, case: FileCase) -> RaterSample:
        self.read.append(case.record.case_id)
        return RaterSample(PIXELS, MASKS, torch.ones(2, dtype=torch.bool), case.record.case_id)


class InMemory(CaseSource):
    """Cases that no file holds."""

    spatial_dims, channels, structures = 2, 1, ("a",)

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def cases(self) -> Sequence[CaseRecord]:
        return [CaseRecord(name, name) for name in self.names]

    def load(self, case_id: str) -> RaterSample:
        raise AssertionError("a case was loaded")


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_entry_of_the_cache_leaves_its_folder(tmp_path: Path, name: str) -> None:
    store = PreparedCases(tmp_path / "a" / "b" / "cache")
    sample = RaterSample(PIXELS, MASKS, torch.ones(2, dtype=torch.bool), name)
    store.write("0f", sample)
    assert files_below(tmp_path) == {"a/b/cache/0f.pt"}
    found = store.read(name, "0f")
    assert found is not None
    assert found.case_id == name
    assert torch.equal(found.image, PIXELS)


@pytest.mark.parametrize("name", ["case 1", "RET002OD", "a.b-c_d", "é"])
def test_entries_of_ordinary_names_keep_theirs(tmp_path: Path, name: str) -> None:
    store = PreparedCases(tmp_path)
    store.write("0f", RaterSample(PIXELS, MASKS, torch.ones(2, dtype=torch.bool), name))
    assert files_below(tmp_path) == {f"{name}-0f.pt"}


def test_any_data_set_in_files_lists_such_names_and_reads_no_such_case(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(root / "x.png")
    source = Named(str(root), ["good", *BAD_NAMES], str(tmp_path / "a" / "b" / "cache"))
    assert set(source.read) == {"good"}
    assert [case.case_id for case in source.healthy()] == ["good"]
    assert sum("cannot be a file name" in line for line in source.problems) == len(BAD_NAMES)
    with pytest.raises(UserError, match="cannot be a file name"):
        source.cases()
    assert {Path(name).parts[0] for name in files_below(tmp_path)} == {"data", "a"}
    (entry,) = [name for name in files_below(tmp_path / "a") if name.endswith(".pt")]
    assert entry.startswith("b/cache/good-")


def test_any_other_source_is_refused_before_a_case_is_loaded() -> None:
    with pytest.raises(UserError) as raised:
        RaterDataModule("memory", InMemory(["good", *BAD_NAMES]))
    first, *lines = str(raised.value).splitlines()
    assert first == "data=memory: 8 problems:"
    assert len(lines) == len(BAD_NAMES)
    assert lines[1] == (
        "case 'N/A': cannot be a file name; use letters, digits, '.', '_', '-' and blanks, and no '.' in front"
    )


def test_what_can_be_a_name() -> None:
    assert not any(map(can_be_in_file_name, BAD_NAMES))
    assert not any(map(is_plain_name, (*BAD_NAMES, ".hidden", "a:b", "")))
    assert all(map(is_plain_name, ("case 1", "a.b-c_d", "é")))


@pytest.mark.parametrize("name", ["../../esc", "N/A", "ROOT/esc"])
def test_every_command_ends_with_the_list_of_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = name.replace("ROOT", str(tmp_path))
    root, cache = tmp_path / "data", tmp_path / "a" / "b" / "cache"
    root.mkdir()
    rows = ["case_id,image,mask,rater,structure"]
    for number, case_id in enumerate([name, "two", "three", "four"]):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)).save(
            root / f"{number}.png"
        )
        for rater in "AB":
            Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(root / f"{number}{rater}.png")
            rows.append(f"{case_id},{number}.png,{number}{rater}.png,{rater},disc")
    (root / "manifest.csv").write_text("\n".join(rows))
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    np.savez(predictions / "two.npz", probabilities=np.zeros((1, 1, 16, 16), np.float32))
    before = files_below(tmp_path)

    def configuration(command: str, *more: str) -> dict[str, Any]:
        overrides = ["data=manifest", f"data.root={root}", f"data.cache={cache}", *more]
        with initialize_config_dir(configuration_folder(), version_base="1.3"):
            return resolved(compose(command, overrides))

    line = f"manifest.csv: case '{name}': cannot be a file name; "
    result = check(configuration("check"), tmp_path / "checked")
    assert [problem for problem in result.problems if problem.startswith(line)] == [*result.problems]
    commands = {
        "train": lambda folder: train(configuration("train"), folder),
        "evaluate": lambda folder: evaluate(
            configuration("evaluate", f"predictions={predictions}", f"output={folder}"), folder
        ),
        "convert": lambda folder: convert(configuration("convert", f"output={folder}"), folder),
    }
    for command, run in commands.items():
        with pytest.raises(UserError) as raised:
            run(tmp_path / command)
        assert str(raised.value).splitlines()[1].startswith(line)
    written = files_below(tmp_path) - before
    assert {Path(file).parts[0] for file in written} <= {"a", "checked"}
    assert all(Path(file).name.startswith(("two-", "three-", "four-")) for file in written if file.endswith(".pt"))
