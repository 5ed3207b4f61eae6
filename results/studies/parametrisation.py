"""Study: what a diffusion network should predict in a short training: the noise, the image or the velocity.

  python results/studies/parametrisation.py --plan
  python results/studies/parametrisation.py --seconds 150 --seeds 3

Trains improved DDPM on each prediction with the cosine and the linear schedule, with the same weights of the errors of
x_0 (min-SNR), and samples each network by DDIM and by DPM-Solver++. Besides the usual scores, it compares the variance
of the samples' mean brightness with that of the data. The hypothesis: an error of a predicted noise becomes
sqrt(1 / alpha_bar - 1) times as large in x_0, which shows as a wrong brightness of whole images. Repeat the command to
resume. Writes README.md, study.json and parametrisation.png into results/studies/parametrisation/.

Salimans & Ho 2022 (velocity); Hang et al. 2023 (min-SNR).
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.models import DDPM, MODELS
from comparison.report import study_page
from comparison.report.panels import Bar, Bars
from comparison.report.tradeoffs import QUALITY
from comparison.studies import START_SECONDS, Job, Study, add_options, sampling_facts, sampling_seconds, training_facts

MODEL = MODELS[DDPM]
IMAGE_SIZE = 32
EVALUATIONS = 20
PREDICTIONS = {"epsilon": "noise", "x_start": "image", "velocity": "velocity"}  # --prediction -> label
SCHEDULES = ("cosine", "linear")
SAMPLERS = {"dpmpp": "DPM-Solver++", "ddim": "DDIM"}  # --sampler -> label
COLOURS = {"epsilon": "#D55E00", "x_start": "#0072B2", "velocity": "#009E73"}
MODES, BRIGHTNESS = "modes_matched", "brightness_ratio"
Row = dict[str, Any]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=150, num_samples=1000)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Validate, train, sample, score, write."""
    study = Study("parametrisation", args, sampler=False)
    if args.page:
        return study.rewrite(page, draw_pictures)
    jobs = study.choose(plan(args), rest=60)
    if not jobs:
        return None
    from comparison import study_images  # torch

    cells = study.run(jobs, lambda name, seed: run_cell(study, name, seed))
    content, anchors = study.score_all(cells, IMAGE_SIZE)
    study_images.add_brightness(study, content["cells"], IMAGE_SIZE)
    return study.write({**content, "floor": anchors["floor"]}, page, draw_pictures)


def plan(args: argparse.Namespace) -> list[Job]:
    """Return a cell for each prediction and schedule."""
    sampling = len(SAMPLERS) * sampling_seconds(MODEL, args.num_samples, EVALUATIONS)
    seconds = START_SECONDS + args.seconds + sampling
    cells = product(PREDICTIONS, SCHEDULES)
    return [Job(f"{p}-{s}", f"predicts the {PREDICTIONS[p]}, {s} schedule", seconds, args.seeds) for p, s in cells]


def run_cell(study: Study, name: str, seed: int) -> list[Row]:
    """Train one network; return an entry of study.json for each sampler."""
    prediction, schedule = name.split("-")
    run = study.folder(MODEL, f"{name}-s{seed}")
    flags = ["--image_size", str(IMAGE_SIZE), "--prediction", prediction, "--noise_schedule", schedule]
    flags += ["--loss_weighting", "min-snr", "--snr_gamma", "1"]
    training = training_facts(study.train(MODEL, run, seed, flags))
    entries = []
    for sampler, label in SAMPLERS.items():
        samples = run / "settings" / sampler
        chosen = ["--sampler", sampler, "--num_sampling_steps", str(EVALUATIONS)]
        sampling = study.sample(MODEL, run, samples, seed, chosen)
        entry = {"name": f"{name}-{sampler}", "model": MODEL.name, "seed": seed, "prediction": prediction}
        entry |= {"label": f"{PREDICTIONS[prediction]}, {schedule}, {label}", "folder": samples}
        entries.append({**entry, "training": training, **sampling_facts(sampling)})
    return entries


def effects(study: Row) -> list[str]:
    """Return a sentence for each prediction beside the noise: its distance over that of the noise, all else equal."""
    cells = {(cell["name"], cell["seed"]): cell["metrics"][QUALITY]["value"] for cell in study["cells"]}
    sentences = []
    for prediction in list(PREDICTIONS)[1:]:
        pairs = []
        for (name, seed), distance in cells.items():
            other = ("-".join(["epsilon", *name.split("-")[1:]]), seed)
            if name.startswith(f"{prediction}-") and other in cells:
                pairs.append((distance, cells[other]))
        sentences += study_page.paired(f"The {PREDICTIONS[prediction]} instead of the noise", pairs)
    return sentences


def page(study: Row) -> str:
    """Return README.md."""
    rows, options = study_page.pooled(study), study["options"]
    names = [name for name in (QUALITY, MODES, "coverage") if name in rows[0]["metrics"]]
    columns = {
        "prediction, schedule, sampler": lambda row: row["label"],
        **study_page.scores(names),
        "brightness variance": lambda row: formatting.metric(BRIGHTNESS, row["metrics"].get(BRIGHTNESS)),
    }
    floor = {"label": "real images (floor)", "metrics": study["floor"]}
    return study_page.page(
        study,
        "what a diffusion network should predict",
        "Should a diffusion network predict the noise, the image or the velocity when the training is short, and does "
        "the brightness of whole images explain the difference?",
        f"Each network was trained for {options['seconds']:g} s and sampled in {EVALUATIONS} evaluations. All "
        "predictions have the same weight for an error of x_0, min(SNR, 1). Other settings: "
        f"`{options['preset']}` in flags.sh.",
        [
            effects(study),
            "![Frechet distance, samples that show a mode, and variance of brightness](parametrisation.png)",
            study_page.table([floor, *rows], columns),
        ],
        [
            "`brightness variance`: variance over samples of the mean pixel value, divided by that of the training "
            "images. Above 1, whole samples are too bright or too dark.",
        ],
    )


def draw_pictures(study: Row, out: Path) -> None:
    """Draw parametrisation.png: a bar for each row and metric."""
    from comparison.report.study_plots import draw

    rows = study_page.pooled(study)
    panels: list[Bars] = []
    texts = {
        QUALITY: "Frechet distance (log, lower is better)",
        MODES: "fraction that shows a mode",
        BRIGHTNESS: "variance of brightness over the data's (log)",
    }
    for name, text in texts.items():
        bars = []
        for row in (row for row in rows if name in row["metrics"]):
            dots = [cell["metrics"][name]["value"] for cell in study["cells"] if cell["name"] == row["name"]]
            bars.append(Bar(row["label"], row["metrics"][name], COLOURS[row["prediction"]], dots))
        panels.append(Bars(text, bars, log=name != MODES, labelled=not panels))
    draw(panels, out / "parametrisation.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
