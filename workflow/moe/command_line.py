"""How a command of this package ends for its user: progress and notes on stderr, an error as one sentence."""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm


def exit_code(command: Callable[[], None]) -> int:
    """Run a command for its exit code: 0, or 2 after one sentence on stderr for an error of the user."""
    try:
        command()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class Tee:
    """Stderr, and the same in a file; a reader that has gone away stops neither (a signal may have ended it)."""

    def __init__(self, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.streams = [sys.stderr, open(log, "a", encoding="utf-8")]  # noqa: SIM115 (for as long as the process)

    def write(self, text: str) -> None:
        for stream in self.streams:
            with suppress(OSError):
                stream.write(text)

    def flush(self) -> None:
        for stream in self.streams:
            with suppress(OSError):
                stream.flush()


def note(sentence: str) -> None:
    """Say something that is no error."""
    print(f"note: {sentence}", file=sys.stderr)


def progress(name: str, total: int | None, unit: str) -> tqdm:
    """A progress bar on stderr, for what takes longer than a second."""
    return tqdm(desc=name, total=total, unit=unit, delay=1, mininterval=1)
