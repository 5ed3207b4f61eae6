"""NCSN++ generator G(x_{t+1}, t, z) -> x_0 (Song et al. 2021; Xiao et al. 2022, appendix C).

With classes it is G(x_{t+1}, t, z, y): the label embedding is added to the latent's, so both modulate the norms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddgan.conditional import label_embedding
from ddgan.fir import Resample
from ddgan.layers import ROOT_HALF, Attention, FourierFeatures, GroupNorm, ResidualBlock, conv, linear, sinusoids


@dataclass(frozen=True)
class GeneratorConfig:
    """Architecture of the generator: the published flags, the number of classes and the output bounds."""

    ch_mult: Sequence[int]
    image_size: int = 32
    num_channels: int = 3
    num_channels_dae: int = 128
    num_res_blocks: int = 2
    attn_resolutions: Sequence[int] = (16,)
    nz: int = 100
    z_emb_dim: int = 256
    n_mlp: int = 3
    dropout: float = 0.0
    resamp_with_conv: bool = True
    conditional: bool = True
    fir: bool = True
    fir_kernel: Sequence[int] = (1, 3, 3, 1)
    skip_rescale: bool = True
    resblock_type: str = "biggan"
    progressive: str = "none"
    progressive_input: str = "residual"
    progressive_combine: str = "sum"
    embedding_type: str = "positional"
    fourier_scale: float = 16.0
    not_use_tanh: bool = False
    centered: bool = True
    num_classes: int = 0
    bounds: Tensor | None = None  # (num_channels, 1, 1), maximum magnitude of each output channel; None for 1


class TimeEmbedding(nn.Module):
    """Time index -> features -> two-layer perceptron."""

    def __init__(self, cfg: GeneratorConfig, time_dim: int):
        super().__init__()
        self.channels = cfg.num_channels_dae
        fourier = cfg.embedding_type == "fourier"
        self.fourier = FourierFeatures(self.channels, cfg.fourier_scale) if fourier else None
        self.linear_in = linear(self.channels * (2 if fourier else 1), time_dim)
        self.linear_out = linear(time_dim, time_dim)

    def forward(self, t: Tensor) -> Tensor:
        """(N,) int64 -> (N, time_dim), after the SiLU that every block needs."""
        features = sinusoids(t, self.channels) if self.fourier is None else self.fourier(t)
        return F.silu(self.linear_out(F.silu(self.linear_in(features))))


class LatentMapping(nn.Module):
    """Latent -> unit second moment -> perceptron (Karras et al. 2019)."""

    def __init__(self, nz: int, z_emb_dim: int, n_mlp: int):
        super().__init__()
        sizes = [nz] + [z_emb_dim] * (n_mlp + 1)
        self.layers = nn.ModuleList(linear(a, b, fan="out") for a, b in pairwise(sizes))

    def forward(self, z: Tensor) -> Tensor:
        """(N, nz) -> (N, z_emb_dim)."""
        h = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.layers:
            h = F.silu(layer(h))
        return h


class PyramidMerge(nn.Module):
    """Add or concatenate the resampled input image to the features by a 1x1 convolution (`input_skip`)."""

    def __init__(self, image_channels: int, channels: int, combine: str):
        super().__init__()
        self.combine = combine
        self.conv = conv(image_channels, channels, 1)

    def forward(self, image: Tensor, h: Tensor) -> Tensor:
        """Return (N, C, H, W), or (N, 2 C, H, W) for "cat"."""
        projected = self.conv(image)
        return torch.cat([projected, h], dim=1) if self.combine == "cat" else projected + h


class OutputHead(nn.Module):
    """Norm, activation, 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, scale: float = 0.0):
        super().__init__()
        self.norm = GroupNorm(in_channels)
        self.conv = conv(in_channels, out_channels, scale=scale)

    def forward(self, h: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        return self.conv(self.norm(h, silu=True))


class Level(nn.Module):
    """Modules of one resolution of the encoder or the decoder; `Generator.forward` connects them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.attentions = nn.ModuleList()  # encoder: one per block or none; decoder: one at the end or none
        # Module, or None without one.
        self.pyramid: Any = None
        self.resample: Any = None


class Generator(nn.Module):
    """Predict the clean image from x_{t+1}, the timestep and a latent."""

    bounds: Tensor | None

    def __init__(self, cfg: GeneratorConfig):
        super().__init__()
        self.register_buffer("bounds", cfg.bounds, persistent=False)
        self.cfg = cfg
        self.time_dim = 4 * cfg.num_channels_dae
        self.time_embedding = TimeEmbedding(cfg, self.time_dim) if cfg.conditional else None
        self.latent_mapping = LatentMapping(cfg.nz, cfg.z_emb_dim, cfg.n_mlp)
        fir_kernel = tuple(cfg.fir_kernel) if cfg.fir else None
        input_skip, output_skip = cfg.progressive_input == "input_skip", cfg.progressive == "output_skip"
        self.image_down: Any = Resample("down", cfg.num_channels, fir_kernel) if input_skip else None
        self.image_up: Any = Resample("up", cfg.num_channels, fir_kernel) if output_skip else None
        self.gain = ROOT_HALF if cfg.skip_rescale else 1.0

        self.conv_in = conv(cfg.num_channels, cfg.num_channels_dae)
        widths = self._build_encoder(fir_kernel)
        middle = widths[-1]
        self.middle_in = self._block(middle, middle)
        self.middle_attention = Attention(middle, cfg.skip_rescale)
        self.middle_out = self._block(middle, middle)
        channels = self._build_decoder(middle, widths, fir_kernel)
        self.head = None if output_skip else OutputHead(channels, cfg.num_channels)
        # Last, so that classes do not change the other initial weights of a seed.
        self.label_embedding = label_embedding(cfg.num_classes, cfg.z_emb_dim)

    def _block(self, in_channels: int, out_channels: int, direction: str | None = None) -> ResidualBlock:
        cfg = self.cfg
        fir_kernel = tuple(cfg.fir_kernel) if cfg.fir else None
        return ResidualBlock(
            in_channels,
            out_channels,
            time_dim=self.time_dim if cfg.conditional else 0,
            z_emb_dim=cfg.z_emb_dim,
            dropout=cfg.dropout,
            skip_rescale=cfg.skip_rescale,
            resample=partial(Resample, direction, fir_kernel=fir_kernel) if direction else None,
            second_norm_adaptive=cfg.resblock_type != "biggan_oneadagn",
        )

    def _resampler(self, channels: int, direction: str, fir_kernel: Sequence[int] | None) -> nn.Module:
        if self.cfg.resblock_type == "ddpm":
            return Resample(direction, channels, fir_kernel, channels if self.cfg.resamp_with_conv else None)
        return self._block(channels, channels, direction)

    def _build_encoder(self, fir_kernel: Sequence[int] | None) -> list[int]:
        """Build the encoder, and return the width of every skip connection."""
        cfg = self.cfg
        self.encoder: Any = nn.ModuleList()  # of Level, from the full resolution down
        channels, pyramid = cfg.num_channels_dae, cfg.num_channels
        widths = [channels]
        for number, multiplier in enumerate(cfg.ch_mult):
            level = Level()
            for _ in range(cfg.num_res_blocks):
                level.blocks.append(self._block(channels, multiplier * cfg.num_channels_dae))
                channels = multiplier * cfg.num_channels_dae
                if cfg.image_size >> number in cfg.attn_resolutions:
                    level.attentions.append(Attention(channels, cfg.skip_rescale))
                widths.append(channels)
            if number < len(cfg.ch_mult) - 1:
                level.resample = self._resampler(channels, "down", fir_kernel)
                if cfg.progressive_input == "input_skip":
                    level.pyramid = PyramidMerge(cfg.num_channels, channels, cfg.progressive_combine)
                    channels *= 2 if cfg.progressive_combine == "cat" else 1
                elif cfg.progressive_input == "residual":
                    level.pyramid = Resample("down", pyramid, fir_kernel, channels)
                    pyramid = channels
                widths.append(channels)
            self.encoder.append(level)
        return widths

    def _build_decoder(self, channels: int, widths: list[int], fir_kernel: Sequence[int] | None) -> int:
        """Build the decoder, from the lowest resolution to the full one, and return its last width."""
        cfg = self.cfg
        self.decoder: Any = nn.ModuleList()  # of Level, from the lowest resolution up
        skips, pyramid = list(widths), 0
        for number, multiplier in reversed(list(enumerate(cfg.ch_mult))):
            level = Level()
            for _ in range(cfg.num_res_blocks + 1):
                level.blocks.append(self._block(channels + skips.pop(), multiplier * cfg.num_channels_dae))
                channels = multiplier * cfg.num_channels_dae
            if cfg.image_size >> number in cfg.attn_resolutions:
                level.attentions.append(Attention(channels, cfg.skip_rescale))
            if cfg.progressive == "output_skip":
                level.pyramid = OutputHead(channels, cfg.num_channels)
            elif cfg.progressive == "residual":
                if pyramid:
                    level.pyramid = Resample("up", pyramid, fir_kernel, channels)
                else:
                    level.pyramid = OutputHead(channels, channels, scale=1)
                pyramid = channels
            if number > 0:
                level.resample = self._resampler(channels, "up", fir_kernel)
            self.decoder.append(level)
        return channels

    def forward(self, x_t_plus_1: Tensor, t: Tensor, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the predicted clean image.

        Args:
            x_t_plus_1: (N, C, H, W) float32.
            t: (N,) int64 in [0, T), index of the x_t to sample.
            z: (N, nz) float32, standard normal.
            y: (N,) int64 class labels; None without classes.

        Returns:
            (N, C, H, W) float32 within the bounds ([-1, 1] for images); unbounded with not_use_tanh.
        """
        z_emb = self.latent_mapping(z)
        if self.label_embedding is not None:
            z_emb = z_emb + self.label_embedding(y)
        time_emb = self.time_embedding(t) if self.time_embedding is not None else None
        x = x_t_plus_1 if self.cfg.centered else 2 * x_t_plus_1 - 1
        h, skips = self._encode(x, time_emb, z_emb)
        h = self.middle_in(h, time_emb, z_emb)
        h = self.middle_out(self.middle_attention(h), time_emb, z_emb)
        image = self._decode(h, skips, time_emb, z_emb).float()
        if self.cfg.not_use_tanh:
            return image
        bounds = self.bounds
        return torch.tanh(image) if bounds is None else bounds * torch.tanh(image / bounds)

    def _resize(self, level: Level, h: Tensor, time_emb: Tensor | None, z_emb: Tensor) -> Tensor:
        if isinstance(level.resample, ResidualBlock):
            return level.resample(h, time_emb, z_emb)
        return level.resample(h)

    def _encode(self, x: Tensor, time_emb: Tensor | None, z_emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        image = x  # input at the current resolution: pixels (input_skip) or features (residual)
        h = self.conv_in(x)
        skips = [h]
        for level in self.encoder:
            for number, block in enumerate(level.blocks):
                h = block(h, time_emb, z_emb)
                if level.attentions:
                    h = level.attentions[number](h)
                skips.append(h)
            if level.resample is None:
                continue
            h = self._resize(level, h, time_emb, z_emb)
            if self.image_down is not None:
                image = self.image_down(image)
                h = level.pyramid(image, h)
            elif level.pyramid is not None:
                h = image = (level.pyramid(image) + h) * self.gain
            skips.append(h)
        return h, skips

    def _decode(self, h: Tensor, skips: list[Tensor], time_emb: Tensor | None, z_emb: Tensor) -> Tensor:
        image: Tensor | None = None  # output so far: pixels (output_skip) or features (residual)
        for level in self.decoder:
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), time_emb, z_emb)
            for attention in level.attentions:
                h = attention(h)
            if self.cfg.progressive == "output_skip":
                addition = level.pyramid(h)
                image = addition if image is None else addition + self.image_up(image)
            elif self.cfg.progressive == "residual":
                if image is None:
                    image = level.pyramid(h)
                else:
                    h = image = (level.pyramid(image) + h) * self.gain
            if level.resample is not None:
                h = self._resize(level, h, time_emb, z_emb)
        if self.head is not None:
            return self.head(h)
        assert image is not None
        return image
