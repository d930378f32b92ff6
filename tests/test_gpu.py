"""What needs a CUDA device: `pytest -m gpu`. Everything else runs without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import write_corpus

from moe import devices
from moe.experts import Experts
from moe.model import Decoder
from moe.precision import measure_precision
from moe.routers import ROUTERS

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_dispatch_in_bfloat16_is_close_to_the_cpu_in_float32():
    torch.manual_seed(0)
    experts, x, gates = Experts(8, 64, 128), torch.randn(100, 64), torch.randn(100, 8).relu()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    gates[:, 3], gates[5] = 0, 0  # an expert without tokens, a token without experts
    reference = experts(x, gates)
    (reference**2).sum().backward()
    expected = [p.grad.clone() for p in experts.parameters()]
    experts.zero_grad()
    experts.to("cuda", torch.bfloat16)
    y = experts(x.to("cuda", torch.bfloat16), gates.cuda())
    (y.float() ** 2).sum().backward()
    for mine, theirs in zip([y, *(p.grad for p in experts.parameters())], [reference, *expected], strict=True):
        assert (mine.float().cpu() - theirs).norm() <= 3e-2 * theirs.norm()


@pytest.mark.parametrize("router", ["none", *ROUTERS])
def test_a_step_in_bfloat16(router):
    torch.manual_seed(0)
    experts = dict(experts=1) if router == "none" else dict(experts=8, top_k=2)
    shape = dict(vocabulary=256, width=64, layers=2, heads=4, kv_heads=2, expert_width=64, init_std=0.05)
    model = Decoder(**shape, router={"name": router}, **experts).to("cuda", torch.bfloat16)
    tokens = torch.randint(256, (2, 33), device="cuda")
    loss, router_loss = model(tokens[:, :-1], tokens[:, 1:])
    (loss + router_loss).backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.after_step()


def test_a_gpu_is_used_without_being_told(tmp_path):
    write_corpus(tmp_path / "data" / "corpus")
    folder = tmp_path / "run"
    folder.mkdir()
    model = dict(vocabulary=272, width=64, layers=2, heads=4, kv_heads=2, expert_width=64, init_std=0.1)
    training = dict(steps=4, sequence=32, batch=4, learning_rate=1e-3, final_learning_rate=1e-4, warmup=0.2)
    training |= dict(validate_every=2, validate_windows=4, checkpoint_every=2)
    spec = dict(
        run="tiny", scale="test", setup="tiny", seed=0, fingerprint="f", snapshots={"all": 1.0}, training=training
    )
    spec["model"] = model | dict(experts=4, top_k=1, router={"name": "relu"})
    (folder / "run.yaml").write_text(yaml.safe_dump(spec))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    command = [sys.executable, "-m", "moe.launch", "1", "moe.train", str(folder / "run.yaml")]
    subprocess.run([*command, "--corpus", str(tmp_path / "data/corpus")], env=environment, check=True)
    done = json.loads((folder / "done.json").read_text())
    assert done["device"] == torch.cuda.get_device_name() and done["precision"] == "bfloat16"


def test_a_second_lone_process_takes_another_gpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here")
    first = devices.pick()
    other = subprocess.run(
        [sys.executable, "-c", "from moe import devices; print(devices.pick())"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "workflow")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert other.stdout.strip() != str(first)


def test_precision_of_a_gpu_is_bfloat16():
    assert measure_precision()["precision"] == "bfloat16"
