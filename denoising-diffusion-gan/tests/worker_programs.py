"""What test_workers.py lets several processes do; new processes import it by its name."""

import weakref
from pathlib import Path

import torch
from comparison.distributed import group
from comparison.ranks import RankInfo
from ddgan.draws import Batch
from joint_batches import joint_batch, make_trainer


def update(place: RankInfo, folder: Path) -> int:
    """Make three updates, each process from its rows, count messages, and let go of the group."""
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
        ended = weakref.ref(torch.distributed.group.WORLD)
        assert ended()
    del trainer, network
    assert ended() is None  # or a thread of the group may abort the process at the end of the interpreter
    return 0
