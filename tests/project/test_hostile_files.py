"""Files that lie, explode, hang or attack: each is told in one clear line, and the other cases go on."""

from __future__ import annotations

import gzip
import os
import signal
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from PIL import Image
from processes import PATIENCE, run_command

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import CaseRecord, ManifestSource, SyntheticFundus
from edue_lightning.data import images as reading
from edue_lightning.data.images import ImageError, header_of, read_image, read_mask
from edue_lightning.data.new_images import find_images
from edue_lightning.data.sample import RaterSample
from edue_lightning.errors import UserError
from edue_lightning.evaluation.prediction_folder import PredictionFolder
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.run import predict
from edue_lightning.prediction.triage import Triage
from edue_lightning.runs.checkpoints import checkpoint_entries, load_method, read_checkpoint, save_method
from edue_lightning.runs.files import find_runs


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """Interrupt a test that waits for a pipe, a device or a bomb."""

    def interrupt(number: int, frame: object) -> None:
        raise TimeoutError("hangs")

    earlier = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(int(PATIENCE))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


def nifti(path: Path, *shape: int, voxels: bytes = b"", **fields: object) -> Path:
    """Write a NIfTI file whose header claims a shape, whatever voxels follow."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header.set_sform(np.eye(4), 1)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + bytes(4) + voxels
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def bomb(gibibytes: int) -> bytes:
    """Return a gzip stream of a megabyte a gibibyte of zeros that it unpacks to."""
    return gzip.compress(bytes(2**26), mtime=0) * (16 * gibibytes)


def png(path: Path, width: int, height: int, rows: bytes = bytes(10)) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def refusal(path: Path, read: Callable[[Path], object] = read_image) -> str:
    with pytest.raises(ImageError) as caught:
        read(path)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


# ---------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("read", [read_image, read_mask, header_of])
def test_a_header_that_claims_a_million_million_voxels(tmp_path: Path, name: str, read: Any) -> None:
    path = nifti(tmp_path / name, 10000, 10000, 10000)
    line = "its header claims 10000x10000x10000 voxels, more than 2^31; save it again, or cut it into parts"
    assert refusal(path, read) == line


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_claims_gigabytes_in_a_tiny_file(tmp_path: Path, name: str) -> None:
    path = nifti(tmp_path / name, 1200, 1200, 1200, voxels=bytes(100))
    assert refusal(path) == "cannot be read (the file is shorter than its header claims); save it again"


def test_a_bomb_behind_a_small_claim_is_not_unpacked(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", 2, 3, 4, voxels=bytes(range(24)))
    path.write_bytes(path.read_bytes() + bomb(16))
    started = time.process_time()
    assert refusal(path) == "holds many more bytes than its header claims; save it again"
    assert time.process_time() - started < 5


def test_a_bomb_in_an_extension_or_before_the_voxels_is_not_unpacked(tmp_path: Path) -> None:
    started = time.process_time()
    whole = gzip.decompress(nifti(tmp_path / "a.nii.gz", 2, 3, 4, vox_offset=1e6).read_bytes())
    # the size of this extension is 0: whoever reads it reads on to the end
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[:348] + b"\1\0\0\0" + bytes(16)) + bomb(16))
    assert refusal(tmp_path / "a.nii.gz") == "holds many more bytes than its header claims; save it again"
    path = nifti(tmp_path / "b.nii.gz", 2, 3, 4, vox_offset=1e10)
    path.write_bytes(path.read_bytes() + bomb(16))
    line = "cannot be read (its header claims 10000000000 bytes before the voxels); save it again"
    assert refusal(path) == line
    assert time.process_time() - started < 5


def test_what_does_not_fit_the_memory_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nifti(tmp_path / "a.nii.gz", 1024, 1024, 1024)
    path.write_bytes(path.read_bytes() + bomb(2))
    # pages of 4 KiB, as many
    monkeypatch.setattr(reading.os, "sysconf", lambda name: 4096)
    assert refusal(path) == "does not fit into this machine's memory; cut it into parts"


def test_pictures_that_claim_too_much(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", 50000, 50000)
    assert refusal(path) == "its header claims more pixels than Pillow's limit; save it again, or cut it into parts"


def test_images_without_a_voxel(tmp_path: Path) -> None:
    claim = "its header claims the shape 0x4x5; give it 2 or 3 axes, and one more for channels"
    assert refusal(nifti(tmp_path / "a.nii", 0, 4, 5)) == claim
    assert refusal(nifti(tmp_path / "b.nii.gz", 4, 5, voxels=b"", dim=[0, 1, 1, 1, 1, 1, 1, 1])).startswith(
        "its header claims"
    )
    assert refusal(png(tmp_path / "a.png", 0, 0)).startswith("cannot be read (")
    Image.fromarray(np.zeros((3, 4), dtype=np.uint8)).save(tmp_path / "b.tif")
    whole = (tmp_path / "b.tif").read_bytes()
    # the width in the first entry of the folder
    at = (
        whole.index(struct.pack("<HHI", 256, 3, 1))
        if struct.pack("<HHI", 256, 3, 1) in whole
        else whole.index(struct.pack("<HHI", 256, 4, 1))
    )
    (tmp_path / "b.tif").write_bytes(whole[: at + 8] + bytes(4) + whole[at + 12 :])
    assert refusal(tmp_path / "b.tif").startswith("cannot be read (")


def test_images_of_one_voxel(tmp_path: Path) -> None:
    assert read_image(nifti(tmp_path / "a.nii", 1, 1, 1, voxels=b"\7")).array.tolist() == [[[7.0]]]
    assert read_image(nifti(tmp_path / "b.nii", 1, 1, voxels=b"\7")).shape == (1, 1)
    assert read_mask(nifti(tmp_path / "c.nii", 1, 1, 1, 2, voxels=b"\7\7")).array.tolist() == [[True]]
    assert read_image(png(tmp_path / "a.png", 1, 1, b"\0\7\7\7")).array.shape == (3, 1, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(tmp_path: Path, value: float) -> None:
    values = np.zeros((4, 5), dtype=np.float32)
    values[2, 3] = value
    tifffile.imwrite(tmp_path / "a.tif", values)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    # finite as it is stored, and not as it is read
    nibabel.save(nibabel.Nifti1Image(np.full((4, 5), 1e300), np.eye(4)), tmp_path / "b.nii")
    for name in ("a.tif", "a.nii.gz", "b.nii"):
        assert refusal(tmp_path / name) == "holds NaN or infinity; replace these values"


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], "its header gives no valid voxel size; correct its affine"),
        ([[np.nan, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "its header gives no valid voxel size; correct its affine"),
        ([[1e30, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "its header gives no valid voxel size; correct its affine"),
        (
            [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]],
            "its header gives two axes the same direction; correct its affine",
        ),
    ],
)
def test_places_that_are_none(tmp_path: Path, rows: Sequence[Sequence[float]], line: str) -> None:
    fields = {f"srow_{axis}": row for axis, row in zip("xyz", rows, strict=True)}
    assert refusal(nifti(tmp_path / "a.nii", 2, 3, 4, voxels=bytes(24), **fields)) == line


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.nii", "a.nii.gz"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    path, line = tmp_path / name, "is no regular file; put the image itself there"
    os.mkfifo(path)
    assert refusal(path) == line
    path.unlink()
    path.mkdir()
    assert refusal(path) == line
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert refusal(path) == line
    path.unlink()
    path.symlink_to(path.name)
    assert refusal(path).startswith("cannot be read (")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", 1, 1, b"\0\7\7\7")
    path.chmod(0)
    assert refusal(path).startswith("cannot be read ([Errno 13]")


# ----------------------------------------------------------------------------------------------------- predictions


def archive_problem(folder: Path) -> str:
    """Return the one problem of a folder with predictions of the case `one`, of 6 x 5 pixels and two structures."""
    sample = RaterSample(torch.zeros(1, 6, 5), torch.zeros(2, 2, 6, 5, dtype=torch.uint8), torch.ones(2) > 0, "one")

    class Source:
        def storage_of(self, case_id: str) -> None:
            del case_id

        def load(self, case_id: str) -> RaterSample:
            return sample

    record = CaseRecord("one", "one")
    predictions = PredictionFolder(folder, ("disc", "cup"))
    with pytest.raises(UserError) as caught:
        predictions.check([record], [record], Source())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^predictions=.*: one: "):
        predictions.load(sample)
    _, line = str(caught.value).split("\n  ")
    return line


def array_header(**claims: object) -> bytes:
    text = repr({"descr": "<f8", "fortran_order": False, "shape": (3, 2, 6, 5), **claims}).encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def write_archive(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_a_pickle_among_predictions_is_not_opened(tmp_path: Path) -> None:
    array = np.empty((3, 2, 6, 5), dtype=object)
    array[0, 0, 0, 0] = Payload(tmp_path / "executed")
    np.savez(tmp_path / "one.npz", members=array)
    assert archive_problem(tmp_path) == "one: one.npz: members holds object, expected floating-point numbers"
    assert not (tmp_path / "executed").exists()


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    entries = {"../../x.npy": b"x", "/etc/x.npy": b"x", "../members.npy": array_header() + bytes(1440)}
    write_archive(folder / "one.npz", **entries)
    assert archive_problem(folder) == "one: one.npz: holds no array named 'members'"
    # an entry of the array's name, which is none, beside the array
    members = {"members": b"no array", "members.npy": array_header() + bytes(1440)}
    write_archive(folder / "one.npz", **entries, **members)
    sample = RaterSample(torch.zeros(1, 6, 5), torch.zeros(2, 2, 6, 5, dtype=torch.uint8), torch.ones(2) > 0, "one")
    assert PredictionFolder(folder, ("disc", "cup")).load(sample).shape == (3, 2, 6, 5)
    assert [path.name for path in tmp_path.rglob("*")] == ["predictions", "one.npz"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (array_header(shape=(10**12, 2, 6, 5)) + bytes(64), "it claims 480000000000000 bytes and holds "),
        (array_header(shape=(10**6, 2, 6, 5)) + bytes(64), "it claims 480000000 bytes and holds "),
        # a header of 4 GB
        (b"\x93NUMPY\2\0\xff\xff\xff\xff" + b" " * 2**24, "EOF: reading array header"),
        (b"\x93NUMPY\1\0\3\0'''", "('EOF in multi-line string'"),
    ],
)
def test_arrays_that_claim_too_much(tmp_path: Path, content: bytes, line: str) -> None:
    write_archive(tmp_path / "one.npz", **{"members.npy": content})
    assert archive_problem(tmp_path).startswith(f"one: one.npz: cannot be read ({line}")


def test_an_array_that_does_not_fit_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "one.npz", **{"members.npy": array_header(shape=(10**5, 2, 6, 5)) + bytes(48 * 10**6)})
    monkeypatch.setattr(reading.os, "sysconf", lambda name: 4096)
    assert archive_problem(tmp_path) == "one: one.npz: does not fit into this machine's memory; cut it into parts"


def test_a_pipe_and_a_number_of_members_without_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one.npz")
    assert archive_problem(tmp_path) == "one: one.npz: is no regular file; put the archive itself there"
    (tmp_path / "one.npz").unlink()
    nifti(tmp_path / "one__member999999999999__cup.nii", 6, 5, voxels=bytes(30))
    assert archive_problem(tmp_path) == "one: lacks a file for disc of member 0"


@pytest.mark.parametrize("content", [b"PK\5\6" + bytes(18), b"\x80\x04N.", b"", array_header() + bytes(1440)])
def test_damaged_replicates_of_a_run_are_named(trained_run: Path, tmp_path: Path, content: bytes) -> None:
    for path in filter(Path.is_file, trained_run.iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(find_runs(tmp_path)) == 1
    (tmp_path / "bootstrap.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"bootstrap\.npz: cannot be read \(.+\); run the evaluation again$"):
        find_runs(tmp_path)


# ------------------------------------------------------------------------------------------------------- manifests

OUTSIDE = "leaves the manifest's folder; move or link the file there, and write its path from there"
NOT_FOUND = "not found; add it, or correct its path in the manifest"
FOLDER = "is a folder without DICOM files; name a file, or write slices without a preamble anew"
NOWHERE = "is a link that leads nowhere; fetch what it points to"
PATHS = {
    "../x.png": OUTSIDE,
    "sub/../../x.png": OUTSIDE,
    "/etc/passwd": OUTSIDE,
    "C:\\x.png": OUTSIDE,
    "..\\x.png": OUTSIDE,
    "\\\\server\\share\\x.png": OUTSIDE,
    "loop.png": NOWHERE,
    "pipe.png": NOT_FOUND,
    "null.png": NOT_FOUND,
    "sub": FOLDER,
    "sub.png": FOLDER,
    "x" * 300: NOT_FOUND,
}


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """Return a folder with one healthy image, and things that look like others."""
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub.png").mkdir()
    for path in (tmp_path / "x.png", folder / "one.png"):
        Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(path)
    (folder / "out.png").symlink_to("../x.png")
    (folder / "away").symlink_to("..")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "null.png").symlink_to("/dev/null")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("column", ["image", "mask"])
def test_paths_of_a_manifest_stay_within_its_folder(traps: Path, path: str, column: str) -> None:
    rows = [{"case_id": "a", "image": "one.png", "mask": "", "rater": rater, "structure": "disc"} for rater in "AB"]
    for row in rows:
        row[column] = path
    pd.DataFrame(rows).to_csv(traps / "manifest.csv", index=False)
    for cache in (None, str(traps.parent / "cache")):
        assert ManifestSource(str(traps), cache=cache).problems == (f"{path}: case 'a': {PATHS[path]}",)


@pytest.mark.parametrize(
    "path", ["out.png", "away/x.png", "ROOT/out.png", "ROOT/one.png", "STORE/two.png", "STORE/in/two.png"]
)
def test_paths_of_a_manifest_lead_where_its_folder_and_its_links_lead(traps: Path, path: str) -> None:
    store = traps.parent / "store"
    (store / "in").mkdir(parents=True)
    for target in (store / "two.png", store / "in" / "two.png"):
        target.write_bytes((traps / "one.png").read_bytes())
    (traps / "linked").symlink_to(store)
    path = path.replace("ROOT", str(traps)).replace("STORE", str(store))
    rows = [{"case_id": "a", "image": path, "mask": "", "rater": rater, "structure": "disc"} for rater in "AB"]
    pd.DataFrame(rows).to_csv(traps / "manifest.csv", index=False)
    assert ManifestSource(str(traps)).problems == ()
    pd.DataFrame([{"case_id": "a", "image": path}]).to_csv(traps / "list.csv", index=False)
    assert not find_images(traps / "list.csv", 1).problems
    (traps / "linked").unlink()
    if str(store) in path:
        assert ManifestSource(str(traps)).problems == (f"{path}: case 'a': {OUTSIDE}",)


def test_paths_of_a_table_stay_within_its_folder(traps: Path) -> None:
    rows = [{"case_id": f"case{number}", "image": path} for number, path in enumerate(["one.png", *PATHS])]
    pd.DataFrame(rows).to_csv(traps / "list.csv", index=False)
    found = find_images(traps / "list.csv", 1)
    assert [case.case_id for case in found.cases] == ["case0"]
    assert dict(found.problems) == {f"case{n}": f"{path}: {line}" for n, (path, line) in enumerate(PATHS.items(), 1)}


def test_names_that_results_cannot_have(traps: Path) -> None:
    rows = [
        ["../../x", "one.png", "", "A", "disc"],
        ["x" * 200, "one.png", "", "A", "disc"],
        ["b", "sub/none.png", "", "A", "disc/../../x"],
    ]
    columns = ["case_id", "image", "mask", "rater", "structure"]
    pd.DataFrame(rows, columns=columns).to_csv(traps / "manifest.csv", index=False)
    problems = ManifestSource(str(traps)).problems
    assert all(len(line.splitlines()) == 1 for line in problems)
    for start in ("case '../../x': cannot be a file name", f"case '{'x' * 200}': cannot be a file name"):
        assert any(line.startswith(f"manifest.csv: {start}") for line in problems)
    assert "manifest.csv: structure 'disc/../../x' cannot be part of a file name" in " ".join(problems)
    assert "sub/none.png: case 'b': not found" in " ".join(problems)
    names = {case for case, _ in find_images(traps / "manifest.csv", 1).problems}
    assert {"../../x", "x" * 200} <= names
    rows[2][1] = "sub/two\nlines.png"
    pd.DataFrame(rows, columns=columns).to_csv(traps / "manifest.csv", index=False)
    (problem,) = ManifestSource(str(traps)).problems
    assert problem.startswith("manifest.csv: line 4: image contains a line break")


def test_a_pipe_for_a_table_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.csv")
    line = "manifest.csv: is no regular file; put the table itself there"
    assert ManifestSource(str(tmp_path)).problems == (line,)


# ----------------------------------------------------------------------------------------------------- checkpoints


class Payload:
    """Something whose unpickling makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"mkdir {self.marker}",)


class Blank:
    """Something whose unpickling fills memory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (2**36,)


def small(path: Path, images: ImageFormat, *overrides: str) -> Path:
    """Write the checkpoint of a plain network with the weights that it was born with."""
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        settings = resolved(compose("train", ["method=single", "network.features=[2,3]", *overrides]))
    torch.manual_seed(0)
    method = build_method(settings, images)
    save_method(method, path, checkpoint_entries(settings, images))
    return path


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """Return what a healthy checkpoint holds."""
    return read_checkpoint(small(tmp_path / "good.ckpt", ImageFormat(2, 1, ("disc",))))


def checkpoint_refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_method(path)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


MORE_THAN_WEIGHTS = (
    "refused, it is damaged or holds more than weights and plain values; train again or take another checkpoint"
)


def test_a_payload_is_refused_and_not_run(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "evil.ckpt"
    for evil in (Payload(tmp_path / "executed"), Blank()):
        for key in ("state_dict", "anything"):
            torch.save({**content, key: evil}, path)
            assert checkpoint_refusal(path) == MORE_THAN_WEIGHTS
    assert not (tmp_path / "executed").exists()


def test_tensors_that_claim_more_than_the_file_holds(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "huge.ckpt"
    name = next(iter(content["state_dict"]))
    # one number, repeated: nothing that the reader itself would find odd
    repeated = torch.zeros(1).expand(10**12)
    torch.save({**content, "state_dict": {**content["state_dict"], name: repeated}}, path)
    assert checkpoint_refusal(path).startswith(
        f"weights do not fit the network of its settings ({name}: 1000000000000 "
    )
    one = {"score": "entropy", "poor_dice": 0.8, "dice": repeated, "uncertainties": repeated, "ranges": {}}
    stored = {"structures": {"disc": one}, "intensities": {}, "sensitivity": 0.9, "training_cases": 3}
    with pytest.raises(UserError, match=r"^here: its triage data is damaged \(not a column of num"):
        Triage.from_dict(stored, "here")
    # a storage of 2^31 numbers, of which the file holds four
    torch.save({**content, "more": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    pickled = next(entry for entry in parts if entry.endswith("data.pkl"))
    at = parts[pickled].rindex(b"K\x04")
    at = parts[pickled].rindex(b"K\x04", 0, at)
    parts[pickled] = parts[pickled][:at] + b"J\xff\xff\xff\x7f" + parts[pickled][at + 2 :]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in parts.items():
            archive.writestr(entry, data)
    line = checkpoint_refusal(path)
    assert line.startswith(("cannot be read as a checkpoint (", "refused, "))


def test_a_packed_checkpoint_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    line = "cannot be read as a checkpoint (it claims more than the file holds)"
    assert checkpoint_refusal(tmp_path / "bomb.ckpt") == line


@pytest.mark.parametrize("part", ["method", "network", "loss", "optimizer", "inference", "metrics", "data"])
@pytest.mark.parametrize("wrap", [lambda call: call, lambda call: {"x": [call]}, lambda call: {"x": (call,)}])
@pytest.mark.parametrize("target", ["os.mkdir", "edue_lightning.runs.checkpoints.os.mkdir", "${oc.decode:os.mkdir}"])
def test_calls_of_others_are_refused_and_not_made(
    tmp_path: Path, content: dict[str, Any], part: str, wrap: Callable[[Any], Any], target: str
) -> None:
    call = {"_target_": target, "_args_": [str(tmp_path / "executed")]}
    own = content["edue_configuration"].get(part) or {}
    node = {**own, **wrap(call)} if part != "data" else {**own, "source": {**own["source"], **wrap(call)}}
    content["edue_configuration"][part] = node
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="refused, its configuration"):
        Model(tmp_path / "evil.ckpt", "cpu")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("part", "key", "value", "line"),
    [
        ("network", "features", [10**5, 10**5], "weights do not fit the network of its settings (network.encoder"),
        ("network", "features", [1] * 500, "they describe a network with more weights than the file holds"),
        ("network", "features", "many", "its settings are damaged or of another version"),
        ("method", "members", 10**9, "they describe a network with more weights than the file holds"),
    ],
)
def test_settings_of_networks_that_no_memory_holds(
    tmp_path: Path, content: dict[str, Any], part: str, key: str, value: object, line: str
) -> None:
    if key == "members":
        content["edue_configuration"]["method"] |= {"_target_": "edue_lightning.methods.DeepEnsemble"}
    content["edue_configuration"][part][key] = value
    torch.save(content, tmp_path / "huge.ckpt")
    assert line in checkpoint_refusal(tmp_path / "huge.ckpt")


def test_settings_without_a_bottom(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "deep.ckpt"
    circle: dict[str, Any] = {}
    circle["x"] = circle
    content["edue_configuration"]["loss"] = circle
    torch.save(content, path)
    assert checkpoint_refusal(path).startswith("its settings are damaged or of another version (RecursionError")


@pytest.mark.parametrize(
    "names", [["../../x"], ["a/b"], ["a\\b"], ["two\nlines"], ["x" * 300], [""], [3], "", None, ["disc", ["cup"]]]
)
def test_structures_that_lead_out_of_the_results(tmp_path: Path, content: dict[str, Any], names: object) -> None:
    content["edue_image_format"]["structures"] = names
    torch.save(content, tmp_path / "evil.ckpt")
    checkpoint_refusal(tmp_path / "evil.ckpt")


@pytest.mark.parametrize(
    ("key", "value"),
    [("sensitivity", 7), ("sensitivity", float("nan")), ("training_cases", float("inf")), ("intensities", [1])],
)
def test_damaged_knowledge_of_other_cases(key: str, value: object) -> None:
    column = torch.zeros(2)
    one = {"score": "entropy", "poor_dice": 0.8, "dice": column, "uncertainties": column, "ranges": {"entropy": [0, 1]}}
    stored = {"structures": {"disc": one}, "intensities": {}, "sensitivity": 0.9, "training_cases": 3}
    Triage.from_dict(stored, "here")
    with pytest.raises(UserError, match=r"^here: its triage data is damaged \("):
        Triage.from_dict({**stored, key: value}, "here")
    for name, wrong in (
        ("dice", torch.zeros(3)),
        ("dice", torch.zeros(2, 2)),
        ("ranges", {"x": [0, 1]}),
        ("score", []),
    ):
        with pytest.raises(UserError, match=r"^here: its triage data is damaged \("):
            Triage.from_dict({**stored, "structures": {"disc": {**one, name: wrong}}}, "here")


# ------------------------------------------------------------------------------------------------ the whole command


def photograph(number: int) -> NDArray[np.uint8]:
    source = SyntheticFundus(n_cases=2, size=32, seed=9)
    image = source.load(source.cases()[number].case_id).image
    return (image.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()


def hostile_folder(folder: Path) -> dict[str, str]:
    """Write two healthy photographs among others, and return how the line of each bad one goes."""
    folder.mkdir()
    for number in range(2):
        Image.fromarray(photograph(number)).save(folder / f"healthy{number}.png")
    nifti(folder / "claims.nii.gz", 10000, 10000, 10000)
    nifti(folder / "short.nii", 1200, 1200, 1200)
    path = nifti(folder / "bomb.nii.gz", 2, 3, 4, voxels=bytes(24))
    path.write_bytes(path.read_bytes() + bomb(8))
    png(folder / "bomb.png", 50000, 50000)
    nifti(folder / "none.nii", 0, 4, 5)
    png(folder / "none.png", 0, 0)
    nifti(folder / "one_voxel.nii", 1, 1, 1, voxels=b"\7")
    png(folder / "one_pixel.png", 1, 1, b"\0\7\7\7")
    png(folder / "row.png", 40, 1, bytes(121))
    tifffile.imwrite(folder / "nan.tif", np.full((32, 32), np.nan, dtype=np.float32))
    Image.fromarray(photograph(0)[..., 0]).save(folder / "grey.png")
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.nii.gz").touch()
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "away.png").symlink_to("/etc/passwd")
    Image.fromarray(photograph(0)).save(folder / ("x" * 200 + ".png"))
    Image.fromarray(photograph(0)).save(folder / "two\nlines.png")
    Image.fromarray(photograph(0)).save(os.fsencode(folder) + b"/half\xff.png")
    return {
        "claims": "claims.nii.gz: its header claims 10000x10000x10000 voxels",
        "short": "short.nii: cannot be read (the file is shorter than its header claims)",
        "bomb.nii.gz": "bomb.nii.gz: holds many more bytes than its header claims",
        "bomb.png": "bomb.png: its header claims more pixels than Pillow's limit",
        "none.nii": "none.nii: its header claims the shape 0x4x5",
        "none.png": "none.png: cannot be read",
        "one_voxel": "one_voxel.nii: has 1 channels, but the model expects 3",
        "one_pixel": "one_pixel.png: the network cannot predict an image of 1x1",
        "row": "row.png: the network cannot predict an image of 1x40",
        "nan": "nan.tif: holds NaN or infinity",
        "grey": "grey.png: has 1 channels, but the model expects 3",
        "text": "text.jpg: cannot be read",
        "empty": "empty.nii.gz: cannot be read",
        "pipe": "is no regular file",
        "loop.png": "is a link that leads nowhere",
        "away": "away.png: cannot be read",
        "x" * 200: "cannot be the name of a result",
        "two?lines": "cannot be the name of a result",
        "half?": "cannot be the name of a result",
    }


def test_healthy_cases_among_hostile_ones_are_predicted(trained_run: Path, tmp_path: Path) -> None:
    expected = hostile_folder(tmp_path / "pictures")
    checkpoint = trained_run / "checkpoints" / "best.ckpt"
    # as it was trained, on whole images
    overrides = [f"ckpt={checkpoint}", "input=pictures", "output=out", "device=cpu"]
    done = run_command("predict", overrides, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "2 cases predicted" in done.stdout
    assert pd.read_csv(tmp_path / "out" / "triage.csv")["case"].unique().tolist() in (
        ["healthy0", "healthy1"],
        ["healthy1", "healthy0"],
    )
    failed = pd.read_csv(tmp_path / "out" / "failed.csv", keep_default_na=False)
    assert len((tmp_path / "out" / "failed.csv").read_text().splitlines()) == 1 + len(expected)
    reasons = dict(zip(failed["case"], failed["reason"], strict=True))
    assert reasons.keys() == expected.keys()
    for name, start in expected.items():
        assert reasons[name].startswith(start), (name, reasons[name])
    assert len(list((tmp_path / "out").glob("healthy*__mask*.png"))) == 4


@pytest.mark.parametrize("window", ["null", "[4,4,4]"])
def test_tiny_volumes_give_a_line_or_a_result(tmp_path: Path, window: str) -> None:
    images = ImageFormat(3, 1, ("node",))
    checkpoint = small(tmp_path / "best.ckpt", images, "experiment=synthetic", f"inference.window={window}")
    folder = tmp_path / "scans"
    folder.mkdir()
    shapes = [(1, 1, 1), (2, 1, 1), (1, 2, 3), (2, 2, 2), (1, 1, 4), (5, 1, 3), (8, 8, 8), (8, 8, 8, 2), (3, 2)]
    for shape in shapes:
        name = "x".join(map(str, shape))
        nifti(folder / f"{name}.nii.gz", *shape, voxels=np.random.default_rng(0).bytes(int(np.prod(shape))))
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        overrides = [f"ckpt={checkpoint}", f"input={folder}", f"output={tmp_path / 'out'}", "device=cpu"]
        settings = resolved(compose("predict", overrides))
    found = predict(settings, tmp_path / "out")
    flat = "is 2D, but the model expects 3D images"
    assert found.failed["1x1x1"] == f"1x1x1.nii.gz: {flat}"
    assert found.failed["3x2"] == f"3x2.nii.gz: {flat}"
    assert "8x8x8x2.nii.gz: has 2 channels, but the model expects 1" in found.failed["8x8x8x2"]
    assert all(len(reason.splitlines()) == 1 for reason in found.failed.values())
    assert "8x8x8" in set(found.triage["case"])
    assert set(found.triage["case"]) | found.failed.keys() == {"x".join(map(str, shape)) for shape in shapes}
    if window != "null":
        assert {"2x2x2", "1x1x4", "5x1x3"} <= set(found.triage["case"])
