"""Which precision trains faster on this machine: `python -m moe.precision precision.json`.

On a GPU it is bfloat16, as in both papers. On a CPU bfloat16 can be several times slower or faster than float32,
depending on its instructions: a training step of a small model is timed in both, in turns so that drift cancels.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from moe.command_line import exit_code
from moe.model import Decoder

REPEATS = 7
SHAPE = dict(vocabulary=2048, width=128, layers=2, heads=4, kv_heads=2, expert_width=256, experts=8, top_k=1)


def measure_precision() -> dict:
    """{"device", "precision", "seconds": {precision: median of a forward and backward}}; no seconds on a GPU."""
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(), "precision": "bfloat16", "seconds": {}}
    torch.set_num_threads(1)  # as trainings run at a CPU's scales
    models = {
        name: Decoder(**SHAPE, router={"name": "topk"}).to(getattr(torch, name)) for name in ("float32", "bfloat16")
    }
    tokens_BS = torch.randint(SHAPE["vocabulary"], (4, 129), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(REPEATS + 1):
        for name, model in models.items():
            began = time.perf_counter()
            sum(model(tokens_BS[:, :-1], tokens_BS[:, 1:])).backward()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {"device": "cpu", "precision": min(medians, key=medians.get), "seconds": medians}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output

    def command() -> None:
        found = measure_precision()
        output.write_text(json.dumps(found, indent=1))
        times = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in found["seconds"].items())
        print(f"{found['device']}: {found['precision']}" + (f" (a step: {times})" if times else ""))

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
