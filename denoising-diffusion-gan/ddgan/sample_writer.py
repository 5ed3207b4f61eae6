"""The work of test_ddgan.py: sample from a generator, write the files next to the samples, and compute the FID."""

import argparse
from pathlib import Path
from typing import Any

import torch
from comparison.checkpoints import trained_facts
from comparison.data.images import load_npz
from comparison.data.sources import check_source
from comparison.device import autocast_dtype, precision_name, set_threads
from comparison.distributed import device_of, group
from comparison.files import digest, read_json, write_json
from comparison.gpu.cuda_graphs import for_sampling
from comparison.png import write_pngs
from comparison.ranks import RankInfo
from comparison.rng import SampleNoise
from comparison.sampling.draw import check_sample_space, draw_samples
from comparison.sampling.interpolation import COLUMNS, WalkNoise, draw_interpolation
from comparison.sampling.timing import write_benchmark
from torch import Tensor

from ddgan.checkpoints import load_generator
from ddgan.conditional import cyclic_labels, find_class
from ddgan.domain import Domain
from ddgan.fid import frechet_inception_distance
from ddgan.generator import Generator
from ddgan.options import ARCHITECTURE, DISCRIMINATOR_ONLY, MODEL
from ddgan.process import DenoisingProcess
from ddgan.sampling import sample
from ddgan.training_setup import check_same_flags


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of the command line that describe a checkpoint."""
    given = {n: v for n, v in vars(args).items() if n in ARCHITECTURE and n not in DISCRIMINATOR_ONLY}
    return given if args.dataset is None else {**given, "dataset": args.dataset}


def sample_run(rank_info: RankInfo, args: argparse.Namespace, path: Path, out: Path, count: int) -> int:
    """Sample `count` images of a checkpoint into `out` together with the other ranks; rank 0 writes and scores them."""
    generator, config = load_generator(path, given_flags(args))
    real = str(args.real_img_dir or config.get("dataset"))
    if args.compute_fid and not args.real_img_dir:
        check_source(real, "--real_img_dir")
    label, names = args.class_label, config.get("class_names") or ()
    only_class = None if label is None else find_class(label, generator.cfg.num_classes, names)
    device = device_of(rank_info, args.device)
    set_threads(args.threads, rank_info.local_world_size)
    flags = (args.seed, device, args.precision, only_class, not args.no_cuda_graph, args.eta)
    source = ImageSource(generator, config, *flags)
    common = {"image_size": config["image_size"], "device": device, "facts": source.describe(path)}
    if args.benchmark:
        common["min_seconds"] = args.benchmark_seconds
        write_benchmark(out.parent / "timing.json", source.draw, [source.network], source.evaluate, **common)
        return 0
    check_sample_space(out, count, config["image_size"])
    labels = source.labels(range(count))
    with group(rank_info, device):
        check_same_flags(args)
        draw_samples(
            source.draw,
            [source.network],
            num_samples=count,
            batch_size=min(args.batch_size, count),
            out=out,
            trained=trained_facts(path.parent, config.get("step"), config.get("images_seen")),
            labels=None if labels is None else labels.numpy(),
            **common,
        )
        if rank_info.is_first:
            print_summary(out)
            if args.interpolation:
                draw_interpolation(out.parent, source.draw_walk, latent="x_T", sampler=source.sampler)
            if args.png_dir:
                write_pngs(out, args.png_dir, digits=5)
                print(f"{args.png_dir}: {count} PNGs")
            if args.compute_fid:
                write_fid(out, real, config["image_size"], args.inception_weights, device)
    return 0


class ImageSource:
    """Samples of a seed by their index.

    Args:
        generator, config: result of `ddgan.checkpoints.load_generator`.
        seed: seed of all noise.
        device, precision: values of the flags.
        only_class: class of all images; None cycles through the classes.
        capture: whether to replay evaluations of small batches as CUDA graphs, on a CUDA GPU.
        eta: see `DenoisingProcess.sample_posterior`.
    """

    def __init__(
        self,
        generator: Generator,
        config: dict[str, Any],
        seed: int,
        device: torch.device,
        precision: str,
        only_class: int | None = None,
        capture: bool = True,
        eta: float = 1.0,
    ):
        network = generator.to(device).to(memory_format=torch.channels_last)
        self.network = for_sampling(network, device, capture)
        self.config, self.seed, self.device, self.only_class = config, seed, device, only_class
        self.eta = eta
        kind = "posterior" if eta == 1 else f"DDIM with eta {eta:g}"
        self.sampler = f"{kind}, {config['num_timesteps']} steps"
        self.num_classes = generator.cfg.num_classes
        self.dtype = autocast_dtype(precision, device)
        steps = config["num_timesteps"], config["beta_min"], config["beta_max"], config["use_geometric"]
        self.process = DenoisingProcess(*steps).to(device)
        self.domain = Domain.of(config)

    def labels(self, indices: range) -> Tensor | None:
        """Return the classes of samples, (N,) int64 on the CPU; None for a network without classes."""
        return cyclic_labels(indices, self.num_classes, self.only_class)

    def draw(self, indices: range) -> Tensor:
        """Return samples by their indices, (N, C, H, W) float32 in [-1, 1]; unbounded without tanh."""
        return self._draw(SampleNoise(self.seed, indices, self.device), self.labels(indices))

    def draw_walk(self, walk: int) -> Tensor:
        """Return a row of interpolation.png: x_T varies; latents, posterior noise and class are the first sample's."""
        labels = self.labels(range(2 * walk, 2 * walk + 1))
        noise = WalkNoise(self.seed, walk, self.device, "x_T")
        return self._draw(noise, None if labels is None else labels.repeat(COLUMNS))

    def _draw(self, noise: SampleNoise, labels: Tensor | None) -> Tensor:
        nz, shape = self.config["nz"], self.domain.shape
        x = sample(noise, self.network, self.process, nz, shape, self.dtype, labels, self.eta)
        return self.domain.inverse(x)

    def evaluate(self, batch_size: int) -> Tensor:
        """Evaluate the network once on a batch."""
        noise = SampleNoise(self.seed, range(batch_size), self.device)
        t = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        x, z = noise.normal(self.domain.shape, "x_T"), noise.normal((self.config["nz"],), "z 0")
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.network(x, t, z, *((t,) if self.num_classes else ()))

    def describe(self, path: Path) -> dict[str, Any]:
        """Return the metadata of sampling.json and timing.json; `path` is the generator's checkpoint."""
        classes = {}
        if self.num_classes:
            names = self.config.get("class_names") or range(self.num_classes)
            classes["classes"] = "in turn" if self.only_class is None else str(names[self.only_class])
        return {
            "model": MODEL,
            "sampler": self.sampler,
            "checkpoint": path.name,
            "checkpoint_sha256": digest(path),
            "network": "ema" if self.config.get("use_ema") else "raw",
            "images_seen": self.config.get("images_seen"),
            "seed": self.seed,
            "precision": precision_name(self.dtype),
            **classes,
        }


def print_summary(out: Path) -> None:
    """Print the number of samples and the sampling time."""
    report = read_json(out.parent / "sampling.json")
    print(
        f"{out}: {report['images']} images, {report['nfe']:g} evaluations each; sampling time "
        f"{report['seconds']:.2f} s ({report['seconds_per_image']:.5f} s per image, batch {report['batch_size']}, "
        f"{report['device']}, {report['precision']})"
    )


def write_fid(out: Path, real: str, image_size: int, weights: Path | None, device: torch.device) -> None:
    """Print the FID of `out` against --real_img_dir, and add it to sampling.json."""
    images, _ = load_npz(out)
    fid = frechet_inception_distance(images, real, image_size, weights, device)
    path = out.parent / "sampling.json"
    write_json(path, {**read_json(path), "fid": fid, "fid_reference": real})
    print(f"FID {fid:.3f} ({len(images)} images against {real})")
