"""The house itself: who may import whom, and whether the README tells the truth about files."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "workflow/moe"

# module (or package) -> what of `moe` it may import; nothing else, and no cycles
BASE = {"command_line", "wrong"}
MAY_IMPORT = {
    "routers": set(),
    "experts": set(),
    "accounting": set(),
    "matching": {"accounting"},
    "monitors": {"data", "expert_statistics", "schedule"},
    "schedule": set(),
    "statistics": set(),
    "expert_statistics": set(),
    "score_statistics": set(),
    "checkpoints": set(),
    "records": set(),
    "attention": {"branches"},
    "benchmark": {
        "accounting",
        "data",
        "devices",
        "engine",
        "expert_parallel",
        "experts",
        "finished",
        "launch",
        "model",
        "ranks",
        "routers",
        "streaming",
    },
    "loss": set(),
    "model": {"attention", "branches", "experts", "loss", "norms", "routers"},
    "norms": set(),
    "streaming": {"data", "devices", "monitors"},
    "best": set(),
    "span": {"experts", "loss", "routers", "span_attention"},
    "span_attention": set(),
    "snapshots": {"checkpoints", "model", "span"},
    "ranks": set(),
    "expert_parallel": {"experts", "ranks"},
    "one_rank": set(),
    "compiler": {"experts"},
    "engine": {"compiler", "expert_parallel", "one_rank", "ranks"},
    "repartition": {"ranks"},
    "resume": {"checkpoints", "repartition", "streaming"},
    "precision": {"model"},
    "describe": {"accounting", "model", "routers"},
    "data": set(),
    "devices": set(),
    "health": set(),
    "outcome": {"checkpoints"},
    "launch": {"slots", "slurm"},
    "slots": set(),
    "slurm": set(),
    "warm": {"launch"},
    "freeze": {"matching", "schedule", "tables"},
    "draw": {"figures"},
    "training": {
        "accounting",
        "best",
        "checkpoints",
        "data",
        "devices",
        "engine",
        "expert_parallel",
        "health",
        "monitors",
        "outcome",
        "ranks",
        "records",
        "resume",
        "schedule",
        "snapshots",
        "streaming",
    },
    "train": {"data", "launch", "ranks", "resume", "training"},
    "finetune": {"data", "model", "snapshots", "train", "training"},
    "finished": {"data", "devices", "snapshots"},
    "branches": set(),
    "scoring": {"branches"},
    "benchmarks": {"data"},
    "tasks": {"benchmarks"},
    "validate": {"data", "finished", "scoring", "streaming"},
    "harness": {"data", "finished", "scoring", "tasks"},
    "evaluate": {"finished", "harness", "tasks"},
    "probe": {"data", "finished", "score_statistics", "statistics", "weights"},
    "weights": {"expert_statistics", "snapshots"},
    "figures": {"schedule"},
    "claims": {"figures"},
    "layout": {"accounting", "snapshots", "table_checks"},
    "expected": {"accounting", "checkpoints", "layout", "table_checks", "table_files", "tables"},
    "tables": {"layout", "run_columns", "table_checks", "table_files", "table_finetunes"},
    "table_finetunes": {"run_columns", "table_checks", "table_files"},
    "run_columns": set(),
    "table_checks": {"benchmarks", "data", "routers", "tasks"},
    "table_files": set(),
    "publish": set(),
    "command_line": set(),
    "wrong": set(),
}
# heavy dependency -> its homes
HOMES = {
    "deepspeed": {"ranks", "benchmark"},  # the latter for DeepSpeed's own layer, a peer
    "datasets": {"data"},
    "lm_eval": {"harness"},
    "snakemake": set(),
}
WITHOUT_TORCH = {
    "launch",
    "warm",
    "freeze",
    "draw",
    "figures",
    "claims",
    "tables",
    "run_columns",
    "table_checks",
    "table_files",
    "table_finetunes",
    "wrong",
    "command_line",
    "statistics",
    "expert_statistics",
    "score_statistics",
    "tasks",
    "benchmarks",
    "schedule",
    "publish",
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room(path):
    """The first name below `moe`: a module or a package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Every module that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers(path):
    here = room(path)
    if here == "__init__":
        assert not list(imports(path)), "moe/__init__.py is a docstring"
        return
    assert here in MAY_IMPORT, f"{here} is new: say in this test what it may import"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "moe":
            assert rest[0] == here or rest[0] in MAY_IMPORT[here] | BASE, f"{here} imports moe.{rest[0]}"
        if top in HOMES:
            assert here in HOMES[top], f"{top} is imported outside its home by {here}"
        if top == "torch":
            assert here not in WITHOUT_TORCH, f"{here} imports torch"


def test_scripts_are_glue():
    for path in (ROOT / "workflow/scripts").glob("*.py"):
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
        assert len(lines) <= 20 and not re.search(r"^(def|class) ", path.read_text(), re.M), path
        assert not {n.split(".")[0] for n in imports(path)} & {"torch", *HOMES}, path


def test_common_rules_and_snakefile_stay_short():
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 58
    assert len((ROOT / "workflow/rules/common.smk").read_text().splitlines()) <= 140


def test_every_file_that_the_readme_names_exists():
    named = set(
        re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:md|tsv|yaml|py|smk|toml|cff))`", (ROOT / "README.md").read_text())
    )
    named |= set(re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text()))
    written = ("results/", "paper_figures/")  # by the workflow
    by_rules = {n for n in named if n.startswith(written) and "published" not in n}
    missing = [n for n in named - by_rules if not (ROOT / n).exists() and not (PACKAGE / n).exists()]
    assert not missing


def test_the_lock_pins_everything_once():
    lines = (ROOT / "envs/requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    names = [pin.split("==")[0].lower().replace("_", "-") for pin in pins]
    assert len(names) == len(set(names))
    locked = {line.split("==")[0].lower().replace("_", "-"): line.split("==")[1] for line in pins}
    for env in ("train", "analysis"):  # the conda environments hold the same versions
        for name, version in re.findall(r"- ([\w-]+)==(\S+)", (ROOT / f"envs/{env}.yaml").read_text()):
            assert locked[name.lower()] == version


def test_no_pickles_no_remote_code_no_unsafe_yaml():
    for path in [*modules(), *(ROOT / "workflow/scripts").glob("*.py")]:
        text = path.read_text()
        assert not re.search(r"\bpickle\b|yaml\.load\(|trust_remote_code\s*=\s*True|weights_only\s*=\s*False", text), (
            path
        )
        assert "shell=True" not in text and "os.system" not in text, path
