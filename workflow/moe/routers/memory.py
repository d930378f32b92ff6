"""RMoE (arXiv 2408.06793): a recurrent cell, shared by all layers, remembers how a token was routed so far.

Shape letters: T tokens, D model width, H state of the cell (the paper's p).
"""

from torch import Tensor, nn

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
