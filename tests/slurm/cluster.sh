#!/usr/bin/env bash
# A Slurm of this machine alone, for the tests: `cluster.sh up FOLDER [NODES]`, `cluster.sh down FOLDER`.
# No systemd, no database, no second machine: munged, slurmctld and a slurmd a node on loopback, all of FOLDER (a short path).
set -euo pipefail
action=$1 base=$2 nodes=${3:-2}
port=${SLURM_TEST_PORT:-16817} host=$(hostname -s) user=$(id -un)
export SLURM_CONF=$base/slurm.conf

stop() { # pid file, name: only what the file names and what has that name
  [ -s "$1" ] || return 0
  local pid; pid=$(cat "$1")
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || return 0
  kill -TERM "$pid"
  for _ in $(seq 100); do
    grep -qs '^State:.[^ZX]' "/proc/$pid/status" || return 0
    sleep 0.05
  done
  kill -KILL "$pid"
}

down() {
  scancel --user="$user" 2>/dev/null || true
  for _ in $(seq 100); do [ -z "$(squeue --noheader 2>/dev/null)" ] && break; sleep 0.1; done
  for file in "$base"/run/slurmd.*.pid; do stop "$file" slurmd; done
  stop "$base/run/slurmctld.pid" slurmctld
  stop "$base/run/munged.pid" munged
}

up() {
  mkdir -p "$base"/{munge,state,spool,log,run,bin}
  chmod 700 "$base/munge"
  head -c 1024 /dev/urandom > "$base/munge/key"
  chmod 600 "$base/munge/key"
  cat > "$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# a short life of credentials lets a job that was queued again start at once rather than after two minutes
AuthInfo=socket=$base/run/munge.sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool/%n
SlurmctldPidFile=$base/run/slurmctld.pid
SlurmdPidFile=$base/run/slurmd.%n.pid
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=3600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$base/log/jobs.txt
CONF
  for node in $(seq "$nodes"); do
    mkdir -p "$base/spool/n$node"
    echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 10 + node)) CPUs=4 CoresPerSocket=4 RealMemory=16000" >> "$SLURM_CONF"
  done
  echo "PartitionName=main Nodes=ALL Default=YES DefMemPerCPU=500 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0" >> "$SLURM_CONF"
  echo "PartitionName=short Nodes=ALL DefMemPerCPU=500 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0" >> "$SLURM_CONF"
  echo "PartitionName=urgent Nodes=ALL DefMemPerCPU=500 PriorityTier=10 PreemptMode=OFF" >> "$SLURM_CONF"
  # a job's own srun does not know where the configuration is
  printf '#!/bin/sh\nexport SLURM_CONF="${SLURM_CONF:-%s}"\nexec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$base/bin/srun"
  chmod +x "$base/bin/srun"
  /usr/sbin/munged --key-file="$base/munge/key" --socket="$base/run/munge.sock" --pid-file="$base/run/munged.pid" \
    --log-file="$base/log/munged.log" --seed-file="$base/munge/seed"
  /usr/sbin/slurmctld -f "$SLURM_CONF"
  for node in $(seq "$nodes"); do /usr/sbin/slurmd -f "$SLURM_CONF" -N "n$node"; done
  for _ in $(seq 200); do
    [ "$(sinfo --noheader -N -p main -o %T 2>/dev/null | grep -c '^idle$')" = "$nodes" ] && return 0
    sleep 0.05
  done
  sinfo -N -l >&2
  return 1
}

"$action"
