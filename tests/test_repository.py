"""The whole repository: independent folders, layers of the package, the flag sets, errors before torch is imported."""

import ast
import graphlib
import shlex
from pathlib import Path

import pytest

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
# A module imports from its own layer or a lower one; a name without a dot is a module or a whole sub-package.
LAYERS = (
    ("cli", "progress", "formatting", "device", "rng", "files", "png", "contract", "weights"),
    ("data", "runs", "checkpoints", "curves"),
    ("training", "schedule", "ranks", "distributed", "models", "gpu"),
    ("sampling", "scores"),
    ("report",),
    ("jobs", "studies", "study_images"),
)
LONGEST = 350  # lines


def imports_of(path):
    """Yield the dotted names of all modules and objects that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", FOLDERS)
def test_model_folders_never_import_each_other_the_package_stands_alone_and_results_imports_no_model(folder):
    for path in (ROOT / folder).rglob("*.py"):
        foreign = {name.split(".")[0] for name in imports_of(path)} & LOCAL - FOLDERS[folder]
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.fixture(scope="module")
def package():
    """Return module of the shared package -> modules of it that it imports."""
    paths = [path for path in (ROOT / "results" / "comparison").rglob("*.py") if path.name != "__init__.py"]
    files = {".".join(path.relative_to(ROOT / "results").with_suffix("").parts): path for path in paths}
    return {name: files.keys() & set(imports_of(path)) for name, path in files.items()}


def test_every_module_has_a_layer_and_imports_none_above_it(package):
    level = {name: level for level, names in enumerate(LAYERS) for name in names}
    for name, imported in package.items():
        mine = level[name.split(".")[1]]
        for other in imported:
            assert level[other.split(".")[1]] <= mine, f"{name} imports {other}, which lies above it"


def test_no_modules_import_each_other_in_a_circle(package):
    graphlib.TopologicalSorter(package).prepare()


def test_no_file_is_longer_than_a_few_screens():
    long = {}
    for folder in ("results", "gans", "improved-diffusion", "denoising-diffusion-gan"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > LONGEST and "tests" not in path.parts:
                long[str(path.relative_to(ROOT))] = lines
    assert not long


@pytest.mark.parametrize("preset", ["seed", "paper", "gpu", "cpu", "quick"])
def test_every_flag_set_is_accepted_by_its_scripts(preset, shell, parse):
    code = "\n".join(["source ./flags.sh", *(f"echo {flags}" for flags in FLAGS.values())])
    lines = shell(code, PRESET=preset).stdout.splitlines()
    for script, line in zip(FLAGS, lines, strict=True):
        assert parse(script, line.split()) is not None


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
