"""LMDB databases as data sources: LSUN, CelebA-HQ, and any folder of one."""

import io
import multiprocessing
import shutil

import lmdb
import numpy as np
import pytest
import torch
from comparison.cli import UserError
from comparison.data import databases
from comparison.data.batches import BatchStream
from comparison.data.databases import DatabaseSet
from comparison.data.folders import FileSet
from comparison.data.images import ImageSet, load_images, open_images
from comparison.data.sources import check_source, source_name
from comparison.data.streaming import FileStream, open_stream
from PIL import Image

SIZE, COUNT = 8, 11
CHURCH = "lsun/church_outdoor_train_lmdb"


def picture(number, kind="WEBP", size=(24, 16)):
    image = Image.new("RGB", size, "white")
    image.paste((20 * number, number, 255 - number), (4, 0, 20, 16))
    if kind == "raw":
        return image.tobytes()
    file = io.BytesIO()
    image.save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def write_database(path, values):
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Make a data root with eleven pictures of churches, put in another order than that of their keys."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    write_database(tmp_path / CHURCH, {f"{7 * i % COUNT:040x}": picture(7 * i % COUNT) for i in range(COUNT)})
    return tmp_path


def workers():
    return [child for child in multiprocessing.active_children() if child.is_alive()]


def test_lsun_is_read_in_the_order_of_its_keys_cropped_to_the_centre(root):
    data = load_images("lsun", SIZE)
    assert (data.name, data.labels, data.class_names) == ("lsun", None, ())
    assert data.images.shape == (COUNT, 3, SIZE, SIZE)
    for number, image in enumerate(data.images):
        colour = torch.tensor([20 * number, number, 255 - number], dtype=torch.uint8)
        assert torch.equal(image, colour[:, None, None].expand_as(image))  # no white side


def test_lsun_alone_is_the_published_part_of_the_churches_and_a_category_is_whole(root, monkeypatch):
    monkeypatch.setattr("comparison.data.sources.LSUN_FIRST", 4)
    whole, part = load_images("lsun:church_outdoor", SIZE), load_images("lsun", SIZE)
    assert (len(whole), len(part)) == (COUNT, 4)
    assert torch.equal(part.images, whole.images[:4])
    assert source_name("lsun:church_outdoor") == "lsun-church_outdoor"
    assert torch.equal(load_images("lsun", SIZE, limit=2).images, whole.images[[0, 3]])
    shutil.copytree(root / CHURCH, root / "lsun/church_outdoor_val_lmdb")
    assert len(load_images("lsun", SIZE, split="test")) == COUNT


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_from_the_database_is_that_from_memory_in_workers_too(root, num_workers, monkeypatch):
    expected = BatchStream(load_images("lsun", SIZE), 4, seed=3)
    monkeypatch.setenv("DATA_MEMORY", "0.0000001")
    files = open_images("lsun", SIZE)
    assert isinstance(files, DatabaseSet)
    files.pixels(0)  # the training process has the database open when the workers begin
    with open_stream(files, 4, 3, num_workers=num_workers) as stream:
        assert isinstance(stream, FileStream)
        for step in (0, 1, 5, 2):
            assert torch.equal(stream.batch(step)[0], expected.batch(step)[0])
            assert len(workers()) == num_workers
    files.pixels(1)
    assert not workers()


def test_workers_that_do_not_inherit_the_process_read_it_too(root):
    files = DatabaseSet(root / CHURCH, SIZE, name="lsun")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(files.pixels, (5,))
    assert np.array_equal(found, files.pixels(5))


@pytest.mark.parametrize("place", ["celeba-lmdb", "celeba_256"])
@pytest.mark.parametrize("kind", ["raw", "PNG", "JPEG"])
def test_celeba_is_read_from_nvaes_databases_of_any_length(tmp_path, monkeypatch, place, kind):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    values = {str(i): picture(i, kind, (16, 16)) for i in range(5)}
    write_database(tmp_path / place / "train.lmdb", values)
    write_database(tmp_path / place / "validation.lmdb", {"0": values["3"]})
    data = load_images("celeba_256", 16)
    assert (len(data), data.name) == (5, "celeba_256")
    expected = np.asarray(Image.open(io.BytesIO(picture(3, "PNG", (16, 16))))).transpose(2, 0, 1)
    assert np.abs(data.images[3].numpy().astype(int) - expected)[..., 6:].max() < (20 if kind == "JPEG" else 1)
    assert torch.equal(load_images("celeba_256", 16, split="test").images, data.images[3:4])


def test_celeba_is_read_from_a_folder_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    (tmp_path / "celeba_256").mkdir()
    for i in range(3):
        (tmp_path / "celeba_256" / f"{i:05d}.png").write_bytes(picture(i, "PNG"))
    check_source("celeba_256")
    data = open_images("celeba_256", 16)
    assert isinstance(data, ImageSet)
    assert (len(data), data.name) == (3, "celeba_256")
    monkeypatch.setenv("DATA_MEMORY", "0")
    assert isinstance(open_images("celeba_256", 16), FileSet)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("lsun", r"--data lsun: \S+lsun/church_outdoor_train_lmdb/data.mdb is not there; download http\S+ and unpack"),
        ("lsun:bedroom", r"bedroom_train_lmdb/data.mdb is not there; download \S+bedroom_train_lmdb.zip"),
        ("lsun:../up", "lsun:../up: a category of LSUN is written like lsun:bedroom"),
        ("celeba_256", r"no pictures in \S+/celeba_256; put the 256-pixel images .*celeba-lmdb/train.lmdb"),
    ],
)
def test_missing_data_are_one_sentence_that_says_what_goes_where(tmp_path, monkeypatch, source, message):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    with pytest.raises(UserError, match=message):
        check_source(source, "--data")


def test_missing_package_is_one_sentence_at_once(root, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--data lsun: .*LMDB database; to read it: pip install lmdb"):
        check_source("lsun", "--data")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_picture_is_named_by_database_and_key(tmp_path, num_workers):
    path = write_database(tmp_path / "made", {"a": picture(1), "b": b"RIFF rubbish", "c": picture(2)})
    with (
        FileStream(DatabaseSet(path, SIZE, name="made"), 3, 0, num_workers=num_workers) as stream,
        pytest.raises(UserError, match=r"made: b: not readable as an image"),
    ):
        stream.batch(0)


def test_damaged_empty_and_truncated_databases_are_refused(root):
    path = root / CHURCH / "data.mdb"
    with pytest.raises(UserError, match="made: the database is empty"):
        DatabaseSet(write_database(root / "made", {}), SIZE, name="made")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"data.mdb is truncated, \d+ bytes of \d+"):
        load_images("lsun", SIZE)
    path.write_bytes(b"x" * 9000)
    with pytest.raises(UserError, match="not readable as an LMDB database"):
        load_images("lsun", SIZE)


def test_handle_is_opened_once_in_each_process(root):
    path, link = root / CHURCH, root / "link"
    link.symlink_to(path)
    assert databases.shared_database(path) is databases.shared_database(link)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_reads_with_its_own, (path, id(databases.shared_database(path))))


def _reads_with_its_own(path, inherited):
    database = databases.shared_database(path)
    return id(database) != inherited and database.stat()["entries"] == COUNT
