"""Claims about the repository as a whole: independent folders, the flag sets, errors before torch is imported."""

import ast
import shlex
from pathlib import Path

import pytest
from comparison import models

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "gans": {"comparison", "gan"},
    "denoising-diffusion-gan": {"comparison", "ddgan"},
    "improved-diffusion": {"comparison", "improved_diffusion"},
    "improved-diffusion/improved_diffusion": {"improved_diffusion"},
    "results": {"comparison"},
}
LOCAL = {"comparison", "gan", "ddgan", "improved_diffusion"}
STUDIES = sorted(f"results/studies/{path.name}" for path in (ROOT / "results" / "studies").glob("*.py"))
FLAGS = {
    "gans/cifar_gan.py": "$GAN_FLAGS --max_seconds 9",
    "improved-diffusion/scripts/image_train.py": "$MODEL_FLAGS $DIFFUSION_FLAGS $TRAIN_FLAGS --max_seconds 9",
    "improved-diffusion/scripts/image_sample.py": "$MODEL_FLAGS $DIFFUSION_FLAGS $SAMPLE_FLAGS --model_path x.pt",
    "improved-diffusion/scripts/distill_train.py": "$DISTILL_FLAGS --max_seconds 9 --model_path x.pt",
    "denoising-diffusion-gan/train_ddgan.py": "$DDGAN_FLAGS $DDGAN_TRAIN_FLAGS --dataset shapes --exp e --max_images 9",
    "denoising-diffusion-gan/test_ddgan.py": "$DDGAN_FLAGS $DDGAN_SAMPLE_FLAGS --dataset shapes --exp e",
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_model_folders_never_import_each_other_the_package_stands_alone_and_results_imports_no_model(folder):
    for path in (ROOT / folder).rglob("*.py"):
        foreign = set(imports_of(path)) & LOCAL - FOLDERS[folder]
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.mark.parametrize("preset", ["seed", "paper", "gpu", "cpu", "quick"])
def test_every_flag_set_is_accepted_by_its_scripts(preset, shell, parse):
    lines = shell(
        "\n".join(["source ./flags.sh", *(f"echo {flags}" for flags in FLAGS.values())]), PRESET=preset
    ).stdout
    for script, line in zip(FLAGS, lines.splitlines(), strict=True):
        assert parse(script, line.split()) is not None


@pytest.mark.parametrize("model", models.MODELS.values(), ids=lambda model: model.name)
def test_all_models_take_the_same_names_for_data_runs_checkpoints_and_samples(model, parse):
    trained = vars(parse(model.train, ["--data", "shapes", "--run_dir", "mine"]))
    published = {"data", "data_dir", "dataset"} & trained.keys()
    assert [trained[name] for name in published] == ["shapes"]
    assert str(trained.get("run_dir") or trained["exp"]).removeprefix("./") == "mine"
    out = f"mine/{model.samples}"
    sampled = vars(parse(model.sample, ["--checkpoint", "mine/c.pt", "--out", out]))
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


def test_help_and_wrong_flags_need_no_torch(without_torch, scripts):
    every = [*scripts, *STUDIES]
    answers = without_torch([[script, flag] for script in every for flag in ("--help", "--no_such_flag")])
    for script, (status, out, err), (wrong_status, _, wrong) in zip(every, answers[::2], answers[1::2], strict=True):
        assert (status, err) == (0, ""), script
        assert "usage:" in out, script
        assert (wrong_status, wrong.count("\n")) == (2, 1), (script, wrong)
        assert "error:" in wrong, script


UNUSABLE_PATHS = [
    ("gans/cifar_gan.py --data {missing}", "missing"),
    ("gans/cifar_gan.py --data {empty}", "no image found"),
    ("gans/sample_gan.py --checkpoint {missing}.pt", "missing.pt"),
    ("results/studies/gan_losses.py --data {missing}", "missing"),
    ("improved-diffusion/scripts/image_train.py --data_dir {missing}", "missing"),
    ("improved-diffusion/scripts/image_train.py --data_dir {empty}", "no image found"),
    ("denoising-diffusion-gan/test_ddgan.py --dataset shapes --exp {missing}", "missing"),
    ("results/evaluate.py {missing} --reference shapes", "missing"),
    ("results/report.py --name x --anchors {missing}.json {empty}", "missing.json"),
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
