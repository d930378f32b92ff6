"""Folders that appear whole or not at all, checksums, and room on the disk."""

import json
import os
import shutil
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path


@contextmanager
def whole_folder(folder, *, may_replace):
    """Yield a temporary folder beside `folder` that takes its place, synced, when the block ends well.

    What a killed attempt left is cleared. An existing `folder` is replaced only where every visible
    entry in it is one of `may_replace`, so that a mistyped path never deletes a user's files.
    """
    folder = Path(folder)
    visible = [p.name for p in folder.iterdir() if p.name[0] != "."] if folder.is_dir() else []
    strangers = [name for name in visible if name not in may_replace]
    if folder.exists() and (not folder.is_dir() or strangers):
        held = f"holds {min(strangers)!r}" if strangers else "is a file"
        raise ValueError(f"{folder}: not replaced, since it {held}, which is no part of a corpus")
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            sync(path)
        sync(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path, value):
    """Write JSON to a temporary name, sync, rename: a reader sees the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def read_json(path):
    """The JSON of a file; ValueError naming it where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged, not JSON ({error})") from None


def sync(path):
    """Have the file or folder on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path, algorithm="sha256"):
    """Hex digest of a file, read in pieces."""
    with open(path, "rb") as file:
        return file_digest(file, algorithm).hexdigest()


def check_room(folder, needed, what):
    """ValueError where the disk of `folder` has fewer than `needed` bytes free."""
    existing = next(p for p in [Path(folder).absolute(), *Path(folder).absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"{folder}: {what} needs about {needed / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB"
            " free: make room or point results elsewhere"
        )
