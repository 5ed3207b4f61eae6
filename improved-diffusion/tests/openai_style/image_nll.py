"""Measures bits per dimension as a script written for OpenAI's package does."""

import argparse
import os

import numpy as np
import torch.distributed as dist
from improved_diffusion import dist_util, logger
from improved_diffusion.image_datasets import load_data
from improved_diffusion.script_util import (
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

    data = load_data(
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        image_size=args.image_size,
        class_cond=args.class_cond,
        deterministic=True,
    )
    evaluate(model, diffusion, data, args.num_samples, args.clip_denoised)


def evaluate(model, diffusion, data, num_samples, clip_denoised):
    bpd = []
    terms = {"vb": [], "mse": [], "xstart_mse": []}
    images = 0
    while images < num_samples:
        batch, model_kwargs = next(data)
        batch = batch.to(dist_util.dev())
        model_kwargs = {name: value.to(dist_util.dev()) for name, value in model_kwargs.items()}
        found = diffusion.calc_bpd_loop(model, batch, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
        for name, rows in terms.items():
            mean = found[name].mean(dim=0) / dist.get_world_size()
            dist.all_reduce(mean)
            rows.append(mean.detach().cpu().numpy())
        total = found["total_bpd"].mean() / dist.get_world_size()
        dist.all_reduce(total)
        bpd.append(total.item())
        images += dist.get_world_size() * batch.shape[0]
        logger.log(f"{images} images: bpd={np.mean(bpd)}")

    if dist.get_rank() == 0:
        for name, rows in terms.items():
            np.savez(os.path.join(logger.get_dir(), f"{name}_terms.npz"), np.mean(np.stack(rows), axis=0))
    dist.barrier()


def make_parser():
    defaults = {"data_dir": "", "clip_denoised": True, "num_samples": 1000, "batch_size": 1, "model_path": ""}
    defaults.update(model_and_diffusion_defaults())
    parser = argparse.ArgumentParser()
    add_dict_to_argparser(parser, defaults)
    return parser


if __name__ == "__main__":
    main()
