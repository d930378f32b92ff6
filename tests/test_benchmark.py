"""The benchmark: turns and ratios on made-up clocks, peers that do our work, every part end to end at tiny shapes."""

import csv
import math
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from tiny_run import write_corpus

from moe.benchmark import parts
from moe.benchmark.alone import in_own_process, in_processes
from moe.benchmark.parts import PEERS, TINY, memory_of
from moe.benchmark.paths import paths
from moe.benchmark.steps import deepspeed_moe, mixtral, ours, reader
from moe.benchmark.turns import WARM, in_turns, speed_ratio
from moe.data import Corpus
from moe.figures.benchmark import draw_benchmark

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
# without what a process group of this process has left there
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT / "workflow")}


def test_turns_rotate_and_the_first_are_not_counted():
    order, clock = [], count()
    seconds = in_turns({n: lambda n=n: order.append(n) for n in "abc"}, 3, clock=lambda: next(clock))
    assert "".join(order).startswith("abcbcacababc") and len(order) == 3 * (WARM + 3)
    assert seconds == {n: [1, 1, 1] for n in "abc"}


def test_ratio_is_paired_so_that_a_slow_machine_cancels():
    drift = [1, 5, 1, 3, 2, 9, 1, 1, 4]
    ratio = speed_ratio([2.0 * d for d in drift], [3.0 * d for d in drift])
    assert ratio == (1.5, 1.5, 1.5)


def test_interval_of_the_median_follows_from_fair_coins():
    others = [float(i) for i in range(1, 10)]
    assert speed_ratio([1.0] * 9, others) == (5.0, 2.0, 8.0)  # 9 rounds: 2nd and 8th, 96.1 %
    assert speed_ratio([1.0] * 5, others[:5])[1:] == (None, None)  # 1/16 is more than 5 %


def test_real_text_is_read_window_by_window(tmp_path):
    write_corpus(tmp_path / "corpus")
    corpus = Corpus(tmp_path / "corpus")
    batches = reader(corpus, TINY, CPU)
    first, second = batches(), batches()
    assert first.shape == (TINY["batch"], TINY["sequence"] + 1) and not torch.equal(first, second)
    text = corpus.tokens("train").astype(int).tolist()
    window = first[0].tolist()
    assert any(text[i : i + len(window)] == window for i in range(len(text)))


def test_peers_do_the_same_work():
    steps = {
        "ours": ours(TINY, {"name": "topk"}, torch.float32, CPU),
        "eager": mixtral(TINY, "eager", torch.float32, CPU),
        "grouped": mixtral(TINY, "grouped_mm", torch.float32, CPU),
        "deepspeed": deepspeed_moe(TINY, False, torch.float32, CPU),
        "deepspeed, capacity": deepspeed_moe(TINY, True, torch.float32, CPU),
    }
    for name, step in steps.items():
        first = step()
        balance = 0.01 * (TINY["top_k"] if name in ("eager", "grouped") else TINY["layers"])
        assert first == pytest.approx(math.log(TINY["vocabulary"]), abs=0.15 + balance), name
        losses = [step() for _ in range(3)]
        assert all(math.isfinite(loss) for loss in losses)


def test_peers_have_our_parameters_and_active_flops():
    from transformers import MixtralConfig, MixtralForCausalLM

    from moe.model import Decoder

    with torch.device("meta"):
        mine = Decoder(**PEERS.model, router={"name": "topk"})
        config = MixtralConfig(
            vocab_size=8192, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
            num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2, tie_word_embeddings=False,
        )  # fmt: skip
        theirs = MixtralForCausalLM(config)
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(("experts", "top_k"), [(8, 1), (8, 2), (4, 4)])
def test_expert_paths_agree(experts, top_k):
    from moe.benchmark.paths import loop_over_experts
    from moe.experts import Experts

    torch.manual_seed(0)
    stack = Experts(experts, 8, 12)
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter)
    x, gates = torch.randn(20, 8), torch.zeros(20, experts)
    gates.scatter_(1, torch.rand(20, experts).topk(top_k).indices, 0.5)
    torch.testing.assert_close(loop_over_experts(stack, x, gates), stack(x, gates), rtol=1e-4, atol=1e-4)
    assert set(paths(16, 8, 12, experts, top_k, torch.float32, CPU)) == {"grouped", "loop", "dense"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The CSV of all parts but `routers`, whose many routers take long, at tiny shapes."""
    path = tmp_path_factory.mktemp("benchmark") / "cpu.csv"
    setup = path.parent / "remoe-tiny.yaml"
    write_corpus(path.parent / "corpus")
    model = "{vocabulary: 272, width: 16, layers: 2, heads: 2, kv_heads: 1, expert_width: 32}"
    setup.write_text(f"model: {model}\ntraining: {{sequence: 8}}\n")
    command = [sys.executable, "-m", "moe.benchmark", "--tiny", "--rounds", "2", "--threads", "1", "--device", "cpu"]
    command += ["--parts", "experts,peers,mfu", "--setups", str(setup), "--output", str(path)]
    command += ["--corpus", str(path.parent / "corpus")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def test_every_part_has_its_rows_with_provenance(table):
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"experts", "peers", "mfu"}
    assert {row["contender"] for row in rows if row["part"] == "mfu"} == {
        f"remoe-tiny {router}" for router in ("none", "topk", "relu", "rmoe")
    }
    assert {"ours", "ours, compiled"} <= {row["contender"] for row in rows if row["part"] == "peers"}
    for row in rows:
        assert float(row["tokens_per_second"]) > 0 and row["device"] and row["torch"] == torch.__version__
        assert bool(row["ratio"]) == bool(row["baseline"]) or row["part"] == "peers"


@pytest.mark.parametrize("text", [True, False])
def test_routers_are_measured_beside_top_k_of_their_normalisation(text, monkeypatch, tmp_path):
    corpus = tmp_path / "corpus"
    write_corpus(corpus)
    monkeypatch.setattr(parts, "ROUTERS", {name: parts.ROUTERS[name] for name in ("relu", "rmoe")})
    rows = parts.routers_part(CPU, 2, "float32", corpus if text else None, tiny=True)
    assert [row["contender"] for row in rows] == ["relu", "rmoe", "rmoe p/width as 0.9B"]
    assert [row["baseline"] for row in rows] == ["topk", "smoe", "smoe"]
    assert [row["rounds"] for row in rows] == [6, 6, 6]  # the papers' own: three times as many turns
    for row in rows:
        assert row["part"] == "routers" and row["tokens_per_second"] > 0 and row["ratio"] > 0
        assert 0 < row["peak_memory_mib"] < 4096 and 0 < row["active_experts"] <= TINY["experts"]
    assert [row["active_experts"] for row in rows[1:]] == [TINY["top_k"]] * 2


def test_what_a_process_of_its_own_raises_is_raised_here():
    with pytest.raises(ValueError, match="'nosuch' is unknown"):
        in_own_process(memory_of, {"name": "nosuch"}, TINY, "float32", CPU)
    assert in_own_process(os.getpid) != os.getpid()


def test_turns_of_several_processes_make_one_row():
    turns = in_processes(3, _turns_of_a_process, 2)
    assert turns["ours"] == [0, 1] * 3 and len(set(turns["process"])) == 3


def _turns_of_a_process(turns):
    return {"ours": list(range(turns)), "process": [os.getpid()]}


def test_table_and_figure_are_drawn_from_the_csv_alone(table, tmp_path):
    outputs = [tmp_path / f"drawn.{suffix}" for suffix in ("md", "svg", "csv")]
    draw_benchmark(table, outputs)
    page = outputs[0].read_text()
    assert "Whole train step, over the fastest peer in the same precision" in page and "| ours | float32 |" in page
    assert outputs[1].read_text().startswith("<?xml")


def test_an_unknown_part_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "moe.benchmark", "--parts", "router", "--output", str(tmp_path / "x.csv")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "--parts: 'router' is unknown, expected some of routers, experts" in done.stderr
