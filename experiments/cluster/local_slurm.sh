#!/usr/bin/env bash
# A real SLURM with two nodes on one machine, on loopback, to test scripts: start FOLDER | stop FOLDER
#
# Debian and Ubuntu: apt-get install slurm-wlm munge; their services need not run. It needs root, but neither systemd nor
# cgroups. FOLDER, new or empty, will contain the configuration, logs and state of the daemons. Then
#   export SLURM_CONF=FOLDER/slurm.conf
# connects sbatch, srun, squeue and scontrol to it. Partitions: `low` (the default), whose jobs are preempted and requeued
# for jobs of `high`.
set -euo pipefail

usage() {
  echo "usage: $0 start|stop FOLDER" >&2
  exit 2
}

start() {
  local command
  for command in munged slurmctld slurmd sbatch; do
    command -v "$command" >/dev/null || {
      echo "error: no $command; install the packages slurm-wlm and munge" >&2
      exit 1
    }
  done
  if ((EUID != 0)); then
    echo "error: to be run as root, in whose name slurmd starts jobs" >&2
    exit 1
  fi
  # munge requires a path that only its owner can write and everybody can read
  mkdir -p "$folder"/{state,munge}
  chmod 755 "$folder" "$folder/munge"
  (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
  munged --key-file "$folder/munge.key" --socket "$folder/munge/socket" --pid-file "$folder/munged.pid" \
    --log-file "$folder/munged.log" --seed-file "$folder/munge.seed"

  local host
  host=$(hostname -s)
  cat >"$folder/slurm.conf" <<EOF
ClusterName=trial
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
# a requeued job waits until the credential of its last start has expired, two minutes by default
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log

# no cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none

SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
# refuse jobs that can never run at once
EnforcePartLimits=ALL
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2

# two nodes with the given number of cores, on one machine
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[26821-26822] CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
EOF
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld
  slurmd -N n1
  slurmd -N n2
  for _ in {1..30}; do
    if [[ $(sinfo --noheader --Node --states=idle --partition=low 2>/dev/null | wc -l) == 2 ]]; then
      echo "export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 1
  done
  echo "error: the nodes are not ready; see the logs in $folder" >&2
  exit 1
}

stop() {
  local name
  export SLURM_CONF="$folder/slurm.conf"
  # jobs would outlive the daemons
  scancel --user root || true
  for _ in {1..30}; do
    [[ -n $(squeue --noheader) ]] || break
    sleep 1
  done
  for name in slurmd-n1 slurmd-n2 slurmctld munged; do
    # the daemons write these files themselves
    if [[ -f "$folder/$name.pid" ]]; then kill "$(<"$folder/$name.pid")" || true; fi
  done
}

[[ $# == 2 && $1 =~ ^(start|stop)$ ]] || usage
folder=$(realpath --canonicalize-missing "$2")
"$1"
