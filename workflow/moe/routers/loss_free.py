"""Balance without an auxiliary loss (arXiv 2408.15664, DeepSeek-V3): a bias steers the choice, not the weights.

Shape letters: T tokens, E experts, L MoE layers.
"""

import math

import torch
from torch import Tensor

from moe.routers.base import Choice, Gates, Sequences
from moe.routers.topk import NORMALISE, spread

AFFINITIES = {"softmax": lambda scores_TE: scores_TE.softmax(-1), "sigmoid": torch.sigmoid}


class LossFree(Gates):
    """Choose the k largest of a + b, weigh by a; after each step b_e += rate · sign(mean load − load_e).

    Beyond both papers. affinity: a, the `softmax` of the scores as in TopK, so that balancing is all that differs from
        it; or their `sigmoid` (DeepSeek-V3). normalise: as TopK's. rate: DeepSeek's 1e-3.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        top_k: int,
        affinity: str = "softmax",
        normalise: str = "none",
        rate: float = 1e-3,
    ):
        super().__init__()
        for key, value, known in (("affinity", affinity, AFFINITIES), ("normalise", normalise, NORMALISE)):
            if value not in known:
                raise ValueError(f"option {key} is {value!r}, expected one of {', '.join(known)}")
        if not 0 <= rate < math.inf:
            raise ValueError(f"option rate is {rate!r}, expected a number from 0 on")
        self.top_k, self.affinity, self.normalise, self.rate = top_k, AFFINITIES[affinity], normalise, rate
        # no buffer: casting the model must not round it
        self.bias_LE = torch.zeros(layers, experts, dtype=torch.float32, device="cpu")
        self._bias_on_device: Tensor | None = None

    def forward(self, scores_TE: Tensor, layer: int, sequences: Sequences | None = None) -> Choice:
        """scores_TE -> gates_TE, no loss, affinities_TE."""
        affinity_TE = self.affinity(scores_TE)
        if self._bias_on_device is None or self._bias_on_device.device != scores_TE.device:
            self._bias_on_device = self.bias_LE.to(scores_TE.device)
        experts_TK = (affinity_TE.detach() + self._bias_on_device[layer]).topk(self.top_k, dim=-1, sorted=False).indices
        weights_TK = affinity_TE.gather(-1, experts_TK)
        if self.normalise == "chosen":
            least = torch.finfo(weights_TK.dtype).tiny  # all of them may underflow
            weights_TK = weights_TK.clamp(min=least) / weights_TK.clamp(min=least).sum(-1, keepdim=True)
        return Choice(spread(weights_TK, experts_TK, affinity_TE), scores_TE.new_zeros(()), affinity_TE)

    def distribution(self, scores_TE: Tensor) -> Tensor:
        """The affinities, which a sigmoid does not make add up to 1, over their sum."""
        return scores_TE / scores_TE.sum(-1, keepdim=True)

    def after_step(self, sparsity: float, active_LE: Tensor) -> dict[str, float]:
        """Move the biases towards an even load."""
        load_LE = active_LE.double()
        self.bias_LE = self.bias_LE + self.rate * (load_LE.mean(1, keepdim=True) - load_LE).sign().float()
        self._bias_on_device = None
        return {}

    def get_extra_state(self) -> dict[str, list]:
        return {"bias": self.bias_LE.tolist()}

    def set_extra_state(self, state: dict[str, list]) -> None:
        self.bias_LE, self._bias_on_device = torch.tensor(state["bias"], dtype=torch.float32, device="cpu"), None
