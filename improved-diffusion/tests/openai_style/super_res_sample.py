"""Enlarges the images of an .npz file as a script written for OpenAI's package does."""

import argparse
import os

import blobfile as bf
import numpy as np
import torch as th
import torch.distributed as dist
from improved_diffusion import dist_util, logger
from improved_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)


def main():
    args = make_parser().parse_args()

    dist_util.setup_dist()
    logger.configure()

    model, diffusion = sr_create_model_and_diffusion(**args_to_dict(args, sr_model_and_diffusion_defaults().keys()))
    model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
    model.to(dist_util.dev())
    model.eval()

    data = load_low_res(args.base_samples, args.batch_size, args.class_cond)
    images = []
    while len(images) * args.batch_size < args.num_samples:
        model_kwargs = {name: value.to(dist_util.dev()) for name, value in next(data).items()}
        sample = diffusion.p_sample_loop(
            model,
            (args.batch_size, 3, args.large_size, args.large_size),
            clip_denoised=args.clip_denoised,
            model_kwargs=model_kwargs,
        )
        sample = ((sample + 1) * 127.5).clamp(0, 255).to(th.uint8).permute(0, 2, 3, 1).contiguous()
        gathered = [th.zeros_like(sample) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, sample)
        images.extend(part.cpu().numpy() for part in gathered)
        logger.log(f"{len(images) * args.batch_size} images")

    arr = np.concatenate(images, axis=0)[: args.num_samples]
    if dist.get_rank() == 0:
        shape_str = "x".join(str(size) for size in arr.shape)
        np.savez(os.path.join(logger.get_dir(), f"samples_{shape_str}.npz"), arr)
    dist.barrier()


def load_low_res(base_samples, batch_size, class_cond):
    with bf.BlobFile(base_samples, "rb") as file:
        archive = np.load(file)
        image_arr = archive["arr_0"]
        label_arr = archive["arr_1"] if class_cond else None
    rank, world_size = dist.get_rank(), dist.get_world_size()
    buffer, label_buffer = [], []
    while True:
        for i in range(rank, len(image_arr), world_size):
            buffer.append(image_arr[i])
            if class_cond:
                label_buffer.append(label_arr[i])
            if len(buffer) == batch_size:
                batch = th.from_numpy(np.stack(buffer)).float() / 127.5 - 1.0
                cond = {"low_res": batch.permute(0, 3, 1, 2)}
                if class_cond:
                    cond["y"] = th.from_numpy(np.stack(label_buffer))
                yield cond
                buffer, label_buffer = [], []


def make_parser():
    defaults = {
        "clip_denoised": True,
        "num_samples": 10000,
        "batch_size": 16,
        "use_ddim": False,
        "base_samples": "",
        "model_path": "",
    }
    defaults.update(sr_model_and_diffusion_defaults())
    parser = argparse.ArgumentParser()
    add_dict_to_argparser(parser, defaults)
    return parser


if __name__ == "__main__":
    main()
