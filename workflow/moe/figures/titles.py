"""Titles that nobody can mistake for the paper's, and the sentences under a table or a figure."""

import re

PAPERS = {"remoe": "ReMoE", "rmoe": "RMoE"}


def headline(spec: dict, scale: str) -> str:
    """ "Table 2 of ReMoE at scale laptop (not the paper's size)"; the scale `paper` is the paper's."""
    name = re.sub(r"^(table|figure|fig)(?=\d)", r"\1 ", spec["figure"])
    name = re.sub(r"^fig\b", "figure", name).replace("-", " ")
    size = "" if scale == "paper" else " (not the paper's size)"
    return f"{name[0].upper()}{name[1:]} of {PAPERS[spec['paper']]} at scale {scale}{size}"


def seeds_sentence(counts) -> str:
    """What stands behind the numbers, from the numbers of seeds that occur."""
    counts = sorted(set(counts))
    if not counts:
        return ""
    if counts == [1]:
        return "One seed: the numbers have no interval over seeds."
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Mean of {span} seeds ± 95 % interval (t distribution)."
