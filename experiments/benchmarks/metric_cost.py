"""Cost of all test metrics on volumes: ours and the usual packages, side by side.

    make bench

Each side measures the same volumes in its own processes, in turns, so that noise of the machine affects both and each
peak of memory belongs to one side. The usual packages are called as their documentation shows, with loops in Python for
metrics that they do not have: MONAI for Dice, IoU and surfaces; torchmetrics for Brier score, calibration errors and
correlations, whose states are kept over all volumes; SciPy for the score of volumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from scipy.ndimage import gaussian_filter
from scipy.stats import norm, pearsonr, spearmanr
from torch import Tensor
from torchmetrics.classification import BinaryCalibrationError
from torchmetrics.functional import pearson_corrcoef
from torchmetrics.regression import MeanSquaredError

from edue_lightning.metrics import CaseTable
from edue_lightning.metrics.scores import CORRELATED_SCORES

VOLUMES, EDGE, MEMBERS, RATERS = 20, 96, 5, 4
ROUNDS = 3
POOR_DICE, TOLERANCE = 0.8, 1.0


def volumes() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits `[M, *S]` and masks `[R, *S]` of blobs; members and raters draw their edges differently."""
    grid = np.indices((EDGE,) * 3) - EDGE / 2
    for number in range(VOLUMES):
        rng = np.random.default_rng(number)
        wildness = rng.uniform(20, 200)
        depth = EDGE * rng.uniform(0.15, 0.3) - np.sqrt((grid**2).sum(axis=0))
        logits = np.stack([_wobbly(depth, wildness, rng) for _ in range(MEMBERS)]).astype(np.float32)
        masks = np.stack([_wobbly(depth, wildness, rng) > 0 for _ in range(RATERS)]).astype(np.uint8)
        yield torch.from_numpy(logits), torch.from_numpy(masks)


def _wobbly(depth: np.ndarray, wildness: float, rng: np.random.Generator) -> np.ndarray:
    noise: np.ndarray = gaussian_filter(rng.normal(size=depth.shape), 4)
    return depth + wildness * noise


def ours(cases: Iterator[tuple[Tensor, Tensor]], clock: Callable[[], None]) -> dict[str, float]:
    """Compute every metric with `CaseTable`."""
    table = CaseTable(["structure"])
    valid = torch.ones(1, RATERS, dtype=torch.bool)
    for logits, masks in cases:
        clock()
        table.update(logits[None, :, None], masks[None, :, None], valid)
        clock()
    clock()
    means = table.summary().means()
    clock()
    return means


class UsualPackages:
    """The same metrics from MONAI, torchmetrics and SciPy."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.calibration = {norm_: BinaryCalibrationError(n_bins=15, norm=norm_) for norm_ in ("l1", "max")}
        self.brier = MeanSquaredError()

    def update(self, logits: Tensor, masks: Tensor) -> None:
        """Measure one volume."""
        p = torch.sigmoid(logits)
        mean, share = p.mean(dim=0), masks.float().mean(dim=0)
        predicted, consensus = ((part >= 0.5).float() for part in (mean, share))
        members, raters = (p >= 0.5).float(), masks.float()
        between, expert, total = p.var(dim=0, correction=0), share * (1 - share), mean * (1 - mean)

        def dice(first: Tensor, second: Tensor) -> float:
            return float(compute_dice(first[None, None], second[None, None], ignore_empty=False))

        def distance(first: Tensor, second: Tensor) -> float:
            return 1 - float(compute_iou(first[None, None], second[None, None], ignore_empty=False))

        def mean_distance(first: Tensor, second: Tensor) -> float:
            return float(np.mean([distance(a, b) for a in first for b in second]))

        def correlation(first: Tensor, second: Tensor) -> float:
            return float(pearson_corrcoef(first.flatten(), second.flatten()))

        for rater in raters:
            for metric in self.calibration.values():
                metric.update(mean.flatten(), rater.flatten().long())
            self.brier.update(mean.flatten(), rater.flatten())
        log_p, log_not_p = F.logsigmoid(logits).mean(dim=0), F.logsigmoid(-logits).mean(dim=0)
        own = -(mean * log_p + (1 - mean) * log_not_p)
        neighbours = [dice(a, b) for a, b in itertools.pairwise(members)]
        drawn = raters.flatten(1).sum(dim=1).numpy()
        spread = float(drawn.std())
        off = (float(mean.sum()) - float(drawn.mean())) / spread
        surface = predicted[None, None], consensus[None, None]
        order = mean.flatten().argsort()
        ranges = [part[order].tensor_split(15) for part in (mean.flatten(), share.flatten())]
        self.rows.append(
            {
                "dice": dice(predicted, consensus),
                "dice_per_rater": float(np.mean([dice(predicted, rater) for rater in raters])),
                "d_soft": float(
                    np.mean([dice((mean >= t).float(), (share >= t).float()) for t in (0.1, 0.3, 0.5, 0.7, 0.9)])
                ),
                "hd95": float(compute_hausdorff_distance(*surface, include_background=True, percentile=95)),
                "nsd": float(compute_surface_dice(*surface, [TOLERANCE], include_background=True)),
                "nll": float(np.mean([float(F.binary_cross_entropy(mean, rater)) for rater in raters])),
                "adaptive_ece": float(
                    np.mean([float((a.mean() - b.mean()).abs()) for a, b in zip(*ranges, strict=True)])
                ),
                "ged2": 2 * mean_distance(members, raters)
                - mean_distance(members, members)
                - mean_distance(raters, raters),
                "volume_crps": spread * float(off * (2 * norm.cdf(off) - 1) + 2 * norm.pdf(off) - np.pi**-0.5),
                "layer_agreement": float(np.mean(neighbours)),
                "aula": float(np.trapezoid(neighbours)),
                "model_agreement": float(np.mean([dice(a, b) for a, b in itertools.combinations(members, 2)])),
                "pixel_pearson": correlation(between, expert),
                "pixel_pearson_total": correlation(total, expert),
                "pixel_s_ncc": float(
                    np.mean([correlation(own, -torch.where(rater > 0, log_p, log_not_p)) for rater in raters])
                ),
                "sv": float(between.sum()),
                "sv_star": float(expert.sum()),
                "sv_total": float(total.sum()),
                "sv_normalised": float(between.sum() / predicted.sum()),
                "sv_star_normalised": float(expert.sum() / consensus.sum()),
                "entropy": float(-(torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean)).sum()),
            }
        )

    def compute(self) -> dict[str, float]:
        """Return the metrics over all volumes."""
        columns = {name: np.array([row[name] for row in self.rows]) for name in self.rows[0]}
        found = {name: float(values.mean()) for name, values in columns.items()}
        risk = 1 - columns["dice"]
        best = float(np.mean(np.cumsum(np.sort(risk)) / np.arange(1, len(risk) + 1)))
        for suffix, (name, sign) in CORRELATED_SCORES.items():
            score = sign * columns[name]
            raters = columns["sv_star_normalised" if suffix == "_normalised" else "sv_star"]
            found[f"image_pearson{suffix}"] = float(pearsonr(score, raters)[0])
            found[f"image_spearman{suffix}"] = float(spearmanr(score, raters)[0])
            ordered = risk[np.argsort(score)]
            area = float(np.mean(np.cumsum(ordered) / np.arange(1, len(ordered) + 1)))
            found[f"aurc{suffix}"], found[f"e_aurc{suffix}"] = area, area - best
            found[f"normalised_aurc{suffix}"] = (area - best) / (float(risk.mean()) - best)
            poor = (ordered[::-1] > 1 - POOR_DICE).astype(float)
            missed = (poor.sum() - np.append(0, np.cumsum(poor))) / len(poor)
            found[f"d_auc{suffix}"] = float(np.trapezoid(missed) / len(poor) - poor.mean() ** 2 / 2)
        found["ece"], found["mce"] = (float(self.calibration[name].compute()) for name in ("l1", "max"))
        found["brier"] = float(self.brier.compute())
        return found


def usual(cases: Iterator[tuple[Tensor, Tensor]], clock: Callable[[], None]) -> dict[str, float]:
    """Compute every metric with the usual packages."""
    metrics = UsualPackages()
    for logits, masks in cases:
        clock()
        metrics.update(logits, masks)
        clock()
    clock()
    found = metrics.compute()
    clock()
    return found


SIDES: dict[str, Callable[[Iterator[tuple[Tensor, Tensor]], Callable[[], None]], dict[str, float]]] = {
    "ours": ours,
    "usual": usual,
}


def measure(side: str) -> None:
    """Print time, growth of peak memory and metrics of one side as JSON."""
    warnings.simplefilter("ignore")
    # first calls import and compile; making the largest volume is not measured
    SIDES[side](itertools.islice(volumes(), 2), lambda: None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    marks: list[float] = []
    found = SIDES[side](volumes(), lambda: marks.append(time.perf_counter()))
    seconds = sum(end - start for start, end in zip(marks[::2], marks[1::2], strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak": peak / 1024, "before": before / 1024, "metrics": found}))


def main() -> None:
    """Compare the two sides over some rounds."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    metrics: dict[str, dict[str, float]] = {}
    for round_ in range(ROUNDS):
        for side in list(SIDES)[:: 1 if round_ % 2 == 0 else -1]:
            command = [sys.executable, __file__, "--side", side]
            output = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            metrics[side] = output.pop("metrics")
            results[side].append(output)
    print(f"{VOLUMES} volumes of {EDGE}^3, {MEMBERS} members, {RATERS} raters, {ROUNDS} rounds")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| | ours | usual packages | ratio |\n|---|---|---|---|")
    for name, unit in (("seconds", "s"), ("peak", "MiB, peak of the process")):
        own, other = (float(np.median([row[name] for row in results[side]])) for side in ("ours", "usual"))
        print(f"| {unit} | {own:.1f} | {other:.1f} | {own / other:.2f} |")
    shared = metrics["ours"].keys() & metrics["usual"].keys()
    print(
        f"\n{len(metrics['ours'])} metrics; of the {len(shared)} that both sides have, these differ by more than 1e-4:"
    )
    for name in sorted(shared):
        own, other = (metrics[side][name] for side in ("ours", "usual"))
        if not np.isclose(own, other, rtol=0, atol=1e-4, equal_nan=True):
            print(f"- {name}: {own:.5f} ours, {other:.5f} the usual packages'")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=list(SIDES))
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.side)
    else:
        main()
