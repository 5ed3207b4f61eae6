"""Claims about the repository as a whole: independent folders, the flag sets, errors before torch is imported."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "gans": {"comparison", "gan"},
    "denoising-diffusion-gan": {"comparison", "ddgan"},
    "improved-diffusion": {"comparison", "improved_diffusion"},
    "results": {"comparison"},
}
LOCAL = {"comparison", "gan", "ddgan", "improved_diffusion"}
PRESETS = ["seed", "paper", "gpu", "cpu", "quick"]
SCRIPTS = {
    "gans/cifar_gan.py": "$GAN_FLAGS --max_seconds 9",
    "improved-diffusion/scripts/image_train.py": "$MODEL_FLAGS $DIFFUSION_FLAGS $TRAIN_FLAGS --max_seconds 9",
    "improved-diffusion/scripts/image_sample.py": "$MODEL_FLAGS $DIFFUSION_FLAGS $SAMPLE_FLAGS --model_path x.pt",
    "denoising-diffusion-gan/train_ddgan.py": "$DDGAN_FLAGS $DDGAN_TRAIN_FLAGS --dataset shapes --exp e --max_images 9",
    "denoising-diffusion-gan/test_ddgan.py": "$DDGAN_FLAGS $DDGAN_SAMPLE_FLAGS --dataset shapes --exp e",
}
ALL_SCRIPTS = [
    *SCRIPTS,
    "gans/sample_gan.py",
    "improved-diffusion/scripts/npztodir.py",
    "improved-diffusion/datasets/cifar10.py",
    "denoising-diffusion-gan/loss_graph.py",
    "denoising-diffusion-gan/tune_ddgan.py",
    "denoising-diffusion-gan/toy_gaussians.py",
    "results/evaluate.py",
    "results/report.py",
    "results/make_stats.py",
    "results/benchmark.py",
    "results/readme.py",
    "results/train_classifier.py",
    "results/studies/steps.py",
    "results/studies/hybrid.py",
    "results/studies/cost.py",
    "results/studies/data.py",
    "results/studies/solvers.py",
    "results/studies/gans.py",
]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_model_folders_never_import_each_other_and_results_imports_no_model(folder):
    for path in (ROOT / folder).rglob("*.py"):
        foreign = set(imports_of(path)) & LOCAL - FOLDERS[folder]
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_package_improved_diffusion_stands_alone():
    for path in (ROOT / "improved-diffusion" / "improved_diffusion").rglob("*.py"):
        assert "comparison" not in set(imports_of(path)), path


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_scripts_name_torch_in_functions_only(script):
    heavy = {"torch", "torchvision", "scipy", "matplotlib", "mpi4py", "blobfile", "pytorch_fid"}
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            assert not {name.split(".")[0] for name in names} & heavy


@pytest.mark.parametrize("preset", PRESETS)
def test_every_flag_set_is_accepted_by_its_scripts(preset, shell, checkout):
    for script, flags in SCRIPTS.items():
        words = shell(f'source ./flags.sh && printf "%s\\n" {flags}', PRESET=preset).stdout.split()
        spec = importlib.util.spec_from_file_location("script", checkout / script)
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str((checkout / script).parent))
        try:
            spec.loader.exec_module(module)
            assert module.parse_args(words) is not None
        finally:
            sys.path.pop(0)


def test_seed_preset_is_the_documented_one(shell):
    done = shell(
        'source improved-diffusion/flags.sh && printf "%s\\n" "$MODEL_FLAGS" "$DIFFUSION_FLAGS" "$TRAIN_FLAGS"'
    )
    assert done.stdout.splitlines() == [
        "--image_size 32 --num_channels 128 --num_res_blocks 2 --learn_sigma True --dropout 0.3",
        "--diffusion_steps 4000 --noise_schedule linear",
        "--lr 1e-4 --batch_size 128 --microbatch 64 --use_fp16 true --max_steps 5000 --save_interval 2500",
    ]


def test_unknown_preset_is_said(shell):
    assert "PRESET=big: must be seed" in shell("source ./flags.sh", PRESET="big").stderr


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_help_and_wrong_flags_need_no_torch(script, checkout, environment, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = environment | {"PYTHONPATH": f"{tmp_path}:{environment['PYTHONPATH']}"}
    command = [sys.executable, str(checkout / script)]
    shown = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout
    wrong = subprocess.run([*command, "--no_such_flag", "1"], env=environment, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "error:" in wrong.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gans/cifar_gan.py --data {missing}", "missing"),
        ("gans/cifar_gan.py --data {empty}", "no image found"),
        ("gans/sample_gan.py --checkpoint {missing}.pt", "missing.pt"),
        ("results/studies/gans.py --data {missing}", "missing"),
        ("improved-diffusion/scripts/image_train.py --data_dir {missing}", "missing"),
        ("improved-diffusion/scripts/image_train.py --data_dir {empty}", "no image found"),
        ("improved-diffusion/scripts/image_sample.py --model_path {missing}.pt", "missing.pt"),
        ("denoising-diffusion-gan/train_ddgan.py --dataset {missing} --exp e --ch_mult 1 2", "missing"),
        ("denoising-diffusion-gan/train_ddgan.py --dataset {empty} --exp e --ch_mult 1 2", "no image found"),
        ("denoising-diffusion-gan/test_ddgan.py --dataset shapes --exp {missing}", "missing"),
        ("denoising-diffusion-gan/tune_ddgan.py --dataset {missing}", "missing"),
        ("results/evaluate.py {missing} --reference shapes", "missing"),
        ("results/evaluate.py {empty} --reference {missing}", "missing"),
        ("results/evaluate.py --reference shapes --anchors a.json --inception_weights {missing}.pth", "missing.pth"),
        ("results/report.py --name x --anchors {missing}.json {empty}", "missing.json"),
        ("results/make_stats.py {missing} --out stats.npz", "missing"),
        ("results/make_stats.py shapes --out stats.npz --inception_weights {missing}.pth", "missing.pth"),
        ("results/benchmark.py {missing}", "missing"),
        ("results/readme.py --readme {missing}.md", "missing.md"),
        ("results/train_classifier.py --data {missing} --test {empty}", "missing"),
        ("results/studies/steps.py --data {missing}", "missing"),
    ],
)
def test_unusable_paths_are_judged_before_torch_is_imported(line, message, checkout, environment, tmp_path):
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "torch.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "empty").mkdir()
    environment = environment | {"PYTHONPATH": f"{tmp_path / 'stub'}:{environment['PYTHONPATH']}"}
    words = shlex.split(line.format(missing=tmp_path / "missing", empty=tmp_path / "empty"))
    done = subprocess.run([sys.executable, *words], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--preset big", "must be quick, cpu, gpu or paper"),
        ("--budget hours=3", "must be seconds=N, images=N or recipe"),
        ("--budget recipe", "only the paper preset"),
        ("--budget seconds=0", "must be above 0"),
        ("--budget gans:images=5", "names no bound for improved-diffusion"),
        ("--models gans --budget gans:images=5,gans:images=6", "names gans twice"),
        ("--models gans --budget gans:hours=5", "or one such for each model"),
        ("--models gans --budget gans:images=0", "must be above 0"),
        ("--benchmark_seconds 0", "must be a number above 0"),
        ("--compile maybe", "must be true or false"),
        ("--models gans,vae", "must be among"),
        ("--data /no/such/folder", "neither shapes, cifar10"),
        ("--num_samples many", "must be a whole number"),
        ("--frobnicate", "no such option"),
        ("--seed", "a value is missing"),
        ("--name a/b", "letters, digits"),
        ("--name ..", "letters, digits"),
        ("--name 'a b'", "letters, digits"),
        ("--models gans,gans", "name each model once"),
        ("--models ''", "name at least one"),
        ("--image_size 48", "must be 16, 32, 64, 128 or 256"),
        ("--sweep 10,many", "must be numbers of steps"),
        ("--sweep 10,0", "must be numbers of steps"),
        ("--sweep 10,10", "name each number once"),
        ("--sweep 10,20", "--sweep 20: what the quick preset draws anyway"),
        ("--preset cpu --sweep 2000", "the cpu preset has 1000 steps"),
        ("--history few", "must be a whole number"),
        ("--history 100", "must be below 100"),
        ("--history 3 --budget images=3", "too small for 4 parts"),
        ("--preset paper --history 2", "cannot be divided"),
        ("--benchmark maybe", "must be true or false"),
        ("--features vgg", "must be auto, cifar or random"),
        ("--inception_weights /no/such/file", "no such file"),
    ],
)
def test_wrong_options_of_the_main_job_are_one_sentence(shell, options, message):
    done = shell(f"bash results/compare.sh {options}")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def recording_python(tmp_path):
    """Make a stand-in for Python that notes its calls in tmp_path/calls and leaves empty checkpoints."""
    stub = tmp_path / "python"
    stub.write_text(f"""#!/bin/bash
        [ "$1" != - ] || exec {sys.executable} "$@"
        echo "$@" >> {tmp_path}/calls
        case "$*" in
          *image_train*) mkdir -p "$OPENAI_LOGDIR" && touch "$OPENAI_LOGDIR/ema_0.9_000001.pt" ;;
          *cifar_gan*) mkdir -p results/runs/gans/own && touch results/runs/gans/own/checkpoint_000001.pt ;;
          *train_ddgan*) run=results/runs/denoising-diffusion-gan/own && mkdir -p $run && touch $run/netG_1.pth ;;
        esac
    """)
    stub.chmod(0o755)
    return stub


@pytest.mark.parametrize(
    ("preset", "setting", "flags"),
    [("paper", "ddim7", "--use_ddim True --timestep_respacing ddim7"), ("gpu", "dpmpp-sde7", "--num_sampling_steps 7")],
)
def test_sweep_takes_the_sampler_of_the_preset(shell, tmp_path, preset, setting, flags):
    stub = recording_python(tmp_path)
    options = "--models improved-diffusion --budget images=32 --history 0 --benchmark false --sweep 7"
    done = shell(f"bash results/compare.sh --preset {preset} --name sweep-{preset} {options}", PYTHON=str(stub))
    assert done.returncode == 0, done.stderr
    drawn = [line for line in (tmp_path / "calls").read_text().splitlines() if "image_sample.py" in line]
    assert len(drawn) == 2
    assert f"settings/{setting} " in drawn[1]
    assert drawn[1].endswith(flags)
    assert ("--sampler" in drawn[1]) == (preset == "gpu")


def test_history_pauses_a_training_that_is_planned_as_a_whole(shell, tmp_path):
    stub = recording_python(tmp_path)
    options = "--models improved-diffusion --budget images=64 --history 1 --benchmark false --sweep ''"
    done = shell(f"bash results/compare.sh --preset paper --name history {options}", PYTHON=str(stub))
    assert done.returncode == 0, done.stdout + done.stderr
    trained = [line for line in (tmp_path / "calls").read_text().splitlines() if "image_train.py" in line]
    assert [line.partition("--max_steps 0 ")[2] for line in trained] == [
        "--max_images 64 --stop_after 32",
        "--max_images 64",
    ]


def test_each_model_may_have_its_own_budget(shell, tmp_path):
    stub = recording_python(tmp_path)
    options = "--models gans,denoising-diffusion-gan --budget denoising-diffusion-gan:seconds=8,gans:images=32"
    line = f"bash results/compare.sh --name own {options} --benchmark_seconds 0.7 --compile true"
    assert (done := shell(line, PYTHON=str(stub))).returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    trainings = [call for call in calls if "cifar_gan.py" in call or "train_ddgan.py" in call]
    assert [call.split()[-2:] for call in trainings] == [["--max_images", "32"], ["--max_seconds", "8"]]
    assert [" --compile " in call for call in trainings] == [False, True]
    assert sum("--benchmark_seconds 0.7" in call for call in calls) == 2
    assert calls[-1].split("--budget ")[1].split()[0] == "denoising-diffusion-gan:seconds=8,gans:images=32"


def test_make_targets_run_the_documented_scripts(shell):
    assert "results/compare.sh --data shapes --preset quick --name quick" in shell("make -n compare").stdout
    assert "--fresh" in shell("make -n compare FRESH=1").stdout
    assert "pytest" in shell("make -n test").stdout
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_first_table_of_the_readme_says_what_the_report_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "results" / "reports" / "cifar10-jpeg-gpu" / "report.json").read_text())
    for row in report["models"]:
        line = next(line for line in text.splitlines() if line.startswith("| ") and f": {row['label']} |" in line)
        wanted = [f"{row['metrics']['frechet_distance']['value']:.1f}: ", f"{row['training_seconds']:.0f} s, "]
        wanted.append(f"{1000 * row['latency_seconds']:.2g} ms ")
        each = row["seconds_per_image"]
        wanted.append(f"{1000 * each:.2g} ms in" if each > 1e-5 else f"{1e6 * each:.2g} us in")
        assert all(number in line for number in wanted), (line, wanted)


def test_readme_shows_the_committed_reports():
    from comparison.report import readme

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.stale(ROOT / "README.md", ROOT / "results" / "reports") == []
    assert len(readme.BLOCK.findall(text)) >= 5
    assert "<!-- report quick" not in text
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / target).exists(), target
