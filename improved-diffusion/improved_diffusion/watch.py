"""One process's failure ends all: a line of TCP from each process to the first, beside torch.distributed.

A collective call waits for ever for a process that has failed, and not every launcher ends the others. Here the
first process of a job grants one of those that fail the right to tell its error, and lets all the others go. A
connection that ends without a goodbye means that its process is dead.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE = 4.0  # seconds that the failing process has to tell its error
GRACE = 1.0  # seconds in which a launcher that ends the whole job would end this process too

_kept: list[socket.socket] = []


def leave(status: int) -> None:
    """End this process at once: its main thread may wait in a collective call."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def fails_first() -> bool:
    """Tell whether this is the first process of its launcher on this machine to ask, for those not yet connected.

    The answer holds while the first one lives. Only Linux has names that vanish with their process; elsewhere each
    process takes itself for the first.
    """
    if sys.platform != "linux":
        return True
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0improved-diffusion-{os.getuid()}-{os.getppid()}")
    except OSError:
        return False
    _kept.append(name)
    return True


def local_names() -> list[str]:
    """Return names and addresses by which other machines may know this one, the likeliest first."""
    names = [socket.gethostname(), socket.getfqdn()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing: asks which address faces outward
        names.insert(0, probe.getsockname()[0])
    return list(dict.fromkeys(names))


class Watch:
    """What both ends share: the first failure, and who may tell it.

    Args:
        rank: of this process.
        end: called in a thread with the exit status when another process has failed.
    """

    def __init__(self, rank: int, end: Callable[[int], None] = leave) -> None:
        self.rank = rank
        self._end = end
        self._lock = threading.Lock()
        self._status: int | None = None  # of the job's first failure
        self._left = False

    def claim(self, status: int) -> bool:
        """Say that this process fails; return whether its error is the job's first, which it shall tell and leave."""
        raise NotImplementedError

    def goodbye(self) -> None:
        """Leave without a failure."""
        raise NotImplementedError

    def _tell_death(self, rank: int, host: str) -> None:
        where = f" on {host}" if host else ""
        print(
            f"{Path(sys.argv[0]).name}: error: process {rank}{where} ended without a message, perhaps killed for lack "
            "of memory",
            file=sys.__stderr__,
            flush=True,
        )


class Hub(Watch):
    """The first process's end, to which the others connect.

    Args:
        host: address to listen at; '' for all of this machine.
    """

    def __init__(self, host: str, end: Callable[[int], None] = leave) -> None:
        super().__init__(0, end)
        self._server = socket.create_server((host, 0))
        self.port: int = self._server.getsockname()[1]
        self._links: dict[int, socket.socket] = {}
        self._gone = threading.Condition(self._lock)
        threading.Thread(target=self._accept, daemon=True).start()

    def claim(self, status: int) -> bool:
        return self._fail(0, status)

    def goodbye(self) -> None:
        with self._lock:
            self._left = True
            for link in self._links.values():
                _send(link, {"bye": True})
        self._server.close()

    def _fail(self, rank: int, status: int) -> bool:
        with self._lock:
            if self._status is not None or self._left:
                return False
            self._status = status
            for other, link in self._links.items():
                _send(link, {"granted": True} if other == rank else {"failing": status})
            return True

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(_keep_alive(link),), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        messages = _receive(link)
        hello = next(messages, None)
        if not hello or "rank" not in hello:
            link.close()
            return
        rank, host = hello["rank"], hello["host"]
        with self._lock:
            self._links[rank] = link
            if self._status is not None:
                _send(link, {"failing": self._status})
        granted = False
        for message in messages:
            if "bye" in message:
                with self._lock:
                    self._links.pop(rank, None)
                return
            if "failed" in message:
                granted = self._fail(rank, message["failed"])
                if granted:
                    threading.Timer(PATIENCE, self._end, (message["failed"],)).start()
        with self._lock:
            self._links.pop(rank, None)
            left = self._left
        if granted:
            self._end(self._status or 1)
        elif not left and self._fail(rank, 1):
            time.sleep(GRACE)
            self._tell_death(rank, host)
            self._end(1)


class Spoke(Watch):
    """Another process's end.

    Args:
        rank: of this process.
        link: connected to the hub.
    """

    def __init__(self, rank: int, link: socket.socket, end: Callable[[int], None] = leave) -> None:
        super().__init__(rank, end)
        self._link = link
        self._answer = threading.Event()
        self._granted = False
        _send(link, {"rank": rank, "host": socket.gethostname()})
        threading.Thread(target=self._listen, daemon=True).start()

    def claim(self, status: int) -> bool:
        if self._status is None:
            _send(self._link, {"failed": status})
            self._answer.wait(PATIENCE)
        return self._granted or self._status is None

    def goodbye(self) -> None:
        self._left = True
        _send(self._link, {"bye": True})

    def _listen(self) -> None:
        for message in _receive(self._link):
            if "bye" in message:
                return
            if "granted" in message:
                self._granted = True
                self._answer.set()
            elif "failing" in message:
                self._status = message["failing"]
                self._answer.set()
                threading.Timer(PATIENCE + GRACE, self._end, (self._status,)).start()
        if self._left or self._granted:
            return
        if self._status is None:
            self._status = 1
            self._answer.set()
            time.sleep(GRACE)
            if self.rank == 1:
                self._tell_death(0, "")
        self._end(self._status)


def connect(hosts: list[str], port: int, rank: int, end: Callable[[int], None] = leave) -> Spoke | None:
    """Connect to the hub at the first of its names that answers; None where none does."""
    for host in hosts:
        try:
            link = socket.create_connection((host, port), timeout=5)
        except OSError:
            continue
        link.settimeout(None)
        return Spoke(rank, _keep_alive(link), end)
    return None


def _keep_alive(link: socket.socket) -> socket.socket:
    """Notice within ten seconds that the other machine is gone."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _send(link: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the reader of that connection notices
        link.sendall(json.dumps(message).encode() + b"\n")


def _receive(link: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield messages until the connection ends."""
    try:
        with link.makefile("rb") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError):
        return
