#!/bin/bash
# Densifies many scans by an array of jobs, each scan by itself: job i takes line i of a list, which begins with line 1.
#   sbatch --array 1-40 examples/slurm/densify_array.sh LIST OUT [options of sparse3dunet densify]
# A line of LIST has the scan and its annotation, separated by a tab. Results of line 7 are in OUT/7-NAME. Submit it again to
# go on after a time limit or a failure.
#SBATCH --job-name densify
#SBATCH --ntasks 1 --cpus-per-task 8 --mem 32G --time 2:00:00
#SBATCH --output densify-%A_%a.log
#SBATCH --signal TERM@60
# One GPU for each job, if the cluster has some:
##SBATCH --gpus 1
set -euo pipefail
if (($# < 2)); then
  echo "usage: sbatch --array 1-40 $0 LIST OUT [options]" >&2
  exit 2
fi
list=$1 out=$2
shift 2
number=${SLURM_ARRAY_TASK_ID:?pass --array, as in: sbatch --array 1-40 $0 LIST OUT}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over from sbatch

IFS=$'\t' read -r scan annotation < <(sed -n "${number}p" "$list") || true
if [[ -z ${scan:-} || -z ${annotation:-} ]]; then
  echo "error: line $number of $list has no scan and annotation, separated by a tab" >&2
  exit 1
fi
name=$(basename "$scan")
srun=()
if command -v srun >/dev/null && [[ -n ${SLURM_JOB_ID:-} ]]; then
  srun=(srun)
fi
exec "${srun[@]}" sparse3dunet densify "$scan" "$annotation" -o "$out/$number-${name%%.*}" "$@"
