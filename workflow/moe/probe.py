"""How a snapshot routes the test text, counted by layer, domain, token and expert; its scores, experts and router.

    python -m moe.probe RUN CORPUS --output FOLDER [--whole]

writes what the figures read: routing.csv (by layer, domain and expert), token_activity.csv (by token id),
top_tokens.csv (an expert's most faithful tokens), of the scores over all experts score_statistics.csv,
score_entropy.csv and mutual_information.csv, and weights.csv (norms of the router, similarity of the experts, by
layer); with --whole instead all that was counted, which may be large: routing.parquet and occurrences.parquet.

Letters: B windows, S tokens of a window, T = B·S, E experts, L layers.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from moe import statistics
from moe.command_line import exit_code, progress
from moe.data import Corpus
from moe.finished import FinishedRun, batched, open_run, parser_of, write_csv
from moe.score_statistics import ScoreTables
from moe.weights import WEIGHTS, model_at_start, weight_rows

PENDING_ROWS = 2**20  # counted rows of a layer that wait to be added up: bounds the memory besides the result
DOMAIN = pa.dictionary(pa.int16(), pa.string())
ROUTES = pa.schema(
    [("layer", pa.int16()), ("domain", DOMAIN), ("token", pa.int32()), ("expert", pa.int16())]
    + [("routed", pa.int64()), ("gate", pa.float64())]
)
OCCURRENCES = pa.schema([("domain", DOMAIN), ("token", pa.int32()), ("occurrences", pa.int64())])


class Sums:
    """Adds up tables of counts by their key columns; holds the result and at most PENDING_ROWS rows more."""

    def __init__(self, keys: list[str]):
        self.keys, self.tables, self.rows = keys, [], 0

    def add(self, table: pd.DataFrame) -> None:
        self.tables.append(table)
        self.rows += len(table)
        if self.rows > PENDING_ROWS:
            self.tables, self.rows = [self.total()], 0

    def total(self) -> pd.DataFrame:
        """One row per key, sorted by key."""
        return pd.concat(self.tables).groupby(self.keys, as_index=False).sum()


def probed_batches(run: FinishedRun, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Input tokens [B, S] and their domains [B, S], over `evaluation.probe_tokens` tokens of a split.

    Windows run on across documents, as in training; the domain of a token is that of its document. Of a run that was
    trained on streams, each batch goes on where the one before ended.
    """
    asked = run.spec.get("evaluation", {}).get("probe_tokens")
    limit = None if asked is None else max(1, asked // run.sequence)
    tokens, (starts, domains) = run.corpus.tokens(split), run.corpus.documents(split)
    windows = batched(run.windows(split, limit), run.windows_per_batch()) if not run.reads_streams else None
    for batch in windows or run.blocks(split, limit):
        places_BS = np.stack(batch)[:, :-1]
        documents_BS = np.searchsorted(starts, places_BS, side="right") - 1
        yield tokens[places_BS].astype(np.int64), domains[documents_BS].astype(np.int64)


def probed_tokens(run: FinishedRun, split: str) -> int:
    """At most how many tokens `probed_batches` gives."""
    asked = run.spec.get("evaluation", {}).get("probe_tokens")
    return len(run.corpus.tokens(split)) if asked is None else min(asked, len(run.corpus.tokens(split)))


@torch.no_grad()
def probe(
    run: FinishedRun,
    snapshot: str,
    *,
    split: str = "test",
    model: nn.Module | None = None,
    scores: ScoreTables | None = None,
) -> tuple[list[pd.DataFrame], pd.DataFrame]:
    """Counts of routes of each MoE layer (see statistics.count_routes), and occurrences of each token id by domain.

    model: the snapshot's, where it is loaded already. scores: collects each layer's scores and gates besides.
    A dense model has no layer to count. Raises ValueError where the split is shorter than one window.
    """
    model, vocabulary = model or run.model(snapshot), run.corpus.vocabulary
    layers: list[Sums] = []
    occurrences = Sums(["domain", "token"])
    bar = progress(f"probe {run.spec['run']} {snapshot}", None, "window")
    dense, cache = False, {"cache": []} if run.reads_streams else {}
    for tokens_BS, domains_BS in probed_batches(run, split):
        token_T, domain_T = tokens_BS.ravel(), domains_BS.ravel()
        once = pd.DataFrame({"domain": domain_T, "token": token_T, "occurrences": 1})
        occurrences.add(once.groupby(occurrences.keys, as_index=False).sum())
        routings = []
        if not dense:
            model(torch.from_numpy(tokens_BS).to(run.device), routings=routings, **cache)
            dense = not routings
        layers = layers or [Sums(["domain", "token", "expert"]) for _ in routings]
        gates_LTE = [routing.gates_TE.float().cpu().numpy() for routing in routings]
        for sums, gates_TE in zip(layers, gates_LTE, strict=True):
            sums.add(statistics.count_routes(gates_TE, domain_T, token_T, vocabulary=vocabulary))
        if scores is not None and routings:
            scores_LTE = (model.router.gates.distribution(routing.scores_TE.float()) for routing in routings)
            scores.add(list(zip((scores_TE.cpu().numpy() for scores_TE in scores_LTE), gates_LTE, strict=True)))
        bar.update(len(tokens_BS))
    bar.close()
    return [sums.total() for sums in layers], occurrences.total()


def write_parquet(path: Path, schema: pa.Schema, tables: list[pd.DataFrame], domains: list[str]) -> None:
    """Write tables one after another, a row group each, atomically; domain indices become names."""
    partial = path.with_name(path.name + ".partial")
    names = pa.array(domains, pa.string())
    with pq.ParquetWriter(partial, schema) as writer:
        for table in tables:
            columns = {name: pa.array(table[name].to_numpy()) for name in schema.names}
            indices = columns["domain"].cast(pa.int16())
            columns["domain"] = pa.DictionaryArray.from_arrays(indices, names)
            writer.write_table(pa.table(columns).cast(schema))
    os.replace(partial, path)


def spelled(corpus: Corpus, tokens: pd.Series) -> list[str]:
    """The text of token ids; a special token, which decodes to nothing, by its name."""
    text = corpus.tokenizer
    return [text.decode([token]) or text.tokenizer.id_to_token(int(token)) or "" for token in tokens]


def summaries(run: FinishedRun, layers: list[pd.DataFrame], occurrences: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The small tables that figures read, by file name; without rows where the model is dense."""
    model, domains = run.spec["model"], dict(enumerate(run.corpus.domains))
    experts = model.get("experts", 1) * model.get("granularity", 1)
    none = pd.DataFrame(columns=statistics.ROUTES, dtype=np.int64)
    routes = pd.concat([none, *(table.assign(layer=layer) for layer, table in enumerate(layers))])
    counts = statistics.domain_counts(routes, occurrences, layers=len(layers), experts=experts)
    activity = statistics.token_activity(routes, occurrences, layers=len(layers))
    top = statistics.top_tokens(routes, occurrences)
    activity.insert(1, "text", spelled(run.corpus, activity["token"]))
    top.insert(4, "text", spelled(run.corpus, top["token"]))
    counts["domain"] = counts["domain"].map(domains)
    return {"routing.csv": counts, "token_activity.csv": activity, "top_tokens.csv": top}


def main(arguments: list[str] | None = None) -> int:
    """Command line; 2 and one sentence for an error of the user."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--whole", action="store_true", help="all that was counted, as Parquet")
    parser.add_argument("--split", default="test", choices=["train", "valid", "test"])
    options = parser.parse_args(arguments)

    def command() -> None:
        run = open_run(options.run, options.corpus, snapshots=options.snapshot, device=options.device)
        # One table has one snapshot: the last of the run unless another is asked for.
        snapshot, scores = run.snapshots[-1], ScoreTables(probed_tokens(run, options.split))
        model = run.model(snapshot)
        layers, occurrences = probe(run, snapshot, split=options.split, model=model, scores=scores)
        if not options.whole:
            for name, table in (summaries(run, layers, occurrences) | scores.tables()).items():
                write_csv(options.output / name, list(table.columns), table.to_dict("records"))
            write_csv(options.output / "weights.csv", WEIGHTS, weight_rows(model, model_at_start(run.spec)))
        else:
            routes = [table.assign(layer=layer) for layer, table in enumerate(layers)]
            write_parquet(options.output / "occurrences.parquet", OCCURRENCES, [occurrences], run.corpus.domains)
            write_parquet(options.output / "routing.parquet", ROUTES, routes, run.corpus.domains)
        tokens = occurrences["occurrences"].sum()
        for layer, table in enumerate(layers):
            print(f"layer {layer}: {table['routed'].sum() / tokens:.3f} experts a token")

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
