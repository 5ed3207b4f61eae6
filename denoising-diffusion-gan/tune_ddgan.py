"""Search for good training flags of a denoising diffusion GAN at a fixed number of images seen.

    python3 -u denoising-diffusion-gan/tune_ddgan.py --workers 2
    python3 -u denoising-diffusion-gan/tune_ddgan.py --dataset path/to/images --study mine --ngf 32
    python3 -u denoising-diffusion-gan/tune_ddgan.py --base "$DDGAN_FLAGS $DDGAN_TRAIN_FLAGS" --fix num_timesteps=4

Each trial trains as train_ddgan.py does, up to --max_images, samples as test_ddgan.py does, and is scored by the
offline Frechet distance of results/evaluate.py; the speed of the machine does not matter. Optuna's TPE sampler
(Bergstra et al. 2011) searches lr_g, lr_d, r1_gamma, lazy_reg, ema_decay, num_timesteps and accum_iter. A trial that is
worse than the median of the finished ones after a part of its images is pruned. The first trial has the base flags:
the `quick` ones of flags.sh, or --base, and after them every flag of train_ddgan.py that is given here. In the end the
winner and the base flags are trained with --confirm other seeds each.

Ctrl-C stops; the same command resumes, and in a second shell joins in. The study folder, results/studies/STUDY, gets
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
SPACE: Space = {  # flag -> bounds, both included, on a logarithmic scale; whole if they are
    "lr_g": (5e-5, 2e-3),
    "lr_d": (5e-5, 2e-3),
    "r1_gamma": (0.005, 2),
    "lazy_reg": (1, 20),
    "ema_decay": (0.9, 0.9999),  # its distance from 1 is on the logarithmic scale
    "num_timesteps": (2, 8),  # 1 is a GAN on images and denoises nothing
    "accum_iter": (1, 4),
}
LEAST_SAMPLES = 16  # for a score
OWN = {f"--{name}" for name in ("exp", "resume", "fresh", "max_steps", "max_seconds", "stop_after", "keep")}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `base` becomes the words of every training, `training` their values."""
    parser, names = cli.make_parser(__doc__), ", ".join(SPACE)
    add = parser.add_argument
    add("--dataset", "--data", default="shapes", help="training images, as for train_ddgan.py")
    add("--study", default="ddgan-tuning", help="name of the study; with a slash, its folder")
    add("--trials", type=cli.positive_int, default=40, help="trials of all workers; more continue a finished study")
    add("--workers", type=cli.positive_int, default=1, metavar="K", help="processes that this command starts")
    add("--max_images", type=cli.positive_int, default=6000, help="training images of a trial, repetitions counted")
    add(
        "--rungs", type=cli.fraction, nargs="*", default=[0.25, 0.5], metavar="SHARE",
        help="shares of --max_images after which a trial is scored and perhaps pruned; none for no pruning",
    )  # fmt: skip
    add("--num_samples", type=cli.positive_int, default=500, metavar="N", help="images sampled and scored each time")
    add("--features", choices=["auto", "cifar", "random"], default="auto", help="feature extractor, see evaluate.py")
    add("--fix", action="append", default=[], metavar="NAME=VALUE", help=f"do not search one of {names}")
    add("--range", action="append", default=[], metavar="NAME=LOW:HIGH", help="search one of them between these")
    add("--base", metavar="'FLAGS'", help="flags of every training; the `quick` ones of flags.sh unless given")
    add("--seed", type=cli.non_negative_int, default=0, help="seed of the sampler and of every trial's training")
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
    for flag in ("fix", "range"):
        pairs = [text.partition("=")[::2] for text in getattr(args, flag)]
        for name, value in pairs:
            if name not in SPACE or not value:
                parser.error(f"--{flag} {name}={value}: must be NAME=VALUE with a NAME among {names}")
        setattr(args, flag, dict(pairs))
    for word in OWN.intersection(rest):
        parser.error(f"{word}: the search sets it itself; the length of a trial is --max_images")
    words = ["--dataset", args.dataset, *rest]
    words += [word for name, value in args.fix.items() for word in (f"--{name}", value)]
    args.base = last_given(words)
    args.training = train_ddgan.parse_args([] if args.page else args.base)
    return args


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
    preset = preset_flags("quick")
    return [word for name in MODELS[MODEL].train_flags for word in preset[name]]


def main(args: argparse.Namespace) -> int:
    """Search, confirm, write; return the exit status."""
    if args.study in ("", ".", ".."):
        raise UserError(f"--study {args.study!r}: must be the name of a study, or a path with a slash")
    args.folder = Path(args.study) if "/" in args.study else cli.repo_root() / "results" / "studies" / args.study
    if not args.page:
        judge(args)
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("the search needs the package optuna, version 4.9 or newer: pip install optuna") from None
    from ddgan import tuning, tuning_page

    if not args.page:
        signal.signal(signal.SIGTERM, interrupt)
        tuning.begin(args)
        share_work(tuning.search, args)
        if queued := tuning.queue_confirmation(args):
            share_work(tuning.confirm, args)
        write_json(args.folder / "study.json", tuning.record(args, queued))
    tuning_page.rewrite_pages(args.folder)
    return 0


def judge(args: argparse.Namespace) -> None:
    """Validate the options; add `space`, `default` (the base flags' values of it), `rungs` in images, and `scoring`."""
    cli.check_folder(args.folder, "--study")
    check_source(args.dataset, "--dataset")
    check_architecture(vars(args.training))
    if args.num_samples < LEAST_SAMPLES:
        raise UserError(f"--num_samples {args.num_samples}: a score needs at least {LEAST_SAMPLES}")
    if {0, 1} & set(args.rungs):
        raise UserError("--rungs: must be above 0 and below 1, the end of a trial is always scored")
    if both := sorted(set(args.fix) & set(args.range)):
        raise UserError(f"--range {both[0]}: is fixed by --fix")
    args.space = make_space(vars(args.training), args.fix, args.range)
    args.default = {name: getattr(args.training, name) for name in args.space}
    args.rungs = sorted({max(1, round(args.max_images * part)) for part in args.rungs} | {args.max_images})
    if args.workers > 1:
        args.threads = args.threads or max(1, (os.cpu_count() or 1) // args.workers)
    args.scoring = (args.dataset, args.training.image_size, args.num_samples, args.features, args.device, args.threads)


def make_space(base: Mapping[str, Any], fixed: Collection[str], ranges: Mapping[str, str]) -> Space:
    """Return the flags to search with their bounds: those of `ranges` or of SPACE, widened to hold the base flags.

    Raises:
        UserError: no flag is left, or a value cannot be on a logarithmic scale.
    """
    space = {}
    for name in [name for name in SPACE if name not in fixed and (name != "ema_decay" or base["use_ema"])]:
        low, high = SPACE[name]
        if name in ranges:
            texts = ranges[name].partition(":")[::2]
            low, high = (getattr(train_ddgan.parse_args([f"--{name}", text]), name) for text in texts)
            if not 0 < low < high:
                raise UserError(f"--range {name}={ranges[name]}: must be LOW:HIGH, above 0 and ascending")
        if base[name] <= 0 and name != "ema_decay":
            raise UserError(f"--{name} {base[name]:g}: cannot be searched around; add --fix {name}={base[name]:g}")
        space[name] = min(low, base[name]), max(high, base[name])
    if not space:
        raise UserError("--fix: leaves nothing to search")
    return space


def share_work(work: Work, args: argparse.Namespace) -> None:
    """Call work(args, number) in each of --workers processes; Ctrl-C reaches them once, through this one."""
    if args.workers == 1:
        work(args, 0)
        return
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes on one terminal would be unreadable
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=be_worker, args=(work, args, number)) for number in range(args.workers)]
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
        raise UserError("all workers were killed, perhaps for lack of memory; fewer --workers need less")
    if status:
        sys.exit(status)  # the worker has told why


def be_worker(work: Work, args: argparse.Namespace, number: int) -> None:
    """Run as one of the workers, out of reach of the terminal's Ctrl-C."""
    os.setsid()
    signal.signal(signal.SIGTERM, interrupt)
    cli.run(lambda: work(args, number))


def interrupt(number: int, frame: object) -> NoReturn:
    """Take SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
