"""What only a GPU can show: its own generator repeats, and the mathematics is that of the CPU."""

from pathlib import Path

import pytest
import torch
from cases import build, examples, make_trainer
from measured import batches

from hf_sam.diagnostics import hessian, sharpness

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_dropout_on_the_gpu_repeats(tmp_path: Path) -> None:
    model, kept = build("dropout", torch.float32), []
    model.body[3].register_forward_hook(lambda layer, args, out: kept.append(out != 0))
    make_trainer(model, tmp_path, dtype=torch.float32, max_steps=3, use_cpu=False).train()
    assert all(torch.equal(kept[i], kept[i + 1]) for i in (0, 2, 4))
    assert not torch.equal(kept[0], kept[2])


def test_gpu_and_cpu_agree(tmp_path: Path) -> None:
    weights = []
    for use_cpu in (True, False):
        model = build("batch_norm")
        make_trainer(model, tmp_path, use_cpu=use_cpu, data=examples()).train()
        weights.append(torch.cat([p.detach().cpu().flatten() for p in model.parameters()]))
    # float64; the order of sums differs
    torch.testing.assert_close(*weights, rtol=0, atol=1e-10)


def test_fp16_overflow_skips_the_step(tmp_path: Path) -> None:
    """A loss scale of 2^40 overflows at once: the weights stay until the scale has come down."""
    model = build("mlp", torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    trainer = make_trainer(
        model, tmp_path, dtype=torch.float32, max_steps=3, use_cpu=False, fp16=True
    )
    trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    trainer.train()
    after = [p.detach().cpu() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_diagnostics_agree_with_the_cpu_and_leave_the_gpus_draws_alone() -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = build("batch_norm").to(device)
        before = torch.cuda.get_rng_state()
        curvature = hessian(model, batches(16, 32), density_probes=1, progress=False)
        flatness = sharpness(model, batches(16, 32), m=(7,), progress=False)
        assert torch.equal(torch.cuda.get_rng_state(), before)
        found.append([*curvature.eigenvalues, curvature.trace.mean, flatness.average.mean])
        found[-1] += [flatness.worst_case_steps, flatness.adaptive, flatness.by_m[7]]
    # float64, the same draws; the order of sums differs
    torch.testing.assert_close(*map(torch.tensor, found), rtol=0, atol=1e-8)
