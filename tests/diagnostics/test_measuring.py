"""What a measurement leaves behind: nothing."""

import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import build
from measured import MEASUREMENTS, batches, pairs_of_images
from tiny_transformers import texts, vit
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from hf_sam.diagnostics import (
    hessian,
    measuring,
    sharpness,
)
from hf_sam.reporting.codec import encode
from hf_sam.vision import freeze_batch_norm


def draws() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()


class Counts(nn.Module):
    """Counts its calls in a buffer, in eval mode too, and draws a mask there."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build("batch_norm")
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return self.body(x * torch.bernoulli(torch.full_like(x, 0.8)), labels)


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
@pytest.mark.parametrize("make", [lambda: build("dropout_and_batch_norm"), Counts])
def test_everything_is_as_it_was(
    measure: Callable[[nn.Module, Any], Any], make: Callable[[], nn.Module]
) -> None:
    model = make().train()
    list(model.modules())[2].eval()  # a mixture of modes
    assert {module.training for module in model.modules()} == {True, False}
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {n: (t, t.data_ptr(), t.clone(), t.grad) for n, t in tensors.items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    modes, state = [m.training for m in model.modules()], draws()
    with torch.no_grad():  # as in an evaluation
        measure(model, batches(24, 24))
    for name, (tensor, pointer, value, grad) in before.items():
        now = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name]
        assert now is tensor and now.data_ptr() == pointer and now.grad is grad
        assert torch.equal(now, value), name
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [m.training for m in model.modules()] == modes
    after = draws()
    assert torch.equal(after[0], state[0]) and after[1:] == state[1:]


def test_draws_of_the_forward_pass_are_the_same_at_all_weights() -> None:
    """Or a loss near the weights would differ by its mask, not by the weights."""
    with measuring(Counts(), batches(48)) as objective:
        values = {objective.mean_loss(objective.weights) for _ in range(3)}
    assert len(values) == 1


def test_modes_return_after_an_error() -> None:
    model = build("dropout").train()

    def fails(model: nn.Module, batch: Any) -> Tensor:
        raise RuntimeError("out of memory")

    state = draws()
    with pytest.raises(RuntimeError, match="out of memory"):
        sharpness(model, batches(48), fails)
    assert all(module.training for module in model.modules())
    assert torch.equal(draws()[0], state[0])


def test_says_what_batch_norm_did() -> None:
    assert "running statistics" in sharpness(build("batch_norm"), batches(48)).setup.mode
    assert "no BatchNorm" in sharpness(build("mlp"), batches(48)).setup.mode
    whole = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 4)).double()
    pairs = [(b["x"], b["labels"]) for b in batches(48)]
    assert "of the batch" in sharpness(whole, pairs, progress=False).setup.mode


def test_shuffled_loaders_give_the_same_batches_for_a_seed() -> None:
    data = list(zip(batches(48)[0]["x"], batches(48)[0]["labels"], strict=True))
    loader = DataLoader(data, batch_size=8, shuffle=True)
    model = build("mlp").body
    one, again, other = (
        sharpness(model, loader, max_batches=2, seed=seed, progress=False) for seed in (1, 1, 2)
    )
    assert one == again and one.setup.loss != other.setup.loss


def test_a_generator_of_the_batches_is_seeded_and_returns() -> None:
    data = list(zip(batches(48)[0]["x"], batches(48)[0]["labels"], strict=True))
    generator = torch.Generator().manual_seed(5)
    order = BatchSampler(RandomSampler(data, generator=generator), 8, drop_last=False)
    loader, state = DataLoader(data, batch_sampler=order), generator.get_state()
    model = build("mlp").body
    one, again = (sharpness(model, loader, max_batches=1, progress=False) for _ in range(2))
    assert one == again and torch.equal(generator.get_state(), state)


class FeatureBatchNorm(nn.Module):
    """Holds a BatchNorm, as wrappers of transformers' models for time series do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def test_modules_called_batch_norm_may_be_others() -> None:
    model = nn.Sequential(FeatureBatchNorm(), nn.Linear(6, 4)).double()
    pairs = [(b["x"], b["labels"]) for b in batches(48)]
    assert "running statistics" in sharpness(model, pairs, progress=False).setup.mode


def test_random_directions_may_overflow() -> None:
    found = sharpness(build("mlp", torch.float32), batches(48, dtype=torch.float32), sigma=1e38)
    assert math.isnan(found.average.half_width) and not math.isfinite(found.average.mean)


def test_compiled_and_wrapped_models_are_looked_through() -> None:
    model = build("mlp")
    plain = hessian(model, batches(48), trace_probes=0, progress=False)
    compiled = hessian(torch.compile(model), batches(48), trace_probes=0, progress=False)
    np.testing.assert_array_equal(compiled.eigenvalues, plain.eigenvalues)
    model.compile()
    in_place = hessian(model, batches(48), trace_probes=0, progress=False)
    np.testing.assert_array_equal(in_place.eigenvalues, plain.eigenvalues)
    wrapped = hessian(nn.DataParallel(model), batches(48), trace_probes=0, progress=False)
    assert wrapped.setup == plain.setup
    np.testing.assert_array_equal(wrapped.eigenvalues, plain.eigenvalues)


def test_frozen_batch_norm_is_measured_with_its_running_statistics() -> None:
    """Which its hook sets at each forward pass; the modes return all the same."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))
    model.double().train()(pairs_of_images(48)[0][0])
    plain = sharpness(model, pairs_of_images(), progress=False)
    freeze_batch_norm(model)
    assert sharpness(model, pairs_of_images(), progress=False) == plain
    assert all(module.training for module in model.modules())


def test_transformers_models_are_measured_by_their_own_loss() -> None:
    model = vit(0.1).train()
    data = [{"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.arange(4)}]
    with torch.no_grad():
        expected = float(model.eval()(**data[0]).loss)
    assert sharpness(model.train(), data, progress=False).setup.loss == pytest.approx(expected)


class Scales(nn.Module):
    """Changes its inputs in place, as some models normalise theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build("mlp")

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return self.body(x.mul_(1.1), labels)


def test_inputs_changed_in_place_are_changed_once() -> None:
    data = batches(48)
    kept = data[0]["x"].clone()
    found = sharpness(Scales(), data, progress=False)
    assert torch.equal(data[0]["x"], kept)
    scaled = [{**data[0], "x": 1.1 * kept}]
    assert found.average == sharpness(build("mlp"), scaled, progress=False).average


class Tokens(nn.Module):
    """The mean over tokens that count: batches are not the mean of their halves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(16, 5, dtype=torch.float64)
        self.head = nn.Linear(5, 16, dtype=torch.float64)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.table(input_ids).tanh())
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def test_hessian_is_that_of_the_loss_of_whole_batches() -> None:
    model = Tokens()
    rows = texts(12)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    weights = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in weights.values()]

    def loss(vector: Tensor) -> Tensor:
        pieces = zip(weights.items(), vector.split(sizes), strict=True)
        state = {name: piece.view_as(p) for (name, p), piece in pieces}
        return torch.func.functional_call(model, state, (), batch)["loss"]

    at = torch.cat([p.reshape(-1) for p in weights.values()])
    expected = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, at))[-1]
    found = hessian(model, [batch], tolerance=0, trace_probes=0, progress=False)
    assert found.lambda_max == pytest.approx(float(expected), abs=1e-10)


class Checkpointed(nn.Module):
    """Computes its body again when it differentiates, in eval mode too, as timm's networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build("mlp").body

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)
        return {"loss": nn.functional.cross_entropy(logits, labels)}


def test_activation_checkpointing_sees_the_moved_weights() -> None:
    for measure in (MEASUREMENTS["sharpness"], MEASUREMENTS["hessian"], MEASUREMENTS["rho_scan"]):
        found, expected = measure(Checkpointed(), batches(48)), measure(build("mlp"), batches(48))
        assert json.dumps(encode(found)) == json.dumps(encode(expected))


class MergesOnEval(nn.Linear):
    """Changes its weights in `eval()`, as loralib's layers do."""

    def train(self, mode: bool = True) -> "MergesOnEval":
        if not mode:
            self.weight.data.add_(1)
        return super().train(mode)


def test_models_are_not_told_to_change_modes() -> None:
    model = nn.Sequential(MergesOnEval(6, 4)).double()
    before = model[0].weight.detach().clone()
    sharpness(model, [(b["x"], b["labels"]) for b in batches(48)], progress=False)
    assert torch.equal(model[0].weight, before) and model.training


def test_all_generators_follow_the_seed_and_return() -> None:
    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 48

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            row = batches(48)[0]
            noise = torch.randn(6) * np.random.rand() * random.random()
            return row["x"][i] + noise, row["labels"][i]

    own = torch.Generator().manual_seed(5)
    loader = DataLoader(Noisy(), batch_size=16, shuffle=True, generator=own)
    state, model = own.get_state(), build("mlp").body
    one = sharpness(model, loader, seed=3, progress=False)
    assert torch.equal(own.get_state(), state)
    np.random.seed(7)
    random.seed(8)
    own.manual_seed(9)
    assert sharpness(model, loader, seed=3, progress=False) == one


def test_default_dtype_does_not_change_the_draws() -> None:
    model = build("mlp")
    one = sharpness(model, batches(48), progress=False)
    torch.set_default_dtype(torch.float64)
    try:
        assert sharpness(model, batches(48), progress=False) == one
    finally:
        torch.set_default_dtype(torch.float32)


def test_scalars_in_a_batch_are_not_its_size() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return batch["scale"] * model(batch["x"], batch["labels"])["loss"]

    data = [{"scale": torch.tensor(1.0), **batch} for batch in batches(40, 8)]
    found = sharpness(build("mlp"), data, loss, progress=False)
    assert found == sharpness(build("mlp"), batches(40, 8), progress=False)


def test_batches_of_inference_mode_are_taken() -> None:
    with torch.inference_mode():
        found = sharpness(build("mlp"), batches(48), progress=False)
    assert found == sharpness(build("mlp"), batches(48), progress=False)
