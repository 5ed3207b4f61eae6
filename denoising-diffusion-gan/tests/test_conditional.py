"""Class-conditional networks, and the classes that are drawn."""

import json

import numpy as np
import pytest
import test_ddgan as sampling
import torch
import train_ddgan
from comparison.cli import UserError
from ddgan.checkpoints import load_generator, make_generator, save_generator, seeded_networks
from ddgan.conditional import find_class
from ddgan.options import defaults
from helpers_ddgan import TINY_NETWORK, TINY_TRAINING, make_images
from PIL import Image

SMALL = {
    **{**defaults(), "image_size": 16, "num_channels_dae": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "nz": 4},
    **{"attn_resolutions": [8], "z_emb_dim": 8, "t_emb_dim": 8, "n_mlp": 1, "num_timesteps": 2, "ngf": 4},
}
CLASSES = {**SMALL, "class_cond": True, "num_classes": 3, "class_names": ["cat", "dog", "7"]}


def stirred_generator(config=CLASSES):
    """Build a generator whose output depends on all its inputs: as initialised, its last layers are as good as zero."""
    torch.manual_seed(0)
    generator = make_generator(config)
    for p in generator.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return generator.eval()


def inputs(n=8):
    x, y = torch.randn(n, 3, 16, 16), torch.randn(n, 3, 16, 16)
    return x, torch.arange(n) % 2, y


def test_networks_without_classes_keep_parameters_and_initial_values_of_a_seed():
    plain, conditional = (seeded_networks(config, "small", 5) for config in (SMALL, CLASSES))
    assert not any("label" in name for network in plain for name in network.state_dict())
    shared = conditional[0].state_dict()
    assert all(torch.equal(value, shared[name]) for name, value in plain[0].state_dict().items())
    added = [set(c.state_dict()) - set(p.state_dict()) for p, c in zip(plain, conditional, strict=True)]
    assert added == [{"label_embedding.weight"}] * 2


def test_the_class_adds_the_inner_product_of_features_and_embedding_to_the_logit():
    """Miyato and Koyama 2018, Eq. 4."""
    _, discriminator = seeded_networks(CLASSES, "small", 0)
    for p in discriminator.parameters():
        torch.nn.init.normal_(p, std=0.2)
    features = []
    discriminator.head.register_forward_hook(lambda module, given, output: features.append((given[0], output)))
    y = torch.tensor([0, 1, 2, 0, 1, 2, 2, 0])
    logits = discriminator(*inputs(), y)
    expected = (
        features[0][1] + torch.einsum("nc,nc->n", features[0][0], discriminator.label_embedding.weight[y])[:, None]
    )
    torch.testing.assert_close(logits, expected)
    assert (logits - features[0][1]).abs().min() > 1e-6


def test_a_conditional_checkpoint_holds_its_classes(tmp_path):
    generator = stirred_generator()
    path = tmp_path / "netG_1.pth"
    save_generator(path, generator.state_dict(), CLASSES, step=1, images_seen=8)
    loaded, config = load_generator(path, {"class_cond": True})
    assert (config["num_classes"], config["class_names"]) == (3, ["cat", "dog", "7"])
    x, t, _ = inputs(3)
    given = (x, t[:3], torch.randn(3, 4), torch.tensor([0, 1, 2]))
    assert torch.equal(loaded(*given), generator(*given))
    with pytest.raises(UserError, match="--class_cond False given, True in the checkpoint"):
        load_generator(path, {"class_cond": False})
    save_generator(path, generator.state_dict(), {**CLASSES, "num_classes": 0}, step=1, images_seen=8)
    with pytest.raises(UserError, match="do not fit the flags"):
        load_generator(path, {})


@pytest.mark.parametrize("text", ["3", "-1", "horse", "²", ""])
def test_an_unknown_class_is_refused_with_the_known_ones(text):
    with pytest.raises(UserError, match=r"--class_label .*: must be 0 to 2 or cat, dog, 7"):
        find_class(text, 3, ["cat", "dog", "7"])
    with pytest.raises(UserError, match="is unconditional"):
        find_class(text, 0, [])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    save_generator(folder / "netG_3.pth", stirred_generator().state_dict(), CLASSES, step=1, images_seen=8)
    return folder


def draw(folder, *arguments):
    flags = ["--exp", f"{folder}/", "--device", "cpu", "--precision", "float32", "--threads", "1"]
    flags += ["--num_samples", "10"]
    assert sampling.main(sampling.parse_args([*flags, *arguments])) == 0
    return dict(np.load(folder / "samples.npz")), json.loads((folder / "sampling.json").read_text())


def test_script_draws_all_classes_in_turn_whatever_the_batch_size(run_folder):
    (whole, facts), (parts, _) = (draw(run_folder, "--batch_size", size) for size in ("10", "4"))
    assert whole["arr_1"].tolist() == [i % 3 for i in range(10)]
    assert np.array_equal(parts["arr_1"], whole["arr_1"])
    assert (abs(parts["arr_0"].astype(int) - whole["arr_0"]) <= 1).mean() >= 0.999
    assert facts["classes"] == "in turn"


def test_script_draws_one_class_by_name_or_number(run_folder):
    mixed, _ = draw(run_folder)
    (dogs, facts), (ones, _) = (draw(run_folder, "--class_label", label) for label in ("dog", "1"))
    assert dogs["arr_1"].tolist() == [1] * 10
    assert facts["classes"] == "dog"
    assert np.array_equal(dogs["arr_0"], ones["arr_0"])
    differs = (dogs["arr_0"] != mixed["arr_0"]).any(axis=(1, 2, 3))
    assert differs.tolist() == [i % 3 != 1 for i in range(10)]
    with pytest.raises(UserError, match="--class_label horse: must be 0 to 2 or cat, dog, 7"):
        draw(run_folder, "--class_label", "horse")


def test_training_script_records_the_classes_of_a_folder_and_resumes_with_them(tmp_path):
    for name in ("cats", "dogs", "emus"):
        make_images(tmp_path / "pictures" / name, 6)
    flags = ["--dataset", f"{tmp_path}/pictures", "--exp", f"{tmp_path}/run/", *TINY_NETWORK, *TINY_TRAINING]
    flags += ["--num_epoch", "0", "--class_cond"]
    for updates in ("2", "3"):
        assert train_ddgan.main(train_ddgan.parse_args([*flags, "--max_steps", updates])) == 0
    generator, config = load_generator(tmp_path / "run" / "netG_2.pth", {"class_cond": True})
    assert (config["step"], config["class_names"]) == (3, ["cats", "dogs", "emus"])
    assert generator.label_embedding.weight.shape == (3, 8)
    with Image.open(tmp_path / "run" / "grid.png") as grid:
        assert grid.size == (2 + 8 * 18, 2 + 8 * 18)
    drawn, _ = draw(tmp_path / "run", "--class_label", "emus")
    assert drawn["arr_1"].tolist() == [2] * 10


def test_training_script_refuses_classes_of_images_without_any(tmp_path):
    flags = ["--dataset", str(make_images(tmp_path / "pictures")), "--exp", f"{tmp_path}/run/", *TINY_NETWORK]
    with pytest.raises(UserError, match=r"--class_cond: .*pictures has no classes"):
        train_ddgan.main(train_ddgan.parse_args([*flags, *TINY_TRAINING, "--class_cond", "--max_steps", "1"]))
    assert not list(tmp_path.glob("run/*.pth"))


def test_initial_weights_of_a_seed_are_those_of_earlier_versions():
    generator, discriminator = seeded_networks(SMALL, "small", 5)
    sums = [sum(p.double().abs().sum().item() for p in network.parameters()) for network in (generator, discriminator)]
    assert sums == pytest.approx([4037.191311, 1350.429831], rel=1e-6)
