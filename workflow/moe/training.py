"""One run's training: all that it is made of, the step, checkpoints at any moment, and what it leaves.

Stops at SIGTERM or SIGUSR1 with a checkpoint; the same training made again goes on from the newest whole one.
"""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from moe import checkpoints, devices
from moe.accounting import parameter_counts, step_flops, training_mfu
from moe.best import Best, best_of
from moe.data import Corpus, Streams, Windows
from moe.engine import build_engine
from moe.expert_parallel import gathered_state, spread_experts
from moe.health import Health
from moe.monitors import Flips, RouterPull, Similarity
from moe.outcome import penalty_warnings, write_outcome
from moe.ranks import init_ranks
from moe.records import StepRecord, progress
from moe.resume import Resume
from moe.schedule import learning_rate
from moe.snapshots import build_model, router_state, save_snapshot, snapshot_steps
from moe.streaming import Memories, memory_bytes, validation_of


class Stopped(Exception):
    """A signal asked for an early end; everything is on disk."""


class Micro(NamedTuple):
    """A forward pass of one rank: inputs and targets [B, S], further arguments, weight of its loss in the mean."""

    inputs_BS: torch.Tensor
    targets_BS: torch.Tensor
    further: dict[str, Any]
    weight: float = 1.0


class Training:
    """One run's training: what it is (spec), where it lives (folder) and the state that moves.

    What it starts from, which weights move and what it reads are methods of their own, which fine-tuning replaces.
    """

    def __init__(self, spec: dict[str, Any], folder: Path, corpus: Corpus, precision: str):
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):  # first of all: one may come before the first step
            signal.signal(number, self._on_signal)
        self.spec, self.folder, self.corpus = spec, folder, corpus
        self.settings = settings = spec["training"]
        self.device = devices.pick()
        self.rank, self.ranks = init_ranks(self.device)
        self.dtype = getattr(torch, precision)
        # Another setup or other data start anew in a folder of their own; what lies in this one must still be checked.
        data = self._data_fingerprint()
        self.checkpoints = folder / "checkpoints" / f"{spec['fingerprint']}-{data[:8]}"
        belongs = {"setup": spec["fingerprint"], "data": data, "precision": precision}
        spread = settings.get("expert_ranks", 1) > 1
        self.resume = Resume(self.checkpoints, belongs, rank=self.rank, ranks=self.ranks, spread=spread)
        self.snapshots = snapshot_steps(spec)
        self._check_sizes()
        torch.manual_seed(spec["seed"])
        model = self._model()
        self.counts = parameter_counts(model)
        if self.rank == 0:
            size = 16 * self.counts["parameters"] + memory_bytes(model, settings["batch"])
            checkpoints.check_disk(folder, (checkpoints.KEPT + 1) * size)
        spread_experts(model, settings.get("expert_ranks", 1))
        self.micro_batch = settings.get("micro_batch") or settings["batch"] // self.ranks
        self.engine = build_engine(
            model.to(self.device, self.dtype),
            batch=settings["batch"],
            micro_batch=self.micro_batch,
            ranks=self.ranks,
            dtype=self.dtype,
            **{
                k: settings[k]
                for k in ("betas", "eps", "weight_decay", "clip", "zero_stage", "compile")
                if k in settings
            },
        )
        self.model = self.engine.module
        self.batches = self._batches()
        self.memories = Memories(self.batches, settings["batch"] // (self.micro_batch * self.ranks))
        sequence, windows = settings["sequence"], settings.get("flip_windows", 4)
        self.flips = Flips(self.model, corpus, sequence=sequence, windows=windows, every=settings.get("flip_every", 0))
        steps, points = settings["steps"], settings.get("similarity_points", 0)
        self.similarity = Similarity(self.model, points=points, steps=steps)
        points, length = settings.get("gradient_points", []), settings.get("gradient_steps", 100)
        self.pull = RouterPull(self.model, points=points, length=length, steps=steps, ranks=self.ranks)
        self.validate = validation_of(self.model, corpus, settings, self.micro_batch, self.rank, self.ranks)
        self.best = Best(self._snapshot_path("best").parent) if settings.get("keep", "last") == "best" else None
        self.health = Health(self.model, spec["model"]["router"]["name"], where=str(folder))

    def _data_fingerprint(self) -> str:
        """Of all that the training reads besides its setup."""
        return self.corpus.fingerprint

    def _model(self) -> torch.nn.Module:
        """What is trained, as it is before the first step; parameters that shall not move need no gradient."""
        return build_model(self.spec)

    def _batches(self) -> Any:
        """The text, batch by batch: a pure function of the step."""
        settings, kind = self.settings, Streams if self.settings.get("streams", False) else Windows
        return kind(self.corpus, "train", settings["sequence"], settings["batch"], self.spec["seed"])

    def _micro_batches(self, step: int) -> Iterator[Micro]:
        """This rank's forward passes of a step."""
        tokens_BS = torch.from_numpy(self.batches.at(step, self.rank, self.ranks)).to(self.device)
        for micro_BS, memory in zip(tokens_BS.split(self.micro_batch), self.memories.before(step), strict=True):
            yield Micro(micro_BS[:, :-1], micro_BS[:, 1:], memory)

    def _lengths(self, step: int) -> list[int]:
        """Tokens of each sequence of a step, over all ranks."""
        return [self.settings["sequence"]] * self.settings["batch"]

    def _tokens(self, steps: int) -> int:
        """Tokens that so many steps read."""
        return steps * self.settings["batch"] * self.settings["sequence"]

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
            whole = f"{steps} steps of {self._tokens(steps) // steps:,} tokens"
            precision = f"{str(self.dtype)[6:]} on {self.ranks} × {devices.name(self.device)}"
            size = f"{self.counts['parameters']:,} parameters"
            print(f"{name}  {size}, {whole}, {precision}, from step {start}", file=sys.stderr, flush=True)
        for step in range(start, steps):
            self.flips.before_step(step + 1)
            row = self._step(step)
            row |= self.flips.after_step(step + 1) | self.similarity.after_step(step + 1)
            if (step + 1) % self.settings["validate_every"] == 0 or step + 1 == steps:
                row["valid_loss"] = self.validate(step // self.settings["validate_every"])
                if self.best is not None:
                    self.best.validated(row, self._save_weights)
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
                raise Stopped
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
        losses, lengths, micro_batches = [], self._lengths(step), list(self._micro_batches(step))
        paused = time.perf_counter()
        measured = self.pull.before_step(step + 1, micro_batches)
        began += time.perf_counter() - paused  # a step's seconds are those of the training
        self.model.train()
        for micro in micro_batches:
            if losses:
                self.engine.step()  # only accumulates: the optimiser moves after the last micro-batch
            loss, router_loss = self.engine(micro.inputs_BS, micro.targets_BS, **micro.further)
            loss = loss * micro.weight
            self.engine.backward(loss + router_loss)
            losses.append(torch.stack([loss.detach(), router_loss.detach()]))
        total, router_total = self._mean_over_ranks(torch.stack(losses).double().mean(0)).tolist()
        self.health.check_losses(step + 1, total, router_total, micro_batches[0].inputs_BS)
        self.engine.step()
        statistics = self.model.after_step()
        row = {"step": step + 1, "tokens": self._tokens(step + 1)}
        row |= {"loss": total, "router_loss": router_total, "learning_rate": rate}
        row |= {"gradient_norm": float(self.engine.get_global_grad_norm())} | statistics | measured
        self.health.check(row)
        seconds = time.perf_counter() - began
        row["tokens_per_second"] = sum(lengths) / seconds
        flops = step_flops(spec, statistics.get("active_experts"), lengths)
        row |= {
            "flops": flops,
            "mfu": training_mfu(flops, seconds, devices.name(self.device), self.ranks),
            "memory_gib": devices.peak_memory(self.device),
            "seconds": seconds,
        }
        return row

    def _mean_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        if self.ranks > 1:
            dist.all_reduce(values)
            values /= self.ranks
        return values

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
        self.resume.save(step, self.engine, self.memories)
        if self.best is not None and self.rank == 0:
            self.best.prune()

    def _resume(self) -> int:
        """Load the newest whole checkpoint; the step to go on with."""
        step = self.resume.load(self.engine, self.memories, self.device)
        if self.best is not None:
            self.best.resume(self.checkpoints / "metrics.csv", step)
        return step

    def _snapshot(self, label: str) -> None:
        if self.best is None or not self.best.step:
            self._save_weights(self._snapshot_path(label))
        elif self.rank == 0:
            self.best.copy(self._snapshot_path(label))

    def _save_weights(self, path: Path) -> None:
        state = gathered_state(self.model)
        if self.rank == 0:
            save_snapshot(state, path, router_state(self.model))
        dist.barrier()

    def _snapshot_path(self, label: str) -> Path:
        return self.folder / "snapshots" / self.checkpoints.name / f"{label}.safetensors"

    def _columns(self) -> list[str]:
        columns = ["step", "tokens", "loss", "router_loss", "learning_rate", "gradient_norm"]
        columns += ["sparsity", "active_experts", "l1_lambda", "l1_bound"]
        if self.model.router is not None:
            layers = range(self.model.router.layers)
            columns += [f"sparsity_{i}" for i in layers] + [f"load_{i}" for i in layers]
        if self.flips.every:
            columns.append("flip_rate")
        columns += [*self.similarity.columns, *(self.pull.columns if self.pull.at else ())]
        return [*columns, "valid_loss", "flops", "tokens_per_second", "mfu", "memory_gib", "seconds"]

    def _finish(self) -> None:
        spec = self.spec
        facts = {key: spec.get(key) for key in ("run", "seed", "scale", "setup", "commit", "fingerprint")} | self.counts
        facts |= {"data": self.corpus.fingerprint, "device": devices.name(self.device), "ranks": self.ranks}
        facts["precision"] = str(self.dtype).removeprefix("torch.")
        record, steps = self.checkpoints / "metrics.csv", self.snapshots
        if self.best is not None:
            self.best.prune(last=True)
            steps = {label: best_of(record, step)[0] for label, step in steps.items()}
        snapshots = {label: (self._snapshot_path(label), step) for label, step in steps.items()}
        done = write_outcome(self.folder, record, snapshots, self._tokens, facts | self._origin())
        for sentence in penalty_warnings(done):
            print(f"{spec['run']} seed {spec['seed']}  {sentence}", file=sys.stderr)

    def _origin(self) -> dict[str, Any]:
        """What done.json says of where the weights came from; nothing where they were drawn."""
        return {}
