"""How much of the tokenizer library's own rate reaches the token files."""

import os
import tempfile
import time
from pathlib import Path

from moe.data import tokens
from moe.data.definition import check
from moe.data.prepare import open_source, open_tokenizer


def benchmark(definition, *, megabytes=16, repeats=3, workers=None):
    """Rates in MB/s of text: {"ours", "bare", "bare_fast", "ratio", "megabytes"}.

    bare: `encode_batch` of the library over documents in memory, a megabyte at a time, nothing kept;
    it has no reading, splitting or writing to do. bare_fast: the same by `encode_batch_fast`, which
    leaves out offsets. ours: from the files to token files; ratio = ours / bare. All take the best
    of `repeats` turns in alternation, so that a busy machine slows none of them alone.
    """
    definition = check(definition)
    if "kind" in definition["split"]:
        raise ValueError("a running text has no documents whose tokenization could be timed: choose another corpus")
    workers = workers or len(os.sched_getaffinity(0))
    os.environ.setdefault("RAYON_NUM_THREADS", str(workers))
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    best = dict.fromkeys(("ours", "bare", "bare_fast"), float("inf"))
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        documents = open_source(definition["source"], scratch, workers=workers)
        documents.limit_bytes = int(megabytes * 1e6)
        text = open_tokenizer(definition, documents)
        sample = list(tokens.batches_of(documents, definition["split"], [], limit_bytes=documents.limit_bytes))
        size = sum(piece.size for batch in sample for piece in batch)
        sample = [[piece.text for piece in batch] for batch in sample]
        library = {
            "bare": text.tokenizer.encode_batch,
            "bare_fast": text.tokenizer.encode_batch_fast,
        }
        for _ in range(repeats):
            for name, encode in library.items():
                begin = time.perf_counter()
                for batch in sample:
                    encode(batch, add_special_tokens=False)
                best[name] = min(best[name], time.perf_counter() - begin)
            begin = time.perf_counter()
            tokens.write_tokens(
                documents,
                text,
                scratch,
                weights=definition["split"],
                domains=list(documents.domains),
                limit_bytes=documents.limit_bytes,
            )
            best["ours"] = min(best["ours"], time.perf_counter() - begin)
    rates = {name: size / 1e6 / seconds for name, seconds in best.items()}
    return {**rates, "ratio": rates["ours"] / rates["bare"], "megabytes": size / 1e6}
