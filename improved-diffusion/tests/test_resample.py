"""How training draws its timesteps."""

import numpy as np
import pytest
import torch
from diffusion_testing import REFERENCE, tiny_flags
from improved_diffusion.resample import (
    LossSecondMomentResampler,
)
from improved_diffusion.script_util import create_diffusion

CPU = torch.device("cpu")


NAMES = ("weights_cold", "weights", "ts", "losses")


def diffusion(steps):
    return create_diffusion(tiny_flags(diffusion_steps=steps, noise_schedule="cosine"))


def generator():
    return torch.Generator().manual_seed(0)


def warm(steps=6, **options):
    """A sampler whose history is full: the losses of t are near t + 1."""
    sampler = LossSecondMomentResampler(diffusion(steps), **options)
    ts = torch.arange(steps).repeat(20)
    sampler.update_with_all_losses(ts, ts + 1 + 0.1 * torch.rand(len(ts), generator=generator()))
    return sampler


@pytest.mark.parametrize("batch", [1, 13, 650])
def test_weights_are_the_reference_ones_however_the_losses_are_split(batch):
    arrays = {name: np.load(REFERENCE / "improved_diffusion_math.npz")[f"resampler/{name}"] for name in NAMES}
    sampler = LossSecondMomentResampler(diffusion(len(arrays["weights"])))
    np.testing.assert_array_equal(sampler.weights(), arrays["weights_cold"])
    ts, losses = torch.from_numpy(arrays["ts"]), torch.from_numpy(arrays["losses"])
    for part in range(0, len(ts), batch):
        sampler.update_with_local_losses(ts[part : part + batch], losses[part : part + batch])
    np.testing.assert_allclose(sampler.weights(), arrays["weights"], rtol=1e-6)


def test_all_timesteps_are_alike_until_each_has_a_full_history():
    sampler = LossSecondMomentResampler(diffusion(3), history_per_term=2)
    sampler.update_with_all_losses(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([5.0, 5, 5, 1, 1, 1]))
    assert sampler.weights().tolist() == [1, 1, 1]
    _, factors = sampler.sample(100, CPU, generator())
    assert factors.tolist() == [1] * 100
    sampler.update_with_all_losses(torch.tensor([2]), torch.tensor([2.0]))
    moments = np.array([5, 1, np.sqrt(2.5)])
    expected = 0.999 * moments / moments.sum() + 0.001 / 3
    np.testing.assert_allclose(sampler.weights(), expected, rtol=1e-6)


def test_timesteps_are_drawn_by_their_weights_and_the_loss_stays_unbiased():
    sampler, count = warm(uniform_prob=0.1), 200_000
    t, factors = sampler.sample(count, CPU, generator())
    shares = np.bincount(t.numpy(), minlength=6) / count
    np.testing.assert_allclose(shares, sampler.weights(), atol=0.005)
    assert (t[:5].dtype, factors.dtype) == (torch.int64, torch.float32)
    losses = (t + 1.0).square()
    assert (losses * factors).mean() == pytest.approx(np.mean(np.arange(1, 7) ** 2), rel=0.01)
    assert (losses * factors).std() < 0.7 * losses.std()


def test_restored_sampler_goes_on_as_the_saved_one(tmp_path):
    saved, restored = warm(), LossSecondMomentResampler(diffusion(6))
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for sampler in (saved, restored):
        sampler.update_with_all_losses(torch.tensor([1, 1, 4]), torch.tensor([9.0, 8.0, 7.0]))
    np.testing.assert_array_equal(restored.weights(), saved.weights())
    assert torch.equal(restored.sample(9, CPU, generator())[0], saved.sample(9, CPU, generator())[0])
    with pytest.raises(ValueError, match="another number of timesteps"):
        LossSecondMomentResampler(diffusion(5)).load_state_dict(saved.state_dict())
