"""Fetch a dataset (and a tokenizer) of the hub at a pinned commit, or take it from a mirror folder.

The original files are kept as they are: the hub records their checksums, and `prepare` streams them.
`datasets` alone decides which files a configuration and split consist of, from the README's front
matter or the names, on a skeleton of empty files, so that the decision needs no network.

Interrupted at any moment, a second call goes on: finished files are in progress.json, the one that was interrupted is
fetched anew, and manifest.json appears last.
"""

import os
import shutil
import tempfile
from fnmatch import fnmatch
from hashlib import sha1
from pathlib import Path

from moe.data.definition import check
from moe.data.sources import SUFFIXES
from moe.data.storage import check_room, read_json, sha256_of, sync, write_json
from moe.wrong import did_you_mean


def needs_fetch(definition):
    """Whether a definition names anything of the hub."""
    return "hub" in (definition["source"]["kind"], definition["tokenizer"]["kind"])


def fetch(definition, folder, *, mirror=None):
    """Bring the files of a definition's hub source and hub tokenizer into `folder`.

    mirror: folder with the hub's layout (owner/name/…), used instead of the network. Writes files/…,
    tokenizer/…, manifest.json {files: {path: {sha256, bytes}}, tokenizer, origin}. May be killed
    and called again. Errors: ValueError naming the dataset, file, configuration or split.
    """
    definition = check(definition)
    if not needs_fetch(definition):
        raise ValueError(f"source {definition['source']['kind']!r} has nothing to fetch, only `hub` has")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {key: definition[key] for key in ("source", "tokenizer") if definition[key]["kind"] == "hub"}
    wanted = {"wanted": wanted, "origin": "hub" if mirror is None else "mirror"}
    progress = _progress(folder, wanted)
    manifest = {**wanted, "files": {}}
    if definition["source"]["kind"] == "hub":
        manifest["files"] = _fetch_source(definition["source"], folder, mirror, progress)
    if definition["tokenizer"]["kind"] == "hub":
        options = definition["tokenizer"]
        store = _store(options, "model", mirror)
        path = options["file"]
        if path not in store.files:
            raise ValueError(f"{options['name']}: no file {path!r}{did_you_mean(path, store.files)}")
        facts = _take(store, path, folder / "tokenizer", progress)
        manifest["tokenizer"] = {"path": path, **facts}
    write_json(folder / "manifest.json", manifest)


def _fetch_source(source, folder, mirror, progress):
    store = _store(source, "dataset", mirror)
    paths = choose_files(source, store)
    if source["limit_bytes"]:  # compressed files hold at least as much text as their own size
        sizes = [store.files[path]["bytes"] for path in paths]
        enough = next(
            (i for i in range(len(sizes)) if sum(sizes[: i + 1]) >= source["limit_bytes"]),
            len(sizes),
        )
        paths = paths[: enough + 1]
    missing = sum(store.files[p]["bytes"] for p in paths if f"files/{p}" not in progress.done)
    if mirror is None:
        check_room(folder, missing, f"fetching {source['name']}")
    return {path: _take(store, path, folder / "files", progress) for path in paths}


def choose_files(source, store):
    """Paths of a source in order: those that match its `files`, or what its config and split consist of."""
    name = source["name"]
    if source["files"]:
        paths = []
        for pattern in source["files"]:
            found = [path for path in sorted(store.files) if fnmatch(path, pattern)]
            if not found:
                raise ValueError(f"{name}: no file matches {pattern!r}{did_you_mean(pattern, store.files)}")
            paths += [path for path in found if path not in paths]
    else:
        paths = _resolve(source, store)
    unreadable = [path for path in paths if not path.endswith(SUFFIXES)]
    if unreadable:
        raise ValueError(f"{name}: {unreadable[0]} is no text file, expected {', '.join(SUFFIXES)}")
    return paths


def _resolve(source, store):
    """Ask `datasets`, on a folder that has the README and otherwise empty files of the right names."""
    import datasets

    name, config, split = source["name"], source["config"], source["split"]
    with tempfile.TemporaryDirectory() as scratch:
        skeleton = Path(scratch) / name
        for path in store.files:
            (skeleton / path).parent.mkdir(parents=True, exist_ok=True)
            (skeleton / path).touch()
        if "README.md" in store.files:
            _copy_checked(store, "README.md", skeleton)
        try:
            builder = datasets.load_dataset_builder(str(skeleton), config, cache_dir=f"{scratch}/cache")
        except Exception as error:  # the library raises many kinds for one cause: no such configuration
            configs = _config_names(str(skeleton))
            if configs and config not in configs:
                raise ValueError(f"{name}: no config {config!r}{did_you_mean(config, configs)}") from None
            reason = " ".join(str(error).split())[:200].replace(str(skeleton), name)
            raise ValueError(f"{name}: no data files found: {reason}") from None
        splits = builder.config.data_files or {}
        if split not in splits:
            raise ValueError(f"{name}: no split {split!r}{did_you_mean(split, splits)}")
        return [Path(path).relative_to(skeleton.resolve()).as_posix() for path in splits[split]]


def _config_names(folder):
    import datasets

    try:
        return datasets.get_dataset_config_names(folder)
    except Exception:
        return []


def _store(options, repo_type, mirror):
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


class _progress:
    """Finished files of earlier calls, forgotten where something else was wanted then."""

    def __init__(self, folder, wanted):
        self.path, self.wanted = folder / "progress.json", wanted
        try:
            state = read_json(self.path) if self.path.exists() else {}
        except ValueError:
            state = {}
        self.done = state.get("done", {}) if state.get("wanted") == wanted else {}

    def add(self, key, facts):
        self.done[key] = facts
        write_json(self.path, {"wanted": self.wanted, "done": self.done})


def _take(store, path, folder, progress):
    """Have a file in `folder`, checked against the checksum that the hub records; {sha256, bytes}."""
    key = f"{folder.name}/{path}"
    target = folder / path
    facts = progress.done.get(key)
    if facts and target.is_file() and target.stat().st_size == facts["bytes"]:
        return facts
    _copy_checked(store, path, folder)
    facts = {"sha256": sha256_of(target), "bytes": target.stat().st_size}
    progress.add(key, facts)
    return facts


def _copy_checked(store, path, folder):
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
