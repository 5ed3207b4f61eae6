"""A trained network as a pipeline of diffusers, for export_diffusers.py."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from comparison.cli import UserError
from comparison.files import named_when_full
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from export_diffusers import RESCALED
from improved_diffusion.checkpoints import fill_network
from improved_diffusion.flags import CHANNEL_MULT, attention_factors
from improved_diffusion.schedules import get_named_beta_schedule
from improved_diffusion.script_util import create_model_and_diffusion
from improved_diffusion.unet import AttentionBlock, Downsample, ResBlock, UNetModel, Upsample
from model_loading import read_state
from safetensors import SafetensorError
from torch import Tensor

TOLERANCE = 1e-4  # largest difference of the two networks' outputs
PREDICTIONS = {"epsilon": "epsilon", "x_start": "sample", "velocity": "v_prediction"}  # ours -> diffusers'
PARTS = {  # of a block: our name -> diffusers'
    ResBlock: {
        **{"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"},
        **{"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"},
    },
    Downsample: {"op": "conv"},
    Upsample: {"conv": "conv"},
}
GROUPS = {ResBlock: "resnets", AttentionBlock: "attentions", Downsample: "downsamplers", Upsample: "upsamplers"}


def export(path: Path, flags: dict[str, Any], out: Path) -> int:
    """Convert a network that `export_diffusers.why_not` accepts, compare the two, and write the pipeline.

    Args:
        path: file of the network.
        flags: flags of the network and the process.
        out: folder to write.

    Raises:
        UserError: the file is damaged or does not fit the flags, or the outputs differ.
    """
    try:
        state = read_state(path)
        classes = state["label_emb.weight"].shape[:1].numel() if "label_emb.weight" in state else 0
        network, _ = create_model_and_diffusion(**flags, num_classes=classes)
        fill_network(network, state, str(path))
    except ValueError as error:
        raise UserError(str(error)) from None
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        unet: Any = UNet2DModel(**unet_options(flags, classes))
    unet.eval()
    unet.load_state_dict(convert(network))
    scheduler: Any = DDIMScheduler(**scheduler_options(flags))
    difference = largest_difference(network, unet, flags["image_size"], scheduler.config["num_train_timesteps"])
    if not difference <= TOLERANCE:
        raise UserError(f"--model_path {path}: the converted network differs by {difference:.2g}; nothing is written")
    pipeline: Any = DDIMPipeline(unet, scheduler)
    save(pipeline, out)
    print(f"{out}: a DDIMPipeline; the networks' outputs differ by at most {difference:.1g}")
    if classes:
        print(f"DDIMPipeline passes no class: call its unet with class_labels, 0 to {classes - 1}")
    return 0


def save(pipeline: Any, out: Path) -> None:
    """Write a pipeline into a folder, replacing an earlier one; after a UserError the folder is as before."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with named_when_full(out):
            pipeline.save_pretrained(partial)
            if not any((partial / "unet").glob("*.safetensors")):
                raise UserError(f"{out}: diffusers wrote no weights")
            out.mkdir(parents=True, exist_ok=True)
            for path in partial.iterdir():
                there = out / path.name
                shutil.rmtree(there) if there.is_dir() else there.unlink(missing_ok=True)
                path.replace(there)
    except SafetensorError as error:
        raise UserError(f"{out}: could not be written ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unet_options(flags: dict[str, Any], classes: int) -> dict[str, Any]:
    """Return the arguments of the UNet2DModel that has the same layers."""
    factors, mult = (
        attention_factors(flags["image_size"], flags["attention_resolutions"]),
        CHANNEL_MULT[flags["image_size"]],
    )
    attends = [2**level in factors for level in range(len(mult))]
    heads = flags["num_heads"]
    return {
        "sample_size": flags["image_size"],
        "block_out_channels": [flags["num_channels"] * width for width in mult],
        "down_block_types": ["AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "up_block_types": ["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        "layers_per_block": flags["num_res_blocks"],
        "attention_head_dim": None if heads == 1 else flags["num_channels"] * mult[-1] // heads,
        "resnet_time_scale_shift": "scale_shift" if flags["use_scale_shift_norm"] else "default",
        "norm_num_groups": flags["norm_groups"],
        "attn_norm_num_groups": flags["norm_groups"],
        "norm_eps": 1e-5,
        "dropout": flags["dropout"],
        "num_class_embeds": classes or None,
    }


def scheduler_options(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the DDIMScheduler with the same process.

    A network whose timesteps are rescaled counts in 1,000 steps, so the process keeps those of whole number.
    """
    steps, schedule = flags["diffusion_steps"], flags["noise_schedule"]
    alphas = torch.cumprod(1 - torch.from_numpy(get_named_beta_schedule(schedule, steps)).double(), 0)
    if flags["rescale_timesteps"]:
        alphas = alphas[:: steps // RESCALED]
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    return {
        "num_train_timesteps": len(alphas),
        "trained_betas": (1 - alphas / before).tolist(),
        "prediction_type": PREDICTIONS[flags["prediction"]],
        "timestep_spacing": "trailing",  # from the last step, which is nearest to noise
        "clip_sample": True,
    }


def convert(network: UNetModel) -> dict[str, Tensor]:
    """Return a network's weights by diffusers' names; of learned variances without their channels."""
    state = network.state_dict()
    names = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    names |= {"label_emb": "class_embedding", "input_blocks.0.0": "conv_in"}
    names |= {"out.0": "conv_norm_out", "out.2": "conv_out"}
    converted: dict[str, Tensor] = {}
    for own, theirs, block in blocks(network):
        if isinstance(block, AttentionBlock):
            converted |= attention(block, theirs)
        else:
            names |= {f"{own}.{part}": f"{theirs}.{name}" for part, name in PARTS[type(block)].items()}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if layer in names:
            converted[f"{names[layer]}.{kind}"] = tensor
    for kind in ("weight", "bias"):
        converted[f"conv_out.{kind}"] = converted[f"conv_out.{kind}"][:3]
    return converted


def blocks(network: UNetModel) -> Iterator[tuple[str, str, Any]]:
    """Yield our name, diffusers' name and the module of each block, in the order of computation."""
    stages: list[tuple[str, str, Any, type]] = [
        ("input_blocks", "down_blocks", network.input_blocks[1:], Downsample),
        ("output_blocks", "up_blocks", network.output_blocks, Upsample),
    ]
    for own, theirs, sequences, last in stages:
        level, numbers = 0, dict.fromkeys(GROUPS, 0)
        for i, sequence in enumerate(sequences):
            for j, block in enumerate(sequence):
                place = f"{theirs}.{level}.{GROUPS[type(block)]}.{numbers[type(block)]}"
                yield f"{own}.{i + (own == 'input_blocks')}.{j}", place, block
                numbers[type(block)] += 1
                if isinstance(block, last):
                    level, numbers = level + 1, dict.fromkeys(GROUPS, 0)
    for j, (group, number) in enumerate((("resnets", 0), ("attentions", 0), ("resnets", 1))):
        yield f"middle_block.{j}", f"mid_block.{group}.{number}", network.middle_block[j]


def attention(block: AttentionBlock, name: str) -> dict[str, Tensor]:
    """Return the weights of an attention block, whose queries, keys and values are interleaved by head."""
    converted = {f"{name}.group_norm.{kind}": tensor for kind, tensor in block.norm.state_dict().items()}
    for kind, tensor in block.qkv.state_dict().items():
        parts = (
            tensor.flatten(1).unflatten(0, (block.num_heads, 3, -1))
            if kind == "weight"
            else tensor.unflatten(0, (block.num_heads, 3, -1))
        )
        for letter, part in zip("qkv", parts.unbind(1), strict=True):
            converted[f"{name}.to_{letter}.{kind}"] = part.flatten(0, 1)
    for kind, tensor in block.proj_out.state_dict().items():
        converted[f"{name}.to_out.0.{kind}"] = tensor[:, :, 0] if kind == "weight" else tensor
    return converted


@torch.no_grad()
def largest_difference(network: UNetModel, unet: Any, size: int, steps: int) -> float:
    """Return the largest absolute difference of the outputs for noise at several timesteps."""
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0, steps // 3, steps - 1])
    x = torch.randn(len(t), 3, size, size, generator=generator)
    y = torch.arange(len(t)) % network.num_classes if network.num_classes else None
    ours, theirs = network(x, t, y)[:, :3], unet(x, t, class_labels=y).sample
    return float((ours - theirs).abs().max())
