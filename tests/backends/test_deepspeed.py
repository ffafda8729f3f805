"""DeepSpeed on two gloo ranks: whole trainings under ZeRO, and what each must leave.

What every combination computes is in the matrix (tests/trainer/test_matrix.py).
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import patience
import pytest
import ranks
import timm
import torch
from deepspeed_checkpointing import KINDS
from deepspeed_runs import STAGES
from places import ROOT, SUPPORT
from transformers import AutoModelForImageClassification

from hf_sam.backends.deepspeed import DeepSpeed

Reports = Mapping[str, list[Any]]
ON_EACH_STAGE = pytest.mark.parametrize("stage", STAGES)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    pytest.importorskip("deepspeed")
    with ranks.launched(2, "deepspeed", tmp_path_factory.mktemp("deepspeed")) as reports:
        yield reports


@ON_EACH_STAGE
@pytest.mark.parametrize(
    "check",
    [
        "rho_zero",
        "resumed",
        "checkpoint",
        "evaluated",
        "fp32_of_checkpoint",
        "best_model",
        "own_optimizer",
    ],
)
def test_nothing_differs(check: str, stage: int, reports: Reports) -> None:
    """From the plain Trainer, the run that was not interrupted or evaluated, the checkpoint."""
    for found in reports[f"{check}_differs, {stage}"]:
        assert found in ([], 0.0)


@pytest.mark.parametrize("stage", ["2", pytest.param("3", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_bit_for_bit(stage: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    killed, revived = tmp_path / "killed", tmp_path / "revived"
    killed.mkdir(), revived.mkdir()
    with pytest.raises(RuntimeError, match="SIGKILL|Signal 9"):
        ranks.launch(2, "deepspeed killed", killed, stage)
    reports = ranks.launch(2, "deepspeed revived", revived, str(killed / "run"), stage)
    assert reports["resumed"] == [[], []]


@ON_EACH_STAGE
@pytest.mark.parametrize(
    "fault", [*(f"fault {call}" for call in (9, 10, 11, 12)), "Ctrl-C", "fault in backward"]
)
def test_an_exception_leaves_weights_and_evaluation(
    fault: str, stage: int, reports: Reports
) -> None:
    """In a clean pass (9, 10) or a perturbed one: both copies of the weights are as before."""
    assert reports[f"{fault}, {stage}"] == [[], []]


@ON_EACH_STAGE
@pytest.mark.parametrize("call", [1, 2])
def test_an_overflow_skips_the_step_once(call: int, stage: int, reports: Reports) -> None:
    """In either pass: the loss scale is halved once and the weights are as before."""
    assert reports[f"overflow {call}, {stage}"] == [[], []]


@ON_EACH_STAGE
def test_what_bf16_leaves_of_a_perturbation(stage: int, reports: Reports) -> None:
    for stopped, small, large, autocast in zip(
        *(reports[f"bf16, rho {rho}, {stage}"] for rho in (0.001, 0.005, 0.5)),
        reports[f"autocast, {stage}"],
        strict=True,
    ):
        assert "`torch_autocast` in its config, in place of `bf16`" in stopped["message"]
        assert 0.5 < small["perturbation_cosine"] < 0.95
        assert large["perturbation_cosine"] > 0.999
        assert abs(large["perturbation_fidelity"] - 1) < 0.01
        assert autocast["perturbation_cosine"] is None  # float32 weights: nothing is rounded away
        assert autocast["sharpness"] > 0.1


@ON_EACH_STAGE
def test_what_is_communicated(stage: int, reports: Reports) -> None:
    """Twice the reductions of gradients, and one more gathering of the weights for each step."""
    steps, parameters = 6, 6 * 12 + 12 + 12 * 4 + 4
    padded = parameters + parameters % 2
    for plain, sam in zip(
        reports[f"bytes, rho 0.0, {stage}"], reports[f"bytes, rho 0.5, {stage}"], strict=True
    ):
        more = {name: sam[name] - plain.get(name, 0) for name in sam}
        assert set(sam) == set(plain)
        gathered = more.pop("_allgather_base_")
        reduced = more.pop("_reduce_scatter_base_" if stage == 3 else "allreduce_")
        assert not any(more.values())
        # in float32, in and out: each rank's half goes in and the whole comes out
        assert gathered > 0
        assert reduced > 0
        assert gathered <= steps * 6 * padded * (1 if stage < 3 else 2)
        micro_batches = 1 if stage == 1 else 2
        assert reduced <= steps * micro_batches * 6 * padded + 100


@ON_EACH_STAGE
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_memory_is_that_of_the_plain_trainer(dtype: str, stage: int, reports: Reports) -> None:
    """In bytes for each parameter; a rank's part of gradient or weights would be 1 or 2."""
    for extra in reports[f"memory, {dtype}, {stage}"]:
        assert abs(extra["between steps"]) < 0.01
        assert abs(extra["in a pass"]) < 0.3  # a layer, which gloo's threads may hold longer


def test_memory_of_a_clean_gradient_that_is_kept(reports: Reports) -> None:
    """GSAM's descent needs it: this rank's half, in float32."""
    for extra in reports["memory, gsam, 2"]:
        assert abs(extra["between steps"]) < 0.01
        assert abs(extra["in a pass"] - 2) < 0.3


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_its_own_activation_checkpointing(kind: str, stage: int, reports: Reports) -> None:
    """Under dropout; each of the two blocks is computed twice as often."""
    for found in reports[f"checkpointed {kind}, {stage}"]:
        assert found["error"] < 1e-6  # sums in another order, in float32
        passes = 4 * 2 * 2  # steps, micro-batches, of SAM
        assert found["calls"] == [[passes, passes], [2 * passes, 2 * passes]]


def test_what_cannot_be_had_is_refused(reports: Reports) -> None:
    for message in reports["refused: hpZ"]:
        assert "got `zero_hpz_partition_size`: leave it out" in message
    for message in reports["refused: average"]:
        assert message.startswith("`weight_average` must keep a copy of the weights, got DeepSp")
    for message in reports["refused: stage 0 in bf16"]:
        assert "got bf16 or fp16 in stage 0 of ZeRO (stage 1 has it)" in message


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_recipe_is_launched_with_our_configuration(stage: int, tmp_path: Path) -> None:
    """By `accelerate launch` on two processes, to a model that both libraries load."""
    pytest.importorskip("deepspeed")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    config = ["--config_file", f"accelerate_configs/deepspeed_zero{stage}.yaml"]
    recipe = [str(SUPPORT / "deepspeed_cpu.py"), "recipes/finetune.py", "--dataset", "digits"]
    options = ["--max_steps", "4", "--max_eval_samples", "32", "--output_dir", str(tmp_path)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    patience.run(
        ["env", "--chdir", str(ROOT), *launch, *config, *recipe, *options],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    ours = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = torch.randn(2, *timm.data.resolve_model_data_config(theirs)["input_size"])
    torch.testing.assert_close(ours(pixels).logits, theirs(pixels))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["gradient_evaluations"] == 8
    assert record["hardware"] == "CPU, 2 x 1 threads"  # and not one process twice


class AdamW:
    """An optimizer whose name says nothing."""


def offloaded(**how: Any) -> dict[str, Any]:
    return {"config": {"zero_optimization": {"offload_optimizer": {"device": "cpu", **how}}}}


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "a mixture of experts": {"has_moe_layers": True},
    "Muon (it moves its momentum": {"optimizer": type("MuonWithAuxAdam", (), {})()},
    "onebitadam, which compresses": {"optimizer": type("OnebitAdam", (), {})()},
    "quantised weights of ZeRO++": {"zero_quantized_weights": lambda: True},
    "quantised gradients of ZeRO++": {"zero_quantized_gradients": lambda: True},
    "offload to NVMe": offloaded(device="nvme"),
    "SuperOffload (it steps": offloaded(super_offload=True),
    "an offload `ratio` below 1": offloaded(ratio=0.5),
    "`round_robin_gradients`": {"config": {"zero_optimization": {"round_robin_gradients": True}}},
    "`grad_accum_dtype` in stage 1": {"optimizer": type("BF16_Optimizer", (), {})()},
    "`torch_autocast` to float16 in": {"torch_autocast_z0_gradscaler": object()},
    "ZenFlow": {"zenflow": True},
    "DeepCompile": {"is_deepcompile_enabled": lambda: True},
}


@pytest.mark.parametrize("asked", UNSUPPORTED)
def test_what_its_engine_would_get_wrong_is_refused(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what an engine says of itself: most of it needs a GPU to be started."""
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(PipelineEngine=int))
    usual = dict.fromkeys(
        ("zero_quantized_weights", "zero_quantized_gradients", "fp16_enabled", "bfloat16_enabled"),
        lambda: False,
    )
    usual |= {"zero_quantized_nontrainable_weights": lambda: False, "has_moe_layers": False}
    usual |= {"zero_hpz_partition_size": lambda: 1, "zenflow": False, "config": {}}
    usual |= {"is_deepcompile_enabled": lambda: False, "zero_optimization_stage": lambda: 0}
    usual |= {"optimizer": AdamW(), "torch_autocast_z0_gradscaler": None}
    given = {"scope": None, "accumulation": 1, "ranks": 2}
    DeepSpeed(SimpleNamespace(**usual)).require_supported({}, **given)
    with pytest.raises(ValueError, match="got .*: leave it out of the DeepSpeed config") as error:
        DeepSpeed(SimpleNamespace(**{**usual, **UNSUPPORTED[asked]})).require_supported({}, **given)
    assert f"got {asked}" in str(error.value)
