"""The processes of one training: where each finds the others, how each ends, and what DeepSpeed is told at import."""

import os
import sys
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # DeepSpeed's loader asks torch.load for pickles; never

import deepspeed  # noqa: E402
import deepspeed.ops  # noqa: E402
from deepspeed.runtime.fp16.loss_scaler import LossScaler  # noqa: E402
from deepspeed.runtime.zero.config import ZeroStageEnum  # noqa: E402
from deepspeed.utils import logger as deepspeed_logger  # noqa: E402
from deepspeed.utils.tensor_fragment import fragment_address  # noqa: E402

torch.serialization.add_safe_globals([fragment_address, ZeroStageEnum, LossScaler])
deepspeed_logger.setLevel("WARNING")


def init_ranks(device: torch.device) -> tuple[int, int]:
    """Join the process group that the launcher describes, or make one of a single rank; (rank, ranks)."""
    # The shared-memory helper compiles for a minute at first use, and a killed job's lock would block every later one;
    # so it is not among what may be compiled, and DeepSpeed need not run a C compiler to find out what else is.
    deepspeed.ops.__compatible_ops__ = {}
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    return dist.get_rank(), dist.get_world_size()


def end_rank(code: int) -> NoReturn:
    """End this process with an exit code, once every rank is done where the code is 0."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        if code == 0:
            dist.barrier()
        # Gloo's threads may still run when the interpreter takes its modules apart, which aborts a finished rank.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
