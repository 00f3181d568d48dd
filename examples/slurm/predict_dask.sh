#!/bin/bash
# Segments thousands of images by a Dask cluster inside one job: a scheduler, and a worker for each task of the job.
#   sbatch examples/slurm/predict_dask.sh MODEL IMAGES OUT [options of sparse3dunet predict]
#SBATCH --job-name predict-dask
#SBATCH --ntasks 8 --cpus-per-task 8 --mem-per-cpu 4G --time 8:00:00
#SBATCH --output predict-dask-%j.log
# One GPU for each task, if the cluster has some:
##SBATCH --gpus-per-task 1
set -euo pipefail
if (($# < 3)); then
  echo "usage: sbatch $0 MODEL IMAGES OUT [options]" >&2
  exit 2
fi
model=$1 images=$2 out=$3
shift 3
port=${PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 20000))} # of its own: another job's scheduler is not for this one
address=$(hostname):$port
# Dask gives a worker one thread for its arithmetic, unless it is told otherwise
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over from sbatch
export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON__OMP_NUM_THREADS=$OMP_NUM_THREADS
workers=(dask worker "$address" --nworkers 1 --nthreads 1 --memory-limit 0 --no-dashboard) # Slurm limits the memory
dask scheduler --port "$port" --no-dashboard &
scheduler=$!
if [[ -n ${SLURM_JOB_ID:-} ]]; then
  srun "${workers[@]}" &
else
  "${workers[@]}" &
fi
trap 'kill %2 $scheduler 2>/dev/null; wait' EXIT
sparse3dunet predict "$model" "$images" -o "$out" --dask "$address" "$@"
