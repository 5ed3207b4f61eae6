"""Metrics against closed forms; intervals against repetition."""

import math

import numpy as np
import pytest
import torch
from comparison.formatting import differ_significantly
from comparison.scores import distances, metrics, neighbours


def normal(n, d, seed, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, d)) * scale + shift).float()


def covariance(d, rank, seed):
    x = normal(rank, d, seed).double()
    return x.T @ x / rank


def test_frechet_distance_of_two_diagonal_gaussians():
    mean = torch.tensor([1.0, 2.0], dtype=torch.float64)
    one, other = torch.diag(torch.tensor([4.0, 9.0])).double(), torch.diag(torch.tensor([1.0, 1.0])).double()
    assert metrics.frechet(mean, one, torch.zeros(2).double(), other) == pytest.approx(5 + (2 - 1) ** 2 + (3 - 1) ** 2)


@pytest.mark.parametrize(("rank", "tolerance"), [(60, 1e-9), (10, 1e-4)])
def test_frechet_distance_equals_the_matrix_square_root(rank, tolerance):
    from scipy.linalg import sqrtm

    one, other = covariance(24, rank, 1), covariance(24, 80, 2)
    mean = normal(2, 24, 3).double()
    root = np.asarray(sqrtm((one @ other).numpy())).real
    expected = float((mean[0] - mean[1]).square().sum() + one.trace() + other.trace() - 2 * np.trace(root))
    assert metrics.frechet(mean[0], one, mean[1], other) == pytest.approx(expected, rel=tolerance)


def test_left_out_moments_are_those_of_the_rest():
    x = normal(60, 5, 4)
    seen = []
    metrics.frechet_estimate(lambda mean, cov: seen.append((mean, cov)) or 0.0, x)
    for (mean, cov), group in zip(seen[1:], metrics.split_groups(60), strict=True):
        rest = torch.cat([x[: group.start], x[group.stop :]])
        expected = metrics.moments(rest)
        assert torch.allclose(mean, expected[0], atol=1e-9)
        assert torch.allclose(cov, expected[1], atol=1e-9)


def test_sliced_distance_of_shifted_sets_is_the_mean_length_of_the_projected_shift():
    x = normal(500, 8, 1)
    shift = torch.tensor([3.0, -1, 0, 0, 2, 0, 0, 0])
    expected = float((shift @ distances.directions(8)).square().mean().sqrt())
    assert distances.SlicedWasserstein(x)(x + shift).value == pytest.approx(expected, rel=1e-4)


def test_sliced_distance_takes_sets_of_different_sizes():
    a, b = normal(4000, 5, 3), normal(1000, 5, 4, scale=2)
    projected = distances.directions(5).square().sum(0).sqrt()  # unit: N(0, 1) against N(0, 4) is 1 apart
    assert projected.allclose(torch.ones(len(projected)))
    assert distances.SlicedWasserstein(a)(b).value == pytest.approx(1, abs=0.1)


def test_class_entropy_is_that_of_the_counts():
    counts = torch.tensor([[4, 4, 0, 0]] * 5)
    found = metrics.class_entropy(counts)
    assert found.value == pytest.approx(1)
    assert found.n == 40
    assert metrics.class_entropy(torch.tensor([[8, 0], [8, 0]])).value == 0
    assert metrics.class_entropy(torch.full((20, 10), 7)).value == pytest.approx(math.log2(10))


def test_class_entropy_interval_holds_most_draws():
    rng = np.random.default_rng(0)
    truth, hits = np.full(10, 0.1), 0
    expected = np.mean([metrics._entropy(torch.from_numpy(rng.multinomial(400, truth))) for _ in range(200)])
    for _ in range(40):
        found = metrics.class_entropy(torch.from_numpy(rng.multinomial(20, truth, size=20)))
        hits += found.low <= expected <= found.high
    assert hits >= 33


def brute_kernel(a, b):
    return (a.double() @ b.double().T / a.shape[1] + 1) ** 3


def test_kernel_distance_equals_the_plain_formula():
    a, b = normal(50, 6, 5), normal(40, 6, 6, shift=0.3)
    own_a, own_b, across = brute_kernel(a, a), brute_kernel(b, b), brute_kernel(a, b)
    expected = (own_a.sum() - own_a.trace()) / (50 * 49) + (own_b.sum() - own_b.trace()) / (40 * 39)
    expected -= 2 * across.mean()
    found = distances.kernel_estimate(a, distances.kernel_self(a), b)
    assert found.value == pytest.approx(float(expected), rel=1e-5)


def test_coverage_and_density_have_their_expectation_for_equal_distributions():
    n, k = 1500, metrics.NEIGHBOURS
    found = [neighbours.prdc(a := normal(n, 16, s), neighbours.radii(a), normal(n, 16, s + 100)) for s in range(3)]
    expected = 1 - math.prod((n - 1 - i) / (2 * n - 1 - i) for i in range(k))
    assert expected == pytest.approx(0.969, abs=1e-3)
    assert np.mean([f["coverage"].value for f in found]) == pytest.approx(expected, abs=0.006)
    assert np.mean([f["density"].value for f in found]) == pytest.approx(1, abs=0.05)


def brute_prdc(real, fake, k):
    def radius(x):
        return torch.cdist(x, x).sort(1).values[:, k]

    d = torch.cdist(fake, real)
    in_real, in_fake = d <= radius(real), d <= radius(fake)[:, None]
    return {
        "precision": in_real.any(1).double().mean(),
        "recall": in_fake.any(0).double().mean(),
        "density": in_real.double().sum(1).mean() / k,
        "coverage": in_real.any(0).double().mean(),
    }


def test_prdc_equals_the_plain_definition(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    real, fake = normal(90, 3, 7), normal(80, 3, 8, scale=0.8)
    found = neighbours.prdc(real, neighbours.radii(real), fake)
    for name, value in brute_prdc(real, fake, metrics.NEIGHBOURS).items():
        assert found[name].value == pytest.approx(float(value)), name


def test_prdc_left_out_values_are_those_of_the_rest(monkeypatch):
    left = {}
    monkeypatch.setattr(neighbours, "jackknife", lambda value, parts, n, **_: left.setdefault(len(left), parts))
    real, fake = normal(90, 3, 9), normal(80, 3, 10)
    neighbours.prdc(real, neighbours.radii(real), fake)
    for i, group in enumerate(metrics.split_groups(80)):
        rest = brute_prdc(real, torch.cat([fake[: group.start], fake[group.stop :]]), metrics.NEIGHBOURS)
        found = {name: parts[i] for name, parts in zip(("recall", "density", "coverage"), left.values(), strict=True)}
        for name, value in found.items():
            assert value == pytest.approx(float(rest[name])), name


def test_copies_are_memorised_and_fresh_draws_are_not():
    training, fresh = normal(500, 16, 14), normal(200, 16, 15)
    copies = training[:200] + normal(200, 16, 16, scale=1e-3)
    assert neighbours.memorised(neighbours.nearest_training(copies, training)).value == 1
    assert neighbours.memorised(neighbours.nearest_training(training[:200], training)).value == 1
    assert neighbours.memorised(neighbours.nearest_training(fresh, training)).value < 0.02


def test_nearest_training_image_is_found_and_own_images_do_not_count():
    training = normal(50, 3, 17)
    own = torch.arange(10)
    found = neighbours.nearest_training(training[own], training)
    assert torch.equal(found.index, own)
    assert found.distance.max() == 0
    away = neighbours.nearest_training(training[own], training, own)
    assert (away.index >= 10).all()
    expected = torch.cdist(training[own], training[10:]).min(1)
    assert torch.equal(away.index, expected.indices + 10)
    assert torch.allclose(away.distance, expected.values, atol=1e-5)


def frechet_of(reference, x):
    return metrics.frechet_estimate(metrics.frechet_from(*metrics.moments(reference)), x)


def kernel_of(reference, x):
    return distances.kernel_estimate(reference, distances.kernel_self(reference), x)


def sliced_of(reference, x):
    return distances.SlicedWasserstein(reference)(x)


def prdc_of(name):
    return lambda reference, x: neighbours.prdc(reference, neighbours.radii(reference), x)[name]


@pytest.mark.parametrize(
    "measure",
    [frechet_of, kernel_of, sliced_of, *(prdc_of(name) for name in ("precision", "recall", "density", "coverage"))],
    ids=["frechet", "kernel", "sliced", "precision", "recall", "density", "coverage"],
)
def test_intervals_cover_the_mean_of_repeated_draws(measure):
    """95% of the intervals should hold the value that draws of this size have on average."""
    reference = normal(400, 4, 0)
    found = [measure(reference, normal(400, 4, seed, scale=1.1, shift=0.2)) for seed in range(1, 61)]
    mean = np.mean([f.value for f in found])
    covered = np.mean([f.low <= mean <= f.high for f in found])
    assert covered >= 0.87
    width = np.mean([f.high - f.low for f in found]) / 2
    assert width < 2 * 1.96 * np.std([f.value for f in found])  # and do so without being vast


def test_share_at_its_bound_still_has_an_interval():
    found = metrics.share(torch.ones(300))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - 3 / 300)


def test_entries_are_apart_only_beyond_both_intervals():
    a, b = {"value": 1.0, "interval": [0.7, 1.3]}, {"value": 1.4, "interval": [1.0, 1.8]}
    assert not differ_significantly(a, b)
    assert differ_significantly(a, {"value": 1.6, "interval": [1.2, 2.0]})
    assert differ_significantly({"value": 3}, {"value": 4})
