"""What test_ddgan.py draws with a generator, says of it, and writes beside the archive of samples."""

from pathlib import Path
from typing import Any

import torch
from comparison.device import autocast_dtype, precision_name
from comparison.files import atomic, digest
from comparison.gpu.replay import for_sampling
from comparison.rng import SampleNoise
from comparison.sampling.interpolation import COLUMNS, WalkNoise
from PIL import Image
from torch import Tensor

from ddgan.conditional import cyclic_labels
from ddgan.domain import Domain
from ddgan.generator import Generator
from ddgan.options import MODEL
from ddgan.process import DenoisingProcess
from ddgan.sampling import sample_from

JPEG_QUALITY = 90  # of the contact sheet, which is never scored


class ImageSource:
    """Images of a seed by number, drawn by its `network`.

    Args:
        generator: in eval mode; moved to the device.
        config: of `ddgan.checkpoints.load_generator`.
        seed: of all noise.
        device: where images are drawn.
        precision: "auto", "float32" or "bf16", of the network passes.
        only_class: of all images; None takes the classes in turn.
        record: on a CUDA GPU, record the evaluations of small batches and replay them.
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
        record: bool = True,
        eta: float = 1.0,
    ):
        network = generator.to(device).to(memory_format=torch.channels_last)
        self.network = for_sampling(network, device, record)
        self.config, self.seed, self.device, self.only_class = config, seed, device, only_class
        self.eta = eta
        kind = "posterior" if eta == 1 else f"DDIM with eta {eta:g}"
        self.sampler = f"{kind}, {config['num_timesteps']} steps"
        self.num_classes = generator.cfg.num_classes
        self.dtype = autocast_dtype(precision, device)
        steps = config["num_timesteps"], config["beta_min"], config["beta_max"], config["use_geometric"]
        self.process = DenoisingProcess(*steps).to(device)
        self.domain = Domain.of(config)
        self.shape = self.domain.shape  # of what is diffused

    def labels(self, indices: range) -> Tensor | None:
        """Return the classes of some images, (N,) int64 on the CPU; None for a network without classes."""
        return cyclic_labels(indices, self.num_classes, self.only_class)

    def draw(self, indices: range) -> Tensor:
        """Draw images by their numbers: (N, C, H, W) float32 in [-1, 1], unbounded without tanh."""
        return self._draw(SampleNoise(self.seed, indices, self.device), self.labels(indices))

    def draw_walk(self, walk: int) -> Tensor:
        """Draw a row of interpolation.png: x_T changes; latents, posterior noise and class are the first sample's."""
        labels = self.labels(range(2 * walk, 2 * walk + 1))
        noise = WalkNoise(self.seed, walk, self.device, "x_T")
        return self._draw(noise, None if labels is None else labels.repeat(COLUMNS))

    def evaluate(self, batch_size: int) -> Tensor:
        """Evaluate the network once on so many images."""
        noise = SampleNoise(self.seed, range(batch_size), self.device)
        t = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        condition = (t,) if self.num_classes else ()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.network(
                noise.normal(self.shape, "x_T"), t, noise.normal((self.config["nz"],), "z 0"), *condition
            )

    def describe(self, path: Path) -> dict[str, Any]:
        """Return what sampling.json and timing.json say of the sampler; `path` is the generator's file."""
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

    def _draw(self, noise: SampleNoise, labels: Tensor | None) -> Tensor:
        what = self.network, self.process, self.config["nz"], self.shape, self.dtype, labels, self.eta
        return self.domain.inverse(sample_from(noise, *what))


def announce(out: Path) -> None:
    """Print what was drawn and how long it took."""
    from comparison.files import read_json

    facts = read_json(out.parent / "sampling.json")
    print(
        f"{out}: {facts['images']} images, {facts['nfe']:g} evaluations each; sampling time {facts['seconds']:.2f} s "
        f"({facts['seconds_per_image']:.5f} s per image, batch {facts['batch_size']}, {facts['device']}, "
        f"{facts['precision']})"
    )


def write_contact_sheet(samples: Path, path: Path) -> None:
    """Write the picture of the first samples as a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary, Image.open(samples) as picture:
        picture.convert("RGB").save(temporary, "JPEG", quality=JPEG_QUALITY)
    print(f"{path}: contact sheet, not for scoring")


def score(out: Path, real: str, image_size: int, weights: Path | None, device: torch.device) -> None:
    """Print the FID of `out` against `real` and add it to sampling.json.

    Raises:
        UserError: there is nothing to compute it with.
    """
    from comparison.data.images import load_npz
    from comparison.files import read_json, write_json

    from ddgan.fid import frechet_inception_distance

    images, _ = load_npz(out)
    fid = frechet_inception_distance(images, real, image_size, weights, device)
    path = out.parent / "sampling.json"
    write_json(path, {**read_json(path), "fid": fid, "fid_reference": real})
    print(f"FID {fid:.3f} ({len(images)} images against {real})")
