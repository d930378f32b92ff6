"""How a command of this package ends for its user: progress and notes on stderr, an error as one sentence."""

import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from tqdm import tqdm


def exit_code(command: Callable[[], None]) -> int:
    """Run a command for its exit code: 0, or 2 after one sentence on stderr for an error of the user."""
    try:
        command()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def note(sentence: str) -> None:
    """Say something that is no error."""
    print(f"note: {sentence}", file=sys.stderr)


def progress(name: str, total: int | None, unit: str) -> tqdm:
    """A progress bar on stderr, for what takes longer than a second."""
    return tqdm(desc=name, total=total, unit=unit, delay=1, mininterval=1)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest valid name, or all of them."""
    known = sorted(known)
    close = get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"
