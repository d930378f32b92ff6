"""When a training must not go on: numbers that are not finite, layers that stay wholly dense or wholly empty."""

import math
from typing import Any

import torch
from torch import Tensor, nn

PATIENCE = 500  # steps; λ0 = 1 keeps every gate shut for about 90 steps and recovers


class Health:
    """Looks at each metrics row; where: named in the message."""

    def __init__(self, model: nn.Module, router: str, where: str, patience: int = PATIENCE):
        self.model, self.router, self.where, self.patience = model, router, where, patience
        self.stuck: dict[str, int] = {}

    def check_losses(self, step: int, loss: float, router_loss: float, tokens_BS: Tensor) -> None:
        """ValueError before the optimiser touches the weights; tokens_BS are shown again to find the layer."""
        if not (math.isfinite(loss) and math.isfinite(router_loss)):
            raise ValueError(
                f"{self.where}: step {step}: the loss is {loss}, the router loss {router_loss} "
                f"({self._first_layer(tokens_BS)}); the last checkpoint is kept"
            )

    def check(self, row: dict[str, Any]) -> None:
        """ValueError naming step, layer and router if the gradient is not finite or a layer is stuck."""
        if not math.isfinite(row["gradient_norm"]):
            raise ValueError(
                f"{self.where}: step {row['step']}: the gradient norm of router {self.router!r} is "
                f"{row['gradient_norm']} though the loss is {row['loss']:.4g}; the last checkpoint is kept"
            )
        for key, value in row.items():
            if key.startswith("sparsity_"):
                self._check_stuck(row["step"], key, value)

    @torch.no_grad()
    def _first_layer(self, tokens_BS: Tensor) -> str:
        routings: list = []
        self.model.eval()
        self.model(tokens_BS, routings=routings)
        bad = [i for i, routing in enumerate(routings) if not torch.isfinite(routing.gates_TE).all()]
        where = f"from layer {bad[0]} on" if bad else "in no layer: look at the head or a dense layer"
        return f"gates of router {self.router!r} are not finite {where}"

    def _check_stuck(self, step: int, key: str, sparsity: float) -> None:
        dense_is_meant = self.model.experts == self.model.top_k or self.model.router.gates.merges
        bad = sparsity == 1 or (sparsity == 0 and not dense_is_meant)
        self.stuck[key] = self.stuck.get(key, 0) + 1 if bad else 0
        if self.stuck[key] >= self.patience:
            raise ValueError(
                f"{self.where}: step {step}: layer {key.removeprefix('sparsity_')} of router {self.router!r} has had a "
                f"sparsity of {sparsity:.0%} for {self.patience} steps; the last checkpoint is kept"
            )
