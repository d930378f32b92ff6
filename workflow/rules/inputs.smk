# What trainings, figures, tables, verdicts and the published folder are made from.
FINETUNED = [name for name, row in tables.runs.items() if row["base"]]


def any_of(names):
    """Constraint of a wildcard that is one of these; never fulfilled where there is none."""
    return "|".join(names) or "(?!)"


def base_of(wildcards):
    """The finished run that a fine-tuned one starts from."""
    return f"results/{SCALE}/runs/{tables.runs[wildcards.run]['base']}/seed-{wildcards.seed}/done.json"


def instructions_of(wildcards):
    """Manifest of the instructions of a fine-tuned run, in the tokens of its corpus; none of any other run."""
    spec = tables.spec(wildcards.run)
    made = f"results/instructions/{spec['corpus']}"
    return [f"{made}/{spec['finetune']['instructions']}/manifest.json"] if "finetune" in spec else []


def precision_of(wildcards):
    """Which precision is faster here, for a run that leaves it to the machine; nothing for the others."""
    left = tables.spec(wildcards.run)["training"].get("precision", "auto") == "auto"
    return [f"results/{SCALE}/precision.json"] if left else []


def fetched_instructions(wildcards):
    """What an instruction set from the hub needs first; the others need nothing."""
    hub = tables.instructions[wildcards.instructions]["kind"] == "hub"
    return [f"results/fetched/instructions/{wildcards.instructions}/manifest.json"] if hub else []


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
    timed = ("speed.csv", "cost.csv")
    names = [name for name in names if not PUBLISHED or name not in timed or Path(RESULTS, name).exists()]
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


def runs_costed():
    """The runs whose cost a figure shows or a claim judges, and SMoE of their setups, which they are compared with."""
    found = runs_judged([claim for claim in tables.claims if "cost.csv" in files_judged(claim)[1]], ROWS)
    for figure in tables.figures:
        words = [word for word in figure["y"].split() if "cost.csv" in files_of_metrics([word])[1]]
        corpora = {word.rpartition(":")[0] for word in words}
        found += [row for row in select(figure["runs"], ROWS) if corpora & {"", row["corpus"]}]
    plain = {row["setup"]: row for row in reversed(ROWS) if row["router"] == "smoe"}
    names = {row["run"] for row in found} | {plain[row["setup"]]["run"] for row in found if row["setup"] in plain}
    return [row for row in ROWS if row["run"] in names]


def inputs_of(row):
    """The files that a row of figures.tsv is drawn from: what its kind and metrics read, of the runs that it shows."""
    of_seed, of_scale = files_drawn(row)
    return files_of(select(row["runs"], ROWS), *of_seed) + files_of_scale(of_scale)


def figure_inputs(wildcards):
    """The files of this figure."""
    return inputs_of(figure_spec(wildcards))


def inputs_of_claim(claim):
    """The files that a row of claims.tsv is judged from: what its metric reads, of the runs that it compares."""
    of_seed, of_scale = files_judged(claim)
    return files_of(runs_judged([claim], ROWS), *of_seed) + files_of_scale(of_scale)


def claims_of(wildcards):
    """The claims of a page: of one paper, or all."""
    return [claim for claim in tables.claims if claim["paper"] == wildcards.get("paper", claim["paper"])]


def rows_judged(wildcards):
    """The runs that they compare."""
    return with_folders(runs_judged(claims_of(wildcards), ROWS))


def claim_inputs(wildcards):
    """The files of these claims."""
    return list(dict.fromkeys(path for claim in claims_of(wildcards) for path in inputs_of_claim(claim)))


def all_inputs(wildcards):
    """All that any figure or claim reads."""
    drawn = [path for row in tables.figures for path in inputs_of(row)]
    return list(dict.fromkeys(drawn + claim_inputs(wildcards)))


def published_files(wildcards):
    """That, and what decided each run and what it left."""
    return list(dict.fromkeys(all_inputs(wildcards) + files_of(USED, "run.yaml", "done.json")))


def reported_files(stems):
    """The files of printed numbers that these cells of a table name."""
    return sorted({f"{REPORTED}/{stem}.csv" for cell in stems for stem in cell.split()})


def endings(row):
    """The forms of a figure or of a table, the one to look at first."""
    return ["svg", "png", "csv"] if row["figure"].startswith("fig") else ["md", "csv", "tex"]


def shown(*papers):
    """Every figure and table of these papers that figures.tsv lists, and the verdicts."""
    names = [f"{f['paper']}/{f['figure']}.{endings(f)[0]}" for f in tables.figures if f["paper"] in papers]
    page = f"claims-{papers[0]}.md" if len(papers) == 1 and not PUBLISHED else "claims.md"  # redraw writes one page
    return [f"paper_figures/{SCALE}/{name}" for name in [*names, page]]


def whole(files):
    """Whether all of these were published."""
    return all(Path(path).exists() for path in files)


if PUBLISHED:  # a table may have grown since
    kept = [row for row in tables.figures if whole(inputs_of(row))]
    held = {(c["paper"], c["claim"]): True for c in tables.claims}
    for claim in tables.claims:
        held[claim["paper"], claim["claim"]] &= whole(inputs_of_claim(claim))
    left = [f"{row['paper']}/{row['figure']}" for row in tables.figures if row not in kept]
    left += [f"{paper} claim {claim}" for (paper, claim), published in held.items() if not published]
    tables.figures[:] = kept
    tables.claims[:] = [c for c in tables.claims if held[c["paper"], c["claim"]]]
    if left and workflow.is_main_process:
        print(f"Not published at scale {SCALE}, so left out: {', '.join(left)}.", file=sys.stderr)
    if not kept:
        sys.exit(f"error: {RESULTS} holds none of the figures' files")
