"""image_sample.py's samplers, pictures and notes, on a network that was never trained."""

import json

import numpy as np
import pytest
from comparison.cli import UserError
from diffusion_testing import call_script, tiny_flags, write_run
from improved_diffusion.script_util import create_model_and_diffusion
from PIL import Image

SAMPLE = "scripts/image_sample.py"
CPU = "--device cpu --precision float32 --threads 1 --batch_size 8"


@pytest.fixture
def run_dir(tmp_path):
    network, _ = create_model_and_diffusion(**tiny_flags(class_cond=True), num_classes=5)
    return write_run(tmp_path / "run", network, {**tiny_flags(class_cond=True), "class_dropout": 0.1})


def sample(run_dir, *flags):
    return call_script(SAMPLE, CPU, *flags, "--model_path", run_dir / "ema_0.99_000020.pt")


def cells(path):
    """Cut a grid of 4 x 8 pictures of 16 pixels apart."""
    grid = np.asarray(Image.open(path), int)
    return [[grid[2 + 18 * row :, 2 + 18 * column :][:16, :16] for column in range(8)] for row in range(4)]


def test_benchmark_writes_timing_instead_of_samples(run_dir):
    out = run_dir / "settings" / "ddim3"
    flags = "--use_ddim True --timestep_respacing ddim3 --benchmark --benchmark_seconds 1e-4"
    assert sample(run_dir, flags, "--out_dir", out) == 0
    assert [path.name for path in out.iterdir()] == ["timing.json"]
    timing = json.loads((out / "timing.json").read_text())
    assert (timing["sampler"], timing["network"], timing["nfe"]) == ("DDIM, 3 steps, eta 0", "ema", 3)
    assert timing["gflop_per_image"] == pytest.approx(3 * timing["gflop_per_evaluation"], rel=1e-4)


def test_samples_of_another_setting_lie_in_a_folder_of_their_own(run_dir, capsys):
    out = run_dir / "settings" / "ddim2"
    flags = "--use_ddim True --timestep_respacing ddim2 --num_samples 8 --interpolation"
    for _ in range(2):
        assert sample(run_dir, flags, "--out_dir", out) == 0
    assert capsys.readouterr().out.count("drawn already") == 2
    names = {"samples_8x16x16x3.npz", "samples.png", "sampling.json", "interpolation.png"}
    assert {path.name for path in out.iterdir()} == names
    facts = json.loads((out / "sampling.json").read_text())
    assert facts["trained"] == {"step": 20, "images_seen": 80, "wall_seconds": 2.0}
    images = np.load(out / "samples_8x16x16x3.npz")["arr_0"].astype(int)
    for row, walk in enumerate(cells(out / "interpolation.png")):
        assert np.abs(walk[0] - images[2 * row]).max() <= 1


def drawn(run_dir, *flags, out="out"):
    """Draw 8 images; return them with their labels and what sampling.json says."""
    assert sample(run_dir, "--num_samples 8", *flags, "--out_dir", run_dir / out) == 0
    with np.load(run_dir / out / "samples_8x16x16x3.npz") as file:
        return file["arr_0"].astype(int), file["arr_1"], json.loads((run_dir / out / "sampling.json").read_text())


@pytest.mark.parametrize(
    ("flags", "words", "nfe"),
    [
        ("--sampler dpmpp --num_sampling_steps 3", "DPM-Solver++ 2M, 3 steps, logsnr", 3),
        ("--sampler unipc", "UniPC, 20 steps, logsnr", 20),
        ("--sampler ddim --eta 0.5 --num_sampling_steps 2 --spacing karras", "DDIM, 2 steps, eta 0.5, karras", 2),
        ("--sampler ancestral --num_sampling_steps 2 --spacing uniform", "ancestral, 2 steps, uniform", 2),
    ],
)
def test_a_sampler_takes_its_steps_and_sampling_json_names_it(run_dir, flags, words, nfe):
    _, _, facts = drawn(run_dir, flags)
    assert (facts["sampler"], facts["nfe"]) == (words, nfe)


@pytest.mark.parametrize("sampler", ["dpmpp-sde", "unipc", "ancestral"])
def test_an_image_is_the_same_in_another_batch(run_dir, sampler):
    flags = f"--sampler {sampler} --num_sampling_steps 3"
    whole, _, _ = drawn(run_dir, flags, out="whole")
    parts, _, _ = drawn(run_dir, flags, "--batch_size 3", out="parts")
    assert np.abs(whole - parts).max() <= 1


def test_another_setting_is_drawn_anew_and_the_same_is_not(run_dir, capsys):
    flags = "--sampler dpmpp --num_sampling_steps 2"
    names = set()
    for more in ("", "--spacing karras", "--guidance_scale 2", "--class_label 3", "--guidance_scale 3 --class_label 3"):
        for _ in range(2):
            names.add(drawn(run_dir, flags, more)[2]["sampler"])
    assert len(names) == 5
    assert capsys.readouterr().out.count("drawn already") == 5


def test_guidance_passes_twice_the_images_and_changes_them(run_dir):
    flags = "--sampler unipc --num_sampling_steps 3"
    plain, labels, facts = drawn(run_dir, flags, out="plain")
    one, _, _ = drawn(run_dir, flags, "--guidance_scale 1", out="one")
    guided, same_labels, guided_facts = drawn(run_dir, flags, "--guidance_scale 4", out="guided")
    assert (facts["nfe"], guided_facts["nfe"]) == (3, 6)
    assert guided_facts["sampler"].endswith("guidance 4")
    assert np.array_equal(one, plain)
    assert np.array_equal(labels, same_labels)
    assert np.abs(guided - plain).max() > 10


def test_one_class_is_drawn_where_one_is_asked_for(run_dir):
    _, labels, _ = drawn(run_dir, "--sampler dpmpp --num_sampling_steps 1 --class_label 4")
    assert labels.tolist() == [4] * 8
    with pytest.raises(UserError, match="--class_label 5: the model has classes 0 to 4"):
        sample(run_dir, "--num_samples 8 --sampler dpmpp --class_label 5")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--sampler dpmpp --use_ddim True", "--sampler dpmpp and --use_ddim True exclude each other"),
        ("--num_sampling_steps 10", "--num_sampling_steps 10 needs --sampler"),
        ("--sampler unipc --spacing uniform --sigma_max 10", "--sigma_max is of the spacings logsnr and karras"),
        ("--eta 1", "--eta 1 needs --use_ddim True or --sampler ddim"),
        ("--sampler unipc --eta 1", "--eta 1 is DDIM's, and --sampler unipc adds no noise"),
        ("--guidance_scale 1e300", "--guidance_scale 1e.300: must be at most"),
        ("--sampler dpmpp --num_sampling_steps 101", "from 1 to the process's 100, not 101"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(run_dir, flags, words):
    with pytest.raises(UserError, match=words):
        sample(run_dir, flags)


def test_guidance_is_refused_where_the_network_cannot_be_guided(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    for options, words in (
        ({"class_dropout": 0.0}, "--guidance_scale 2: the model was trained with --class_dropout 0"),
        ({"class_cond": False}, "--guidance_scale 2.0 needs a class-conditional model"),
    ):
        text = json.dumps({**config, "options": {**config["options"], **options}})
        (run_dir / "config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            sample(run_dir, "--guidance_scale 2")
    with pytest.raises(UserError, match="--class_label 1 needs a class-conditional model"):
        sample(run_dir, "--class_label 1")
