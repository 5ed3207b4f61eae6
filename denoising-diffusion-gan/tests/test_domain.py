"""Folds into channels and Haar coefficients by closed forms; a whole run is in test_objective.py."""

import numpy as np
import pytest
import torch
from ddgan.checkpoints import make_generator
from ddgan.domain import Domain
from ddgan.options import defaults
from ddgan.process import DenoisingProcess

FOLDS = [("patch", 1.0), ("haar", 1.0), ("haar", 3.0)]


def images(n: int = 2, size: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def matrix_of(domain: Domain, size: int = 4) -> torch.Tensor:
    """The transform as a matrix, from its values at unit vectors."""
    units = torch.eye(3 * size**2, dtype=torch.float64).view(-1, 3, size, size)
    return domain.transform(units).flatten(1).T


@pytest.mark.parametrize("name", ["patch", "haar"])
def test_a_fold_is_orthonormal_up_to_its_factor_so_white_noise_stays_white(name):
    matrix = matrix_of(Domain(name, 3, 4)) * {"patch": 1, "haar": 2}[name]
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64))


@pytest.mark.parametrize(("name", "scale"), [("pixel", 1.0), *FOLDS])
def test_the_inverse_gives_the_images_back(name, scale):
    domain = Domain(name, 3, 8, scale)
    x = domain.transform(images())
    assert x.shape[1:] == domain.shape
    torch.testing.assert_close(domain.inverse(x), images())


def test_haar_coefficients_are_the_mean_and_half_differences_of_each_square():
    square = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]], dtype=torch.float64)
    found = Domain("haar", 1, 2, 10.0).transform(square).flatten()
    mean, columns, rows, diagonals = 15 / 4, (1 - 2 + 4 - 8) / 4, (1 + 2 - 4 - 8) / 4, (1 - 2 - 4 + 8) / 4
    np.testing.assert_allclose(found, [mean, 10 * columns, 10 * rows, 10 * diagonals])


@pytest.mark.parametrize(("name", "scale"), FOLDS)
def test_the_posterior_of_folded_images_is_the_folded_posterior(name, scale):
    process, domain = DenoisingProcess(4), Domain(name, 3, 8, scale)
    x_0, x_t_plus_1, noise = images(6).chunk(3)
    t = torch.tensor([1, 3])
    folded = process.sample_posterior(*(domain.transform(v) for v in (x_0, x_t_plus_1)), t, domain.transform(noise))
    torch.testing.assert_close(folded, domain.transform(process.sample_posterior(x_0, x_t_plus_1, t, noise)))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_no_image_leaves_the_bounds_of_its_coefficients(scale):
    domain = Domain("haar", 3, 2, scale)
    corners = torch.tensor([[a, b, c, d] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)])
    x = domain.transform(corners.float().view(-1, 1, 2, 2).expand(-1, 3, -1, -1)).abs().amax(0)
    bounds = torch.ones_like(x) if domain.bounds() is None else domain.bounds()
    torch.testing.assert_close(x, bounds.expand_as(x))


def test_the_generator_keeps_to_the_bounds_of_each_band():
    config = {**defaults(), "image_size": 16, "num_channels_dae": 8, "ch_mult": [1], "domain": "haar"}
    generator = make_generator({**config, "detail_scale": 3.0, "num_res_blocks": 1})
    for parameter in generator.head.parameters():
        torch.nn.init.normal_(parameter, std=30)
    x = generator(torch.randn(2, 12, 8, 8), torch.tensor([0, 1]), torch.randn(2, 100))
    largest = x.abs().amax((0, 2, 3)).view(3, 4)
    torch.testing.assert_close(largest, torch.tensor([1.0, 3, 3, 3]).expand(3, -1), atol=0.05, rtol=0)
