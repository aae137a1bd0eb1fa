#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most nine minutes:
#
#     benchmarks/gpu/run.sh [OUTPUT_FOLDER]
#
# Latency tables against whole models (benchmarks/latency/run.py), the most important models first, then
# every tiny architecture (benchmarks/gpu/architectures.py). Writes latency/<device>.json and
# architectures/<device>.json; what no time was left for is named there. cahp-opt need not be installed.
# DEVICE=cpu runs the same without a GPU. Set LIMIT for other seconds than 540, LATENCY and ARCHITECTURES
# for more options of the two scripts, PYTHON for another interpreter.
set -u
cd "$(dirname "$0")/../.." || exit 1
begun=$SECONDS
output=${1:-benchmarks/results}
device=${DEVICE:-cuda}
limit=${LIMIT:-540}
python=${PYTHON:-python3}
read -ra latency <<<"${LATENCY:-}"
read -ra architectures <<<"${ARCHITECTURES:-}"
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

left() { echo $((limit - (SECONDS - begun) - $1)); } # seconds, without those kept for later

if [[ $device == cuda* ]]; then
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,temperature.gpu,utilization.gpu,memory.used,memory.total \
        --format=csv,noheader || exit 1
fi

reserved=$((limit / 5)) # for the architectures
worst=0
for attempt in 1 2 3; do # an error of CUDA can end a process; the next one goes on behind the case
    time=$(left "$reserved")
    start=$((time - limit / 20)) # seconds in which cases may start
    [[ $time -ge $((limit / 20)) ]] || break
    timeout -k 5 "$time" "$python" benchmarks/latency/run.py --device "$device" --output "$output/latency" \
        --minutes "$(printf '%d.%02d' $((start / 60)) $((start % 60 * 100 / 60)))" "${latency[@]}"
    code=$?
    echo "latency: attempt $attempt ended with $code after $((SECONDS - begun)) s"
    [[ $code -gt $worst ]] && worst=$code
    [[ $code -eq 3 || $code -gt 124 ]] || break
done

timeout -k 5 "$(left 5)" "$python" benchmarks/gpu/architectures.py --device "$device" \
    --output "$output/architectures" "${architectures[@]}"
code=$?
echo "architectures: ended with $code after $((SECONDS - begun)) s"
[[ $code -gt $worst ]] && worst=$code
exit "$worst"
