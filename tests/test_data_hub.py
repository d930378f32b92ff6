"""Fetching: a mirror, a hub of our own on this machine, kills at any moment, checksums."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from threading import Thread

import pytest
import zstandard

from moe.data import Corpus, fetch, load_definition, prepare
from moe.data.hub import choose_files

WORKFLOW = Path(__file__).parents[1] / "workflow"
REAL = os.environ.get("REROUTED_DATA")
REVISION = "0123456789abcdef0123456789abcdef01234567"
README = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: small/*.jsonl.zst
- config_name: large
  data_files:
  - split: train
    path: large/*.jsonl.zst
---
"""


def write_dataset(root, bulk=0):
    """owner/texts in the hub's layout: two configurations, files of some kilobytes."""
    (root / "small").mkdir(parents=True)
    (root / "large").mkdir()
    (root / "README.md").write_text(README)
    for config, count in (("small", 3), ("large", 5)):
        for i in range(count):
            lines = [
                json.dumps({"text": f"{config} {i} {j} " + os.urandom(bulk).hex(), "meta": {"set": f"s{i % 2}"}})
                for j in range(40)
            ]
            content = zstandard.compress("\n".join(lines).encode())
            (root / config / f"{i}.jsonl.zst").write_bytes(content)


def definition(**source):
    hub = {"kind": "hub", "name": "owner/texts", "config": "small", "split": "train", "revision": REVISION}
    return {
        "source": {**hub, "domain": "meta.set", **source},
        "tokenizer": {"kind": "bytes"},
        "split": {"train": 2, "valid": 1, "test": 1},
    }


@pytest.fixture
def mirror(tmp_path):
    write_dataset(tmp_path / "mirror" / "owner" / "texts")
    return tmp_path / "mirror"


def test_a_mirror_gives_the_files_of_config_and_split_and_then_a_corpus(mirror, tmp_path):
    fetch(definition(), tmp_path / "fetched", mirror=mirror)
    manifest = json.loads((tmp_path / "fetched" / "manifest.json").read_text())
    assert list(manifest["files"]) == [f"small/{i}.jsonl.zst" for i in range(3)]
    prepare(definition(), tmp_path / "c", fetched=tmp_path / "fetched", workers=1)
    corpus = Corpus(tmp_path / "c")
    assert corpus.domains == ["s0", "s1"]
    assert sum(c["documents"] for c in corpus.manifest["splits"].values()) == 120


def test_patterns_and_a_limit_choose_fewer_files(mirror, tmp_path):
    wanted = definition(files=["large/[12].jsonl.zst", "small/0*"], config=None)
    fetch(wanted, tmp_path / "f", mirror=mirror)
    files = json.loads((tmp_path / "f" / "manifest.json").read_text())["files"]
    assert list(files) == ["large/1.jsonl.zst", "large/2.jsonl.zst", "small/0.jsonl.zst"]
    one = next(iter(files.values()))["bytes"]
    fetch(definition(limit_bytes=one - 1), tmp_path / "g", mirror=mirror)
    assert list(json.loads((tmp_path / "g" / "manifest.json").read_text())["files"]) == ["small/0.jsonl.zst"]
    prepare(definition(limit_bytes=300), tmp_path / "c", fetched=tmp_path / "g", workers=1)
    counted = sum(c["bytes"] for c in Corpus(tmp_path / "c").manifest["splits"].values())
    assert 300 <= counted < 330


BAD = {
    "dataset": ({"name": "owner/text"}, r"the mirror has no 'owner/text'; did you mean 'owner/texts'\?"),
    "config": ({"config": "smal"}, r"owner/texts: no config 'smal'; did you mean 'small'\?"),
    "no config": ({"config": None}, "owner/texts: no config None"),
    "split": ({"split": "trian"}, r"owner/texts: no split 'trian'; did you mean 'train'\?"),
    "files": ({"files": ["small/9.jsonl.zst"]}, r"no file matches 'small/9.jsonl.zst'; did you mean 'small/"),
    "no text": ({"files": ["README.md"]}, "README.md is no text file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_mirror_lacks_is_named(mirror, tmp_path, case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message) as raised:
        fetch(definition(**change), tmp_path / "fetched", mirror=mirror)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "fetched" / "manifest.json").exists()


def test_no_mirror_and_nothing_fetched_are_named(mirror, tmp_path):
    with pytest.raises(ValueError, match="no such mirror folder"):
        fetch(definition(), tmp_path / "f", mirror=tmp_path / "miror")
    with pytest.raises(ValueError, match="owner/texts comes from the hub: fetch it first"):
        prepare(definition(), tmp_path / "c")


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_damaged_fetched_file_is_named(mirror, tmp_path, damage):
    shutil.copytree(mirror, tmp_path / "copy")
    fetch(definition(), tmp_path / "f", mirror=tmp_path / "copy")
    file = tmp_path / "f" / "files" / "small" / "1.jsonl.zst"
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "altered":
        content[30] ^= 1
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"small/1\.jsonl\.zst: (sha256|missing)"):
        prepare(definition(), tmp_path / "c", fetched=tmp_path / "f", workers=1)


PUBLIC = {  # corpus -> names of the hub's files at its revision, those meant first
    "pile-gpt2": ([f"train/{i:02d}.jsonl.zst" for i in range(1, 30)], ["train/00.jsonl.zst", "val.jsonl.zst"]),
    "enwik8": (["enwik8-raw/train/0000.parquet"], ["enwik8/train/0000.parquet", "enwik8-raw/train/index.duckdb"]),
    "wikitext-103": (
        [f"wikitext-103-v1/train-{i:05d}-of-00002.parquet" for i in range(2)]
        + [f"wikitext-103-v1/{split}-00000-of-00001.parquet" for split in ("validation", "test")],
        ["wikitext-103-raw-v1/train-00000-of-00002.parquet", "wikitext-2-v1/test-00000-of-00001.parquet"],
    ),
}


@pytest.mark.parametrize("corpus", PUBLIC)
def test_the_public_corpora_choose_the_files_they_mean(corpus):
    """By the names of their files at the pinned commits, without a network."""
    meant, others = PUBLIC[corpus]

    class Names:
        files = dict.fromkeys([*others, "README.md", *meant])

    definition = load_definition(WORKFLOW.parent / "config" / "corpora" / f"{corpus}.yaml")
    assert choose_files(definition["source"], Names) == meant


@pytest.mark.skipif(not REAL, reason="REROUTED_DATA is unset: no real mirror")
def test_the_real_mirror(tmp_path):
    wanted = definition(name="EleutherAI/lambada_openai", config="default", split="test", text="text", domain=None)
    fetch(wanted, tmp_path / "f", mirror=Path(REAL) / "mirror")
    prepare(wanted, tmp_path / "c", fetched=tmp_path / "f", workers=1)
    counts = Corpus(tmp_path / "c").manifest["splits"]
    assert sum(c["documents"] for c in counts.values()) == 5153
    with pytest.raises(ValueError, match="no config 'ARC-Eazy'; did you mean 'ARC-Easy'"):
        fetch(definition(name="allenai/ai2_arc", config="ARC-Eazy"), tmp_path / "g", mirror=Path(REAL) / "mirror")


@contextmanager
def hub(root, *, pause=0.0, lie=None, drops=None):
    """A hub on this machine: the tree, and files in pieces with `pause` between them.

    drops: how many more connections to end in the middle of a file, {"left": n}.
    """
    served, drops = [], drops or {"left": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(True)

        def do_HEAD(self):
            self.answer(False)

        def answer(self, body):
            path = self.path.split("?")[0]
            if not root.is_dir():
                return self.send_error(404)
            if "/tree/" in path:
                return self.tree()
            file = root / path.split(f"/resolve/{REVISION}/")[-1]
            content = file.read_bytes()
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            digest = sha256(content).hexdigest()
            for name, value in {
                "ETag": f'"{digest}"',
                "X-Repo-Commit": REVISION,
                "Content-Length": len(content) - start,
                "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
                "Accept-Ranges": "bytes",
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            if body:
                served.append((file.name, start))
                content = content[:40] + b"lie!" + content[44:] if file.suffix == lie else content
                end = len(content)
                if drops["left"] > 0 and file.suffix == ".zst":
                    drops["left"] -= 1
                    end = start + (end - start) * 9 // 10
                for i in range(start, end, 1 << 16):
                    self.wfile.write(content[i : min(end, i + (1 << 16))])
                    self.wfile.flush()
                    time.sleep(pause)
                if end < len(content):  # as a network does that fails
                    self.connection.shutdown(SHUT_RDWR)
                    self.close_connection = True

        def tree(self):
            entries = []
            for path in sorted(p for p in root.rglob("*") if p.is_file()):
                content, entry = path.read_bytes(), {"type": "file", "path": path.relative_to(root).as_posix()}
                entry |= {"size": len(content), "oid": sha1(b"blob %d\0" % len(content) + content).hexdigest()}
                if path.suffix == ".zst":
                    lfs = {"oid": sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                    entry["lfs"] = lfs
                entries.append(entry)
            body = json.dumps(entries).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        server.server_close()


def start_fetch(endpoint, folder, tmp_path):
    (tmp_path / "d.yaml").write_text(json.dumps(definition()))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    environment |= {"HF_ENDPOINT": endpoint, "PYTHONPATH": str(WORKFLOW), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "moe.data", "fetch", str(tmp_path / "d.yaml"), str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def contents(folder):
    return {p.name: sha256(p.read_bytes()).hexdigest() for p in (folder / "files" / "small").iterdir()}


@pytest.mark.promise("A fetch killed in the middle goes on: the same files")
def test_a_killed_fetch_goes_on_and_ends_with_the_same_files(tmp_path):
    write_dataset(tmp_path / "owner" / "texts", bulk=8000)
    with hub(tmp_path / "owner" / "texts", pause=0.1) as (endpoint, served):
        for moment in (1, 3):  # in the first file, and when one is done
            process = start_fetch(endpoint, tmp_path / "f", tmp_path)
            deadline = time.monotonic() + 60
            while len({n for n, _ in served if "zst" in n}) < moment and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.15)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (tmp_path / "f" / "manifest.json").exists()
        before = len(served)
        process = start_fetch(endpoint, tmp_path / "f", tmp_path)
        assert process.communicate(timeout=60)[1] == "" and process.returncode == 0
    original = tmp_path / "owner" / "texts" / "small"
    assert contents(tmp_path / "f") == {p.name: sha256(p.read_bytes()).hexdigest() for p in original.iterdir()}
    assert "0.jsonl.zst" not in {name for name, _ in served[before:]}, "a finished file is not fetched again"


@pytest.mark.promise("A network that drops connections in the middle of a fetch: the same files, none fetched twice")
def test_a_fetch_over_dropped_connections_ends_with_the_same_files(tmp_path):
    write_dataset(tmp_path / "owner" / "texts", bulk=8000)
    original, drops = tmp_path / "owner" / "texts" / "small", {"left": 10**6}
    line = json.dumps({"text": os.urandom(12 * 2**20).hex()})  # the hub's client goes on after each 10 MiB
    (original / "0.jsonl.zst").write_bytes(zstandard.compress(line.encode()))
    with hub(tmp_path / "owner" / "texts", drops=drops) as (endpoint, served):
        process = start_fetch(endpoint, tmp_path / "f", tmp_path)
        said = process.communicate(timeout=120)[1]
        sentence = said.splitlines()[-1]  # the client says when it tries again
        assert process.returncode == 2 and sentence.startswith("error: owner/texts at 0123456789ab: could not be")
        assert "run again to go on where it stopped" in sentence and "Traceback" not in said
        assert not (tmp_path / "f" / "manifest.json").exists()
        drops["left"], before = 2, len(served)
        process = start_fetch(endpoint, tmp_path / "f", tmp_path)
        assert process.wait(timeout=120) == 0 and drops["left"] == 0
    assert contents(tmp_path / "f") == {p.name: sha256(p.read_bytes()).hexdigest() for p in original.iterdir()}
    assert ("0.jsonl.zst", 10 * 2**20) in served[before:], "it goes on where the connection ended"


@pytest.mark.parametrize(("lie", "message"), [(".zst", "0.jsonl.zst: sha256 "), (".md", "README.md: git id ")])
def test_a_file_that_differs_from_its_recorded_checksum_is_refused(tmp_path, lie, message):
    write_dataset(tmp_path / "owner" / "texts")
    with hub(tmp_path / "owner" / "texts", lie=lie) as (endpoint, _):
        process = start_fetch(endpoint, tmp_path / "f", tmp_path)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and said.count("\n") == 1 and message in said
    assert not (tmp_path / "f" / "manifest.json").exists()


def test_a_dataset_that_the_hub_does_not_have_is_one_sentence(tmp_path):
    with hub(tmp_path / "nothing") as (endpoint, _):
        process = start_fetch(endpoint, tmp_path / "f", tmp_path)
        message = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and message.count("\n") == 1
    assert "owner/texts at 0123456789ab: could not be fetched" in message and "run again to go on" in message
