"""Wrong tables end with one sentence that names file, row, column, value and the nearest valid name."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from moe.tables import Tables, load_yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config(tmp_path):
    """A copy of the project's tables that a test may spoil."""
    shutil.copytree(ROOT / "config", tmp_path / "config", ignore=shutil.ignore_patterns("reported"))
    return load_yaml(ROOT / "config/config.yaml") | {"tables": str(tmp_path / "config"), "scale": "smoke"}


def read(config):
    tables = Tables(config, ROOT / "workflow/schemas")
    tables.check_routers()
    return tables


def edit(config, file, old, new):
    path = Path(config["tables"]) / file
    text = path.read_text()
    assert old in text, (file, old)
    path.write_text(text.replace(old, new, 1))


# what is spoiled: (file, old text, new text, what the sentence must say)
SPOILED = {
    "unknown router": ("runs.tsv", "\ttopk\t", "\ttopkk\t", "row remoe-182m-topk, column router: 'topkk' is unknown; the nearest valid name is 'topk'"),
    "unknown setup": ("runs.tsv", "topk\tremoe-182m\t", "topk\tremoe-128m\t", "row remoe-182m-topk, column setup: 'remoe-128m' is unknown; the nearest valid name is 'remoe-182m'"),
    "duplicate run": ("runs.tsv", "remoe-182m-dense\t", "remoe-182m-topk\t", "row remoe-182m-topk: the name stands in two rows"),
    "a run's name with a space": ("runs.tsv", "remoe-182m-dense\t", "remoe dense\t", "row remoe dense, column run: 'remoe dense' does not match"),
    "experts in words": ("runs.tsv", "topk\t8\t", "topk\teight\t", "row remoe-182m-topk, column experts: 'eight' is not of type 'integer'"),
    "no experts": ("runs.tsv", "topk\t8\t", "topk\t0\t", "row remoe-182m-topk, column experts: 0 is less than the minimum of 1"),
    "more active than there are": ("runs.tsv", "topk\t8\t1\t", "topk\t8\t9\t", "row remoe-182m-topk, column top_k: 9 is more than the 8 experts"),
    "granularity that does not divide": ("runs.tsv", "topk\t8\t1\t1\t", "topk\t8\t1\t3\t", "row remoe-182m-topk, column granularity: 3 does not divide the expert_width 32"),
    "experts of a dense run": ("runs.tsv", "none\t1\t", "none\t8\t", "row remoe-182m-dense, column experts: 8 with router none, expected 1"),
    "unknown option": ("runs.tsv", "state: 128", "sate: 128", "row rmoe-900m-rmoe-p128, column options: option 'sate' is unknown to router 'rmoe'; the nearest is 'state'"),
    "options that are no YAML": ("runs.tsv", "state: 128", "state: [128", "row rmoe-900m-rmoe-p128, column options: 'state: [128' is not valid YAML"),
    "option without a value": ("runs.tsv", "state: 128", "state", "row rmoe-900m-rmoe-p128, column options: 'state' gives an option without a value"),
    "tabs lost": ("runs.tsv", "remoe-182m-topk\tremoe-182m\t", "remoe-182m-topk remoe-182m ", "line 3 ('remoe-182m-topk remoe-182m top'…): has 6 cells, expected 8 separated by tabs"),
    "a column renamed": ("runs.tsv", "\tgranularity\t", "\tgranularty\t", "column 'granularty' is unknown; the nearest valid name is 'granularity'"),
    "setup: unknown key": ("setups/remoe-182m.yaml", "  steps:", "  step:", "key 'step' of training is unknown; the nearest valid name is 'steps'"),
    "setup: unknown section": ("setups/remoe-182m.yaml", "training:", "trainig:", "key 'trainig' is unknown; the nearest valid name is 'training'"),
    "setup: number in quotes": ("setups/remoe-182m.yaml", "learning_rate: 5.0e-4", "learning_rate: 5e-4", "key training.learning_rate: '5e-4' is not of type 'number'"),
    "setup: unknown paper": ("setups/remoe-182m.yaml", "paper: remoe", "paper: remo", "key paper: 'remo' is unknown; the nearest valid name is 'remoe'"),
    "setup: snapshot past the end": ("setups/rmoe-0.9b.yaml", "40B: 1.0", "40B: 2.0", "key snapshots.40B: 2.0 is greater than the maximum of 1"),
    "setup: not YAML": ("setups/remoe-182m.yaml", "model:\n", "model: {\n", "setups/remoe-182m.yaml, line"),
    "setup: unknown corpus": ("scales/smoke.yaml", "corpus: smoke", "corpus: smok", "key corpus: 'smok' is unknown; the nearest valid name is 'smoke'"),
    "scale: unknown setup": ("scales/smoke.yaml", "setups: {}", "setups: {remoe-182: {}}", "key setups: 'remoe-182' is unknown; the nearest valid name is 'remoe-182m'"),
    "scale: unknown key": ("scales/smoke.yaml", "divide:", "divied:", "key 'divied' is unknown; the nearest valid name is 'divide'"),
    "scale: heads that do not divide": ("scales/smoke.yaml", "heads: 2,", "heads: 3,", "heads 3 and kv_heads 1, expected each to divide the one before"),
    "scale: batch and micro-batch": ("scales/smoke.yaml", "batch: 8", "batch: 8\n    micro_batch: 3", "the batch of 8 is not a multiple of 1 ranks × micro_batch 3"),
    "scale: experts and ranks": ("scales/smoke.yaml", "batch: 8", "batch: 8\n    expert_ranks: 3", "column experts: 8 are not divisible by 3 expert_ranks"),
}  # fmt: skip


def test_the_projects_own_tables_are_right(config):
    for scale in ("smoke", "laptop", "gpu", "paper"):
        assert read(config | {"scale": scale}).runs


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_table_is_one_sentence(what, config):
    file, old, new, says = SPOILED[what]
    edit(config, file, old, new)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        read(config)
    assert "\n" not in str(error.value) and config["tables"] in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scale": "laptp"}, "key scale: 'laptp' is unknown; the nearest valid name is 'laptop'"),
        ({"seeds": 0}, "key seeds: 0 is less than the minimum of 1"),
        ({"sede": 3}, "key 'sede' is unknown; the nearest valid name is 'seeds'"),
        ({"benchmarks": "fetsch"}, "key benchmarks: 'fetsch' is unknown; the nearest valid name is 'fetch'"),
        ({"tables": "nowhere"}, "nowhere/setups: no .yaml file there"),
        ({"ranks": 3}, "the batch of 8 is not a multiple of 3 ranks"),
    ],
)
def test_a_wrong_setting_is_one_sentence(change, says, config):
    with pytest.raises(ValueError, match=re.escape(says)):
        read(config | change)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "the table is missing"),
        (b"", "the table is empty"),
        (b"run\tsetup\n\xff\xfe\t\n", "is not UTF-8 text at byte 10"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(content, says, config):
    path = Path(config["tables"]) / "runs.tsv"
    path.write_bytes(content) if content is not None else path.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{path}: {says}")):
        read(config)


def test_a_run_is_its_setup_under_its_scale_under_its_row(config):
    tables = read(config)
    spec = tables.spec("rmoe-900m-rmoe-p128", seed=2)
    assert spec["seed"] == 2 and spec["scale"] == "smoke" and spec["paper"] == "rmoe"
    assert spec["model"]["width"] == 32 and spec["model"]["experts"] == 16 and spec["model"]["top_k"] == 4
    # p = 128 shrinks with the width; what the scale does not name stays the paper's
    assert spec["model"]["router"] == {"name": "rmoe", "balance_layers": "mean", "state": 16}
    assert spec["training"]["betas"] == [0.9, 0.95] and spec["training"]["steps"] == 24
    assert read(config | {"scale": "paper"}).spec("rmoe-900m-rmoe-p128")["model"]["router"]["state"] == 128


def test_a_fingerprint_changes_with_what_decides_a_training_and_with_nothing_else(config):
    one = read(config).spec("remoe-182m-relu")["fingerprint"]
    assert read(config).spec("remoe-182m-relu", seed=1)["fingerprint"] != one
    edit(config, "scales/smoke.yaml", "limit: 20", "limit: 10")
    assert read(config).spec("remoe-182m-relu")["fingerprint"] == one
    edit(config, "scales/smoke.yaml", "steps: 24", "steps: 25")
    assert read(config).spec("remoe-182m-relu")["fingerprint"] != one


def test_every_key_of_every_schema_is_described():
    def keys(schema, path):
        for name, inner in schema.get("properties", {}).items():
            yield f"{path}.{name}", inner
            yield from keys(inner, f"{path}.{name}")

    for path in (ROOT / "workflow/schemas").glob("*.yaml"):
        schema = yaml.safe_load(path.read_text())
        assert schema.get("description"), path
