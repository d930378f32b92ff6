# Instructions, and runs that start from a snapshot of another run: one per row of finetunes.tsv and seed.
rule fetch_instructions:
    """Download an instruction set from the hub at its pinned revision."""
    output:
        "results/fetched/instructions/{instructions}/manifest.json",
    log:
        "results/logs/fetch_instructions/{instructions}.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        definition=lambda wildcards: f"{tables.folder}/instructions/{wildcards.instructions}.yaml",
        content=lambda wildcards: tables.instructions[wildcards.instructions],
        folder=subpath(output[0], parent=True),
        mirror=MIRROR,
    shell:
        "env -u HF_HUB_OFFLINE -u HF_DATASETS_OFFLINE"
        " python -m moe.data fetch_instructions {params.definition:q} {params.folder} {params.mirror:q} 2>&1 | tee {log}"


rule prepare_instructions:
    """An instruction set in the tokens of a corpus: hub, a file of yours, or made of the corpus itself."""
    input:
        corpus="results/corpora/{corpus}/manifest.json",
        fetched=fetched_instructions,
    output:
        "results/instructions/{corpus}/{instructions}/manifest.json",
    log:
        "results/logs/prepare_instructions/{corpus}-{instructions}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        **asks("prepare_instructions"),
    params:
        definition=lambda wildcards: f"{tables.folder}/instructions/{wildcards.instructions}.yaml",
        content=lambda wildcards: tables.instructions[wildcards.instructions],
        corpus=subpath(input.corpus, parent=True),
        folder=subpath(output[0], parent=True),
        fetched=lambda wildcards, input: ["--fetched", str(Path(input.fetched[0]).parent)] if input.fetched else [],
    shell:
        "python -m moe.data instructions {params.definition:q} {params.corpus} {params.folder} {params.fetched:q} 2>&1 | tee {log}"


rule finetune:
    """Train a snapshot of another run on instructions; resumes as `train` does, and leaves what a trained run leaves."""
    input:
        run="results/{scale}/runs/{run}/seed-{seed}/run.yaml",
        base=base_of,
        instructions=instructions_of,
        corpus=corpus_of,
        precision=precision_of,
    output:
        metrics="results/{scale}/runs/{run}/seed-{seed}/metrics.csv",
        done="results/{scale}/runs/{run}/seed-{seed}/done.json",
    log:
        "results/logs/{scale}/finetune/{run}-{seed}.log",
    wildcard_constraints:
        run=any_of(FINETUNED),
    priority: turn
    conda:
        "../../envs/train.yaml"
    threads: config["ranks"] // NODES
    resources:
        **asks_to_train("finetune"),
    params:
        launch=LAUNCH,
        base=subpath(input.base, parent=True),
        instructions=lambda wildcards, input: str(Path(input.instructions[0]).parent),
        corpus=subpath(input.corpus, parent=True),
    shell:
        "export OMP_NUM_THREADS=1; exec {params.launch} {resources.ranks} moe.finetune {input.run} --base {params.base}"
        " --instructions {params.instructions} --corpus {params.corpus} --precision {input.precision} --log {log}"
