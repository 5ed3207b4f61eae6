"""Batches from a folder of images: order, classes, sizes, errors."""

import itertools

import numpy as np
import pytest
import torch
from improved_diffusion import image_datasets
from improved_diffusion.image_datasets import ImageDataset, load_data
from PIL import Image


def write(folder, names, size=(8, 8)):
    """Write images whose grey level is 10 times their number, and return the folder."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * i,) * 3).save(folder / name)
    return str(folder)


def numbers(images):
    return [round((float(image.mean()) + 1) * 127.5 / 10) for image in images]


def test_batches_never_end_and_have_the_documented_form(tmp_path):
    folder = write(tmp_path, [f"cat_{i}.png" for i in range(5)])
    data = load_data(data_dir=folder, batch_size=2, image_size=8)
    for images, cond in itertools.islice(data, 7):
        assert images.shape == (2, 3, 8, 8)
        assert images.dtype == torch.float32
        assert images.min() >= -1
        assert cond == {}


def test_classes_are_the_sorted_prefixes_whatever_the_folder(tmp_path):
    folder = write(tmp_path, ["a/dog_0.png", "a/cat_1.png", "b/c/dog_2.png", "b/ape_3.png"])
    data = load_data(data_dir=folder, batch_size=4, image_size=8, class_cond=True, deterministic=True, num_workers=0)
    images, cond = next(data)
    assert numbers(images) == [1, 0, 3, 2]  # the order of the paths
    assert cond["y"].tolist() == [1, 2, 0, 2]
    assert cond["y"].dtype == torch.int64
    assert numbers(next(data)[0]) == [1, 0, 3, 2]


def test_processes_share_every_epoch_and_see_all_images_in_time(tmp_path, monkeypatch):
    folder = write(tmp_path, [f"{i:02d}.png" for i in range(12)])
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(image_datasets, "get_world_size", lambda: 2)
        monkeypatch.setattr(image_datasets, "get_rank", lambda rank=rank: rank)
        data = load_data(data_dir=folder, batch_size=3, image_size=8, seed=0)  # which a broadcast gives them else
        seen.append([numbers(next(data)[0]) + numbers(next(data)[0]) for _ in range(8)])
    for first, second in zip(*seen, strict=True):
        assert sorted(first + second) == list(range(12))
    assert seen[0][0] != seen[0][1]
    assert {number for epoch in seen[0] for number in epoch} == set(range(12))


def test_large_images_are_halved_by_area_and_cropped_to_the_centre(tmp_path):
    stripes = np.zeros((32, 64, 3), np.uint8)
    stripes[::2] = 255  # halving by area makes them grey; picking pixels would not
    stripes[:, :16] = stripes[:, 48:] = 255
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    image, cond = ImageDataset(8, [str(tmp_path / "wide.png")])[0]
    assert image.shape == (3, 8, 8)
    np.testing.assert_allclose(image, 0, atol=1 / 127.5)
    assert cond == {}


def test_data_set_takes_every_nth_image_of_a_shard(tmp_path):
    folder = write(tmp_path, [f"{i}.png" for i in range(5)])
    paths = image_datasets.list_images(folder)
    part = ImageDataset(8, paths, classes=[0, 1, 2, 3, 4], shard=1, num_shards=2)
    assert [int(part[i][1]["y"]) for i in range(len(part))] == [1, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_dir": ""}, "must be a folder of images"),
        ({"data_dir": "no/such"}, "data_dir no/such: no such folder"),
        ({"data_dir": "empty"}, "no image found"),
        ({"batch_size": 4}, "3 images are too few for batches of 4; lower batch_size"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"class_cond": True}, "2.png: class_cond takes the class from the name before the first _"),
    ],
)
def test_mistakes_are_told_at_the_call(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set", ["a_0.png", "a_1.png", "2.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        load_data(**{"data_dir": "set", "batch_size": 2, "image_size": 8, **changes})


def test_damaged_image_is_named(tmp_path):
    folder = write(tmp_path, ["a.png", "b.png"])
    (tmp_path / "b.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"b\.png: not readable as an image"):
        next(load_data(data_dir=folder, batch_size=2, image_size=8, num_workers=0))


def test_a_restarted_job_begins_with_other_images(tmp_path):
    folder = write(tmp_path, [f"cat_{i:02d}.png" for i in range(24)])

    def order(**options):
        return numbers(next(load_data(data_dir=folder, batch_size=24, image_size=8, **options))[0])

    assert order() != order()
    assert sorted(order()) == list(range(24))
    assert order(seed=3) == order(seed=3)
