#!/usr/bin/env bash
# A study as a Slurm job, which starts a Ray cluster on the job's nodes and ends it. In the project's folder, after `make setup`:
#   sbatch --nodes=2 deploy/slurm.sh ablations/shortcuts.py --preset cifar10 --gpus-per-worker 1
# All nodes must share the home folder, which is usual. More: docs/scaling-up.md.
#SBATCH --job-name=resnet-ablations
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
# Whole nodes: Ray's launcher allows no other Ray on a node, and finally stops every Ray process of yours there.
#SBATCH --exclusive
#SBATCH --mem=0
# If the job is preempted or loses a node, Slurm queues it again, and the study continues.
#SBATCH --requeue
set -euo pipefail
umask 077

export PATH="$PWD/.venv/bin:$PATH"
export RESNET_ABLATIONS_HOME="${RESNET_ABLATIONS_HOME:-$HOME/resnet-ablations}"
export RESNET_ABLATIONS_STORAGE="${RESNET_ABLATIONS_STORAGE:-file://$RESNET_ABLATIONS_HOME}"
export RAY_AUTH_MODE=token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # the default of 30 is too short if Python is on a network file system
port=$((20000 + SLURM_JOB_ID % 5000 * 2)) # avoid the ports of other jobs and of a permanent Ray

# This script and the study run on the job's first node. Only the study's own process talks to MLflow, so that loopback is
# enough.
if [ -z "${MLFLOW_TRACKING_URI:-}" ]; then
  mkdir -p "$RESNET_ABLATIONS_HOME"
  exec 9> "$RESNET_ABLATIONS_HOME/mlflow.lock"
  if ! flock --nonblock 9; then
    echo "another job runs an MLflow server on $RESNET_ABLATIONS_HOME; set MLFLOW_TRACKING_URI to one server for both jobs" >&2
    exit 2
  fi
  log="$RESNET_ABLATIONS_HOME/mlflow.log"
  ablations mlflow --port $((port + 1)) > "$log" 2>&1 &
  trap 'kill $! 2> /dev/null && wait $! || true' EXIT
  export MLFLOW_TRACKING_URI="http://127.0.0.1:$((port + 1))"
fi

ray get-auth-token --generate > /dev/null # in ~/.ray, which all nodes share; an existing token stays
address="$(python -c 'import ray; print(ray.util.get_node_ip_address())'):$port"
if [ -n "${log:-}" ]; then
  until (: < "/dev/tcp/127.0.0.1/$((port + 1))") 2> /dev/null; do
    kill -0 $! 2> /dev/null || { cat "$log" >&2; exit 2; }
    sleep 1
  done
fi

# Without --cpus-per-task, a task gets a single core. RAY_ADDRESS tells the study its cluster.
srun --cpus-per-task="$SLURM_CPUS_ON_NODE" \
  ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_ON_NODE" --dashboard-host 127.0.0.1 --disable-usage-stats \
  -- env RAY_ADDRESS="$address" python "$@"
