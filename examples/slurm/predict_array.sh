#!/bin/bash
# Segments many images by an array of jobs, each of which takes its part of them.
#   sbatch --array 1-16 examples/slurm/predict_array.sh 16 MODEL IMAGES OUT [options of sparse3dunet predict]
# The first number is that of all parts. IMAGES is a folder, a quoted pattern, or a JSON list, and must stay as it is while
# the jobs run. Submit it again to go on after a time limit or a failure, also some of the jobs alone (--array 3,7): what is
# done is skipped.
#SBATCH --job-name predict
#SBATCH --ntasks 1 --cpus-per-task 8 --mem 32G --time 4:00:00
#SBATCH --output predict-%A_%a.log
#SBATCH --signal TERM@60
# One GPU for each job, if the cluster has some:
##SBATCH --gpus 1
set -euo pipefail
if (($# < 4)); then
  echo "usage: sbatch --array 1-16 $0 16 MODEL IMAGES OUT [options]" >&2
  exit 2
fi
parts=$1 model=$2 images=$3 out=$4
shift 4
number=${SLURM_ARRAY_TASK_ID:?pass --array, as in: sbatch --array 1-16 $0 16 MODEL IMAGES OUT}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over from sbatch
srun=()
if command -v srun >/dev/null && [[ -n ${SLURM_JOB_ID:-} ]]; then
  srun=(srun)
fi
exec "${srun[@]}" sparse3dunet predict "$model" "$images" -o "$out" --part "$number/$parts" "$@"
