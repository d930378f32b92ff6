# How fast this machine trains: not a part of `all`; `snakemake benchmark` measures anew where nothing else runs.
DEVICE = "gpu" if GPUS else "cpu"
TEXT = "local-bpe" if GPUS else "local-bpe-1024"


rule measure_speed:
    """Train steps of every router, of the expert paths and of peers, timed in turns."""
    input:
        corpus=f"results/corpora/{TEXT}/manifest.json",  # real text: what is routed depends on it
    output:
        "results/benchmark/{device}.csv",
    log:
        "results/logs/benchmark/{device}.log",
    conda:
        "../../envs/train.yaml"
    threads: CORES  # alone, so that nothing disturbs it
    resources:
        **asks("measure_speed", gpu=1),
    params:
        parts="routers,experts,peers,mfu" if GPUS else "routers,experts,peers",
        corpus=lambda wildcards, input: Path(input.corpus).parent,
        setups=[f"{tables.folder}/setups/remoe-{size}.yaml" for size in ("182m", "469m", "978m")],
    shell:
        "python -m moe.benchmark --parts {params.parts} --setups {params.setups} --corpus {params.corpus} --output {output} &> {log}"


rule draw_benchmark:
    """Its table and figure."""
    input:
        "results/benchmark/{device}.csv",
    output:
        md="paper_figures/benchmark/{device}.md",
        svg="paper_figures/benchmark/{device}.svg",
        png="paper_figures/benchmark/{device}.png",
    log:
        "results/logs/draw_benchmark/{device}.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    script:
        "../scripts/draw_benchmark.py"


rule benchmark:
    """Target: `snakemake benchmark --cores all`."""
    input:
        f"paper_figures/benchmark/{DEVICE}.md",
    localrule: True


rule cost:
    """Target: `snakemake cost --cores 1 --config hardware=… ranks=…` says what every run of the scale will take there."""
    log:
        f"results/logs/{SCALE}/cost.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        specs=lambda wildcards: [tables.spec(run) for run in tables.runs],
        hardware=lambda wildcards: known_hardware(),
        ranks=config["ranks"],
        seeds=[len(tables.seeds(row)) for row in ROWS],
        table=f"results/{SCALE}/expected_cost.csv",
    script:
        "../scripts/tell_cost.py"
