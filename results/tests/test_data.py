"""Sources, images and batches."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from comparison.data.batches import BatchStream
from comparison.data.images import from_uint8, load_images, load_npz, save_npz, to_uint8
from comparison.data.sources import check_source
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Two classes with grey, wide, transparent and large files."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    Image.new("L", (32, 32), 100).save(tmp_path / "a" / "grey.png")
    Image.new("RGB", (80, 40), (10, 20, 30)).save(tmp_path / "a" / "wide.jpg", quality=95)
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "b" / "clear.png")
    Image.new("P", (100, 300)).save(tmp_path / "b" / "tall.gif")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_rounding_inverts_exactly_and_never_truncates():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([0.999, -3.0, 3.0])).tolist() == [255, 0, 255]


def test_folder_is_read_whole_with_grey_wide_and_transparent_files(folder):
    data = load_images(str(folder), 16)
    assert data.images.shape == (4, 3, 16, 16)
    assert data.class_names == ("a", "b")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert (data.images[0] == 100).all()
    assert (data.images[1].float().mean((1, 2)) - torch.tensor([10.0, 20.0, 30.0])).abs().max() < 3
    assert (data.images[2] == 255).all()


def test_file_name_prefix_labels_a_flat_folder(tmp_path):
    for name in ("cat_1.png", "cat_2.png", "dog_1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    data = load_images(str(tmp_path), 8)
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1]


def test_broken_file_is_named(folder):
    (folder / "b" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(UserError, match=r"broken\.png: not readable"):
        load_images(str(folder), 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing", "neither shapes, cifar10"),
        (lambda p: p, "no image found"),
        (lambda p: "shapes:7", "10, 100, 200, 1000"),
    ],
)
def test_unusable_source_is_refused_before_loading(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        check_source(str(make(tmp_path)))


def test_cifar_batches_folder_reads_without_running_code(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 4, 3072), dtype=np.uint8)
    for i in range(5):
        with open(tmp_path / f"data_batch_{i + 1}", "wb") as file:
            pickle.dump({b"data": pixels[i], b"labels": [i, 0, 1, 2]}, file)
    data = load_images(str(tmp_path), 32)
    assert torch.equal(data.images.flatten(1), torch.from_numpy(pixels.reshape(20, 3072)))
    assert data.labels[::4].tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match="data_batch_1: not readable"):
        load_images(str(tmp_path), 32)


def test_npz_round_trip_and_damage(tmp_path):
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    save_npz(tmp_path / "s.npz", images, np.array([1, 0]))
    loaded, labels = load_npz(tmp_path / "s.npz")
    assert np.array_equal(loaded.permute(0, 2, 3, 1), images)
    assert labels.tolist() == [1, 0]
    (tmp_path / "cut.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:200])
    with pytest.raises(UserError, match=r"cut\.npz: not readable"):
        load_npz(tmp_path / "cut.npz")
    np.savez(tmp_path / "float.npz", arr_0=images / 255)
    with pytest.raises(UserError, match="not uint8"):
        load_npz(tmp_path / "float.npz")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("arr_0.npy", "text")
    with pytest.raises(UserError, match=r"text\.npz: not readable as an \.npz file \(a part of it is no array"):
        load_npz(tmp_path / "text.npz")


def test_zip_with_unusual_names_is_read(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("x.png/", "")
        for name in ("./b_1.png", "a//a_0.png"):
            archive.writestr(name, file.getvalue())
    data = load_images(str(tmp_path / "z.zip"), 8)
    assert data.images.shape == (2, 3, 8, 8)
    assert data.describe()["images"] == 2


def test_limit_spreads_over_the_source(tmp_path):
    for i in range(10):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / f"{i:02d}.png")
    assert load_images(str(tmp_path), 4, limit=4).images[:, 0, 0, 0].tolist() == [0, 3, 6, 9]


def test_second_reading_of_a_large_folder_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr("comparison.data.images.CACHE_FROM", 2)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (4, 4), (i, 9, 9)).save(folder / f"{i}.png")
    first = load_images(str(folder), 4)
    monkeypatch.setattr("comparison.data.folders.FileSet.pixels", None)
    assert load_images(str(folder), 4).fingerprint == first.fingerprint


class TestBatches:
    data = load_images("shapes", 8, limit=50)

    def test_epoch_shows_every_image_once(self):
        stream = BatchStream(self.data, 10, seed=0, flip=False)
        seen = torch.cat([stream.batch(step)[0] for step in range(5)])
        assert torch.equal(*(x.flatten(1).sum(1).sort().values for x in (seen, from_uint8(self.data.images))))

    def test_batch_depends_on_seed_and_step_alone(self):
        stream = BatchStream(self.data, 10, seed=3)
        later = stream.batch(7)[0]
        stream.batch(2)
        assert torch.equal(later, BatchStream(self.data, 10, seed=3).batch(7)[0])
        assert not torch.equal(later, BatchStream(self.data, 10, seed=4).batch(7)[0])

    def test_ranks_share_the_global_batch(self):
        whole, labels = BatchStream(self.data, 10, seed=1).batch(4)
        parts = [BatchStream(self.data, 10, seed=1, rank=r, world_size=2).batch(4) for r in range(2)]
        assert torch.equal(torch.cat([p[0] for p in parts]), whole)
        assert torch.equal(torch.cat([p[1] for p in parts]), labels)

    def test_half_of_the_images_are_mirrored(self):
        plain = BatchStream(self.data, 50, seed=1, flip=False).batch(0)[0]
        mirrored = BatchStream(self.data, 50, seed=1).batch(0)[0]
        same = (plain == mirrored).flatten(1).all(1)
        assert torch.equal(mirrored[~same], plain[~same].flip(-1))
        assert 15 <= int(same.sum()) <= 35

    def test_too_few_images_are_one_sentence(self):
        with pytest.raises(UserError, match="--batch_size 64: shapes holds only 50 images"):
            BatchStream(self.data, 64, seed=0)
