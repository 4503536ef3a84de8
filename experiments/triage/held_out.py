"""Test of `predict` on unseen cases: whether it lists poor segmentations first, and puts masks at the right place.

    python experiments/triage/held_out.py ckpt=PATH --volumes --folder outputs/triage_petct
    python experiments/triage/held_out.py ckpt=PATH --folder outputs/triage_lidc

Writes cases that the model has never seen as files of their own, predicts them by the command, and compares what it
wrote with the raters: volumes of synthetic PET/CT, drawn anew, with oblique affines, every one another; or the test
patients of the LIDC-IDRI contours, as TIFF pictures. What counts as poor is a Dice below the checkpoint's
`metrics.poor_dice`; and, as those may be most cases, also one below that of the worst tenth of the validation cases.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from edue_lightning.config.build import build_data, build_metric_settings
from edue_lightning.data import RaterSample, SyntheticPetCt
from edue_lightning.data.geometry import grid_of, same_grid
from edue_lightning.prediction.triage import Triage
from edue_lightning.runs.checkpoints import load_method
from edue_lightning.uncertainty import rater_mean

NEW_SEED, NEW_CASES, SIZE, SPACING = 2000, 200, 48, 2.0
FIFTH = 0.2
TABLE = "images.csv"


def oblique(number: int) -> NDArray[np.float64]:
    """Return the affine of an oblique volume; every third one is mirrored."""
    rng = np.random.default_rng([NEW_SEED, number])
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-30, 30, 3), degrees=True).as_matrix() * SPACING
    if number % 3 == 0:
        affine[:3, 0] *= -1
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def write_volumes(folder: Path, cases: int) -> Iterator[RaterSample]:
    """Write new volumes, CT and PET, and yield them."""
    source = SyntheticPetCt(n_cases=cases, size=SIZE, seed=NEW_SEED)
    for number, record in enumerate(source.cases()):
        sample = source.load(record.case_id)
        for name, channel in zip(("CT", "PT"), sample.image.numpy(), strict=True):
            image = nibabel.Nifti1Image(channel, oblique(number))
            image.set_qform(oblique(number), 1)
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / f"{sample.case_id}__{name}.nii.gz")
        yield sample


def write_pictures(folder: Path, checkpoint: Path) -> Iterator[RaterSample]:
    """Write the test cases of the checkpoint's own data, which it has not seen, with a table, and yield them."""
    data = build_data(load_method(checkpoint).configuration)
    rows = []
    for record in data.records("test"):
        sample = data.source.load(record.case_id)
        file = f"{sample.case_id}.tif"
        Image.fromarray(sample.image[0].numpy()).save(folder / file)
        rows.append({"case_id": sample.case_id, "image": file, "spacing": "x".join(map(str, sample.spacing or ()))})
        yield sample
    # pictures do not store the size of their pixels
    pd.DataFrame(rows).to_csv(folder / TABLE, index=False)


def predicted_mask(folder: Path, sample: RaterSample, number: int) -> NDArray[np.bool_]:
    """Return the mask that the command wrote; check that a volume has the grid of its image."""
    volume = folder / f"{sample.case_id}__mask.nii.gz"
    if not volume.exists():
        return np.asarray(Image.open(folder / f"{sample.case_id}__mask.png")) > 0
    image = nibabel.load(volume)
    assert isinstance(image, nibabel.Nifti1Image)
    assert same_grid(grid_of(image.shape, image.affine), grid_of(image.shape, oblique(number))), volume
    return np.asarray(image.dataobj) > 0


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return Dice; 1 if both masks are empty."""
    sizes = first.sum() + second.sum()
    return float(2 * (first & second).sum() / sizes) if sizes else 1.0


def main() -> None:
    """Predict the cases, and print the comparison with the raters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=lambda text: Path(text.removeprefix("ckpt=")))
    parser.add_argument("--volumes", action="store_true", help="use new oblique volumes")
    parser.add_argument("--cases", type=int, default=NEW_CASES, help="number of volumes")
    parser.add_argument("--folder", type=Path, required=True, help="new folder for images and predictions")
    asked = parser.parse_args()
    images, output = asked.folder / "images", asked.folder / "predictions"
    images.mkdir(parents=True)
    samples = list(write_volumes(images, asked.cases) if asked.volumes else write_pictures(images, asked.ckpt))
    given = images if asked.volumes else images / TABLE
    command = [
        sys.executable,
        "-m",
        "edue_lightning.predict",
        f"ckpt={asked.ckpt}",
        f"input={given}",
        f"output={output}",
    ]
    subprocess.run(command, check=True)
    trained = load_method(asked.ckpt)
    (structure,) = trained.image_format.structures
    poor_dice = build_metric_settings(trained.configuration.get("metrics"), [structure]).poor_dice_of(structure)

    truth: dict[str, float] = {}
    by_network: dict[str, int] = {}
    for number, sample in enumerate(samples):
        share = rater_mean(sample.masks[None], sample.valid[None])[0, 0].numpy()
        mask = predicted_mask(output, sample, number)
        truth[sample.case_id] = dice(mask, share >= 0.5)
        if number < 20:
            # the mask in the file equals the mask that the network predicts for these voxels
            with torch.inference_mode():
                own = trained.method.predict(sample.image[None]).sigmoid().mean(dim=1)[0, 0].numpy() >= 0.5
            by_network[sample.case_id] = int((own != mask).sum())
    print(
        f"{len(samples)} cases; voxels that differ from the network's own mask, of {len(by_network)} cases: "
        f"{sum(by_network.values())}"
    )

    table = pd.read_csv(output / "triage.csv")
    dice_of_cases = table["case"].map(truth)
    first = round(FIFTH * len(table))
    print(f"mean Dice {dice_of_cases.mean():.3f}; cases come by {table['score'].iloc[0]}, chosen on validation cases")
    assert trained.triage is not None
    validated = Triage.from_dict(trained.triage, str(asked.ckpt)).structures[structure].dice
    worst_tenth = np.quantile(validated, 0.1).item()
    for what, limit in (("metrics.poor_dice", poor_dice), ("the worst tenth of validation", worst_tenth)):
        poor = dice_of_cases < limit
        held = poor.iloc[:first].sum() / max(poor.sum(), 1)
        print(
            f"Dice < {limit:.3f} ({what}): {poor.sum()} of {len(poor)} cases; the first fifth holds "
            f"{poor.iloc[:first].sum()} of them, {held / FIFTH:.2f} times its share"
        )
    flagged = table["flagged"].astype(str) == "True"
    poor = dice_of_cases < poor_dice
    reached = (poor & flagged).sum() / max(poor.sum(), 1)
    print(
        f"flagged by the threshold: {flagged.mean():.1%} of the cases, with {reached:.1%} of those below {poor_dice:g}"
    )
    print(f"told to lie outside of the training cases' range: {table['out_of_distribution'].notna().mean():.1%}")


if __name__ == "__main__":
    main()
