#!/usr/bin/env bash
# The comparisons of docs/results.md, one after the other: hours on two CPU cores. Finished runs are
# skipped, those recorded in model_cards/records too, and an interrupted one goes on from its last epoch:
# start it again. The results go to model_cards; `make cards` then writes cards, plots and tables.
# Two processes of one thread share a comparison (JOBS=1: one); every minute what they have finished is
# copied to model_cards/records, to be committed as it comes.
#
#   bash benchmarks/evidence.sh               all
#   bash benchmarks/evidence.sh flowers       all of Oxford Flowers-102, the most useful first
#   bash benchmarks/evidence.sh adamw noise40 some
#   bash benchmarks/evidence.sh record cub200_first50-sgd    keep what an interrupted one has finished
set -euo pipefail
cd "$(dirname "$0")/.."
# Large tensors are kept between steps instead of given back to the system: docs/hardware.md.
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184
export MALLOC_TOP_PAD_=268435456
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
JOBS=${JOBS:-2}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

BIRDS=recipes/cub200_first50/mobilenetv2_035.yaml
# What the first comparison has chosen for each arm, for those that do not choose anew.
FOUND="--learning_rate 0.02 --arm sam learning_rate=0.04 rho=0.1"

# What SAM's gain may cost: four trials for each arm, where the method's sources have a larger rho of
# larger ones (SAM-ON ten times, MSAM's official code 3 where SAM has 0.2).
METHODS="--sweep learning_rate=0.02,0.04 rho=0.1,0.2 norm:rho=0.5,1 msam:rho=1,3
    base:learning_rate=0.01,0.02,0.04,0.08 base_2x:learning_rate=0.01,0.02,0.04,0.08
    --arm interval2 ascent_interval=2 seeds=5 --arm interval5 ascent_interval=5 seeds=3
    --arm late ascent_start=0.8 seeds=3 --arm fraction ascent_fraction=0.25 seeds=5
    --arm looksam method=looksam ascent_interval=5 seeds=3 --arm msam method=msam seeds=3
    --arm gsam method=gsam seeds=5 --arm norm perturb=norm seeds=3"
# Two ways to spend 1.125 times the base optimizer's cost, for the rule of max_overhead; MSAM with the
# rho of the others.
MORE_METHODS="--arm eighth ascent_fraction=0.125 seeds=3
    --arm quarter2 ascent_fraction=0.25 ascent_interval=2 seeds=3
    --arm msam_small method=msam seeds=3"

# Oxford Flowers-102: settings are chosen on the official validation half, then both are trained on.
FLOWERS=recipes/oxford_flowers/efficientnet_lite0.yaml
LITE0="--weights data/weights/tf_efficientnet_lite0_in1k.safetensors"
SMALL="--model mobilenetv2_035 --weights data/weights/mobilenetv2_035_in1k_notop.safetensors
    --model_kwargs {\"pad_type\":\"same\",\"bn_eps\":0.001} --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"
# BatchNorm is frozen or not as the base optimizer does better on the validation half: frozen it ends at
# chance, and not frozen it does best at 0.02, which the others have too. Each other arm has three trials.
GRID="--sweep_split validation --sweep base:learning_rate=0.01,0.02,0.04
    base:freeze_batch_norm=false,true base_2x:learning_rate=0.01,0.02,0.04 rho=0.05,0.1,0.2 asam:rho=0.5,1,2
    --arm gsam method=gsam --arm asam adaptive=true"

# Which cheap way keeps SAM's gain: docs/methods.md has the plan, which was written before the results.
FRONTIER="--sweep_split validation --sweep_seeds 2 --seeds 10 --num_train_epochs 30
    --sweep base:learning_rate=0.01,0.02,0.04 base:freeze_batch_norm=false
    base_2x:learning_rate=0.01,0.02,0.04 rho=0.05,0.1,0.2
    interval2:rho=0.1,0.2,0.4 interval5:rho=0.1,0.2,0.4 norm:rho=0.5,1,2 fraction:rho=0.1,0.2,0.4
    last_quarter:rho=0.1,0.2,0.4 vasso:rho=0.1,0.2,0.4 looksam:rho=0.1,0.2,0.4
    ema:weight_average=ema:0.98,ema:0.99,ema:0.995 swa:weight_average=swa:0.5,swa:0.75
    sam_ema:weight_average=ema:0.98,ema:0.99,ema:0.995
    --arm gsam method=gsam --arm fraction ascent_fraction=0.25
    --arm last_quarter ascent_fraction=0.25 perturb=last:0.33
    --arm vasso method=vasso method_args=theta=0.4 ascent_fraction=0.25 seeds=5
    --arm interval2 ascent_interval=2 seeds=5 --arm interval5 ascent_interval=5 seeds=5
    --arm last perturb=last:0.33 seeds=5 --arm norm perturb=norm seeds=5
    --arm looksam method=looksam ascent_interval=5 seeds=5
    --arm ema rho=0 seeds=5 --arm swa rho=0 seeds=5 --arm sam_ema rho=0.1 seeds=5"

# Epochs at which doubling them gains EfficientNet-Lite0 less than half a point of validation error: 15,
# 30, 60 and 120 leave 18.3, 16.4, 14.9 and 14.0 % (one seed), so none of the first three is long enough.
LONG=120

run() { # name, options of compare.py
    mkdir -p "runs/$1" "model_cards/records/$1"
    cp -rn "model_cards/records/$1/." "runs/$1"
    local job processes=()
    for job in $(seq "$JOBS"); do
        python recipes/compare.py --config "${CONFIG:-$BIRDS}" --output_dir "runs/$1" "${@:2}" &
        processes+=($!)
    done
    while [ -n "$(jobs -rp)" ]; do sleep 60 && record "$1"; done
    for job in "${processes[@]}"; do wait "$job"; done
    record "$1"
    cp "runs/$1/comparison.json" "model_cards/$1.json"
}

record() { # name: keep what was found out, without the weights
    (cd "runs/$1" && find . -name run.json -execdir test -f options.json \; -print) |
        while read -r found; do
            mkdir -p "model_cards/records/$1/$(dirname "$found")"
            for kept in run.json options.json errors.json; do
                [ ! -e "runs/$1/${found%run.json}$kept" ] || cp "runs/$1/${found%run.json}$kept" \
                    "model_cards/records/$1/$(dirname "$found")"
            done
        done
}

official_flowers() { # the official halves as splits: data/flowers102 has them in one, told by `file`
    [ -e runs/flowers102/test.parquet ] && return
    mkdir -p runs/flowers102
    python - <<'CODE'
import datasets

files = {split: f"data/flowers102/{split}.parquet" for split in ("train", "test")}
found = datasets.load_dataset("parquet", data_files=files)
halves = {"train": "trn/", "validation": "val/"}
for split, prefix in halves.items():
    rows = [i for i, name in enumerate(found["train"]["file"]) if name.startswith(prefix)]
    found["train"].select(rows).to_parquet(f"runs/flowers102/{split}.parquet")
found["test"].to_parquet("runs/flowers102/test.parquet")
CODE
}

chosen() { # comparison: what it has chosen for each arm, as options of another
    python - "$1" <<'CODE'
import json
import sys

found = json.load(open(f"model_cards/{sys.argv[1]}.json"))["results"]
for arm, settings in {result["arm"]: result["settings"] for result in found}.items():
    told = [f"{name}={value}" for name, value in settings.items() if name != "num_train_epochs"]
    print("--arm", arm, *told)
CODE
}

length() { # network, seeds, lengths, options: the base optimizer alone on the validation half
    local epochs seed records=model_cards/records/oxford_flowers-length
    for epochs in $3; do for seed in $2; do
        local name="$1-epochs$epochs-seed$seed"
        [ -e "$records/$name/run.json" ] && continue
        rm -rf "runs/oxford_flowers-length/$name" # an unfinished one
        python recipes/finetune.py --config $FLOWERS --data_dir runs/flowers102 --rho 0 \
            --train_split train --eval_split validation --save_strategy no --seed $seed \
            --num_train_epochs $epochs --output_dir "runs/oxford_flowers-length/$name" "${@:4}"
        record oxford_flowers-length
    done; done
}

zero_head() { # the backbone with a head of zeros, for the birds' 50 classes
    python - <<'CODE'
import torch
from safetensors.torch import load_file, save_file

weights = load_file("data/weights/mobilenetv2_035_in1k_notop.safetensors")
head = {"classifier.weight": torch.zeros(50, 1280), "classifier.bias": torch.zeros(50)}
save_file({**weights, **head}, "runs/zero_head.safetensors")
CODE
}

flatness() { # comparison, data, options: SAM's minima beside the base optimizer's; pictures of one seed
    for seed in 0 1 2; do
        [ -e "model_cards/sharpness/$1-seed$seed.json" ] && continue
        [ $seed = 0 ] && pictures="" || pictures="--points 0 --density_probes 0"
        python -m hf_sam.diagnostics "runs/$1/sam-seed$seed" --compare "runs/$1/base-seed$seed" \
            --names SAM base --seed $seed --out "runs/sharpness/$1-seed$seed" $pictures \
            --trace_probes 10 --data "${@:2}"
        mkdir -p model_cards/sharpness
        cp "runs/sharpness/$1-seed$seed/report.json" "model_cards/sharpness/$1-seed$seed.json"
    done
}

if [ "${1:-}" = record ]; then # after an interruption: record NAME
    record "$2" && exit
fi
for name in "${@:-flowers cars flowers_vit sgd sgd3 adamw food noise40 noise80 m frontier clean no_norm flat_birds flat_no_norm}"; do for part in $name; do
    case $part in
    sgd) run cub200_first50-sgd --seeds 5 --sweep learning_rate=0.02,0.04 rho=0.05,0.1,0.2 ;;
    sgd3) run cub200_first50-sgd3 --seeds 5 --sweep learning_rate=0.02,0.04 rho=0.05,0.1,0.2 \
        --sweep_seeds 3 ;;
    adamw) run cub200_first50-adamw --seeds 3 --optim adamw_torch --weight_decay 0.01 \
        --sweep learning_rate=0.0005,0.001 rho=0.05,0.1,0.2 ;;
    food) run food101_first10-sgd --seeds 3 --data_dir data/food101_first10 \
        --num_train_epochs 6 $FOUND ;; # as many steps as 15 epochs of the birds
    noise40) run cub200_first50-noise40 --seeds 3 --label_noise 0.4 \
        --arm mixup rho=0 mixup=0.2 $FOUND ;;
    noise80) run cub200_first50-noise80 --seeds 3 --label_noise 0.8 \
        --arm mixup rho=0 mixup=0.2 $FOUND ;;
    # With BatchNorm frozen the first gradients through a random head empty the features, with SGD from
    # learning rate 0.002 on, with AdamW from 0.001 on, and with SAM at any rate tried: it starts at zero.
    # m = 4 and 64 end at chance with rho 0.05 even so, m = 4 learns with 0.005 and 0.01 (two epochs each).
    m) zero_head && run cub200_first50-m --seeds 3 --freeze_batch_norm true \
        --weights runs/zero_head.safetensors --learning_rate 0.01 --rho 0.005 \
        --arm m4 m=4 --arm m16 m=16 --arm m64 m=64 --arms base m4 m16 m64 ;;
    flat_birds) flatness cub200_first50-adamw data/cub200_first50 --span 0.1 ;;
    no_norm) CONFIG=recipes/cifar10/wide_resnet10_2_no_norm.yaml run cifar10-no_norm --seeds 3 \
        --arms base sam --sweep sam:rho=0.05,0.1,0.2 ;;
    flat_no_norm) flatness cifar10-no_norm data/cifar10_jpeg --max_train_samples 5000 \
        --examples 256 --batch_size 64 ;;
    frontier) run cub200_first50-frontier --seeds 5 --label_noise 0.4 $METHODS $MORE_METHODS ;;
    clean) mkdir -p runs/cub200_first50-clean # some of whose trials were made for sgd
        cp -rn model_cards/records/cub200_first50-sgd/sweep runs/cub200_first50-clean
        run cub200_first50-clean --seeds 5 $METHODS ;;
    official_flowers) official_flowers ;;
    flowers) bash benchmarks/evidence.sh flowers_short flowers_small flowers_long ;;
    flowers_length)
        official_flowers
        length mobilenetv2_035 "0 1 2" "15 30 60" $SMALL
        length efficientnet_lite0 0 "15 30 60 120" $LITE0
        ;;
    flowers_short) # m16: the paper's m beside one as large as the batch
        official_flowers
        CONFIG=$FLOWERS run oxford_flowers-lite0 --data_dir runs/flowers102 $LITE0 --seeds 5 $GRID \
            --arm m16 m=16
        ;;
    flowers_small) # 30 epochs: twice as many gain 0.3 points, the mean of three seeds (flowers_length)
        official_flowers
        CONFIG=$FLOWERS run oxford_flowers-mobilenet --data_dir runs/flowers102 $SMALL --seeds 5 \
            --num_train_epochs 30 $GRID
        ;;
    flowers_frontier | flowers_frontier40)
        official_flowers
        noise=0 && [ "$part" = flowers_frontier ] || noise=0.4
        if [ $noise = 0 ]; then # some of whose runs were made for flowers_small
            mkdir -p runs/oxford_flowers-frontier
            cp -rn model_cards/records/oxford_flowers-mobilenet/. runs/oxford_flowers-frontier
        fi
        CONFIG=$FLOWERS run "oxford_flowers-frontier${part#flowers_frontier}" $SMALL \
            --data_dir runs/flowers102 --label_noise $noise $FRONTIER
        ;;
    flowers_long)
        official_flowers
        settings=$(chosen oxford_flowers-lite0)
        CONFIG=$FLOWERS run oxford_flowers-lite0-long --data_dir runs/flowers102 $LITE0 --seeds 3 \
            --num_train_epochs $LONG $settings --arms base base_2x sam
        ;;
    flowers_vit)
        official_flowers
        CONFIG=recipes/oxford_flowers/vit_small_patch14.yaml run oxford_flowers-vit --seeds 3 \
            --data_dir runs/flowers102 --image_size 98 --num_train_epochs 8 \
            --weights data/weights/vit_small_patch14_dinov2_fp16.safetensors
        ;;
    cars) # with what Flowers has chosen: a tenth of these images has a standard error of 3 points
        settings=$(chosen oxford_flowers-lite0)
        CONFIG=recipes/stanford_cars/efficientnet_lite0.yaml run stanford_cars-lite0 --seeds 3 \
            --data_dir data/cars_first98 $LITE0 $settings --arms base base_2x sam
        ;;
    *) echo "evidence.sh: no comparison is called $part" >&2 && exit 1 ;;
    esac
done; done
