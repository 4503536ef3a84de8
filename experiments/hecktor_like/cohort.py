"""Write a cohort of patients with the grids, sizes and tilts of HECKTOR 2022.

python experiments/hecktor_like/cohort.py FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

# the tests write such patients too, small ones
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
from patients import LPS, Patient, affine_of, tilted


def cohort(large: int, small: int, seed: int = 0) -> list[Patient]:
    """Return patients with the voxels of real scans: CT 1 x 1 x 3 mm, PET 4 x 4 x 3 mm, most of them a little tilted.

    Args:
        large: patients whose CT has 512 x 512 pixels and PET 128 x 128, with 84 to 96 slices.
        small: patients cut to 128 x 128 and 32 x 32, with 40 slices.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    centres = ("CHUM", "CHUS", "MDA", "CHUP")
    patients = []
    for number in range(large + small):
        edge = 512 if number < large else 128
        slices = int(rng.integers(84, 97)) if number < large else 40
        axes = tilted(float(rng.uniform(-8, 8))) if number % 3 else LPS
        middle = rng.uniform(-20, 20, 3)
        size = np.array([edge, edge, 3 * slices])
        pet_shape = (edge // 4, edge // 4, slices + 6)
        reach = np.minimum(size, 100) / 2 - 18
        nodes = [(tuple(middle + rng.uniform(-reach, reach)), float(rng.uniform(5, 11))) for _ in range(3)]
        patients.append(
            Patient(
                name=f"{centres[number % len(centres)]}-{number + 1:03d}",
                ct_shape=(edge, edge, slices),
                ct_affine=affine_of((1, 1, 3), middle, (edge, edge, slices), axes),
                pet_shape=pet_shape,
                pet_affine=affine_of((4, 4, 3), middle + np.array([1, -1, 0.5]), pet_shape, LPS),
                nodes=nodes,
                tumour=(tuple(middle), 8.0),
                raters={"release": 0.0, "A": 1.5, "B": -1.0, "C": float(rng.uniform(-1.5, 2.5))},
            )
        )
    return patients


def main() -> None:
    """Write a folder like a release of HECKTOR."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--large", type=int, default=2, help="patients with a CT of 512 x 512 x about 90 voxels")
    parser.add_argument("--small", type=int, default=10, help="patients with a CT of 128 x 128 x 40 voxels")
    arguments = parser.parse_args()
    for patient in cohort(arguments.large, arguments.small):
        patient.write(arguments.folder, texture=20.0)


if __name__ == "__main__":
    main()
