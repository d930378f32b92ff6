"""Hash routing (arXiv 2106.04426): the token's id decides, nothing is learned. A baseline of ReMoE's table 2.

Shape letters: B sequences, S positions, T = B·S tokens, E experts.
"""

import torch

from moe.routers.base import Choice, Gates, Sequences


class Hash(Gates):
    """Expert e = id mod E, weight 1, no parameters, no loss.

    With k > 1 (neither paper has it): the k experts from (id · k) mod E on, 1/k each; k = 1 is the rule above.
    """

    reads_scores = False

    def __init__(self, layers: int, experts: int, top_k: int):
        super().__init__()
        self.experts, self.top_k = experts, top_k

    def forward(self, scores_TE: None, layer: int, sequences: Sequences | None = None) -> Choice:
        """The sequences' token ids -> gates_TE. Raises ValueError without ids."""
        if sequences is None:
            raise ValueError("hash routing reads token ids, and none were given")
        ids_T1 = sequences.ids_BS.reshape(-1, 1)
        experts_TK = (ids_T1 * self.top_k + torch.arange(self.top_k, device=ids_T1.device)) % self.experts
        gates_TE = torch.zeros(len(ids_T1), self.experts, device=ids_T1.device).scatter(-1, experts_TK, 1 / self.top_k)
        return Choice(gates_TE, gates_TE.new_zeros(()), gates_TE)
