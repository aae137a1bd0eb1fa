#!/usr/bin/env bash
# A study of benchmarks/accuracy/run.py on the GPUs of a machine, by several processes, for so many minutes at most:
#
#   benchmarks/gpu/accuracy.sh PROCESSES MINUTES FOLDER --data DATA --checkpoint MODEL --latency-table TABLE ...
#
# FOLDER gets all results as they come, and accuracy.log. The same command goes on where this one stopped, and so does
# `run.py --cache FOLDER` with the same options elsewhere, which writes the record too. CUDA_VISIBLE_DEVICES= runs it without
# a GPU. Set PYTHON for another interpreter. cahp-opt need not be installed; paths are relative to the repository's root.
set -u
cd "$(dirname "$0")/../.." || exit 1
if [[ $# -lt 5 ]]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
processes=$1 minutes=$2 folder=$3
shift 3
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$folder"
timeout -k 5 "${minutes}m" "${PYTHON:-python3}" benchmarks/accuracy/run.py "$@" --jobs "$processes" --cache "$folder" 2>&1 |
    tee "$folder/accuracy.log"
exit "${PIPESTATUS[0]}"
