"""DiffAugment: what each change does, that gradients pass, and that it depends on (seed, step, name, row) alone."""

import pytest
import torch
from gan.augmentation import DiffAugment, change_colors, cut_out, translate
from gan.build import build_gan

ALL = "color,translation,cutout"


def pictures(n=4, size=16, channels=3, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make(policy=ALL, seed=0, batch_size=8, rows=None):
    return DiffAugment(policy, seed, batch_size, rows or slice(0, batch_size))


def test_colours_are_those_of_the_three_steps_one_by_one():
    x = pictures(2)
    brightness, saturation, contrast = torch.tensor([[0.1, 0.7], [0.9, 0.2], [0.3, 0.8]])
    y = x + (brightness - 0.5)[:, None, None, None]
    grey = y.mean(1, keepdim=True)
    y = (y - grey) * (2 * saturation)[:, None, None, None] + grey
    mean = y.mean((1, 2, 3), keepdim=True)
    y = (y - mean) * (contrast + 0.5)[:, None, None, None] + mean
    assert torch.allclose(change_colors(x, brightness, saturation, contrast), y, atol=1e-5)


def test_translation_moves_whole_pixels_and_lets_zeros_in():
    x = pictures(3, size=8) + 3  # no zero of its own
    moved = translate(x, torch.tensor([0, 2, -1]), torch.tensor([0, -3, 1]))
    assert torch.equal(moved[0], x[0])
    assert torch.equal(moved[1, :, 2:, :5], x[1, :, :-2, 3:])
    assert not moved[1, :, :2].any()
    assert not moved[1, :, :, 5:].any()
    assert torch.equal(moved[2, :, :7, 1:], x[2, :, 1:, :7])
    assert not moved[2, :, 7].any()
    assert not moved[2, :, :, 0].any()


def test_cutout_leaves_a_hole_of_half_the_side_cut_at_the_border():
    x = pictures(2, size=8) + 3
    cut = cut_out(x, torch.tensor([4, 0]), torch.tensor([4, 7]))
    holes = (cut == 0).all(1)
    assert torch.equal(holes[0].nonzero().amin(0), torch.tensor([2, 2]))
    assert torch.equal(holes[0].nonzero().amax(0), torch.tensor([5, 5]))
    assert holes[0].sum() == 16
    assert holes[1].nonzero().tolist() == [[0, 5], [0, 6], [0, 7], [1, 5], [1, 6], [1, 7]]
    assert torch.equal(cut[:, :, ~holes[0] & ~holes[1]], x[:, :, ~holes[0] & ~holes[1]])


@pytest.mark.parametrize(("size", "channels"), [(16, 3), (64, 1), (17, 3)])
def test_every_size_is_moved_by_at_most_an_eighth(size, channels):
    x = torch.ones(64, channels, size, size)
    moved = make("translation", batch_size=64)(x, 0, "real")
    assert moved.shape == x.shape
    empty = (moved[:, 0] == 0).all(2).sum(1)
    assert empty.max() == int(size / 8 + 0.5)
    assert empty.min() == 0


def test_draws_depend_on_seed_step_name_and_row_alone():
    x = pictures(8)
    whole = make()(x, 3, "real")
    assert torch.equal(whole, make()(x, 3, "real"))
    assert torch.equal(whole[4:], make(rows=slice(4, 8))(x[4:], 3, "real"))
    others = make(seed=1)(x, 3, "real"), make()(x, 4, "real"), make()(x, 3, "fake")
    assert not any(torch.allclose(whole, other) for other in others)


def test_discriminator_sees_real_and_fake_images_changed_in_the_same_way_and_the_generator_learns_through_it():
    options = {"image_size": 16, "nz": 8, "ngf": 4, "ndf": 4, "seed": 0}
    gan = build_gan({**options, "diffaugment": "cutout", "batch_size": 8, "d_norm": "none"}, "cpu", None)
    seen = []
    gan.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    before = [p.clone() for p in gan.generator.parameters()]
    gan.train_step(torch.ones(8, 3, 16, 16), torch.randn(8, 8), 0)
    shares = [(images == 0).all(1).float().mean().item() for images in seen]
    assert len(shares) == 3
    assert all(0.1 < share <= 0.25 for share in shares), shares
    assert not any(torch.equal(a, b) for a, b in zip(before, gan.generator.parameters(), strict=True))
