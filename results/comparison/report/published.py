"""Published figures on CIFAR-10, to stand beside a report: copied from the papers, not measured here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row; what a source does not give, or could not be checked, is None.

    Attributes:
        model: name, with the sampler where it matters.
        fid: of 50,000 samples against the 50,000 training images.
        inception_score: of 50,000 samples.
        recall: Kynkaanniemi et al. 2019, in Inception features.
        nfe: network evaluations per image.
        seconds: of sampling, as published.
        source: author and year.
        protocol: what sets the figure apart.
    """

    model: str
    fid: float
    inception_score: float | None
    recall: float | None
    nfe: int
    seconds: str | None
    source: str
    protocol: str


PUBLISHED = (
    Published("DCGAN", 48.29, None, 0.21, 1, None, "Kang et al. 2023", "StudioGAN's benchmark"),
    Published("StyleGAN2-ADA", 2.92, None, None, 1, None, "Karras et al. 2020", "unconditional, tuned"),
    Published("DDPM", 3.17, 9.46, None, 1000, None, "Ho et al. 2020", "ancestral sampling"),
    Published("DDIM, 10 steps", 13.36, None, None, 10, None, "Song et al. 2021", "eta 0"),
    Published("DDIM, 50 steps", 4.67, None, None, 50, None, "Song et al. 2021", "eta 0"),
    Published("improved DDPM", 2.90, None, None, 4000, None, "Nichol and Dhariwal 2021", "L_simple, linear schedule"),
    Published("DDGAN", 3.75, None, None, 4, "0.21 for 100 images", "Xiao et al. 2022", "4 steps, one V100 GPU"),
    Published("EDM", 1.97, None, None, 35, None, "Karras et al. 2022", "unconditional, least of three FIDs"),
)

NOTE = """\
Published, not measured here, not comparable: other networks, days of training on GPUs, 50,000 images, and the standard
Inception features. A FID depends on the pixels, the resizing and the number of images; it says nothing about the
distances in the tables above."""

SEED_NOTE = """\
The project that this one follows compared three sampling times, which were three different quantities: its GAN's
"2175 s for 50,000 images" is the time of its training; its DDGAN drew 50,000 images in 332.65 s, writing them as JPEG
files included; its DDPM drew 1,024 images in about 82 minutes, with 4,000 steps and batches of 16."""


def matches(data_name: str) -> bool:
    """Tell whether a data source's name says that it is CIFAR-10."""
    return "cifar10" in data_name.lower().replace("-", "").replace("_", "")


def published_table() -> tuple[list[str], list[list[str]]]:
    """Return heading and rows."""
    header = ["published", "FID", "IS", "recall", "NFE", "seconds", "source", "protocol"]
    return header, [
        [
            row.model,
            f"{row.fid:.2f}",
            "-" if row.inception_score is None else f"{row.inception_score:.2f}",
            "-" if row.recall is None else f"{row.recall:.2f}",
            f"{row.nfe:,}",
            row.seconds or "-",
            row.source,
            row.protocol,
        ]
        for row in PUBLISHED
    ]
