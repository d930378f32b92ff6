"""Where the files of a dataset or model are, the hub at a commit or a mirror folder, each with its checksum."""

import os
import shutil
from hashlib import sha1
from pathlib import Path

from moe.data.storage import sha256_of, sync
from moe.wrong import did_you_mean


def store_of(options, repo_type, mirror):
    """Where the files of a dataset or model come from: a mirror folder where one is given, else the hub."""
    if mirror is not None:
        return Mirror(mirror, options["name"])
    return Hub(options["name"], options["revision"], repo_type)


class Mirror:
    """A dataset or model in a folder of the hub's layout. `files`: path -> {"bytes"}."""

    def __init__(self, mirror, name):
        mirror = Path(mirror).expanduser()
        self.root = mirror / name
        if not mirror.is_dir():
            raise ValueError(f"{mirror}: no such mirror folder")
        if not self.root.is_dir():
            names = [p.relative_to(mirror).as_posix() for p in mirror.glob("*/*") if p.is_dir()]
            raise ValueError(f"{mirror}: the mirror has no {name!r}{did_you_mean(name, names)}")
        self.files = {
            path.relative_to(self.root).as_posix(): {"bytes": path.stat().st_size}
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and ".cache" not in path.parts
        }

    def copy(self, path, folder):
        """Put a file into `folder`: a link where the disk allows, so a large mirror is not doubled."""
        target = Path(folder) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            os.link(self.root / path, partial)
        except OSError:
            shutil.copyfile(self.root / path, partial)
            sync(partial)
        partial.replace(target)


class Hub:
    """A dataset or model on the hub at a commit. `files`: path -> {"bytes", "sha256" | "sha1"}."""

    def __init__(self, name, revision, repo_type):
        from huggingface_hub import HfApi

        self.name, self.revision, self.repo_type = name, revision, repo_type
        self.files = {}
        with self._explained():
            tree = HfApi().list_repo_tree(name, recursive=True, revision=revision, repo_type=repo_type)
            for entry in tree:
                if hasattr(entry, "blob_id"):  # a file, not a folder
                    recorded = {"sha256": entry.lfs.sha256} if entry.lfs else {"sha1": entry.blob_id}
                    self.files[entry.path] = {"bytes": entry.size, **recorded}

    def copy(self, path, folder):
        """Download a file into `folder`; the client goes on where a connection was dropped, several times."""
        from huggingface_hub import hf_hub_download

        with self._explained():
            hf_hub_download(self.name, path, repo_type=self.repo_type, revision=self.revision, local_dir=folder)

    def _explained(self):
        return _Explained(f"{self.name} at {self.revision[:12]}")


class _Explained:
    """Turns what a network client may raise into one sentence."""

    def __init__(self, what):
        self.what = what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None or not issubclass(kind, Exception):
            return False
        reason = " ".join(str(error).split())[:160] or kind.__name__
        raise ValueError(
            f"{self.what}: could not be fetched ({kind.__name__}: {reason}): run again to go on where it"
            " stopped, or set a mirror"
        ) from None


def copy_checked(store, path, folder):
    """Copy a file; what a killed call left may be wrong, so one more attempt starts from nothing."""
    target = folder / path
    for attempt in (1, 2):
        store.copy(path, folder)
        problem = _differs(target, store.files[path])
        if problem is None:
            return
        target.unlink()
        if attempt == 2:
            raise ValueError(f"{target}: {problem}, deleted: fetch again")


def _differs(target, recorded):
    size = target.stat().st_size
    if size != recorded["bytes"]:
        return f"{size} bytes, the hub records {recorded['bytes']}"
    if "sha256" in recorded:
        found = sha256_of(target)
        if found != recorded["sha256"]:
            return f"sha256 {found[:12]}…, the hub records {recorded['sha256'][:12]}…"
    elif "sha1" in recorded:  # git's name of a small file
        found = sha1(b"blob %d\0" % size + target.read_bytes()).hexdigest()
        if found != recorded["sha1"]:
            return f"git id {found[:12]}…, the hub records {recorded['sha1'][:12]}…"
    return None
