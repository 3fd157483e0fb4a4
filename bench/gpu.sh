#!/usr/bin/env bash
# The speed table of a GPU: checks the kernels, then measures case by case, the most telling first, until the time is
# over. After every case FILE holds what has been measured so far. Called again, it measures the cases that are missing
# (finished ones are in runs/gpu: delete that folder to start over).
#
#   bench/gpu.sh [--out FILE] [--minutes N] [--dry-run] [-- OPTIONS OF octaveconv bench]
set -euo pipefail
cd "$(dirname "$0")/.."

out=results/speed_gpu.json
minutes=8
dry_run=
while (($#)); do
    case $1 in
        --out) out=${2:?--out needs a file}; shift 2 ;;
        --minutes) minutes=${2:?--minutes needs a number}; shift 2 ;;
        --dry-run) dry_run=1; shift ;;
        --) shift; break ;;
        *) echo "gpu.sh: unknown option $1: use --out FILE, --minutes N, --dry-run, or -- OPTIONS" >&2; exit 2 ;;
    esac
done
end=$((SECONDS + 60 * minutes))
parts=runs/gpu
python=${PYTHON:-.venv/bin/python}

# run LIMIT COMMAND...: interrupts the command after LIMIT seconds, and kills it if it does not end.
run() {
    local limit=$1
    shift
    echo "+ $*"
    [[ $dry_run ]] || timeout --signal=INT --kill-after=20 "$limit" "$@"
}

merge() {
    [[ $dry_run ]] || "$python" - "$out" "$@" <<'PYTHON'
import json, os, sys
from pathlib import Path

out, *parts = map(Path, sys.argv[1:])
runs = [json.loads(part.read_text()) for part in parts if part.exists() and part.stat().st_size]
out.parent.mkdir(parents=True, exist_ok=True)
whole = out.with_name(out.name + ".part")
whole.write_text(json.dumps({"kind": "benches", "runs": runs}, indent=1) + "\n")
os.replace(whole, out)
print(f"{out} has {len(runs)} of {len(parts)} cases")
PYTHON
}

if [[ ! -x $python ]]; then
    run 600 make .venv/test
    end=$((SECONDS + 60 * minutes))
fi
[[ $dry_run ]] || mkdir -p "$parts"

# A time means nothing if the kernel is wrong. (124: it took too long, which is not a failure.)
run 90 "$python" -m pytest -q -x -m gpu tests/test_cuda.py tests/test_triton.py \
    -k "measured or streams or (against_reference and (3x3 or pointwise))" || {
    code=$?
    if ((code != 124)); then
        echo "gpu.sh: the tests fail, so nothing is measured" >&2
        exit 1
    fi
}

infer=(--runtimes deployed --rivals compiled)
train=(--mode train --runtimes eager compiled --runs 15)
cases=()
for network in "oct_resnet50 torchvision" "oct_resnetv2_101 torchvision/resnet101"; do
    read -r model dense <<<"$network"
    cases+=("$model $dense infer 32" "$model $dense train 64" "$model $dense infer 256" "$model $dense infer 1")
done

files=()
for case in "${cases[@]}"; do
    read -r model _ mode batch <<<"$case"
    files+=("$parts/$model-$mode-$batch.json")
done
for i in "${!cases[@]}"; do
    read -r model dense mode batch <<<"${cases[i]}"
    file=${files[i]}
    left=$((end - SECONDS - 20))  # the last seconds are for shutting down
    if [[ -s $file ]]; then
        continue
    elif ((left < 30)); then
        echo "gpu.sh: no time left for $(basename "$file" .json): call it again to measure the rest"
        continue
    fi
    options=("${infer[@]}")
    backend=
    [[ $mode == train ]] && options=("${train[@]}") backend=triton,merged
    run "$left" env OCTAVECONV_BACKEND="$backend" "$python" -m octaveconv bench "$model" --device cuda --dtype bf16 --alpha 0.125 0.25 0.5 0.75 \
        --dense "$dense" --batch-size "$batch" "${options[@]}" --json "$file" "$@" ||
        echo "gpu.sh: not measured: $(basename "$file" .json)" >&2
    merge "${files[@]}"
done
merge "${files[@]}"
