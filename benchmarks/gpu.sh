#!/bin/bash
# Measures one GPU beside the CPU, and whether both compute the same, in at most 8 minutes: benchmarks/gpu.py in an
# environment that has the machine's own PyTorch and all else that is needed.
#   bash benchmarks/gpu.sh [--wheels FOLDER] [options of gpu.py: --out gpu.json, --minutes 8, --steps network,elastic, --dry-run]
# FOLDER has wheels for machines without a network (pip download -d FOLDER -r requirements.txt). PYTHON is the interpreter.
# --dry-run does all of it on the CPU, with tiny sizes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
wheels=()
if [[ ${1:-} == --wheels ]]; then
  wheels=(--no-index --find-links "${2:?--wheels needs a folder}")
  shift 2
fi
export PYTHONPATH="$root/pipeline${PYTHONPATH:+:$PYTHONPATH}"
needed='torch monai ignite fire jinja2 nibabel pydicom rich skimage sklearn SimpleITK tensorboard typer filelock'
if ! "$python" -c 'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' $needed; then
  venv=${VENV:-$root/build/gpu-venv}
  [[ -x $venv/bin/python ]] || "$python" -m venv --system-site-packages "$venv"
  python=$venv/bin/python
  # PyTorch is there already, and stays as it is
  "$python" -c 'import torch; print("torch==" + torch.__version__)' >"$venv/torch.txt"
  "$python" -m pip install --quiet --disable-pip-version-check "${wheels[@]}" --constraint "$venv/torch.txt" "$root"
fi
exec "$python" -W ignore "$root/benchmarks/gpu.py" "$@"
