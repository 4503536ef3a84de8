"""Writes patients as the HECKTOR releases hold them: CT, PET and labels, each known at every point of space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

Array = NDArray[np.float64]


def affine_of(
    spacing: Sequence[float], centre: Sequence[float] | Array, shape: Sequence[int], axes: Array | None = None
) -> Array:
    """Return the affine of a grid around a point, its axes the columns of an orthogonal matrix."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if axes is None else axes) * np.asarray(spacing)
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


LPS = np.diag([-1.0, -1.0, 1.0])
"""Axes as scanners store them."""


def tilted(degrees: float) -> Array:
    """Return scanner axes, tilted about the first."""
    angle = np.deg2rad(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return turn @ LPS


def points(shape: Sequence[int], affine: Array) -> Array:
    """Return the place of every voxel, `[*S, 3]` mm."""
    return apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1))


@dataclass
class Patient:
    """A patient whose CT and PET are linear in space but for the nodes, which are balls.

    Attributes:
        name: case id.
        ct_shape, ct_affine, pet_shape, pet_affine: the two grids.
        nodes: centre and radius of each lymph node, mm.
        raters: by how much each rater draws the nodes larger, mm.
        is_marked: whether one voxel of the CT is unlike that of all other patients, as two scans never are the same.
    """

    name: str = "CHUM-001"
    ct_shape: tuple[int, ...] = (24, 22, 10)
    ct_affine: Array = field(default_factory=lambda: affine_of((1, 1, 3), (5, -8, 100), (24, 22, 10), LPS))
    pet_shape: tuple[int, ...] = (12, 11, 14)
    pet_affine: Array = field(default_factory=lambda: affine_of((4, 4, 3), (4, -9, 101), (12, 11, 14), LPS))
    nodes: Sequence[tuple[Sequence[float], float]] = (((4, -6, 101), 5.0),)
    tumour: tuple[Sequence[float], float] = ((10, -12, 95), 3.0)
    raters: dict[str, float] = field(default_factory=lambda: {"release": 0.0, "A": 1.0, "B": -1.0})
    hot: float = 8.0
    is_marked: bool = False

    def ct(self, places: Array) -> Array:
        """Return Hounsfield units at places, within (-250, 250)."""
        return 1.5 * places[..., 0] - 2.0 * places[..., 1] + 0.5 * places[..., 2] - 60

    def pet(self, places: Array) -> Array:
        """Return the background's uptake at places, within (0, 25)."""
        return 6 + 0.05 * places[..., 0] + 0.04 * places[..., 1] - 0.03 * places[..., 2]

    def label(self, rater: str, places: Array) -> NDArray[np.uint8]:
        """Return 0, 1 (GTVp) or 2 (GTVn) at places."""
        found = np.zeros(places.shape[:-1], dtype=np.uint8)
        found[_ball(places, *self.tumour)] = 1
        for centre, radius in self.nodes:
            found[_ball(places, centre, radius + self.raters[rater])] = 2
        return found

    def write(self, root: Path, texture: float = 0.0) -> None:
        """Write the patient in the layout of 2022, further raters beside the release's label.

        Args:
            root: made if need be.
            texture: standard deviation of noise on CT (HU) and PET (a hundredth of it); nodes are warm only then.
        """
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([ord(letter) for letter in self.name])
        ct_places = points(self.ct_shape, self.ct_affine)
        ct, pet = self.ct(ct_places), self.pet(points(self.pet_shape, self.pet_affine))
        if self.is_marked:
            ct[0, 0, 0] = rng.uniform(-200, 200)
        if texture:
            warm = self.label("release", points(self.pet_shape, self.pet_affine)) > 0
            pet = pet / 4 + self.hot * warm + rng.normal(0, texture / 100, pet.shape).clip(-1, 1)
            ct = ct + 60.0 * (self.label("release", ct_places) > 0) + rng.normal(0, texture, ct.shape)
            ct, pet = np.round(ct).astype(np.int16), np.abs(pet).astype(np.float32)
        save(root / f"imagesTr/{self.name}__CT.nii.gz", ct.astype(np.int16 if texture else np.float32), self.ct_affine)
        save(root / f"imagesTr/{self.name}__PT.nii.gz", pet.astype(np.float32), self.pet_affine)
        for rater in self.raters:
            suffix = "" if rater == "release" else f"__rater{rater}"
            save(root / f"labelsTr/{self.name}{suffix}.nii.gz", self.label(rater, ct_places), self.ct_affine)


def save(path: Path, volume: NDArray, affine: Array) -> None:
    """Write a volume as NIfTI."""
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)


def _ball(places: Array, centre: Sequence[float], radius: float) -> NDArray[np.bool_]:
    return ((places - np.asarray(centre)) ** 2).sum(axis=-1) <= radius**2
