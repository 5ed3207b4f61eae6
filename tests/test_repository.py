"""Claims about the repository as a whole: independent folders, the flag sets, errors before torch is imported."""

import ast
import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from comparison import models

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
    "improved-diffusion/scripts/distill_train.py": "$DISTILL_FLAGS --max_seconds 9 --model_path x.pt",
    "denoising-diffusion-gan/train_ddgan.py": "$DDGAN_FLAGS $DDGAN_TRAIN_FLAGS --dataset shapes --exp e --max_images 9",
    "denoising-diffusion-gan/test_ddgan.py": "$DDGAN_FLAGS $DDGAN_SAMPLE_FLAGS --dataset shapes --exp e",
}
ALL_SCRIPTS = [
    *SCRIPTS,
    "gans/sample_gan.py",
    "improved-diffusion/scripts/export_diffusers.py",
    "improved-diffusion/scripts/super_res_train.py",
    "improved-diffusion/scripts/super_res_sample.py",
    "improved-diffusion/scripts/image_nll.py",
    "improved-diffusion/scripts/npztodir.py",
    "improved-diffusion/datasets/cifar10.py",
    "improved-diffusion/datasets/lsun_bedroom.py",
    "denoising-diffusion-gan/loss_graph.py",
    "denoising-diffusion-gan/tune_ddgan.py",
    "results/compare.py",
    "results/evaluate.py",
    "results/report.py",
    "results/make_stats.py",
    "results/benchmark.py",
    "results/readme.py",
    "results/train_classifier.py",
    "results/studies/few_steps.py",
    "results/studies/hybrid.py",
    "results/studies/cost.py",
    "results/studies/gan_losses.py",
    "results/studies/gan_data.py",
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
    heavy = {"torch", "torchvision", "scipy", "matplotlib", "mpi4py", "blobfile", "pytorch_fid", "diffusers"}
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            assert not {name.split(".")[0] for name in names} & heavy


@pytest.mark.parametrize("preset", PRESETS)
def test_every_flag_set_is_accepted_by_its_scripts(preset, shell, checkout):
    for script, flags in SCRIPTS.items():
        words = shell(f'source ./flags.sh && printf "%s\\n" {flags}', PRESET=preset).stdout.split()
        assert parse(script, words, checkout) is not None


def parse(script, words, checkout):
    """Return what a script's parse_args makes of words."""
    spec = importlib.util.spec_from_file_location("script", checkout / script)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str((checkout / script).parent), *sys.path])
        spec.loader.exec_module(module)
        return module.parse_args(words)


@pytest.mark.parametrize("model", models.MODELS.values(), ids=lambda model: model.name)
def test_all_models_take_the_same_names_for_data_runs_checkpoints_and_samples(model, checkout):
    trained = vars(parse(model.train, ["--data", "shapes", "--run_dir", "mine"], checkout))
    published = {"data", "data_dir", "dataset"} & trained.keys()
    assert [trained[name] for name in published] == ["shapes"]
    assert str(trained.get("run_dir") or trained["exp"]).removeprefix("./") == "mine"
    out = f"mine/{model.samples}"
    sampled = vars(parse(model.sample, ["--checkpoint", "mine/c.pt", "--out", out], checkout))
    assert sampled.get("checkpoint", sampled.get("model_path")) == Path("mine/c.pt")
    assert sampled.get("out", sampled.get("out_dir")) == Path(out)


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


@pytest.fixture(scope="module")
def without_torch(checkout, environment):
    """Return a function that runs command lines where torch cannot be imported, and returns status, output, errors."""

    def run(lines):
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("scripts_without_torch.py"))],
            input=json.dumps(lines),
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_help_and_wrong_flags_need_no_torch(without_torch):
    for script, (status, out, err) in zip(
        ALL_SCRIPTS, without_torch([[s, "--help"] for s in ALL_SCRIPTS]), strict=True
    ):
        assert (status, err) == (0, ""), script
        assert "usage:" in out, script
    lines = [[script, "--no_such_flag", "1"] for script in ALL_SCRIPTS]
    for script, (status, _, err) in zip(ALL_SCRIPTS, without_torch(lines), strict=True):
        assert (status, err.count("\n")) == (2, 1), (script, err)
        assert "error:" in err, script


UNUSABLE_PATHS = [
    ("gans/cifar_gan.py --data {missing}", "missing"),
    ("gans/cifar_gan.py --data {empty}", "no image found"),
    ("gans/sample_gan.py --checkpoint {missing}.pt", "missing.pt"),
    ("results/studies/gan_losses.py --data {missing}", "missing"),
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
    ("results/studies/few_steps.py --data {missing}", "missing"),
]


def test_unusable_paths_are_refused_before_torch_is_imported(without_torch, tmp_path):
    (tmp_path / "empty").mkdir()
    names = {"missing": tmp_path / "missing", "empty": tmp_path / "empty"}
    answers = without_torch([shlex.split(line.format(**names)) for line, _ in UNUSABLE_PATHS])
    for (line, message), (status, _, err) in zip(UNUSABLE_PATHS, answers, strict=True):
        assert (status, err.count("\n")) == (2, 1), (line, err)
        assert message in err, line


def test_make_targets_run_the_documented_scripts(shell):
    assert "results/compare.sh --data shapes --preset quick --name quick" in shell("make -n compare").stdout
    assert "--fresh" in shell("make -n compare FRESH=1").stdout
    assert "pytest" in shell("make -n test").stdout
    assert "make test" in (ROOT / ".ci" / "run").read_text()
