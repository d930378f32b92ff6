# What a finished run is asked: held-out loss, tasks, routing. And what needs no run.
PLACES = " ".join([MIRROR, "--fetched results/fetched/benchmarks" if config["benchmarks"] == "fetch" else ""])


def tasks_of(wildcards):
    """Documents of the local tasks that the run is scored on."""
    spec = tables.spec(wildcards.run)
    names = [task.split("/")[0] for task in spec["evaluation"]["tasks"].get("local", [])]
    return [f"results/corpora/{spec['corpus']}/tasks/{name}.jsonl" for name in names]


rule validate:
    """Loss over the validation windows, causal for every router."""
    input:
        done=RUN + "/done.json",
        corpus=corpus_of,
    output:
        validation=RUN + "/validation.csv",
        windows=RUN + "/validation_windows.csv",
    log:
        "results/logs/{scale}/validate/{run}-{seed}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=1 if GPUS else 0,
    params:
        run=subpath(input.done, parent=True),
        corpus=subpath(input.corpus, parent=True),
    shell:
        "OMP_NUM_THREADS=1 python -m moe.validate {params.run} {params.corpus} --output {output.validation}"
        " --windows-output {output.windows} &> {log}"


rule evaluate:
    """Zero-shot scores by the harness."""
    input:
        done=RUN + "/done.json",
        corpus=corpus_of,
        tasks=tasks_of,
        benchmarks=["results/fetched/benchmarks/manifest.json"] if config["benchmarks"] == "fetch" else [],
    output:
        scores=RUN + "/scores.csv",
        samples=RUN + "/samples.csv",
    log:
        "results/logs/{scale}/evaluate/{run}-{seed}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=1 if GPUS else 0,
    params:
        run=subpath(input.done, parent=True),
        corpus=subpath(input.corpus, parent=True),
        places=PLACES,
    shell:
        "OMP_NUM_THREADS=1 python -m moe.evaluate {params.run} {params.corpus} --output {output.scores}"
        " --samples {output.samples} {params.places} &> {log}"


rule probe:
    """Routing of test text by token, layer and domain."""
    input:
        done=RUN + "/done.json",
        corpus=corpus_of,
    output:
        routing=RUN + "/routing.parquet",
        occurrences=RUN + "/occurrences.parquet",
    log:
        "results/logs/{scale}/probe/{run}-{seed}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=1 if GPUS else 0,
    params:
        run=subpath(input.done, parent=True),
        corpus=subpath(input.corpus, parent=True),
    shell:
        "OMP_NUM_THREADS=1 python -m moe.probe {params.run} {params.corpus} --output {output.routing}"
        " --occurrences {output.occurrences} &> {log}"


rule describe:
    """What needs no training: the backbones' sizes, and both gates as functions of one score."""
    output:
        backbones="results/{scale}/backbones.csv",
        gates="results/{scale}/gate_functions.csv",
    log:
        "results/logs/{scale}/describe.log",
    conda:
        "../../envs/train.yaml"
    params:
        setups=lambda w: {name: tables.shapes(name) for name in tables.setups},
    script:
        "../scripts/describe.py"
