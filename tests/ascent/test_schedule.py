"""When SAM ascends, and which parameters it moves: against formulas and equations typed here."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracles
import pytest
import scenarios
import timm
import torch
from cases import build, make_trainer
from counters import CountPasses
from observers import fingerprint
from scenarios import PLAIN
from tiny_transformers import SIZES, TEXT_SIZES, llama, t5
from torch import nn
from trajectory import FLOAT64, STEPS, errors
from transformers import TrainerCallback

from hf_sam import SAMConfig
from hf_sam.ascent.schedule import AscentSchedule, steps_of
from hf_sam.ascent.selection import perturbed_parameters

assert STEPS == 20
WARMUP = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4}

# What the user sets, and the share of rho at each of 20 steps that it stands for.
SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "every third": ({"ascent_interval": 3}, lambda t: t % 3 == 0),
    "from a third on": ({"ascent_start": 0.33}, lambda t: t >= 7),
    "from step 7 on": ({"ascent_start": 7}, lambda t: t >= 7),
    "every second from 5 on": (
        {"ascent_interval": 2, "ascent_start": 5},
        lambda t: t >= 5 and t % 2 == 1,
    ),
    "linear": ({"rho_schedule": "linear"}, lambda t: 1 - t / 20),
    "cosine": ({"rho_schedule": "cosine"}, lambda t: (1 + math.cos(math.pi * t / 20)) / 2),
    "linear from a half on": (
        {"rho_schedule": "linear", "ascent_start": 0.5},
        lambda t: (20 - t) / 10 if t >= 10 else 0,
    ),
    "constant, whatever the warm-up": (WARMUP, lambda t: 1.0),
    "cosine after the warm-up, every fifth": (
        {"rho_schedule": "cosine", "ascent_interval": 5, **WARMUP},
        lambda t: (1 + math.cos(math.pi * (t - 4) / 16)) / 2 if t in (4, 9, 14, 19) else 0,
    ),
}
TABLE = pytest.mark.parametrize("name", SCHEDULES)


def made(settings: dict[str, Any]) -> AscentSchedule:
    config = SAMConfig(output_dir="unused", **settings)
    return AscentSchedule(
        interval=config.ascent_interval,
        start=steps_of(config.ascent_start, STEPS),
        shape=config.rho_schedule,
        warmup=config.get_warmup_steps(STEPS),
        total=STEPS,
    )


@TABLE
def test_share_of_rho_and_number_of_ascents(name: str) -> None:
    settings, share = SCHEDULES[name]
    schedule = made(settings)
    shares = [schedule.share_at(step) for step in range(STEPS)]
    assert shares == pytest.approx([float(share(step)) for step in range(STEPS)], abs=1e-12)
    for steps in range(STEPS + 1):
        assert schedule.ascents(steps) == sum(value > 0 for value in shares[:steps])
    beyond = [schedule.share_at(step) for step in range(STEPS, 3 * STEPS)]
    assert min(beyond) >= 0, "never negative"


@pytest.mark.parametrize("model", ["mlp", "dropout_and_batch_norm"])
@TABLE
def test_twenty_steps_equal_the_oracle(name: str, model: str, tmp_path: Path) -> None:
    settings, share = SCHEDULES[name]
    if "warmup_steps" in settings:
        settings = {**settings, "lr_scheduler_type": "constant", "warmup_steps": 4}
    sam = {"rho": 0.2, **settings}
    for accumulation in (1, 2):
        largest, _ = errors(
            build(model),
            tmp_path / str(accumulation),
            sam=dict(sam),
            expected={"share": share},
            optimizer="sgd with momentum",
            accumulation=accumulation,
        )
        assert largest < FLOAT64


@TABLE
def test_passes_are_those_that_are_documented(name: str, tmp_path: Path) -> None:
    settings, share = SCHEDULES[name]
    trainer = make_trainer(build("mlp"), tmp_path, gradient_accumulation_steps=2, **settings)
    counter = CountPasses(trainer.model)
    trainer.train()
    ascents = sum(share(step) > 0 for step in range(STEPS))
    assert trainer.gradient_evaluations == STEPS + ascents
    assert counter.passes == 2 * trainer.gradient_evaluations


def test_without_an_ascent_it_is_the_plain_trainer_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = []
    for kind in ({"ascent_start": 20}, {"rho_schedule": "linear", "warmup_steps": 20}, PLAIN):
        settings = {"warmup_steps": 20 if "warmup_steps" in kind else 0, **kind}
        trainer = make_trainer(build("dropout_and_batch_norm"), tmp_path, **settings)
        trainer.train()
        assert ("SAM will never be active" in caplog.text) == (kind is not PLAIN)
        caplog.clear()
        assert not any("sharpness" in entry for entry in trainer.state.log_history)
        if "warmup_steps" not in kind:
            weights.append(fingerprint(trainer.model))
    assert weights[0] == weights[1]


def test_the_log_is_of_the_steps_that_ascend(tmp_path: Path) -> None:
    settings = {"ascent_interval": 3, "logging_steps": 1, "max_steps": 6}
    trainer = make_trainer(build("mlp"), tmp_path, **settings)
    trainer.train()
    log = trainer.state.log_history[:6]
    assert ["sharpness" in entry for entry in log] == [True, False, False] * 2
    whole = make_trainer(build("mlp"), tmp_path, **{**settings, "logging_steps": 6})
    whole.train()
    mean = (log[0]["sharpness"] + log[3]["sharpness"]) / 2
    assert whole.state.log_history[0]["sharpness"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("scope", ["micro_batch", "global"])
def test_resumed_is_bit_for_bit(scope: str, tmp_path: Path) -> None:
    settings = {"ascent_interval": 3, "ascent_start": 0.2, "rho_schedule": "cosine"}
    assert scenarios.resumed_differs(scope, tmp_path / "run", **settings) == []


PERTURBED = [
    ("batch_norm", "norm", lambda name: name.startswith("body.1.")),
    ("batch_norm", "body.0,body.3", lambda name: name.startswith(("body.0.", "body.3."))),
    ("tied", "body.0", lambda name: name.startswith("body.0.")),
    ("dropout_and_batch_norm", "body", lambda name: True),
    ("mlp", "last:0.5", lambda name: name.startswith("body.2.")),
]


@pytest.mark.parametrize(("model", "perturb", "chosen"), PERTURBED, ids=[p[1] for p in PERTURBED])
def test_only_chosen_parameters_move(
    model: str, perturb: str, chosen: Callable[[str], bool], tmp_path: Path
) -> None:
    moved = oracles.name_mask(build(model), chosen)
    assert moved.any()
    sam = {"rho": 0.5, "perturb": perturb}
    largest, _ = errors(build(model), tmp_path, sam=sam, expected={"moved": moved}, accumulation=2)
    assert largest < FLOAT64


def named(model: nn.Module, perturb: str) -> set[str]:
    chosen = perturbed_parameters(model, perturb)
    return {name for name, param in model.named_parameters() if param in chosen}


NORMS = [
    ("mobilenetv2_035", r".*(bn\d|\.bn\d)\.(weight|bias)"),
    ("test_vit", r".*norm\d?\.(weight|bias)"),
    ("test_convnext", r".*(norm|stem\.1|downsample\.0)\.(weight|bias)"),
    ("test_nfnet", None),
    ("dm_nfnet_f0", None),  # whose NormFreeBlock has a gain of its own
]


@pytest.mark.parametrize(("name", "pattern"), NORMS, ids=[n for n, _ in NORMS])
def test_normalisation_layers_of_timm(name: str, pattern: str | None) -> None:
    model = timm.create_model(name)
    if pattern is None:
        with pytest.raises(ValueError, match="has none in this model"):
            perturbed_parameters(model, "norm")
        return
    expected = {n for n, _ in model.named_parameters() if re.fullmatch(pattern, n)}
    assert named(model, "norm") == expected
    assert len(expected) > 2


@pytest.mark.parametrize("make", [llama, t5], ids=["llama", "t5"])
def test_normalisation_layers_of_transformers(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert SIZES.items() <= TEXT_SIZES.items()
    expected = {n for n, p in model.named_parameters() if p.ndim == 1}  # these have no biases
    assert named(model, "norm") == expected != set()


def test_something_that_is_trained_must_be_chosen() -> None:
    model = build("batch_norm")
    model.body[1].bias.requires_grad_(False)
    assert named(model, "norm") == {"body.1.weight", "body.1.bias"}
    model.body[1].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="`perturb` must choose parameters that are trained"):
        perturbed_parameters(model, "norm")


@pytest.mark.parametrize("perturb", ["all", "norm", "body.1"])
def test_what_is_trained_later_is_perturbed_from_then_on(perturb: str, tmp_path: Path) -> None:
    class Unfreeze(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bias.requires_grad_(state.global_step >= 5)

    model = build("batch_norm")
    bias, seen = model.body[1].bias, []
    model.register_forward_pre_hook(lambda *_: seen.append(bias.detach().clone()))
    trainer = make_trainer(model, tmp_path, perturb=perturb, max_steps=10)
    trainer.add_callback(Unfreeze())
    trainer.create_optimizer()  # of the bias too, which is frozen when training starts
    bias.requires_grad_(False)
    trainer.train()
    passes = zip(seen[::2], seen[1::2], strict=True)
    moved = [not torch.equal(clean, perturbed) for clean, perturbed in passes]
    assert moved == [False] * 5 + [True] * 5


def test_names_of_modules_may_be_spaced() -> None:
    model = build("mlp")
    assert named(model, "body.0, body.2") == named(model, "body")
    assert named(model, "body.2") == {"body.2.weight", "body.2.bias"}


@pytest.mark.parametrize(
    ("perturb", "message"),
    [
        ("bdy.0", "got 'bdy.0': did you mean body.0"),
        ("body.0,", "got '': it has body."),
        ("norm,body.0", "norm or last:share alone, or names of the model's modules, got 'norm'"),
    ],
)
def test_unknown_modules_are_named_with_what_is_near(
    perturb: str, message: str, tmp_path: Path
) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, perturb=perturb)
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.train()


def test_a_module_is_found_by_the_last_part_of_its_name() -> None:
    with pytest.raises(ValueError, match="got 'bn1': did you mean stem.bn1 or"):
        perturbed_parameters(nn.ModuleDict({"stem": timm.create_model("mobilenetv2_035")}), "bn1")


REFUSED = [
    ({"ascent_interval": 0}, "`ascent_interval` must be a whole number >= 1, got 0"),
    ({"ascent_interval": 1.5}, "`ascent_interval` must be a whole number >= 1, got 1.5"),
    ({"ascent_start": -0.1}, "`ascent_start` must be >= 0, got -0.1"),
    ({"ascent_start": math.nan}, "`ascent_start` must be >= 0, got nan"),
    ({"ascent_start": 1.5}, "a share below 1 or whole steps, got 1.5"),
    ({"rho_schedule": "cosin"}, "`rho_schedule` must be one of constant, linear, cosine"),
    ({"perturb": ""}, "`perturb` must be all, norm, last:share or names of modules, got ''"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(s) for s, _ in REFUSED])
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SAMConfig(output_dir="unused", **settings)
