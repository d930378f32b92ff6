"""config/*.tsv and *.yaml read, joined and checked before anything runs; every error is one sentence.

A run is a row of runs.tsv over its setup over the scale: `Tables.spec` merges them into what run.yaml holds.
"""

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from moe import layout, table_checks
from moe.run_columns import shown_memory, shown_options, shown_start
from moe.table_checks import DENSE, check_match, check_row, check_schema, check_setup, pick
from moe.table_files import load_yaml, parse_options, read_tsv
from moe.table_finetunes import finetuned_rows, started

TRAINING_MODULES = ("routers/*.py", "experts.py", "model.py", "schedule.py", "snapshots.py", "training.py")
TRAINING_MODULES += ("ranks.py", "engine.py", "one_rank.py", "expert_parallel.py", "resume.py", "repartition.py")
TRAINING_MODULES += ("attention.py", "span.py", "span_attention.py", "norms.py", "loss.py", "monitors.py")
TRAINING_MODULES += ("streaming.py", "best.py", "expert_statistics.py")
TRAINING_MODULES += ("data/streams.py", "data/windows.py", "data/corpus.py")
SPLIT = ("micro_batch", "expert_ranks")
FINETUNING_MODULES = (*TRAINING_MODULES, "finetune.py", "data/instructions.py")


class Tables:
    """Everything that the tables say at one scale.

    runs: name -> row of runs.tsv, then of finetunes.tsv, joined with paper, size, corpus and layers of its setup, as
        the paper had them, and with what `run_columns` shows of it; figures, claims: rows in order.
    Raises ValueError naming file, row, column, value, what was expected and the nearest valid name.
    """

    def __init__(self, config: dict[str, Any], schemas: Path):
        self.schemas = {path.name.split(".")[0]: load_yaml(path) for path in schemas.glob("*.schema.yaml")}
        self._check(config, "config", "config/config.yaml")
        self.config, self.folder = config, Path(config["tables"])
        if config["ranks"] % config["nodes"]:
            raise ValueError(
                f"config/config.yaml, key nodes: {config['nodes']} do not divide the {config['ranks']} ranks, expected "
                "as many on each"
            )
        self.family: dict[str, list[str]] = {}  # setup -> the setups that it extends, itself last
        self.setups = {stem: self._setup(stem) for stem in self._stems("setups")}
        self.scale_name = pick(config["scale"], self._stems("scales"), "config/config.yaml, key scale")
        self.scale_path = self.folder / "scales" / f"{self.scale_name}.yaml"
        self.scale = self._load(self.scale_path, "scale")
        self.hardware = None if config["hardware"] is None else self.hardware_named(config["hardware"])
        self.corpora = {stem: load_yaml(self.folder / "corpora" / f"{stem}.yaml") for stem in self._stems("corpora")}
        paths = sorted((self.folder / "instructions").glob("*.yaml"))
        self.instructions = {path.stem: self._load(path, "instructions") for path in paths}
        for name in self.scale["setups"]:
            pick(name, self.setups, f"{self.scale_path}, key setups")
        self.scaled = {name: self._scaled(name) for name in self.setups}
        self.runs = self._runs()
        self.runs |= finetuned_rows(self.folder / "finetunes.tsv", self.runs, self.scaled, self._check)
        self.figures = read_tsv(self.folder / "figures.tsv")
        self.claims = read_tsv(self.folder / "claims.tsv")
        self.code = {"": code_digest(TRAINING_MODULES), "sft": code_digest(FINETUNING_MODULES)}

    def seeds(self, row: dict[str, Any]) -> range:
        """Seeds of a row of runs.tsv: as many for every run, or as its paper has."""
        seeds = self.config["seeds"]
        return range(seeds[row["paper"]] if isinstance(seeds, dict) else seeds)

    def spec(self, name: str, seed: int = 0) -> dict[str, Any]:
        """Content of a run's run.yaml; its `model` and `training` are the constructors' arguments."""
        row = self.runs[name]
        merged = deepcopy(self.scaled[row["setup"]])
        merged = started(merged, row) if row["base"] else merged
        router = {"name": row["router"]} | merged.pop("router") if row["router"] != DENSE else {"name": DENSE}
        router |= self._divided(row["options"])
        merged["model"] |= {key: row[key] for key in ("experts", "top_k", "granularity")} | {"router": router}
        identity = {key: row[key] for key in ("run", "setup", "label", "experts", "top_k", "granularity", "matches")}
        code = self.code["sft" if row["base"] else ""]
        spec = {"scale": self.scale_name, "seed": seed, "code": code} | identity | merged
        if self.hardware is not None:
            spec["training"] |= self._split(spec)
        return spec | {"fingerprint": fingerprint(spec)}

    @property
    def decoders(self) -> list[str]:
        """Setups whose model is Decoder, the others' sizes being counted otherwise."""
        return [name for name, setup in self.setups.items() if setup["model"].get("kind", "decoder") == "decoder"]

    def shapes(self, setup: str) -> dict[str, Any]:
        """A setup's model and sequence at the papers' size and at this scale."""
        own, scaled = self.setups[setup], self.scaled[setup]
        return {"paper": own["paper"], "size": own["size"]} | {
            f"{where}_scale": {"model": one["model"], "sequence": one["training"]["sequence"]}
            for where, one in (("paper", own), ("this", scaled))
        }

    def _scaled(self, setup: str) -> dict[str, Any]:
        span = self.setups[setup]["model"].get("kind") == "span"
        every = self.scale.get("span", {}) if span else self.scale["every"]
        overrides = [every, *(self.scale["setups"].get(name, {}) for name in self.family[setup])]
        where = self._over(setup)
        merged = deepcopy(self.setups[setup])
        for override in overrides:
            merged = merge(merged, override)
        self._check(merged, "setup", where)
        for key, factor in merged.pop("multiply", {}).items():
            merged["training"][key] = max(1, round(merged["training"][key] * factor))
        pick(merged["corpus"], self.corpora, f"{where}, key corpus")
        if "finetune" in merged:
            pick(merged["finetune"]["instructions"], self.instructions, f"{where}, key finetune.instructions")
        check_setup(merged, where)
        if self.hardware is not None:  # how a batch is split is chosen for it
            merged["training"] = {k: v for k, v in merged["training"].items() if k not in SPLIT}
        return merged

    def _over(self, setup: str) -> str:
        """Where a setup is made."""
        return f"{self.scale_path} over {setup}"

    def hardware_named(self, name: str) -> layout.Hardware:
        """A file of hardware/."""
        stem = pick(name, self._stems("hardware"), "config/config.yaml, key hardware")
        return layout.Hardware(**self._load(self.folder / "hardware" / f"{stem}.yaml", "hardware"))

    def _split(self, spec: dict[str, Any]) -> dict[str, int]:
        """How a run's batch and experts are split over the ranks of the hardware."""
        ranks = self.config["ranks"]
        found = layout.best(spec, self.hardware, ranks)
        if found is None:
            raise ValueError(
                f"config/config.yaml, key hardware: run {spec['run']} fits in no way into {ranks} × "
                f"{self.hardware.memory_gib:g} GiB of {self.config['hardware']}, expected more ranks or memory"
            )
        return {"micro_batch": found.micro_batch, "expert_ranks": found.expert_ranks}

    def _divided(self, options: dict[str, Any]) -> dict[str, Any]:
        """Integers that the scale shrinks, at least 1; what is no positive integer stays for check_deeply to refuse."""
        divisors = self.scale.get("divide", {})
        shrinks = {k for k, v in options.items() if k in divisors and type(v) is int and v > 0}
        return {k: max(1, v // divisors[k]) if k in shrinks else v for k, v in options.items()}

    def _runs(self) -> dict[str, dict[str, Any]]:
        path, runs = self.folder / "runs.tsv", {}
        for number, row in enumerate(read_tsv(path), start=2):
            where = f"{path}, row {row.get('run') or f'at line {number}'}"
            numbers = {
                key: int(row[key]) for key in ("experts", "top_k", "granularity") if row.get(key, "").isdecimal()
            }
            row |= numbers
            self._check(row, "runs", where, word="column")
            if row["run"] in runs:
                raise ValueError(f"{where}: the name stands in two rows, expected each once")
            pick(row["setup"], [n for n in self.setups if "finetune" not in self.setups[n]], f"{where}, column setup")
            row["options"] = parse_options(row["options"], f"{where}, column options")
            check_row(row, self.scaled[row["setup"]], where, self.config["ranks"])
            setup = self.setups[row["setup"]]
            shown = shown_options(row["router"], row["options"]) | shown_memory(row["router"], row["options"])
            shown |= {key: setup[key] for key in ("paper", "size", "corpus")} | {"layers": setup["model"]["layers"]}
            runs[row["run"]] = row | shown | shown_start(row)
        for name, row in runs.items():
            check_match(row, runs, f"{path}, row {name}")
        return runs

    def check_deeply(self) -> None:
        """What the tables name is in the code: corpora, tasks, routers and their options.

        Every router is built, on the meta device. Imports torch: for the workflow's main process alone.
        """
        for name, corpus in self.corpora.items():
            table_checks.check_corpus(corpus, self.schemas["corpus"], f"{self.folder}/corpora/{name}.yaml")
        for name, setup in self.setups.items():
            table_checks.check_tasks(setup, f"{self.folder}/setups/{name}.yaml, key ")
        for key in ("every", "span"):
            table_checks.check_tasks(self.scale.get(key, {}), f"{self.scale_path}, key {key}.")
        for name, override in self.scale["setups"].items():
            table_checks.check_tasks(override, f"{self.scale_path}, key setups.{name}.")
        table_checks.check_divisors(self.scale.get("divide", {}), f"{self.scale_path}, key divide")
        for name, row in self.runs.items():
            where, setup = f"{self.folder / 'runs.tsv'}, row {name}", self.scaled[row["setup"]]
            options = setup["router"] | self._divided(row["options"])
            table_checks.check_router_of(row, setup, options, where, self._over(row["setup"]))

    def _stems(self, kind: str) -> list[str]:
        stems = sorted(path.stem for path in (self.folder / kind).glob("*.yaml"))
        if not stems:
            raise ValueError(f"{self.folder / kind}: no .yaml file there, expected the project's {kind}")
        return stems

    def _setup(self, name: str) -> dict[str, Any]:
        """A setup over the one that it extends, if any."""
        path = self.folder / "setups" / f"{name}.yaml"
        content = load_yaml(path)
        base = content.pop("extends", None)
        self.family[name] = [name]
        if base is not None:
            others = [stem for stem in self._stems("setups") if stem != name]
            pick(base, others, f"{path}, key extends")
            if "extends" in load_yaml(path.with_name(f"{base}.yaml")):
                raise ValueError(f"{path}, key extends: {base!r} extends a setup itself, expected one that does not")
            content = merge(self._setup(base), content)
            self.family[name] = [base, name]
        self._check(content, "setup", str(path))
        return content

    def _load(self, path: Path, schema: str) -> dict[str, Any]:
        content = load_yaml(path)
        self._check(content, schema, str(path))
        return content

    def _check(self, content: Any, schema: str, where: str, word: str = "key") -> None:
        check_schema(content, self.schemas[schema], where, word)


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """`override` over `base`, section by section; tasks of an evaluation add up by kind, snapshots are replaced."""
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "snapshots"
        merged[key] = merge(merged[key], value) if both else deepcopy(value)
    return merged


def fingerprint(spec: dict[str, Any]) -> str:
    """Of what decides a training; a checkpoint of another fingerprint is never gone on from."""
    keys = ("model", "training", "snapshots", "corpus", "seed", "code", "finetune")
    deciding = {k: spec[k] for k in keys if k in spec}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def code_digest(patterns: tuple[str, ...] = TRAINING_MODULES) -> str:
    """Fingerprint of the modules that decide a training: Snakemake does not watch imported modules."""
    here = Path(__file__).parent
    sources = sorted(path for pattern in patterns for path in here.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
