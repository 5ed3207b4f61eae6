"""The super-resolution network, and the published networks of OpenAI's recipes."""

import json

import pytest
import torch
from diffusion_testing import Case, fill_from_names
from improved_diffusion.script_util import (
    NUM_CLASSES,
    check_flags,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)

PUBLISHED = {
    "cifar10_uncond_50M_500K": (52.55, 446, {"image_size": 32, "num_res_blocks": 3, "dropout": 0.3}),
    "imagenet64_uncond_100M_1500K": (121.06, 450, {"num_res_blocks": 3}),
    "imagenet64_cond_270M_250K": (273.05, 451, {"num_channels": 192, "num_res_blocks": 3, "class_cond": True}),
    "lsun_uncond_100M_1200K_bs128": (
        *(113.68, 426),
        {"image_size": 256, "num_heads": 1, "use_scale_shift_norm": False, "attention_resolutions": "16"},
    ),
    "upsample_cond_500K": (279.79, 457, {"large_size": 256, "num_channels": 192, "class_cond": True}),
}


def tiny_sr_flags(**changes):
    tiny = {"large_size": 16, "small_size": 8, "num_channels": 32, "num_res_blocks": 1, "diffusion_steps": 50}
    return {**sr_model_and_diffusion_defaults(), **tiny, **changes}


def test_super_resolution_network_agrees_with_reference():
    case = Case("improved_diffusion_unet", "super_res")
    model, _ = sr_create_model_and_diffusion(**case.config)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == json.loads(str(case.table("names")))
    assert sum(p.numel() for p in model.parameters()) == int(case["parameters"])
    fill_from_names(model)
    with torch.no_grad():
        output = model(case["x"], case["t"], low_res=case["low_res"])
    torch.testing.assert_close(output, case["output"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_parameters(name):
    millions, tensors, flags = PUBLISHED[name]
    if "large_size" in flags:
        create, defaults = sr_create_model_and_diffusion, sr_model_and_diffusion_defaults()
    else:
        create, defaults = create_model_and_diffusion, model_and_diffusion_defaults()
    with torch.device("meta"):
        model, _ = create(**{**defaults, "learn_sigma": True, **flags})
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    assert len(model.state_dict()) == tensors
    if flags.get("class_cond"):
        assert model.label_emb.weight.shape[0] == NUM_CLASSES


def test_super_resolution_flags_are_the_published_ones():
    flags = sr_model_and_diffusion_defaults()
    assert (flags["large_size"], flags["small_size"]) == (256, 64)
    assert not {"image_size", "sigma_small"} & set(flags)


@pytest.mark.parametrize("small", [1, 2, 4, 8])
def test_every_divisor_is_a_small_size_and_changes_the_prediction(small):
    model, _ = sr_create_model_and_diffusion(**tiny_sr_flags(small_size=small))
    fill_from_names(model)
    x, t = torch.zeros(1, 3, 16, 16), torch.tensor([5])
    with torch.no_grad():
        first, second = (model(x, t, low_res=torch.full((1, 3, small, small), v)) for v in (-0.5, 0.5))
    assert first.shape == x.shape
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "value"), [("small_size", 16), ("small_size", 3), ("large_size", 48)])
def test_impossible_sizes_are_refused_by_name(name, value):
    for judge in (check_flags, lambda flags: sr_create_model_and_diffusion(**flags)):
        with pytest.raises(ValueError, match=name):
            judge(tiny_sr_flags(**{name: value}))


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
