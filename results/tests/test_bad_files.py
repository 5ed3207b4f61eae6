"""Damaged and unsuitable files are reported in one line that names the file or the flag."""

import argparse
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from comparison import cli
from comparison.checkpoints import trained_facts
from comparison.cli import UserError, check_folder
from comparison.curves import draw_run_loss
from comparison.data.images import load_images, load_npz
from comparison.data.sources import check_source
from comparison.device import set_threads, usable_cores
from comparison.files import read_json, write_json
from comparison.runs import Run, read_config, read_progress
from comparison.sampling.draw import draw_samples
from PIL import Image


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([(0, 8, 8, 3)], "not uint8"),
        ([(4, 8, 8, 3), [0, 1, 2]], r"\(3,\) labels for 4"),
        ([(4, 8, 8, 3), [0, 1, 2, -1]], "class numbers"),
        ([(4, 8, 8, 3), [0.0, 1.0, 2.5, 3.0]], "class numbers"),
        ([(4, 8, 8, 3), ["a", "b", "c", "d"]], "class numbers"),
    ],
)
def test_arrays_that_are_no_images_or_no_labels_are_refused(arrays, words, tmp_path):
    shape, *labels = arrays
    np.savez(tmp_path / "set.npz", np.zeros(shape, np.uint8), *map(np.array, labels))
    with pytest.raises(UserError, match=words):
        load_npz(tmp_path / "set.npz")


def picture():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def patched_zip(path, offsets, value, method=zipfile.ZIP_STORED):
    """Write a .zip file with two bytes of its local and its central header replaced."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a_0.png", picture())
    content = bytearray(path.read_bytes())
    for mark, offset in zip((b"PK\x03\x04", b"PK\x01\x02"), offsets, strict=True):
        start = content.index(mark) + offset
        content[start : start + 2] = value.to_bytes(2, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offsets", "value", "method"),
    [((6, 8), 1, zipfile.ZIP_STORED), ((8, 10), 99, zipfile.ZIP_STORED), ((46, 4), 0xFFFF, zipfile.ZIP_LZMA)],
    ids=["encrypted", "unknown compression", "damaged LZMA"],
)
def test_picture_that_a_zip_file_does_not_give_is_named(offsets, value, method, tmp_path):
    patched_zip(tmp_path / "set.zip", offsets, value, method)
    with pytest.raises(UserError, match=r"set\.zip: a_0\.png is not readable"):
        load_images(str(tmp_path / "set.zip"), 16)


@pytest.mark.parametrize(
    "batch",
    [
        [],
        {b"data": np.zeros((2, 3000), np.uint8), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
        {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
    ],
)
def test_batch_that_is_not_of_cifar_is_named(batch, tmp_path):
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match="data_batch_1: "):
        load_images(str(tmp_path), 32)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"model": "gans", "options": []},
        {"model": "gans", "options": {}, "finished": True},
    ],
)
def test_config_that_is_none_is_refused_and_kept(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    for read in (read_config, lambda _: trained_facts(tmp_path, 5), lambda _: Run.open(tmp_path, {}, model="gans")):
        with pytest.raises(UserError, match=r"config\.json: (holds no JSON object|not what config\.json holds: )"):
            read(path)
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sampling.json", "[]"),
        ("sampling.json", "{"),
        ("samples.npz.part.json", "{}"),
        ("samples.npz.part.json", '{"done": "all", "seconds": 1, "evaluations": 1}'),
    ],
)
def test_record_of_samples_that_is_none_is_named(name, content, tmp_path):
    def draw(indices):
        return torch.zeros(len(indices), 3, 8, 8)

    options = {"num_samples": 4, "batch_size": 4, "image_size": 8, "device": torch.device("cpu"), "facts": {}}
    out = tmp_path / "samples.npz"
    if name == "sampling.json":
        draw_samples(draw, [torch.nn.Identity()], out=out, **options)
    else:
        (tmp_path / "samples.npz.part").write_bytes(b"images")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        draw_samples(draw, [torch.nn.Identity()], out=out, **options)
    assert (tmp_path / name).read_text() == content


def test_damaged_rows_of_a_log_are_left_out_and_what_is_no_table_is_refused(tmp_path):
    path, rows = tmp_path / "progress.csv", b"1,4,1.0,0.5\n\xff\xfe,8,2.0,0.4\ninf,8,2.0,1\n3,12,3.0,\xff\n4,16,4,1\n"
    path.write_bytes(b"step,images_seen,wall_seconds,loss\n" + rows)
    assert [row["step"] for row in read_progress(path)] == [1, 4]
    path.write_text('"' + "x" * 200_000)
    with pytest.raises(UserError, match=r"progress\.csv: damaged"):
        read_progress(path)


def test_run_folder_need_not_be_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"$run-\xff")
    folder.mkdir()
    write_json(folder / "config.json", {"run_dir": str(folder)})
    assert read_json(folder / "config.json") == {"run_dir": str(folder)}
    (folder / "progress.csv").write_text("step,images_seen,wall_seconds,loss\n1,4,1,0.5\n2,8,2,0.4\n")
    draw_run_loss(folder)
    assert (folder / "loss.png").is_file()


@pytest.mark.parametrize(("text", "threads"), [("1,2", 1), ("", None), ("1", 1), ("abc", UserError), ("-1", UserError)])
def test_threads_of_the_environment_are_numbers(text, threads, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    if threads is UserError:
        with pytest.raises(UserError, match="OMP_NUM_THREADS"):
            set_threads(0)
    else:
        set_threads(0)
        assert chosen == [threads or usable_cores()]


@pytest.mark.parametrize("name", ["file", "file/below", "link", "link/below"])
def test_folder_that_cannot_be_made_is_refused_by_its_flag(name, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--out .*is not a folder"):
        check_folder(tmp_path / name, "--out")
    check_folder(tmp_path / "new" / "folder", "--out")


@pytest.mark.parametrize("source", ["shapes", "set.npz"])
def test_images_that_no_memory_holds_are_refused_before_they_are_made(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "set.npz", np.zeros((40, 8, 8, 3), np.uint8))
    monkeypatch.setenv("DATA_MEMORY", "0")
    assert load_images(source, 8, limit=4).images.shape == (4, 3, 8, 8)
    with pytest.raises(UserError, match="smaller --image_size"):
        load_images(source, 10_000)


def test_an_empty_path_is_not_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="--data: must name a data source"):
        check_source("", "--data")
    with pytest.raises(argparse.ArgumentTypeError, match="not empty"):
        cli.local_path("")


@pytest.mark.parametrize("of_torch", [False, True])
def test_memory_that_does_not_suffice_is_one_sentence(of_torch, capsys):
    def main():
        np.empty(2**60, np.uint8) if not of_torch else torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(SystemExit) as leaving:
        cli.run(main)
    said = capsys.readouterr().err
    assert leaving.value.code == 2
    assert "out of memory" in said
    assert said.count("\n") == 1


def test_other_errors_of_the_runtime_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="defect"):
        cli.run(lambda: (_ for _ in ()).throw(RuntimeError("a defect")))


@pytest.mark.parametrize("facts", [("x", 1, 1.0), (1, "x", 1.0), (1, 1, {})])
def test_a_checkpoint_with_counts_of_another_kind_is_refused(facts, tmp_path):
    with pytest.raises(UserError, match="a damaged checkpoint"):
        trained_facts(tmp_path, *facts)
