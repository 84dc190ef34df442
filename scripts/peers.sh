#!/usr/bin/env bash
# Bar 13: no-op tasks through rota, Slurm and HyperQueue, in turns on this machine. Each peer is a
# throw-away cluster of one node on loopback in a temporary directory. One JSON object on stdout.
# Usage: scripts/peers.sh ROTA [ROUNDS [ROTA_TASKS SLURM_TASKS HYPERQUEUE_TASKS]]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/tools.sh

rota=$1 rounds=${2:-3} rota_tasks=${3:-10000} slurm_tasks=${4:-1000} hq_tasks=${5:-5000}
work=$(mktemp -d "${TMPDIR:-/tmp}/rota-peers.XXXXXX")
pids=()
cleanup() {
  trap - EXIT INT TERM
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    kill "${pids[i]}" 2>/dev/null || true
    wait "${pids[i]}" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

now() { date +%s.%N; }
rate() { awk -v n="$1" -v from="$2" -v to="$3" 'BEGIN { printf "%.1f", n / (to - from) }'; }
wait_for() { # SECONDS COMMAND...
  local tries=$(($1 * 10)); shift
  for ((; tries > 0; tries--)); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
  note "not within the time: $*"; return 1
}

# A static program, so that dynamic linking is not what is measured.
printf '.globl _start\n_start: mov $60,%%eax\nxor %%edi,%%edi\nsyscall\n' >"$work/noop.s"
cc -nostdlib -static -o "$work/noop" "$work/noop.s"

# Slurm's own guide for high throughput asks for what differs from the defaults here.
start_slurm() {
  install_missing slurmctld slurm-wlm munge || return 1
  [ "$(id -u)" = 0 ] || { note "Slurm's daemons need root"; return 1; }
  local dir=$work/slurm port
  mkdir -p "$dir"/{state,spool}
  : >"$dir/done"
  port=$((20000 + $$ % 10000))
  head -c 1024 /dev/urandom >"$dir/munge.key"; chmod 600 "$dir/munge.key"
  munged --force --foreground --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
    --pid-file="$dir/munge.pid" --log-file="$dir/munge.log" --seed-file="$dir/munge.seed" >/dev/null 2>&1 &
  pids+=($!)
  wait_for 10 test -S "$dir/munge.socket" || return 1
  cat >"$dir/slurm.conf" <<TEXT
ClusterName=peer
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmctldDebug=error
SlurmdDebug=error
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/done
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_max_job_start=0,default_queue_depth=10000
SlurmdParameters=config_overrides
MaxJobCount=100000
MaxArraySize=100001
MinJobAge=10
ReturnToService=2
NodeName=peer0 NodeHostname=localhost NodeAddr=127.0.0.1 CPUs=16 State=UNKNOWN
PartitionName=all Nodes=peer0 Default=YES MaxTime=INFINITE State=UP
TEXT
  export SLURM_CONF=$dir/slurm.conf
  slurmctld -D >"$dir/ctld.out" 2>&1 & pids+=($!)
  slurmd -D -N peer0 >"$dir/slurmd.out" 2>&1 & pids+=($!)
  wait_for 30 sh -c "sinfo -h -o %t | grep -qx idle" || { tail -5 "$dir"/*.log "$dir"/*.out >&2; return 1; }
}

# Prints tasks per second.
run_slurm() {
  local dir=$work/slurm from to before ended
  before=$(done_slurm) ended=$(ended_slurm)
  printf '#!/bin/sh\nexec %s\n' "$work/noop" >"$dir/job.sh"
  from=$(now)
  sbatch --quiet --array="1-$slurm_tasks" --output=/dev/null "$dir/job.sh" >/dev/null
  # The file of ended jobs, since every squeue would cost the controller more than a task.
  while [ $(($(ended_slurm) - ended)) -lt "$slurm_tasks" ]; do
    sleep 0.1
    kill -0 "${pids[@]}" || { note "a daemon of Slurm ended"; return 1; }
  done
  to=$(now)
  [ $(($(done_slurm) - before)) = "$slurm_tasks" ] || { note "Slurm completed other than $slurm_tasks tasks"; return 1; }
  rate "$slurm_tasks" "$from" "$to"
}
ended_slurm() { grep -c '' "$work/slurm/done" 2>/dev/null || true; }
done_slurm() { grep -c 'JobState=COMPLETED' "$work/slurm/done" 2>/dev/null || true; }

# HyperQueue comes as a Python package that holds its server and worker.
start_hyperqueue() {
  install_missing python3 python3 python3-venv && python3 -m venv "$work/hq" \
    && "$work/hq/bin/pip" install --quiet hyperqueue==0.27.0
}
run_hyperqueue() {
  TMPDIR=$work "$work/hq/bin/python" - "$hq_tasks" "$work/noop" 2>/dev/null <<'PYTHON' | tail -n 1
import sys, time
from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
count, program = int(sys.argv[1]), sys.argv[2]
with LocalCluster(worker_config=WorkerConfig(cores=2)) as cluster:
    client = cluster.client()
    job = Job()
    for _ in range(count):
        job.program([program], stdout=None, stderr=None)
    begun = time.time()
    submitted = client.submit(job)
    assert client.wait_for_jobs([submitted])
    print(f"{count / (time.time() - begun):.1f}")
PYTHON
}

run_rota() {
  "$rota" bench tasks --count "$rota_tasks" --no-limit -o json -- "$work/noop" >"$work/rota.json"
  sed -n 's/.*"tasks_per_s": \([0-9.]*\).*/\1/p' "$work/rota.json"
}

median() { printf '%s\n' "$@" | sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
list() { local IFS=,; printf '[%s]' "$*"; }
ratio() { awk -v a="$(median "${ours[@]}")" -v b="$1" 'BEGIN { printf "%.2f", a / b }'; }

slurm=() hyperqueue=() ours=()
with_slurm=true; start_slurm || with_slurm=false
with_hq=true; start_hyperqueue || with_hq=false
for ((round = 0; round < rounds; round++)); do
  ours+=("$(run_rota)")
  if $with_slurm; then slurm+=("$(run_slurm)"); fi
  if $with_hq; then hyperqueue+=("$(run_hyperqueue)"); fi
done
printf '{"bench":"peers","rota_tasks_per_s":%s' "$(list "${ours[@]}")"
if $with_slurm; then
  printf ',"slurm_tasks_per_s":%s,"over_slurm":%s' "$(list "${slurm[@]}")" "$(ratio "$(median "${slurm[@]}")")"
fi
if $with_hq; then
  printf ',"hyperqueue_tasks_per_s":%s,"over_hyperqueue":%s' "$(list "${hyperqueue[@]}")" "$(ratio "$(median "${hyperqueue[@]}")")"
fi
printf '}\n'
