"""Which pictures a data source means: a known name or a path. Standard library only, so that it answers at once."""

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from comparison.cli import UserError, data_root

SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SHAPES_MODES = (10, 100, 200, 1000)  # the data set `shapes:N`; plain `shapes` has 200
NAMES = ("shapes", "cifar10", "stackmnist")  # `shapes` also with a number of modes
CIFAR_BATCHES = "cifar-10-batches-py"
MNIST_FILES = {  # images and labels of each split, as they are published, or .gz
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


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
    return source in NAMES[1:] or shapes_modes(source) is not None


def is_cifar_batches(folder: Path) -> bool:
    """Tell whether `folder` holds the Python batches of CIFAR-10."""
    return (folder / "data_batch_1").is_file()


def check_source(source: str, flag: str = "data source") -> None:
    """Refuse a source that cannot be loaded: an unknown name, a missing folder, a folder without images.

    Looks for the first image only, so it takes no time on large folders.

    Raises:
        UserError: one sentence that names `flag` and what is accepted.
    """
    if shapes_modes(source, flag) or is_name(source):
        return
    path = Path(source)
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


def cifar10_folder() -> Path:
    """Return where torchvision keeps CIFAR-10 below the data root."""
    return data_root() / CIFAR_BATCHES


def mnist_folder() -> Path:
    """Return where torchvision keeps MNIST below the data root."""
    return data_root() / "MNIST" / "raw"


def mnist_file(name: str) -> Path | None:
    """Return one of MNIST_FILES as it lies there, plain or .gz, or None."""
    places = (mnist_folder() / name, mnist_folder() / f"{name}.gz")
    return next((path for path in places if path.is_file()), None)
