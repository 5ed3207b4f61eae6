"""Every flag of the architecture does what it says, from the command line to the image; with what was broken there."""

import itertools
import math
import pickle

import numpy as np
import pytest
import test_ddgan as sampling
import torch
import train_ddgan
from comparison.cli import UserError
from ddgan.checkpoints import generator_from_nvlabs, load_generator, make_generator
from ddgan.fir import FirDown, FirUp
from ddgan.layers import ROOT_HALF, ResidualBlock
from ddgan.options import check_architecture, defaults
from helpers_ddgan import make_images, published_state

SMALL = {"num_channels_dae": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "nz": 4, "z_emb_dim": 8, "n_mlp": 1}
SMALL["image_size"] = 16
SHAPES = list(
    itertools.product(
        ["biggan", "biggan_oneadagn", "ddpm"],
        ["none", "output_skip", "residual"],
        [("none", "sum"), ("input_skip", "sum"), ("input_skip", "cat"), ("residual", "sum")],
    )
)


def build(**change):
    """Build a small generator whose output depends on all its weights, which start as good as zero in places."""
    torch.manual_seed(0)
    generator = make_generator({**SMALL, **change})
    for p in generator.parameters():
        torch.nn.init.normal_(p, std=0.3 / math.sqrt(max(1, p[0].numel() / 8)))
    return generator


def some_inputs(n=2):
    generator = torch.Generator().manual_seed(1)
    x, z = torch.randn(n, 3, 16, 16, generator=generator), torch.randn(n, 4, generator=generator)
    return x, torch.arange(n) % 2, z


@pytest.mark.parametrize("fir", [True, False], ids=["fir", "plain"])
@pytest.mark.parametrize(("block", "progressive", "progressive_input"), SHAPES)
def test_every_shape_of_network_uses_all_its_weights_and_is_finite(block, progressive, progressive_input, fir):
    """With filters, the published code fails on ddpm blocks and on residual output."""
    joined = {"progressive_input": progressive_input[0], "progressive_combine": progressive_input[1]}
    config = {"resblock_type": block, "progressive": progressive, "fir": fir, **joined}
    check_architecture({**defaults(), **SMALL, **config})
    generator = build(**config)
    images = generator(*some_inputs())
    assert images.shape == (2, 3, 16, 16)
    assert images.isfinite().all()
    images.square().sum().backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize(("block", "progressive", "progressive_input"), SHAPES)
def test_published_weights_of_every_shape_load(block, progressive, progressive_input):
    joined = {"progressive_input": progressive_input[0], "progressive_combine": progressive_input[1]}
    config = {**SMALL, "resblock_type": block, "progressive": progressive, **joined}
    generator = build(**config).eval()
    loaded = generator_from_nvlabs(published_state(generator), config).eval()
    assert torch.equal(loaded(*some_inputs()), generator(*some_inputs()))


def test_fourier_embedding_is_finite_at_t_0_and_tells_it_from_t_1():
    """The published code takes the logarithm of 0."""
    generator = build(embedding_type="fourier")
    embedding = generator.time_embedding(torch.tensor([0, 1, 2]))
    assert embedding.isfinite().all()
    assert (embedding[0] - embedding[1]).abs().max() > 1e-3
    assert generator(*some_inputs()).isfinite().all()


@pytest.mark.parametrize("progressive", ["none", "output_skip", "residual"])
def test_not_use_tanh_leaves_the_output_unbounded(progressive):
    bounded, unbounded = (build(progressive=progressive, not_use_tanh=flag).eval() for flag in (False, True))
    torch.testing.assert_close(bounded(*some_inputs()), torch.tanh(unbounded(*some_inputs())))
    for p in unbounded.parameters():
        p.data.mul_(3)
    assert unbounded(*some_inputs()).abs().max() > 1


def test_centered_off_maps_the_input_from_0_1_to_minus_1_1():
    plain, mapping = (build(centered=flag).eval() for flag in (True, False))
    x, t, z = some_inputs()
    torch.testing.assert_close(mapping((x + 1) / 2, t, z), plain(x, t, z), atol=1e-5, rtol=1e-5)


def test_conditional_off_hides_the_time():
    generator = build(conditional=False)
    x, _, z = some_inputs()
    assert torch.equal(generator(x, torch.tensor([0, 0]), z), generator(x, torch.tensor([1, 1]), z))
    x, _, z = some_inputs()
    generator = build()
    assert not torch.allclose(generator(x, torch.tensor([0, 0]), z), generator(x, torch.tensor([1, 1]), z))


def test_skip_rescale_off_adds_residuals_as_they_are():
    torch.manual_seed(0)
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 8)
    rescaled, plain = (ResidualBlock(8, 8, time_dim=8, z_emb_dim=8, skip_rescale=flag) for flag in (True, False))
    plain.load_state_dict(rescaled.state_dict())
    torch.testing.assert_close(rescaled(x, embedding, embedding), plain(x, embedding, embedding) * ROOT_HALF)
    a, b = (build(skip_rescale=flag) for flag in (True, False))
    assert not torch.allclose(a(*some_inputs()), b(*some_inputs()))


@pytest.mark.parametrize("block", ["biggan", "ddpm"])
def test_fir_off_resamples_by_repeating_and_averaging(block):
    kinds = {type(module) for module in build(resblock_type=block, fir=False).modules()}
    assert not kinds & {FirDown, FirUp}
    assert torch.nn.Upsample in kinds
    kinds = {type(module) for module in build(resblock_type=block).modules()}
    assert kinds >= {FirDown, FirUp}
    assert torch.nn.Upsample not in kinds


def test_resamp_with_conv_off_resamples_ddpm_blocks_without_weights():
    learned, fixed = (
        build(resblock_type="ddpm", resamp_with_conv=flag, progressive_input="none") for flag in (True, False)
    )
    assert learned.encoder[0].resample.state_dict()
    assert not fixed.encoder[0].resample.state_dict()


@pytest.mark.parametrize(("given", "levels"), [(["16"], [1, 0]), (["8", "16"], [1, 1]), (["4"], [0, 0])])
def test_attn_resolutions_from_the_command_line(given, levels):
    """The published code takes them for words."""
    args = train_ddgan.parse_args(["--attn_resolutions", *given])
    generator = build(attn_resolutions=args.attn_resolutions)
    assert [len(level.attentions) for level in generator.encoder] == levels
    assert [len(level.attentions) for level in generator.decoder] == levels[::-1]
    assert generator(*some_inputs()).isfinite().all()


@pytest.mark.parametrize("name", ["centered", "resamp_with_conv", "conditional", "fir", "skip_rescale"])
def test_published_switches_are_inverted_and_say_so(name, capsys):
    for script in (train_ddgan, sampling):
        assert getattr(script.parse_args([f"--{name}"]), name) is False
        with pytest.raises(SystemExit):
            script.parse_args(["--help"])
        assert f"--{name}INVERTED" in "".join(capsys.readouterr().out.split())
    assert getattr(train_ddgan.parse_args([]), name) is True


CELLS = [
    ["--num_timesteps", "1"],
    ["--use_geometric", "--beta_min", "0.01", "--beta_max", "0.9", "--num_timesteps", "3"],
    ["--embedding_type", "fourier", "--fourier_scale", "4", "--not_use_tanh", "--n_mlp", "0"],
    ["--resblock_type", "ddpm", "--progressive", "residual", "--progressive_input", "input_skip"],
    ["--fir", "--skip_rescale", "--conditional", "--centered", "--dropout", "0.2"],
    ["--attn_resolutions", "8", "16", "--progressive", "output_skip", "--fir_kernel", "1", "1", "1", "1"],
    ["--resblock_type", "biggan_oneadagn", "--progressive_input", "input_skip", "--progressive_combine", "cat"],
]


@pytest.mark.parametrize("flags", CELLS, ids=lambda flags: flags[0])
def test_flags_train_and_sample_from_the_command_line(flags, tmp_path):
    """Two updates of 6 images, which is no multiple of 4; then 5 images, with the flags repeated."""
    common = ["--image_size", "16", "--num_channels_dae", "8", "--ch_mult", "1", "2", "--num_res_blocks", "1"]
    common += ["--nz", "4", "--z_emb_dim", "8", "--exp", f"{tmp_path}/run/", *flags]
    common += ["--device", "cpu", "--precision", "float32", "--threads", "1"]
    training = ["--dataset", str(make_images(tmp_path / "pictures", 13)), "--ngf", "2", "--t_emb_dim", "8"]
    training += ["--batch_size", "6", "--num_epoch", "1", "--use_ema", "--lr_g", "0.01"]
    assert train_ddgan.main(train_ddgan.parse_args([*common, *training])) == 0
    assert sampling.main(sampling.parse_args([*common, "--num_samples", "5", "--epoch_id", "1"])) == 0
    images = np.load(tmp_path / "run" / "samples.npz")["arr_0"]
    assert images.shape == (5, 16, 16, 3)
    assert images.std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_geometric": True}, "--use_geometric: needs beta_min < beta_max < 1"),
        ({"beta_min": 20.0}, "--beta_min 20.0: must be below"),
        ({"fir_kernel": [1, 2, 1]}, "--fir_kernel 1 2 1: must be symmetric"),
        ({"ch_mult": [1, 1, 2, 2, 4, 4, 4]}, "--image_size 32: must be at least 8 and divisible by 64"),
        ({"num_channels": 1}, "--num_channels 1"),
        ({"num_channels_dae": 20, "ch_mult": [7]}, "--num_channels_dae 20"),
        ({"t_emb_dim": 7}, "--t_emb_dim 7"),
    ],
)
def test_flags_from_which_nothing_can_be_built_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        check_architecture({**defaults(), **options})


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"kind": "generator", "config": Harmful()}, tmp_path / "netG_1.pth")
    (tmp_path / "netG_2.pth").write_bytes(pickle.dumps(Harmful(), protocol=2))
    for name in ("netG_1.pth", "netG_2.pth"):
        with pytest.raises(UserError, match=name):
            load_generator(tmp_path / name, {})
