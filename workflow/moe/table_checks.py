"""What must hold in and between the tables; a check that fails raises ValueError, one sentence for the user."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from jsonschema import Draft202012Validator, validators

from moe.wrong import nearest

DENSE = "none"  # router of a model without experts
LAST = ("required", "oneOf")  # errors that another one is likely to be the cause of

# JSON Schema takes 2.0 for an integer, torch and range() do not
_strict = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, v: type(v) is int)
Validator = validators.extend(Draft202012Validator, type_checker=_strict)


def check_schema(content: Any, schema: dict[str, Any], where: str, word: str = "key") -> None:
    """`content` is as its schema says; `word` is what a key is called in the sentence."""
    # an unknown name before the missing one that it was probably meant to be
    first = min(
        Validator(schema).iter_errors(content),
        key=lambda e: (e.validator != "additionalProperties", e.validator in LAST, list(map(str, e.path))),
        default=None,
    )
    if first is not None:
        raise ValueError(sentence(first, where, word))


def sentence(error: Any, where: str, word: str) -> str:
    """A schema error as one sentence with the nearest valid name, or else with what was expected."""
    while error.validator == "oneOf" and error.context:  # the alternative of the same kind
        kinds = {e.schema_path[0] for e in error.context if list(e.relative_path) == ["kind"]}
        error = min(error.context, key=lambda e: e.schema_path[0] in kinds)
    key = ".".join(map(str, error.absolute_path))
    inside = f" of {key}" if key else ""
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(k for k in error.instance if k not in known)
        return f"{where}: {word} {unknown!r}{inside} is unknown{nearest(unknown, known)}"
    if error.validator == "required":
        missing = next(k for k in error.validator_value if k not in error.instance)
        about = error.schema.get("properties", {}).get(missing, {}).get("description")
        return f"{where}: {word} {missing!r}{inside} is missing" + (f", expected {about}" if about else "")
    if error.validator == "enum":
        return f"{where}, {word} {key}: {error.instance!r} is unknown{nearest(error.instance, error.validator_value)}"
    about = error.schema.get("description")
    return f"{where}, {word} {key}: {error.message}" + (f", expected {about}" if about else "")


def pick(name: Any, known: Iterable[str], where: str) -> Any:
    """`name`, if it is known."""
    if name not in known:
        raise ValueError(f"{where}: {name!r} is unknown{nearest(name, known)}")
    return name


def check_setup(setup: dict[str, Any], where: str) -> None:
    """The numbers of one setup, as a scale makes it, fit each other."""
    model, training = setup["model"], setup["training"]
    width, heads, span = model["width"], model["heads"], model.get("kind") == "span"
    kv_heads = model.get("kv_heads", heads)
    if width % heads or heads % kv_heads:
        raise ValueError(
            f"{where}, key model: width {width}, heads {heads} and kv_heads {kv_heads}, "
            "expected each to divide the one before"
        )
    if width // heads % 2 and not span:
        raise ValueError(
            f"{where}, key model.heads: {heads} heads of a width of {width} are {width // heads} wide each, "
            "expected an even number, since rotary positions turn pairs"
        )
    if training.get("streams", False) != span:
        raise ValueError(
            f"{where}, key training.streams: {training.get('streams', False)} with a model of kind "
            f"{model.get('kind', 'decoder')}, expected streams for a span and for nothing else"
        )
    peak, final = training["learning_rate"], training["final_learning_rate"]
    if final > peak:
        raise ValueError(
            f"{where}, key training.final_learning_rate: {final} is more than the learning_rate {peak}, "
            "expected at most that"
        )


def check_row(row: dict[str, Any], setup: dict[str, Any], where: str, ranks: int) -> None:
    """E, k and G of a row of runs.tsv fit each other, the row's setup and the ranks."""
    training = setup["training"]
    if row["top_k"] > row["experts"]:
        raise ValueError(f"{where}, column top_k: {row['top_k']} is more than the {row['experts']} experts")
    if row["router"] == DENSE and row["experts"] != row["top_k"]:
        raise ValueError(
            f"{where}, column experts: {row['experts']} with router {DENSE} and top_k {row['top_k']}, expected both "
            "alike: a dense feed-forward of that many times the width"
        )
    if row["router"] == DENSE and row["options"]:
        options = ", ".join(map(str, row["options"]))
        raise ValueError(f"{where}, column options: {options!r} with router {DENSE}, expected an empty cell")
    if setup["model"]["expert_width"] % row["granularity"]:
        raise ValueError(
            f"{where}, column granularity: {row['granularity']} does not divide the expert_width "
            f"{setup['model']['expert_width']} of setup {row['setup']}"
        )
    expert_ranks = training.get("expert_ranks", 1)
    if row["router"] != DENSE and row["experts"] * row["granularity"] % expert_ranks:
        raise ValueError(f"{where}, column experts: {row['experts']} are not divisible by {expert_ranks} expert_ranks")
    if ranks % expert_ranks:
        raise ValueError(f"config/config.yaml, key ranks: {ranks} is not a multiple of the {expert_ranks} expert_ranks")
    micro_batch = training.get("micro_batch", 1)
    if training["batch"] % (ranks * micro_batch):
        raise ValueError(
            f"{where}: the batch of {training['batch']} is not a multiple of {ranks} ranks × micro_batch {micro_batch}"
        )


def check_match(row: dict[str, Any], runs: dict[str, Any], where: str) -> None:
    """A row that trains as long as another one's compute names a run of its own setup, which matches none."""
    if not row["matches"]:
        return
    other = runs[pick(row["matches"], runs, f"{where}, column matches")]
    if other["setup"] != row["setup"] or other["matches"] or DENSE in (other["router"], row["router"]):
        raise ValueError(
            f"{where}, column matches: {row['matches']!r} is of setup {other['setup']} with router {other['router']}, "
            f"expected a run of setup {row['setup']} with experts that matches no other"
        )


def check_corpus(content: dict[str, Any], schema: dict[str, Any], where: str) -> None:
    """A corpus definition, as the code that reads corpora checks it."""
    from moe.data.definition import check  # here, since all else in this module starts faster

    with suppress(TypeError):  # where a value has another type the schema says it
        check(content, where=where)
    check_schema(content, schema, where)


def check_tasks(section: dict[str, Any], where: str) -> None:
    """Every task of a section's `evaluation` is one that we make or a benchmark that we know."""
    from moe.benchmarks import BENCHMARKS
    from moe.tasks import DEFINITIONS

    known = {"local": sorted(path.stem for path in DEFINITIONS.glob("*.yaml")), "benchmark": list(BENCHMARKS)}
    for kind, entries in section.get("evaluation", {}).get("tasks", {}).items():
        for entry in entries:
            pick(entry.partition("/")[0], known[kind], f"{where}evaluation.tasks.{kind}")


def check_divisors(divide: dict[str, int], where: str) -> None:
    """What a scale divides are options of some router."""
    from moe.routers import ROUTERS, options_of

    known = sorted({option for name in ROUTERS for option in options_of(name)})
    for option in divide:
        pick(option, known, where)


def check_router_of(row: dict[str, Any], setup: dict[str, Any], options: dict[str, Any], where: str, over: str) -> None:
    """The router of a row exists, takes the options of the row and of its setup, and can be built with all `options`.

    where, over: how the row and the setup are called.
    """
    from moe.routers import ROUTERS, check_router

    if row["router"] == DENSE:
        return
    name = pick(row["router"], [DENSE, *ROUTERS], f"{where}, column router")
    sizes = {key: row[key] * row["granularity"] for key in ("experts", "top_k")}
    sizes |= {key: setup["model"][key] for key in ("layers", "width")}
    place = f"{over}, key router, in run {row['run']}"
    try:
        check_router(name, setup["router"])
        place = f"{where}, column options" if row["options"] else place
        check_router(name, row["options"])
        check_router(name, options, **sizes)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
