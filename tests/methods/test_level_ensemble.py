"""Ensembles of EDUE with levels: the average of the levels, and what is read from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from method_parts import parts_of

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import RaterBatch, RaterDataModule, SyntheticFundus
from edue_lightning.evaluation.cost import measure_cost
from edue_lightning.exporting.graph import ImageEstimate, exportable
from edue_lightning.methods import EDUELevels, LevelEnsemble, SingleNetwork
from edue_lightning.methods.level_ensemble import average_logits
from edue_lightning.networks import HeadLayout
from edue_lightning.prediction.estimate import estimate
from edue_lightning.runs.checkpoints import checkpoint_entries, load_method, save_method

STRUCTURES = ("disc", "cup")


def ensemble(**options: object) -> LevelEnsemble:
    return LevelEnsemble(parts_of(), **{"members": 3, "levels": 4, **options}).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def batch() -> RaterBatch:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24, missing_rater_rate=0.3), batch_size=4)
    return next(iter(data.train_dataloader()))


def test_logits_are_those_of_the_average_probability() -> None:
    logits = [4 * torch.randn(2, 3, dtype=torch.float64) for _ in range(5)]
    expected = torch.stack([torch.sigmoid(one) for one in logits]).mean(dim=0)
    torch.testing.assert_close(torch.sigmoid(average_logits(logits)), expected)
    sure = average_logits([torch.tensor([200.0, -200.0, 200.0]), torch.tensor([300.0, -300.0, -200.0])])
    assert sure.isfinite().all()
    assert sure[0] > 190
    assert sure[1] < -190
    assert sure[2].item() == pytest.approx(0)
    assert average_logits([torch.ones(1, dtype=torch.bfloat16)] * 2).dtype == torch.float32


@pytest.mark.parametrize("mask_weight", [0.0, 1.0])
def test_maps_are_read_from_the_average_levels(mask_weight: float) -> None:
    method, image = ensemble(mask_weight=mask_weight), torch.rand(2, 3, 16, 24)
    found = method(image)
    each = torch.stack([torch.sigmoid(member(image)) for member in method.members])
    assert found.shape == (2, 5 if mask_weight else 4, 2, 16, 24)
    average = each.mean(dim=0)
    torch.testing.assert_close(torch.sigmoid(found), average)
    assert (found[:, :4].diff(dim=1) <= 1e-5).all()
    readout = method.readout
    assert readout == method.members[0].readout
    of_case = estimate(method, image[0])
    pi = average[0].double()
    torch.testing.assert_close(of_case.probability, pi[:4].mean(dim=0).float())
    # V is linear in the levels, so it is the mean of the networks' own
    own = torch.stack([readout.disagreement(channels)[0] for channels in each])
    torch.testing.assert_close(of_case.disagreement, own.mean(dim=0))
    torch.testing.assert_close(of_case.decision, pi[4 if mask_weight else 1].float())
    assert method.label == ("deep_ensemble_levels_mask" if mask_weight else "deep_ensemble_levels")


@pytest.mark.parametrize("mask_weight", [0.0, 1.0])
def test_an_exported_graph_reads_the_same_maps(mask_weight: float) -> None:
    method = exportable(ensemble(mask_weight=mask_weight), "best.ckpt")
    method.set_temperature([1.5, 0.7])
    image = torch.rand(2, 3, 16, 24)
    with torch.inference_mode():
        graph = ImageEstimate(method)(image)
    for case in range(2):
        expected = estimate(method, image[case])
        for name in ("probability", "disagreement", "decision"):
            torch.testing.assert_close(graph[name][case], getattr(expected, name))


def test_networks_are_initialised_apart_and_trained_alone(batch: RaterBatch) -> None:
    method = ensemble()
    trainees = method.trainees()
    assert [type(trainee) for trainee in trainees] == [EDUELevels] * 3
    first = [next(iter(trainee.parameters())) for trainee in trainees]
    assert all(not torch.equal(first[0], other) for other in first[1:])
    for trainee in trainees:
        trainee.training_loss(batch)["loss"].backward()
        assert all(parameter.grad is not None for parameter in trainee.parameters())
    with pytest.raises(NotImplementedError, match="trainees"):
        method.training_loss(batch)


def test_the_cost_is_that_of_its_networks() -> None:
    alone = EDUELevels(parts_of(), 4)
    plain = SingleNetwork(parts_of(), HeadLayout("last"))
    image = torch.rand(1, 3, 24, 24)
    one, three = (measure_cost(method, plain, image) for method in (alone, ensemble()))
    assert (three.networks, three.forward_passes) == (3, 3)
    assert three.flops == 3 * one.flops
    assert three.parameters == 3 * one.parameters


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two members, not 1; for one network use method=edue_levels"):
        ensemble(members=1)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        ensemble(levels=1)


@pytest.mark.parametrize("name", ["deep_ensemble_levels", "deep_ensemble_levels_mask"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_checkpoint_rebuilds_the_method(tmp_path: Path, dims: int, name: str) -> None:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        overrides = [f"method={name}", "method.levels=4", "method.members=2", "network.features=[4,6,8]"]
        configuration = resolved(compose("train", overrides))
        alone = resolved(compose("train", [f"method={name.replace('deep_ensemble', 'edue')}"]))["method"]
    # an ensemble of the very method of that name
    shared = {key: value for key, value in alone.items() if key not in ("_target_", "levels")}
    assert {key: configuration["method"][key] for key in shared} == shared
    image_format = ImageFormat(dims, 1, STRUCTURES)
    method = build_method(configuration, image_format).eval()
    save_method(method, tmp_path / "best.ckpt", checkpoint_entries(configuration, image_format))
    again = load_method(tmp_path / "best.ckpt").method
    assert isinstance(again, LevelEnsemble)
    assert again.label == name
    image = torch.rand(1, 1, *[16] * dims)
    torch.testing.assert_close(again(image), method(image), rtol=0, atol=0)
