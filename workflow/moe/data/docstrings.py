"""An instruction set made of a prepared corpus: the signature of a function is the input, its docstring the output.

Only from training documents of the domain `python`, so that what is held out stays so.
"""

import ast
import inspect
import re
import warnings
from hashlib import blake2b

from moe.data.alpaca import Example

DOMAIN = "python"
INSTRUCTION = "Write the docstring of this function."
SHORTEST = 20  # characters of a docstring; below it stand placeholders


def docstring_examples(corpus):
    """Every documented function of the training split as an Example, none twice, ordered by hash.

    corpus: data.Corpus. The same corpus gives the same list. Errors: ValueError where it has no documents of `python`,
    or no documented function in them.
    """
    if DOMAIN not in corpus.domains:
        raise ValueError(
            f"{corpus.folder}: instructions of kind docstrings need documents of domain {DOMAIN!r}, the corpus has"
            f" {', '.join(corpus.domains)}"
        )
    found = {}
    tokens, (starts, domains) = corpus.tokens("train"), corpus.documents("train")
    for document in (domains == corpus.domains.index(DOMAIN)).nonzero()[0]:
        text = corpus.tokenizer.decode(tokens[starts[document] : starts[document + 1]].tolist())
        for signature, docstring in documented_functions(text):
            example = Example(INSTRUCTION, signature, docstring)
            found[blake2b("\0".join(example).encode("utf-8", "replace"), digest_size=16).digest()] = example
    if not found:
        raise ValueError(f"{corpus.folder}: no documented function in the training documents of domain {DOMAIN!r}")
    return [example for _, example in sorted(found.items())]


def documented_functions(source):
    """(signature, docstring) of each function of a Python source, in its order; none where it cannot be parsed.

    The signature is the source from `def` to the colon, its indentation removed; the docstring as `inspect` cleans it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the sources of others
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = source.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) >= SHORTEST and node.body[0].lineno > node.lineno:
                header = "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
                header = re.sub(r"\s*#[^\n]*$", "", inspect.cleandoc(header)).rstrip()
                if header.endswith(":"):  # else comments or blank lines stand between
                    yield header, docstring
