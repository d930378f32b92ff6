"""From a token's hidden state (or router memory) to one score per expert.

Shape letters: T tokens, H input width, E experts, R reduced width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """s = W h, one map per layer (both papers' default; RMoE's small models add a bias)."""

    def __init__(self, layers: int, inputs: int, experts: int, bias: bool = False):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(inputs, experts, bias=bias) for _ in range(layers))

    def forward(self, h_TH: Tensor, layer: int) -> Tensor:
        """h_TH -> scores_TE."""
        return self.maps[layer](h_TH)

    def last_map(self, layer: int) -> Tensor:
        """The last linear map to the scores, [E, H]."""
        return self.maps[layer].weight


class Random(Linear):
    """RandomSMoE of RMoE: the linear map as it was initialised, weight and bias frozen."""

    def __init__(self, layers: int, inputs: int, experts: int, bias: bool = False):
        super().__init__(layers, inputs, experts, bias)
        self.requires_grad_(False)


class MLP(nn.Module):
    """SMoE-MLP of RMoE: Linear–GELU–Linear with biases; the hidden 256 follows from the printed parameters."""

    def __init__(self, layers: int, inputs: int, experts: int, hidden: int = 256):
        super().__init__()
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, experts)) for _ in range(layers)
        )

    def forward(self, h_TH: Tensor, layer: int) -> Tensor:
        """h_TH -> scores_TE."""
        return self.maps[layer](h_TH)

    def last_map(self, layer: int) -> Tensor:
        """The last linear map to the scores, [E, H]."""
        return self.maps[layer][-1].weight


class Cosine(nn.Module):
    """CosineMoE of RMoE: s_e = cos(h, v_e)/τ, one learnable τ a layer (its start is not given: 0.3).

    v_e orthogonal at the start, gain 0.32. normalise_token: False divides by ‖v_e‖ alone, as the public code of
    CompeteSMoE (which has no τ either: temperature 1).
    """

    keeps_own_init = True

    def __init__(self, layers: int, inputs: int, experts: int, temperature: float = 0.3, normalise_token: bool = True):
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"option temperature is {temperature!r}, expected a number above 0")
        self.normalise_token = normalise_token
        self.experts_LEH = nn.ParameterList(nn.Parameter(torch.empty(experts, inputs)) for _ in range(layers))
        self.temperatures = nn.ParameterList(nn.Parameter(torch.tensor([float(temperature)])) for _ in range(layers))
        for directions_EH in self.experts_LEH:
            if not directions_EH.is_meta:
                nn.init.orthogonal_(directions_EH, gain=0.32)

    def forward(self, h_TH: Tensor, layer: int) -> Tensor:
        """h_TH -> scores_TE."""
        directions_EH = F.normalize(self.experts_LEH[layer], dim=-1, eps=1e-4)
        token_TH = F.normalize(h_TH, dim=-1, eps=1e-4) if self.normalise_token else h_TH
        return token_TH @ directions_EH.t() / self.temperatures[layer]

    def last_map(self, layer: int) -> Tensor:
        """The experts' directions v, [E, H], as they are kept: only scores normalise them."""
        return self.experts_LEH[layer]


class XMoE(nn.Module):
    """XMoE: the cosine scores of a projection h -> reduced width (8, 16 or 32), without bias."""

    keeps_own_init = True

    def __init__(
        self,
        layers: int,
        inputs: int,
        experts: int,
        reduced: int = 16,
        temperature: float = 0.3,
        normalise_token: bool = True,
    ):
        super().__init__()
        self.reductions = nn.ModuleList(nn.Linear(inputs, reduced, bias=False) for _ in range(layers))
        self.cosine = Cosine(layers, reduced, experts, temperature, normalise_token)

    def forward(self, h_TH: Tensor, layer: int) -> Tensor:
        """h_TH -> scores_TE."""
        return self.cosine(self.reductions[layer](h_TH), layer)

    def last_map(self, layer: int) -> Tensor:
        """As Cosine.last_map, of the reduced width."""
        return self.cosine.last_map(layer)


class Hyper(nn.Module):
    """HyperMoE: a learned vector, through a frozen random network, gives a map's weight and bias; both per layer.

    The paper's text has the network depend on the input as well; the public code, followed here, does not.
    """

    keeps_own_init = True

    def __init__(self, layers: int, inputs: int, experts: int, hidden: int = 256):
        super().__init__()
        self.inputs, self.experts = inputs, experts
        self.vectors = nn.ParameterList(nn.Parameter(torch.randn(1, inputs)) for _ in range(layers))
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, experts * (inputs + 1)))
            for _ in range(layers)
        )
        self.networks.requires_grad_(False)

    def forward(self, h_TH: Tensor, layer: int) -> Tensor:
        """h_TH -> scores_TE."""
        made = self._made(layer)
        return F.linear(h_TH, made[:, :-1], made[:, -1])

    def last_map(self, layer: int) -> Tensor:
        """The map that the network makes, [E, H]."""
        return self._made(layer)[:, :-1]

    def _made(self, layer: int) -> Tensor:
        return self.networks[layer](self.vectors[layer]).view(self.experts, self.inputs + 1)
