"""Our models and tasks in lm-eval, the language-model evaluation harness."""

import os

# Nothing is downloaded here (moe.benchmarks does that), and the harness is quiet about what it loads.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

from functools import cache, partial
from pathlib import Path

import torch
from lm_eval import evaluator, utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string
from torch import nn

from moe import scoring
from moe.data import Corpus
from moe.finished import FinishedRun, open_run
from moe.tasks import Wanted, write_definitions
from moe.wrong import did_you_mean

utils.env.from_string = cache(utils.env.from_string)  # the harness compiles a task's templates for each document


@register_model("rerouted")
class Rerouted(TemplateLM):
    """Our decoder for the harness; each distinct request is computed once and remembered.

    length: tokens that the model sees at most, its training sequence; longer contexts are cut from the left.
    """

    def __init__(self, model: nn.Module, corpus: Corpus, *, length: int, batch_tokens: int, device="cpu"):
        super().__init__()
        self.model, self.tokenizer, self.corpus = model, corpus.tokenizer, corpus
        self._device = torch.device(device)
        self.limits = {
            "length": length,
            "batch_tokens": batch_tokens,
            "vocabulary": corpus.vocabulary,
            "device": self._device,
        }
        self.known: dict = {}  # tokens of a request -> answer

    @classmethod
    def of_snapshot(cls, run: FinishedRun, snapshot: str) -> "Rerouted":
        """The adapter around one snapshot of a run."""
        sizes = {"length": run.sequence, "batch_tokens": run.batch_tokens()}
        return cls(run.model(snapshot), run.corpus, **sizes, device=run.device)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None):
        """For the harness' own command line: --model rerouted --model_args run=…,corpus=…,snapshot=…"""
        device = (additional_config or {}).get("device")
        run = open_run(arg_dict["run"], arg_dict["corpus"], device=device)
        return cls.of_snapshot(run, arg_dict.get("snapshot", run.snapshots[-1]))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None):
        """As create_from_arg_obj, from `key=value,key=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The end of text: it precedes every document in training, so it is the context of a request without one."""
        return self.corpus.end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Tokens of a text; nothing is added to them."""
        return self.tokenizer.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> scoring.Pair:
        context_tokens, continuation_tokens = super()._encode_pair(context, continuation)
        # Tokens may merge across the border, and a context may be blank: neither half can be empty.
        return (
            context_tokens or [self.prefix_token_id],
            continuation_tokens or self.tok_encode(continuation),
        )

    def _remembered(self, kind: str, requests: list, compute) -> list:
        """Answers to hashable requests: the unknown ones, each once, are computed together."""
        new = [r for r in dict.fromkeys(requests) if (kind, r) not in self.known]
        if new:
            self.known |= {(kind, r): a for r, a in zip(new, compute(new), strict=True)}
        return [self.known[kind, request] for request in requests]

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_):
        pairs = [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        answers = self._remembered("loglikelihood", pairs, self._score)
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _score(self, pairs: list, prompted: bool = True) -> list[tuple[float, bool]]:
        lists = [(list(context), list(continuation)) for context, continuation in pairs]
        return scoring.score(self.model, lists, prompted=prompted, **self.limits)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts: the end of text is the context of the first window (scoring.pieces)."""
        texts = [request.args[0] for request in requests]
        pairs = [((self.prefix_token_id,), tuple(self.tok_encode(text))) for text in texts]
        score = partial(self._score, prompted=False)
        sums = [total for total, _ in self._remembered("loglikelihood_rolling", pairs, score)]
        for text, answer in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return sums

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Greedy text up to the first of `until`, the end of text, or `max_gen_toks` tokens (default 256)."""
        answers: list[str | None] = [None] * len(requests)
        alike: dict[tuple, list[int]] = {}
        for place, request in enumerate(requests):
            options = normalize_gen_kwargs(request.args[1])
            if options["do_sample"]:
                raise ValueError("generate_until: do_sample is true, expected greedy decoding")
            key = (options["max_gen_toks"], tuple(options["until"]))
            alike.setdefault(key, []).append(place)
        for (tokens, until), places in alike.items():
            contexts = [tuple(self.tok_encode(requests[p].args[0])) for p in places]
            said = self._remembered(
                f"generate {tokens} {until}",
                [context or (self.prefix_token_id,) for context in contexts],
                lambda new, tokens=tokens, until=until: self._generate(new, tokens, until),
            )
            for place, text in zip(places, said, strict=True):
                answers[place] = text
                self.cache_hook.add_partial("generate_until", requests[place].args, text)
        return answers

    def _generate(self, contexts: list[tuple], tokens: int, until: tuple[str, ...]) -> list[str]:
        def ended(said: list[int]) -> bool:
            if said[-1] == self.eot_token_id:
                return True
            text = self.tokenizer.decode(said)
            return any(word and word in text for word in until)

        said = scoring.generate(self.model, [list(c) for c in contexts], stop=ended, tokens=tokens, **self.limits)
        texts = [self.tokenizer.decode([t for t in row if t != self.eot_token_id]) for row in said]
        return [postprocess_generated_text(text, list(until), None) for text in texts]


def load_tasks(wanted: list[Wanted], folder: Path) -> dict:
    """The harness' task objects by name; `folder` takes their definitions and the harness' copy of the data."""
    write_definitions(wanted, folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    loaded = {}
    for task in wanted:
        try:
            loaded |= manager.load([task.task])["tasks"]
        except Exception as error:  # whatever a broken data file makes the harness raise
            raise ValueError(f"{task.lines['include']}: data not readable ({error})") from error
        for metric in task.metrics:
            if metric not in loaded[task.task].aggregation():
                known = did_you_mean(metric, loaded[task.task].aggregation())
                raise ValueError(f"evaluation.tasks: {task.task} has no metric {metric!r}{known}")
    for task in loaded.values():
        if task.config.num_fewshot is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(1234)
    return loaded


def answers(model: Rerouted, tasks: dict, limit: int | None = None) -> dict:
    """The harness' results of load_tasks' tasks; limit: documents of each task, all where None."""
    # The harness' bootstrap is slow and not needed: moe.evaluate has the standard error in closed form.
    return evaluator.evaluate(lm=model, task_dict={"tasks": tasks}, limit=limit, bootstrap_iters=0)
