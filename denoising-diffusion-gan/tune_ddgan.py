"""Search for good training flags of a denoising diffusion GAN at a fixed number of images seen.

    python3 -u denoising-diffusion-gan/tune_ddgan.py --workers 2
    python3 -u denoising-diffusion-gan/tune_ddgan.py --dataset path/to/images --study mine --ngf 32
    python3 -u denoising-diffusion-gan/tune_ddgan.py --base "$DDGAN_FLAGS $DDGAN_TRAIN_FLAGS" --fix num_timesteps=4

Each trial trains as train_ddgan.py does, up to --max_images, draws as test_ddgan.py does, and is scored by the offline
Frechet distance of results/evaluate.py; the speed of the machine does not matter. Searched are lr_g, lr_d, r1_gamma,
lazy_reg, ema_decay, num_timesteps and accum_iter, by Optuna's TPE sampler (Bergstra et al. 2011); a trial that is worse
than the median of the finished ones after a part of its images ends there. The first trial is the base flags
themselves: the `quick` ones of flags.sh, or --base, and after them every flag of train_ddgan.py that is given here.
In the end the winner and the base flags are trained with --confirm other seeds each.

Ctrl-C stops; the same command goes on, and in a second shell joins in. The study folder, results/studies/STUDY, gets
README.md, study.json, trials.csv, history.png, importance.png, best_flags.txt (a line for train_ddgan.py) and, not in
git, study.db and trials/.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import test_ddgan
import train_ddgan
from comparison import cli, studies
from comparison.cli import UserError
from comparison.data.sources import check_source
from ddgan.options import MODEL, check_architecture
from ddgan.tuning import SPACE, Knob, Search, make_space, require_optuna
from ddgan.tuning_page import rewrite_pages
from ddgan.tuning_record import write_study
from ddgan.tuning_trials import Bench, Scorer, confirm, remove_large_files, replace_flags, run_trial

NAMES = [knob.name for knob in SPACE]
OWN = (
    "exp",
    "resume",
    "fresh",
    "max_steps",
    "max_seconds",
    "stop_after",
    "keep",
)  # flags of a training that the search sets


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `base` becomes the words of every training, `training` their values."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--dataset", default="shapes", help="as train_ddgan.py's")
    add("--study", default="ddgan-tuning", help="name of the study; with a slash, its folder")
    add("--trials", type=cli.positive_int, default=40, help="of all workers together; more continue a finished study")
    add("--workers", type=cli.positive_int, default=1, metavar="K", help="processes that this command starts")
    add(
        "--max_images", type=cli.positive_int, default=6000, help="training images of a full trial, repetitions counted"
    )
    add(
        "--rungs", type=share, nargs="*", default=[0.25, 0.5], metavar="SHARE",
        help="shares of --max_images after which a trial is scored and perhaps ended; none for no pruning",
    )  # fmt: skip
    add("--num_samples", type=cli.positive_int, default=500, metavar="N", help="images drawn and scored each time")
    add("--features", choices=["auto", "cifar", "random"], default="auto", help="of the distance, see evaluate.py")
    add("--fix", action="append", default=[], metavar="NAME=VALUE", help=f"do not search one of {', '.join(NAMES)}")
    add("--range", action="append", default=[], metavar="NAME=LOW:HIGH", help="search one of them between these")
    add(
        "--base",
        default=None,
        metavar="'FLAGS'",
        help="flags of every training; the `quick` ones of flags.sh unless given",
    )
    add("--seed", type=cli.non_negative_int, default=0, help="of the sampler and of every trial's training")
    add("--confirm", type=cli.non_negative_int, default=3, metavar="SEEDS", help="trainings of winner and base flags")
    add("--keep_trials", action="store_true", help="keep checkpoints and samples of the trials")
    add("--page", action="store_true", help="write page and pictures anew from study.json, and compute nothing")
    cli.add_device_options(parser)
    argv = list(sys.argv[1:] if argv is None else argv)
    args, _ = parser.parse_known_args(argv)
    try:
        base = [] if args.page else quick_flags() if args.base is None else shlex.split(args.base)
    except ValueError as error:  # of shlex
        parser.error(f"--base {args.base}: not readable as flags ({error})")
    args, rest = parser.parse_known_args([*base, *argv])
    args.argv = argv
    args.fix = dict(assignment(parser, "--fix", text) for text in args.fix)
    args.range = dict(assignment(parser, "--range", text) for text in args.range)
    if args.page:
        return args
    for word in rest:
        if word.removeprefix("--") in OWN and word.startswith("--"):
            parser.error(f"{word}: the search sets it itself; the length of a trial is --max_images")
    args.base = replace_flags(
        last_given(["--dataset", args.dataset, *rest]), {name: train_value(name, v) for name, v in args.fix.items()}
    )
    args.training = train_ddgan.parse_args(args.base)
    return args


def share(text: str) -> float:
    """Read a share above 0 and below 1, an argparse type."""
    value = cli.fraction(text)
    if value in (0, 1):
        raise argparse.ArgumentTypeError(f"must be a number above 0 and below 1, not {text}")
    return value


def assignment(parser: argparse.ArgumentParser, flag: str, text: str) -> tuple[str, str]:
    """Split NAME=VALUE."""
    name, _, value = text.partition("=")
    if name not in NAMES or not value:
        parser.error(f"{flag} {text}: must be NAME=VALUE with a NAME among {', '.join(NAMES)}")
    return name, value


def train_value(name: str, text: str) -> Any:
    """Read the value of a flag as train_ddgan.py does, which answers a wrong one."""
    return getattr(train_ddgan.parse_args([f"--{name}", text]), name)


def last_given(words: list[str]) -> list[str]:
    """Leave out flags, with their values, that are given again later."""
    flags: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            flags.pop(word, None)
            flags[word] = []
        elif flags:
            next(reversed(flags.values())).append(word)
    return [word for flag, values in flags.items() for word in (flag, *values)]


def quick_flags() -> list[str]:
    """Return the `quick` training flags of flags.sh."""
    found = studies.preset_flags("quick")
    return [word for name in studies.FLAGS[MODEL][0] for word in found[name]]


def main(args: argparse.Namespace) -> int:
    """Search, confirm, write; return the exit status."""
    folder = study_folder(args.study)
    if args.page:
        rewrite_pages(folder)
        return 0
    space, rungs = judge(args, folder)
    require_optuna()
    signal.signal(signal.SIGTERM, interrupted)
    study = Search(folder, settings(args, space, rungs), space, defaults(args, space), args.seed)
    try:
        if args.workers > 1:
            study.close()
            return lead(args)
        bench = make_bench(args)
        while trial := study.next_trial(args.trials) or study.wait_for_others(args.trials):
            run_trial(study, trial, bench, args.seed, rungs)
            if not args.keep_trials:
                remove_large_files(folder / "trials" / trial.user_attrs["folder"])
        confirmed = confirm(study, bench, seeds(args), rungs[-1], keep=args.keep_trials)
        write_study(study, bench, options(args, rungs), confirmed)
    finally:
        study.close()
    return 0


def study_folder(study: str) -> Path:
    """Return the folder that --study names: below results/studies/, or a path if it has a slash.

    Raises:
        UserError: no name, or one that means the folder of all studies.
    """
    if study in ("", ".", ".."):
        raise UserError(f"--study {study!r}: must be the name of a study, or a path with a slash")
    return Path(study) if "/" in study else cli.repo_root() / "results" / "studies" / study


def judge(args: argparse.Namespace, folder: Path) -> tuple[list[Knob], list[int]]:
    """Judge every flag; return what is searched and the images seen at each rung, the last one included."""
    cli.check_folder(folder, "--study")
    check_source(args.dataset, "--dataset")
    training = vars(args.training)
    check_architecture(training)
    if args.num_samples < studies.LEAST_SAMPLES // 4:
        raise UserError(
            f"--num_samples {args.num_samples}: at least {studies.LEAST_SAMPLES // 4} are needed for a score"
        )
    both = sorted(set(args.fix) & set(args.range))
    if both:
        raise UserError(f"--range {both[0]}: is fixed by --fix")
    ranges = {name: bounds(name, text) for name, text in args.range.items()}
    rungs = sorted({max(1, round(args.max_images * part)) for part in args.rungs} | {args.max_images})
    return make_space(training, list(args.fix), ranges), rungs


def bounds(name: str, text: str) -> tuple[float, float]:
    """Read LOW:HIGH."""
    low, _, high = text.partition(":")
    values = train_value(name, low), train_value(name, high)
    if not 0 < values[0] < values[1]:
        raise UserError(f"--range {name}={text}: must be LOW:HIGH, above 0 and ascending")
    return values


def defaults(args: argparse.Namespace, space: list[Knob]) -> dict[str, float]:
    """Return the values of the base flags that are searched."""
    return {knob.name: getattr(args.training, knob.name) for knob in space}


def settings(args: argparse.Namespace, space: list[Knob], rungs: list[int]) -> dict[str, Any]:
    """Return what every worker of a study must agree on."""
    ranges = {knob.name: [knob.low, knob.high] for knob in space}
    kept = {name: getattr(args, name) for name in ("num_samples", "features", "seed")}
    return {"base": " ".join(args.base), "rungs": rungs, "space": ranges, **kept}


def options(args: argparse.Namespace, rungs: list[int]) -> dict[str, Any]:
    """Return the options that the page tells."""
    kept = {name: getattr(args, name) for name in ("max_images", "num_samples", "seed", "confirm", "dataset")}
    return {**kept, "base": args.base, "rungs": rungs, "fixed": sorted(args.fix)}


def seeds(args: argparse.Namespace) -> range:
    """Return the seeds of the confirmation, which the search has not used."""
    return range(args.seed + 1, args.seed + 1 + args.confirm)


def make_bench(args: argparse.Namespace) -> Bench:
    """Return what trains, draws and scores, in this process."""

    def load_scorer() -> Scorer:
        from comparison.device import pick_device, set_threads

        set_threads(args.threads)
        size = args.training.image_size
        return Scorer(args.dataset, size, args.num_samples, args.features, pick_device(args.device))

    return Bench(
        train=lambda words: train_ddgan.main(train_ddgan.parse_args(words)),
        draw=lambda words: test_ddgan.main(test_ddgan.parse_args(words)),
        base=args.base,
        device=["--device", args.device, "--precision", args.precision, "--threads", str(args.threads)],
        load_scorer=load_scorer,
        total=args.max_images,
    )


def interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """Take SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def lead(args: argparse.Namespace) -> int:
    """Start the workers and wait for them; Ctrl-C reaches each of them once."""
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.workers)
    command = [sys.executable, "-u", str(Path(__file__).resolve()), *args.argv, "--workers", "1"]
    command += ["--threads", str(threads)]
    quiet = os.environ | {"TQDM_DISABLE": "1"}  # bars of several processes on one terminal would be unreadable
    workers = [subprocess.Popen(command, env=quiet, start_new_session=True) for _ in range(args.workers)]
    try:
        statuses = [worker.wait() for worker in workers]
    except KeyboardInterrupt:
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        for worker in workers:
            worker.wait()
        raise
    return max((abs(status) for status in statuses), default=0)


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
