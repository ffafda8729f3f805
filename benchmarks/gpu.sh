#!/usr/bin/env bash
# What one GPU can show, in stages with a time limit each: all together under nine minutes on an H100.
# A stage that fails does not keep the next from running; what each has found is on the disk before the
# next begins, in runs/gpu or the folder that OUT names. README.md beside this has the lines to type.
#
#   bash benchmarks/gpu.sh pack       fill gpu_pack/: wheels, data and weights for a machine without a network
#   bash benchmarks/gpu.sh            tests, conformance, step cost, Flowers-102 with EfficientNet-Lite0
#   bash benchmarks/gpu.sh pack vit   the ViT's weights in gpu_pack/ in place of data and the other weights
#   bash benchmarks/gpu.sh vit        after that, on the machine that has had the data: Flowers-102 with it
#   bash benchmarks/gpu.sh deepspeed  SAM under ZeRO-2, and ZeRO-3 with offload, in bfloat16, four minutes at most
#   bash benchmarks/gpu.sh smoke      every stage with tiny sizes on the CPU, under four minutes
set -euo pipefail
cd "$(dirname "$0")/.."
PACK=gpu_pack KEPT=runs/gpu_flowers102 SITE=runs/gpu_site
MOST_MB=55 # of the pack
PYTHON=${PYTHON:-python3}
OUT=${OUT:-runs/gpu}
# What a machine with torch, transformers and scikit-learn lacks; each needs no more than is there.
WHEELS="datasets evaluate dill multiprocess timm>=1.0.31 pytorch_optimizer
    hjson py-cpuinfo ninja msgpack einops" # the last five for DeepSpeed
# Runs that share the card: a small network leaves most of it idle.
PROCESSES=${PROCESSES:-6}
FAILED=0

pack() { # what: flowers or vit
    rm -rf $PACK && mkdir -p $PACK/wheels
    $PYTHON -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 -d $PACK/wheels $WHEELS
    DS_BUILD_OPS=0 $PYTHON -m pip wheel -q --no-deps -w $PACK/wheels "deepspeed>=0.19.7,<0.20"
    if [ "$1" = vit ]; then
        cp data/weights/vit_small_patch14_dinov2_fp16.safetensors $PACK
    else
        $PYTHON - <<'CODE'
from safetensors.torch import load_file, save_file

name = "tf_efficientnet_lite0_in1k.safetensors"  # in half precision: the start of a fine-tuning
weights = load_file(f"data/weights/{name}")
save_file({k: v.half() if v.is_floating_point() else v for k, v in weights.items()}, f"gpu_pack/{name}")
CODE
        bash benchmarks/evidence.sh official_flowers && cp -r runs/flowers102 $PACK
    fi
    local size
    size=$(du -sm $PACK | cut -f 1)
    echo "$PACK: $size MB"
    [ "$size" -le $MOST_MB ] || { echo "gpu.sh: more than $MOST_MB MB" >&2 && exit 1; }
}

begin() {
    mkdir -p "$OUT" && rm -f "$OUT/stages.json" "$OUT/log.txt"
    export PYTHONPATH="$PWD:$PWD/$SITE${PYTHONPATH:+:$PYTHONPATH}"
}

unpack() { # what the pack holds is put where it stays when the next pack comes
    [ ! -d $PACK/flowers102 ] || { mkdir -p $KEPT && cp -r $PACK/flowers102/. $KEPT; }
    [ -d $SITE ] || stage wheels 60 $PYTHON -m pip install -q --no-index --no-deps --target $SITE \
        $PACK/wheels/*.whl
}

stage() { # name, seconds at most, command: runs it and notes what came of it
    local began=$SECONDS status=0
    echo "== $1"
    echo "== $1: ${*:3}" >>"$OUT/log.txt"
    timeout --kill-after 10 "$2" "${@:3}" >>"$OUT/log.txt" 2>&1 || status=$?
    [ $status = 0 ] || FAILED=1
    $PYTHON - "$OUT" "$1" $status $((SECONDS - began)) <<'CODE'
import json
import sys
from pathlib import Path

out, name, status, seconds = Path(sys.argv[1]), *sys.argv[2:]
path = out / "stages.json"
stages = json.loads(path.read_text()) if path.exists() else []
last = (out / "log.txt").read_text(errors="replace").rstrip().splitlines()[-1]
stages.append({"stage": name, "status": int(status), "seconds": int(seconds), "last_line": last})
path.write_text(json.dumps(stages, indent=1) + "\n")
print(f"{name}: status {status}, {seconds} s: {last}")
CODE
}

together() { # name, options of compare.py: processes that share its runs; what has ended is kept
    local process processes=() status=0
    for process in $(seq "$PROCESSES"); do
        $PYTHON recipes/compare.py --output_dir "runs/gpu-$1" "${@:2}" &
        processes+=($!)
    done
    for process in "${processes[@]}"; do wait "$process" || status=$?; done
    return $status
}

keep() { # name: the comparison as far as it came, and the record of each run
    (cd "runs/gpu-$1" && find . -name run.json -o -name options.json -o -name errors.json) |
        tar -C "runs/gpu-$1" -czf "$OUT/$1-records.tar.gz" -T - || true
    [ ! -e "runs/gpu-$1/comparison.json" ] || cp "runs/gpu-$1/comparison.json" "$OUT/$1.json"
}

flowers() { # name, seconds at most, options of compare.py
    rm -rf "runs/gpu-$1"
    stage "$1" "$2" bash benchmarks/gpu.sh together "$1" --seeds 5 --bf16 --dataloader_num_workers 2 \
        --data_dir $KEPT "${@:3}"
    keep "$1"
}

case ${1:-all} in
pack) pack "${2:-flowers}" ;;
together) together "${@:2}" ;;
all)
    begin && unpack
    stage tests 60 $PYTHON -m pytest -m gpu tests/trainer/test_gpu.py
    stage conformance 100 $PYTHON benchmarks/gpu_conformance.py --output "$OUT/conformance.json"
    stage step_cost 120 $PYTHON benchmarks/step_cost.py --rounds 15 --output "$OUT/step_cost.json"
    flowers lite0 230 --config recipes/oxford_flowers/efficientnet_lite0.yaml --image_size 128 \
        --weights $PACK/tf_efficientnet_lite0_in1k.safetensors --rho 0.1 \
        --arm gsam method=gsam --arm asam adaptive=true rho=1
    ;;
vit)
    begin && unpack
    flowers vit 500 --config recipes/oxford_flowers/vit_small_patch14.yaml \
        --weights $PACK/vit_small_patch14_dinov2_fp16.safetensors
    ;;
deepspeed)
    begin && unpack
    stage deepspeed 240 $PYTHON benchmarks/gpu_deepspeed.py --output "$OUT/deepspeed.json"
    ;;
smoke)
    export CUDA_VISIBLE_DEVICES="" PROCESSES=2
    begin
    stage tests 200 $PYTHON -m pytest -m gpu tests/trainer/test_gpu.py
    stage conformance 200 $PYTHON benchmarks/gpu_conformance.py --output "$OUT/conformance.json"
    stage step_cost 200 $PYTHON benchmarks/step_cost.py --tiny --rounds 1 --output "$OUT/step_cost.json"
    stage deepspeed 200 $PYTHON benchmarks/gpu_deepspeed.py --tiny --output "$OUT/deepspeed.json"
    rm -rf runs/gpu-smoke
    stage smoke 200 bash benchmarks/gpu.sh together smoke --dataset digits --model test_efficientnet \
        --init_scratch --max_steps 2 --max_train_samples 64 --max_eval_samples 32 --seeds 1 \
        --eval_strategy no --save_strategy no
    keep smoke
    ;;
*) echo "gpu.sh: pack, pack vit, vit, deepspeed, smoke or nothing, got $1" >&2 && exit 1 ;;
esac
exit $FAILED
