"""What test_workers.py lets several processes do; new processes import it by its name."""

import os
import signal
import time
import weakref
from argparse import Namespace
from pathlib import Path

from comparison.cli import UserError
from comparison.distributed import agree, mean
from ddgan.distributed import Place, check_same, check_same_flags, group


def update(place: Place, folder: Path) -> int:
    """Make three updates, each process from its rows; also count messages and try what the processes agree on."""
    import pytest
    import torch
    from ddgan.draws import Batch
    from joint_batches import joint_batch, make_trainer

    torch.set_num_threads(1)
    with group(place, torch.device("cpu")):
        trainer = make_trainer(place)
        messages: list[int] = [0]

        def count(state: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
            messages[-1] += 1
            work = torch.distributed.all_reduce(bucket.buffer().div_(place.world_size), async_op=True)
            return work.get_future().then(lambda future: future.value()[0])

        for network in (trainer._shared_g, trainer._shared_d):
            network.register_comm_hook(None, count)
        for step, window in enumerate(((0, 1), (2, 3), (4,))):
            own = [Batch(joint_batch(k).chunk(2)[place.rank], None, k) for k in window]
            trainer.update(own, step)
            messages.append(0)
        torch.save({"state": trainer.state_dict(), "messages": messages[:-1]}, folder / f"{place.rank}.pth")
        assert agree(place.rank == 1, 10.0 + place.rank) == (True, 10.0)
        assert agree(False, 10.0 + place.rank) == (False, 10.0)
        assert mean({"a": float(place.rank), "b": 3.0}) == {"a": 0.5, "b": 3.0}
        worst = mean({"a": float("nan") if place.rank else 1.0})["a"]
        assert worst != worst  # what diverges in one process is seen by all
        check_same("same", "value")
        with pytest.raises(UserError, match=r"^values: 0 for the first process, 1 for process 1$"):
            check_same(place.rank, "values")
        check_same_flags(Namespace(lr_g=1.0, node_rank=place.rank, exp=f"/mount{place.rank}/run"))
        with pytest.raises(UserError, match=r"^--lr_g: 0 for the first process, 1 for process 1$"):
            check_same_flags(Namespace(lr_g=place.rank))
        ended = weakref.ref(torch.distributed.group.WORLD)
        assert ended()
    del trainer, network
    assert ended() is None  # or a thread of the group may abort the process at the end of the interpreter
    return 0


def fail(place: Place, how: str) -> int:
    """Fail in the last process, while the others wait for it."""
    if place.rank != place.world_size - 1:
        time.sleep(100)
    if how == "user":
        raise UserError("--flag: wrong")
    if how == "long":
        raise UserError("x" * 100_000)
    if how == "file":
        raise FileNotFoundError(2, "No such file or directory", "images")
    if how == "bug":
        raise ZeroDivisionError("a bug")
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def die_in_the_group(place: Place) -> int:
    """Be killed in the last process, whose message the others wait for."""
    import torch

    with group(place, torch.device("cpu")):
        if place.rank:
            os.kill(os.getpid(), signal.SIGKILL)
        agree(False, 0.0)
    return 0


def stop_together(place: Place, folder: Path) -> int:
    """Wait for SIGTERM and say that it came."""
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    (folder / f"ready{place.rank}").touch()
    while not stops:
        time.sleep(0.02)
    return 130
