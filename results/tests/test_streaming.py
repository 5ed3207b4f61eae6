"""Batches from disk."""

import multiprocessing
import os
import signal
import zipfile

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from comparison.data.batches import BatchStream
from comparison.data.folders import FileSet
from comparison.data.images import ImageSet, load_images, open_images
from comparison.data.streaming import FileStream
from PIL import Image

SIZE = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 images in two folders of classes; some are larger than SIZE, one is grey, one has a name beyond ASCII."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(23):
        path = folder / ("cat", "dog")[i % 2] / f"{i}{'é' if i == 5 else ''}.png"
        path.parent.mkdir(exist_ok=True)
        size = SIZE if i % 3 else 2 * SIZE + i
        image = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        (image.convert("L") if i == 7 else image).save(path)
    return folder


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    """The same in a .zip file."""
    path = tmp_path_factory.mktemp("packed") / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for image in sorted(folder.rglob("*.png")):
            archive.write(image, image.relative_to(folder))
    return path


def same(found, expected):
    return torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def workers():
    return [child for child in multiprocessing.active_children() if child.is_alive()]


@pytest.mark.parametrize("source", ["folder", "packed"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_from_memory_over_epochs_and_after_jumps(source, num_workers, request):
    path = request.getfixturevalue(source)
    known = BatchStream(load_images(str(path), SIZE), 4, seed=3)
    with FileStream(FileSet(path, SIZE), 4, 3, num_workers=num_workers) as stream:
        assert stream.steps_per_epoch == known.steps_per_epoch == 5
        for step in (*range(12), 7, 8, 40, 0, 0):
            assert same(stream.batch(step), known.batch(step)), step
    assert not workers()


def test_ranks_share_the_batch_from_memory(folder):
    whole = BatchStream(load_images(str(folder), SIZE), 6, seed=1)
    parts = [FileStream(FileSet(folder, SIZE), 6, 1, rank=rank, world_size=3) for rank in range(3)]
    for step in (2, 3):  # the end of an epoch
        found = [part.batch(step) for part in parts]
        assert same([torch.cat(tensors) for tensors in zip(*found, strict=True)], whole.batch(step))


def test_reading_leaves_the_default_generator_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with FileStream(FileSet(folder, SIZE), 4, 0, num_workers=1) as stream:
        stream.batch(0)
        assert torch.equal(torch.rand(3), expected)


def test_set_stays_on_disk_only_where_memory_does_not_hold_it(folder, packed, monkeypatch):
    need = 23 * 3 * SIZE**2
    for source in (folder, packed):
        monkeypatch.setenv("DATA_MEMORY", str(need / 2**30))
        held = open_images(str(source), SIZE)
        assert isinstance(held, ImageSet)
        monkeypatch.setenv("DATA_MEMORY", str((need - 1) / 2**30))
        left = open_images(str(source), SIZE)
        assert isinstance(left, FileSet)
        assert len(left) == len(held) == 23
        assert (left.name, left.class_names) == (held.name, held.class_names)
        assert torch.equal(left.labels, held.labels)
        assert torch.equal(left.pick(torch.tensor([22, 0])), held.pick(torch.tensor([22, 0])))
        assert isinstance(open_images(str(source), SIZE, limit=22), ImageSet)
        with pytest.raises(UserError, match="23 images of 8 pixels need 0 GiB; name a smaller folder"):
            load_images(str(source), SIZE)
    assert isinstance(open_images("shapes", SIZE, limit=50), ImageSet)


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_unusable_memory_limit_is_one_sentence(folder, text, monkeypatch):
    monkeypatch.setenv("DATA_MEMORY", text)
    with pytest.raises(UserError, match=f"DATA_MEMORY must be .*not '{text}'"):
        open_images(str(folder), SIZE)


def test_fingerprint_of_files_tells_names_and_sizes_and_never_poses_as_that_of_pixels(folder, packed, tmp_path):
    files = FileSet(folder, SIZE)
    assert files.fingerprint == FileSet(packed, SIZE).fingerprint
    assert files.fingerprint.startswith("files-")
    for name, size in (("a", 4), ("a", 9), ("b", 9)):
        (tmp_path / f"{name}{size}").mkdir()
        Image.effect_noise((size, size), 50).save(tmp_path / f"{name}{size}" / f"{name}.png")
    assert len({FileSet(path, SIZE).fingerprint for path in tmp_path.iterdir()}) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_file_is_named_with_its_batch_and_the_workers_end(num_workers, tmp_path):
    for i in range(8):
        Image.new("L", (SIZE, SIZE), i).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    files = FileSet(tmp_path, SIZE)
    stream = FileStream(files, 2, 0, num_workers=num_workers)
    bad = next(step for step in range(4) if 3 in stream.order.numbers(step))
    with stream:
        for step in range(bad):
            stream.batch(step)
        with pytest.raises(UserError, match=r"3\.png: not readable as an image .*; fix or delete it$"):
            stream.batch(bad)
    assert not workers()
    Image.new("L", (SIZE, SIZE), 3).save(tmp_path / "3.png")
    with stream:
        assert stream.batch(bad)[0].shape == (2, 3, SIZE, SIZE)  # it starts again


def test_killed_worker_is_one_sentence_and_the_others_end(folder):
    def train():
        with FileStream(FileSet(folder, SIZE), 4, 0, num_workers=2) as stream:
            stream.batch(0)
            os.kill(workers()[0].pid, signal.SIGKILL)
            for step in range(1, 100):
                stream.batch(step)

    with pytest.raises(UserError, match=r"was killed .*lower --num_workers"):
        train()
    assert not workers()


def test_signals_to_all_processes_leave_the_workers_to_the_training_process(folder):
    with FileStream(FileSet(folder, SIZE), 4, 0, num_workers=2) as stream:
        stream.batch(0)  # the second worker may still be starting
        for worker in workers():
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
        for step in range(1, 9):
            stream.batch(step)
        assert len(workers()) == 2
    assert not workers()
