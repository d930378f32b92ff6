"""The embedded corpus: real text that every installation of the lock already has on its disk.

Four domains, none imported, only read:

* `python`: the sources of the standard library;
* `cpp`: the C++ headers that torch ships;
* `prose`: the docstrings of the scientific packages, English text with its formulas and lists;
* `examples`: the interactive sessions of those docstrings (`>>>` lines with what they print) and
  NLTK's doctest manuals. It stands where package descriptions might: those are 2 MB, much of it
  licences and badges, while the sessions are 3 times as much, unlike the other three (dialogue,
  numbers, tables), and pinned with the packages.

What keeps it the same from machine to machine: files are those listed in a distribution's RECORD
(so no cache, no user's file), keys are paths relative to site-packages, the distributions are
named here, generated files are left out by their own marker, documents are ordered by hash.
"""

import ast
import gc
import inspect
import re
import sys
import sysconfig
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, distribution
from multiprocessing import get_context
from pathlib import Path

from moe.data.definition import LOCAL_DOMAINS

DISTRIBUTIONS = (
    "datasets",
    "matplotlib",
    "mpmath",
    "networkx",
    "nltk",
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
    "seaborn",
    "sympy",
    "torch",
)
TEST_FOLDERS = {"test", "tests", "idle_test", "testing"}  # some distributions of Python lack them
# Wheels for a GPU hold more of these folders than wheels for the CPU; leaving them out keeps both alike.
ACCELERATORS = {"cuda", "cudnn", "hip", "miopen", "mps", "xpu", "metal"}
GENERATED = re.compile(rb"@generated|generated (by|from|automatically|using)|do not edit", re.I)
SESSION = re.compile(r"^[ \t]*>>> .*(?:\n[ \t]*\S.*)*", re.M)
SHORTEST_DOCUMENT = 200  # characters; below it stand stubs and one-line files
LONGEST_DOCUMENT = 400_000  # above it stand tables and unmarked generated code that would fill a split


def collect(*, domains=None, limit_mb=None, workers=1):
    """List of (text, domain), no text twice, ordered by hash so that every stretch mixes domains.

    `limit_mb` (megabytes a domain) reads only as many files as it needs, in an order set by the
    hash of their relative path. Errors: ValueError naming a distribution that is not installed.
    """
    wanted = tuple(domains or LOCAL_DOMAINS)
    jobs = {
        "python": (read_source, _standard_library),
        "cpp": (read_source, _headers),
        "prose": (read_docstrings, _package_sources),
        "examples": (read_docstrings, _package_sources),
    }
    documents = {}
    passes = {}
    for domain in wanted:
        passes.setdefault(jobs[domain], []).append(domain)
    limit = None if limit_mb is None else int(limit_mb * 1_000_000)
    # spawn, not fork: the caller may hold threads of a tokenizer or of torch. A syntax tree is many objects without a
    # cycle, so collecting them would only cost a fifth of the parsing.
    own = {"mp_context": get_context("spawn"), "initializer": gc.disable}
    pool = ProcessPoolExecutor(workers, **own) if workers > 1 else None
    try:
        for (read, list_files), names in passes.items():
            files = sorted(list_files(), key=lambda item: _hash(item[0]))
            mapped = map if pool is None else partial(pool.map, chunksize=16)
            _gather(documents, mapped(read, [str(path) for _, path in files]), names, limit)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return [(text, domain) for _, (text, domain) in sorted(documents.items())]


def _gather(documents, results, names, limit):
    """Add what the readers found, each text once, until every domain of `names` has `limit` bytes."""
    sizes = dict.fromkeys(names, 0)
    for found in results:
        for name in names:
            text = found.get("examples" if name == "examples" else "text")
            if not text or not SHORTEST_DOCUMENT <= len(text) <= LONGEST_DOCUMENT:
                continue
            if (limit is None or sizes[name] < limit) and _hash(text) not in documents:
                documents[_hash(text)] = (text, name)
                sizes[name] += len(text)
        if limit is not None and min(sizes.values()) >= limit:
            return


def read_source(path):
    """{"text": the file}, or {} where it is generated or not UTF-8."""
    raw = Path(path).read_bytes()
    if GENERATED.search(raw[:600]):
        return {}
    try:
        return {"text": raw.decode("utf-8").replace("\r\n", "\n")}
    except UnicodeDecodeError:
        return {}


def read_docstrings(path):
    """{"text": prose, "examples": sessions} of a module's docstrings (a .doctest file: sessions)."""
    raw = Path(path).read_bytes()
    if path.endswith(".doctest"):
        return {"examples": raw.decode("utf-8", "ignore").replace("\r\n", "\n")}
    if b'"""' not in raw and b"'''" not in raw:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the sources of others
            tree = ast.parse(raw)
    except (SyntaxError, ValueError):
        return {}
    prose, examples = [], []
    for docstring in _docstrings(tree):
        sessions = SESSION.findall(docstring)
        examples += sessions
        text = SESSION.sub("", docstring) if sessions else docstring
        text = re.sub(r"\n{3,}", "\n\n", text).strip()
        if len(text) >= SHORTEST_DOCUMENT:
            prose.append(text)
    return {
        "text": "\n\n".join(dict.fromkeys(prose)),
        "examples": "\n\n".join(map(inspect.cleandoc, dict.fromkeys(examples))),
    }


def _docstrings(tree):
    """Docstrings of a module, its classes and functions; only bodies are walked, never expressions."""
    blocks = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, blocks):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
        for name in ("body", "orelse", "finalbody", "handlers"):
            children = getattr(node, name, None)
            if isinstance(children, list):
                stack.extend(c for c in reversed(children) if isinstance(c, ast.stmt | ast.excepthandler))


def _standard_library():
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        own = parts[0].removesuffix(".py") in sys.stdlib_module_names  # no sitecustomize, no site-packages
        # _sysconfigdata holds the interpreter's prefix
        if own and not parts[0].startswith("_sysconfigdata") and not TEST_FOLDERS & set(parts):
            yield "/".join(parts), path


def _headers():
    for key, path in _recorded("torch"):
        header = key.startswith("torch/include/") and key.endswith((".h", ".hpp", ".cuh"))
        if header and not ACCELERATORS & set(key.split("/")):
            yield key, path


def _package_sources():
    for name in DISTRIBUTIONS:
        for key, path in _recorded(name):
            if key.endswith(".doctest") or key.endswith(".py") and not TEST_FOLDERS & set(key.split("/")):
                yield key, path


def _recorded(name):
    """(relative path, path) of the files in a distribution's RECORD, sorted."""
    try:
        files = distribution(name).files
    except PackageNotFoundError:
        files = None
    if not files:
        raise ValueError(
            f"the local corpus reads the distribution {name!r}, which is not installed with its"
            f" RECORD in {sys.prefix}: install the lock in envs/"
        )
    for file in sorted(files, key=str):
        key = file.as_posix()
        if not key.startswith("..") and "__pycache__" not in key:
            path = Path(file.locate())
            if path.is_file():
                yield key, path


def _hash(text):
    return blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
