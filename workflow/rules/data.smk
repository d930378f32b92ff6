# Text in, token files out. The rules that fetch are the only ones that may use a network.
rule fetch_corpus:
    """Download a corpus from the hub at its pinned revision; an interrupted download goes on where it was."""
    output:
        "results/fetched/{corpus}/manifest.json",
    log:
        "results/logs/fetch_corpus/{corpus}.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        definition=lambda wildcards: f"{tables.folder}/corpora/{wildcards.corpus}.yaml",
        content=lambda wildcards: tables.corpora[wildcards.corpus],
        folder=subpath(output[0], parent=True),
        mirror=MIRROR,
    shell:
        "env -u HF_HUB_OFFLINE -u HF_DATASETS_OFFLINE"
        " python -m moe.data fetch {params.definition:q} {params.folder} {params.mirror:q} 2>&1 | tee {log}"


rule prepare_corpus:
    """Tokenize a corpus into memory-mapped files."""
    input:
        fetched_for,
    output:
        "results/corpora/{corpus}/manifest.json",
    log:
        "results/logs/prepare_corpus/{corpus}.log",
    benchmark:
        "results/benchmarks/prepare_corpus/{corpus}.tsv"
    priority: 20_000  # on every core: later on, cores would have to wait for each other to be free
    conda:
        "../../envs/train.yaml"
    threads: CORES
    resources:
        **asks("prepare_corpus", minutes=CLUSTER["max_minutes"]),
    params:
        definition=lambda wildcards: f"{tables.folder}/corpora/{wildcards.corpus}.yaml",
        content=lambda wildcards: tables.corpora[wildcards.corpus],
        folder=subpath(output[0], parent=True),
        fetched=lambda wildcards: ["--fetched", f"results/fetched/{wildcards.corpus}"] if fetched_for(wildcards) else [],
    shell:
        "python -m moe.data prepare {params.definition:q} {params.folder} {params.fetched} --workers {threads} 2>&1 | tee {log}"


rule make_local_tasks:
    """Three small tasks in the harness' form, from text that no run was trained on."""
    input:
        "results/corpora/{corpus}/manifest.json",
    output:
        last_word="results/corpora/{corpus}/tasks/local_last_word.jsonl",
        best_ending="results/corpora/{corpus}/tasks/local_best_ending.jsonl",
        cloze="results/corpora/{corpus}/tasks/local_cloze.jsonl",
    log:
        "results/logs/make_local_tasks/{corpus}.log",
    priority: 10_000  # a few seconds, and every evaluation waits for it
    conda:
        "../../envs/train.yaml"
    resources:
        **asks("make_local_tasks"),
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
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        folder=subpath(output[0], parent=True),
    shell:
        "env -u HF_HUB_OFFLINE -u HF_DATASETS_OFFLINE python -m moe.benchmarks --output {params.folder} 2>&1 | tee {log}"
