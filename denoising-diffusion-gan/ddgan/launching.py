"""Starting the processes of a job, and ending it: one's failure ends all, and its own error is told once.

Ctrl-C or SIGTERM goes to all of them, which then agree on the update after which they save and leave.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from comparison import cli
from comparison.cli import UserError

from ddgan.distributed import Place, fails_first

GRACE = 2.0  # seconds from the first failure in which the others may end by themselves, and tell theirs
PATIENCE = 4.0  # seconds in which torchrun ends a process whose error follows from another's
INTERRUPTED = 130
LONGEST_TEXT = 15_000  # characters of an error, 4 bytes at most: a pipe takes in 64 KiB without a reader

Worker = Callable[..., int]


class Ending(NamedTuple):
    """How a process ended.

    Attributes:
        when: time.monotonic(), the same clock for all processes of a machine.
        rank: of the process.
        status: its exit status, negative for a signal.
        text: what to tell the user; '' for nothing.
        by_user: the error is the user's to mend.
    """

    when: float
    rank: int
    status: int
    text: str = ""
    by_user: bool = False


def launch(worker: Worker, place: Place, *arguments: Any) -> int:
    """Run worker(place, *arguments) in every process of the job and return its exit status.

    A single process runs it here. Of several, all of this machine are started here, unless torchrun started them.

    Args:
        worker: a function of a module, so that new processes find it.
        place: of this process, from `find_place`.
        arguments: picklable.

    Raises:
        UserError: one of the processes raised it.
    """
    if place.world_size == 1:
        return worker(place, *arguments)
    if place.by_torchrun:
        return _follow_torchrun(worker, place, arguments)
    if place.port == 0:
        with socket.socket() as probe:
            probe.bind((place.address, 0))
            place = replace(place, port=probe.getsockname()[1])
    endings, stopped = _run_all(worker, place, arguments)
    return _conclude(endings, stopped)


def run(main: Callable[[], int]) -> NoReturn:
    """Call `main` and leave with its status, as `comparison.cli.run`; torchrun's processes on a machine speak once."""
    silent = "WORLD_SIZE" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"
    with open(os.devnull, "w") as nowhere, ExitStack() as stack:
        if silent:
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        try:
            cli.run(main)
        except SystemExit as leaving:
            if silent and leaving.code:
                time.sleep(GRACE)  # the one that speaks fails as well, and torchrun ends all with the first that leaves
            raise
    raise AssertionError("cli.run leaves by SystemExit")


def _run_all(worker: Worker, place: Place, arguments: tuple[Any, ...]) -> tuple[list[Ending], bool]:
    """Start this machine's processes and wait until all have ended; also tell whether the user stopped them."""
    context = multiprocessing.get_context("spawn")
    team: list[Any] = []
    pipes: list[Connection] = []
    stops: list[int] = []

    def forward(number: int, frame: Any) -> None:
        stops.append(number)
        for process in team:
            process.terminate()

    with _handled(forward), _no_orphans(team):
        # A terminal sends Ctrl-C to all its processes: the new ones are born deaf to it, and then leave the terminal.
        with _handled(signal.SIG_IGN, [signal.SIGINT]):
            for local_rank in range(place.local_world_size):
                own = replace(place, rank=place.rank + local_rank, local_rank=local_rank)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_enter, args=(sender, worker, own, arguments))
                process.start()
                sender.close()
                team.append(process)
                pipes.append(receiver)
        if stops:
            forward(stops[-1], None)
        return _wait_for_all(team, pipes, place.rank), bool(stops)


@contextmanager
def _no_orphans(team: list[Any]) -> Iterator[None]:
    """End what is left of the processes with the block: Python would wait for them where one more cannot start."""
    try:
        yield
    finally:
        for process in team:
            process.kill()
        for process in team:
            process.join()


def _wait_for_all(team: list[Any], pipes: list[Connection], first_rank: int) -> list[Ending]:
    endings: list[Ending] = []
    deadline: float | None = None
    left = dict(enumerate(team))
    while left:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = wait([process.sentinel for process in left.values()], timeout)
        if not ready:
            break  # what is left is about to be killed
        for number, process in [(n, p) for n, p in left.items() if p.sentinel in ready]:
            process.join()
            endings.append(_ending(first_rank + number, process.exitcode, pipes[number]))
            del left[number]
        if deadline is None and any(ending.status not in (0, INTERRUPTED) for ending in endings):
            deadline = time.monotonic() + GRACE
    return endings


def _ending(rank: int, exitcode: int, pipe: Connection) -> Ending:
    try:
        if pipe.poll():
            return pipe.recv()
    except (EOFError, OSError):
        pass
    text = ""
    if exitcode < 0:
        name = signal.Signals(-exitcode).name
        text = f"process {rank} was killed ({name}), perhaps for lack of memory"
    elif exitcode:
        text = f"process {rank} ended with status {exitcode} without a message"
    return Ending(time.monotonic(), rank, exitcode, text)


def _conclude(endings: list[Ending], stopped: bool) -> int:
    """Tell the error that ended the job and return its status.

    Raises:
        UserError: it was one.
    """
    failures = [ending for ending in endings if ending.status not in (0, INTERRUPTED)]
    if stopped and (not failures or any(ending.status == -signal.SIGTERM for ending in failures)):
        return INTERRUPTED  # the latter before its loop began
    if not failures:
        return max((ending.status for ending in endings), default=0)
    # A killed process tells nothing, so the others' lost connections come first.
    cause = min(failures, key=lambda ending: (ending.status > 0, ending.when))
    if cause.by_user:
        raise UserError(cause.text)
    print(f"{Path(sys.argv[0]).name}: error: {cause.text}", file=sys.stderr, flush=True)
    return cause.status if cause.status > 0 else 1


def _enter(pipe: Connection, worker: Worker, place: Place, arguments: tuple[Any, ...]) -> None:
    """Be one of the processes."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # else its own, of data, would be spawned too
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if place.local_rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 as long as the process lives
    ending = _attempt(worker, place, arguments)
    pipe.send(ending)
    if ending.status:
        _leave(ending.status)


def _attempt(worker: Worker, place: Place, arguments: tuple[Any, ...]) -> Ending:
    status, text, by_user = 0, "", False
    try:
        status = worker(place, *arguments)
    except UserError as error:
        status, text, by_user = 2, str(error), True
    except KeyboardInterrupt:
        status = INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status, text, by_user = 2, f"{where}{error.strerror or error}", True
    except BaseException as error:
        if text := cli.memory_words(error):
            return Ending(time.monotonic(), place.rank, 2, text, True)
        status, text = 1, f"in process {place.rank}\n{traceback.format_exc()[-LONGEST_TEXT:].rstrip()}"
    return Ending(time.monotonic(), place.rank, status, text[:LONGEST_TEXT], by_user)


def _follow_torchrun(worker: Worker, place: Place, arguments: tuple[Any, ...]) -> int:
    ending = _attempt(worker, place, arguments)
    if ending.status in (0, INTERRUPTED):
        return ending.status
    if not fails_first():
        time.sleep(PATIENCE)
    print(f"{Path(sys.argv[0]).name}: error: {ending.text}", file=sys.__stderr__, flush=True)
    _leave(ending.status)


def _leave(status: int) -> NoReturn:
    """End this process at once: what it holds of the group would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _handled(handler: Any, numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[None]:
    """Answer signals by `handler`, where this is the thread that may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
