"""Losses, λ and sparsity of 20 steps for every router; `python tests/golden_losses.py` renews the stored ones.

Renew only after a change that is meant to change the numbers, and say so in the commit.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "workflow"))

from moe.model import Decoder  # noqa: E402
from moe.routers import ROUTERS  # noqa: E402

STORED = Path(__file__).parent / "golden" / "losses.json"
SHAPE = dict(vocabulary=64, width=32, layers=3, heads=4, kv_heads=2, expert_width=32, init_std=0.1)
STEPS = 20


def losses(router: str) -> list[dict[str, float]]:
    """A row a step on made-up text: each token is a function of the two before it, so it can be learnt."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    experts = dict(experts=1, top_k=1) if router == "none" else dict(experts=8, top_k=2)
    # in double precision: in single, another processor's rounding may send a token to another expert
    model = Decoder(**SHAPE, **experts, router={"name": router}).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = []
    for _ in range(STEPS):
        tokens = torch.randint(64, (4, 33))
        for i in range(2, 33):
            tokens[:, i] = (3 * tokens[:, i - 1] + 5 * tokens[:, i - 2]) % 64
        loss, router_loss = model(tokens[:, :-1], tokens[:, 1:])
        (loss + router_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        statistics = model.after_step()
        row = {"loss": loss.item(), "router_loss": router_loss.item()}
        rows.append(row | {key: statistics[key] for key in ("sparsity", "l1_lambda") if key in statistics})
    return rows


if __name__ == "__main__":
    STORED.write_text(json.dumps({name: losses(name) for name in ["none", *ROUTERS]}, indent=1))
