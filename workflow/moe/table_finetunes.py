"""config/finetunes.tsv: rows of runs that begin as a snapshot of a row of runs.tsv, joined with that row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe.run_columns import cell_of, shown_start
from moe.table_checks import pick
from moe.table_files import read_tsv

# the papers' word for what fine-tuning leaves as it was -> the variant of moe.finetune
VARIANTS = {"none": "nothing", "gate": "router", "router": "router"}
VARIANTS |= {f"router+{cell}": "router and cell" for cell in ("gru", "rnn", "lstm")}


def finetuned_rows(
    path: Path, runs: dict[str, dict[str, Any]], setups: dict[str, dict[str, Any]], check: Callable[..., None]
) -> dict[str, dict[str, Any]]:
    """Every row of the table, joined as rows of runs.tsv are. check(row, schema, where, word): as its schema says.

    Errors: ValueError, one sentence with file, row, column, value and the nearest valid name.
    """
    found = {}
    for number, row in enumerate(read_tsv(path), start=2):
        where = f"{path}, row {row.get('run') or f'at line {number}'}"
        check(row, "finetunes", where, "column")
        if row["run"] in runs or row["run"] in found:
            raise ValueError(f"{where}: the name stands in two rows, expected each once")
        base = runs[pick(row["base"], runs, f"{where}, column base")]
        found[row["run"]] = joined(row, base, setups, where)
    return found


def joined(row: dict[str, str], base: dict[str, Any], setups: dict[str, dict[str, Any]], where: str) -> dict[str, Any]:
    """A checked row with what its base run says of the model. setups: as the scale makes them.

    Errors: ValueError naming the column whose value does not go with the base run.
    """
    setup, own = setups[pick(row["setup"], setups, f"{where}, column setup")], setups[base["setup"]]
    if "finetune" not in setup:
        raise ValueError(f"{where}, column setup: {row['setup']!r} has no key finetune, expected a setup that has")
    if setup["model"] != own["model"] or setup["router"] != own["router"] or setup["corpus"] != own["corpus"]:
        raise ValueError(
            f"{where}, column setup: {row['setup']!r} has another model, router or corpus than {base['setup']!r}, the "
            f"setup of run {base['run']}, expected one that extends it"
        )
    if setup["model"].get("kind", "decoder") != "decoder":
        raise ValueError(f"{where}, column base: {base['run']!r} is a model of kind span, expected one of kind decoder")
    pick(row["at"], own["snapshots"], f"{where}, column at")
    pick(row["frozen"], VARIANTS, f"{where}, column frozen")
    cell = cell_of(base["router"]).lower()
    fits = {"none", "router", f"router+{cell}"} if cell else {"none", "gate"}
    pick(row["frozen"], sorted(fits), f"{where}, column frozen of a run with router {base['router']}")
    return base | row | shown_start(row)


def started(spec: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The merged setup of a fine-tuned run: where it starts, one snapshot named as that, steps yet to be counted."""
    finetune = spec["finetune"] | {"base": row["base"], "at": row["at"], "frozen": VARIANTS[row["frozen"]]}
    training = {key: value for key, value in spec["training"].items() if key != "steps"}
    return spec | {"finetune": finetune, "training": training, "snapshots": {row["at"]: 1.0}}
