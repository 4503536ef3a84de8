"""The middle of every published LIDC-IDRI slice in a quarter of the size, to take a study to another machine.

python experiments/comparison/crops.py pack lidc_slices.zip FOLDER [--size 64] [--parts 1]
python experiments/comparison/crops.py unpack FOLDER lidc_slices.zip

`pack` keeps the middle `size` x `size` pixels of every image, and all masks whole, in folders `FOLDER/0` and so on.
`unpack` writes the public layout again, images black beyond their middle, so that `data=lidc_slices
data.source.size=64` finds the same cases with the same values as in the original: which slice is the largest, and which
marks lie beyond the square, is decided by masks. It exits with status 3 while parts are missing.
"""

from __future__ import annotations

import argparse
import io
import lzma
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

READERS = 4
IMAGES, MASKS, NAMES = "images.png", "masks.xz", "names.xz"


def pack(archive: Path, folder: Path, size: int, parts: int = 1) -> int:
    """Pack the slices of an archive, and return their number.

    Args:
        archive: ZIP archive in the public layout, with PNG of one size.
        folder: folder for one folder of packed files per part.
        size: edge of the square in the middle of each image.
        parts: number of parts of about the same size, each of which can travel alone.

    Raises:
        ValueError: if the folder holds parts already, or an image is smaller than the square.
    """
    if any(folder.glob(f"*/{NAMES}")):
        raise ValueError(f"{folder}: holds packed slices; choose another folder")
    with zipfile.ZipFile(archive) as source:
        names = sorted(name for name in source.namelist() if name.endswith(".png") and "/images/" in name)
        for part, own in enumerate(np.array_split(np.array(names), parts)):
            _pack_part(source, own.tolist(), folder / str(part), size, parts)
    return len(names)


def _pack_part(source: zipfile.ZipFile, names: list[str], folder: Path, size: int, parts: int) -> None:
    images, masks = [], []
    for name in names:
        image = _pixels(source.read(name))
        if min(image.shape) < size:
            raise ValueError(f"{name}: {image.shape[0]}x{image.shape[1]} pixels are smaller than --size {size}")
        images.append(image[_middle(image.shape[0], size), _middle(image.shape[1], size)])
        marked = [_pixels(source.read(_mask_name(name, reader))) > 0 for reader in range(READERS)]
        masks.append(np.packbits(np.stack(marked)))
    folder.mkdir(parents=True, exist_ok=True)
    # one picture: the crops on top of each other
    Image.fromarray(np.concatenate(images)).save(folder / IMAGES, optimize=True)
    (folder / MASKS).write_bytes(lzma.compress(np.stack(masks).tobytes()))
    lines = [f"{image.shape[0]} {image.shape[1]} {size} {parts}", *names]
    (folder / NAMES).write_bytes(lzma.compress("\n".join(lines).encode()))


def missing_parts(folder: Path) -> list[int]:
    """Return the numbers of the parts that a folder lacks; 0 if it has none."""
    found = [int(path.parent.name) for path in folder.glob(f"*/{NAMES}")]
    if not found:
        return [0]
    parts = int(_names(folder / str(found[0]))[0].split()[3])
    return sorted({*range(parts)} - {*found})


def unpack(folder: Path, archive: Path) -> int:
    """Write packed slices as an archive in the public layout, and return their number.

    Raises:
        ValueError: if a part is missing.
    """
    missing = missing_parts(folder)
    if missing:
        raise ValueError(f"{folder}: lacks the parts {missing}; copy them there")
    number = 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for part in sorted(folder.glob(f"*/{NAMES}"), key=lambda path: int(path.parent.name)):
            number += _unpack_part(part.parent, target)
    return number


def _unpack_part(folder: Path, target: zipfile.ZipFile) -> int:
    first, *names = _names(folder)
    rows, columns, size, _ = map(int, first.split())
    crops = np.asarray(Image.open(folder / IMAGES)).reshape(len(names), size, size)
    packed = np.frombuffer(lzma.decompress((folder / MASKS).read_bytes()), np.uint8).reshape(len(names), -1)
    whole = np.zeros((rows, columns), np.uint8)
    for name, crop, bits in zip(names, crops, packed, strict=True):
        whole[_middle(rows, size), _middle(columns, size)] = crop
        target.writestr(name, _png(whole))
        marked = np.unpackbits(bits).reshape(READERS, rows, columns)
        for reader, mask in enumerate(marked):
            target.writestr(_mask_name(name, reader), _png(255 * mask))
    return len(names)


def _names(folder: Path) -> list[str]:
    return lzma.decompress((folder / NAMES).read_bytes()).decode().split("\n")


def _middle(length: int, size: int) -> slice:
    start = (length - size) // 2
    return slice(start, start + size)


def _mask_name(image_name: str, reader: int) -> str:
    return image_name.replace("/images/", f"/mask-{reader}/")


def _pixels(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    # small enough; the archive is read on the same machine
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pack", "unpack"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--size", type=int, default=64, help="edge of the square that is kept")
    parser.add_argument("--parts", type=int, default=1, help="number of folders, each of which can travel alone")
    asked = parser.parse_args()
    if asked.what == "unpack" and (missing := missing_parts(asked.source)):
        print(f"{asked.source}: lacks the parts {missing}")
        sys.exit(3)
    try:
        if asked.what == "pack":
            number = pack(asked.source, asked.target, asked.size, asked.parts)
        else:
            number = unpack(asked.source, asked.target)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{number} slices: {asked.target}")


if __name__ == "__main__":
    main()
