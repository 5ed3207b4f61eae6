"""A folder in cloud storage and its copy here, where a run works.

A run reads and appends files all the time, which cloud storage does not offer: it works in the copy, and what has
changed is sent now and then. What both sides looked like when they last agreed is kept in the copy, in
`.mirror.json`; so a copy that was left behind is brought up to date, and changes on both sides are not mixed. A file
that is missing in the copy is deleted remotely only where a process that watches its deletions has deleted it.
"""

import json
import os
import re
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any

from . import blob
from .blob import Stat

RECORD = ".mirror.json"
DELETED = ".mirror-deleted.txt"  # names of files that were deleted here and are to be deleted there
MARKER = re.compile(r"opt\d+\.pt")  # makes the checkpoint whose last file it is count
CONNECTIONS = 16


class Mirror:
    """The local copy of a remote folder, or of some of its files.

    Args:
        remote: the folder, by a remote path; None for that of a copy which is there.
        local: where the copy lies; made where it is not there.

    Raises:
        ValueError: the local folder is no copy, or that of another folder.
        ImportError: see `blob.open_file`.
    """

    def __init__(self, remote: str | None, local: str) -> None:
        self._record: dict[str, tuple[Stat, Stat]] = {}  # name -> here, there
        known = remote_of(local)
        if known:
            with blob.open_file(os.path.join(local, RECORD)) as file:
                saved = json.load(file)
            self._record = {name: (tuple(here), tuple(there)) for name, (here, there) in saved["files"].items()}
        self.remote, self.local = (remote or known or "").rstrip("/"), local
        if not self.remote or (known and known != self.remote):
            raise ValueError(f"{local}: the copy of {known or 'nothing'}, not of {self.remote or 'a remote folder'}")
        blob.make_dirs(local)
        if not known:
            self._save()

    @property
    def files(self) -> set[str]:
        """Relative names of the files that both sides hold alike, as far as is known."""
        return set(self._record)

    def download(self, names: Collection[str] | None = None, *, follow: bool = False) -> int:
        """Fetch what the remote folder holds and the copy lacks, or holds as it was before.

        Args:
            names: of the files, relative, of which some may not be there; None for all, which lists the folder, but
                what waits to be deleted there.
            follow: make the copy like the remote folder, whatever was changed or added here.

        Returns:
            How many files were fetched.

        Raises:
            OSError: a file has changed on both sides since they last agreed, or cannot be fetched.
        """
        here = self._find(self.local)
        there = self._find(self.remote) if names is None else self._look_up(names)
        deleted = self._deleted()
        present = here.keys() | deleted if names is None else here.keys()
        missing = [
            name
            for name, stat in there.items()
            if not self._agreed(name, 1, stat)
            or name not in present
            or (follow and not self._agreed(name, 0, here.get(name)))
        ]
        for name in () if follow else missing:
            if name in here and not self._agreed(name, 0, here[name]):
                raise OSError(
                    f"{self.remote}/{name}: changed there and in {self.local} since they last agreed; "
                    "delete or rename one of the two folders"
                )
        self._save_deleted(deleted.difference(missing))
        self._fetch(missing, there)
        gone = self.files.union(here) if names is None else set(names)
        for name in gone - there.keys():
            self._record.pop(name, None)  # to be sent again
            if follow and name in here:
                os.unlink(os.path.join(self.local, name))
        self._save()
        return len(missing)

    def upload(self) -> int:
        """Send what has changed, a checkpoint's last file last, and delete there what `watch_deletions` saw deleted.

        Returns:
            How many files were sent.

        Raises:
            OSError: the storage cannot be written.
        """
        here = self._find(self.local)
        changed = sorted((name for name, stat in here.items() if not self._agreed(name, 0, stat)), key=_order)
        for name in changed:
            blob.copy(os.path.join(self.local, name), blob.join(self.remote, name))
        deleted = self._deleted().intersection(self.files).difference(here)
        there = self._look_up(deleted)
        for name in sorted(deleted, key=_order, reverse=True):
            if name in there and self._agreed(name, 1, there[name]):
                blob.remove(blob.join(self.remote, name))
            del self._record[name]
        there = self._find(self.remote) if changed else {}
        for name in changed:
            self._record.pop(name, None)  # to be sent again, where somebody has deleted it there
            if name in there:
                self._record[name] = (here[name], there[name])
        self._save()
        self._save_deleted(set())
        return len(changed)

    def _fetch(self, names: Sequence[str], there: dict[str, Stat]) -> None:
        """Download files, many at a time, a checkpoint's last file last; remember those that came before an error."""

        def fetch(name: str) -> str:
            path = os.path.join(self.local, name)
            blob.copy(blob.join(self.remote, name), path)
            stat = blob.stat(path)
            if stat[0] != there[name][0]:
                raise OSError(f"{self.remote}/{name}: {stat[0]} bytes came, {there[name][0]} were announced")
            self._record[name] = (stat, there[name])
            return name

        last = [name for name in names if _order(name)[0]]
        try:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                list(pool.map(fetch, [name for name in names if name not in last]))
                list(pool.map(fetch, last))
        finally:
            self._save()

    def _find(self, folder: str) -> dict[str, Stat]:
        """Return the files below a folder by their names relative to it."""
        if blob.is_remote(folder) and not blob.isdir(folder):
            return {}
        return {path[len(folder) + 1 :]: stat for path, stat in blob.find_files(folder).items()}

    def _look_up(self, names: Collection[str]) -> dict[str, Stat]:
        """Return those of some remote files that are there."""
        found = {}
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = blob.stat(blob.join(self.remote, name))
        return found

    def _agreed(self, name: str, side: int, stat: Stat | None) -> bool:
        return name in self._record and self._record[name][side] == stat

    def _save(self) -> None:
        with blob.open_file(os.path.join(self.local, RECORD), "w") as file:
            json.dump({"remote": self.remote, "files": dict(self._record)}, file)

    def _deleted(self) -> set[str]:
        with suppress(FileNotFoundError), blob.open_file(os.path.join(self.local, DELETED)) as file:
            return set(file.read().splitlines())
        return set()

    def _save_deleted(self, names: set[str]) -> None:
        path = os.path.join(self.local, DELETED)
        if not names:
            blob.remove(path)
        elif names != self._deleted():
            with blob.open_file(path, "w") as file:
                file.writelines(f"{name}\n" for name in sorted(names))


@cache
def watch_deletions(local: str) -> None:
    """From now on write down which files of a copy this process deletes, for `Mirror.upload` to delete them there."""
    folder = os.path.join(os.path.abspath(local), "")

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event != "os.remove" or args[1] != -1:  # by a path, not below an open folder
            return
        path = os.path.abspath(os.fsdecode(args[0]))
        if path.startswith(folder) and not os.path.basename(path).startswith("."):
            with suppress(OSError), blob.open_file(folder + DELETED, "a") as file:
                file.write(f"{path[len(folder) :]}\n")

    sys.addaudithook(note)


def remote_of(local: str) -> str | None:
    """Return the remote folder that a local one is the copy of, None where it is no copy."""
    path = os.path.join(local, RECORD)
    if not os.path.exists(path):
        return None
    with blob.open_file(path) as file:
        return json.load(file)["remote"]


def _order(name: str) -> tuple[bool, str]:
    return bool(MARKER.fullmatch(os.path.basename(name))), name
