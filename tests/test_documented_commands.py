"""Every command of README.md runs in a fresh copy of the repository, with small overrides appended.

Python scripts run in this process, which has torch already; bash expands their words. Lines of compare.sh and
gpu_run.sh are read only: test_compare.py and test_gpu_run.py run those jobs.
"""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from comparison import cli, jobs
from improved_diffusion import dist_util
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

# Commands that set up the machine, or that this suite is: named here so that a new one cannot slip through.
NOT_RUN = (
    "make compare",  # its line of compare.sh is read below
    "make test",
    "python3 -m venv .venv",
    ". .venv/bin/activate",
    "pip install -r requirements.txt",
    "tmux attach",
)
TINY_GAN = "--data shapes --image_size 16 --ngf 2 --ndf 2 --batch_size 8"
TINY_DDPM = "--image_size 32 --num_channels 32 --num_res_blocks 1 --attention_resolutions 16 --batch_size 4"
TINY_DDGAN = "--num_channels_dae 16 --num_res_blocks 1 --z_emb_dim 8 --n_mlp 1 --ch_mult 1 1"
GAN_RUN = "results/runs/gans/cifar10-64"
DDPM_RUN = "results/runs/improved-diffusion/cifar10"
DDGAN_RUN = "results/runs/denoising-diffusion-gan/ddgan_cifar10_exp1"
# command prefix -> what is appended; the first prefix that fits counts
OVERRIDES = {
    "python -u gans/cifar_gan.py": f"{TINY_GAN} --max_steps 2 --num_samples 8 --run_dir {GAN_RUN}",
    "python -u gans/sample_gan.py": "--num_samples 4",
    "python gans/sample_gan.py --checkpoint results/runs/gans/cifar10-64 --benchmark": "--benchmark_seconds 0.1",
    "python gans/sample_gan.py": "--num_samples 4 --batch_size 4",
    "python improved-diffusion/datasets/cifar10.py": "--source train_images",
    "python improved-diffusion/scripts/image_train.py": f"{TINY_DDPM} --microbatch 2 --diffusion_steps 24 "
    "--max_steps 2 --save_interval 2",
    "python improved-diffusion/scripts/image_sample.py": f"{TINY_DDPM} --diffusion_steps 24 --num_samples 4",
    "python improved-diffusion/scripts/npztodir.py": "",
    "python3 -u denoising-diffusion-gan/train_ddgan.py": f"{TINY_DDGAN} --ngf 8 --batch_size 4 --dataset shapes "
    "--max_steps 2 --t_emb_dim 8",
    "python3 -u denoising-diffusion-gan/test_ddgan.py": f"{TINY_DDGAN} --dataset shapes --t_emb_dim 8 "
    "--num_samples 4 --batch_size 4 --epoch_id 1",
    "python denoising-diffusion-gan/loss_graph.py": "",
    "python results/benchmark.py": "--small --rounds 1 --out benchmark.json",
    "python results/evaluate.py results/runs/flow": "--num_images 64 --threads 1",
    "python results/report.py": "",
    "python results/evaluate.py": "--reference shapes --image_size 16 --num_images 8",
}


def commands():
    """Every line of the README's bash blocks."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        yield from filter(None, map(str.strip, block.splitlines()))


COMMANDS = [command for command in commands() if not command.startswith(NOT_RUN)]
STATE = re.compile(r"source |export |PRESET=|echo ")  # lines that the commands after them depend on
JOBS = [command for command in COMMANDS if command.startswith("bash ")]
IN_TMUX = [command for command in COMMANDS if command.startswith("tmux")]
PYTHON = [command for command in COMMANDS if command not in JOBS + IN_TMUX and not STATE.match(command)]


def override(command):
    """Return the command with what keeps it small."""
    for prefix, extra in OVERRIDES.items():
        if prefix in command and command.endswith('" Enter'):
            return command.removesuffix('" Enter') + f' {extra}" Enter'
        if command.startswith(prefix):
            script, redirected, target = command.partition(" > ")
            return f"{script} {extra}{redirected}{target}"
    return command


@pytest.fixture(scope="module")
def prepared(checkout):
    """The copy with a few pictures where the documented commands expect some."""
    rng = np.random.default_rng(0)
    shutil.rmtree(checkout / "results" / "runs", ignore_errors=True)  # of other test files
    for folder in ("train_images", "path/to/images"):
        (checkout / folder).mkdir(parents=True)
        for i in range(16):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(checkout / folder / f"{'cat' if i % 2 else 'dog'}_{i}.png")
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True)
    return checkout


def before(command, folder):
    """Give files that the documented length of training would leave the names that the next command uses."""
    renamed = {
        "model005000.pt": (DDPM_RUN, "model000002.pt"),
        "samples_1024x32x32x3.npz": (DDPM_RUN, "samples_4x32x32x3.npz"),
    }
    for wanted, (run, name) in renamed.items():
        if wanted in command and (folder / run / name).exists():
            shutil.copy(folder / run / name, folder / run / wanted)
    return command


def expanded(command, shell):
    """Return the words and the exported OPENAI_LOGDIR of a line as bash sees them, after the lines of its state."""
    state = [line for line in COMMANDS[: COMMANDS.index(command)] if STATE.match(line) and line[:6] != "PRESET"]
    stub = 'python() { printf "%s\\0" "$OPENAI_LOGDIR" "$@"; }; python3() { python "$@"; }'
    script, _, target = override(command).partition(" > ")
    done = shell("\n".join(["set -e", stub, *(f"{line} > /dev/null" for line in state), script]))
    assert done.returncode == 0, done.stderr
    if target:  # the folder of a log is there
        assert shell(f"true > {target}").returncode == 0
    logdir, *words = done.stdout.removesuffix("\0").split("\0")
    return logdir, words


@pytest.fixture
def in_process(prepared, run_here, jobs_here, monkeypatch):
    """Return a function that runs a script of the copy in this process."""
    monkeypatch.setattr(cli, "repo_root", lambda: prepared)
    monkeypatch.setattr(jobs, "run", jobs_here)
    monkeypatch.delenv("DATA_ROOT", raising=False)

    def run(logdir, words):
        words = words[1:] if words[0] == "-u" else words
        if logdir:
            monkeypatch.setenv("OPENAI_LOGDIR", logdir)
        return run_here(words)

    yield run
    dist_util.shutdown()


@pytest.mark.parametrize("command", PYTHON, ids=lambda command: re.sub(r"[^\w.]+", "-", command)[:60])
def test_readme_command_works(command, in_process, prepared, shell, capsys):
    logdir, words = expanded(before(command, prepared), shell)
    assert in_process(logdir, words) == 0, capsys.readouterr()


@pytest.mark.parametrize("command", IN_TMUX)
def test_readme_line_of_tmux_trains_and_samples(command, prepared, shell):
    """Run the line on a tmux server of its own, and wait for the job in it to end."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    (prepared / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    (prepared / ".venv" / "bin" / "activate").write_text(f"export PATH={sys.prefix}/bin:$PATH\n")
    shutil.rmtree(prepared / GAN_RUN, ignore_errors=True)
    server = {"TMUX_TMPDIR": str(prepared.parent), "TMUX": ""}
    started = shell(override(command), **server)
    assert started.returncode == 0, started.stderr
    end = time.monotonic() + 120
    while not (prepared / GAN_RUN / "sampling.json").exists() and time.monotonic() < end:
        time.sleep(0.2)
    shown = shell("tmux capture-pane -p", **server).stdout
    shell("tmux kill-server", **server)
    assert (prepared / GAN_RUN / "sampling.json").exists(), shown


@pytest.mark.parametrize("command", JOBS)
def test_readme_line_of_a_job_is_understood(command, prepared, shell):
    words = shlex.split(command)[2:]
    if "gpu_run.sh" in command:  # reads its options in order
        assert shell(f"{command} --help").stdout.startswith("usage: bash results/gpu_run.sh")
        return
    job = runpy.run_path(str(ROOT / "results" / "compare.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(prepared)
        plan = job["Plan"].of(job["parse_args"](words))
    assert plan.name == words[words.index("--name") + 1]


def test_readme_names_only_commands_that_are_known():
    for command in [*PYTHON, *IN_TMUX]:
        assert any(prefix in command for prefix in OVERRIDES), command


def test_main_job_of_make_compare_is_the_documented_line(shell):
    printed = shell("make -n compare").stdout
    assert "bash results/compare.sh --data shapes --preset quick --name quick" in printed
    assert "bash results/compare.sh --data shapes --preset quick --name quick" in COMMANDS
