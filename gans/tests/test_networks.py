import pytest
import torch
from gan.ema import EMA
from gan.networks import Discriminator, Generator, count_parameters, init_weights


def test_parameter_counts_are_those_of_dcgan_at_64_pixels():
    assert count_parameters(Generator(64)) == 3_576_704
    assert count_parameters(Discriminator(64)) == 2_765_568


@pytest.mark.parametrize("image_size", [16, 32, 64, 128])
def test_images_and_logits_have_the_asked_size(image_size):
    generator, discriminator = Generator(image_size, nz=5, ngf=2), Discriminator(image_size, ndf=2)
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, 3, image_size, image_size)
    assert discriminator(images).shape == (3,)


def test_initial_weights_follow_the_paper_and_the_seed():
    first, second = Generator(32), Generator(32)
    init_weights(first, torch.Generator().manual_seed(3))
    init_weights(second, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.layers[0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert first.layers[1].weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert not first.layers[1].bias.any()


def test_average_follows_weights_and_running_statistics():
    network = Generator(16, nz=4, ngf=2)
    ema = EMA(network, decay=0.9)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.randn(8, 4) * 5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    ema.update(network, step=10_000)
    for name, average in ema.network.state_dict().items():
        now = network.state_dict()[name]
        expected = start[name] * 0.9 + now * 0.1 if now.is_floating_point() else now
        assert torch.allclose(average, expected, atol=1e-6), name


def test_average_of_a_young_run_forgets_its_start():
    network = Generator(16, nz=4, ngf=2)
    ema = EMA(network, decay=0.999)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    for step in range(100):
        ema.update(network, step)
    weight = ema.network.layers[0].weight
    assert (weight - 1.0).abs().max() < 1e-3
