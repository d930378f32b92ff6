"""What of a training is saved and gone on from, by any number of ranks where no experts are spread over them."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout

from moe import checkpoints, repartition
from moe.streaming import Memories

TAG = "engine"  # the folder of DeepSpeed's files within a checkpoint


class Refused(Exception):
    """The first rank refuses the checkpoint and says why; the other ranks end with this."""


class Resume:
    """The checkpoints of one training.

    folder: where they lie; belongs: what a checkpoint must have been made of; spread: whether experts are spread over
    the ranks. Raises ValueError on rank 0 while another process trains this run.
    """

    def __init__(self, folder: Path, belongs: dict[str, str], *, rank: int, ranks: int, spread: bool):
        self.folder, self.belongs, self.rank, self.ranks, self.spread = folder, belongs, rank, ranks, spread
        if rank == 0:
            self._lock()

    def _lock(self) -> None:
        """One training a folder: the lock ends with the process, however it ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / "lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{self.folder}: another process is training this run") from None

    def save(self, step: int, engine: Any, memories: Memories) -> None:
        """Write the checkpoint of a step; every rank must call it."""

        def save(aside: Path) -> None:
            engine.save_checkpoint(str(aside), tag=TAG, client_state={"step": step}, save_latest=False)
            memories.save(aside, self.rank)

        belongs = self.belongs | {"ranks": str(self.ranks)}
        checkpoints.write(self.folder, step, belongs, save, self.rank, dist.barrier)

    def load(self, engine: Any, memories: Memories, device: torch.device) -> int:
        """Go on from the newest whole checkpoint, by whatever number of ranks; its step, 0 where there is none."""
        step, made_by = self._newest(device)
        if step:
            found = checkpoints.path_of(self.folder, step)
            if made_by == self.ranks:
                engine.load_checkpoint(str(found), tag=TAG)
            else:
                repartition.load(engine, found, TAG, self.rank, self.ranks)
            memories.load(found, self.rank, self.ranks, device)
        return step

    def _newest(self, device: torch.device) -> tuple[int, int]:
        """Step (0: none) and number of ranks of the newest whole checkpoint, which rank 0 looks for.

        Where it must be refused, rank 0 raises ValueError and the others Refused, so that one sentence is said.
        """
        found, refused = torch.zeros(2, dtype=torch.long, device=device), None
        if self.rank == 0:
            try:
                newest = checkpoints.newest(self.folder, self.belongs)
                if newest is not None:
                    told = checkpoints.step_and_ranks(newest, self.ranks, self.spread)
                    found += torch.tensor(told, device=device)
            except (ValueError, OSError) as error:
                refused = error
                found -= 1
        if self.ranks > 1:
            dist.broadcast(found, 0)
        if refused is not None:
            raise refused
        step, made_by = found.tolist()
        if step < 0:
            raise Refused
        return step, made_by
