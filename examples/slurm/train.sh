#!/bin/bash
# Trains on two machines with four GPUs each; preempted and requeued at any time, it goes on where it was.
#   sbatch examples/slurm/train.sh DATA OUT [settings of run training]
#SBATCH --job-name train
#SBATCH --nodes 2 --ntasks-per-node 1 --gpus-per-node 4 --cpus-per-task 32 --mem 128G --time 24:00:00
#SBATCH --output train-%j.log --open-mode append
#SBATCH --requeue --signal TERM@120
set -euo pipefail
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over from sbatch
if (($# < 2)); then
  echo "usage: sbatch $0 DATA OUT [settings]" >&2
  exit 2
fi
data=$1 out=$2
shift 2
# For a first try on one machine without Slurm and GPUs: NODES=1 PROCESSES=2 bash examples/slurm/train.sh DATA OUT
nodes=${SLURM_JOB_NUM_NODES:-${NODES:-1}}
processes=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
srun=()
head=localhost
if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
  hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  head=${hosts%%$'\n'*}
  srun=(srun)
fi
options=()
# In versions of PyTorch that have it: the time for torchrun's processes to write their state, not 30 seconds
if [[ $(torchrun --help) == *--shutdown* ]]; then
  options=(--shutdown_timeout 110)
fi
exec "${srun[@]}" torchrun "${options[@]}" --nnodes "$nodes" --nproc_per_node "$processes" \
  --rdzv_backend c10d --rdzv_endpoint "$head:${PORT:-29500}" --rdzv_id "${SLURM_JOB_ID:-0}" \
  -m sparse3dunet run training --overlay multi_gpu_train \
  --dataset_dir "$data" --ckpt_dir "$out/models" --output_dir "$out/eval" --resume "$@"
