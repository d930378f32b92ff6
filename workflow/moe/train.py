"""Pretrain one run with a DeepSpeed engine: `python -m moe.train results/…/run.yaml --corpus results/corpora/…`.

Stops at SIGTERM or SIGUSR1 with a checkpoint and exit code 75; the same command goes on from the newest whole one.
"""

import argparse
import json
import platform
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from moe import checkpoints, devices
from moe.accounting import parameter_counts, training_flops, utilisation
from moe.command_line import exit_code
from moe.data import Corpus, Windows, held_out
from moe.health import Health
from moe.parallel import build_engine, gathered_state, init_ranks, spread_experts
from moe.records import StepRecord, progress
from moe.schedule import learning_rate
from moe.snapshots import build_model, save_snapshot, snapshot_steps

REQUEUE = 75  # EX_TEMPFAIL: the scheduler may run the job again


class Stopped(SystemExit):
    """A signal asked for an early end; everything is on disk."""


class Training:
    """One run's training: what it is (spec), where it lives (folder) and the state that moves."""

    def __init__(self, spec: dict[str, Any], folder: Path, corpus: Corpus, precision: str):
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):  # first of all: one may come before the first step
            signal.signal(number, self._on_signal)
        self.spec, self.folder, self.corpus = spec, folder, corpus
        self.settings = settings = spec["training"]
        self.device = devices.pick()
        self.rank, self.ranks = init_ranks(self.device)
        self.dtype = getattr(torch, precision)
        self.checkpoints = folder / "checkpoints" / spec["fingerprint"]
        self.belongs = {"setup": spec["fingerprint"], "data": corpus.fingerprint}
        self.snapshots = snapshot_steps(spec)
        self._check_sizes()
        torch.manual_seed(spec["seed"])
        model = build_model(spec)
        self.counts = parameter_counts(model)
        if self.rank == 0:
            checkpoints.check_disk(folder, (checkpoints.KEPT + 1) * 16 * self.counts["parameters"])
        spread_experts(model, settings.get("expert_ranks", 1))
        self.micro_batch = settings.get("micro_batch") or settings["batch"] // self.ranks
        self.engine = build_engine(
            model.to(self.device, self.dtype),
            batch=settings["batch"],
            micro_batch=self.micro_batch,
            ranks=self.ranks,
            dtype=self.dtype,
            **{k: settings[k] for k in ("betas", "eps", "weight_decay", "clip", "zero_stage") if k in settings},
        )
        self.model = self.engine.module
        if settings.get("compile"):
            self.engine.compile()
        self.batches = Windows(corpus, "train", settings["sequence"], settings["batch"], spec["seed"])
        self.health = Health(self.model, spec["model"]["router"]["name"], where=str(folder))

    def _check_sizes(self) -> None:
        settings, where = self.settings, self.folder / "run.yaml"
        if settings["batch"] % (self.ranks * (settings.get("micro_batch") or 1)):
            raise ValueError(
                f"{where}: batch {settings['batch']} is not a multiple of {self.ranks} ranks × micro_batch "
                f"{settings.get('micro_batch') or 1}"
            )
        if self.corpus.vocabulary > self.spec["model"]["vocabulary"]:
            raise ValueError(
                f"{where}: model vocabulary {self.spec['model']['vocabulary']} is smaller than the tokenizer's "
                f"{self.corpus.vocabulary} in {self.corpus.folder}"
            )

    def run(self) -> None:
        """Train from the newest checkpoint to the last step, then write metrics.csv and done.json."""
        start = self._resume()
        steps, name = self.settings["steps"], f"{self.spec['run']} seed {self.spec['seed']}"
        record = None
        if self.rank == 0:
            path = self.checkpoints / "metrics.csv"
            record = StepRecord(path, self._columns(), start, self.folder / "tensorboard")
        bar = progress(name, steps, start) if self.rank == 0 else None
        if self.rank == 0:
            whole = f"{steps} steps of {self.settings['batch'] * self.settings['sequence']:,} tokens"
            precision = f"{str(self.dtype)[6:]} on {self.ranks} × {devices.name(self.device)}"
            print(
                f"{name}  {self.counts['parameters']:,} parameters, {whole}, {precision}, from step {start}", flush=True
            )
        for step in range(start, steps):
            row = self._step(step)
            if (step + 1) % self.settings["validate_every"] == 0 or step + 1 == steps:
                row["valid_loss"] = self._validate()
            if record is not None:
                record.append(row)
                rate = row["tokens_per_second"]
                bar.set_postfix_str(f"loss {row['loss']:.3f}  {rate:,.0f} tokens/s", refresh=False)
                bar.update()
            for label, at in self.snapshots.items():
                if step + 1 == at:
                    self._snapshot(label)
            stopping = self._stopping()
            if stopping or step + 1 == steps or (step + 1) % self.settings["checkpoint_every"] == 0:
                self._checkpoint(step + 1, record)
            if stopping and step + 1 < steps:
                raise Stopped(REQUEUE)
        if self.rank == 0:
            bar.close()
            record.close()
            self._finish()

    def _step(self, step: int) -> dict[str, Any]:
        """One optimiser step over the whole batch; its metrics row."""
        began = time.perf_counter()
        settings, spec = self.settings, self.spec
        rate = learning_rate(
            step,
            steps=settings["steps"],
            peak=settings["learning_rate"],
            final=settings["final_learning_rate"],
            warmup=settings["warmup"],
        )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        # Routers that sample draw from the seed and the step alone, so a resume needs no generator state.
        torch.manual_seed((spec["seed"] * 1_000_003 + step) * 1009 + self.rank)
        tokens_BS = torch.from_numpy(self.batches.at(step, self.rank, self.ranks)).to(self.device)
        self.model.train()
        losses = []
        for micro_BS in tokens_BS.split(self.micro_batch):
            loss, router_loss = self.engine(micro_BS[:, :-1], micro_BS[:, 1:])
            self.engine.backward(loss + router_loss)
            self.engine.step()
            losses.append(torch.stack([loss.detach(), router_loss.detach()]))
        total, router_total = self._mean_over_ranks(torch.stack(losses).double().mean(0)).tolist()
        statistics = self.model.after_step()
        row = {"step": step + 1, "tokens": (step + 1) * settings["batch"] * settings["sequence"]}
        row |= {"loss": total, "router_loss": router_total, "learning_rate": rate}
        row |= {"gradient_norm": float(self.engine.get_global_grad_norm())} | statistics
        self.health.check(row, tokens_BS[: self.micro_batch, :-1])
        seconds = time.perf_counter() - began
        row["tokens_per_second"] = settings["batch"] * settings["sequence"] / seconds
        row |= {
            "mfu": self._mfu(seconds, statistics),
            "memory_gib": devices.peak_memory(self.device),
            "seconds": seconds,
        }
        return row

    def _mfu(self, seconds: float, statistics: dict[str, float]) -> float | None:
        """Share of the devices' peak, from the FLOPs of the experts that were active in this step."""
        model, settings = self.spec["model"], self.settings
        active = 1.0
        if statistics:  # experts of the width before granularity
            active = (1 - statistics["sparsity"]) * self.model.experts / model.get("granularity", 1)
        shape = {k: model[k] for k in ("width", "layers", "heads", "kv_heads", "expert_width", "vocabulary")}
        flops = settings["batch"] * training_flops(settings["sequence"], active_experts=active, **shape)
        return utilisation(flops / seconds, devices.name(self.device), self.ranks)

    def _mean_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        if self.ranks > 1:
            dist.all_reduce(values)
            values /= self.ranks
        return values

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss of the first validation windows, nats per token; ranks share the windows."""
        settings = self.settings
        self.model.eval()
        windows = list(held_out(self.corpus, "valid", settings["sequence"], settings["validate_windows"]))
        per_rank = max(1, len(windows) // self.ranks)
        mine = windows[self.rank * per_rank : (self.rank + 1) * per_rank]
        losses = []
        for first in range(0, len(mine), self.micro_batch):
            some = torch.stack([torch.as_tensor(w) for w in mine[first : first + self.micro_batch]]).to(self.device)
            losses += [self.model(some[:, :-1], some[:, 1:])[0].double()] * len(some)
        return self._mean_over_ranks(torch.stack(losses).mean()).item()

    def _on_signal(self, number: int, frame: Any) -> None:
        self.signal = number

    def _stopping(self) -> bool:
        """Whether any rank got a signal: all must stop after the same step."""
        if self.ranks == 1:
            return self.signal is not None
        flag = torch.tensor([self.signal is not None], dtype=torch.int32, device=self.device)
        dist.all_reduce(flag)
        return bool(flag.item())

    def _checkpoint(self, step: int, record: StepRecord | None) -> None:
        if record is not None:
            record.sync()

        def save(aside: Path) -> None:
            self.engine.save_checkpoint(str(aside), tag="engine", client_state={"step": step}, save_latest=False)

        checkpoints.write(self.checkpoints, step, self.belongs, save, self.rank, dist.barrier)

    def _resume(self) -> int:
        """Load the newest whole checkpoint; the step to go on with."""
        newest = checkpoints.newest(self.checkpoints, self.belongs)
        if newest is None:
            return 0
        _, state = self.engine.load_checkpoint(str(newest), tag="engine")
        return int(state["step"])

    def _snapshot(self, label: str) -> None:
        state = gathered_state(self.model)
        if self.rank == 0:
            save_snapshot(state, self._snapshot_path(label))
        dist.barrier()

    def _snapshot_path(self, label: str) -> Path:
        return self.folder / "snapshots" / self.spec["fingerprint"] / f"{label}.safetensors"

    def _columns(self) -> list[str]:
        columns = ["step", "tokens", "loss", "router_loss", "learning_rate", "gradient_norm"]
        if self.model.router is not None:
            layers = range(self.model.router.layers)
            columns += ["sparsity", "l1_lambda", "l1_bound"]
            columns += [f"sparsity_{i}" for i in layers] + [f"load_{i}" for i in layers]
        else:
            columns += ["sparsity", "l1_lambda", "l1_bound"]
        return [*columns, "valid_loss", "tokens_per_second", "mfu", "memory_gib", "seconds"]

    def _finish(self) -> None:
        """Publish metrics.csv, then done.json, which says that everything is there."""
        spec, settings = self.spec, self.settings
        rows = (self.checkpoints / "metrics.csv").read_bytes()
        checkpoints.replace(self.folder / "metrics.csv", rows)
        batch_tokens = settings["batch"] * settings["sequence"]
        done = {key: spec[key] for key in ("run", "seed", "scale", "setup")}
        done |= {"steps": settings["steps"], "tokens": settings["steps"] * batch_tokens} | self.counts
        table = [line.split(",") for line in rows.decode().splitlines()]
        seconds = [float(line[table[0].index("seconds")]) for line in table[1:]]
        done |= {"seconds": sum(seconds), "median_step_seconds": sorted(seconds)[len(seconds) // 2]}
        done |= {
            "memory_gib": devices.peak_memory(self.device),
            "device": devices.name(self.device),
            "precision": str(self.dtype)[6:],
        }
        done |= {"ranks": self.ranks, "commit": spec.get("commit"), "fingerprint": spec["fingerprint"]}
        done["data"] = self.corpus.fingerprint
        done["versions"] = {"python": platform.python_version()} | {
            name: version(name) for name in ("torch", "deepspeed", "datasets", "tokenizers")
        }
        done["snapshots"] = {
            label: {
                "file": str(self._snapshot_path(label).relative_to(self.folder)),
                "step": step,
                "tokens": step * batch_tokens,
                "sha256": checkpoints.sha256(self._snapshot_path(label)),
            }
            for label, step in self.snapshots.items()
        }
        checkpoints.replace(self.folder / "done.json", json.dumps(done, indent=1).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run.yaml of a run; everything is written beside it")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the prepared corpus")
    parser.add_argument("--precision", type=Path, help="precision.json that measured the faster one on this machine")
    arguments = parser.parse_args()

    def train() -> None:
        spec = yaml.safe_load(arguments.run.read_text())
        precision = spec["training"].get("precision", "auto")
        if precision == "auto":
            precision = json.loads(arguments.precision.read_text())["precision"] if arguments.precision else "float32"
        Training(spec, arguments.run.parent, Corpus(arguments.corpus), precision).run()

    sys.exit(exit_code(train))


if __name__ == "__main__":
    main()
