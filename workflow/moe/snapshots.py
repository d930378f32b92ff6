"""Snapshots: a run's weights at named points of its schedule, as safetensors, and the way back to a model."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from moe.checkpoints import sha256, sync
from moe.model import Decoder
from moe.span import SpanDecoder

MODELS = {"decoder": Decoder, "span": SpanDecoder}
EXTRA = "_extra_state"  # PyTorch's name for it


def build_model(spec: dict[str, Any]) -> nn.Module:
    """The model that run.yaml describes: its `model` keys are the constructor's arguments."""
    arguments = dict(spec["model"])
    return MODELS[arguments.pop("kind", "decoder")](**arguments)


def snapshot_steps(spec: dict[str, Any]) -> dict[str, int]:
    """Label -> the step after which it is taken; labels are the paper's token budgets, as shares of the run."""
    steps = spec["training"]["steps"]
    return {label: max(1, round(fraction * steps)) for label, fraction in spec["snapshots"].items()}


def router_state(model: nn.Module) -> dict[str, Any]:
    """What steers the router and is no tensor (λ, biases, steps of a warm-up), by module."""
    return {n: s for n, s in model.state_dict().items() if n.endswith(EXTRA)}


def save_snapshot(state: dict[str, torch.Tensor], path: Path, steering: dict[str, Any]) -> None:
    """Write the weights, and what `router_state` gives as metadata, aside, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing")
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, aside, metadata={"router": json.dumps(steering)})
    sync(aside)
    aside.rename(path)


def load_model(run_folder: Path, label: str, device: str | torch.device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """A finished run's model at a snapshot, in evaluation mode, and its run.yaml.

    Raises ValueError when the run is not finished, has no such snapshot, or its file is missing or altered.
    """
    run_folder = Path(run_folder)
    spec = yaml.safe_load((run_folder / "run.yaml").read_text())
    if not (run_folder / "done.json").is_file():
        raise ValueError(f"{run_folder}: done.json is missing, so the run is not finished")
    done = json.loads((run_folder / "done.json").read_text())
    if label not in done["snapshots"]:
        raise ValueError(f"{run_folder}: there is no snapshot {label!r}, only {', '.join(done['snapshots'])}")
    entry = done["snapshots"][label]
    path = run_folder / entry["file"]
    if not path.is_file():
        raise ValueError(f"{path}: the snapshot's file is missing")
    if sha256(path) != entry["sha256"]:
        raise ValueError(f"{path}: is truncated or altered (its SHA-256 differs from done.json)")
    model = build_model(spec)
    with safe_open(path, "pt") as file:
        steering = json.loads((file.metadata() or {}).get("router", "{}"))
    state = load_file(path) | steering
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(f"{path}: does not fit the model of run.yaml at {[*missing, *unexpected][0]}")
    # Precision of the run, so that what is measured is what was trained.
    dtype = torch.bfloat16 if done["precision"] == "bfloat16" and torch.device(device).type == "cuda" else torch.float32
    return model.to(device=device, dtype=dtype).eval(), spec
