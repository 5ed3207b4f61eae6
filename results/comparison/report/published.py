"""Published results on CIFAR-10, copied from the papers, not measured here."""

NOTE = """\
These results were published, not measured here, and are not comparable with the tables above. The networks differ, they
were trained for days on GPUs, and FID is computed from 50,000 images in the features of the standard Inception network.
FID also depends on the pixel values, the resizing and the number of images."""

HEADER = ["model", "FID", "IS", "recall", "NFE", "sampling time", "source", "protocol"]

PUBLISHED = [  # FID and IS of 50,000 samples, FID against the 50,000 training images; "-": not published
    ["DCGAN", "48.29", "-", "0.21", "1", "-", "Kang et al. 2023", "StudioGAN's benchmark"],
    ["StyleGAN2-ADA", "2.92", "-", "-", "1", "-", "Karras et al. 2020", "unconditional, tuned"],
    ["DDPM", "3.17", "9.46", "-", "1,000", "-", "Ho et al. 2020", "ancestral sampling"],
    ["DDIM, 10 steps", "13.36", "-", "-", "10", "-", "Song et al. 2021", "eta 0"],
    ["DDIM, 50 steps", "4.67", "-", "-", "50", "-", "Song et al. 2021", "eta 0"],
    ["improved DDPM", "2.90", "-", "-", "4,000", "-", "Nichol and Dhariwal 2021", "L_simple, linear schedule"],
    ["DDGAN", "3.75", "-", "-", "4", "0.21 s for 100 images", "Xiao et al. 2022", "4 steps, one V100 GPU"],
    ["EDM", "1.97", "-", "-", "35", "-", "Karras et al. 2022", "unconditional, best of three FIDs"],
]

SEED_NOTE = """\
The original project, which this one continues, compared three sampling times that measure different quantities. Its
GAN's "2175 s for 50,000 images" is training time. Its DDGAN took 332.65 s for 50,000 images, including writing them as
JPEG files. Its DDPM took about 82 minutes for 1,024 images, with 4,000 steps and batches of 16."""


def matches(data_name: str) -> bool:
    """Return True if a data source's name contains CIFAR-10."""
    return "cifar10" in data_name.lower().replace("-", "").replace("_", "")
