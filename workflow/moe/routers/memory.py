"""RMoE (arXiv 2408.06793): a recurrent cell, shared by all layers, remembers how a token was routed so far.

Shape letters: T tokens, D model width, H state of the cell (the paper's p).
"""

from torch import Tensor, nn


class GRU(nn.Module):
    """h_l = GRU(P_l x_l, h_{l−1}), h_0 = 0: one projector P_l a layer, one cell for all (RMoE equations 2 and 3).

    The paper writes the candidate with one matrix W_h and no biases; its code, followed here, is PyTorch's GRUCell.
    state: the paper's p. bias: of the projectors (the small models have one, the large model none).
    """

    cell_type = nn.GRUCell

    def __init__(self, layers: int, width: int, state: int = 128, bias: bool = False):
        super().__init__()
        self.outputs = state
        self.projectors = nn.ModuleList(nn.Linear(width, state, bias=bias) for _ in range(layers))
        self.cell = self.cell_type(state, state)

    def forward(self, x_TD: Tensor, layer: int, memory_TH: Tensor | None) -> tuple[Tensor, Tensor]:
        """x_TD and the previous layer's state (None before the first) -> (what the scores read, state), both [T, H]."""
        memory_TH = self.cell(self.projectors[layer](x_TD), memory_TH)
        return memory_TH, memory_TH


class RNN(GRU):
    """h_l = tanh(W P_l x_l + U h_{l−1} + biases): the plain cell of RMoE's table 6."""

    cell_type = nn.RNNCell
