import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from edue_lightning.atomic import remove_unfinished, write_whole
from edue_lightning.errors import UserError
from edue_lightning.runs.checkpoints import load_method, read_checkpoint, write_checkpoint
from edue_lightning.runs.files import CONFIGURATION_FILE, read_mapping
from edue_lightning.runs.record import TRAINING_CASES, method_settings


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_method_is_rebuilt_from_its_checkpoint_alone(trained_run: Path) -> None:
    method, image_format, configuration, *_ = load_method(trained_run / "checkpoints" / "best.ckpt")
    assert not method.training
    assert method.label == "edue"
    assert image_format.structures == ("disc", "cup")
    assert configuration["data"]["name"] == "synthetic"
    logits = method(torch.rand(1, 3, 32, 32))
    assert logits.shape == (1, 6, 2, 32, 32)
    again = load_method(trained_run / "checkpoints" / "best.ckpt").method
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(method(image), again(image), rtol=0, atol=0)


def test_a_checkpoint_knows_the_training_cases_as_its_run_does(trained_run: Path) -> None:
    configuration = load_method(trained_run / "checkpoints" / "best.ckpt").configuration
    recorded = read_mapping(trained_run / CONFIGURATION_FILE)
    assert configuration[TRAINING_CASES] == recorded[TRAINING_CASES]
    assert method_settings({"training": configuration}) == method_settings(recorded)


def test_a_payload_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "extra": Payload(marker)}, path)
    with pytest.raises(UserError, match=r"evil.ckpt: refused"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(UserError, match=r"evil.ckpt"):
        read_checkpoint(path)
    assert not marker.exists()


def test_settings_that_call_something_else_are_refused(trained_run: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    checkpoint["edue_configuration"]["loss"] = {"_target_": "os.mkdir", "path": str(tmp_path / "executed")}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"evil.ckpt: refused.*os.mkdir"):
        load_method(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()


def _truncated(original: Path, path: Path) -> None:
    path.write_bytes(original.read_bytes()[:2000])


def _almost_whole(original: Path, path: Path) -> None:
    path.write_bytes(original.read_bytes()[:-20])


def _text(original: Path, path: Path) -> None:
    path.write_text("not a checkpoint")


def _empty(original: Path, path: Path) -> None:
    path.write_bytes(b"")


def _other_archive(original: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


def _other_program(original: Path, path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def _only_numbers(original: Path, path: Path) -> None:
    torch.save([1, 2], path)


def _other_weights(original: Path, path: Path) -> None:
    checkpoint = read_checkpoint(original)
    checkpoint["edue_configuration"]["network"]["features"] = [5, 7]
    torch.save(checkpoint, path)


def _one_member(original: Path, path: Path) -> None:
    torch.save(read_checkpoint(original) | {"edue_ensemble_member": 2}, path)


@pytest.mark.parametrize(
    "damage",
    [
        *(_truncated, _almost_whole, _text, _empty),
        *(_other_archive, _other_program, _only_numbers, _other_weights, _one_member),
    ],
)
def test_a_damaged_checkpoint_is_named_in_one_line(trained_run: Path, tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "broken.ckpt"
    damage(trained_run / "checkpoints" / "best.ckpt", path)
    with pytest.raises(UserError, match=r"broken\.ckpt: ") as error:
        load_method(path)
    assert "\n" not in str(error.value)


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere.ckpt: no such checkpoint"):
        load_method(Path("nowhere.ckpt"))


STATE = {"weight": torch.arange(200.0), "bias": torch.ones(3)}
STEPS = [1, {"name": "text"}]


def is_whole(found: dict[str, Any]) -> bool:
    state = found["state_dict"]
    same = state.keys() == STATE.keys() and all(torch.equal(state[name], STATE[name]) for name in STATE)
    return same and found["steps"] == STEPS and len(found) == 2


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_a_changed_byte_is_told_or_changes_nothing(tmp_path: Path, bit: int) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"state_dict": STATE, "steps": STEPS}, path)
    content = path.read_bytes()
    told = 0
    # the remainder moves with the bit, so that other bytes are met
    for place in range(bit, len(content), 4):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            # what can be read is what was written: the byte lay between the parts of the archive
            assert is_whole(read_checkpoint(path)), place
        except UserError:
            told += 1
    assert told > len(content) / 4 / 2


def test_a_file_that_is_cut_short_anywhere_is_told(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"state_dict": STATE}, path)
    content = path.read_bytes()
    for length in range(0, len(content), 17):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"last\.ckpt"):
            read_checkpoint(path)


def test_others_may_read_what_the_user_lets_them_read(tmp_path: Path) -> None:
    earlier = os.umask(0o027)
    try:
        write_checkpoint({"state_dict": STATE}, tmp_path / "last.ckpt")
    finally:
        os.umask(earlier)
    assert (tmp_path / "last.ckpt").stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_written_leaves_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_whole(path, lambda temporary: temporary.write_text("whole"))

    def half(temporary: Path) -> None:
        temporary.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, half)
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_behind_is_removed(tmp_path: Path) -> None:
    left: list[Path] = []

    def write(temporary: Path) -> None:
        temporary.write_text("whole")
        left.append(temporary)

    write_whole(tmp_path / "last.ckpt", write)
    left[0].write_text("ha")
    (tmp_path / "of the user.tmp").touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "of the user.tmp"]
    remove_unfinished(tmp_path / "nothing")
