"""Search for good training flags of a denoising diffusion GAN at a fixed number of training images.

    python3 -u denoising-diffusion-gan/tune_ddgan.py --workers 2
    python3 -u denoising-diffusion-gan/tune_ddgan.py --dataset path/to/images --study mine --ngf 32
    python3 -u denoising-diffusion-gan/tune_ddgan.py --base "$DDGAN_FLAGS $DDGAN_TRAIN_FLAGS" --fix num_timesteps=4

Each trial trains like train_ddgan.py up to --max_images, samples like test_ddgan.py, and is scored by the offline
Frechet distance of results/evaluate.py, so the speed of the machine does not matter. Optuna's TPE sampler (Bergstra et
al. 2011) searches lr_g, lr_d, r1_gamma, lazy_reg, ema_decay, num_timesteps and accum_iter. A trial that is worse than
the median of the finished ones after a fraction of its images is pruned. The first trial has the base flags: --base, or
the `quick` flags of flags.sh, overridden by any flag of train_ddgan.py on the command line. At the end the winner and
the base flags are trained with --confirm further seeds each.

Ctrl-C stops; the same command resumes, or joins from a second shell. The study folder, results/studies/STUDY, gets
README.md, study.json, trials.csv, history.png, importance.png, best_flags.txt (a line for train_ddgan.py) and, not in
git, study.db and trials/.
"""

import argparse
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import train_ddgan
from comparison import cli
from comparison.cli import UserError
from comparison.data.sources import check_source
from comparison.files import write_json
from comparison.models import MODELS, preset_flags
from ddgan.options import MODEL, check_architecture

Space = dict[str, tuple[float, float]]
Work = Callable[[argparse.Namespace, int], None]
SPACE: Space = {  # flag -> inclusive bounds of a logarithmic scale; integer bounds search integers
    "lr_g": (5e-5, 2e-3),
    "lr_d": (5e-5, 2e-3),
    "r1_gamma": (0.005, 2),
    "lazy_reg": (1, 20),
    "ema_decay": (0.9, 0.9999),  # logarithmic in its distance from 1
    "num_timesteps": (2, 8),  # 1 would be a GAN without denoising
    "accum_iter": (1, 4),
}
MIN_SAMPLES = 16  # of a score
SET_BY_SEARCH = {  # flags of the trainings
    f"--{name}" for name in ("exp", "run_dir", "resume", "fresh", "max_steps", "max_seconds", "stop_after", "keep")
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `base` becomes the argument list of every training, `training` its parsed values."""
    parser, names = cli.make_parser(__doc__), ", ".join(SPACE)
    add = parser.add_argument
    add("--dataset", "--data", default="shapes", help="training images, as for train_ddgan.py")
    add("--study", default="ddgan-tuning", help="name of the study; with a slash, its folder")
    add("--trials", type=cli.positive_int, default=40, help="trials of all workers; raise it to continue a study")
    add("--workers", type=cli.positive_int, default=1, metavar="K", help="worker processes of this command")
    add("--max_images", type=cli.positive_int, default=6000, help="training images per trial, repetitions counted")
    rungs_help = "fractions of --max_images after which a trial is scored and can be pruned; none for no pruning"
    add("--rungs", type=cli.fraction, nargs="*", default=[0.25, 0.5], metavar="SHARE", help=rungs_help)
    add("--num_samples", type=cli.positive_int, default=500, metavar="N", help="samples per score")
    add("--features", choices=["auto", "cifar", "random"], default="auto", help="feature extractor, see evaluate.py")
    add("--fix", action="append", default=[], metavar="NAME=VALUE", help=f"do not search this one of {names}")
    add("--base", metavar="'FLAGS'", help="flags of every training; default: the `quick` flags of flags.sh")
    add("--seed", type=cli.non_negative_int, default=0, help="seed of the sampler and of every trial's training")
    add("--confirm", type=cli.non_negative_int, default=3, metavar="SEEDS", help="seeds to confirm the winner with")
    add("--page", action="store_true", help="only rewrite the page and figures from study.json")
    cli.add_device_options(parser)
    argv = list(sys.argv[1:] if argv is None else argv)
    args, _ = parser.parse_known_args(argv)
    try:
        base = [] if args.page else quick_flags() if args.base is None else shlex.split(args.base)
    except ValueError as error:  # of shlex
        parser.error(f"--base {args.base}: not readable as flags ({error})")
    args, rest = parser.parse_known_args([*base, *argv])
    args.fix = dict(text.partition("=")[::2] for text in args.fix)
    for name, value in args.fix.items():
        if name not in SPACE or not value:
            parser.error(f"--fix {name}={value}: must be NAME=VALUE with a NAME among {names}")
    for flag in SET_BY_SEARCH.intersection(word.partition("=")[0] for word in rest):
        parser.error(f"{flag}: the search sets it; the length of a trial is --max_images")
    base = ["--dataset", args.dataset, *rest]
    base += [part for name, value in args.fix.items() for part in (f"--{name}", value)]
    args.base = drop_overridden(base)
    args.training = train_ddgan.parse_args([] if args.page else args.base)
    return args


def drop_overridden(arguments: list[str]) -> list[str]:
    """Remove flags, with their values, that occur again later in an argument list."""
    flags: dict[str, list[str]] = {}
    for argument in arguments:
        if argument.startswith("--"):
            flags.pop(argument, None)
            flags[argument] = []
        elif flags:
            next(reversed(flags.values())).append(argument)
    return [part for flag, values in flags.items() for part in (flag, *values)]


def quick_flags() -> list[str]:
    """Return the `quick` training flags of flags.sh."""
    preset = preset_flags("quick")
    return [part for name in MODELS[MODEL].train_flags for part in preset[name]]


def main(args: argparse.Namespace) -> int:
    """Search, confirm the winner, write the page, and return the exit status."""
    if args.study in ("", ".", ".."):
        raise UserError(f"--study {args.study!r}: must be the name of a study, or a path with a slash")
    args.folder = Path(args.study) if "/" in args.study else cli.repo_root() / "results" / "studies" / args.study
    if not args.page:
        validate(args)
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("the search needs optuna 4.9 or newer: pip install optuna") from None
    from ddgan import tuning, tuning_page

    if not args.page:
        tuning.begin(args)
        run_workers(tuning.search, args)
        if queued := tuning.queue_confirmation(args):
            run_workers(tuning.confirm, args)
        write_json(args.folder / "study.json", tuning.record(args, queued))
    tuning_page.rewrite_pages(args.folder)
    return 0


def validate(args: argparse.Namespace) -> None:
    """Validate the options; add `space`, `default` (its values in the base flags), `rungs` in images, and `scoring`."""
    if "?" in str(args.folder.resolve()):  # begins the options in the address of a database
        raise UserError(f"--study {args.study}: must not contain '?'")
    cli.check_folder(args.folder, "--study")
    check_source(args.dataset, "--dataset")
    check_architecture(vars(args.training))
    if args.num_samples < MIN_SAMPLES:
        raise UserError(f"--num_samples {args.num_samples}: a score needs at least {MIN_SAMPLES} samples")
    if {0, 1} & set(args.rungs):
        raise UserError("--rungs: must be above 0 and below 1; the end of a trial is always scored")
    args.space = make_space(vars(args.training), args.fix)
    args.default = {name: getattr(args.training, name) for name in args.space}
    args.rungs = sorted({max(1, round(args.max_images * part)) for part in args.rungs} | {args.max_images})
    if args.workers > 1:
        args.threads = args.threads or max(1, (os.cpu_count() or 1) // args.workers)
    args.scoring = (args.dataset, args.training.image_size, args.num_samples, args.features, args.device, args.threads)


def make_space(base: Mapping[str, Any], fixed: Collection[str]) -> Space:
    """Return searched flag -> bounds: those of SPACE, widened to include the value of the base flags.

    Raises:
        UserError: no flag is left, or a value cannot be on a logarithmic scale.
    """
    space = {}
    for name in [name for name in SPACE if name not in fixed and (name != "ema_decay" or base["use_ema"])]:
        low, high = SPACE[name]
        if base[name] <= 0 and name != "ema_decay":
            raise UserError(
                f"--{name} {base[name]:g}: cannot be on a logarithmic scale; add --fix {name}={base[name]:g}"
            )
        space[name] = min(low, base[name]), max(high, base[name])
    if not space:
        raise UserError("--fix: leaves nothing to search")
    return space


def run_workers(work: Work, args: argparse.Namespace) -> None:
    """Call work(args, number) in each of --workers processes, and forward Ctrl-C to them."""
    if args.workers == 1:
        work(args, 0)
        return
    os.environ["TQDM_DISABLE"] = "1"  # progress bars of several processes would overwrite each other
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=worker_main, args=(work, args, number)) for number in range(args.workers)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        for worker in workers:
            if worker.pid and worker.is_alive():
                os.kill(worker.pid, signal.SIGINT)
        for worker in workers:
            worker.join()
        raise
    status = max(worker.exitcode or 0 for worker in workers)
    if status < 0:
        raise UserError("all workers were killed, possibly out of memory; lower --workers")
    if status:
        sys.exit(status)  # the worker has printed the error


def worker_main(work: Work, args: argparse.Namespace, number: int) -> None:
    """Run as one of the workers, in a session of its own, so that the terminal's Ctrl-C does not reach it."""
    os.setsid()
    signal.signal(signal.SIGTERM, interrupt)
    cli.run(lambda: work(args, number))


def interrupt(number: int, frame: object) -> NoReturn:
    """Handle SIGTERM like Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    cli.run(lambda: main(parse_args()))
