"""Samples as a script written for OpenAI's package does: torch.distributed directly, labels below NUM_CLASSES."""

import argparse
import os

import numpy as np
import torch as th
import torch.distributed as dist
from improved_diffusion import dist_util, logger
from improved_diffusion.script_util import (
    NUM_CLASSES,
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)


def main():
    args = make_parser().parse_args()

    dist_util.setup_dist()
    logger.configure()

    model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
    model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
    model.to(dist_util.dev())
    model.eval()

    images, labels = [], []
    while len(images) * args.batch_size < args.num_samples:
        model_kwargs = {}
        if args.class_cond:
            classes = th.randint(low=0, high=NUM_CLASSES, size=(args.batch_size,), device=dist_util.dev())
            model_kwargs["y"] = classes
        sample_fn = diffusion.ddim_sample_loop if args.use_ddim else diffusion.p_sample_loop
        sample = sample_fn(
            model,
            (args.batch_size, 3, args.image_size, args.image_size),
            clip_denoised=args.clip_denoised,
            model_kwargs=model_kwargs,
        )
        sample = ((sample + 1) * 127.5).clamp(0, 255).to(th.uint8).permute(0, 2, 3, 1).contiguous()

        gathered = [th.zeros_like(sample) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, sample)
        images.extend(part.cpu().numpy() for part in gathered)
        if args.class_cond:
            gathered_labels = [th.zeros_like(classes) for _ in range(dist.get_world_size())]
            dist.all_gather(gathered_labels, classes)
            labels.extend(part.cpu().numpy() for part in gathered_labels)
        logger.log(f"{len(images) * args.batch_size} images")

    arr = np.concatenate(images, axis=0)[: args.num_samples]
    if args.class_cond:
        label_arr = np.concatenate(labels, axis=0)[: args.num_samples]
    if dist.get_rank() == 0:
        shape_str = "x".join(str(size) for size in arr.shape)
        out_path = os.path.join(logger.get_dir(), f"samples_{shape_str}.npz")
        if args.class_cond:
            np.savez(out_path, arr, label_arr)
        else:
            np.savez(out_path, arr)

    dist.barrier()


def make_parser():
    defaults = {"clip_denoised": True, "num_samples": 10000, "batch_size": 16, "use_ddim": False, "model_path": ""}
    defaults.update(model_and_diffusion_defaults())
    parser = argparse.ArgumentParser()
    add_dict_to_argparser(parser, defaults)
    return parser


if __name__ == "__main__":
    main()
