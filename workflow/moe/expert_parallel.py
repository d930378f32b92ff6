"""Experts spread over ranks with DeepSpeed's MoE groups.

Shape letters: T tokens, D width, E experts of the layer, L experts of one rank, N routed pairs, M pairs received.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe.experts import Experts, combine, merge, route_pairs
from moe.ranks import deepspeed


def spread_experts(model: nn.Module, expert_ranks: int) -> None:
    """Replace every stack of experts by this rank's share of it; all ranks must hold the same weights before."""
    if expert_ranks == 1:
        return
    for block in model.blocks:
        if hasattr(block, "experts"):
            block.experts = ParallelExperts(block.experts, expert_ranks)


class ParallelExperts(deepspeed.moe.layer.MoE):
    """One rank's consecutive share of a layer's experts; tokens travel by variable all-to-all, none is dropped.

    A subclass of DeepSpeed's MoE for its groups, optimiser and checkpoints alone: one rank's stack is *one* DeepSpeed
    expert, and neither its gate nor its capacity is used.
    """

    def __init__(self, experts: Experts, expert_ranks: int):
        nn.Module.__init__(self)
        total = experts.in_EDF.shape[0]
        if total % expert_ranks:
            raise ValueError(f"{total} experts cannot be spread evenly over {expert_ranks} ranks")
        if dist.get_world_size() % expert_ranks:
            raise ValueError(
                f"{dist.get_world_size()} ranks are not a multiple of the {expert_ranks} that share experts"
            )
        self.use_residual, self.enable_expert_tensor_parallelism = False, False
        self.ep_size = self.num_experts = expert_ranks
        self.num_local_experts = 1
        self.expert_group_name = f"ep_size_{expert_ranks}"
        self.deepspeed_moe = _Holder(_share(experts, dist.get_rank() % expert_ranks, expert_ranks))
        for parameter in self.deepspeed_moe.parameters():
            parameter.allreduce = False
            parameter.group_name = self.expert_group_name

    @property
    def stack(self) -> Experts:
        """This rank's experts."""
        return self.deepspeed_moe.experts.deepspeed_experts[0]

    def mean_vectors(self) -> Tensor:
        """As Experts.mean_vectors, of the experts of all ranks of the group, in their order."""
        mine = self.stack.mean_vectors().contiguous()
        shares = [torch.empty_like(mine) for _ in range(self.ep_size)]
        dist.all_gather(shares, mine, group=self.deepspeed_moe.ep_group)
        return torch.cat(shares, 1)

    def forward(self, x_TD: Tensor, gates_TE: Tensor, segments: list[int] | None = None) -> Tensor:
        """As Experts.forward, over the experts of all ranks of the group."""
        group, ranks = self.deepspeed_moe.ep_group, self.ep_size
        if segments is not None:  # every segment wants every expert: the weights travel, not the tokens
            whole = {name: _Gather.apply(weight, group) for name, weight in self.stack.named_parameters()}
            return self.stack.apply_sorted(x_TD, *merge(whole, gates_TE, segments))
        pairs = route_pairs(gates_TE)
        rows_RL = pairs.ends_E.diff(prepend=pairs.ends_E.new_zeros(1)).view(ranks, -1)  # to each rank's each expert
        received_RL = torch.empty_like(rows_RL)
        dist.all_to_all_single(received_RL, rows_RL, group=group)
        sent, received = rows_RL.sum(1).tolist(), received_RL.sum(1).tolist()
        x_MD = _Exchange.apply(x_TD.index_select(0, pairs.token_N), sent, received, group)
        # Rows arrive by rank and then by expert; the grouped product wants them by expert.
        expert_M = torch.arange(received_RL.shape[1], device=x_MD.device).repeat(ranks)
        expert_M = expert_M.repeat_interleave(received_RL.flatten())
        order_M = expert_M.argsort(stable=True)
        ends_L = received_RL.sum(0).cumsum(0).to(torch.int32)
        y_MD = self.stack.apply_sorted(x_MD.index_select(0, order_M), ends_L)
        y_MD = torch.empty_like(y_MD).index_copy(0, order_M, y_MD)
        y_ND = _Exchange.apply(y_MD, received, sent, group)
        return combine(y_ND, pairs, x_TD.shape[0])


class _Holder(nn.Module):
    """Where DeepSpeed looks for a rank's experts: .experts.deepspeed_experts[i]."""

    def __init__(self, stack: Experts):
        super().__init__()
        self.experts = nn.Module()
        self.experts.deepspeed_experts = nn.ModuleList([stack])
        self.ep_group = None

    def _set_ep_group(self, group: dist.ProcessGroup) -> None:
        self.ep_group = group


class _Exchange(torch.autograd.Function):
    """Variable all-to-all of rows; the gradient travels back the same way.

    What is minimised is the mean over ranks of their losses. An expert gets every rank's rows, a sum over ranks; ZeRO-1
    and 2 divide it by the number of ranks as any other gradient, so nothing is scaled here (tested).
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.route = (received, sent, group)
        y_MD = x_ND.new_empty(sum(received), x_ND.shape[1])
        dist.all_to_all_single(y_MD, x_ND.contiguous(), received, sent, group=group)
        return y_MD

    @staticmethod
    def backward(ctx, grad_MD: Tensor):
        sent, received, group = ctx.route
        return _Exchange.apply(grad_MD, sent, received, group), None, None, None


class _Gather(torch.autograd.Function):
    """Every rank's share of a stacked weight, whole; the gradient of a share is the sum over ranks, as in _Exchange."""

    @staticmethod
    def forward(ctx, share: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.rows = group, share.shape[0]
        shares = [torch.empty_like(share) for _ in range(dist.get_world_size(group))]
        dist.all_gather(shares, share.contiguous(), group=group)
        return torch.cat(shares)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad.narrow(0, dist.get_rank(ctx.group) * ctx.rows, ctx.rows), None


def _share(experts: Experts, rank: int, ranks: int) -> Experts:
    """Experts [rank · E/ranks, (rank + 1) · E/ranks) as a stack of their own."""
    share = type(experts).__new__(type(experts))
    nn.Module.__init__(share)
    if hasattr(experts, "dropout"):
        share.dropout = experts.dropout
    for name, weight in experts.named_parameters():
        share.register_parameter(name, nn.Parameter(weight.detach().chunk(ranks)[rank].clone()))
    return share


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole model's weights by their one-rank names, on the CPU; every rank must call it."""
    state = {}
    for name, tensor in model.named_parameters():
        owner = _parallel_owner(model, name)
        if owner is None:
            state[name] = tensor.detach().cpu().contiguous()
            continue
        parts = [torch.empty_like(tensor) for _ in range(owner[1].ep_size)]
        dist.all_gather(parts, tensor.detach().contiguous(), group=owner[1].deepspeed_moe.ep_group)
        state[f"{owner[0]}.{name.rsplit('.', 1)[1]}"] = torch.cat(parts).cpu()
    return state | {name: buffer.detach().cpu() for name, buffer in model.named_buffers()}


def _parallel_owner(model: nn.Module, name: str) -> tuple[str, ParallelExperts] | None:
    prefix, found, _ = name.partition(".deepspeed_moe.")
    return (prefix, model.get_submodule(prefix)) if found else None
