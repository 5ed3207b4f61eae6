"""Train DDGAN on 25 Gaussians in the plane, for several numbers of denoising steps, and count the modes it covers.

    python3 denoising-diffusion-gan/toy_gaussians.py
    python3 denoising-diffusion-gan/toy_gaussians.py --num_timesteps 1 4 --seeds 1 --max_steps 2000 --out toy

T = 1 is a GAN that generates points from noise. Process, losses, penalty, EMA and training update are those of the
image model; the networks are small. A training takes one to four minutes on one CPU thread. An interrupted call keeps
the finished trainings; the same call continues. Writes README.md, study.json, samples.png and progress.png into
results/studies/gaussians/.

Xiao, Kreis and Vahdat 2022 (https://arxiv.org/abs/2112.07804) show such a mixture; its code was never published.
"""

import argparse

from comparison import cli
from comparison.report import study_page
from ddgan.options import below_one

STUDY = "gaussians"
MIN_SAMPLES = 1000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--num_timesteps", type=cli.positive_int, nargs="+", default=[1, 2, 4, 8], metavar="T", help="a model for each")
    add("--max_steps", type=cli.positive_int, default=4000, metavar="N", help="updates of each training")
    add("--seeds", type=cli.positive_int, default=3, metavar="K", help="trainings for each T")
    add("--seed", type=cli.non_negative_int, default=0, help="first of the K consecutive seeds")
    add("--batch_size", type=cli.positive_int, default=256, help="points per update")
    add("--lr_g", type=cli.positive_float, default=5e-4, help="generator's learning rate; a cosine over --max_steps")
    add("--lr_d", type=cli.positive_float, default=1e-3, help="discriminator's learning rate")
    add("--r1_gamma", type=cli.non_negative_float, default=0.02, help="weight of the R1 penalty, 0 for none")
    add("--lazy_reg", type=cli.positive_int, default=1, help="updates per R1 penalty")
    add("--ema_decay", type=below_one, default=0.995, help="EMA decay per update")
    add("--width", type=cli.positive_int, default=256, help="features of each of the three hidden layers")
    add("--nz", type=cli.positive_int, default=2, help="length of the latent")
    beta_help = "variance at the {}; noise rate without --use_geometric"
    add("--beta_min", type=cli.positive_float, default=0.01, help=beta_help.format("start"))
    add("--beta_max", type=cli.positive_float, default=0.99, help=beta_help.format("end"))
    add("--use_geometric", type=cli.str2bool, default=True, metavar="BOOL", help="see train_ddgan.py")
    add("--eval_every", type=cli.positive_int, default=500, metavar="N", help="updates between counts of the modes")
    add("--num_samples", type=sample_count, default=10000, metavar="N", help="samples of the final count")
    add("--out", type=cli.local_path, metavar="DIR", help="results folder; default: results/studies/gaussians")
    add("--runs_dir", type=cli.local_path, metavar="DIR", help="folder of finished trainings; default: in results/runs")
    add("--page", action="store_true", help="only rewrite README.md and the figures from study.json")
    add("--fresh", action="store_true", help="repeat finished trainings")
    add("--device", type=cli.device_name, default="cpu", help="auto, cpu, cuda, cuda:N or mps")
    add("--threads", type=cli.thread_count, default=1, help="CPU threads; more than 1 are not faster here")
    return parser.parse_args(argv)


def sample_count(text: str) -> int:
    """Parse --num_samples, an argparse type."""
    value = cli.positive_int(text)
    if value < MIN_SAMPLES:
        raise argparse.ArgumentTypeError(f"must be at least {MIN_SAMPLES}, not {text}")
    return value


def main(args: argparse.Namespace) -> None:
    """Validate the options, train and count, and write the page."""
    results = cli.repo_root() / "results"
    out, runs = args.out or results / "studies" / STUDY, args.runs_dir or results / "runs" / "studies" / STUDY
    for flag, folder in (("--out", out), ("--runs_dir", runs)):
        cli.check_folder(folder, flag)
    low, high = args.beta_min, args.beta_max
    if low >= high or (args.use_geometric and high >= 1):
        limit = " < 1" if args.use_geometric else ""
        raise cli.UserError(f"--beta_min {low:g}, --beta_max {high:g}: beta_min < beta_max{limit} must hold")
    from ddgan import toy_page

    if args.page:
        study_page.rewrite(out, STUDY, toy_page.page, toy_page.draw_figures)
        return
    from ddgan.toy_study import run_study

    study_page.write(out, STUDY, run_study(args, runs), toy_page.page, toy_page.draw_figures)


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
