"""Checkpoints that survive a kill at any moment: written aside, checksummed, synced, renamed; the newest two are kept.

A checkpoint is a folder `step-00001000` of the files that the engine wrote and a `checkpoint.json` with their SHA-256
and what the checkpoint belongs to. It is never an output of the workflow, which would delete it with a failed job.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

KEPT = 2


def write(folder: Path, step: int, belongs: dict[str, str], save: Callable[[Path], None], rank: int, barrier) -> None:
    """Let every rank save(into a temporary folder), then rank 0 seals it as folder/step-…; barrier() joins them."""
    aside, final = folder / f"writing-{step:08d}", path_of(folder, step)
    if rank == 0:
        for left in folder.glob("writing-*"):  # of a job that was killed while it wrote
            shutil.rmtree(left)
        aside.mkdir(parents=True)
    barrier()
    try:
        save(aside)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{aside}: could not be written ({reason}); the checkpoint before it is whole") from error
    barrier()
    if rank == 0:
        files = {str(p.relative_to(aside)): sha256(p) for p in sorted(aside.rglob("*")) if p.is_file()}
        record = {"step": step, "belongs": belongs, "files": files}
        (aside / "checkpoint.json").write_text(json.dumps(record, indent=1))
        for path in aside.rglob("*"):
            sync(path)
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        sync(folder)
        for later in [path for path in folder.glob("step-*") if path.name > final.name]:
            shutil.rmtree(later)  # was broken, or the run would have gone on from it
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)
    barrier()


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def step_and_ranks(path: Path, ranks: int, spread: bool) -> tuple[int, int]:
    """Step of a checkpoint and how many ranks made it, from its own record.

    Raises ValueError where that is not `ranks` and experts are spread over them: only what every rank has whole, or a
    piece of a known row, can be cut anew (moe.repartition).
    """
    record = json.loads((path / "checkpoint.json").read_text())
    made_by = int(record["belongs"]["ranks"])
    if spread and made_by != ranks:
        raise ValueError(
            f"{path}: was made by {made_by} ranks with experts spread over them, this run has {ranks}; go on with "
            f"ranks={made_by}, or delete the folder to start anew"
        )
    return int(record["step"]), made_by


def newest(folder: Path, belongs: dict[str, str]) -> Path | None:
    """The newest whole checkpoint; broken ones are named and passed over.

    Raises ValueError for a checkpoint made from other data, another tokenizer or another setup.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        fault = broken(path)
        if fault:
            print(f"{path}: {fault}; going back to the checkpoint before it", file=sys.stderr)
            continue
        record = json.loads((path / "checkpoint.json").read_text())
        for what, here in belongs.items():
            there = record["belongs"].get(what)
            if there != here:
                raise ValueError(
                    f"{path}: was made with {what} {there}, this run has {here}; delete the folder to start anew"
                )
        return path
    return None


def broken(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((path / "checkpoint.json").read_text())["files"]
    except (OSError, ValueError, KeyError):
        return "checkpoint.json is missing or unreadable"
    for name, digest in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256(path / name) != digest:
            return f"{name} is truncated or altered (its SHA-256 differs)"
    return None


def check_disk(folder: Path, needed: int) -> None:
    """ValueError unless the disk of `folder` has room for `needed` bytes, those already there included."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free + there
    if free < needed:
        raise ValueError(
            f"{folder}: the disk has {free / 2**30:.1f} GiB free, the run's checkpoints need about "
            f"{needed / 2**30:.1f} GiB"
        )


def sha256(path: Path) -> str:
    """Digest of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the file or folder on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Write aside and rename, so that the file is whole or absent."""
    aside = path.with_name(path.name + ".writing")
    aside.write_bytes(content)
    sync(aside)
    aside.rename(path)
