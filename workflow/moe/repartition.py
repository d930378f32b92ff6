"""A checkpoint of data-parallel ranks, gone on from by another number of them, to the bit.

ZeRO-1 and 2 lay the parameters of a group end to end, add zeros until the row can be cut into equal pieces, and give
one to each rank, with its master weights and their moments. So the pieces of all ranks in order are the same row
whatever their number, but for zeros at its end. DeepSpeed itself refuses another number.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.ranks import deepspeed

NAMES = deepspeed.checkpoint.constants
STATE, MASTER = NAMES.BASE_OPTIMIZER_STATE, NAMES.SINGLE_PARTITION_OF_FP32_GROUPS


def load(engine: Any, folder: Path, tag: str, rank: int, ranks: int) -> None:
    """As engine.load_checkpoint(folder, tag), of a checkpoint that any number of ranks saved; no experts spread."""
    engine.load_checkpoint(str(folder), tag=tag, load_optimizer_states=False)
    sizes = [group["params"][0].numel() for group in engine.optimizer.param_groups]
    mine = share(pieces(folder / tag), sizes, rank)
    engine.optimizer.load_state_dict([mine] * ranks, load_optimizer_states=True, load_from_fp32_weights=True)


def pieces(folder: Path) -> list[dict[str, Any]]:
    """What each rank saved of its optimiser, in the ranks' order; on disk until it is read."""
    found = {int(re.search(r"zero_pp_rank_(\d+)", path.name)[1]): path for path in folder.glob("*_optim_states.pt")}
    loaded = [torch.load(found[i], map_location="cpu", mmap=True, weights_only=True) for i in range(len(found))]
    return [piece[NAMES.OPTIMIZER_STATE_DICT] for piece in loaded]


def share(pieces: list[dict[str, Any]], sizes: list[int], rank: int) -> dict[str, Any]:
    """What a rank would have saved, had the row of group i been cut into pieces of sizes[i]."""
    first, master, state = pieces[0], [], {}
    for i, size in enumerate(sizes):
        master.append(part_of([piece[MASTER][i] for piece in pieces], size, rank))
        of_ranks = [piece[STATE]["state"][i] for piece in pieces]
        state[i] = {
            key: part_of([of_rank[key] for of_rank in of_ranks], size, rank) if value.ndim else value.clone()
            for key, value in of_ranks[0].items()  # the count of steps is a number, the same everywhere
        }
    return first | {MASTER: master, STATE: first[STATE] | {"state": state}}


def part_of(row: list[Tensor], size: int, rank: int) -> Tensor:
    """Numbers [rank · size, (rank + 1) · size) of a row that is given in pieces; zeros behind its end."""
    part, at = row[0].new_zeros(size), -rank * size
    for piece in row:
        first, last = max(at, 0), min(at + piece.numel(), size)
        if first < last:
            part[first:last] = piece.detach()[first - at : last - at]
        at += piece.numel()
    return part
