# What each rule asks a cluster for, computed from its run; config.yaml, key cluster, may say otherwise.
from moe.expected import mb_read, mb_trained, minutes_read, minutes_trained
from moe.table_checks import pick

CLUSTER = config["cluster"]
ASKING = []  # rules whose jobs ask for something, in the order of the files
# Tokens that a rule reads with each snapshot of a finished run.
HARNESS_TOKENS = 10_000_000  # 74,000 requests of ReMoE's seven benchmarks, some 130 tokens each
READ = {
    "validate": lambda spec: spec["evaluation"]["windows"] * spec["training"]["sequence"],
    "evaluate": lambda spec: HARNESS_TOKENS,
    "probe": lambda spec: spec["evaluation"]["probe_tokens"],
}
READ |= {"validate_domains": READ["validate"], "probe_whole": READ["probe"]}


def asks(rule, gpu=0, minutes=60, mem_mb=CLUSTER["mem_mb"]):
    """Resources of a rule: the config's partition and account, GPUs, minutes (no more than allowed), memory of a node."""
    ASKING.append(rule)
    minutes = minutes if callable(minutes) else min(minutes, CLUSTER["max_minutes"])
    gpu = gpu if GPUS else 0
    asked = {"partition": CLUSTER["partition"], "account": CLUSTER["account"], "gpu": gpu}
    if gpu:
        asked |= {"partition": CLUSTER["gpu_partition"] or CLUSTER["partition"], "gpu_model": CLUSTER["gpu_model"]}
    asked |= {"minutes": minutes, "mem_mb": mem_mb} | CLUSTER["rules"].get(rule, {})
    names = {"partition": "slurm_partition", "account": "slurm_account", "minutes": "runtime", "cpus": "cpus_per_task"}
    return {names.get(key, key): value for key, value in asked.items() if value is not None}


def computed(of_run, without):
    """A resource: what `of_run` says of the run's spec or, where that is unknown or jobs run here, `without`."""
    return lambda wildcards: (of_run(spec_of(wildcards)) if SUBMITS else None) or without


def minutes_by(of_run, without):
    """Minutes by an estimate for the hardware that the config names, at most what a job may ask for."""
    most = CLUSTER["max_minutes"]
    if tables.hardware is None:
        return min(without, most)
    return computed(lambda spec: min(of_run(spec, tables.hardware, config["ranks"]) or most, most), most)


def asks_to_train(rule):
    """Resources of a rule that trains, on each of its nodes."""
    ranks, here, least = config["ranks"], config["ranks"] // NODES, CLUSTER["mem_mb"]
    minutes = minutes_by(minutes_trained, CLUSTER["max_minutes"])
    mem_mb = computed(lambda spec: here * max(mb_trained(spec, ranks, GPUS > 0), least), here * least)
    return PLACED | {"ranks": ranks} | asks(rule, gpu=ranks, minutes=minutes, mem_mb=mem_mb)


def asks_to_read(rule):
    """Resources of a rule that reads text with a finished run, on one GPU where there are any."""
    minutes = minutes_by(lambda spec, *place: minutes_read(spec, *place, READ[rule](spec)), 240)
    mem_mb = computed(lambda spec: max(mb_read(spec), CLUSTER["mem_mb"]), CLUSTER["mem_mb"])
    return asks(rule, gpu=1, minutes=minutes, mem_mb=mem_mb)


def asks_to_measure(rule):
    """Resources of a rule that has a machine to itself."""
    ranks = config["ranks"]
    return {"ranks": ranks} | asks(rule, gpu=max(GPUS, ranks), minutes=120, mem_mb=ranks * CLUSTER["mem_mb"])


def check_asked():
    """Refuse a word of the config on a rule that asks for nothing."""
    try:
        for name in CLUSTER["rules"]:
            pick(name, ASKING, "config/config.yaml, key cluster.rules")
    except ValueError as error:
        sys.exit(f"error: {error}")
