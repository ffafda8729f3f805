"""What only a GPU can show, in one table; without a GPU the same checks run on the CPU.

`python benchmarks/gpu_conformance.py --output benchmarks/gpu_conformance.json`. Each check trains
small models by SAMTrainer and gives an error against something independent, or what it found.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer

TESTS = Path(__file__).parent.parent / "tests" / "support"
sys.path.insert(0, str(TESTS))

import offline  # noqa: E402, F401  # no network
from cases import Recorder, build, make_trainer  # noqa: E402
from observers import fingerprint  # noqa: E402
from overflows import SCALE, Overflows, scaled  # noqa: E402
from sharded import FSDP, fsdp2_on_cpu, full_weights  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
ON_DEVICE = {"use_cpu": not GPU}
RHO, LR, STEPS = 0.5, 0.1, 10


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()])


def relative(found: Tensor, expected: Tensor) -> str:
    return f"{float((found - expected).abs().max() / expected.abs().max()):.1e}"


def trained(
    folder: Path, name: str = "mlp", dtype: torch.dtype = torch.float64, **settings: Any
) -> Trainer:
    trainer = make_trainer(
        build(name, dtype), folder, dtype=dtype, rho=RHO, max_steps=STEPS, **ON_DEVICE | settings
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def gpu_and_cpu(folder: Path) -> str:
    """The same training in float64 on both."""
    if not GPU:
        return "needs a GPU"
    on_gpu, on_cpu = trained(folder), trained(folder, use_cpu=True)
    return relative(weights(on_gpu.model), weights(on_cpu.model))


def dropout_replay(folder: Path) -> str:
    """Every mask of the perturbed passes is that of its clean pass."""
    model, masks = build("dropout"), []
    model.body[3].register_forward_hook(lambda layer, args, out: masks.append(out != 0))
    settings = {"gradient_accumulation_steps": 2, "ascent_scope": "rank", **ON_DEVICE}
    make_trainer(model, folder, max_steps=3, **settings).train()
    pairs = [(i, i + 2) for step in range(3) for i in (4 * step, 4 * step + 1)]
    same = all(torch.equal(masks[i], masks[j]) for i, j in pairs)
    return f"{len(pairs)} masks {'repeated' if same else 'DIFFER'} on {masks[0].device.type}"


def fp16_overflow(folder: Path) -> str:
    """An inf in either pass: the step is skipped, and the scale falls once."""
    found = []
    for calls in ((1,), (2,), (1, 2)):
        model = Overflows(calls)
        before = fingerprint(model.cpu(), "parameters")
        trainer = scaled(model, folder, **ON_DEVICE | ({"fp16": True} if GPU else {}))
        trainer.train()
        found += [
            trainer.accelerator.optimizer_step_was_skipped,
            fingerprint(model.cpu(), "parameters") == before,
            trainer.accelerator.scaler.get_scale() == SCALE / 2,
        ]
    return f"{sum(found)} of {len(found)} as they must be"


def bf16_by_hand(folder: Path) -> str:
    """Autocast, against SAM written as a loop of a dozen lines."""
    recorder = Recorder()
    trainer = trained(folder, dtype=torch.float32, bf16=True, recorder=recorder)
    model = build("mlp", torch.float32).to(DEVICE)
    params = list(model.parameters())
    for batch in recorder.batches[:STEPS]:
        batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = model(**batch)["loss"]
        clean = torch.autograd.grad(loss, params)
        norm = torch.stack([g.norm() for g in clean]).norm()
        kept = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, g in zip(params, clean, strict=True):
                p.add_(RHO * g / norm)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = model(**batch)["loss"]
        descent = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, w, g in zip(params, kept, descent, strict=True):
                p.copy_(w - LR * g)
    return relative(weights(trainer.model), weights(model))


def compiled(folder: Path) -> str:
    """Inductor, against eager."""
    eager = trained(folder, "batch_norm")
    fast = trained(folder, "batch_norm", torch_compile=True)
    return relative(weights(fast.model), weights(eager.model))


def fsdp2(folder: Path) -> str:
    """`accelerate launch --use_fsdp --fsdp_version 2` on all GPUs, or two ranks on the CPU."""
    ranks = torch.cuda.device_count() if GPU else 2
    launch = ["accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes"]
    if not GPU:
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, str(ranks), __file__, "--worker", str(folder / "w.json")],
        env={**os.environ, **({} if GPU else {"ACCELERATE_USE_CPU": "true"})},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if not (folder / "w.json").exists():
        return f"FAILED: {done.stderr[-300:]}"
    sharded = torch.tensor(json.loads((folder / "w.json").read_text()), dtype=torch.float64)
    one = trained(folder, per_device_train_batch_size=8 * ranks, ascent_scope="global")
    return f"{relative(sharded, weights(one.model))} on {ranks} rank(s)"


def work(output: Path) -> None:
    """One rank of `fsdp2`."""
    with fsdp2_on_cpu():
        trainer = trained(output.parent, **FSDP)
    found = full_weights(trainer.model)
    if trainer.is_world_process_zero():
        output.write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


CHECKS: dict[str, Callable[[Path], str]] = {
    "float64, GPU against CPU": gpu_and_cpu,
    "dropout replayed over a window": dropout_replay,
    "fp16 gradient scaler, overflows": fp16_overflow,
    "bf16 autocast against a loop by hand": bf16_by_hand,
    "torch.compile against eager": compiled,
    "FSDP2 against one process": fsdp2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write the table as JSON, too")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    device = torch.cuda.get_device_name() if GPU else "CPU"
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    found: dict[str, str] = {}
    for name, check in CHECKS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = check(Path(folder))
        print(f"| {name} | {found[name]} |", flush=True)
    result = {"date": str(date.today()), "device": device, "versions": versions, "checks": found}
    print(json.dumps({key: result[key] for key in ("date", "device", "versions")}))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
