"""Weights in 16 bits: exact return, damaged files, --checkpoint pretrained:RUN in every sampling script."""

import argparse
from pathlib import Path

import pytest
import torch
from comparison import cli, weights
from comparison.checkpoints import load_torch
from comparison.cli import UserError

RUNS = Path(__file__).parents[1] / "runs"
PAYLOAD = {
    "model": "gans",
    "step": 7,
    "config": {"ngf": 4, "ch_mult": [1, 2]},
    "generator": None,
    "ema": {"a.weight": torch.tensor([[0.1, -2.5]]), "a.count": torch.tensor(3)},
}


@pytest.fixture
def path(tmp_path):
    weights.save_weights(tmp_path / weights.NAME, PAYLOAD)
    return tmp_path / weights.NAME


def test_load_returns_what_was_saved_in_half_precision(path):
    loaded = load_torch(path)
    assert {**loaded, "ema": None} == {**PAYLOAD, "ema": None}
    assert loaded["ema"]["a.count"].dtype == torch.int64
    assert loaded["ema"]["a.weight"].dtype == torch.float32
    assert torch.equal(loaded["ema"]["a.weight"], PAYLOAD["ema"]["a.weight"].half().float())
    assert loaded["ema"]["a.count"] == 3


@pytest.mark.parametrize("where", [0, 100, -1])
def test_damaged_file_is_refused_by_name(path, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=weights.NAME):
        load_torch(path)


def test_changed_option_in_the_header_is_noticed(path):
    content = path.read_bytes()
    assert content.count(b'\\"step\\": 7') == 1
    path.write_bytes(content.replace(b'\\"step\\": 7', b'\\"step\\": 8'))
    with pytest.raises(UserError, match="the check sum of its weights is wrong"):
        load_torch(path)


def test_facts_are_read_without_the_tensors(path, tmp_path):
    assert weights.read_facts(path) == {name: value for name, value in PAYLOAD.items() if name != "ema"} | {"ema": {}}
    (tmp_path / "x.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"x\.safetensors: not readable as weights"):
        weights.read_facts(tmp_path / "x.safetensors")


def test_foreign_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not readable as weights of this project"):
        load_torch(tmp_path / "x.safetensors")


def test_values_beyond_half_precision_are_refused(tmp_path):
    with pytest.raises(UserError, match="ema/x has values that float16 cannot hold"):
        weights.save_weights(tmp_path / weights.NAME, {"ema": {"x": torch.tensor([1e6])}})
    assert list(tmp_path.iterdir()) == []


def test_pretrained_names_a_run_with_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "repo_root", lambda: tmp_path)
    read = weights.checkpoint_path("gans")
    assert read("some/file.pt").name == "file.pt"
    with pytest.raises(argparse.ArgumentTypeError, match="no pretrained:first; there are: none"):
        read("pretrained:first")
    run = tmp_path / "results" / "runs" / "gans" / "first"
    run.mkdir(parents=True)
    weights.save_weights(run / weights.NAME, PAYLOAD)
    assert read("pretrained:first") == run / weights.NAME
    assert weights.out_folder(run / weights.NAME) == run / "pretrained"
    with pytest.raises(argparse.ArgumentTypeError, match="no pretrained:other; there are: first"):
        read("pretrained:other")


def test_committed_weights_are_whole_and_small():
    paths = sorted(RUNS.glob(f"*/cifar10-jpeg-cpu/{weights.NAME}"))
    assert {"gans", "improved-diffusion", "denoising-diffusion-gan"} == {path.parts[-3] for path in paths}
    for path in paths:
        assert path.stat().st_size <= 10e6
        assert weights.load_weights(path)["model"] == path.parts[-3]
