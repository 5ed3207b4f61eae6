"""datasets/lsun_bedroom.py on a small database."""

import io
import sys
from itertools import count

import lmdb
import numpy as np
import pytest
from comparison.cli import UserError
from diffusion_testing import call_script
from PIL import Image

LSUN = "datasets/lsun_bedroom.py"


def write_database(path, pictures):
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as transaction:
        for key, value in pictures.items():
            transaction.put(key.encode(), value)
    return path


def picture(colour, size=(48, 32)):
    """Return a picture in WebP whose left and right quarters are white."""
    image = Image.new("RGB", size, "white")
    image.paste(colour, (size[0] // 6, 0, size[0] - size[0] // 6, size[1]))
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.fixture
def database(tmp_path):
    """Five pictures, put in another order than that of their keys."""
    order = (3, 0, 4, 1, 2)
    return write_database(tmp_path / "lmdb", {f"key{i}": picture((40 * i, 0, 9)) for i in order})


def test_pictures_are_written_in_the_order_of_their_keys_cropped_to_the_centre(database, tmp_path, capsys):
    for sentence in ("5 images", "5 images exist already"):
        assert call_script(LSUN, database, tmp_path / "out", "--image_size 16 --prefix bed") == 0
        assert sentence in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"bed_{i:07d}.png" for i in range(5)]
    for i, name in enumerate(names):
        pixels = np.asarray(Image.open(tmp_path / "out" / name))
        assert pixels.shape == (16, 16, 3)
        assert (pixels == [40 * i, 0, 9]).all()  # the white sides are cropped
    with pytest.raises(UserError, match="holds 5 images, not 3"):
        call_script(LSUN, database, tmp_path / "out", "--num_images 3")


def test_call_that_was_cut_short_is_continued(database, tmp_path, monkeypatch):
    from comparison.data import folders

    fit, decoded = folders.fit, count()

    def cut(image, size):
        if next(decoded) == 3:
            raise KeyboardInterrupt
        return fit(image, size)

    monkeypatch.setattr(folders, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        call_script(LSUN, database, tmp_path / "out", "--image-size 8")
    assert not (tmp_path / "out").exists()
    written = len(list((tmp_path / "out.partial").glob("bedroom_*.png")))
    assert 3 <= written <= 4
    begun = next(decoded)
    assert call_script(LSUN, database, tmp_path / "out", "--image-size 8") == 0
    assert next(decoded) - begun - 1 == 5 - written
    assert len(list((tmp_path / "out").iterdir())) == 5
    assert not (tmp_path / "out.partial").exists()


def test_damaged_picture_and_wrong_paths_are_named(tmp_path):
    broken = write_database(tmp_path / "lmdb", {"good": picture("red"), "poor": b"no picture"})
    with pytest.raises(UserError, match="poor: not readable as an image"):
        call_script(LSUN, broken, tmp_path / "out", "--image_size 8")
    assert not (tmp_path / "out").exists()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "data.mdb").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not readable as an LMDB database"):
        call_script(LSUN, tmp_path / "damaged", tmp_path / "out")
    for prefix in ("bed/room", "../bed", ".bed"):
        with pytest.raises(UserError, match=r"--prefix .*: must be the beginning of a file name"):
            call_script(LSUN, broken, tmp_path / "out", f"--prefix {prefix}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(UserError, match="good: not readable as an image"):
            call_script(LSUN, broken, tmp_path / "bomb", "--image_size 8 --num_images 1")


def test_package_is_named_where_it_is_missing(database, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match="pip install lmdb"):
        call_script(LSUN, database, tmp_path / "out")
