"""What image_train.py and super_res_train.py train, and the training itself: data, network, then `ScriptLoop`."""

import argparse
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from comparison import device as devices
from comparison.cli import UserError
from comparison.data.folders import FileSet
from comparison.data.images import ImageSet, from_uint8, open_images
from comparison.data.streaming import open_stream
from comparison.distributed import same, world_size
from comparison.gpu.cuda_graphs import by_cuda_graph
from comparison.ranks import get_rank_info
from comparison.rng import SampleNoise
from comparison.schedule import ema_rate
from grids import enlarge, in_rows
from improved_diffusion.resample import create_named_schedule_sampler
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.script_util import create_diffusion, create_model_and_diffusion, sr_create_model_and_diffusion
from improved_diffusion.training import Trainer
from model_loading import choose_dtype, connected_device, prepare_model
from script_loop import ScriptLoop
from torch import Tensor, nn
from train_options import Training


class ImageTask:
    """Generate images from noise.

    Args:
        flags: flags of the network and the process.
    """

    def __init__(self, flags: dict[str, Any]) -> None:
        self.flags, self.size, self.class_cond = flags, flags["image_size"], flags["class_cond"]

    def build(self, images: ImageSet | FileSet) -> tuple[nn.Module, SpacedDiffusion]:
        """Create the network, with the classes of the data, on the CPU, and the process of all timesteps."""
        return create_model_and_diffusion(**self.flags, num_classes=len(images.class_names))

    def objective(
        self, args: argparse.Namespace, model: nn.Module, diffusion: SpacedDiffusion, dtype: torch.dtype | None
    ) -> tuple[Any, Any]:
        """Return what has the method `training_losses`, and what samples the timesteps.

        Args:
            args: command line.
            model: the network, on its device, before the first update.
            diffusion: its process.
            dtype: type of autocast; None computes in float32.
        """
        return diffusion, create_named_schedule_sampler(args.schedule_sampler, diffusion)

    def condition(self, x_start: Tensor) -> dict[str, Tensor]:
        """Return the network's inputs beside the classes, from (N, 3, S, S) images in [-1, 1]."""
        return {}

    def sample(self, network: nn.Module, noise: SampleNoise, labels: Tensor | None, num_steps: int) -> Tensor:
        """Return the images of a grid, (N, 3, S, S)."""
        return self.ddim(network, noise, {} if labels is None else {"y": labels}, num_steps)

    def ddim(self, network: nn.Module, noise: SampleNoise, condition: dict[str, Tensor], num_steps: int) -> Tensor:
        """Sample by DDIM with eta 1, whose noise removes errors that a network early in training made before."""
        diffusion = create_diffusion({**self.flags, "timestep_respacing": f"ddim{num_steps}"})
        step_noise = partial(noise.normal, (3, self.size, self.size))
        x = step_noise("x_T")
        return diffusion.ddim_sample_loop(network, x.shape, x, model_kwargs=condition, eta=1.0, step_noise=step_noise)


class SuperResTask(ImageTask):
    """Enlarge images.

    Args:
        flags: flags of the network and the process.
        grid_images: images in the grids.
    """

    def __init__(self, flags: dict[str, Any], grid_images: int) -> None:
        self.flags, self.size, self.class_cond = flags, flags["large_size"], flags["class_cond"]
        self.grid_images = grid_images

    def build(self, images: ImageSet | FileSet) -> tuple[nn.Module, SpacedDiffusion]:
        """Create the network, with the classes of the data, and the process; keep images for the grids."""
        chosen = torch.linspace(0, len(images) - 1, self.grid_images).round().long()
        self.originals = images.pick(chosen)
        self.labels = None if images.labels is None else images.labels[chosen]
        return sr_create_model_and_diffusion(**self.flags, num_classes=len(images.class_names))

    def condition(self, x_start: Tensor) -> dict[str, Tensor]:
        """Return the images reduced by area."""
        return {"low_res": F.interpolate(x_start, self.flags["small_size"], mode="area")}

    def sample(self, network: nn.Module, noise: SampleNoise, labels: Tensor | None, num_steps: int) -> Tensor:
        """Return rows of small images, enlarged ones and originals, in turn."""
        rows = slice(noise.indices.start, noise.indices.stop)
        originals = from_uint8(self.originals[rows].to(noise.device))
        condition = self.condition(originals)
        if labels is not None and self.labels is not None:  # the labels of these images, not random ones
            condition["y"] = self.labels[rows].to(noise.device)
        large = self.ddim(network, noise, condition, num_steps)
        return in_rows(enlarge(condition["low_res"], self.size), large, originals)


def train_network(args: argparse.Namespace, training: Training, task: ImageTask) -> int:
    """Train until the budget is used up or the user stops it; return the exit status."""
    with connected_device(args) as device:
        return _train(args, training, task, device)


def _train(args: argparse.Namespace, training: Training, task: ImageTask, device: torch.device) -> int:
    run, rank_info = training.run, get_rank_info()
    dtype = choose_dtype(args.precision, args.use_fp16, device)
    images = load_data(training, task)
    stream = open_stream(
        images,
        args.batch_size,
        args.seed,
        flip=args.random_flip,
        device=device,
        rank=rank_info.rank,
        world_size=rank_info.world_size,
        num_workers=args.num_workers,
        local_processes=rank_info.local_world_size,
    )
    torch.manual_seed(args.seed)
    model, diffusion = task.build(images)
    prepare_model(model, device, dtype)
    objective, schedule_sampler = task.objective(args, model, diffusion, dtype)
    captured = objective is diffusion and args.cuda_graph and device.type == "cuda" and not task.flags["use_checkpoint"]
    trainer = Trainer(
        model,
        objective,
        lr=args.lr,
        weight_decay=args.weight_decay,
        beta2=args.beta2,
        ema_rates=training.ema_rates,
        ema_rule=partial(ema_rate, horizon=args.ema_horizon),
        ema_every=args.ema_every,
        microbatch=args.microbatch,
        lr_anneal_steps=args.lr_anneal_steps,
        autocast_dtype=dtype,
        fp16_scale_growth=args.fp16_scale_growth,
        compile_network=args.compile,
        replayed=by_cuda_graph if captured else None,
    )
    metadata = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "num_classes": len(images.class_names) if task.class_cond else None,
        "data": {**run.config.get("data", {}), **images.describe()},
        "device": devices.describe_device(device),
        "processes": world_size(),
        "precision": devices.precision_name(dtype),
    }
    with stream:
        loop = ScriptLoop(
            args,
            training,
            task,
            stream,
            model=model,
            diffusion=objective,
            trainer=trainer,
            batch_size=args.batch_size // world_size(),
            schedule_sampler=schedule_sampler,
            resume_checkpoint=str(args.resume_checkpoint or ""),
            **{name: getattr(args, name) for name in ("microbatch", "lr", "ema_rate", "log_interval", "save_interval")},
            seed=args.seed,
        )
        budget = training.budget.cut(args.stop_after).describe()
        ranks = f", {world_size()} processes" if world_size() > 1 else ""
        return loop.run_loop(f"{len(images)} images, budget {budget}, {metadata['device']}{ranks}", metadata)


def load_data(training: Training, task: ImageTask) -> ImageSet | FileSet:
    """Load the images, or find them on disk where they do not fit in memory.

    Raises:
        UserError: they lack classes that the network needs, differ from those that the run started with, or differ
            between the ranks.
    """
    source, run = training.data_dir, training.run
    images = open_images(source, task.size, processes=get_rank_info().local_world_size)
    if task.class_cond and images.labels is None:
        raise UserError(f"--class_cond True: {source} has no classes (folders, or file names that begin with class_)")
    saved, present = run.config.get("data", {}), images.describe()
    # Images in memory are described by pixels, those on disk by files: entries of both must be equal.
    if run.resumed and any(saved[name] != present[name] for name in saved.keys() & present.keys()):
        raise UserError(f"{run.folder}: was trained on other images: {saved}; {source} has {present}")
    same(present, f"images of {source}")
    return images
