"""The denoising networks: a U-Net with residual blocks, attention and timestep conditioning, and an upsampler.

Parameter names and shapes are those of OpenAI's package, so that its published checkpoints load.
Shapes in comments: N images, C channels, H x W pixels, T = H * W positions, E embedding size.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nn import Dropout, GroupNorm32, checkpoint, norm_silu, timestep_embedding, timestep_frequencies, zero_module


class TimestepEmbedSequential(nn.ModuleList):
    """A sequence that hands the timestep embedding to the layers that take one."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class Upsample(nn.Module):
    """Double height and width by nearest neighbour, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """A residual block conditioned on the timestep embedding.

    Nichol & Dhariwal 2021, section 3: GroupNorm(h) (1 + scale) + shift with `use_scale_shift_norm`, else the
    embedding is added before the norm as in Ho et al. 2020.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int,
        use_scale_shift_norm: bool,
        use_checkpoint: bool,
        norm_groups: int,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.use_checkpoint = use_checkpoint
        self.in_layers = nn.Sequential(
            GroupNorm32(norm_groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, (2 if use_scale_shift_norm else 1) * out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm32(norm_groups, out_channels),
            nn.SiLU(),
            Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (N, C, H, W) and (N, E) to (N, out_channels, H, W)."""
        return checkpoint(self._forward, (x, emb), self.use_checkpoint)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, _, conv = self.in_layers
        h = conv(norm_silu(norm, x))
        condition = self.emb_layers(emb).type(h.dtype)
        norm, _, dropout, conv = self.out_layers
        if self.use_scale_shift_norm:
            h = norm_silu(norm, h, *condition.chunk(2, dim=1))
        else:
            h = norm_silu(norm, h + condition[:, :, None, None])
        return self.skip_connection(x) + conv(dropout(h))


class AttentionBlock(nn.Module):
    """Self-attention over the positions of an image, with a residual connection."""

    def __init__(self, channels: int, num_heads: int, use_checkpoint: bool, norm_groups: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.use_checkpoint = use_checkpoint
        self.norm = GroupNorm32(norm_groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return checkpoint(self._forward, (x,), self.use_checkpoint)

    def _forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self._by_tokens(x)
        h = self.qkv(self.norm(x).flatten(2))  # (N, 3C, T), channels ordered [head][q, k, v]
        q, k, v = h.unflatten(1, (self.num_heads, 3, -1)).unbind(2)  # each (N, heads, C / heads, T)
        h = self.proj_out(_attend(q, k, v).flatten(1, 2))
        return x + h.view_as(x)

    def _by_tokens(self, x: Tensor) -> Tensor:
        """Compute the same with channels last throughout, as GPUs keep them: nothing is copied into another order."""
        h = self.norm(x).flatten(2).transpose(1, 2)  # (N, T, C)
        h = F.linear(h, self.qkv.weight[:, :, 0], self.qkv.bias).unflatten(2, (self.num_heads, 3, -1))
        q, k, v = h.permute(3, 0, 2, 1, 4)  # each (N, heads, T, C / heads)
        if x.device.type == "mps":  # whose attention has had trouble with other layouts
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = F.linear(h, self.proj_out.weight[:, :, 0], self.proj_out.bias)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q^T k / sqrt(D)) v, each (N, heads, D, T) (Vaswani et al. 2017, Eq. 1).

    A CPU's fused kernel takes as long as these steps in float32, and two to six times as long in bf16.
    """
    weights = (q * q.shape[2] ** -0.5).transpose(2, 3) @ k  # (N, heads, T, T)
    return v @ weights.softmax(dim=-1).transpose(2, 3)


class UNetModel(nn.Module):
    """The network of Nichol & Dhariwal 2021, with its variance output if `out_channels` says so.

    Args:
        in_channels: channels of the image.
        model_channels: width of the first level, a multiple of `norm_groups`.
        out_channels: channels of the prediction; twice `in_channels` with learned variances.
        num_res_blocks: per level on the way down; one more per level on the way up.
        attention_resolutions: downsampling factors with attention, such as (2, 4).
        dropout: probability inside residual blocks.
        channel_mult: width of each level in units of `model_channels`; each level but the last halves the size.
        num_classes: classes of a class-conditional model, else None.
        use_checkpoint: compute activations again in the backward pass instead of storing them.
        num_heads: attention heads; must divide the widths that have attention.
        num_heads_upsample: heads on the way up, -1 for the same.
        use_scale_shift_norm: see `ResBlock`.
        patch_size: P, the side of the patches that become channels before the first convolution and pixels again after
            the last one: the levels are those of a grid of H / P x W / P positions.
        norm_groups: groups of every normalisation. A group of one channel cannot tell a bright image from a dark one.
    """

    frequencies: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        num_heads: int = 1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        norm_groups: int = 32,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        heads_up = num_heads if num_heads_upsample == -1 else num_heads_upsample
        emb_channels = 4 * model_channels
        self.num_classes = num_classes
        self.register_buffer("frequencies", timestep_frequencies(model_channels), persistent=False)
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb_channels)

        def res_block(channels: int, to_channels: int) -> ResBlock:
            return ResBlock(
                channels, emb_channels, dropout, to_channels, use_scale_shift_norm, use_checkpoint, norm_groups
            )

        def attention(channels: int, heads: int) -> AttentionBlock:
            return AttentionBlock(channels, heads, use_checkpoint, norm_groups)

        first = nn.Conv2d(in_channels * patch_size**2, model_channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential([first])])
        channels = model_channels
        skip_channels = [channels]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [res_block(channels, mult * model_channels)]
                channels = mult * model_channels
                if 2**level in attention_resolutions:
                    layers.append(attention(channels, num_heads))
                self.input_blocks.append(TimestepEmbedSequential(layers))
                skip_channels.append(channels)
            if level != len(channel_mult) - 1:
                self.input_blocks.append(TimestepEmbedSequential([Downsample(channels)]))
                skip_channels.append(channels)

        self.middle_block = TimestepEmbedSequential(
            [
                res_block(channels, channels),
                attention(channels, num_heads),
                res_block(channels, channels),
            ]
        )

        self.output_blocks = nn.ModuleList([])
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = [res_block(channels + skip_channels.pop(), mult * model_channels)]
                channels = mult * model_channels
                if 2**level in attention_resolutions:
                    layers.append(attention(channels, heads_up))
                if level and i == num_res_blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(TimestepEmbedSequential(layers))

        self.out = nn.Sequential(
            GroupNorm32(norm_groups, channels),
            nn.SiLU(),
            zero_module(nn.Conv2d(channels, out_channels * patch_size**2, 3, padding=1)),
        )

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict what the process asks for, such as the noise in x_t; then the coefficients of learned variances.

        Args:
            x: (N, in_channels, H, W), H and W divisible by patch_size * 2 ** (levels - 1).
            timesteps: (N,), in units of 1,000 steps where the process rescales them; may be fractional.
            y: (N,) int64 class labels, exactly if the model is class-conditional; -1 for no class.

        Returns:
            (N, out_channels, H, W) float32.

        Raises:
            ValueError: y is missing or not wanted.
        """
        if (y is not None) != (self.num_classes is not None):
            raise ValueError("y must be given exactly if the model is class-conditional")
        emb = self.time_embed(timestep_embedding(timesteps, self.frequencies))  # (N, E)
        dtype = emb.dtype  # of the pass: lower than float32 under autocast
        if y is not None:
            known = (y >= 0)[:, None]
            emb = emb + self.label_emb(y.clamp(min=0)) * known
        first, *blocks = self.input_blocks
        # Image and prediction stay in float32: the smallest noise of a long schedule, 0.003 to 0.01, is less
        # than bf16's spacing at a pixel of 1.
        with torch.autocast(x.device.type, enabled=False):
            h = first(self._fold(x.float()), emb).type(dtype)
        skips = [h]
        for block in blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        norm, _, conv = self.out
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = conv(norm_silu(norm, h.float()))
        return out if self.patch_size == 1 else F.pixel_shuffle(out, self.patch_size)

    def _fold(self, x: Tensor) -> Tensor:
        """Turn patches into channels, (N, C, H, W) -> (N, C * P * P, H / P, W / P)."""
        return x if self.patch_size == 1 else F.pixel_unshuffle(x, self.patch_size)

    @torch.no_grad()
    def get_feature_vectors(
        self, x: Tensor, timesteps: Tensor, y: Tensor | None = None, **kwargs: Tensor
    ) -> dict[str, Any]:
        """Return the activations after each block, arguments as in `forward`.

        Returns:
            'down' and 'up', lists of (N, C, H, W) in the order of computation, and 'middle', one such tensor.
        """
        blocks = [*self.input_blocks, self.middle_block, *self.output_blocks]
        found: list[Tensor] = []
        hooks = [block.register_forward_hook(lambda module, inputs, output: found.append(output)) for block in blocks]
        try:
            self(x, timesteps, y=y, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        middle = len(self.input_blocks)
        return {"down": found[:middle], "middle": found[middle], "up": found[middle + 1 :]}


class SuperResModel(UNetModel):
    """A network that enlarges: it also sees the small image, enlarged bilinearly (Nichol & Dhariwal 2021, section 5).

    Args:
        in_channels: channels of an image; the first convolution has twice as many.
        kwargs: arguments of `UNetModel`.
    """

    def __init__(self, in_channels: int, **kwargs: Any) -> None:
        super().__init__(in_channels=2 * in_channels, **kwargs)

    def forward(  # type: ignore[override]
        self, x: Tensor, timesteps: Tensor, low_res: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in x_t as `UNetModel.forward` does.

        Args:
            x: (N, in_channels, H, W).
            timesteps: (N,).
            low_res: (N, in_channels, h, w) in [-1, 1], the image to enlarge.
            y: (N,) int64 class labels, exactly if the model is class-conditional.

        Returns:
            (N, out_channels, H, W) float32.
        """
        enlarged = F.interpolate(low_res.float(), x.shape[2:], mode="bilinear")
        return super().forward(torch.cat([x, enlarged], dim=1), timesteps, y)
