# One trained model per row of runs.tsv or finetunes.tsv and seed.
rule measure_precision:
    """Which of bfloat16 and float32 trains faster on this machine."""
    output:
        "results/{scale}/precision.json",
    log:
        "results/logs/{scale}/measure_precision.log",
    conda:
        "../../envs/train.yaml"
    resources:
        **asks("measure_precision", gpu=1),
    shell:
        "python -m moe.precision {output} 2>&1 | tee {log}"


rule freeze_run:
    """All that decides a run, merged from the tables into one file; some wait for what decides their steps."""
    input:
        matched=matched_by,
        instructions=instructions_of,
    output:
        "results/{scale}/runs/{run}/seed-{seed}/run.yaml",
    log:
        "results/logs/{scale}/freeze_run/{run}-{seed}.log",
    priority: soon
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=lambda wildcards: json.dumps(spec_of(wildcards)),
    shell:
        "python -m moe.launch 1 moe.freeze {params.spec:q} {output} --matched {input.matched}"
        " --instructions {input.instructions} &> {log}"


rule train:
    """Train one run; its checkpoints lie beside the outputs, so a rerun goes on from the newest whole one."""
    input:
        run="results/{scale}/runs/{run}/seed-{seed}/run.yaml",
        corpus=corpus_of,
        precision=precision_of,
    output:
        metrics="results/{scale}/runs/{run}/seed-{seed}/metrics.csv",
        done="results/{scale}/runs/{run}/seed-{seed}/done.json",
    log:
        "results/logs/{scale}/train/{run}-{seed}.log",
    wildcard_constraints:
        run=any_of(run for run in tables.runs if run not in FINETUNED),
    priority: turn
    conda:
        "../../envs/train.yaml"
    threads: config["ranks"] // NODES
    resources:
        **asks_to_train("train"),
    params:
        launch=LAUNCH,
        corpus=subpath(input.corpus, parent=True),
    shell:
        # exec: signals reach the training itself, and its exit code is the job's
        "export OMP_NUM_THREADS=1; exec {params.launch} {resources.ranks} moe.train {input.run}"
        " --corpus {params.corpus} --precision {input.precision} --log {log}"
