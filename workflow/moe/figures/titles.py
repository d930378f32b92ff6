"""Titles that nobody can mistake for the paper's, and the sentences under a table or a figure."""

import re

PAPERS = {"remoe": "ReMoE", "rmoe": "RMoE"}
# How a column of the runs is said where it names a row or a line; any other is its value.
SAID = {
    "experts": "E = {}",
    "granularity": "G = {}",
    "lambda_0": "λ₀ = {}",
    "alpha": "α = {}",
    "warmup_steps": "{} steps of warm-up",
    "reduced": "dimension {}",
    "tensor_parallel": "tensor parallel {}",
    "state": "p = {}",
    "frozen": "{} frozen",
}
STAGES = {"pretrain": "", "sft": "fine-tuned"}
BALANCED = {"yes": "with balancing", "no": "without balancing"}


HEADS = {"lambda_0": "λ₀", "alpha": "α", "warmup_steps": "warm-up", "experts": "E", "granularity": "G", "state": "p"}


def corner(cell: str) -> str:
    """What the names of a table's rows are, from its column x."""
    return ", ".join(HEADS.get(word, word) for word in cell.split())


def called(words: list[str], values: dict) -> str:
    """The name of a run by some of its columns; what it does not have (a dense model: experts) is left out."""
    names = []
    for word in words:
        value = values.get(word)
        if value in (None, "") or (word in ("experts", "granularity") and values.get("router") == "none"):
            continue
        if word == "cell" and value == "none":  # a router without one
            continue
        if word == "frozen" and value == "none":  # of fine-tuning alone
            value = "nothing" if values["stage"] == "sft" else None
        value = STAGES[value] if word == "stage" else value
        if not value:
            continue
        value = re.sub(r"e([+-])0", r"e\1", f"{value:g}") if isinstance(value, float) else value  # 1e-8 as printed
        names.append(BALANCED[value] if word == "balanced" else SAID.get(word, "{}").format(value))
    return ", ".join(names)


def headline(spec: dict, scale: str) -> str:
    """ "Table 2 of ReMoE at scale laptop (not the paper's size)"; the scale `paper` is the paper's."""
    name = re.sub(r"^(table|figure|fig)(?=\d)", r"\1 ", spec["figure"])
    name = re.sub(r"^fig\b", "figure", name).replace("-", " ")
    of = "of"
    if name.startswith("extra "):
        name, of = f"extra table ({name.removeprefix('extra ')})", "beyond"
    size = "" if scale == "paper" else " (not the paper's size)"
    return f"{name[0].upper()}{name[1:]} {of} {PAPERS[spec['paper']]} at scale {scale}{size}"


def seeds_sentence(counts, *, drawn: bool = True) -> str:
    """What stands behind the numbers, from the numbers of seeds that occur; drawn: with their intervals."""
    counts = sorted(set(counts))
    if not counts:
        return ""
    if counts == [1]:
        return "One seed: the numbers have no interval over seeds."
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if not drawn:
        return f"Mean of {span} seeds; the 95 % intervals (t distribution) stand in the CSV."
    return f"Mean of {span} seeds ± 95 % interval (t distribution)."
