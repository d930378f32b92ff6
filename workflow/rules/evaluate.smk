# What a finished run is asked: held-out loss, tasks, routing. And what needs no run.
rule validate:
    """Loss over the validation windows, causal for every router."""
    input:
        done="results/{scale}/runs/{run}/seed-{seed}/done.json",
        corpus=corpus_of,
    output:
        validation="results/{scale}/runs/{run}/seed-{seed}/validation.csv",
        windows="results/{scale}/runs/{run}/seed-{seed}/validation_windows.csv",
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
        done="results/{scale}/runs/{run}/seed-{seed}/done.json",
        corpus=corpus_of,
        tasks=tasks_of,
        benchmarks=["results/fetched/benchmarks/manifest.json"] if FETCHED else [],
    output:
        scores="results/{scale}/runs/{run}/seed-{seed}/scores.csv",
        samples="results/{scale}/runs/{run}/seed-{seed}/samples.csv",
    log:
        "results/logs/{scale}/evaluate/{run}-{seed}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=1 if GPUS else 0,
    params:
        run=subpath(input.done, parent=True),
        corpus=subpath(input.corpus, parent=True),
        places=MIRROR + FETCHED,
    shell:
        "OMP_NUM_THREADS=1 python -m moe.evaluate {params.run} {params.corpus} --output {output.scores}"
        " --samples {output.samples} {params.places:q} &> {log}"


rule probe:
    """Routing of test text by token, layer and domain."""
    input:
        done="results/{scale}/runs/{run}/seed-{seed}/done.json",
        corpus=corpus_of,
    output:
        routing="results/{scale}/runs/{run}/seed-{seed}/routing.parquet",
        occurrences="results/{scale}/runs/{run}/seed-{seed}/occurrences.parquet",
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
        setups={name: tables.shapes(name) for name in tables.setups},
    script:
        "../scripts/describe.py"
