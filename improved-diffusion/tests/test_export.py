"""export_diffusers.py: the converted network and process give the same outputs; what cannot be converted is refused."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from diffusion_testing import fill_from_names
from export_diffusers import main, parse_args
from improved_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults

SMALL = {"num_channels": 16, "norm_groups": 8, "num_res_blocks": 1, "image_size": 16, "num_heads": 1}
CASES = {
    "openai": {
        "image_size": 32,
        "num_heads": 4,
        "attention_resolutions": "16,8",
        "diffusion_steps": 4000,
        "learn_sigma": True,
    },
    "velocity": {"prediction": "velocity", "noise_schedule": "cosine", "num_heads": 1, "use_scale_shift_norm": False},
    "classes": {"class_cond": True, "prediction": "x_start", "num_res_blocks": 2, "attention_resolutions": "8"},
}


def save_network(folder, **flags):
    """Write a network of random weights; return its file, command line, network and process."""
    flags = {**SMALL, **flags}
    classes = {"num_classes": 5} if flags.get("class_cond") else {}
    network, diffusion = create_model_and_diffusion(**{**model_and_diffusion_defaults(), **flags}, **classes)
    path = folder / "ema_0.9999_000007.pt"
    torch.save(fill_from_names(network).eval().state_dict(), path)
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return path, ["--model_path", str(path), *words], network, diffusion


@pytest.mark.parametrize("case", CASES)
def test_pipeline_has_the_outputs_of_the_network(tmp_path, case):
    diffusers = pytest.importorskip("diffusers")
    _, words, network, _ = save_network(tmp_path, **CASES[case])
    assert main(parse_args([*words, "--out_dir", str(tmp_path / "out")])) == 0
    assert (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "out")
    size = pipeline.unet.config.sample_size
    x, t = torch.randn(4, 3, size, size), torch.tensor([0, 1, 500, 999])
    y = torch.tensor([0, 4, 2, 1]) if network.num_classes else None
    with torch.no_grad():
        expected, found = network(x, t, y)[:, :3], pipeline.unet(x, t, class_labels=y).sample
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    if not network.num_classes:
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
        assert images.shape == (2, size, size, 3)
        assert np.isfinite(images).all()


def test_export_that_fails_leaves_the_folder_and_one_that_works_replaces_it(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    _, words, _, _ = save_network(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "unet").touch()
    saved = diffusers.DDIMPipeline.save_pretrained
    full = OSError(28, "No space left on device")

    def fails(self, folder):
        saved(self, folder)
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(diffusers.DDIMPipeline, "save_pretrained", fails)
        with pytest.raises(UserError, match=r"out: could not be written \(No space left"):
            main(parse_args([*words, "--out_dir", str(out)]))
    assert [path.name for path in out.iterdir()] == ["unet"]
    assert main(parse_args([*words, "--out_dir", str(out)])) == 0
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert not out.with_name("out.partial").exists()


@pytest.mark.parametrize("prediction", ["epsilon", "x_start", "velocity"])
def test_scheduler_takes_the_steps_of_ddim(tmp_path, prediction):
    diffusers = pytest.importorskip("diffusers")
    flags = {"diffusion_steps": 20, "rescale_timesteps": False, "prediction": prediction}
    _, words, network, diffusion = save_network(tmp_path, noise_schedule="cosine", **flags)
    main(parse_args(words))
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "diffusers")
    x = noise = torch.randn(2, 3, 16, 16)
    pipeline.scheduler.set_timesteps(20)
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
        expected = diffusion.ddim_sample_loop(network, noise.shape, noise=noise)
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


def test_rescaled_timesteps_become_a_process_of_1000_steps(tmp_path):
    pytest.importorskip("diffusers")
    from diffusers_pipeline import scheduler_options

    _, _, _, diffusion = save_network(tmp_path, diffusion_steps=4000)
    flags = {**model_and_diffusion_defaults(), "diffusion_steps": 4000}
    betas = np.array(scheduler_options(flags)["trained_betas"])
    np.testing.assert_allclose(np.cumprod(1 - betas), diffusion.alphas_cumprod[::4], rtol=1e-9)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"patch_size": 2, "image_size": 32}, "turns patches into channels"),
        ({"image_size": 64, "num_heads": 4}, "4 attention heads differ in size between levels"),
        ({"num_heads_upsample": 2}, "other heads on the way up"),
        ({"diffusion_steps": 500}, "its 500 steps, rescaled to 1000, are not whole"),
    ],
)
def test_network_that_diffusers_cannot_express_is_refused_with_the_reason(tmp_path, flags, reason):
    _, words, _, _ = save_network(tmp_path, **flags)
    with pytest.raises(UserError, match=f"diffusers cannot express it: .*{reason}"):
        main(parse_args(words))
    assert [path.name for path in tmp_path.iterdir()] == ["ema_0.9999_000007.pt"]


def test_distilled_network_and_a_missing_package_are_refused(tmp_path, monkeypatch):
    _, words, _, _ = save_network(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install diffusers"):
        main(parse_args(words))
    config = {"model": "improved-diffusion", "options": {**SMALL, "few_step": {"levels": {"1": [20]}}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="export its teacher"):
        main(parse_args(words))


def test_converted_network_that_differs_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    import diffusers_pipeline

    _, words, _, _ = save_network(tmp_path)
    whole = diffusers_pipeline.convert
    monkeypatch.setattr(diffusers_pipeline, "convert", lambda network: {k: 1.1 * v for k, v in whole(network).items()})
    with pytest.raises(UserError, match=r"the converted network differs by .*; nothing is written"):
        main(parse_args([*words, "--out_dir", str(tmp_path / "out")]))
    assert not (tmp_path / "out").exists()
