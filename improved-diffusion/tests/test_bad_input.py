"""Bad input to the scripts: one sentence that names what is wrong, and nothing on disk lost."""

import json

import lmdb
import numpy as np
import pytest
import torch
from comparison.cli import UserError
from diffusion_testing import FOLDER, call_script
from PIL import Image

TRAIN, SAMPLE, NLL = "scripts/image_train.py", "scripts/image_sample.py", "scripts/image_nll.py"
TO_FOLDER, LSUN, CIFAR, EXACT = (
    "scripts/npztodir.py",
    "datasets/lsun_bedroom.py",
    "datasets/cifar10.py",
    "scripts/exact_score.py",
)


def write_npz(path, colour=0, labels=None, count=4):
    np.savez(path, np.full((count, 8, 8, 3), colour, np.uint8), *([] if labels is None else [np.array(labels)]))
    return path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(message, script, *flags):
    """Assert that a script's main, or its parser, refuses with a sentence that matches."""
    with pytest.raises(UserError, match=message) as error:
        call_script(script, *flags)
    assert "\n" not in str(error.value)


def refused_by_parser(capsys, words, script, *flags):
    with pytest.raises(SystemExit) as end:
        call_script(script, *flags)
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (2, 1), said
    assert words in said


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A folder out.partial with two of the four images of red.npz."""
    from improved_diffusion import png_folder

    calls = []

    class Failing:
        @staticmethod
        def fromarray(pixels):
            calls.append(pixels)
            if len(calls) > 2:
                raise KeyboardInterrupt
            return Image.fromarray(pixels)

    red = write_npz(tmp_path / "red.npz", 200)
    with monkeypatch.context() as patch:
        patch.setattr(png_folder, "Image", Failing)
        patch.setattr(png_folder.os, "cpu_count", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            call_script(TO_FOLDER, red, tmp_path / "out")
    assert len(list((tmp_path / "out.partial").glob("*.png"))) == 2
    return tmp_path


def test_images_that_were_begun_are_continued_by_the_same_call_alone(interrupted):
    before = contents(interrupted / "out.partial")
    other = write_npz(interrupted / "blue.npz", 9)
    refused("out.partial.*of other images", TO_FOLDER, other, interrupted / "out")
    refused("out.partial.*of other images", TO_FOLDER, write_npz(other, 200, [0, 1, 2, 3]), interrupted / "out")
    assert contents(interrupted / "out.partial") == before
    assert call_script(TO_FOLDER, interrupted / "red.npz", interrupted / "out") == 0
    assert sorted(path.name for path in (interrupted / "out").iterdir()) == [f"{i:05d}.png" for i in range(4)]


@pytest.mark.parametrize("key_kept", [True, False])
def test_foreign_file_among_unfinished_images_is_named_and_kept(key_kept, interrupted):
    partial = interrupted / "out.partial"
    (partial / "mine.txt").write_text("notes")
    if not key_kept:
        (partial / ".key.json").unlink()
    before = contents(partial)
    words = "mine.txt is no part" if key_kept else "is of other images"
    refused(words, TO_FOLDER, interrupted / "red.npz", interrupted / "out")
    assert contents(partial) == before


def test_truncated_lsun_database_is_refused(tmp_path):
    with lmdb.open(str(tmp_path / "lmdb"), map_size=2**24) as database, database.begin(write=True) as transaction:
        for i in range(40):
            transaction.put(f"key{i:03d}".encode(), bytes(8000))
    data = tmp_path / "lmdb" / "data.mdb"
    whole = data.stat().st_size
    with open(data, "r+b") as file:
        file.truncate(whole // 2)
    refused(f"truncated, {whole // 2} bytes", LSUN, tmp_path / "lmdb", tmp_path / "out")
    with open(data, "r+b") as file:
        file.write(bytes(whole // 2 - 8192))  # keeps its end, loses its head
    refused("lmdb", LSUN, tmp_path / "lmdb", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (TO_FOLDER, "in.npz gs://bucket/out"),
        (TO_FOLDER, "https://host/in.npz out"),
        (LSUN, "lmdb gs://bucket/out"),
        (CIFAR, "--out_dir az://account/out"),
        (EXACT, "--out gs://bucket/out"),
    ],
)
def test_remote_path_is_refused_where_only_local_ones_are_taken(script, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused_by_parser(capsys, "must be a path on this machine", script, flags)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (50 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("below", [".", "run", "a/b"])
def test_run_inside_its_data_is_refused(below, images, monkeypatch):
    before = contents(images)
    refused("--run_dir .* inside --data_dir", TRAIN, "--data_dir", images, "--run_dir", images / below)
    refused("--run_dir .* inside", "scripts/super_res_train.py", "--data_dir", images, "--run_dir", images / below)
    monkeypatch.setenv("OPENAI_LOGDIR", str(images / below))
    refused("OPENAI_LOGDIR .* inside --data_dir", TRAIN, "--data_dir", images)
    assert contents(images) == before


def test_fresh_run_does_not_delete_the_checkpoint_to_start_from(images, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"model": "improved-diffusion", "options": {}}))
    torch.save({}, run / "model000005.pt")
    before = contents(run)
    flags = ["--data_dir", images, "--run_dir", images / ".." / "run", "--fresh"]
    refused("--resume_checkpoint .*--fresh", TRAIN, *flags, "--resume_checkpoint", run / "model000005.pt")
    assert contents(run) == before


def test_eigenvalues_of_the_repository_are_not_overwritten_by_another_name(capsys):
    same = FOLDER / "scripts" / ".." / "datasets" / "cifar10_eigenvalues.npz"
    refused_by_parser(capsys, "--data needs --eigenvalues", EXACT, "--data shapes --eigenvalues", same)
