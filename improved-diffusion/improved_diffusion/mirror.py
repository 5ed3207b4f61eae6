"""A folder in cloud storage and its copy here, where a run works.

A run reads and appends files all the time, which cloud storage does not offer: it works in the copy, and what has
changed is sent now and then. What both sides looked like when they last agreed is kept in the copy, in
`.mirror.json`; so a copy that was left behind is brought up to date, and changes on both sides are not mixed.
"""

import json
import os
import re

from . import blob

RECORD = ".mirror.json"
MARKER = re.compile(r"opt\d+\.pt")  # makes the checkpoint whose last file it is count

Stat = tuple[int, int]  # bytes, nanoseconds


class Mirror:
    """The local copy of a remote folder.

    Args:
        remote: the folder, by a remote path.
        local: where the copy lies; made where it is not there.

    Raises:
        ValueError, ImportError: see `blob.open_file`.
    """

    def __init__(self, remote: str, local: str) -> None:
        self.remote, self.local = remote.rstrip("/"), local
        blob.make_dirs(local)
        self._record: dict[str, tuple[Stat, Stat]] = {}  # name -> here, there
        path = os.path.join(local, RECORD)
        if os.path.exists(path):
            with blob.open_file(path) as file:
                saved = json.load(file)
            if saved["remote"] != self.remote:
                raise ValueError(f"{local}: the copy of {saved['remote']}, not of {self.remote}")
            self._record = {name: (tuple(here), tuple(there)) for name, (here, there) in saved["files"].items()}

    def download(self) -> int:
        """Fetch what the remote folder holds and the copy lacks, or holds as it was before; return how many files.

        Raises:
            OSError: a file has changed on both sides since they last agreed, or cannot be fetched.
        """
        here, there = self._find(self.local), self._find(self.remote)
        wanted = [name for name, stat in there.items() if not self._agreed(name, 1, stat)]
        for name in wanted:
            if name in here and not self._agreed(name, 0, here[name]):
                raise OSError(
                    f"{self.remote}/{name}: changed there and in {self.local} since they last agreed; "
                    "delete or rename one of the two folders"
                )
        for name in sorted(wanted, key=_order):
            blob.copy(blob.join(self.remote, name), os.path.join(self.local, name))
            self._note(name, self._find(self.local)[name], there[name])
        for name in self._record.keys() - there.keys():  # deleted there: to be sent again
            del self._record[name]
        return len(wanted)

    def upload(self) -> int:
        """Send what has changed, a checkpoint's last file last, and delete there what was deleted here.

        Returns:
            How many files were sent.

        Raises:
            OSError: the storage cannot be written.
        """
        here = self._find(self.local)
        changed = sorted((name for name, stat in here.items() if not self._agreed(name, 0, stat)), key=_order)
        for name in changed:
            blob.copy(os.path.join(self.local, name), blob.join(self.remote, name))
        for name in sorted(self._record.keys() - here.keys(), key=_order, reverse=True):
            blob.remove(blob.join(self.remote, name))
            del self._record[name]
        if changed:
            there = self._find(self.remote)
            for name in changed:
                self._record[name] = (here[name], there[name])
        self._save()
        return len(changed)

    def _find(self, folder: str) -> dict[str, Stat]:
        """Return the files below a folder by their names relative to it."""
        if blob.is_remote(folder) and not blob.isdir(folder):
            return {}
        return {path[len(folder) + 1 :]: stat for path, stat in blob.find_files(folder).items()}

    def _agreed(self, name: str, side: int, stat: Stat) -> bool:
        return name in self._record and self._record[name][side] == stat

    def _note(self, name: str, here: Stat, there: Stat) -> None:
        self._record[name] = (here, there)
        self._save()

    def _save(self) -> None:
        with blob.open_file(os.path.join(self.local, RECORD), "w") as file:
            json.dump({"remote": self.remote, "files": self._record}, file)


def _order(name: str) -> tuple[bool, str]:
    return bool(MARKER.fullmatch(os.path.basename(name))), name
