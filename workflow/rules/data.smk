# Text in, token files out. fetch_corpus and fetch_benchmarks are the only rules that may use a network.
MIRROR = f"--mirror {Path(config['mirror']).resolve()}" if config["mirror"] else ""


def fetched(wildcards):
    """What a corpus from the hub needs first; the other kinds need nothing."""
    kind = tables.corpora[wildcards.corpus].get("source", {}).get("kind")
    return [f"results/fetched/{wildcards.corpus}/manifest.json"] if kind == "hub" else []


rule fetch_corpus:
    """Download a corpus from the hub at its pinned revision; an interrupted download goes on where it was."""
    output:
        "results/fetched/{corpus}/manifest.json",
    log:
        "results/logs/fetch_corpus/{corpus}.log",
    conda:
        "../../envs/train.yaml"
    params:
        definition=lambda w: str(tables.folder / f"corpora/{w.corpus}.yaml"),
        folder="results/fetched/{corpus}",
        mirror=MIRROR,
    shell:
        "HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0 python -m moe.data fetch {params.definition} {params.folder} {params.mirror} 2>&1 | tee {log}"


rule prepare_corpus:
    """Tokenize a corpus into memory-mapped files."""
    input:
        fetched,
    output:
        CORPUS + "/manifest.json",
    log:
        "results/logs/prepare_corpus/{corpus}.log",
    benchmark:
        "results/benchmarks/prepare_corpus/{corpus}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: workflow.cores
    params:
        definition=lambda w: str(tables.folder / f"corpora/{w.corpus}.yaml"),
        content=lambda w: tables.corpora[w.corpus],
        folder=CORPUS,
        fetched=lambda w, input: f"--fetched {Path(input[0]).parent}" if input else "",
    shell:
        "python -m moe.data prepare {params.definition} {params.folder} {params.fetched} --workers {threads} 2>&1 | tee {log}"


rule make_local_tasks:
    """Three small tasks in the harness' form, from text that no run was trained on."""
    input:
        CORPUS + "/manifest.json",
    output:
        expand(CORPUS + "/tasks/local_{task}.jsonl", task=["last_word", "best_ending", "cloze"], allow_missing=True),
    log:
        "results/logs/make_local_tasks/{corpus}.log",
    conda:
        "../../envs/train.yaml"
    params:
        corpus=subpath(input[0], parent=True),
    shell:
        "python -m moe.data tasks {params.corpus} &> {log}"


rule fetch_benchmarks:
    """Download the benchmarks' data at pinned revisions, in the hub's layout."""
    output:
        "results/fetched/benchmarks/manifest.json",
    log:
        "results/logs/fetch_benchmarks.log",
    conda:
        "../../envs/train.yaml"
    params:
        folder="results/fetched/benchmarks",
    shell:
        "HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0 python -m moe.benchmarks --output {params.folder} 2>&1 | tee {log}"
