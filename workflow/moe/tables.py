"""config/*.tsv and *.yaml read, joined and checked before anything runs; every error is one sentence.

A run is a row of runs.tsv over its setup over the scale: `Tables.spec` merges them into what run.yaml holds.
"""

import csv
import hashlib
import json
from collections.abc import Iterable
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

DENSE = "none"  # router of a model without experts
TRAINING_MODULES = ("routers/*.py", "experts.py", "model.py", "parallel.py", "schedule.py", "snapshots.py", "train.py")
TRAINING_MODULES += ("data/windows.py", "data/corpus.py")


class Tables:
    """Everything that the tables say at one scale.

    runs: name -> row joined with paper, size and the setup's name; figures, claims: rows in order.
    Raises ValueError naming file, row, column, value, what was expected and the nearest valid name.
    """

    def __init__(self, config: dict[str, Any], schemas: Path):
        self.schemas = schemas
        self._check(config, "config", "config/config.yaml")
        self.config, self.folder = config, Path(config["tables"])
        self.setups = self._load_all("setups", "setup")
        self.scale_name = pick(config["scale"], self._stems("scales"), "config/config.yaml, key scale")
        self.scale = self._load(self.folder / "scales" / f"{self.scale_name}.yaml", "scale")
        self.corpora = {stem: load_yaml(self.folder / "corpora" / f"{stem}.yaml") for stem in self._stems("corpora")}
        for name in self.scale["setups"]:
            pick(name, self.setups, f"{self.folder}/scales/{self.scale_name}.yaml, key setups")
        self.runs = self._runs()
        self.figures = read_tsv(self.folder / "figures.tsv")
        self.claims = read_tsv(self.folder / "claims.tsv")
        self.code = code_digest()

    @property
    def seeds(self) -> range:
        return range(self.config["seeds"])

    def spec(self, name: str, seed: int = 0) -> dict[str, Any]:
        """Content of a run's run.yaml; its `model` and `training` are the constructors' arguments."""
        row = self.runs[name]
        merged = self._scaled(row["setup"])
        router = {"name": row["router"]} | merged.pop("router") if row["router"] != DENSE else {"name": DENSE}
        router |= self._divided(row["options"])
        merged["model"] |= {key: row[key] for key in ("experts", "top_k", "granularity")} | {"router": router}
        identity = {key: row[key] for key in ("run", "setup", "label", "experts", "top_k", "granularity")}
        spec = {"scale": self.scale_name, "seed": seed, "code": self.code} | identity | merged
        deciding = {k: spec[k] for k in ("model", "training", "snapshots", "corpus", "seed", "code")}
        spec["fingerprint"] = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
        return spec

    def shapes(self, setup: str) -> dict[str, Any]:
        """A setup's model and sequence at the papers' size and at this scale."""
        own, scaled = self.setups[setup], self._scaled(setup)
        return {"paper": own["paper"], "size": own["size"]} | {
            f"{where}_scale": {"model": one["model"], "sequence": one["training"]["sequence"]}
            for where, one in (("paper", own), ("this", scaled))
        }

    def _scaled(self, setup: str) -> dict[str, Any]:
        overrides = [self.scale["every"], self.scale["setups"].get(setup, {})]
        where = f"{self.folder}/scales/{self.scale_name}.yaml over {setup}"
        merged = deepcopy(self.setups[setup])
        for override in overrides:
            merged = merge(merged, override)
        self._check(merged, "setup", where)
        pick(merged["corpus"], self.corpora, f"{where}, key corpus")
        return merged

    def _divided(self, options: dict[str, Any]) -> dict[str, Any]:
        divisors = self.scale.get("divide", {})
        return {k: max(1, v // divisors[k]) if k in divisors else v for k, v in options.items()}

    def _runs(self) -> dict[str, dict[str, Any]]:
        path, runs = self.folder / "runs.tsv", {}
        for number, row in enumerate(read_tsv(path), start=2):
            where = f"{path}, row {row.get('run') or f'at line {number}'}"
            numbers = {key: int(row[key]) for key in ("experts", "top_k", "granularity") if row.get(key, "").isdigit()}
            row |= numbers
            self._check(row, "runs", where, word="column")
            if row["run"] in runs:
                raise ValueError(f"{where}: the name stands in two rows, expected each once")
            pick(row["setup"], self.setups, f"{where}, column setup")
            row["options"] = parse_options(row["options"], f"{where}, column options")
            check_shape(row, self._scaled(row["setup"]), where, self.config["ranks"])
            setup = self.setups[row["setup"]]
            runs[row["run"]] = row | {"paper": setup["paper"], "size": setup["size"]}
        return runs

    def check_routers(self) -> None:
        """Every run's router exists and takes its options (imports torch: for the workflow's main process alone)."""
        from moe.routers import ROUTERS, check_router

        for name, row in self.runs.items():
            where = f"{self.folder / 'runs.tsv'}, row {name}, column"
            if row["router"] == DENSE:
                continue
            pick(row["router"], [DENSE, *ROUTERS], f"{where} router")
            options = {k: v for k, v in self.spec(name)["model"]["router"].items() if k != "name"}
            try:
                check_router(row["router"], options)
            except ValueError as error:
                raise ValueError(f"{where} options: {error}") from None

    def _stems(self, kind: str) -> list[str]:
        stems = sorted(path.stem for path in (self.folder / kind).glob("*.yaml"))
        if not stems:
            raise ValueError(f"{self.folder / kind}: no .yaml file there, expected the project's {kind}")
        return stems

    def _load_all(self, kind: str, schema: str) -> dict[str, Any]:
        return {stem: self._load(self.folder / kind / f"{stem}.yaml", schema) for stem in self._stems(kind)}

    def _load(self, path: Path, schema: str) -> dict[str, Any]:
        content = load_yaml(path)
        self._check(content, schema, str(path))
        return content

    def _check(self, content: Any, schema: str, where: str, word: str = "key") -> None:
        validator = Draft202012Validator(load_yaml(self.schemas / f"{schema}.schema.yaml"))
        # an unknown name before the missing one that it was probably meant to be
        first = min(
            validator.iter_errors(content),
            key=lambda e: (e.validator != "additionalProperties", e.validator == "required", list(map(str, e.path))),
            default=None,
        )
        if first is not None:
            raise ValueError(sentence(first, where, word))


def sentence(error: Any, where: str, word: str) -> str:
    """A schema error as one sentence with the nearest valid name."""
    key = ".".join(map(str, error.path))
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(k for k in error.instance if k not in known)
        inside = f" of {key}" if key else ""
        return f"{where}: {word} {unknown!r}{inside} is unknown{nearest(unknown, known)}"
    if error.validator == "required":
        missing = next(k for k in error.validator_value if k not in error.instance)
        return f"{where}: {word} {missing!r}{f' of {key}' if key else ''} is missing"
    if error.validator == "enum":
        return f"{where}, {word} {key}: {error.instance!r} is unknown{nearest(error.instance, error.validator_value)}"
    about = error.schema.get("description")
    return f"{where}, {word} {key}: {error.message}" + (f", expected {about}" if about else "")


def pick(name: Any, known: Iterable[str], where: str) -> Any:
    """`name`, if it is known."""
    if name not in known:
        raise ValueError(f"{where}: {name!r} is unknown{nearest(name, known)}")
    return name


def nearest(name: Any, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name."""
    known = [str(k) for k in known]
    close = get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; the nearest valid name is {close[0]!r}" if close else f"; valid are {', '.join(known)}"


def check_shape(row: dict[str, Any], setup: dict[str, Any], where: str, ranks: int) -> None:
    """E, k and G fit each other, the model and the ranks."""
    model, training = setup["model"], setup["training"]
    if row["top_k"] > row["experts"]:
        raise ValueError(f"{where}, column top_k: {row['top_k']} is more than the {row['experts']} experts")
    if row["router"] == DENSE and row["experts"] != 1:
        raise ValueError(f"{where}, column experts: {row['experts']} with router none, expected 1")
    if model["expert_width"] % row["granularity"]:
        raise ValueError(
            f"{where}, column granularity: {row['granularity']} does not divide the expert_width "
            f"{model['expert_width']} of setup {row['setup']}"
        )
    if model["width"] % model["heads"] or model["heads"] % model["kv_heads"]:
        raise ValueError(
            f"{where}: setup {row['setup']} has width {model['width']}, heads {model['heads']} and kv_heads "
            f"{model['kv_heads']}, expected each to divide the one before"
        )
    expert_ranks = training.get("expert_ranks", 1)
    if row["router"] != DENSE and row["experts"] * row["granularity"] % expert_ranks:
        raise ValueError(f"{where}, column experts: {row['experts']} are not divisible by {expert_ranks} expert_ranks")
    if ranks % expert_ranks:
        raise ValueError(f"config/config.yaml, key ranks: {ranks} is not a multiple of the {expert_ranks} expert_ranks")
    if training["batch"] % (ranks * training.get("micro_batch", 1)):
        raise ValueError(
            f"{where}: the batch of {training['batch']} is not a multiple of {ranks} ranks × micro_batch "
            f"{training.get('micro_batch', 1)}"
        )


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Rows as dicts of text; lines that start with # are comments. ValueError where tabs were lost."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ValueError(f"{path}: the table is missing") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text at byte {error.start}") from None
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    if not numbered:
        raise ValueError(f"{path}: the table is empty")
    header = numbered[0][1].split("\t")
    rows = []
    for (number, line), cells in zip(
        numbered[1:],
        csv.reader((line for _, line in numbered[1:]), delimiter="\t", quoting=csv.QUOTE_NONE),
        strict=True,
    ):
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, line {number} ({line[:30].strip()!r}…): has {len(cells)} cells, expected {len(header)} "
                "separated by tabs"
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; ValueError with the line of a syntax error."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{place}: is not valid YAML ({getattr(error, 'problem', error)})") from None
    except FileNotFoundError:
        raise ValueError(f"{path}: the file is missing") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, expected keys and values")
    return content


def parse_options(cell: str, where: str) -> dict[str, Any]:
    """`state: 128, bias: true` -> dict."""
    try:
        options = yaml.safe_load(f"{{{cell}}}")
    except yaml.YAMLError:
        raise ValueError(f"{where}: {cell!r} is not valid YAML, expected option: value, option: value") from None
    if any(value is None for value in options.values()):
        raise ValueError(f"{where}: {cell!r} gives an option without a value, expected option: value")
    return options


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """`override` over `base`, section by section; tasks of an evaluation add up by kind."""
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else deepcopy(value)
    return merged


def code_digest() -> str:
    """Fingerprint of the modules that decide a training: Snakemake does not watch imported modules."""
    here = Path(__file__).parent
    sources = sorted(path for pattern in TRAINING_MODULES for path in here.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
