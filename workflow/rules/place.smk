# Where a training runs: how many nodes, and what it asks a cluster for.
from moe.expected import row_of

NODES = config["nodes"]  # of one training: on several, a launcher each, started inside of the job
PLACED = {"nodes": NODES, "tasks": NODES, "tasks_per_gpu": 0, "mpi": "srun"} if NODES > 1 else {}
LAUNCH = (
    f"srun --nodes={NODES} --ntasks={NODES} --ntasks-per-node=1 python -m moe.launch"
    if NODES > 1
    else "python -m moe.launch"
)


def minutes_of(wildcards):
    """Minutes that a training asks a cluster for: half more than the estimate, where the config names hardware."""
    most = config["cluster"]["max_minutes"]
    if tables.hardware is None:
        return most
    row = row_of(tables.spec(wildcards.run), tables.hardware, config["ranks"])
    return min(most, 30 + int(90 * row["hours"])) if "hours" in row else most
