"""One sentence for what a user wrote wrong, and the valid name that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

SHOWN = 12  # valid names that a sentence lists where none is near


def nearest(word: Any, known: Iterable[Any]) -> str:
    """The end of a sentence about an unknown `word` of a table: the nearest valid name, else all of them."""
    close, names = _closest(word, known)
    if close:
        return f"; the nearest valid name is {close!r}"
    return f"; valid: {names}" if names else ""


def did_you_mean(word: Any, known: Iterable[Any]) -> str:
    """The same for a command or a file, as a question."""
    close, names = _closest(word, known)
    if close:
        return f"; did you mean {close!r}?"
    return f"; known: {names}" if names else "; there is none"


def wrong(file, row, column, value, problem: str, names: Iterable[Any] = ()) -> ValueError:
    """Error to raise for one cell: file, row, column, value, the problem and the nearest valid name."""
    return ValueError(f"{file}, row {row}, column {column}: {str(value)!r} {problem}{nearest(value, names)}.")


def _closest(word: Any, known: Iterable[Any]) -> tuple[str | None, str]:
    known = [str(name) for name in known]
    close = get_close_matches(str(word), known, n=1, cutoff=0.5)
    return (close[0] if close else None), ", ".join(known[:SHOWN]) + (", …" if len(known) > SHOWN else "")
