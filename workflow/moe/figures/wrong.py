"""One sentence for a wrong cell of a table."""

from collections.abc import Iterable
from difflib import get_close_matches


def wrong(file, row, column, value, problem: str, names: Iterable[str] = ()) -> ValueError:
    """Error to raise for one cell: file, row, column, value, the problem and the nearest valid name."""
    names = [str(name) for name in names]
    near = get_close_matches(str(value), names, n=1)
    hint = ""
    if near:
        hint = f"; the nearest valid name is {near[0]!r}"
    elif names:
        hint = f"; valid: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
    return ValueError(f"{file}, row {row}, column {column}: {str(value)!r} {problem}{hint}.")
