import pickle

import numpy as np
import pytest
import torch
from processes import digest, digest_elsewhere
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest

from edue_lightning.data import SyntheticFundus, SyntheticPetCt
from edue_lightning.data.sources.synthetic.base import SyntheticSource
from edue_lightning.data.sources.synthetic.level_set import RaterHabit, expected_variance, unit_field
from edue_lightning.errors import UserError

SOURCES = [SyntheticFundus(6, 32, seed=5), SyntheticPetCt(4, 20, seed=5)]


def redrawn_masks(source: SyntheticSource, case_id: str, draws: int) -> np.ndarray:
    """Return masks of the same scene by the same raters on many days, `[draws, R, K, *S]`."""
    truth = source.scene(source._rng(case_id, 1))[1]
    rng = np.random.default_rng(0)
    return np.stack([truth.draw_masks(source.habits, rng) for _ in range(draws)])


@pytest.mark.parametrize("source", SOURCES)
def test_samples_keep_the_contract(source: SyntheticSource) -> None:
    records = source.cases()
    assert len({record.case_id for record in records}) == source.n_cases
    sample = source.load(records[0].case_id)
    assert sample.image.shape[0] == source.channels
    assert sample.image.shape[1:] == (source.size,) * source.spatial_dims
    assert sample.masks.shape[:2] == (6, len(source.structures))
    assert sample.valid.all()
    assert sample.masks.sum() > 0


@pytest.mark.parametrize("source", SOURCES)
def test_closed_forms_equal_many_draws(source: SyntheticSource) -> None:
    case_id = source.cases()[1].case_id
    masks = redrawn_masks(source, case_id, 400).astype(float)
    probability = source.expected_probability(case_id).numpy()
    deviation = masks.mean(axis=0) - probability
    standard_error = np.sqrt(probability * (1 - probability) / len(masks)) + 1e-3
    assert np.abs(deviation / standard_error).max() < 7
    unsure = (probability > 0.05) & (probability < 0.95)
    # masks of neighbouring voxels go together, so the average over voxels keeps some of the error of a single one
    assert np.abs(deviation[unsure].mean()) < 0.01
    disagreement = masks.var(axis=1).mean(axis=0)
    expected = source.expected_disagreement(case_id).numpy()
    assert np.abs(disagreement - expected).mean() < 0.003
    assert np.corrcoef(disagreement.ravel(), expected.ravel())[0, 1] > 0.99


def test_expected_variance_of_a_panel_by_counting_every_outcome() -> None:
    p = np.array([0.2, 0.7, 0.5])
    total = 0.0
    for outcome in np.ndindex(2, 2, 2):
        labels = np.array(outcome)
        total += np.prod(np.where(labels, p, 1 - p)) * labels.var()
    assert expected_variance(p) == pytest.approx(total)


def test_the_cup_lies_within_the_disc_for_every_rater() -> None:
    source = SyntheticFundus(10, 40, seed=2)
    for record in source.cases():
        disc, cup = source.load(record.case_id).masks.unbind(dim=1)
        assert not (cup & ~disc & 1).any()
        probability = source.expected_probability(record.case_id)
        assert (probability[:, 1] <= probability[:, 0] + 1e-12).all()


def test_raters_keep_their_habits_over_the_cases() -> None:
    source = SyntheticFundus(60, 48, seed=1)
    areas = torch.stack([source.load(r.case_id).masks[:, 0].sum((1, 2)) for r in source.cases()]).double()
    relative = (areas / areas.mean(dim=1, keepdim=True)).mean(dim=0).numpy()
    biases = [habit.bias for habit in source.habits]
    assert np.corrcoef(relative, biases)[0, 1] > 0.9
    assert sum(biases) == pytest.approx(0, abs=1e-9)


def test_unsteady_and_biased_raters_stray_further() -> None:
    source = SyntheticFundus(20, 48, seed=1)
    habits = (RaterHabit(0.0, 0.6, 5.0), RaterHabit(0.0, 1.4, 5.0), RaterHabit(2.0, 0.6, 5.0))
    strayed = np.zeros(len(habits))
    for number, record in enumerate(source.cases()):
        truth = source.scene(source._rng(record.case_id, 1))[1]
        masks = truth.draw_masks(habits, np.random.default_rng(number))
        strayed += (masks != (truth.phi > 0)).sum(axis=(1, 2, 3))
    steady, unsteady, biased = strayed
    assert unsteady > 1.5 * steady
    assert biased > 1.5 * steady


@pytest.mark.parametrize("source", [SyntheticFundus(20, seed=5), SyntheticPetCt(8, seed=5)])
def test_the_edge_is_fainter_where_the_raters_are_less_sure(source: SyntheticSource) -> None:
    """What the raters disagree about can be seen: along an edge, a blurred picture goes with a large sigma."""
    correlations = []
    for record in source.cases():
        image, truth = source.scene(source._rng(record.case_id, 1))
        edge = np.abs(truth.phi[0]) < 1.5
        strength = np.linalg.norm(np.gradient(gaussian_filter(image[-1], 0.8)), axis=0)[edge]
        correlations.append(np.corrcoef(strength, truth.sigma[0][edge])[0, 1])
    assert np.mean(correlations) < -0.2


def test_no_node_is_marked_far_from_the_true_one() -> None:
    source = SyntheticPetCt(12, 48, seed=5)
    for record in source.cases():
        truth = source.scene(source._rng(record.case_id, 1))[1]
        far = torch.from_numpy(truth.phi[0] < -12)
        assert source.expected_probability(record.case_id)[:, 0, far].max() < 0.05


def test_every_setting_has_its_default() -> None:
    assert len(SyntheticFundus().cases()) == 400
    assert SyntheticFundus().load("fundus_0007").image.shape == (3, 64, 64)
    assert SyntheticPetCt(n_cases=1).load("petct_0000").masks.shape == (6, 1, 48, 48, 48)


@pytest.mark.parametrize(
    ("source", "expression"),
    list(zip(SOURCES, ["SyntheticFundus(6, 32, seed=5)", "SyntheticPetCt(4, 20, seed=5)"], strict=True)),
)
def test_a_source_is_the_same_in_every_process(source: SyntheticSource, expression: str) -> None:
    assert digest_elsewhere(expression) == digest(source)


@pytest.mark.parametrize("shape", [(40, 40), (16, 16, 16)])
def test_the_wobble_is_standard_normal_at_every_voxel(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    fields = np.stack([unit_field(shape, 3.0, rng) for _ in range(300)])
    assert kstest(fields[(slice(None), *[0] * len(shape))], "norm").pvalue > 1e-3
    assert np.abs(fields.std(axis=0) - 1).max() < 0.25


@pytest.mark.parametrize("source", SOURCES)
def test_a_case_depends_on_seed_and_number_alone(source: SyntheticSource) -> None:
    last = source.cases()[-1].case_id
    fresh = type(source)(source.n_cases + 5, source.size, seed=5)
    other = type(source)(source.n_cases, source.size, seed=6)
    copy = pickle.loads(pickle.dumps(source))
    for same in (fresh, copy):
        assert torch.equal(same.load(last).image, source.load(last).image)
        assert torch.equal(same.load(last).masks, source.load(last).masks)
    assert not torch.equal(other.load(last).image, source.load(last).image)


def test_the_missing_rate_is_the_one_asked_for() -> None:
    source = SyntheticFundus(1500, 24, missing_rater_rate=0.4)
    valid = np.stack([source._valid(record.case_id) for record in source.cases()])
    assert 1 - valid.mean() == pytest.approx(0.4, abs=0.02)


def test_missing_raters_are_marked_and_one_always_remains() -> None:
    source = SyntheticFundus(40, 24, missing_rater_rate=0.9, seed=3)
    samples = [source.load(record.case_id) for record in source.cases()]
    remaining = [int(sample.valid.sum()) for sample in samples]
    assert min(remaining) == 1
    # six raters at 0.1 each, and the one who is kept where all would be missing
    assert np.mean(remaining) == pytest.approx(6 * 0.1 + 0.9**6, abs=0.3)
    assert all(not sample.masks[~sample.valid].any() for sample in samples)
    alone = samples[remaining.index(1)]
    # one rater's expected variance with himself is 0
    assert source.expected_disagreement(alone.case_id).abs().max() < 1e-12


@pytest.mark.parametrize(
    "settings", [{"n_cases": 0}, {"size": 4}, {"raters": 0}, {"missing_rater_rate": 2.0}, {"seed": -1}]
)
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"data\.source"):
        SyntheticFundus(**{"n_cases": 5, "size": 32, **settings})
