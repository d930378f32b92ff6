"""From a token's hidden state (or router memory) to one score per expert.

Shape letters: T tokens, H input width, E experts.
"""

from torch import Tensor, nn


class Linear(nn.Module):
    """s = W h, one map per layer (both papers' default; RMoE's small models add a bias)."""

    def __init__(self, layers: int, inputs: int, experts: int, bias: bool = False):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(inputs, experts, bias=bias) for _ in range(layers))

    def forward(self, h_TH: Tensor, layer: int) -> Tensor:
        """h_TH -> scores_TE."""
        return self.maps[layer](h_TH)
