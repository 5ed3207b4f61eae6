"""What test_distributed.py lets several processes do: NAME FOLDER [processes [machines port machine]]."""

import os
import sys
import time
import weakref
from pathlib import Path

import torch
from comparison.cli import UserError
from comparison.distributed import device_of, first_on_machine, gather, group, launch, mean, run, same, sync_stop
from comparison.ranks import RankInfo, get_rank_info
from comparison.runs import Run
from comparison.training import Budget, Loop
from torch.utils.data import DataLoader

CPU = torch.device("cpu")


def together(place: RankInfo, folder: Path) -> int:
    """Agree on all that can be agreed on; leave what was found in a file of each process."""
    with group(place, CPU):
        with first_on_machine(place):
            seen = (folder / "downloaded").is_file()
            (folder / "downloaded").touch()
        same("value", "values")
        try:
            same(place.rank, "values")
            refused = ""
        except UserError as error:
            refused = str(error)
        found = {
            "seen": seen,
            "stop": sync_stop(place.rank == 1, 10.0 + place.rank),
            "go on": sync_stop(False, 10.0 + place.rank),
            "mean": mean({"a": float(place.rank), "b": torch.tensor(3.0), "c": float("nan") if place.rank else 1.0}),
            "gathered": gather(place.rank),
            "refused": refused,
            "forked": [x.item() for x in DataLoader(_Unpicklable(), num_workers=1)],
            "device": device_of(place, "auto").type,
        }
        torch.optim.Adam([torch.zeros(1)])  # torch imports much for it, which must not keep the group
        ended = weakref.ref(torch.distributed.group.WORLD)
        assert ended()
    assert ended() is None  # or a thread of the group may abort the process at the end of the interpreter
    print("printed once")
    torch.save(found, folder / f"{place.rank}.pt")
    return 0


class _Unpicklable:
    """A data set for workers that are forked."""

    def __init__(self) -> None:
        self.number = lambda i: i

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> int:
        return self.number(i)


def train(place: RankInfo, folder: Path) -> int:
    """Train until a stop comes; say in a file of each process after how many steps."""
    run_folder = Run.open(folder / "run", {}, model="test")
    with group(place, CPU):
        loop = Loop(run_folder if place.is_first else None, Budget(), lambda n: n, log_interval=10**9)
        loop.begin("a test")
        for _ in loop:
            (folder / f"pid{place.rank}").write_text(str(os.getpid()))
            time.sleep(0.01)
        (folder / f"steps{place.rank}").write_text(str(loop.step))
        return loop.finish()


def fail(place: RankInfo, error: Exception, ranks: tuple[int, ...]) -> int:
    """Fail in some processes while the others wait for them."""
    with group(place, CPU):
        if place.rank in ranks:
            raise error
        gather(None)
    return 0


def both(place: RankInfo, folder: Path) -> int:
    return fail(place, UserError("--flag: wrong"), (0, 1))


def last(place: RankInfo, folder: Path) -> int:
    return fail(place, UserError("--flag: wrong"), (1,))


def bug(place: RankInfo, folder: Path) -> int:
    return fail(place, ZeroDivisionError("a bug"), (1,))


def main() -> int:
    name, folder, *numbers = sys.argv[1:]
    processes, nodes, port, rank = (*map(int, numbers), *(1, 1, 0, 0)[len(numbers) :])
    place = get_rank_info(processes=processes, nodes=nodes, port=port, node_rank=rank)
    return launch(globals()[name], place, Path(folder))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main)
