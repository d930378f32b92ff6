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
    priority: soon
    conda:
        "../../envs/train.yaml"
    resources:
        **asks_to_read("validate"),
    params:
        run=subpath(input.done, parent=True),
        corpus=subpath(input.corpus, parent=True),
    shell:
        "OMP_NUM_THREADS=1 python -m moe.launch 1 moe.validate {params.run} {params.corpus} --output {output.validation}"
        " --windows-output {output.windows} &> {log}"


rule validate_domains:
    """Loss over the test text, domain by domain: of the runs whose tables or claims show it."""
    input:
        done="results/{scale}/runs/{run}/seed-{seed}/done.json",
        corpus=corpus_of,
    output:
        "results/{scale}/runs/{run}/seed-{seed}/domain_losses.csv",
    log:
        "results/logs/{scale}/validate_domains/{run}-{seed}.log",
    priority: soon
    conda:
        "../../envs/train.yaml"
    resources:
        **asks_to_read("validate_domains"),
    params:
        run=subpath(input.done, parent=True),
        corpus=subpath(input.corpus, parent=True),
    shell:
        "OMP_NUM_THREADS=1 python -m moe.launch 1 moe.validate {params.run} {params.corpus} --domains-output {output} &> {log}"


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
    priority: soon
    conda:
        "../../envs/train.yaml"
    resources:
        **asks_to_read("evaluate"),
    params:
        run=subpath(input.done, parent=True),
        corpus=subpath(input.corpus, parent=True),
        places=MIRROR + FETCHED,
    shell:
        "OMP_NUM_THREADS=1 python -m moe.launch 1 moe.evaluate {params.run} {params.corpus} --output {output.scores}"
        " --samples {output.samples} {params.places:q} &> {log}"


rule probe:
    """Routing of test text: by layer, domain and expert; by token id; faithful tokens; scores; experts and router."""
    input:
        done="results/{scale}/runs/{run}/seed-{seed}/done.json",
        corpus=corpus_of,
    output:
        routing="results/{scale}/runs/{run}/seed-{seed}/routing.csv",
        activity="results/{scale}/runs/{run}/seed-{seed}/token_activity.csv",
        top="results/{scale}/runs/{run}/seed-{seed}/top_tokens.csv",
        scores="results/{scale}/runs/{run}/seed-{seed}/score_statistics.csv",
        entropy="results/{scale}/runs/{run}/seed-{seed}/score_entropy.csv",
        information="results/{scale}/runs/{run}/seed-{seed}/mutual_information.csv",
        weights="results/{scale}/runs/{run}/seed-{seed}/weights.csv",
    log:
        "results/logs/{scale}/probe/{run}-{seed}.log",
    priority: soon
    conda:
        "../../envs/train.yaml"
    resources:
        **asks_to_read("probe"),
    params:
        run=subpath(input.done, parent=True),
        corpus=subpath(input.corpus, parent=True),
    shell:
        "OMP_NUM_THREADS=1 python -m moe.launch 1 moe.probe {params.run} {params.corpus} --output {params.run} &> {log}"


rule probe_whole:
    """All that the probe counts, which no figure needs: made where it is asked for by name."""
    input:
        done="results/{scale}/runs/{run}/seed-{seed}/done.json",
        corpus=corpus_of,
    output:
        routing="results/{scale}/runs/{run}/seed-{seed}/routing.parquet",
        occurrences="results/{scale}/runs/{run}/seed-{seed}/occurrences.parquet",
    log:
        "results/logs/{scale}/probe_whole/{run}-{seed}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        **asks_to_read("probe_whole"),
    params:
        run=subpath(input.done, parent=True),
        corpus=subpath(input.corpus, parent=True),
    shell:
        "OMP_NUM_THREADS=1 python -m moe.launch 1 moe.probe {params.run} {params.corpus} --output {params.run} --whole &> {log}"


rule describe:
    """What needs no training: the backbones' sizes, both gates as functions of one score, both routings of a few tokens."""
    output:
        backbones="results/{scale}/backbones.csv",
        gates="results/{scale}/gate_functions.csv",
        example="results/{scale}/routing_example.csv",
        recurrent="results/{scale}/recurrent_example.csv",
    log:
        "results/logs/{scale}/describe.log",
    conda:
        "../../envs/train.yaml"
    resources:
        **asks("describe"),
    params:
        setups={name: tables.shapes(name) for name in tables.decoders},
    script:
        "../scripts/describe.py"


rule measure_speeds:
    """Speed of top-k and ReLU routing at the end of a training, in turns; alone, so that nothing disturbs it."""
    input:
        done=[f"results/{SCALE}/runs/{row['run']}/seed-0/done.json" for row in runs_timed()],
        corpora=sorted({f"results/corpora/{tables.spec(row['run'])['corpus']}/manifest.json" for row in runs_timed()}),
    output:
        "results/{scale}/speed.csv",
    log:
        "results/logs/{scale}/measure_speeds.log",
    conda:
        "../../envs/train.yaml"
    threads: CORES
    resources:
        **asks_to_measure("measure_speeds"),
    params:
        runs=[f"results/{SCALE}/runs/{row['run']}/seed-0" for row in runs_timed()],
        rounds=tables.scale.get("speed_rounds", 31),
    shell:
        # threads and allocator as of the trainings; Snakemake sets both variables to its cores, and torch heeds both
        "export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1; python -m moe.launch {resources.ranks} moe.benchmark.speeds {params.runs}"
        " --corpora results/corpora --rounds {params.rounds} --output {output} &> {log}"


rule measure_costs:
    """Seconds and memory of a training step of RMoE's routers, in turns; alone, so that nothing disturbs it."""
    input:
        done=[f"results/{SCALE}/runs/{row['run']}/seed-0/done.json" for row in runs_costed()],
        corpora=sorted({f"results/corpora/{tables.spec(row['run'])['corpus']}/manifest.json" for row in runs_costed()}),
    output:
        "results/{scale}/cost.csv",
    log:
        "results/logs/{scale}/measure_costs.log",
    conda:
        "../../envs/train.yaml"
    threads: CORES
    resources:
        **asks_to_measure("measure_costs"),
    params:
        runs=[f"results/{SCALE}/runs/{row['run']}/seed-0" for row in runs_costed()],
        rounds=tables.scale.get("speed_rounds", 31),
    shell:
        "export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1; python -m moe.launch {resources.ranks} moe.benchmark.cost {params.runs}"
        " --corpora results/corpora --rounds {params.rounds} --output {output} &> {log}"
