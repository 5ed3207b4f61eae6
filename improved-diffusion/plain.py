"""Improved DDPM as OpenAI's package does it, to measure ours against: results/benchmark.py improved-diffusion.

Written from the papers and from facts about that package, not from its code, on the weights of this folder's network.
Float32, features over separate channels, attention in written-out steps, coefficients fetched from float64 tables at
every use, every term of the bound at every t, loops over the parameters in AdamW, the gradient norm and the moving
average, and pictures that are decoded from files again in every epoch. No script of this folder uses it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from improved_diffusion.losses import discretized_gaussian_log_likelihood, normal_kl
from improved_diffusion.nn import timestep_embedding, timestep_frequencies
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.unet import AttentionBlock, ResBlock, UNetModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class PlainUNet(nn.Module):
    """The weights of an unconditional `UNetModel`, with scale-shift norms, computed as OpenAI's network computes."""

    def __init__(self, unet: UNetModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Map x_t, (N, 3, H, W), and (N,) timesteps to the prediction, (N, 6, H, W)."""
        width = 2 * len(self.unet.frequencies)
        frequencies = timestep_frequencies(width).to(x.device)  # made anew, and moved, at each call
        emb = _sequence(self.unet.time_embed, timestep_embedding(timesteps, frequencies))
        h, skips = x, []
        for block in self.unet.input_blocks:
            h = _block(block, h, emb)
            skips.append(h)
        h = _block(self.unet.middle_block, h, emb)
        for block in self.unet.output_blocks:
            h = _block(block, torch.cat([h, skips.pop()], dim=1), emb)
        return _sequence(self.unet.out, h)


def _sequence(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Apply layers, SiLU as a product with a sigmoid."""
    for layer in layers:
        x = x * torch.sigmoid(x) if isinstance(layer, nn.SiLU) else layer(x)
    return x


def _block(layers: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    for layer in layers.children():
        if isinstance(layer, ResBlock):
            h = _residual(layer, h, emb)
        elif isinstance(layer, AttentionBlock):
            h = _attention(layer, h)
        else:
            h = layer(h)
    return h


def _residual(block: ResBlock, x: Tensor, emb: Tensor) -> Tensor:
    h = _sequence(block.in_layers, x)
    scale, shift = _sequence(block.emb_layers, emb)[:, :, None, None].chunk(2, dim=1)
    h = block.out_layers[0](h) * (1 + scale) + shift
    return block.skip_connection(x) + _sequence(block.out_layers[1:], h)


def _attention(block: AttentionBlock, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    x = x.reshape(n, channels, -1)
    qkv = block.qkv(block.norm(x)).reshape(n * block.num_heads, -1, x.shape[2])
    q, k, v = qkv.chunk(3, dim=1)  # each (N * heads, C / heads, T)
    scale = q.shape[1] ** -0.25
    weights = torch.einsum("nct,ncs->nts", q * scale, k * scale).softmax(dim=-1)
    h = torch.einsum("nts,ncs->nct", weights, v).reshape(n, channels, -1)
    return (x + block.proj_out(h)).reshape(n, channels, height, width)


def _at(table: np.ndarray, t: Tensor, shape: Sequence[int]) -> Tensor:
    """Move a (T,) float64 table to the device and pick the entries of (N,) timesteps, as (N, C, H, W) float32."""
    return torch.from_numpy(table).to(t.device)[t].float()[:, None, None, None].expand(tuple(shape))


class PlainDiffusion:
    """Noising, loss and sampling of a network that predicts the noise and its variance (L_hybrid).

    Args:
        process: whose tables are used; of all timesteps or respaced.
    """

    def __init__(self, process: SpacedDiffusion) -> None:
        self.process = process
        self.num_timesteps = process.num_timesteps

    def call(self, network: Callable[..., Tensor], x: Tensor, t: Tensor) -> Tensor:
        """Call the network with the original timesteps, scaled to 1,000."""
        original = torch.tensor(self.process.timestep_map, device=t.device)[t]
        return network(x, original.float() * (1000.0 / self.process.original_num_steps))

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t (Ho et al. 2020, Eq. 4)."""
        signal = _at(self.process.sqrt_alphas_cumprod, t, x_start.shape) * x_start
        return signal + _at(self.process.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise

    def posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and log-variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eqs. 6 and 7)."""
        p, shape = self.process, x_t.shape
        mean = _at(p.posterior_mean_coef1, t, shape) * x_start + _at(p.posterior_mean_coef2, t, shape) * x_t
        return mean, _at(p.posterior_variance, t, shape), _at(p.posterior_log_variance_clipped, t, shape)

    def p_mean_variance(self, output: Tensor, x: Tensor, t: Tensor, clip: bool) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of p(x_{t-1} | x_t) (Nichol & Dhariwal 2021, Eq. 15)."""
        p, shape = self.process, x.shape
        eps, values = output.split(x.shape[1], dim=1)
        low = _at(p.posterior_log_variance_clipped, t, shape)
        high = _at(np.log(p.betas), t, shape)
        share = (values + 1) / 2
        log_variance = share * high + (1 - share) * low
        x_start = _at(p.sqrt_recip_alphas_cumprod, t, shape) * x - _at(p.sqrt_recipm1_alphas_cumprod, t, shape) * eps
        mean, _, _ = self.posterior(x_start.clamp(-1, 1) if clip else x_start, x, t)
        return mean, log_variance

    def training_losses(
        self, network: Callable[..., Tensor], x_start: Tensor, t: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return 'mse', 'vb' and their sum 'loss', each (N,) (Nichol & Dhariwal 2021, Eq. 16)."""
        x_t = self.q_sample(x_start, t, noise)
        output = self.call(network, x_t, t)
        eps, values = output.split(x_t.shape[1], dim=1)
        vb = self._bound(torch.cat([eps.detach(), values], dim=1), x_start, x_t, t) * (self.num_timesteps / 1000.0)
        # Every target that a network could have is computed, and one of them used.
        targets = {"previous": self.posterior(x_start, x_t, t)[0], "start": x_start, "noise": noise}
        mse = ((targets["noise"] - eps) ** 2).mean(dim=(1, 2, 3))
        return {"loss": mse + vb, "mse": mse, "vb": vb}

    def _bound(self, output: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        true_mean, _, true_log_variance = self.posterior(x_start, x_t, t)
        mean, log_variance = self.p_mean_variance(output, x_t, t, clip=False)
        kl = normal_kl(true_mean, true_log_variance, mean, log_variance).mean(dim=(1, 2, 3))
        nll = -discretized_gaussian_log_likelihood(x_start, means=mean, log_scales=0.5 * log_variance)
        return torch.where(t == 0, nll.mean(dim=(1, 2, 3)), kl) / np.log(2.0)

    @torch.no_grad()
    def sample(self, network: Callable[..., Tensor], x: Tensor, step_noise: Callable[[int], Tensor]) -> Tensor:
        """Take all ancestral steps (Ho et al. 2020, Algorithm 2) from x_T, (N, 3, H, W)."""
        for i in reversed(range(self.num_timesteps)):
            t = torch.tensor([i] * len(x), device=x.device)
            mean, log_variance = self.p_mean_variance(self.call(network, x, t), x, t, clip=True)
            not_last = (t != 0).float().view(-1, 1, 1, 1)
            x = mean + not_last * torch.exp(0.5 * log_variance) * step_noise(i)
        return x


class PlainTrainer:
    """A network in training, with one moving average.

    Args:
        network: on its device.
        diffusion: whose loss is minimised.
        lr: of AdamW.
        ema_rate: of the moving average.
    """

    def __init__(self, network: nn.Module, diffusion: PlainDiffusion, lr: float, ema_rate: float = 0.9999) -> None:
        self.network, self.diffusion, self.ema_rate = network, diffusion, ema_rate
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0, foreach=False, fused=False)
        self.ema = [parameter.detach().clone() for parameter in self.parameters]
        self.logged: dict[str, list[float]] = {}

    def update(self, x_start: Tensor, t: Tensor | None = None, noise: Tensor | None = None) -> None:
        """Make one update from (N, 3, H, W) images in [-1, 1]; timesteps and noise are drawn where None."""
        if t is None:
            chances = np.ones(self.diffusion.num_timesteps) / self.diffusion.num_timesteps
            t = torch.from_numpy(np.random.choice(len(chances), len(x_start), p=chances)).to(x_start.device)
        noise = torch.randn_like(x_start) if noise is None else noise
        self.network.train()
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        losses = self.diffusion.training_losses(self.network, x_start, t, noise)
        self._log(losses, t)
        losses["loss"].mean().backward()
        norm = sum((p.grad**2).sum().item() for p in self.parameters if p.grad is not None) ** 0.5
        self.logged.setdefault("grad_norm", []).append(norm)
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.ema, self.parameters, strict=True):
                average.mul_(self.ema_rate).add_(parameter, alpha=1 - self.ema_rate)

    def _log(self, losses: dict[str, Tensor], t: Tensor) -> None:
        """Log each loss, and each image's by quartile of t, which waits for the device."""
        for name, values in losses.items():
            self.logged.setdefault(name, []).append(values.mean().item())
            for step, value in zip(t.cpu().numpy(), values.detach().cpu().numpy(), strict=True):
                quartile = int(4 * step / self.diffusion.num_timesteps)
                self.logged.setdefault(f"{name}_q{quartile}", []).append(float(value))


class Files(Dataset):
    """Pictures that are decoded from their files each time they are asked for.

    They are opened through blobfile, as there, where it is installed, else directly, which saves a quarter of the time.

    Args:
        paths: of the files.
        image_size: S, pixels.
    """

    def __init__(self, paths: Sequence[Path], image_size: int) -> None:
        self.paths, self.image_size = [str(path) for path in paths], image_size
        try:
            from blobfile import BlobFile
        except ImportError:
            self.open: Callable[..., Any] = open
        else:
            self.open = BlobFile

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return (3, S, S) float32 in [-1, 1]."""
        size = self.image_size
        with self.open(self.paths[index], "rb") as file:
            image: Image.Image = Image.open(file)
            image.load()
        while min(image.size) >= 2 * size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        array = np.array(image.convert("RGB"))
        top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
        array = array[top : top + size, left : left + size]
        return np.transpose(array.astype(np.float32) / 127.5 - 1, [2, 0, 1])


def epoch(paths: Sequence[Path], image_size: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield an epoch of (N, 3, S, S) float32 batches on the device, read by one worker process that ends with it."""
    loader = DataLoader(Files(paths, image_size), batch_size, shuffle=True, num_workers=1, drop_last=True)
    for batch in loader:
        yield batch.to(device)
