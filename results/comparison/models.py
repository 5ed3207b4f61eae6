"""The table of models: their names, and the commands that train and sample them. Standard library only.

A new model is a folder with two scripts and one row here. Its training script takes `--data D --run_dir R`,
`--image_size S`, `--seed N`, `--device D`, `--max_steps`, `--max_images` or `--max_seconds`, `--stop_after` and
`--fresh`, and writes config.json, progress.csv and numbered checkpoints into R. Its sampling script takes
`--checkpoint C --out F`, `--num_samples N`, `--seed N`, `--device D`, `--interpolation`, and `--benchmark` with
`--benchmark_seconds S`, and writes samples*.npz, sampling.json and timing.json. Both skip what is finished.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from comparison import cli
from comparison.checkpoints import newest
from comparison.cli import UserError


@dataclass(frozen=True)
class Model:
    """One row of the table; patterns are globs within the run folder."""

    name: str  # folder of its runs, and tag in config.json and checkpoints
    label: str  # name in tables and plots
    colour: str
    train: str  # training script, from the repository root
    sample: str  # sampling script
    checkpoints: str  # pattern; the file with the highest number in its name is sampled
    train_flags: tuple[str, ...] = ()  # variables of flags.sh
    sample_flags: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()  # flags of every training in a comparison
    quiet: tuple[str, ...] = ()  # flags that save no sample grids during training, for studies
    compile: tuple[str, ...] = ()  # flags that switch torch.compile on in training
    best: str = ""  # pattern of checkpoints kept for their score
    samples: str = "samples.npz"  # file that `--out` names; empty where `--out` is its folder
    evaluations: int = 1  # network evaluations per image, by default
    any_steps: bool = False  # True if a trained network can be sampled in any number of steps
    distill: str = ""  # script that tunes a trained network to few evaluations; empty for none
    distill_flags: tuple[str, ...] = ()
    evaluation_seconds: float = 1e-3  # per 32-pixel image on two CPU cores with preset quick, for plans


GAN, DDPM, DDGAN = "gans", "improved-diffusion", "denoising-diffusion-gan"
_ROWS = (
    Model(
        *(GAN, "DCGAN", "#D55E00", "gans/cifar_gan.py", "gans/sample_gan.py", "checkpoint_*.pt"),
        train_flags=("GAN_FLAGS",),
        fixed=("--num_samples", "0", "--held_out", "0"),
        best="best_*.pt",
        evaluation_seconds=7e-5,
    ),
    Model(
        *(DDPM, "improved DDPM", "#0072B2"),
        *("improved-diffusion/scripts/image_train.py", "improved-diffusion/scripts/image_sample.py", "ema_*.pt"),
        train_flags=("MODEL_FLAGS", "DIFFUSION_FLAGS", "TRAIN_FLAGS"),
        sample_flags=("SAMPLE_FLAGS",),
        quiet=("--grid_images", "0"),
        compile=("--compile", "true"),
        samples="",
        evaluations=20,
        any_steps=True,
        distill="improved-diffusion/scripts/distill_train.py",
        distill_flags=("DISTILL_FLAGS",),
        evaluation_seconds=1.6e-3,
    ),
    Model(
        *(DDGAN, "DDGAN", "#009E73"),
        *("denoising-diffusion-gan/train_ddgan.py", "denoising-diffusion-gan/test_ddgan.py", "netG_*.pth"),
        train_flags=("DDGAN_FLAGS", "DDGAN_TRAIN_FLAGS"),
        sample_flags=("DDGAN_SAMPLE_FLAGS",),
        compile=("--compile",),
        evaluations=4,
        evaluation_seconds=1.2e-3,
    ),
)
MODELS = {model.name: model for model in _ROWS}  # in the order in which they are trained
GANS = {  # preset of cifar_gan.py -> its label, and its variable of flags.sh
    "dcgan": ("DCGAN", "DCGAN_FLAGS"),
    "dcgan-plus": ("DCGAN plus", "DCGAN_PLUS_FLAGS"),
    "r3gan-tiny": ("R3GAN tiny", "R3GAN_FLAGS"),
    "r3gan": ("R3GAN", ""),
}


def label_of(name: str, preset: str | None = None) -> str:
    """Return a model's label, for a GAN that of its preset; a name that is not in the table is its own label."""
    if name == GAN and preset in GANS:
        return GANS[preset][0]
    return MODELS[name].label if name in MODELS else name


def preset_flags(preset: str) -> dict[str, list[str]]:
    """Return every variable of flags.sh that the tables name, as a list of words; raise UserError if bash fails."""
    kinds = [(*model.train_flags, *model.sample_flags, *model.distill_flags) for model in MODELS.values()]
    names = sorted({name for kind in kinds for name in kind} | {name for _, name in GANS.values() if name})
    script = 'PRESET=$1; source "$2"; shift 2; for name; do printf "%s\\n" "${!name}"; done'
    command = ["bash", "-c", script, "bash", preset, str(cli.repo_root() / "flags.sh"), *names]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"flags.sh: bash cannot read it ({error})") from None
    return {name: line.split() for name, line in zip(names, lines, strict=True)}


def value_of(words: list[str], flag: str, default: str = "") -> str:
    """Return the value that follows a flag in a list of words."""
    return words[words.index(flag) + 1] if flag in words else default


def newest_checkpoint(model: Model, run: Path) -> Path:
    """Return the checkpoint of a run to sample; raise UserError if there is none."""
    checkpoint = newest(run, model.checkpoints)
    if checkpoint is None:
        raise UserError(f"{run}: no {model.checkpoints} found; train the model first")
    return checkpoint


def with_steps(flags: list[str], steps: int) -> tuple[str, list[str]]:
    """Return name and flags of a preset's sampler with another number of steps; DDIM unless the preset names one."""
    if sampler := value_of(flags, "--sampler"):
        return f"{sampler}{steps}", ["--num_sampling_steps", str(steps)]
    return f"ddim{steps}", ["--use_ddim", "True", "--timestep_respacing", f"ddim{steps}"]
