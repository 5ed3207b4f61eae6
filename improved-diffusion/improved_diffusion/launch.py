"""The ranks of a job, as torchrun or mpiexec set them in environment variables; without torch."""

import os
from collections.abc import Mapping

# Variables with the rank, the number of ranks, and both on this machine; `comparison.ranks` has the same table.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
SHELL_STEP = 4294967290  # SLURM_STEP_ID from here on: batch scripts and shells, which srun did not start


def launched_ranks(env: Mapping[str, str] = os.environ) -> tuple[int, int, int, int]:
    """Return rank, number of ranks, local rank and number of local ranks; (0, 1, 0, 1) without a launcher.

    Raises:
        ValueError: the variables are not numbers, or those of srun, which need others beside them.
    """
    for names in (TORCHRUN, *MPI):
        if names[0] in env and names[1] in env:
            rank, size = int(env[names[0]]), int(env[names[1]])
            local_size = max(1, int(env.get(names[3], size)))
            return rank, size, int(env.get(names[2], rank % local_size)), local_size
    step = env.get("SLURM_STEP_ID", "")
    if step.isdecimal() and int(step) < SHELL_STEP and int(env.get("SLURM_NTASKS", 1)) > 1:
        raise ValueError("under srun set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or start with mpiexec")
    return 0, 1, 0, 1
