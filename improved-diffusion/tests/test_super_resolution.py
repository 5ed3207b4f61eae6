"""The super-resolution network, and the published networks of OpenAI's recipes."""

import argparse
import json

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from diffusion_testing import FOLDER, call_script, fill_from_names
from improved_diffusion.flags import check_flags
from improved_diffusion.script_util import (
    NUM_CLASSES,
    add_dict_to_argparser,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)
from PIL import Image

PUBLISHED = {  # millions of parameters, and tensors
    "cifar10_uncond_50M_500K.pt": (52.55, 446),
    "imagenet64_uncond_100M_1500K.pt": (121.06, 450),
    "imagenet64_cond_270M_250K.pt": (273.05, 451),
    "lsun_uncond_100M_1200K_bs128.pt": (113.68, 426),
    "upsample_cond_500K.pt": (279.79, 457),
}
TINY = (
    "--large_size 16 --small_size 8 --num_channels 32 --num_res_blocks 1 --attention_resolutions 4 --learn_sigma True "
    "--diffusion_steps 50 --noise_schedule cosine --threads 1 --precision float32 --device cpu"
)
TRAIN, SAMPLE = "scripts/super_res_train.py", "scripts/super_res_sample.py"


def tiny_sr_flags(**changes):
    tiny = {"large_size": 16, "small_size": 8, "num_channels": 32, "num_res_blocks": 1, "diffusion_steps": 50}
    return {**sr_model_and_diffusion_defaults(), **tiny, **changes}


def documented_flags(name, defaults):
    """Return the flags of a published file from the table of its page, as the scripts read them."""
    page = (FOLDER.parent / "docs" / "improved-diffusion.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_dict_to_argparser(parser, defaults)
    return vars(parser.parse_args(row.split("| `")[-1].rstrip("` |").split()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_parameters(name):
    upsampler = name.startswith("upsample")
    defaults = sr_model_and_diffusion_defaults() if upsampler else model_and_diffusion_defaults()
    flags = documented_flags(name, defaults)
    check_flags(flags)
    with torch.device("meta"):
        model, _ = (sr_create_model_and_diffusion if upsampler else create_model_and_diffusion)(**flags)
    parameters = sum(p.numel() for p in model.parameters())
    assert (round(parameters / 1e6, 2), len(model.state_dict())) == PUBLISHED[name]
    if flags["class_cond"]:
        assert model.label_emb.weight.shape[0] == NUM_CLASSES


@pytest.mark.parametrize("small", [1, 2, 4, 8])
def test_every_divisor_is_a_small_size_and_changes_the_prediction(small):
    model, _ = sr_create_model_and_diffusion(**tiny_sr_flags(small_size=small))
    fill_from_names(model)
    x, t = torch.zeros(1, 3, 16, 16), torch.tensor([5])
    with torch.no_grad():
        first, second = (model(x, t, low_res=torch.full((1, 3, small, small), v)) for v in (-0.5, 0.5))
    assert first.shape == x.shape
    assert (first - second).abs().max() > 1e-3


def test_feature_vectors_are_the_activations_of_every_block():
    model, _ = sr_create_model_and_diffusion(**tiny_sr_flags(class_cond=True), num_classes=3)
    fill_from_names(model)
    x, t, y = torch.zeros(2, 3, 16, 16), torch.tensor([5, 6]), torch.tensor([0, 2])
    low_res = torch.ones(2, 3, 8, 8)
    features = model.get_feature_vectors(x, t, y, low_res=low_res)
    assert [len(features[part]) for part in ("down", "up")] == [len(model.input_blocks), len(model.output_blocks)]
    assert features["middle"].shape == (2, 64, 4, 4)
    with torch.no_grad():
        assert torch.equal(model.out(features["up"][-1]), model(x, t, low_res, y))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 20 images in two classes, each of one colour."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(20):
        Image.new("RGB", (16, 16), (12 * i, 0, 255 - 12 * i)).save(folder / f"{'cat' if i % 2 else 'dog'}_{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The run folder of a class-conditional model."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = [TINY, "--class_cond True --batch_size 4 --max_steps 4 --save_interval 2 --log_interval 2 --grid_steps 2"]
    assert call_script(TRAIN, *flags, "--grid_images 10", "--data_dir", images, "--run_dir", folder) == 0
    return folder


@pytest.fixture
def base(tmp_path):
    """An .npz file of 10 images of 8 pixels in two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "base.npz", arr_0=pixels, arr_1=np.arange(10) % 2)
    return tmp_path / "base.npz"


def sample(trained, base, out, *flags):
    path = trained / "ema_0.9999_000004.pt"
    common = "--device cpu --precision float32 --threads 1 --use_ddim True --timestep_respacing ddim3"
    return call_script(SAMPLE, common, *flags, "--model_path", path, "--base_samples", base, "--out_dir", out)


def pixels(path):
    return np.asarray(Image.open(path), int)


def test_training_writes_a_run_of_its_own_family_with_rows_in_the_grid(trained):
    config = json.loads((trained / "config.json").read_text())
    assert (config["model"], config["options"]["small_size"]) == ("improved-diffusion-sr", 8)
    assert config["finished"]["steps"] == 4
    assert (trained / "opt000004.pt").is_file()
    grid = pixels(trained / "grid_000004.png")
    assert grid.shape == (6 * 18 + 2, 8 * 18 + 2, 3)  # 10 images: two rows of each kind
    small, original = grid[2:18, 2:18], grid[38:54, 2:18]
    assert np.abs(small - original).max() <= 1  # images of one colour lose nothing when they are reduced
    assert (grid[56:, 2 + 2 * 18 :] == 255).all()


def test_enlarged_images_keep_the_order_and_labels_of_the_base_whatever_the_batch_size(trained, base, tmp_path):
    drawn = []
    for batch_size in (3, 10):
        out = tmp_path / str(batch_size)
        assert sample(trained, base, out, "--batch_size", batch_size) == 0
        with np.load(out / "samples_10x16x16x3.npz") as archive:
            drawn.append(archive["arr_0"].astype(int))
            assert archive["arr_1"].tolist() == [0, 1] * 5
        facts = json.loads((out / "sampling.json").read_text())
        assert (facts["nfe"], facts["sampler"], facts["base_size"]) == (3, "DDIM, 3 steps, eta 0", 8)
        names = {"samples_10x16x16x3.npz", "samples.png", "sampling.json", "comparison.png"}
        assert {path.name for path in out.iterdir()} == names
    assert np.mean(np.abs(drawn[0] - drawn[1]) <= 1) >= 0.999
    assert drawn[0].std() > 10
    picture = pixels(tmp_path / "3" / "comparison.png")
    low, high = picture[2:18, 20:36], picture[20:36, 20:36]
    assert np.array_equal(low[::2, ::2], np.load(base)["arr_0"][1])
    assert np.array_equal(high, drawn[0][1])


def test_first_images_of_a_folder_are_reduced_and_enlarged(trained, images, tmp_path):
    assert sample(trained, images, tmp_path / "out", "--num_samples 3 --eta 1") == 0
    with np.load(tmp_path / "out" / "samples_3x16x16x3.npz") as archive:
        assert archive["arr_0"].shape == (3, 16, 16, 3)
        assert archive["arr_1"].tolist() == [0, 0, 0]  # cat_01, cat_03, cat_05 by name
    assert np.array_equal(pixels(tmp_path / "out" / "comparison.png")[2, 2], [12, 0, 243])


def test_base_images_that_do_not_fit_are_refused(trained, base, tmp_path):
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "other.npz", arr_0=pixels)
    np.savez(tmp_path / "bare.npz", arr_0=np.load(base)["arr_0"])
    np.savez(tmp_path / "many.npz", arr_0=np.load(base)["arr_0"], arr_1=np.arange(10))
    out = tmp_path / "out"
    for source, flags, sentence in (
        (tmp_path / "other.npz", "", "4x4 pixels; the model enlarges those of 8x8"),
        (tmp_path / "bare.npz", "", "these images have no labels"),
        (tmp_path / "many.npz", "", "labels up to 9; the model has 2 classes"),
        (base, "--num_samples 11", "--num_samples 11: .*holds only 10 images"),
        (base, "--small_size 4", "--small_size 4: the model was trained with 8"),
    ):
        with pytest.raises(UserError, match=sentence):
            sample(trained, source, out, flags)
    assert not out.exists()


def test_published_class_conditional_file_is_rebuilt_with_its_classes(tmp_path):
    flags = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "class_cond": True, "learn_sigma": True}
    model, _ = create_model_and_diffusion(**{**model_and_diffusion_defaults(), **flags})
    torch.save(fill_from_names(model).state_dict(), tmp_path / "imagenet_cond.pt")
    network = "--image_size 16 --num_channels 32 --num_res_blocks 1 --class_cond True --learn_sigma True"
    sampling = "--timestep_respacing 2 --num_samples 40 --batch_size 40 --device cpu --threads 1"
    assert call_script("scripts/image_sample.py", network, sampling, "--model_path", tmp_path / "imagenet_cond.pt") == 0
    labels = np.load(tmp_path / "samples_40x16x16x3.npz")["arr_1"]
    assert labels.max() > 500  # drawn from the 1,000 of its embedding
    assert labels.max() < NUM_CLASSES
