"""Translate DDGAN state dicts between NVlabs's parameter names and this package's names."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddgan.fir import Resample
from ddgan.generator import Generator, OutputHead, PyramidMerge
from ddgan.layers import AdaptiveGroupNorm, Attention, FourierFeatures, ResidualBlock


class Entry(NamedTuple):
    """Name of a tensor here, and the published tensors that it concatenates along the first axis."""

    here: str
    there: tuple[str, ...]
    transpose: bool = False  # published 1x1 convolutions are (in, out) matrices


def looks_like_nvlabs(state: Mapping[str, Any]) -> bool:
    """Return True if a state dict has the published generator's parameter names."""
    return any(name.removeprefix("module.").startswith("all_modules.") for name in state)


def translate_generator(generator: Generator, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with the parameter names of `generator`; raise ValueError if a tensor is missing or left over."""
    # Without time conditioning every published block still has its unused time layer.
    ignored = () if generator.cfg.conditional else (".Dense_0.", "all_modules.0.W")
    return _translate(state, _generator_entries(generator), ignored)


def published_state(generator: Generator) -> dict[str, Tensor]:
    """Return a generator's weights under the names that NVlabs's training saves, with `module.` before each."""
    return rename(generator.state_dict(), _generator_entries(generator))


def rename(state: Mapping[str, Tensor], entries: Iterable[Entry]) -> dict[str, Tensor]:
    """Return a state dict of this package under published names."""
    result = {}
    for here, there, transpose in entries:
        for name, value in zip(there, state[here].chunk(len(there)), strict=True):
            result[f"module.{name}"] = (value[:, :, 0, 0].t() if transpose else value).contiguous()
    return result


def _translate(
    state: Mapping[str, Tensor], entries: Iterable[Entry], ignored: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    state = {name.removeprefix("module."): value for name, value in state.items()}
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    for here, there, transpose in entries:
        missing = [name for name in there if name not in state]
        if missing:
            raise ValueError(f"the state dict lacks {missing[0]}, which this configuration needs")
        parts = [state[name].t()[:, :, None, None] if transpose else state[name] for name in there]
        result[here] = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
        used.update(there)
    left_over = sorted(name for name in set(state) - used if not any(mark in name for mark in ignored))
    if left_over:
        raise ValueError(f"the state dict has {left_over[0]}, which this configuration lacks")
    return result


def _layer(here: str, there: str, bias: bool = True) -> Iterator[Entry]:
    yield Entry(f"{here}.weight", (f"{there}.weight",))
    if bias:
        yield Entry(f"{here}.bias", (f"{there}.bias",))


def _nin(here: str, *there: str) -> Iterator[Entry]:
    yield Entry(f"{here}.weight", tuple(f"{name}.W" for name in there), transpose=True)
    yield Entry(f"{here}.bias", tuple(f"{name}.b" for name in there))


def _generator_entries(generator: Generator) -> Iterator[Entry]:
    names = {id(module): name for name, module in generator.named_modules()}
    for number, part in enumerate(_published_order(generator)):
        if part is not None:
            yield from _part_entries(part, names[id(part)], f"all_modules.{number}", generator)
    for number, _ in enumerate(generator.latent_mapping.layers):
        # Index 0 is the normalization, and an activation follows each layer.
        yield from _layer(f"latent_mapping.layers.{number}", f"z_transform.{2 * number + 1}")


def _published_order(generator: Generator) -> Iterator[nn.Module | None]:
    """Yield the modules in the order of the published flat list; None for a module that does not exist here."""
    time = generator.time_embedding
    if generator.cfg.embedding_type == "fourier":
        yield time.fourier if time is not None else None
    if time is not None:
        yield from (time.linear_in, time.linear_out)
    yield generator.conv_in
    for level in generator.encoder:
        for number, block in enumerate(level.blocks):
            yield block
            if level.attentions:
                yield level.attentions[number]
        yield from (module for module in (level.resample, level.pyramid) if module is not None)
    yield from (generator.middle_in, generator.middle_attention, generator.middle_out)
    for level in generator.decoder:
        yield from level.blocks
        yield from level.attentions
        if isinstance(level.pyramid, OutputHead):
            yield from (level.pyramid.norm, level.pyramid.conv)
        elif level.pyramid is not None:
            yield level.pyramid
        if level.resample is not None:
            yield level.resample
    if generator.head is not None:
        yield from (generator.head.norm, generator.head.conv)


def _part_entries(part: nn.Module, here: str, there: str, generator: Generator) -> Iterator[Entry]:
    if isinstance(part, ResidualBlock):
        yield from _block_entries(part, here, there, generator.cfg.resblock_type)
    elif isinstance(part, Attention):
        yield from _layer(f"{here}.norm", f"{there}.GroupNorm_0")
        yield from _nin(f"{here}.qkv", *(f"{there}.NIN_{number}" for number in range(3)))
        yield from _nin(f"{here}.out", f"{there}.NIN_3")
    elif isinstance(part, PyramidMerge):
        yield from _layer(f"{here}.conv", f"{there}.Conv_0")
    elif isinstance(part, Resample):
        if isinstance(part[-1], nn.Conv2d):
            yield from _layer(f"{here}.{len(part) - 1}", f"{there}.{'Conv2d_0' if generator.cfg.fir else 'Conv_0'}")
    elif isinstance(part, FourierFeatures):
        yield Entry(f"{here}.frequencies", (f"{there}.W",))
    else:
        yield from _layer(here, there)


def _block_entries(block: ResidualBlock, here: str, there: str, resblock_type: str) -> Iterator[Entry]:
    yield from _layer(f"{here}.norm_in.style", f"{there}.GroupNorm_0.style")
    yield from _layer(f"{here}.conv_in", f"{there}.Conv_0")
    if block.time is not None:
        yield from _layer(f"{here}.time", f"{there}.Dense_0")
    if isinstance(block.norm_out, AdaptiveGroupNorm):
        yield from _layer(f"{here}.norm_out.style", f"{there}.GroupNorm_1.style")
    else:
        yield from _layer(f"{here}.norm_out.norm", f"{there}.GroupNorm_1")
    yield from _layer(f"{here}.conv_out", f"{there}.Conv_1")
    if block.shortcut is not None and resblock_type == "ddpm":
        yield from _nin(f"{here}.shortcut", f"{there}.NIN_0")
    elif block.shortcut is not None:
        yield from _layer(f"{here}.shortcut", f"{there}.Conv_2")
