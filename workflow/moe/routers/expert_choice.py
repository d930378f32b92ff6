"""Expert choice (arXiv 2202.09368): each expert takes the tokens that it likes best. A baseline of ReMoE's table 2.

Shape letters: B sequences, S positions, T = B·S tokens, E experts, C tokens an expert takes.
"""

import torch
from torch import Tensor

from moe.routers.base import Choice, Gates, Sequences
from moe.routers.topk import spread

SCOPES = ("sequence", "micro-batch")


class ExpertChoice(Gates):
    """P = softmax over experts; each expert takes its C = S·k/E tokens of largest P, weight P; no balance loss.

    Whether a token is taken depends on later tokens, so the training loss is leaky. Evaluation is causal: each token
    takes its k experts of largest P. `evaluate_leaky`, set to True, evaluates as in training, to report that loss too.

    scope: what the experts choose from: each `sequence` (ReMoE does not say; so micro-batches do not matter), or the
        whole `micro-batch`.
    """

    leaks = True

    def __init__(self, layers: int, experts: int, top_k: int, scope: str = "sequence"):
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"option scope is {scope!r}, expected one of {', '.join(SCOPES)}")
        self.top_k, self.scope, self.evaluate_leaky = top_k, scope, False

    def forward(self, scores_TE: Tensor, layer: int, sequences: Sequences | None = None) -> Choice:
        """scores_TE -> gates_TE, no loss, probabilities_TE."""
        probs_TE = scores_TE.softmax(-1)
        if self.training or self.evaluate_leaky:
            gates_TE = self._experts_choose(scores_TE.log_softmax(-1), probs_TE, sequences)
        else:
            experts_TK = scores_TE.topk(self.top_k, dim=-1, sorted=False).indices
            gates_TE = spread(probs_TE.gather(-1, experts_TK), experts_TK, probs_TE)
        return Choice(gates_TE, probs_TE.new_zeros(()), probs_TE)

    def _experts_choose(self, log_probs_TE: Tensor, probs_TE: Tensor, sequences: Sequences | None) -> Tensor:
        # chosen by logarithms: probabilities may underflow, and tie
        tokens, experts = probs_TE.shape
        batch = 1 if sequences is None or self.scope == "micro-batch" else sequences.ids_BS.shape[0]
        probs_BSE = probs_TE.view(batch, -1, experts)
        positions = probs_BSE.shape[1]
        capacity = min(max(1, round(positions * self.top_k / experts)), positions)
        chosen_BCE = log_probs_TE.view_as(probs_BSE).topk(capacity, dim=1, sorted=False).indices
        weights_BCE = probs_BSE.gather(1, chosen_BCE)
        weights_BCE = weights_BCE.clamp(min=torch.finfo(weights_BCE.dtype).tiny)
        return torch.zeros_like(probs_BSE).scatter(1, chosen_BCE, weights_BCE).view(tokens, experts)
