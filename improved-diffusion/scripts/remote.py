"""Remote paths in the scripts' flags: gs://, az:// and Azure's https:// by the package blobfile.

Images are downloaded once below <data root>/cache. A remote run, and the folder of a remote model, has a copy below
<data root>/mirror: the script works there, and what it writes is sent after each checkpoint and at the end. What the
script deletes is deleted there too, but nothing that is missing in the copy for another reason.
"""

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from comparison.cli import UserError, data_root
from improved_diffusion import blob
from improved_diffusion.mirror import Mirror, remote_of, watch_deletions
from run_files import my_place

T = TypeVar("T")

ARCHIVES = (".npz", ".zip")


def path_or_url(text: str) -> Path | str:
    """Read a flag: a local path, or the text of a remote one."""
    return text if blob.is_remote(text) else Path(text)


def with_local_paths(main: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Make a script's main, which takes local paths, take remote ones.

    Remote --data_dir, --base_samples, --model_path and --resume_checkpoint are downloaded where that has not been
    done; --run_dir, --out_dir and OPENAI_LOGDIR become their copies, which are sent at the end, and so does the folder
    of a remote model where nothing else says where to write.
    """

    @functools.wraps(main)
    def wrapped(args: argparse.Namespace) -> int:
        args = argparse.Namespace(**vars(args))
        for flag in ("data_dir", "base_samples", "model_path", "resume_checkpoint"):
            value = str(getattr(args, flag, None) or "")
            if not blob.is_remote(value):
                continue
            if flag in ("data_dir", "base_samples"):
                setattr(args, flag, _told(f"--{flag}", fetch_images, value))
            else:
                rates = args.ema_rate if flag == "resume_checkpoint" else ""
                setattr(args, flag, _told(f"--{flag}", fetch_checkpoint, value, rates))
        written = _output(args)
        if written:
            watch_deletions(str(written))
        try:
            status = main(args)
        except BaseException:
            if written:
                send(written)
            raise
        if written:
            _told("the results are kept but not sent:", _send, written)
        return status

    return wrapped


def _output(args: argparse.Namespace) -> Path | None:
    """Replace the remote folder that a script writes into by its copy; return that, None for a local folder."""
    flag, bring = ("run_dir", fetch_run) if hasattr(args, "run_dir") else ("out_dir", copy_of)
    given = str(getattr(args, flag) or "")
    if blob.is_remote(given):
        setattr(args, flag, _told(f"--{flag}", bring, given))
        return getattr(args, flag)
    variable = os.environ.get("OPENAI_LOGDIR") or ""
    if not given and blob.is_remote(variable):
        folder = _told("OPENAI_LOGDIR", bring, variable)
        os.environ["OPENAI_LOGDIR"] = str(folder)
        return folder
    if not given and not variable and flag == "out_dir" and remote_of(str(args.model_path.parent)):
        return args.model_path.parent
    return None


def send(folder: Path) -> None:
    """Send what has changed in the copy of a remote folder; any other folder is left alone.

    A failure is a warning: the files are kept, and the next call sends them.
    """
    try:
        _send(folder)
    except (OSError, ImportError, ValueError) as error:
        print(f"warning: not sent, the next checkpoint tries again ({error})", file=sys.stderr, flush=True)


def shown(path: str) -> str:
    """Return the remote path of what was downloaded to a local one, any other path as it is."""
    for folder in (path, os.path.dirname(path)):
        if remote := remote_of(folder):
            return remote if folder == path else blob.join(remote, os.path.basename(path))
    return path


def fetch_images(url: str) -> str:
    """Download a folder of images, or an .npz or .zip file, into the cache; return the local path."""
    if url.endswith(ARCHIVES):
        name, remote = blob.basename(url), blob.dirname(url)
        folder = _folder("cache", remote)
        _download(remote, folder, [name], needed=name, follow=True)
        return str(folder / name)
    folder = _folder("cache", url)
    _download(url, folder, needed="", follow=True)
    return str(folder)


def fetch_checkpoint(url: str, ema_rates: str = "") -> Path:
    """Download a network's file, and what lies beside it and tells of it; return the local path.

    Args:
        url: of the file.
        ema_rates: separated by commas, of the averages that are wanted with it to go on from there.
    """
    name, remote = blob.basename(url), blob.dirname(url)
    names = [name, "config.json", "progress.csv"]
    match = re.fullmatch(r"model(\d+)\.pt", name)
    if match and ema_rates:
        names += [f"ema_{rate.strip()}_{match[1]}.pt" for rate in ema_rates.split(",")] + [f"opt{match[1]}.pt"]
    folder = _folder("mirror", remote)
    _download(remote, folder, names, needed=name)
    return folder / name


def fetch_run(url: str) -> Path:
    """Bring the copy of a run up to date; return its folder."""
    folder = copy_of(url)
    _download(url.rstrip("/"), folder)
    return folder


def copy_of(url: str) -> Path:
    """Return the folder where the copy of a remote one lies; nothing is downloaded."""
    folder = _folder("mirror", url)
    with _locked(folder):
        Mirror(url, str(folder))
    return folder


def _download(
    remote: str, folder: Path, names: list[str] | None = None, *, needed: str | None = None, follow: bool = False
) -> None:
    """Download into a copy, in one process per machine while the others wait.

    Args:
        remote: the folder.
        folder: its copy.
        names: of the files; None for all.
        needed: a name that must be there, '' for any; None where none need be.
        follow: of `Mirror.download`.

    Raises:
        FileNotFoundError: what is needed is not there.
    """
    with _locked(folder):
        mirror = Mirror(remote, str(folder))
        fetched = mirror.download(names, follow=follow)
    if fetched:
        print(f"{remote}: {fetched} files downloaded to {folder}", flush=True)
    if needed is not None and not (needed in mirror.files if needed else mirror.files):
        raise FileNotFoundError(f"{blob.join(remote, needed).rstrip('/')}: no such file or folder")


def _send(folder: Path) -> None:
    if remote_of(str(folder)) and my_place().rank == 0:
        with _locked(folder):
            Mirror(None, str(folder)).upload()


def _folder(kind: str, url: str) -> Path:
    scheme, _, rest = url.rstrip("/").partition("://")
    if not rest or ".." in rest.split("/"):
        raise ValueError(f"{url}: not a remote path")
    return data_root() / kind / scheme / rest


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time into a copy."""
    import fcntl  # not on Windows, where local paths need none of this

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _told(flag: str, action: Callable[..., T], *args: object) -> T:
    try:
        return action(*args)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"{flag} {error}") from None
