#!/usr/bin/env bash
# The matrix of benchmarks/accuracy/run.py on one GPU, by several processes that share one cache:
#
#     benchmarks/gpu/accuracy.sh PROCESSES MINUTES FOLDER --data DATA --checkpoint MODEL --table TABLE ...
#
# Begins nothing new after so many minutes and ends everything one minute later. FOLDER gets
# accuracy.tar.gz, the rows of the cache without the statistics, to be unpacked into a cache elsewhere and
# collected there (run.py --collect with the same options), and accuracy.log, what the processes said.
# DEVICE=cpu runs the same without a GPU. Set CACHE for another cache than benchmarks/accuracy/cache, PYTHON
# for another interpreter. cahp-opt need not be installed; paths are relative to the repository's root.
set -u
cd "$(dirname "$0")/../.." || exit 1
if [[ $# -lt 4 ]]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
processes=$1 minutes=$2 output=$3
shift 3
cache=${CACHE:-benchmarks/accuracy/cache}
python=${PYTHON:-python3}
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$output" "$cache"/{chosen,evaluated,measured}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

limit=$("$python" -c 'import sys; print(round(60 * float(sys.argv[1]) + 60))' "$minutes") || exit 2
for ((i = 0; i < processes; i++)); do
    timeout -k 5 "$limit" "$python" benchmarks/accuracy/run.py "$@" --device "${DEVICE:-cuda}" --cache "$cache" \
        --shard "$i/$processes" --minutes "$minutes" --output "$logs/$i.json" >"$logs/$i.log" 2>&1 &
    started[i]=$!
done
worst=0
for ((i = 0; i < processes; i++)); do
    wait "${started[i]}"
    code=$?
    [[ $code -gt $worst ]] && worst=$code
    echo "process $i ended with $code: $(tail -n 1 "$logs/$i.log")"
done
tail -n +1 "$logs"/*.log >"$output/accuracy.log"
tar -C "$cache" -czf "$output/accuracy.tar.gz" --exclude='.*.json*' chosen evaluated measured
exit "$worst"
