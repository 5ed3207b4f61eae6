"""DDGAN as the published code does it, to measure ours against: results/benchmark.py denoising-diffusion-gan.

Written from the paper and from facts about that code, not from it, on the networks of this folder. Float32, images and
features over separate channels, resampling filters as zero insertion, padding and convolution, attention in written-out
steps, a generator that keeps its gradients in the discriminator's step, and loops over the parameters in Adam and in
the moving average. No script of this folder uses it.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from ddgan.layers import AdaptiveGroupNorm, Attention, FirDown, FirUp
from ddgan.process import DenoisingProcess
from torch import Tensor, nn


def upfirdn2d(x: Tensor, kernel: Tensor, up: int, down: int, padding: tuple[int, int]) -> Tensor:
    """Insert zeros, pad, filter, and keep every so many pixels (Karras et al. 2019, in tensor operations).

    Args:
        x: (N, C, H, W).
        kernel: (K, K).
        up: each pixel becomes up x up, all but the first of them zero.
        down: keep one of so many rows and columns.
        padding: zeros (before, after) each axis.

    Returns:
        (N, C, H', W') with H' = (up H + sum(padding) - K) // down + 1.
    """
    n, channels, height, width = x.shape
    x = x.reshape(-1, height, 1, width, 1, 1)
    x = F.pad(x, (0, 0, 0, up - 1, 0, 0, 0, up - 1)).view(-1, height * up, width * up, 1)
    x = F.pad(x, (0, 0, *padding, *padding)).permute(0, 3, 1, 2)
    x = F.conv2d(x, kernel.flip(0, 1)[None, None])
    x = x.permute(0, 2, 3, 1)[:, ::down, ::down, :]
    return x.reshape(n, channels, x.shape[1], x.shape[2])


class PlainFir(nn.Module):
    """A resampling filter of the folder's networks, by `upfirdn2d`."""

    kernel: Tensor

    def __init__(self, layer: FirDown | FirUp) -> None:
        super().__init__()
        self.register_buffer("kernel", layer.weight[0, 0].clone())
        if isinstance(layer, FirUp):
            size = len(self.kernel)
            self.up, self.down = 2, 1
            self.padding = (size - 1 - layer.padding, size - 2 - layer.padding)
        else:
            self.up, self.down, self.padding = 1, layer.stride, (layer.padding, layer.padding)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2 H, 2 W) or (N, C, H / 2, W / 2)."""
        return upfirdn2d(x, self.kernel, self.up, self.down, self.padding)


class PlainAdaptiveNorm(nn.Module):
    """`AdaptiveGroupNorm` as a product, a sum and the activation."""

    def __init__(self, layer: AdaptiveGroupNorm) -> None:
        super().__init__()
        self.norm, self.style = layer.norm, layer.style

    def forward(self, x: Tensor, z_emb: Tensor) -> Tensor:
        """(N, C, H, W), (N, z_emb_dim) -> (N, C, H, W)."""
        scale, shift = self.style(z_emb)[:, :, None, None].chunk(2, dim=1)
        return F.silu(scale * self.norm(x) + shift)


class PlainAttention(nn.Module):
    """`Attention` with three projections and all weights between positions written out."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.gain, self.norm, self.qkv, self.out = layer.gain, layer.norm, layer.qkv, layer.out

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        h, (n, channels, height, width) = self.norm(x), x.shape
        assert self.qkv.bias is not None
        assert self.out.bias is not None
        parts = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        q, k, v = (_project(h, weight, bias) for weight, bias in parts)
        weights = torch.einsum("nchw,ncij->nhwij", q, k) * channels**-0.5
        weights = weights.reshape(n, height, width, -1).softmax(dim=-1).reshape(n, height, width, height, width)
        h = torch.einsum("nhwij,ncij->nchw", weights, v)
        return (x + _project(h, self.out.weight, self.out.bias)) * self.gain


def _project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a 1x1 convolution as a product over the last axis."""
    return (torch.tensordot(x.permute(0, 2, 3, 1), weight[:, :, 0, 0].t(), 1) + bias).permute(0, 3, 1, 2)


_PLAIN: dict[type[nn.Module], Callable[..., nn.Module]] = {
    FirDown: PlainFir,
    FirUp: PlainFir,
    AdaptiveGroupNorm: PlainAdaptiveNorm,
    Attention: PlainAttention,
}


def plain_copy(network: nn.Module) -> nn.Module:
    """Return a copy with the same weights, in the same order, whose layers compute as the published ones do."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) in _PLAIN:
                setattr(module, name, _PLAIN[type(child)](child))
    return network


class Draws(NamedTuple):
    """The random numbers of one half of an update."""

    t: Tensor  # (N,) int64 in [0, T)
    x_t: Tensor  # (N, C, H, W), standard normal, like the next two
    x_t_plus_1: Tensor
    posterior: Tensor
    z: Tensor  # (N, nz)


def draw(x_0: Tensor, num_timesteps: int, nz: int) -> Draws:
    """Draw them afresh."""
    t = torch.randint(0, num_timesteps, (len(x_0),), device=x_0.device)
    x_t, x_t_plus_1, posterior = (torch.randn_like(x_0) for _ in range(3))
    return Draws(t, x_t, x_t_plus_1, posterior, torch.randn(len(x_0), nz, device=x_0.device))


class PlainTrainer:
    """Both networks, their optimizers and the generator's average; arguments as in `ddgan.training.Trainer`."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        process: DenoisingProcess,
        *,
        nz: int,
        lr_g: float,
        lr_d: float,
        r1_gamma: float,
        lazy_reg: int,
        ema_decay: float,
    ) -> None:
        self.generator, self.discriminator, self.process = generator, discriminator, process
        self.nz, self.r1_gamma, self.lazy_reg, self.ema_decay = nz, r1_gamma, lazy_reg, ema_decay
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.9), foreach=False, fused=False)
            for network, lr in ((generator, lr_g), (discriminator, lr_d))
        )
        self.ema: list[Tensor] = []

    def update(self, x_0: Tensor, step: int, draws: tuple[Draws, Draws] | None = None) -> tuple[Tensor, Tensor]:
        """Do update `step` of the discriminator, of the generator and of the average.

        Args:
            x_0: (N, C, H, W) float32, clean images in [-1, 1].
            step: decides whether the R1 penalty is due.
            draws: for both halves; drawn where None.

        Returns:
            The losses of the discriminator, without the penalty, and of the generator.
        """
        for_d, for_g = draws or (draw(x_0, self.process.num_timesteps, self.nz) for _ in range(2))
        loss_d = self._update_discriminator(x_0, step, for_d)
        loss_g = self._update_generator(x_0, for_g)
        self._update_ema()
        return loss_d, loss_g

    def _update_discriminator(self, x_0: Tensor, step: int, noise: Draws) -> Tensor:
        self.discriminator.requires_grad_(True)
        self.discriminator.zero_grad()
        x_t, x_t_plus_1 = self.process.q_sample_pairs(x_0, noise.t, noise.x_t, noise.x_t_plus_1)
        x_t.requires_grad_()
        logits_real = self.discriminator(x_t, noise.t, x_t_plus_1)
        loss_real = F.softplus(-logits_real).mean()
        loss_real.backward(retain_graph=True)
        if step % self.lazy_reg == 0:
            (gradient,) = torch.autograd.grad(logits_real.sum(), x_t, create_graph=True)
            penalty = gradient.flatten(1).norm(2, dim=1) ** 2
            (self.r1_gamma / 2 * penalty.mean()).backward()
        loss_fake = F.softplus(self._logits_fake(x_t_plus_1, noise)).mean()
        loss_fake.backward()  # through the generator too, whose gradients are thrown away
        self.optimizer_d.step()
        return (loss_real + loss_fake).detach()

    def _update_generator(self, x_0: Tensor, noise: Draws) -> Tensor:
        self.discriminator.requires_grad_(False)
        self.generator.zero_grad()
        _, x_t_plus_1 = self.process.q_sample_pairs(x_0, noise.t, noise.x_t, noise.x_t_plus_1)
        loss = F.softplus(-self._logits_fake(x_t_plus_1, noise)).mean()
        loss.backward()
        self.optimizer_g.step()
        return loss.detach()

    def _logits_fake(self, x_t_plus_1: Tensor, noise: Draws) -> Tensor:
        x_0_pred = self.generator(x_t_plus_1, noise.t, noise.z)
        x_t = self.process.sample_posterior(x_0_pred, x_t_plus_1, noise.t, noise.posterior)
        return self.discriminator(x_t, noise.t, x_t_plus_1)

    @torch.no_grad()
    def _update_ema(self) -> None:
        parameters = list(self.generator.parameters())
        if not self.ema:
            self.ema = [parameter.detach().clone() for parameter in parameters]
        for average, parameter in zip(self.ema, parameters, strict=True):
            average.mul_(self.ema_decay).add_(parameter * (1 - self.ema_decay))


@torch.no_grad()
def sample(
    generator: nn.Module, process: DenoisingProcess, x: Tensor, step_noise: Callable[[int], tuple[Tensor, Tensor]]
) -> Tensor:
    """Denoise x_T step by step (Xiao et al. 2022, section 4).

    Args:
        generator: in eval mode.
        process: on the device of x.
        x: (N, C, H, W) float32, standard normal.
        step_noise: maps t to a latent, (N, nz), and to the noise of the posterior, like x.

    Returns:
        (N, C, H, W) float32.
    """
    for index in reversed(range(process.num_timesteps)):
        t = torch.full((len(x),), index, dtype=torch.int64, device=x.device)
        z, noise = step_noise(index)
        x = process.sample_posterior(generator(x, t, z), x, t, noise)
    return x
