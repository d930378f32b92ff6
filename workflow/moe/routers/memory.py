"""RMoE (arXiv 2408.06793): a recurrent cell, shared by all layers, remembers how a token was routed so far.

Shape letters: T tokens, D model width, H state of the cell (the paper's p).
"""

import math

import torch
from torch import Tensor, nn

RESIDUALS = ("scores", "softmax")
PASSING = ("full", "detach", "none")


class GRU(nn.Module):
    """h_l = GRU(P_l x_l, h_{l−1}), h_0 = 0: one projector P_l a layer, one cell for all (RMoE equations 2 and 3).

    The paper writes the candidate with one matrix W_h and no biases; its code, followed here, is PyTorch's GRUCell.
    state: the paper's p. bias: of the projectors (the small models have one, the large model none).
    passing: `full`; `detach` stops the gradient at h_{l−1}; `none` replaces it by 0 in every layer (np).
    """

    cell_type = nn.GRUCell

    def __init__(self, layers: int, width: int, state: int = 128, bias: bool = False, passing: str = "full"):
        super().__init__()
        if passing not in PASSING:
            raise ValueError(f"option passing is {passing!r}, expected one of {', '.join(PASSING)}")
        self.outputs, self.passing = state, passing
        self.projectors = self.make_projectors(layers, width, state, bias)
        self.cell = self.cell_type(state if self.projectors is not None else width, state)

    def make_projectors(self, layers: int, width: int, state: int, bias: bool) -> nn.ModuleList | None:
        """P_l of every layer."""
        return nn.ModuleList(nn.Linear(width, state, bias=bias) for _ in range(layers))

    def forward(self, x_TD: Tensor, layer: int, memory: Tensor | tuple | None) -> tuple[Tensor, Tensor | tuple]:
        """x_TD and what the previous layer handed on (None at the first) -> (what the scores read [T, H], memory)."""
        if self.passing == "none":
            memory = None
        elif self.passing == "detach" and memory is not None:
            memory = tuple(m.detach() for m in memory) if isinstance(memory, tuple) else memory.detach()
        memory = self.cell(x_TD if self.projectors is None else self.projectors[layer](x_TD), memory)
        return memory[0] if isinstance(memory, tuple) else memory, memory

    def mix(self, scores_TE: Tensor, memory: Tensor | tuple) -> tuple[Tensor, Tensor | tuple]:
        """The scores as they are: this memory speaks through what the scores read."""
        return scores_TE, memory


class RNN(GRU):
    """h_l = tanh(W P_l x_l + U h_{l−1} + biases): the plain cell of RMoE's table 6."""

    cell_type = nn.RNNCell


class LSTM(GRU):
    """The LSTM of RMoE's table 6; h and c are both passed, the scores read h."""

    cell_type = nn.LSTMCell


class SharedProjector(GRU):
    """No P: the cell itself maps the width to the state, so that all layers share its input matrices (RMoE's table 6).

    Only this reading gives the printed number of parameters.
    """

    def make_projectors(self, layers: int, width: int, state: int, bias: bool) -> None:
        return None


class ScoreResidual(GRU):
    """np-rα: no state is passed; instead s_l + α · s_{l−1}, the previous layer's scores without their own residual.

    RMoE's table 5: a plain path for the gradient in the recurrence's place; none at the first layer.
    residual_weight: the paper's α, 0.5 or 1. detach_residual: stop the gradient at s_{l−1} (detach-r).
    residual: `scores` as above; `softmax` adds the distributions instead, the paper's formula read word for word.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        state: int = 128,
        bias: bool = False,
        residual_weight: float = 0.5,
        residual: str = "scores",
        detach_residual: bool = False,
    ):
        super().__init__(layers, width, state, bias, passing="none")
        if residual not in RESIDUALS:
            raise ValueError(f"option residual is {residual!r}, expected one of {', '.join(RESIDUALS)}")
        if not 0 <= residual_weight < math.inf:
            raise ValueError(f"option residual_weight is {residual_weight!r}, expected a number from 0 on")
        self.weight, self.residual, self.detach_residual = residual_weight, residual, detach_residual
        self.gives_distributions = residual == "softmax"

    def forward(self, x_TD: Tensor, layer: int, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As GRU.forward without a previous state; memory, the previous layer's scores, waits for `mix`."""
        return super().forward(x_TD, layer, None)[0], memory

    def mix(self, scores_TE: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """scores_TE and the previous layer's own (None at the first) -> (sum, this layer's own)."""
        if memory is None:
            return scores_TE, scores_TE
        previous_TE = memory.detach() if self.detach_residual else memory
        if self.residual == "scores":
            return scores_TE + self.weight * previous_TE, scores_TE
        log_TE = scores_TE.log_softmax(-1)  # a softmax of the sum's logarithm is the sum, normalised
        if self.weight:
            log_TE = torch.logaddexp(log_TE, previous_TE.log_softmax(-1) + math.log(self.weight))
        return log_TE, scores_TE
