import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from edue_lightning.checkpoints import load_method, read_checkpoint
from edue_lightning.errors import UserError


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_method_is_rebuilt_from_its_checkpoint_alone(trained_run: Path) -> None:
    method, image_format, configuration = load_method(trained_run / "checkpoints" / "best.ckpt")
    assert not method.training
    assert method.label == "edue"
    assert image_format.structures == ("disc", "cup")
    assert configuration["data"]["name"] == "synthetic"
    logits = method(torch.rand(1, 3, 32, 32))
    assert logits.shape == (1, 6, 2, 32, 32)
    again, _, _ = load_method(trained_run / "checkpoints" / "best.ckpt")
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(method(image), again(image), rtol=0, atol=0)


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
    [_truncated, _text, _empty, _other_archive, _other_program, _only_numbers, _other_weights, _one_member],
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
