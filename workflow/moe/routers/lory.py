"""Lory (arXiv 2405.03133): segments of text pass through merged experts. A baseline of ReMoE's table 2.

Shape letters: B sequences, S positions, T = B·S tokens, E experts, J segments of a sequence.
"""

import torch
from torch import Tensor

from moe.routers.base import Choice, Gates, Sequences


class Lory(Gates):
    """e_j = softmax of the mean score of segment j; segment j runs through one network, Σ_e e_{j−1,e} · W_e.

    Gates are dense and equal within a segment. The mean of linear scores is the score of the mean hidden state, as the
    paper has it; other scores (beyond it) are averaged themselves. Segment 0 uses its own e_0 with the gradient
    stopped: only there a token's output depends on later tokens. At inference (`sequences.prompts_B`) the prompt is
    routed once, for all that follows. No balance loss.

    segment: its length in tokens, 256 in the paper; the last one of a sequence may be shorter.
    """

    merges = True

    def __init__(self, layers: int, experts: int, top_k: int, segment: int = 256):
        super().__init__()
        if segment < 1:
            raise ValueError(f"option segment is {segment!r}, expected at least 1")
        self.experts, self.segment = experts, segment

    def forward(self, scores_TE: Tensor, layer: int, sequences: Sequences | None = None) -> Choice:
        """scores_TE -> gates_TE, no loss, scores_TE, the segments' lengths."""
        tokens, experts = scores_TE.shape
        batch = 1 if sequences is None else sequences.ids_BS.shape[0]
        scores_BSE = scores_TE.view(batch, -1, experts)
        if sequences is not None and sequences.prompts_B is not None:
            lengths = [scores_BSE.shape[1]]
            weights_BJE = mean_of_first(scores_BSE, sequences.prompts_B).softmax(-1)[:, None]
        else:
            parts = scores_BSE.split(self.segment, dim=1)
            lengths = [part.shape[1] for part in parts]
            first_B1E = parts[0].mean(1, keepdim=True).softmax(-1).detach()
            weights_BJE = torch.cat([first_B1E, *(p.mean(1, keepdim=True).softmax(-1) for p in parts[:-1])], dim=1)
        lengths_J = torch.tensor(lengths, device=scores_TE.device)
        gates_TE = weights_BJE.repeat_interleave(lengths_J, dim=1, output_size=scores_BSE.shape[1]).reshape(tokens, -1)
        return Choice(gates_TE, scores_TE.new_zeros(()), scores_TE, lengths * batch)

    def distribution(self, scores_TE: Tensor) -> Tensor:
        """Their softmax, of each token by itself."""
        return scores_TE.softmax(-1)

    def applications(self, routed: float) -> float:
        """One merged expert a token, and the merge: every weight of E experts once a segment."""
        return 1 + self.experts / self.segment


def mean_of_first(scores_BSE: Tensor, lengths_B: Tensor) -> Tensor:
    """Mean over the first lengths_B positions of each sequence, [B, E]."""
    within_BS1 = (torch.arange(scores_BSE.shape[1], device=scores_BSE.device) < lengths_B[:, None])[..., None]
    return (scores_BSE * within_BS1).sum(1) / lengths_B[:, None]
