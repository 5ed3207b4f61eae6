"""Every command of README.md runs in a fresh copy of the repository, with small overrides appended."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

# Commands that set up the machine, or that this suite is: named here so that a new one cannot slip through.
NOT_RUN = (
    "make compare",  # its line of compare.sh is run below
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
TINY_COMPARE = "--preset quick --num_samples 64 --sweep '' --history 0 --benchmark false"
# command prefix -> what is appended; the first prefix that fits counts
OVERRIDES = {
    "bash results/compare.sh --data cifar10": f"{TINY_COMPARE} --data shapes --budget images=128",
    "bash results/compare.sh --data path/to/images": f"{TINY_COMPARE} --budget images=32 --models gans",
    "bash results/compare.sh": f"{TINY_COMPARE} --data shapes --budget images=128 --name readme",
    "bash results/gpu_run.sh": "--data shapes --preset quick --device cpu --seconds 2 --gan_budget images=128 "
    "--num_samples 64 --sweep '' --benchmark false --benchmark_seconds 0.05 --wait 250",
    "python -u gans/cifar_gan.py": f"{TINY_GAN} --max_steps 2 --num_samples 8 --run_dir {GAN_RUN}",
    "python -u gans/sample_gan.py": "--num_samples 4",
    "python gans/sample_gan.py --checkpoint results/runs/gans/cifar10-64 --benchmark": "--benchmark_seconds 0.1",
    "python gans/sample_gan.py": "--num_samples 4 --batch_size 4",
    "python improved-diffusion/datasets/cifar10.py": "--source train_images",
    "python improved-diffusion/scripts/image_train.py": f"{TINY_DDPM} --microbatch 2 --diffusion_steps 24 "
    "--max_steps 2 --save_interval 2",
    "python improved-diffusion/scripts/image_sample.py": f"{TINY_DDPM} --diffusion_steps 24 --num_samples 4",
    "python3 -u denoising-diffusion-gan/train_ddgan.py": f"{TINY_DDGAN} --ngf 8 --batch_size 4 --dataset shapes "
    "--max_steps 2 --t_emb_dim 8",
    "python3 -u denoising-diffusion-gan/test_ddgan.py": f"{TINY_DDGAN} --dataset shapes --t_emb_dim 8 "
    "--num_samples 4 --batch_size 4 --epoch_id 1",
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


def override(command):
    """Return the command with what keeps it small."""
    for prefix, extra in OVERRIDES.items():
        if prefix in command and command.endswith('" Enter'):
            return command.removesuffix('" Enter') + f' {extra}" Enter'
        if command.startswith(prefix):
            return f"{command} {extra}"
    return command


COMMANDS = [command for command in commands() if not command.startswith(NOT_RUN)]
STATE = re.compile(r"source |export |PRESET=|echo ")  # lines that the commands after them depend on


@pytest.fixture(scope="module")
def prepared(checkout):
    """The copy with a few pictures where the documented commands expect some."""
    rng = np.random.default_rng(0)
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


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda n: re.sub(r"[^\w.]+", "-", COMMANDS[n])[:60])
def test_readme_command_works(number, prepared, shell):
    command = before(COMMANDS[number], prepared)
    if command.startswith("tmux"):
        return run_in_tmux(command, prepared, shell)
    state = [line for line in COMMANDS[:number] if STATE.match(line) and not line.startswith("PRESET=")]
    done = shell("set -e\n" + "\n".join([*state, override(command)]))
    assert done.returncode == 0, f"{override(command)}\n{done.stdout}\n{done.stderr}"
    return None


def run_in_tmux(command, folder, shell):
    """Run a documented tmux line on a server of its own and wait for the job in it to end."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    (folder / ".venv" / "bin" / "activate").write_text(f"export PATH={sys.prefix}/bin:$PATH\n")
    for old in (folder / GAN_RUN).glob("*"):
        old.unlink()
    server = {"TMUX_TMPDIR": str(folder.parent), "TMUX": ""}
    started = shell(override(command), **server)
    assert started.returncode == 0, started.stderr
    try:
        wait_for(folder / GAN_RUN / "sampling.json")
    finally:
        shown = shell("tmux capture-pane -p", **server).stdout
        shell("tmux kill-server", **server)
    assert (folder / GAN_RUN / "sampling.json").exists(), shown


def wait_for(path, seconds=120):
    """Wait until a file appears, in vain at most `seconds`."""
    for _ in range(seconds):
        if path.exists():
            return
        time.sleep(1)


def test_readme_names_only_commands_that_are_known():
    for command in COMMANDS:
        known = any(prefix in command for prefix in OVERRIDES) or STATE.match(command)
        known = known or command.startswith(("python improved-diffusion/scripts/npztodir.py", "python denoising"))
        assert known, command


def test_second_call_of_the_main_job_reuses_what_is_finished(prepared, shell):
    line = f"bash results/compare.sh {OVERRIDES['bash results/compare.sh']}"
    assert shell(line).returncode == 0
    weights = sorted(
        path for pattern in ("*.pt", "*.pth") for path in prepared.glob(f"results/runs/*/readme/{pattern}")
    )
    assert len(weights) >= 3
    before_call = [path.stat().st_mtime_ns for path in weights]
    report = (prepared / "results" / "reports" / "readme" / "REPORT.md").read_bytes()
    again = shell(line)
    assert again.returncode == 0
    assert again.stdout.count("finished") == 3
    assert [path.stat().st_mtime_ns for path in weights] == before_call
    assert (prepared / "results" / "reports" / "readme" / "REPORT.md").read_bytes() == report
    assert "REPORT.md" in again.stdout.splitlines()[-1]
    fresh = shell(f"{line} --models gans --fresh")
    assert fresh.returncode == 0
    after = {path.name: path.stat().st_mtime_ns for path in prepared.glob("results/runs/gans/readme/*.pt")}
    assert after
    assert not set(after.values()) & set(before_call)


def read_run(folder, name):
    """Return a JSON file of a run."""
    return json.loads((folder / name).read_text())


def test_main_job_samples_earlier_stages_of_a_training_once_and_measures_speed(prepared, shell):
    line = f"bash results/compare.sh {TINY_COMPARE} --data shapes --models gans --name stages"
    line += " --budget images=512 --history 1 --benchmark true"
    assert (done := shell(line)).returncode == 0, done.stdout + done.stderr
    run = prepared / "results" / "runs" / "gans" / "stages"
    assert read_run(run, "history/50/sampling.json")["trained"]["images_seen"] == 256
    assert read_run(run, "sampling.json")["trained"]["images_seen"] == 512
    assert read_run(run, "timing.json")["nfe"] == 1
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.suffix in (".npz", ".pt")}
    kept[run / "timing.json"] = (run / "timing.json").stat().st_mtime_ns
    assert shell(line).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_main_job_samples_the_diffusion_model_in_other_numbers_of_steps(prepared, shell):
    line = f"bash results/compare.sh {TINY_COMPARE} --data shapes --models improved-diffusion --name sweep"
    assert (done := shell(f"{line} --budget images=32 --sweep 2")).returncode == 0, done.stdout + done.stderr
    run = prepared / "results" / "runs" / "improved-diffusion" / "sweep"
    facts = read_run(run, "settings/dpmpp-sde2/sampling.json")
    assert (facts["sampler"], facts["nfe"]) == ("DPM-Solver++ 2M SDE, 2 steps, logsnr", 2)
    assert read_run(run, "sampling.json")["nfe"] == 20
    assert (run / "interpolation.png").is_file()


def test_main_job_of_make_compare_is_the_documented_line(shell):
    printed = shell("make -n compare").stdout
    assert "bash results/compare.sh --data shapes --preset quick --name quick" in printed
    assert "bash results/compare.sh --data shapes --preset quick --name quick" in COMMANDS
