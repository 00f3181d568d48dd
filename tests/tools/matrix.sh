#!/bin/bash
# Tries a wheel in a fresh environment for each pair of Python and MONAI:
#   bash tests/tools/matrix.sh WHEEL FOLDER PYTHON=MONAI...      such as python3.11=1.4.0 python3.13=1.6.1
# PYTHON is an interpreter, without "=" in its path. Environments are made in FOLDER and removed, unless KEEP=1. TORCH is a
# requirement (torch==2.13.0), TESTS the tests to run. Prints a line for each pair; exit status 1 if one failed.
set -uo pipefail
if (($# < 3)); then
  echo "usage: $0 WHEEL FOLDER PYTHON=MONAI..." >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
wheel=$(realpath "$1") folder=$(realpath -m "$2")
shift 2
mkdir -p "$folder"
read -r -a tests <<<"${TESTS:-tests/losses tests/transforms}"

try() { # PYTHON MONAI ENVIRONMENT
  set -e
  unset PYTHONPATH  # else pip sees the sources as installed
  [[ -x $3/bin/python ]] || "$1" -m venv "$3"
  local pip=("$3/bin/python" -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" "${TORCH:-torch}" "monai==$2"
  "${pip[@]}" "$wheel[demo]" "monai==$2" pytest  # demo: some tests use the built-in data
  "$3/bin/python" -m pip check
  cd "$3"
  export PYTHONWARNINGS=ignore OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  bin/sparse3dunet --version
  bin/python "$root/tests/tools/tiny_scan.py" data
  bin/sparse3dunet densify data/scan.nii.gz data/annotation.nii.gz -o densified --minutes 0.2 --restart
  bin/sparse3dunet run training --dataset_dir data/set --ckpt_dir models --output_dir eval --max_epochs 1 --epoch_length 2 \
    --num_workers 0 --largest_patch_size '[16,16,16]' --network_def#channels '[4,8,8]'
  bin/sparse3dunet predict models data/scan.nii.gz -o predicted --overwrite
  # The installed package is tested: a link to the tests alone, without the sources beside them
  rm -rf tested && mkdir tested && ln -s "$root"/{tests,bundle,pyproject.toml,examples,docs,benchmarks} tested/
  (cd tested && ../bin/python -m pytest -q -p no:cacheprovider -m 'not slow' "${tests[@]}")
}

status=0
for pair in "$@"; do
  python=${pair%%=*} monai=${pair#*=}
  name=$(basename "$(dirname "$(dirname "$(command -v "$python")")")")-$(basename "$python")-monai$monai
  environment=$folder/$name
  (try "$python" "$monai" "$environment") >"$folder/$name.log" 2>&1 # not in `if`, where `set -e` does nothing
  if (($? == 0)); then
    echo "$name: passed ($(tail -n 1 "$folder/$name.log"))"
  else
    echo "$name: failed, see $folder/$name.log"
    status=1
  fi
  [[ -n ${KEEP:-} ]] || rm -rf "$environment"
done
exit $status
