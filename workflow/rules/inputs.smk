# What figures, tables, verdicts and the published folder are made from.
def figure_spec(wildcards):
    """Row of figures.tsv."""
    name = wildcards.get("figure") or wildcards.get("table")
    return next(f for f in tables.figures if (f["paper"], f["figure"]) == (wildcards.paper, name))


def rows_shown(wildcards):
    """The runs that figures.tsv selects for this figure."""
    return select(figure_spec(wildcards)["runs"], ROWS)


def row_drawn(wildcards):
    """What moe.draw is given."""
    return json.dumps({"spec": figure_spec(wildcards), "runs": with_folders(rows_shown(wildcards))})


def files_of_scale(names):
    """Files of the whole scale. Results may have been published without speeds: what was printed is shown then."""
    names = [name for name in names if not PUBLISHED or name != "speed.csv" or Path(RESULTS, name).exists()]
    return [f"{RESULTS}/{name}" for name in names]


def runs_timed():
    """Of each of ReMoE's three backbones the first plain run of 8 experts with top-k and with ReLU routing (table 7)."""
    setups = ("remoe-182m", "remoe-469m", "remoe-978m")
    rows = [r for r in ROWS if (r["experts"], r["top_k"], r["granularity"]) == (8, 1, 1) and not r["options"]]
    found = {}
    for row in rows:
        if row["router"] in ("topk", "relu") and row["setup"] in setups:
            found.setdefault((row["setup"], row["router"]), row)
    return [row for (setup, _), row in found.items() if {(setup, "topk"), (setup, "relu")} <= set(found)]


def inputs_of(row):
    """The files that a row of figures.tsv is drawn from: what its kind and metrics read, of the runs that it shows."""
    of_seed, of_scale = files_drawn(row)
    return files_of(select(row["runs"], ROWS), *of_seed) + files_of_scale(of_scale)


def figure_inputs(wildcards):
    """The files of this figure."""
    return inputs_of(figure_spec(wildcards))


def claim_inputs(wildcards):
    """The files that each claim's metric reads, of the runs that it compares."""
    files = {}
    for claim in tables.claims:
        of_seed, of_scale = files_judged(claim)
        paths = files_of(runs_judged([claim], ROWS), *of_seed) + files_of_scale(of_scale)
        files |= dict.fromkeys(paths)
    return list(files)


def published_files(wildcards):
    """All that any figure or claim reads, and what decided each run and what it left."""
    drawn = [path for row in tables.figures for path in inputs_of(row)]
    return list(dict.fromkeys(drawn + claim_inputs(wildcards) + files_of(USED, "run.yaml", "done.json")))


def reported_files(stems):
    """The files of printed numbers that these cells of a table name."""
    return sorted({f"{REPORTED}/{stem}.csv" for cell in stems for stem in cell.split()})


def endings(row):
    """The forms of a figure or of a table, the one to look at first."""
    return ["svg", "png", "csv"] if row["figure"].startswith("fig") else ["md", "csv", "tex"]


def shown(*papers):
    """Every figure and table of these papers that figures.tsv lists, and the verdicts."""
    names = [f"{f['paper']}/{f['figure']}.{endings(f)[0]}" for f in tables.figures if f["paper"] in papers]
    return [f"paper_figures/{SCALE}/{name}" for name in [*names, "claims.md"]]
