"""The networks: agreement with the published ones, parameter counts, and what was broken there."""

import pytest
import torch
import torch.nn.functional as F
from ddgan.checkpoints import generator_from_nvlabs, make_generator
from ddgan.discriminator import Discriminator
from ddgan.fir import FirDown, FirUp, Resample, fir_weight
from ddgan.layers import MinibatchStddev
from helpers_ddgan import archive, config_of, discriminator_from_nvlabs, weights_by_recipe


@pytest.mark.parametrize("case", ["cifar10", "small_fourier", "small_output_skip", "small_ddpm_block"])
def test_generator_gives_the_published_output(case):
    arrays = archive("ddgan_generator.npz")
    generator = generator_from_nvlabs(weights_by_recipe(arrays, case), config_of(arrays, case)).eval()
    with torch.no_grad():
        output = generator(*(torch.tensor(arrays[f"{case}/{name}"]) for name in ("x", "t", "z")))
    torch.testing.assert_close(output, torch.tensor(arrays[f"{case}/output"]), atol=2e-5, rtol=0)
    # The published count includes the fixed frequencies of the fourier embedding.
    assert sum(value.numel() for value in generator.state_dict().values()) == arrays[f"{case}/parameters"]


@pytest.mark.parametrize("case", ["small_cifar10", "large_narrow"])
def test_discriminator_gives_the_published_output_gradient_and_r1(case):
    arrays = archive("ddgan_discriminator.npz")
    discriminator = discriminator_from_nvlabs(weights_by_recipe(arrays, case, "module."), config_of(arrays, case))
    x_t = torch.tensor(arrays[f"{case}/x"], requires_grad=True)
    logits = discriminator(x_t, torch.tensor(arrays[f"{case}/t"]), torch.tensor(arrays[f"{case}/x_t_plus_1"]))
    (gradient,) = torch.autograd.grad(logits.sum(), x_t)
    expected = torch.tensor(arrays[f"{case}/grad_x"])
    torch.testing.assert_close(logits.detach(), torch.tensor(arrays[f"{case}/output"]), atol=2e-5, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    r1 = gradient.square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(r1, torch.tensor(arrays[f"{case}/r1_unscaled"]), atol=0, rtol=1e-5)
    assert sum(p.numel() for p in discriminator.parameters()) == arrays[f"{case}/parameters"]


def test_published_weights_of_another_configuration_are_refused():
    arrays = archive("ddgan_generator.npz")
    case = "small_ddpm_block"
    config, state = config_of(arrays, case), weights_by_recipe(arrays, case)
    with pytest.raises(ValueError, match=r"lacks|has"):
        generator_from_nvlabs(state, {**config, "resblock_type": "biggan"})
    with pytest.raises(RuntimeError, match="shape"):
        generator_from_nvlabs(state, {**config, "nz": 50})
    with pytest.raises(ValueError, match=r"has z_transform\.7"):
        generator_from_nvlabs(state, {**config, "n_mlp": 2})


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"ch_mult": [1, 2, 2, 2], "n_mlp": 4}, 48_432_515),
        ({"ch_mult": [1, 2, 2, 2], "n_mlp": 3}, 48_366_723),
        ({"ch_mult": [1, 2, 2, 2], "n_mlp": 4, "resblock_type": "biggan_oneadagn"}, 45_155_715),
        ({"ch_mult": [1, 1, 2, 2, 4, 4], "num_channels_dae": 64, "image_size": 256}, 39_726_979),
    ],
)
def test_generator_has_the_published_number_of_parameters(config, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in make_generator(config).parameters()) == count


def dense_fir(x, gain=1.0):
    """Filter every channel by the 4x4 kernel on the zero-extended plane: (N, C, H, W) -> (N, C, H + 3, W + 3)."""
    return F.conv2d(x, gain * fir_weight(x.shape[1], (1, 3, 3, 1)).double(), padding=3, groups=x.shape[1])


def zero_insertion(x):
    n, c, h, w = x.shape
    out = x.new_zeros(n, c, 2 * h, 2 * w)
    out[:, :, ::2, ::2] = x
    return out


@pytest.mark.parametrize(
    "fir",
    [FirDown(3), FirUp(3), FirDown(3, stride=1, padding=2), FirUp(3, padding=0), FirUp(3, (1, 2, 3, 3, 2, 1))],
    ids=["down", "up", "filter", "margin", "six taps"],
)
def test_filter_along_the_axes_is_the_depthwise_convolution(fir):
    x = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for layout in (torch.contiguous_format, torch.channels_last):
        image = x.to(memory_format=layout)
        expected, found = fir(image), fir._separable(image)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert found.is_contiguous(memory_format=torch.channels_last)
        first, second = (torch.autograd.grad(y.square().sum(), x)[0] for y in (expected, found))
        torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        half = fir._separable(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), fir(x.detach()), atol=0.03, rtol=0.02)
    fir._separable(x.bfloat16()).sum().backward()  # by a matrix that was made for inference


def test_resampling_with_convolution_acts_on_the_zero_extended_plane():
    x = torch.randn(2, 3, 8, 8)
    up = Resample("up", 3, (1, 3, 3, 1), 5)
    plane = dense_fir(F.pad(zero_insertion(x.double()), (4, 4, 4, 4)), gain=4)
    everywhere = F.conv2d(plane, up[-1].weight.double(), padding=1)
    torch.testing.assert_close(up(x), everywhere[:, :, 5:21, 5:21].float(), atol=1e-5, rtol=0)
    down = Resample("down", 3, (1, 3, 3, 1), 5)
    plane = F.conv2d(dense_fir(F.pad(x.double(), (4, 4, 4, 4))), down[-1].weight.double())
    torch.testing.assert_close(down(x), plane[:, :, 5:13, 5:13][:, :, ::2, ::2].float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("n", "group"), [(8, 4), (6, 3), (7, 1), (2, 2)])
def test_minibatch_stddev_takes_any_batch(n, group):
    x = torch.randn(n, 5, 4, 4)
    feature = MinibatchStddev()(x)[:, 5]
    strided = x[:: n // group]  # image 0 with the others of its group
    expected = (strided.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
    torch.testing.assert_close(feature[0], expected.expand(4, 4))


@pytest.mark.parametrize(("size", "count"), [("small", 12_741_633), ("large", 27_737_217)])
def test_discriminator_has_the_published_number_of_parameters(size, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in Discriminator(size).parameters()) == count
