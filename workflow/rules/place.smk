# Where jobs run: on this machine or a cluster, on how many GPUs and nodes.
import atexit
import shutil
import tempfile

from moe.warm import start

GPUS = len(glob(os.path.join(os.sep, "dev", "nvidia[0-9]*"))) if config["gpus"] == "auto" else config["gpus"]
# Whether the jobs run on this machine: a cluster has a number of jobs, and no cores. Snakemake says it after parsing.
ASKED = workflow.resource_settings
HERE = workflow.is_main_process and ASKED.cores is not None and ASKED.nodes is None
if GPUS and HERE:
    workflow.register_resource("gpu", max(GPUS, config["ranks"]))  # at most as many trainings at a time
CORES = ASKED.cores if HERE else config["cluster"]["cpus"]  # of the jobs that use all
SUBMITS = workflow.is_main_process and not HERE  # jobs to a cluster, which wants to know what they take
NODES = config["nodes"]  # of one training: on several, a launcher each, started inside of the job
PLACED = {"nodes": NODES, "tasks": NODES, "tasks_per_gpu": 0, "mpi": "srun"} if NODES > 1 else {}
LAUNCH = (
    f"srun --nodes={NODES} --ntasks={NODES} --ntasks-per-node=1 python -m moe.launch"
    if NODES > 1
    else "python -m moe.launch"
)


def known_hardware():
    """What the config names, for the rule that needs one."""
    if tables.hardware is None:
        names = ", ".join(sorted(path.stem for path in (tables.folder / "hardware").glob("*.yaml")))
        raise ValueError(f"config/config.yaml, key hardware: none is named, expected one of {names}")
    return tables.hardware


def take_off_pace():
    """On one machine let jobs start whenever there is room.

    Snakemake's pace is for schedulers: each ended job leaves a timer that asks every second what to do next, and after
    200 jobs that had taken 12 % of a core.
    """
    if HERE:
        workflow.scheduler.job_rate_limiter = None


def warm_up():
    """Jobs of this machine that need no GPU are forked by a process that has imported what they need (moe.warm)."""
    if workflow.is_main_process and not (HERE and GPUS) and sys.platform == "linux":
        start(".snakemake/warm.socket")


def keep_group_together():
    """In the job of a cluster that is a group of ours: run them here, forked by a warm process, not each as a job step.

    A step costs a start of Snakemake and of Slurm's srun, more than a small training. The socket lies on the node, since
    the workflow's folder may be shared.
    """
    grouped = not workflow.is_main_process and "--local-groupid" in sys.argv  # targets are not known while this is read
    if grouped:
        workflow.localrules(*(rule.name for rule in workflow.rules))
    if grouped and not GPUS and sys.platform == "linux":
        folder = tempfile.mkdtemp(prefix="rerouted-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        start(f"{folder}/warm.socket")
