"""Which pictures a data source means: a known name or a path. Standard library only, so that it answers at once."""

import importlib.util
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from comparison.cli import UserError, data_root

SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SHAPES_MODES = (10, 100, 200, 1000)  # the data set `shapes:N`; plain `shapes` has 200
NAMES = ("shapes", "cifar10", "stackmnist", "lsun", "celeba_256")  # shapes:N, lsun:CATEGORY too
KINDS = f"{', '.join(NAMES)}, a folder of images, an .npz or a .zip file"  # for --help
CIFAR_BATCHES = "cifar-10-batches-py"
MNIST_FILES = {  # images and labels of each split, as they are published, or .gz
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
LSUN_FIRST = 120_000  # pictures of church_outdoor that `lsun` means, as Xiao et al. 2022 train on


@dataclass(frozen=True)
class Place:
    """Where pictures lie: a folder, a .zip file or an LMDB database, of which only the `first` ones may be meant."""

    path: Path
    first: int | None = None


def find_images(folder: Path) -> Iterator[Path]:
    """Yield the image files below `folder`, in no fixed order, hidden files and folders left out."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def zip_images(path: Path) -> list[str]:
    """Return the names of the images in a .zip file, sorted, hidden ones left out.

    Raises:
        UserError: not a .zip file.
    """
    seen = [PurePosixPath(name) for name in _zip_names(path)]
    kept = [
        p for p in seen if p.suffix.lower() in SUFFIXES and not any(part.startswith((".", "__")) for part in p.parts)
    ]
    return sorted(str(p) for p in kept)


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception as error:  # zipfile raises ValueError and others beside BadZipFile on a damaged one
        kind = "an .npz" if path.suffix == ".npz" else "a .zip"
        raise UserError(f"{path}: not readable as {kind} file ({error})") from None


def shapes_modes(source: str, flag: str = "data source") -> int | None:
    """Return the number of modes that `shapes` or `shapes:N` asks for, None for any other source.

    Raises:
        UserError: it has no such number of modes; names `flag`.
    """
    name, _, modes = source.partition(":")
    if name != "shapes" or Path(source).exists():
        return None
    if not modes:
        return 200
    if modes not in {str(m) for m in SHAPES_MODES}:
        raise UserError(f"{flag} {source}: shapes comes with {', '.join(map(str, SHAPES_MODES))} modes")
    return int(modes)


def is_name(source: str) -> bool:
    """Tell whether a source is a known name and no path; a folder of such a name is written ./name."""
    return source in NAMES[1:] or source.startswith("lsun:") or shapes_modes(source) is not None


def is_cifar_batches(folder: Path) -> bool:
    """Tell whether `folder` holds the Python batches of CIFAR-10."""
    return (folder / "data_batch_1").is_file()


def is_database(folder: Path) -> bool:
    """Tell whether `folder` holds an LMDB database."""
    return (folder / "data.mdb").is_file()


def stored_images(source: str, split: str = "train", flag: str = "data source") -> Place | None:
    """Return where the pictures of a source lie as files or in a database, None for all other kinds of source.

    Raises:
        UserError: a known name whose pictures are not below the data root; says what goes where.
    """
    if source.partition(":")[0] == "lsun":
        return _lsun(source, split, flag)
    if source == "celeba_256":
        return _celeba(split, flag)
    path = Path(source)
    if is_name(source) or is_cifar_batches(path) or (path.is_file() and path.suffix != ".zip"):
        return None
    return Place(path)


def _lsun(source: str, split: str, flag: str) -> Place:
    category = source.partition(":")[2] or "church_outdoor"
    if not re.fullmatch(r"[a-z_]+", category):
        raise UserError(f"{flag} {source}: a category of LSUN is written like lsun:bedroom")
    folder = data_root() / "lsun"
    name = f"{category}_{'train' if split == 'train' else 'val'}_lmdb"
    path = folder / name
    if not is_database(path):
        raise UserError(
            f"{flag} {source}: {path / 'data.mdb'} is not there; download http://dl.yf.io/lsun/scenes/{name}.zip and "
            f"unpack it in {folder}"
        )
    return Place(path, LSUN_FIRST if source == "lsun" and split == "train" else None)


def _celeba(split: str, flag: str) -> Place:
    root = data_root()
    folder = root / "celeba_256"
    name = "train.lmdb" if split == "train" else "validation.lmdb"
    for path in (folder / name, root / "celeba-lmdb" / name, folder):
        if is_database(path):
            return Place(path)
    if next(find_images(folder), None) is None:
        raise UserError(
            f"{flag} celeba_256: no pictures in {folder}; put the 256-pixel images of CelebA-HQ there, or "
            f"NVAE's preparation of them as {root / 'celeba-lmdb' / name}"
        )
    return Place(folder)


def check_source(source: str, flag: str = "data source") -> None:
    """Refuse a source that cannot be loaded: an unknown name, a missing folder, a folder without images.

    Looks for the first image only, so it takes no time on large folders.

    Raises:
        UserError: one sentence that names `flag` and what is accepted.
    """
    if not source:
        raise UserError(f"{flag}: must name a data source, not be empty")
    if shapes_modes(source, flag):
        return
    path = Path(source)
    if (is_name(source) or is_database(path)) and (place := stored_images(source, flag=flag)):
        if is_database(place.path) and importlib.util.find_spec("lmdb") is None:
            raise UserError(f"{flag} {source}: {place.path} is an LMDB database; to read it: pip install lmdb")
        return
    if is_name(source):
        return
    if path.suffix in (".npz", ".zip") and path.is_file():
        try:
            if path.suffix == ".npz" and "arr_0.npy" not in _zip_names(path):
                raise UserError(f"{path}: holds no arr_0 with images")
            if path.suffix == ".zip" and not zip_images(path):
                raise UserError(f"{path}: no image found in this .zip file")
        except UserError as error:
            raise UserError(f"{flag} {error}") from None
        return
    if not path.exists():
        raise UserError(f"{flag} {source}: neither {', '.join(NAMES)} nor an existing folder, .npz or .zip file")
    if not path.is_dir():
        raise UserError(f"{flag} {source}: not a folder of images and not an .npz or .zip file")
    if not is_cifar_batches(path) and next(find_images(path), None) is None:
        raise UserError(f"{flag} {source}: no image found in this folder")


def source_name(source: str) -> str:
    """Return a short name for run folders: the source's name, or its last path component."""
    path = Path(source)
    if is_name(source):
        return source.replace(":", "-")
    name = path.resolve().stem
    return f"{path.resolve().parent.name}-{name}" if name in ("train", "test", "val", "images") else name


def mnist_folder() -> Path:
    """Return where torchvision keeps MNIST below the data root."""
    return data_root() / "MNIST" / "raw"


def mnist_file(name: str) -> Path | None:
    """Return one of MNIST_FILES as it lies there, plain or .gz, or None."""
    places = (mnist_folder() / name, mnist_folder() / f"{name}.gz")
    return next((path for path in places if path.is_file()), None)
