"""Loss of every snapshot of a run over held-out text: nats per token, bits per byte, perplexity.

    python -m moe.validate RUN CORPUS --output validation.csv --windows-output validation_windows.csv
    python -m moe.validate RUN CORPUS --domains-output domain_losses.csv

Letters: B windows, S tokens of a window, V vocabulary.
"""

import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.command_line import exit_code, progress
from moe.data import Corpus, Streams, domain_windows
from moe.data.tokenizer import byte_letters
from moe.finished import STREAMS, FinishedRun, batched, open_run, parser_of, write_csv
from moe.streaming import block_losses

COLUMNS = ["run", "seed", "snapshot", "step", "tokens", "split", "windows", "loss", "bits_per_byte", "perplexity"]
COLUMNS += ["leaky_loss", "later_loss"]
WINDOW_COLUMNS = ["snapshot", "split", "window", "loss"]
DOMAIN_COLUMNS = ["snapshot", "domain", "window", "loss"]


@torch.no_grad()
def token_losses(model: nn.Module, windows_BS1: Tensor) -> Tensor:
    """Loss [B, S] of each target of each window in nats; a window holds its inputs and one token more."""
    tokens_BS, targets_BS = windows_BS1[:, :-1], windows_BS1[:, 1:]
    logits_BSV = model(tokens_BS)
    losses = F.cross_entropy(logits_BSV.flatten(0, 1).float(), targets_BS.flatten(), reduction="none")
    return losses.view(targets_BS.shape).double()


def window_losses(model: nn.Module, windows_BS1: Tensor) -> Tensor:
    """Mean loss [B] of each window in nats per token."""
    return token_losses(model, windows_BS1).mean(dim=1)


def views(model: nn.Module, windows_BS1: Tensor) -> dict[str, list[float]]:
    """Mean losses of the windows, seen in every way that the router calls for.

    loss: causal, as every router's. leaky_loss: routed as in training where that looks ahead (expert choice).
    later_loss: without the first segment, the only one that sees later tokens (Lory).
    """
    losses_BS = token_losses(model, windows_BS1)
    seen = {"loss": losses_BS}
    gates = model.router.gates if getattr(model, "router", None) is not None else None
    if gates is not None and gates.leaks:
        gates.evaluate_leaky = True
        seen["leaky_loss"] = token_losses(model, windows_BS1)
        gates.evaluate_leaky = False
    if gates is not None and gates.merges and losses_BS.shape[1] > gates.segment:
        seen["later_loss"] = losses_BS[:, gates.segment :]
    return {name: losses.mean(dim=1).tolist() for name, losses in seen.items()}


def token_bytes(corpus: Corpus, split: str) -> np.ndarray:
    """UTF-8 bytes of text [V] that each token id stands for; the end of text stands for none.

    Exact for byte-level tokenizers, whose tokens are spelled with a letter a byte; else (whole words) each id counts as
    the mean.
    """
    tokenizer = corpus.tokenizer.tokenizer
    added = tokenizer.get_added_tokens_decoder()
    spelled = [tokenizer.id_to_token(token) or "" for token in range(corpus.vocabulary)]
    letters = set(byte_letters())
    words = type(tokenizer.model).__name__ == "WordLevel"  # which may be spelled alike, but leave out their spaces
    if not words and all(set(word) <= letters for token, word in enumerate(spelled) if token not in added):
        lengths = np.array([len(word) for word in spelled], dtype=np.float64)
        for token, word in added.items():
            lengths[token] = 0 if word.special else len(word.content.encode())
        return lengths
    counts = corpus.manifest["splits"][split]
    return np.full(corpus.vocabulary, counts["bytes"] / counts["tokens"])


def losses_of_snapshot(run: FinishedRun, snapshot: str, split: str) -> tuple[dict[str, list[float]], float]:
    """Losses of each validation window in the order of the text, and the bytes that all their targets stand for."""
    limit = run.spec.get("evaluation", {}).get("windows")
    model, tokens, lengths = run.model(snapshot), run.corpus.tokens(split), token_bytes(run.corpus, split)
    losses, size = defaultdict(list), 0.0
    bar = progress(f"validate {run.spec['run']} {snapshot}", limit, "window")
    for batch in batched(run.windows(split, limit), run.windows_per_batch()):
        windows_BS1 = tokens[np.stack(batch)].astype(np.int64)
        size += lengths[windows_BS1[:, 1:]].sum()
        for name, some in views(model, torch.from_numpy(windows_BS1).to(run.device)).items():
            losses[name] += some
        bar.update(len(batch))
    bar.close()
    return losses, size


def losses_of_streams(run: FinishedRun, snapshot: str, split: str) -> tuple[dict[str, list[float]], float]:
    """As losses_of_snapshot, of blocks that follow each other with the cache: 8 streams over the whole split.

    A rest shorter than a block is left out; of `evaluation.windows` blocks each stream reads its share.
    """
    limit = run.spec.get("evaluation", {}).get("windows")
    streams = Streams(run.corpus, split, run.sequence, STREAMS)
    blocks = len(streams) if limit is None else min(len(streams), max(1, limit // STREAMS))
    lengths, size, losses = token_bytes(run.corpus, split), 0.0, []
    at_once = min(STREAMS, run.windows_per_batch())
    bar = progress(f"validate {run.spec['run']} {snapshot} {split}", blocks, "block")
    for step, losses_B in enumerate(block_losses(run.model(snapshot), streams, range(blocks), micro_batch=at_once)):
        size += lengths[streams.at(step)[:, 1:]].sum()
        losses.append(losses_B.tolist())
        bar.update()
    bar.close()
    return {"loss": [of_block for of_stream in zip(*losses, strict=True) for of_block in of_stream]}, size


def six_digits(loss: float) -> float:
    """A window's loss as it is kept: there are thousands a run, and they are published."""
    return float(f"{loss:.6g}")


def validate(run: FinishedRun, *, split: str = "valid") -> tuple[list[dict], list[dict]]:
    """Rows of validation.csv and of validation_windows.csv.

    All windows of the split, or `evaluation.windows` of them, spread evenly; of 8 parallel streams the first blocks of
    each, so the beginnings of 8 parts of the split. Raises ValueError where there is none.
    """
    rows, window_rows = [], []
    losses_of = losses_of_streams if run.reads_streams else losses_of_snapshot
    for snapshot in run.snapshots:
        seen, size = losses_of(run, snapshot, split)
        losses = seen["loss"]
        means = {name: math.fsum(values) / len(values) for name, values in seen.items()}
        nats = math.fsum(losses) * run.sequence
        made = run.done["snapshots"][snapshot]
        rows.append(
            run.identity(snapshot)
            | {"step": made["step"], "tokens": made["tokens"], "split": split}
            | {"windows": len(losses), "perplexity": math.exp(means["loss"])}
            | means
            | {"bits_per_byte": float(nats / math.log(2) / size)}
        )
        labels = {"snapshot": snapshot, "split": split}
        window_rows += [labels | {"window": i, "loss": six_digits(one)} for i, one in enumerate(losses)]
    return rows, window_rows


def domain_losses(run: FinishedRun) -> list[dict]:
    """Rows of domain_losses.csv: the causal loss of each window of each domain's test text.

    Of `evaluation.windows` each domain gets its share. Raises ValueError where no domain has a window.
    """
    limit = run.spec.get("evaluation", {}).get("windows")
    share = None if limit is None else max(1, limit // max(1, len(run.corpus.domains)))
    rows = []
    for snapshot in run.snapshots:
        model = run.model(snapshot)
        for domain, windows_BS1 in domain_windows(run.corpus, "test", run.sequence, share):
            some = torch.from_numpy(windows_BS1).to(run.device).split(run.windows_per_batch())
            losses = torch.cat([window_losses(model, part) for part in some]).tolist()
            labels = {"snapshot": snapshot, "domain": domain}
            rows += [labels | {"window": i, "loss": six_digits(one)} for i, one in enumerate(losses)]
    if not rows:
        raise ValueError(f"{run.corpus.folder}: no domain of the test split has {run.sequence} + 1 tokens")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Command line; 2 and one sentence for an error of the user."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="validation.csv")
    parser.add_argument("--domains-output", type=Path, help="domain_losses.csv, of the test split")
    parser.add_argument("--windows-output", type=Path, help="validation_windows.csv")
    parser.add_argument("--split", choices=["train", "valid", "test"], help="default: valid; of streams test, too")
    options = parser.parse_args(arguments)

    def command() -> None:
        run = open_run(options.run, options.corpus, snapshots=options.snapshot, device=options.device)
        if options.domains_output:
            write_csv(options.domains_output, DOMAIN_COLUMNS, domain_losses(run))
        if not options.output:
            return
        rows, window_rows = validate(run, split=options.split or "valid")
        if options.split is None and run.reads_streams:
            rows, window_rows = map(list.__add__, (rows, window_rows), validate(run, split="test"))  # RMoE prints both
        if options.windows_output:
            write_csv(options.windows_output, WINDOW_COLUMNS, window_rows)
        write_csv(options.output, COLUMNS, rows)
        for row in rows:
            print("{run} {snapshot} {split}: loss {loss:.4f} over {windows} windows".format(**row))

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
