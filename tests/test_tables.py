"""Wrong tables end with one sentence that names file, row, column, value and the nearest valid name."""

import re
import shutil
from pathlib import Path

import pytest

from moe.table_files import typed
from moe.tables import Tables, load_yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config(tmp_path):
    """A copy of the project's tables that a test may spoil."""
    shutil.copytree(ROOT / "config", tmp_path / "config", ignore=shutil.ignore_patterns("reported"))
    return load_yaml(ROOT / "config/config.yaml") | {"tables": str(tmp_path / "config"), "scale": "smoke"}


def read(config):
    tables = Tables(config, ROOT / "workflow/schemas")
    tables.check_deeply()
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
    "granularity that does not divide": ("runs.tsv", "topk\t8\t1\t1\t", "topk\t8\t1\t3\t", "row remoe-182m-topk, column granularity: 3 does not divide the expert_width 64"),
    "experts of a dense run": ("runs.tsv", "none\t1\t", "none\t8\t", "row remoe-182m-dense, column experts: 8 with router none and top_k 1, expected both alike"),
    "unknown option": ("runs.tsv", "state: 128", "sate: 128", "row rmoe-900m-rmoe-p128, column options: option 'sate' is unknown to router 'rmoe'; the nearest is 'state'"),
    "options that are no YAML": ("runs.tsv", "state: 128", "state: [128", "row rmoe-900m-rmoe-p128, column options: 'state: [128' is not valid YAML"),
    "option without a value": ("runs.tsv", "state: 128", "state", "row rmoe-900m-rmoe-p128, column options: 'state' gives an option without a value"),
    "tabs lost": ("runs.tsv", "remoe-182m-topk\tremoe-182m\t", "remoe-182m-topk remoe-182m ", "line 3 ('remoe-182m-topk remoe-182m top'…): has 7 cells, expected 9 separated by tabs"),
    "a column renamed": ("runs.tsv", "\tgranularity\t", "\tgranularty\t", "column 'granularty' is unknown; the nearest valid name is 'granularity'"),
    "match: unknown run": ("runs.tsv", "\tMoE\tremoe-182m-relu\t", "\tMoE\tremoe-182m-rely\t", "row remoe-182m-topk-matched, column matches: 'remoe-182m-rely' is unknown; the nearest valid name is 'remoe-182m-relu'"),
    "match: of another setup": ("runs.tsv", "\tMoE\tremoe-182m-relu\t", "\tMoE\tremoe-469m-relu\t", "column matches: 'remoe-469m-relu' is of setup remoe-469m with router relu, expected a run of setup remoe-182m"),
    "match: a dense run": ("runs.tsv", "\tMoE\tremoe-182m-relu\t", "\tMoE\tremoe-182m-dense\t", "column matches: 'remoe-182m-dense' is of setup remoe-182m with router none, expected a run"),
    "setup: extends nothing known": ("setups/remoe-182m-10b.yaml", "extends: remoe-182m", "extends: remoe-183m", "key extends: 'remoe-183m' is unknown; the nearest valid name is 'remoe-182m'"),
    "setup: extends itself": ("setups/remoe-182m-10b.yaml", "extends: remoe-182m", "extends: remoe-182m-10b", "key extends: 'remoe-182m-10b' is unknown"),
    "setup: extends an extension": ("setups/remoe-469m-120b.yaml", "extends: remoe-469m", "extends: remoe-182m-10b", "key extends: 'remoe-182m-10b' extends a setup itself"),
    "setup: multiplies by nothing": ("setups/remoe-182m-10b.yaml", "steps: 0.33333333", "steps: 0", "key multiply.steps: 0 is less than or equal to the minimum of 0"),
    "setup: unknown key": ("setups/remoe-182m.yaml", "  steps:", "  step:", "key 'step' of training is unknown; the nearest valid name is 'steps'"),
    "setup: unknown section": ("setups/remoe-182m.yaml", "training:", "trainig:", "key 'trainig' is unknown; the nearest valid name is 'training'"),
    "setup: number in quotes": ("setups/remoe-182m.yaml", "learning_rate: 5.0e-4", "learning_rate: 5e-4", "key training.learning_rate: '5e-4' is not of type 'number'"),
    "setup: unknown paper": ("setups/remoe-182m.yaml", "paper: remoe", "paper: remo", "key paper: 'remo' is unknown; the nearest valid name is 'remoe'"),
    "setup: snapshot past the end": ("setups/rmoe-0.9b.yaml", "40B: 1.0", "40B: 2.0", "key snapshots.40B: 2.0 is greater than the maximum of 1"),
    "setup: not YAML": ("setups/remoe-182m.yaml", "model:\n", "model: {\n", "setups/remoe-182m.yaml, line"),
    "setup: unknown corpus": ("scales/smoke.yaml", "corpus: smoke", "corpus: smok", "key corpus: 'smok' is unknown; the nearest valid name is 'smoke'"),
    "scale: unknown setup": ("scales/smoke.yaml", "setups:\n", "setups:\n  remoe-182: {}\n", "key setups: 'remoe-182' is unknown; the nearest valid name is 'remoe-182m'"),
    "scale: unknown key": ("scales/smoke.yaml", "divide:", "divied:", "key 'divied' is unknown; the nearest valid name is 'divide'"),
    "scale: heads that do not divide": ("scales/smoke.yaml", "heads: 2,", "heads: 3,", "heads 3 and kv_heads 1, expected each to divide the one before"),
    "scale: batch and micro-batch": ("scales/smoke.yaml", "batch: 8", "batch: 8\n    micro_batch: 3", "the batch of 8 is not a multiple of 1 ranks × micro_batch 3"),
    "scale: experts and ranks": ("scales/smoke.yaml", "batch: 8", "batch: 8\n    expert_ranks: 3", "column experts: 8 are not divisible by 3 expert_ranks"),
    "option of another type": ("runs.tsv", "state: 128", "state: x", "row rmoe-900m-rmoe-p128, column options: option state is 'x', expected an integer"),
    "option with a fraction": ("runs.tsv", "state: 128", "state: 1.5", "row rmoe-900m-rmoe-p128, column options: option state is 1.5, expected an integer"),
    "option that is true": ("runs.tsv", "state: 128", "state: true", "row rmoe-900m-rmoe-p128, column options: option state is True, expected an integer"),
    "option that is a date": ("runs.tsv", "state: 128", "state: 2024-01-01", "row rmoe-900m-rmoe-p128, column options: option state is datetime.date(2024, 1, 1), expected an integer"),
    "option in month 13": ("runs.tsv", "state: 128", "state: 2024-13-01", "row rmoe-900m-rmoe-p128, column options: 'state: 2024-13-01' is not valid YAML (month must be in 1..12)"),
    "option below zero": ("runs.tsv", "state: 128", "state: -5", "row rmoe-900m-rmoe-p128, column options: option state is -5, expected at least 1"),
    "option zero": ("runs.tsv", "state: 128", "state: 0", "row rmoe-900m-rmoe-p128, column options: option state is 0, expected at least 1"),
    "option too large to build": ("runs.tsv", "state: 128", "state: 99999999999999999999", "column options: router 'rmoe' cannot be built with balance_layers: mean, state: 12499999999999999999 ("),
    "option twice": ("runs.tsv", "state: 128", "state: 128, state: 64", "column options: 'state: 128, state: 64' is not valid YAML (key 'state' stands there and in line 1, expected once)"),
    "option that is a word instead of yes or no": ("runs.tsv", "state: 128", "bias: nope", "column options: option bias is 'nope', expected true or false"),
    "option out of its range": ("runs.tsv", "ReMoE\t\t", "ReMoE\t\talpha: 0.5", "row remoe-182m-relu, column options: option alpha is 0.5, expected a number above 1"),
    "option that is not a number": ("runs.tsv", "ReMoE\t\t", "ReMoE\t\talpha: .nan", "row remoe-182m-relu, column options: option alpha is nan, which is not finite"),
    "option with a number as YAML does not write it": ("runs.tsv", "ReMoE\t\t", "ReMoE\t\tlambda_0: 1e-8", "row remoe-182m-relu, column options: option lambda_0 is '1e-8', expected a number"),
    "option of a dense run": ("runs.tsv", "Dense\t\t", "Dense\t\tstate: 8", "row remoe-182m-dense, column options: 'state' with router none, expected an empty cell"),
    "a column twice": ("runs.tsv", "\tlabel\t", "\trun\t", "line 1: column 'run' stands twice, expected each once"),
    "experts in superscript": ("runs.tsv", "topk\t8\t", "topk\t²\t", "row remoe-182m-topk, column experts: '²' is not of type 'integer'"),
    "setup: option of another type": ("setups/rmoe-0.9b.yaml", "balance_layers: mean", "balance_layers: 3", "over rmoe-0.9b, key router, in run rmoe-900m-rmoe-p128: option balance_layers is 3, expected a word"),
    "setup: option out of its range": ("setups/rmoe-0.9b.yaml", "balance_layers: mean", "balance: x", "key router, in run rmoe-900m-rmoe-p128: option balance is 'x', expected a number"),
    "setup: unknown option": ("setups/rmoe-0.9b.yaml", "balance_layers: mean", "balanc: 1", "key router, in run rmoe-900m-rmoe-p128: option 'balanc' is unknown to router 'rmoe'; the nearest is 'balance'"),
    "setup: no heads": ("setups/remoe-182m.yaml", "  heads: 12\n", "", "setups/remoe-182m.yaml: key 'heads' of model is missing, expected number of query heads"),
    "setup: no init_std": ("setups/remoe-182m.yaml", "  init_std: 0.01\n", "", "setups/remoe-182m.yaml: key 'init_std' of model is missing"),
    "setup: no batch": ("setups/remoe-182m.yaml", "  batch: 512\n", "", "setups/remoe-182m.yaml: key 'batch' of training is missing, expected sequences a step"),
    "setup: no steps": ("setups/remoe-182m.yaml", "  steps: 60000 #", "  #", "setups/remoe-182m.yaml: key 'steps' of training is missing"),
    "setup: no warmup": ("setups/remoe-182m.yaml", "  warmup: 0.01 #", "  #", "setups/remoe-182m.yaml: key 'warmup' of training is missing"),
    "setup: no validation": ("setups/remoe-182m.yaml", "  validate_every: 1000\n", "", "setups/remoe-182m.yaml: key 'validate_every' of training is missing"),
    "setup: no tasks": ("setups/remoe-182m.yaml", "  tasks:\n    benchmark:", "  #", "setups/remoe-182m.yaml: key 'tasks' of evaluation is missing"),
    "setup: whole number as a fraction": ("setups/remoe-182m.yaml", "batch: 512", "batch: 512.0", "setups/remoe-182m.yaml, key training.batch: 512.0 is not of type 'integer'"),
    "setup: not a number": ("setups/remoe-182m.yaml", "learning_rate: 5.0e-4", "learning_rate: .nan", "setups/remoe-182m.yaml, key training.learning_rate: nan is not finite, expected a number"),
    "setup: infinite": ("setups/remoe-182m.yaml", "betas: [0.9, 0.999]", "betas: [0.9, -.inf]", "setups/remoe-182m.yaml, key training.betas.1: -inf is not finite, expected a number"),
    "setup: a key twice": ("setups/remoe-182m.yaml", "  sequence: 1024\n", "  sequence: 1024\n  steps: 1\n", "setups/remoe-182m.yaml, line 20: is not valid YAML (key 'steps' stands there and in line 18, expected once)"),
    "setup: a value that holds itself": ("setups/remoe-182m.yaml", "batch: 512", "batch: &a [*a]", "setups/remoe-182m.yaml, line 20: is not valid YAML (*a is an alias, expected the value itself)"),
    "setup: no size": ("setups/remoe-182m.yaml", "size: 182M", "size: ''", "setups/remoe-182m.yaml, key size: '' "),
    "setup: label with a slash": ("setups/remoe-182m.yaml", "{30B: 1.0}", "{30B/a: 1.0}", "setups/remoe-182m.yaml, key snapshots: '30B/a' does not match"),
    "setup: label that is a number": ("setups/remoe-182m.yaml", "{30B: 1.0}", "{30: 1.0}", "setups/remoe-182m.yaml, key snapshots: 30 is not of type 'string'"),
    "setup: unknown benchmark": ("setups/remoe-182m.yaml", "arc_easy/acc", "arc_esay/acc", "setups/remoe-182m.yaml, key evaluation.tasks.benchmark: 'arc_esay' is unknown; the nearest valid name is 'arc_easy'"),
    "scale: infinite": ("scales/smoke.yaml", "init_std: 0.05", "init_std: .inf", "scales/smoke.yaml, key every.model.init_std: inf is not finite, expected a number"),
    "scale: a key twice": ("scales/smoke.yaml", "steps: 24", "steps: 24\n    steps: 25", "scales/smoke.yaml, line 8: is not valid YAML (key 'steps' stands there and in line 7, expected once)"),
    "scale: rising learning rate": ("scales/smoke.yaml", "final_learning_rate: 5.0e-4", "final_learning_rate: 5.0e-2", "key training.final_learning_rate: 0.05 is more than the learning_rate 0.005, expected at most that"),
    "scale: odd heads": ("scales/smoke.yaml", "width: 32, layers: 2, heads: 2,", "width: 30, layers: 2, heads: 2,", "key model.heads: 2 heads of a width of 30 are 15 wide each, expected an even number"),
    "scale: unknown local task": ("scales/smoke.yaml", "local_cloze/acc", "local_cloz/acc", "scales/smoke.yaml, key every.evaluation.tasks.local: 'local_cloz' is unknown; the nearest valid name is 'local_cloze'"),
    "scale: unknown task of one setup": ("scales/smoke.yaml", "setups:\n", "setups:\n  remoe-182m: {evaluation: {tasks: {benchmark: [sicq]}}}\n", "scales/smoke.yaml, key setups.remoe-182m.evaluation.tasks.benchmark: 'sicq' is unknown; the nearest valid name is 'sciq'"),
    "scale: unknown divided option": ("scales/smoke.yaml", "divide: {state: 8", "divide: {sate: 8", "scales/smoke.yaml, key divide: 'sate' is unknown; the nearest valid name is 'state'"),
    "scale: a section that is a number": ("scales/smoke.yaml", "setups:\n", "setups:\n  remoe-182m: {model: 3}\n", "key model: 3 is not of type 'object', expected arguments of moe.model.Decoder"),
    "corpus: unknown key": ("corpora/smoke.yaml", "source:", "sorce:", "corpora/smoke.yaml has the unknown key 'sorce'; did you mean 'source'?"),
    "corpus: unknown kind": ("corpora/local-bpe.yaml", "kind: local", "kind: locl", "corpora/local-bpe.yaml: source.kind is 'locl', which is unknown; did you mean 'local'?"),
    "corpus: a kind that is a list": ("corpora/smoke.yaml", "{kind: bytes}", "{kind: [bytes]}", "corpora/smoke.yaml: tokenizer.kind is ['bytes'], which is unknown; did you mean 'bytes'?"),
    "corpus: a list that is a number": ("corpora/smoke.yaml", "limit_mb: 1", "limit_mb: 1, domains: 5", "corpora/smoke.yaml: source.domains is 5, expected a list of python, cpp, prose, examples"),
    "corpus: infinite": ("corpora/smoke.yaml", "limit_mb: 1", "limit_mb: .inf", "corpora/smoke.yaml, key source.limit_mb: inf is not finite, expected a number"),
    "corpus: a key twice": ("corpora/smoke.yaml", "tokenizer: {kind: bytes}", "tokenizer: {kind: bytes}\nsource: {kind: local}", "corpora/smoke.yaml, line 4: is not valid YAML (key 'source' stands there and in line 2, expected once)"),
    "fine-tuned: unknown base": ("finetunes.tsv", "sft\trmoe-900m-smoe\t", "sft\trmoe-900m-smo\t", "finetunes.tsv, row rmoe-900m-smoe-20b-sft, column base: 'rmoe-900m-smo' is unknown; the nearest valid name is 'rmoe-900m-smoe'"),
    "fine-tuned: unknown snapshot": ("finetunes.tsv", "\t20B\t", "\t25B\t", "row rmoe-900m-smoe-20b-sft, column at: '25B' is unknown; the nearest valid name is '20B'"),
    "fine-tuned: unknown variant": ("finetunes.tsv", "\tgate\n", "\tgates\n", "row rmoe-900m-smoe-20b-sft-frozen-gate, column frozen: 'gates' is unknown; the nearest valid name is 'gate'"),
    "fine-tuned: a cell that there is not": ("finetunes.tsv", "\tgate\n", "\trouter+gru\n", "column frozen of a run with router smoe: 'router+gru' is unknown; valid: gate, none"),
    "fine-tuned: another cell": ("finetunes.tsv", "\trouter+rnn\n", "\trouter+gru\n", "column frozen of a run with router rmoe-rnn: 'router+gru' is unknown; the nearest valid name is 'router+rnn'"),
    "fine-tuned: a setup of pretraining": ("finetunes.tsv", "sft\trmoe-0.9b-sft\t", "sft\trmoe-0.9b\t", "column setup: 'rmoe-0.9b' has no key finetune, expected a setup that has"),
    "fine-tuned: a run of another setup": ("finetunes.tsv", "sft\trmoe-900m-smoe\t20B", "sft\trmoe-15b-120b-smoe\t80B", "column setup: 'rmoe-0.9b-sft' has another model, router or corpus than 'rmoe-15b-120b', the setup of run rmoe-15b-120b-smoe"),
    "fine-tuned: a name of runs.tsv": ("finetunes.tsv", "rmoe-900m-smoe-20b-sft\t", "rmoe-900m-smoe\t", "row rmoe-900m-smoe: the name stands in two rows"),
    "fine-tuned: column renamed": ("finetunes.tsv", "\tfrozen\n", "\tfrosen\n", "column 'frosen' is unknown; the nearest valid name is 'frozen'"),
    "pretrained with a setup of fine-tuning": ("runs.tsv", "\trmoe-0.9b\t", "\trmoe-0.9b-sft\t", "row rmoe-900m-rmoe-p128, column setup: 'rmoe-0.9b-sft' is unknown; the nearest valid name is 'rmoe-0.9b'"),
    "setup: unknown instructions": ("scales/smoke.yaml", "instructions: docstrings-bytes", "instructions: docstring-bytes", "key finetune.instructions: 'docstring-bytes' is unknown; the nearest valid name is 'docstrings-bytes'"),
    "instructions: unknown kind": ("instructions/docstrings.yaml", "kind: docstrings", "kind: docstring", "instructions/docstrings.yaml, key kind: 'docstring' is unknown; the nearest valid name is 'docstrings'"),
    "instructions: unknown key": ("instructions/docstrings.yaml", "limit:", "limits:", "instructions/docstrings.yaml: key 'limits' is unknown; the nearest valid name is 'limit'"),
}  # fmt: skip


def test_the_projects_own_tables_are_right(config):
    for scale in ("smoke", "laptop", "gpu", "paper"):
        assert read(config | {"scale": scale}).runs


def test_the_papers_sizes_run_on_eight_ranks(config):
    assert read(config | {"scale": "paper", "ranks": 8}).runs


def test_another_number_of_ranks_is_the_same_run(config):
    """So that it goes on with the run's checkpoints (tests/test_other_ranks.py)."""
    one, four = read(config), read(config | {"ranks": 4})
    assert all(one.spec(name) == four.spec(name) for name in one.runs)


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
        ({"seeds": {"remoe": 3}}, "key 'rmoe' of seeds is missing"),
        ({"seeds": {"remoe": 3, "rmoe": 1, "rmo": 1}}, "key 'rmo' of seeds is unknown"),
        ({"hardware": "h100-4"}, "key hardware: 'h100-4' is unknown; the nearest valid name is 'h100-8'"),
        ({"sede": 3}, "key 'sede' is unknown; the nearest valid name is 'seeds'"),
        ({"benchmarks": "fetsch"}, "key benchmarks: 'fetsch' is unknown; the nearest valid name is 'fetch'"),
        ({"tables": "nowhere"}, "nowhere/setups: no .yaml file there"),
        ({"nodes": 2}, "key nodes: 2 do not divide the 1 ranks"),
        ({"ranks": 3}, "the batch of 8 is not a multiple of 3 ranks"),
    ],
)
def test_a_wrong_setting_is_one_sentence(change, says, config):
    with pytest.raises(ValueError, match=re.escape(says)):
        read(config | change)


def test_numbers_inside_of_a_setting_of_the_command_line():
    given = {"seeds": {"remoe": "3", "rmoe": "1"}, "ranks": 2, "scale": "smoke", "tables": "7"}
    assert typed(given) == given | {"seeds": {"remoe": 3, "rmoe": 1}}
    assert typed({"cluster": {"rules": {"train": {"cpus": "3"}}}}) == {"cluster": {"rules": {"train": {"cpus": 3}}}}


def test_each_paper_may_have_its_own_number_of_seeds(config):
    some = read(config | {"seeds": {"remoe": 3, "rmoe": 1}})
    assert {row["paper"]: some.seeds(row) for row in some.runs.values()} == {"remoe": range(3), "rmoe": range(1)}
    assert {read(config | {"seeds": 2}).seeds(row) for row in some.runs.values()} == {range(2)}


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


def properties(schema, path):
    """Every property that a schema names, however deep, with what it says of it."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}.{name}", inner
    for key, inner in schema.items():
        several = inner.items() if key in ("properties", "$defs") else [(key, inner)]
        for name, one in several:
            for part in one if isinstance(one, list) else [one]:
                if isinstance(part, dict):
                    yield from properties(part, f"{path}.{name}")


@pytest.mark.parametrize("path", sorted((ROOT / "workflow/schemas").glob("*.yaml")), ids=lambda path: path.name)
def test_every_key_of_every_schema_is_described(path):
    schema = load_yaml(path)
    found = list(properties(schema, path.stem))
    assert schema.get("description") and len(found) >= len(schema["properties"])
    for name, inner in found:
        if "$ref" in inner:
            inner = schema["$defs"][inner["$ref"].rsplit("/")[-1]]
        assert inner.get("description"), f"{name} has no description"


def test_an_extension_is_its_base_but_for_what_it_says():
    def at(scale):
        return Tables(load_yaml(ROOT / "config/config.yaml") | {"scale": scale}, ROOT / "workflow/schemas")

    paper, smoke = at("paper"), at("smoke")
    base, longer = paper.spec("remoe-469m-relu"), paper.spec("remoe-469m-120b-relu")
    assert longer["training"] == base["training"] | {"steps": 28_600, "batch": 4096}
    assert longer["snapshots"] == {"120B": 1.0} and longer["model"] == base["model"]
    assert paper.spec("remoe-182m-10b-relu")["training"]["steps"] == 20_000
    # a factor applies after the scale, so that a third is a third everywhere
    assert (
        smoke.spec("remoe-182m-10b-relu")["training"]["steps"] == smoke.spec("remoe-182m-relu")["training"]["steps"] / 3
    )
