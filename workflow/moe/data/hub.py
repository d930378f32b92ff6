"""Fetch a dataset (and a tokenizer) of the hub at a pinned commit, or take it from a mirror folder.

The original files are kept as they are: the hub records their checksums, and `prepare` streams them.
`datasets` alone decides which files a configuration and split consist of, from the README's front
matter or the names, on a skeleton of empty files, so that the decision needs no network.

Interrupted at any moment, a second call goes on: finished files are in progress.json, the one that was interrupted is
fetched anew, and manifest.json appears last.
"""

import tempfile
from fnmatch import fnmatch
from pathlib import Path

from moe.data.definition import check
from moe.data.sources import SUFFIXES
from moe.data.storage import check_room, read_json, sha256_of, write_json
from moe.data.stores import copy_checked, store_of
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
    progress = _Progress(folder, wanted)
    manifest = {**wanted, "files": {}}
    if definition["source"]["kind"] == "hub":
        manifest["files"] = _fetch_source(definition["source"], folder, mirror, progress)
    if definition["tokenizer"]["kind"] == "hub":
        options = definition["tokenizer"]
        store = store_of(options, "model", mirror)
        path = options["file"]
        if path not in store.files:
            raise ValueError(f"{options['name']}: no file {path!r}{did_you_mean(path, store.files)}")
        facts = _take(store, path, folder / "tokenizer", progress)
        manifest["tokenizer"] = {"path": path, **facts}
    write_json(folder / "manifest.json", manifest)


def _fetch_source(source, folder, mirror, progress):
    store = store_of(source, "dataset", mirror)
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
            copy_checked(store, "README.md", skeleton)
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


class _Progress:
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
    copy_checked(store, path, folder)
    facts = {"sha256": sha256_of(target), "bytes": target.stat().st_size}
    progress.add(key, facts)
    return facts
