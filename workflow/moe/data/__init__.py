"""Corpora: text -> documents -> token files -> batches.

`fetch` brings what lies on the hub, `prepare` writes a folder, `Corpus` opens it, `Windows`,
`Streams` and `held_out` cut it into sequences, `make_local_tasks` makes small evaluation tasks of its test split,
`Instructions` opens an instruction set in its tokens.
"""

from moe.data.corpus import Corpus
from moe.data.definition import check, load_definition
from moe.data.hub import fetch, needs_fetch
from moe.data.instructions import Instructions
from moe.data.prepare import prepare
from moe.data.streams import Streams
from moe.data.tasks import make_local_tasks
from moe.data.windows import Windows, domain_windows, held_out

__all__ = [
    "Corpus",
    "Instructions",
    "Streams",
    "Windows",
    "check",
    "domain_windows",
    "fetch",
    "held_out",
    "load_definition",
    "make_local_tasks",
    "needs_fetch",
    "prepare",
]
