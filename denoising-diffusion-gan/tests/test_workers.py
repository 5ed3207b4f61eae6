"""Several processes: their flags, that they do what one does, and which files they write."""

import argparse
import json
import os

import numpy as np
import pytest
import test_ddgan
import torch
import train_ddgan
import worker_programs
from comparison import rng
from comparison.checkpoints import load_torch
from comparison.cli import UserError
from comparison.distributed import launch
from comparison.ranks import RankInfo
from comparison.runs import read_progress
from ddgan import training_setup
from ddgan.checkpoints import make_generator, save_generator
from ddgan.draws import Batch
from ddgan.objective import Objective, Phase
from ddgan.options import defaults, get_rank_info
from helpers_ddgan import TINY_NETWORK, TINY_TRAINING, make_images
from joint_batches import N, gradients, images, joint_batch, let_draw, make_trainer

TWO = RankInfo(world_size=2, local_world_size=2)


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("--local_rank 1", RankInfo()),
        ("--num_process_per_node 3", RankInfo(0, 3, 0, 3)),
        (
            "--num_process_per_node 2 --num_proc_node 3 --node_rank 2 --master_address there",
            RankInfo(4, 6, 0, 2, "", "there", 6020),
        ),
    ],
)
def test_published_flags_say_the_place(words, place):
    assert get_rank_info(train_ddgan.parse_args(["--dataset", "shapes", *words.split()])) == place


def test_machines_with_other_flags_are_refused_but_for_their_own(monkeypatch):
    flags = {"lr_g": 1.0, "node_rank": 0, "exp": "/mount0/run"}
    for other in ({"node_rank": 1, "exp": "/mount1/run"}, {"lr_g": 2.0}):
        monkeypatch.setattr(training_setup, "gather", lambda value, other=other: [value, {**value, **other}])
        if "lr_g" not in other:
            training_setup.check_same_flags(argparse.Namespace(**flags))
    with pytest.raises(UserError, match=r"^--lr_g: 1\.0 on rank 0, but 2\.0 on rank 1; use the same flags$"):
        training_setup.check_same_flags(argparse.Namespace(**flags))


def test_dropout_differs_from_process_to_process_and_not_from_start_to_start(monkeypatch):
    drawn = []
    for place in (RankInfo(), RankInfo(0, 2), RankInfo(1, 2), RankInfo(1, 2)):
        trainer = make_trainer(place)
        monkeypatch.setattr(trainer, "_update_discriminator", lambda *_: drawn.append(torch.rand(8)) or {})
        monkeypatch.setattr(trainer, "_update_generator", lambda *_: {})
        rng.seed_default("anything")
        trainer.update(images(0), 0)
    assert torch.equal(drawn[2], drawn[3])
    assert not any(torch.equal(drawn[a], drawn[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_two_processes_make_the_updates_of_one_with_the_joint_batch(tmp_path):
    assert launch(worker_programs.update, TWO, tmp_path) == 0
    reports = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    assert reports[0]["messages"][0] > 0
    assert len(set(reports[0]["messages"])) == 1  # as many for two micro-batches as for one: none before the last

    alone = make_trainer()
    for step, window in enumerate(([0, 1], [2, 3], [4])):
        alone.update([let_draw(alone, window, 2 * N)], step)
    for name in ("generator", "discriminator"):
        first, second = (report["state"][name] for report in reports)
        assert all(torch.equal(first[key], second[key]) for key in first)
        found, wanted = (
            torch.cat([value.flatten() for value in x.values()]) for x in (first, alone.state_dict()[name])
        )
        assert (found - wanted).norm() < 1e-5 * wanted.norm()
    averages = [report["state"]["ema"]["weights"] for report in reports]
    assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])


@pytest.mark.parametrize("phase", [None, Phase(True), Phase(False, 2.0)])
def test_joint_gradients_are_the_mean_of_the_parts(phase):
    """What the comparison above stands on, without any process; of the denoiser and the reconstruction as well."""
    options = {"lr_d": 0.0}
    if phase:
        options["objective"] = Objective(discriminator_input="x_0", denoiser_fraction=0.5, reconstruction="constant")
    phase = phase or Phase()
    alone = make_trainer(**options)
    alone.update([let_draw(alone, [0], 2 * N)], 0, phase)
    parts = []
    for rank in range(2):
        trainer = make_trainer(RankInfo(rank, 2), **options)
        trainer.update([Batch(joint_batch(0).chunk(2)[rank], None, 0)], 0, phase)
        parts.append(trainer)
    for name in ("generator",) if phase.denoiser else ("generator", "discriminator"):
        mean = sum(gradients(getattr(trainer, name)) for trainer in parts) / 2
        wanted = gradients(getattr(alone, name))
        assert (mean - wanted).norm() < 1e-5 * wanted.norm()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "pictures", count=24)


def flags(pictures, folder, *more) -> list[str]:
    """Three micro-batches of 2 x 4 images make an epoch, windows of two make two updates of it."""
    words = ["--dataset", str(pictures), "--exp", f"{folder}/", *TINY_NETWORK, *TINY_TRAINING]
    return [*words, "--batch_size", "4", "--accum_iter", "2", "--log_interval", "1", "--num_epoch", "3", *more]


@pytest.fixture(scope="module")
def unbroken(pictures, tmp_path_factory):
    """Six updates by two processes."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    assert train_ddgan.main(train_ddgan.parse_args(flags(pictures, folder, "--num_process_per_node", "2"))) == 0
    return folder


def test_first_process_writes_the_files_of_one(unbroken):
    rows = read_progress(unbroken / "progress.csv")
    assert [(row["step"], row["images_seen"]) for row in rows] == [
        *((1, 16), (2, 24), (3, 40), (4, 48), (5, 64), (6, 72))
    ]
    assert "4 images x 2 processes x 2 micro-batches per update" in (unbroken / "log.txt").read_text()
    payload = load_torch(unbroken / "netG_3.pth")
    assert payload["config"]["processes"] == 2
    assert payload["images_seen"] == 72
    assert not any(name.startswith("module.") for name in payload["generator"])


def test_other_number_of_processes_is_another_run(pictures, unbroken):
    with pytest.raises(UserError, match="processes 2 there, 1 here"):
        train_ddgan.main(train_ddgan.parse_args(flags(pictures, unbroken)))


def test_two_processes_draw_the_images_and_classes_of_one(tmp_path):
    config = {**defaults(), "image_size": 16, "num_channels_dae": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "nz": 4}
    config |= {"num_timesteps": 2, "class_cond": True, "num_classes": 3, "class_names": ["a", "b", "c"]}
    torch.manual_seed(0)
    generator = make_generator(config)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_generator(tmp_path / "netG_1.pth", generator.state_dict(), config, step=1, images_seen=8)
    sampled = ["--exp", f"{tmp_path}/", "--device", "cpu", "--precision", "float32", "--threads", "1"]
    sampled += ["--num_samples", "11", "--batch_size", "3"]
    for count in ("1", "2"):
        out = ["--out", f"{tmp_path}/{count}/samples.npz", "--png_dir", f"{tmp_path}/{count}/png"]
        assert test_ddgan.main(test_ddgan.parse_args([*sampled, *out, "--num_process_per_node", count])) == 0
        assert len(list((tmp_path / count / "png").iterdir())) == 11
    one, two = (np.load(tmp_path / count / "samples.npz") for count in ("1", "2"))
    assert one["arr_0"].std() > 1
    for name in ("arr_0", "arr_1"):
        np.testing.assert_array_equal(one[name], two[name])
    facts = json.loads((tmp_path / "2" / "sampling.json").read_text())
    assert (facts["processes"], facts["images"], facts["nfe"]) == (2, 11, 2)
