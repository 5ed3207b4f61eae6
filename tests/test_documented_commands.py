"""Every documented command works: those of RUN run in a copy of the repository, with small overrides appended.

Python scripts run in this process, which has torch already; bash expands their words. Commands of the other pages are
parsed, and so are lines of compare.sh and gpu_run.sh, whose jobs test_compare.py and test_gpu_run.py run.
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
MODELS = ("gans", "improved-diffusion", "denoising-diffusion-gan")
RUN = ("README.md", *(f"{model}/README.md" for model in MODELS), "docs/getting-started.md", "docs/files.md")
PARSED = (
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in RUN),
    "results/README.md",
    "results/studies/README.md",
)
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in RUN + PARSED}
# Flags of a page belong to the scripts of its folder, or to those of results/; of the other pages to any script.
FLAGS_OF = {f"{model}/README.md": model for model in MODELS} | {
    "docs/gans.md": "gans",
    "docs/improved-diffusion.md": "improved-diffusion",
    "docs/ddgan.md": "denoising-diffusion-gan",
}
OTHER_TOOLS = {  # flags of torchrun, mpirun and SLURM
    *("--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--hostfile"),
    *("--signal", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time", "--kill-on-bad-exit"),
}

# Commands that set up the machine, or that this suite is: named here so that a new one cannot slip through.
NOT_RUN = (
    "make compare",  # its line of compare.sh is read below
    "make samples",  # its script is run with other runs
    "make test",
    "python3 -m venv .venv",
    ". .venv/bin/activate",
    "pip install -r requirements.txt",
    "tmux attach",
)
TINY_GAN = "--data shapes --image_size 16 --ngf 2 --ndf 2 --batch_size 8 --max_steps 2 --num_samples 8 --fresh"
TINY_GAN = f"{TINY_GAN} --held_out 16 --score_images 64"
TINY_DDPM = "--image_size 32 --num_channels 32 --num_res_blocks 1 --attention_resolutions 16 --batch_size 4"
TINY_DDPM = f"{TINY_DDPM} --diffusion_steps 24"
TINY_DDGAN = "--num_channels_dae 16 --num_res_blocks 1 --z_emb_dim 8 --n_mlp 1 --ch_mult 1 1 --t_emb_dim 8"
TINY_DDGAN = f"{TINY_DDGAN} --batch_size 4 --dataset shapes"
GAN_RUN = "results/runs/gans/cifar10-64"
# part of a command, a regular expression -> what is appended; the first one that is found counts
OVERRIDES = {
    r"gans/cifar_gan\.py .*--run_dir": TINY_GAN,
    r"gans/cifar_gan\.py": f"{TINY_GAN} --run_dir {GAN_RUN}",
    r"gans/sample_gan\.py .*--benchmark": "--benchmark_seconds 0.01",
    r"gans/sample_gan\.py": "--num_samples 8 --batch_size 4",
    r"datasets/cifar10\.py": "--source train_images",
    r"scripts/image_train\.py": f"{TINY_DDPM} --data_dir train_images --microbatch 2 --max_steps 2 --save_interval 2 "
    "--grid_images 4 --grid_steps 2",
    r"scripts/image_sample\.py": f"{TINY_DDPM} --num_samples 4",
    r"scripts/npztodir\.py": "",
    r"denoising-diffusion-gan/train_ddgan\.py": f"{TINY_DDGAN} --ngf 8 --max_steps 2",
    r"denoising-diffusion-gan/test_ddgan\.py": f"{TINY_DDGAN} --num_samples 4 --epoch_id 1",
    r"denoising-diffusion-gan/loss_graph\.py": "",
    r"results/benchmark\.py": "--small --rounds 1 --out benchmark.json",
    r"results/evaluate\.py results/runs/flow": "--num_images 64 --threads 1",
    r"results/evaluate\.py": "--reference shapes --image_size 16 --num_images 8",
    r"results/report\.py": "",
    r"results/export_weights\.py": "",
    r"results/sample_all\.py": "--num_samples 4",
}


def blocks(page, language="bash"):
    """Return the code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT[page], re.DOTALL)


def commands(pages):
    """Yield (page, line) for every line of the pages' bash blocks, continued lines joined, comments left out."""
    for page in pages:
        for line in "".join(blocks(page)).replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield page, line.strip()


COMMANDS = [(page, line) for page, line in commands(RUN) if not line.startswith(NOT_RUN)]
STATE = re.compile(r"source |export |PRESET=|echo ")  # lines that the commands after them depend on
JOBS = sorted({line for _, line in commands(RUN + PARSED) if line.startswith("bash ")})
IN_TMUX = [line for _, line in COMMANDS if line.startswith("tmux")]
PYTHON = [entry for entry in COMMANDS if not entry[1].startswith(("bash ", "tmux")) and not STATE.match(entry[1])]


def override(command):
    """Return the command with what keeps it small."""
    extra = next((extra for part, extra in OVERRIDES.items() if re.search(part, command)), None)
    assert extra is not None, f"OVERRIDES does not know {command}"
    if command.endswith('" Enter'):
        return command.removesuffix('" Enter') + f' {extra}" Enter'
    script, redirected, target = command.partition(" > ")
    return f"{script} {extra}{redirected}{target}"


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
    for code in [block for page in RUN for block in blocks(page, "python")]:
        subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True)
    return checkout


def rename_short_results(command, folder):
    """Copy files of the short training to the names of the documented length, which the next command uses."""
    renamed = {
        "model005000.pt": "model000002.pt",
        "ema_0.9999_005000.pt": "ema_0.9999_000002.pt",
        "samples_1024x32x32x3.npz": "samples_4x32x32x3.npz",
    }
    for wanted, name in renamed.items():
        if path := re.search(rf"\S*/{re.escape(wanted)}", command):
            shutil.copy((folder / path[0]).with_name(name), folder / path[0])


def expanded(page, command, shell):
    """Return the words and the exported OPENAI_LOGDIR of a line as bash sees them, after its page's lines of state."""
    earlier = COMMANDS[: COMMANDS.index((page, command))]
    state = [line for name, line in earlier if name == page and STATE.match(line) and line[:6] != "PRESET"]
    stub = 'python() { printf "%s\\0" "$OPENAI_LOGDIR" "$@"; }; python3() { python "$@"; }'
    script, _, target = override(command).partition(" > ")
    done = shell("\n".join(["set -e", stub, *(f"{line} > /dev/null" for line in state), script]))
    assert done.returncode == 0, done.stderr
    if target:  # the folder of a log is there
        assert shell(f"true > {target}").returncode == 0
    logdir, *words = done.stdout.removesuffix("\0").split("\0")
    return logdir, words[1:] if words[0] == "-u" else words


@pytest.fixture
def in_process(prepared, jobs_here, monkeypatch):
    """Let scripts that run in this process find the copy, and start none of their own."""
    monkeypatch.setattr(cli, "repo_root", lambda: prepared)
    monkeypatch.setattr(jobs, "run", jobs_here)
    monkeypatch.delenv("DATA_ROOT", raising=False)
    yield
    dist_util.shutdown()


@pytest.mark.parametrize(("page", "command"), PYTHON, ids=lambda text: re.sub(r"[^\w.]+", "-", text)[:60])
@pytest.mark.usefixtures("in_process")
def test_command_works(page, command, prepared, run_here, shell, monkeypatch):
    rename_short_results(command, prepared)
    logdir, words = expanded(page, command, shell)
    if logdir:
        monkeypatch.setenv("OPENAI_LOGDIR", logdir)
    status, out, err = run_here(words, prepared)
    assert status == 0, out + err


@pytest.mark.parametrize("command", IN_TMUX)
def test_line_of_tmux_trains_and_samples(command, prepared, shell):
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
def test_line_of_a_job_is_accepted(command, prepared, shell):
    script, *words = shlex.split(command)[1:]
    if script == "results/gpu_run.sh":  # reads its options in order
        assert shell(f"{command} --help").stdout.startswith("usage: bash results/gpu_run.sh")
    else:
        job = runpy.run_path(str(ROOT / "results" / "compare.py"))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(prepared)
            plan = job["Plan"](job["parse_args"](words))
        assert plan.name == words[words.index("--name") + 1]


@pytest.mark.parametrize("page", [page for page in PARSED if blocks(page)])
def test_commands_of_the_page_are_accepted(page, shell, parse):
    stub = 'show() { printf "%s\\0" "$@"; echo; }'
    tools = ("python", "python3", "mpiexec", "mpirun", "torchrun", "srun")
    stubs = [stub, *(f'{tool}() {{ show "$@"; }}' for tool in tools), "make() { :; }", "bash() { :; }"]
    done = shell("\n".join(["set -e", *stubs, "source flags.sh", *blocks(page)]))
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        words = line.removesuffix("\0").split("\0")
        script = next((word for word in words if word.endswith(".py")), None)
        assert script or words[0] == "-m", words
        if script:
            arguments = [word for word in words[words.index(script) + 1 :] if word != "..."]
            assert parse(script, arguments) is not None, words


@pytest.fixture(scope="module")
def flags(scripts, run_here):
    """Return script -> the flags that its --help names."""
    text = {script: run_here([script, "--help"])[1] for script in scripts}
    text["results/gpu_run.sh"] = (ROOT / "results" / "gpu_run.sh").read_text()
    return {script: set(re.findall(r"--[a-z]\w*", shown)) for script, shown in text.items()}


@pytest.mark.parametrize("page", TEXT)
def test_every_flag_that_the_page_names_exists(page, flags):
    folders = (FLAGS_OF[page], "results") if page in FLAGS_OF else (*MODELS, "results")
    known = OTHER_TOOLS.union({"--help"}, *(names for script, names in flags.items() if script.startswith(folders)))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", TEXT[page])) - known == set()


def test_every_script_is_documented(scripts):
    text = "".join(TEXT.values())
    internal = {"compare.py"}  # compare.sh starts it
    assert {Path(script).name for script in scripts} - internal - set(re.findall(r"\w+\.py", text)) == set()


def test_make_runs_the_documented_scripts_and_the_tests(shell):
    line = "bash results/compare.sh --data shapes --preset quick --name quick"
    assert line in JOBS
    targets = shell("make -n compare && make -n compare FRESH=1 && make -n samples test").stdout
    assert f"{line} \n" in targets
    assert f"{line} --fresh" in targets
    assert "results/sample_all.py" in targets
    assert "pytest" in targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()
