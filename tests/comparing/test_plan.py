"""The plan of a comparison: its arms, grids, costs, and what it refuses."""

from pathlib import Path

import pytest

from hf_sam.comparing import compare
from hf_sam.comparing.comparison import Trial
from hf_sam.comparing.plan import Arm, parse_plan
from hf_sam.finetuning.record import command_of

IN_FILES = [
    ("holdout: 0.25", "`holdout` is set by the plan"),
    ("seeds: 3", "`seeds` must be on the command line, got it in .*: pass `--seeds`"),
    ("sweep_seed: 3", "unknown option 'sweep_seed' in .*: did you mean --sweep_seeds?"),
]


@pytest.mark.parametrize(("line", "message"), IN_FILES)
def test_a_plan_in_a_file_is_checked_too(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(line)
    with pytest.raises(SystemExit, match=message):
        compare.main(["--config", str(tmp_path / "c.yaml")])


def test_the_folder_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("output_dir: runs/there")
    folders = {
        "": "runs/compare-digits",
        "--data_dir birds/test/..": "runs/compare-birds",
        "--config c.yaml": "runs/there",
        "--config c.yaml --output-dir here": "here",
        "--data_dir . --output_dir ../out": "../out",
    }
    found = {words: str(parse_plan(words.split()).output_dir) for words in folders}
    assert found == folders
    with pytest.raises(ValueError, match="`output_dir` must not be inside `data_dir`, got 'runs/c"):
        parse_plan(["--data_dir", "."])


PLANS = [
    ("", {"base": 1, "base_2x": 2, "sam": 2}),
    ("--max_steps 10", {"base": 1, "base_2x": 2, "sam": 2}),
    ("--max_steps 10 --num_train_epochs 0", {"base": 1, "base_2x": 2, "sam": 2}),
    ("--arms base sam", {"base": 1, "sam": 2}),
    ("--arm mixup rho=0 mixup=0.2", {"base": 1, "base_2x": 2, "sam": 2, "mixup": 1}),
    ("--arm long num_train_epochs=45 --arms long", {"long": 6}),
]


@pytest.mark.parametrize(("options", "costs"), PLANS, ids=[p[0] or "-" for p in PLANS])
def test_arms_and_their_cost(options: str, costs: dict[str, float]) -> None:
    made = parse_plan(options.split())
    assert {arm.name: made.cost(arm.options) for arm in made.arms} == costs


def test_grid_concerns_an_arm_where_it_can() -> None:
    words = "--sweep rho=0.1,0.2 learning_rate=1,2,3 --arm fixed rho=0.3 --arm sgd rho=0"
    made = parse_plan(words.split())
    trials = {arm.name: len(made.trials(arm)) for arm in made.arms}
    assert trials == {"base": 3, "base_2x": 3, "sam": 6, "fixed": 3, "sgd": 3}
    assert parse_plan([]).trials(made.arms[2]) == []
    made = parse_plan(["--sweep", "ascent-fraction=0.5,1"])  # as argparse takes it too
    assert [len(made.trials(arm)) for arm in made.arms] == [0, 0, 2]
    assert made.trials(made.arms[2])[0] == {"ascent_fraction": "0.5"}


def test_an_arm_with_another_network_keeps_the_recipe() -> None:
    words = "--dataset oxford_pets --arm other model=resnet18 --arm scratch init_scratch=true"
    made = parse_plan(words.split())
    epochs = {arm.name: made.parsed(arm.options)[2].num_train_epochs for arm in made.arms}
    assert epochs == {"base": 50, "base_2x": 100, "sam": 50, "other": 50, "scratch": 50}
    shown = command_of("finetune", made.arguments_of({}))  # in the cards
    assert shown.endswith("--dataset oxford_pets --config=oxford_pets/efficientnet_b0.yaml")


REFUSED = [
    ("--rho 0", "`rho` must be > 0 here"),
    ("--seeds 0", "`seeds` must be >= 1"),
    ("--sweep_seeds 0", "`sweep_seeds` must be >= 1"),
    ("--sweep_seeds 2", "`sweep_seeds` has no effect without `--sweep`"),
    ("--sweep_split validation", "`sweep_split` has no effect without `--sweep`"),
    ("--seed 3", "`seed` is set by the plan"),
    ("--data_seed 3", "`data_seed` is set by the plan"),
    ("--auto_find_batch_size", "`auto_find_batch_size` is set by the plan"),
    ("--load_best_model_at_end --eval_strategy epoch", "`load_best_model_at_end` is set by"),
    ("--arm new holdout=0.2", "`holdout` is the same for all arms"),
    ("--arm new hub_token=x", "`hub_token` is the same for all arms"),
    ("--arm new seed=1", "`seed` is the same for all arms"),
    ("--arm ../new rho=1", "`--arm` must have a name of letters and digits"),
    ("--arm rho=0.3", "`--arm` must have a name of letters and digits"),
    ("--arm new model=a/b", "without slashes, got"),
    ("--arm new max_steps=5", "`max_steps` has no effect here"),
    ("--max_steps 9 --arm new num_train_epochs=5", "`num_train_epochs` has no effect here"),
    ("--sweep num_train_epochs=1,2", "`--sweep` must name each option once, and not"),
    ("--sweep rho=0.1 --sweep rho=0.2", "`--sweep` must name each option once"),
    ("--num_train_epochs 0", "`num_train_epochs` must be > 0"),
    ("--config missing.yaml", "cannot be read as YAML"),
    ("--holdout=0.2", "`holdout` is set by the plan, for each run: pass `--eval_share`"),
    ("--arm new eval_share=0.2", "`eval_share` is the same for all arms"),
    ("--arm new eval-split=validation", "`eval_split` is the same for all arms"),
    ("--sweep num-train-epochs=1,2", "`--sweep` must name each option once, and not"),
    ("--arm sam rho=1 --sweep sam:rho=1,2", "must have an effect, got sam:rho, which the arm sam"),
    ("--sweep rho=1 base:rho=1,2", "must have an effect, got base:rho, which the arm base sets"),
    ("--sweep rho=1,2 --arms base", "must have an effect, got rho, which every arm sets itself"),
    ("--sweep rho=1 sam:rho=2", "must have an effect, got rho, which every arm sets itself"),
    ("--arms sma", "`arms` must be of base, base_2x, sam, got sma"),
    ("--sweep rho", "settings must be written NAME=VALUE, without slashes, got rho"),
    ("--sweep smm:rho=1", "`--sweep` must name an arm before the colon, got smm"),
    ("--sweep sam:rho=1 sam:rho=2", "`--sweep` must name each option once"),
    ("--arm new rho=1 seeds=9", "`seeds` of the arm new must be from 1 to 5, got 9"),
    ("--arm new rho=1 seeds=x", "`seeds` of the arm new must be from 1 to 5, got x"),
    ("--sweep roh=1,2", "unknown option --roh"),
    ("--arm new roh=1", "unknown option --roh"),
    ("--learning_rat 1", "unknown option --learning_rat"),
    ("--sweep_seed 3", "unknown option --sweep_seed: did you mean --sweep_seeds?"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[o for o, _ in REFUSED])
def test_refused_before_anything_is_trained(options: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        compare.main([*options.split(), "--output_dir", str(tmp_path / "out")])
    assert message in str(stop.value.code)
    assert not (tmp_path / "out").exists()


def test_settings_are_chosen_by_the_mean_over_seeds() -> None:
    errors = {"0.1": (10.0, 30.0), "0.2": (18.0, 20.0), "0.3": (19.0, 19.0), "0.4": (15.0, 40.0)}
    trials = [
        Trial("sam", {"rho": rho}, error, seed)
        for rho, of_seeds in errors.items()
        for seed, error in enumerate(of_seeds)
    ]
    other = [Trial("asam", {"rho": "0.4"}, 1.0, 0)]
    arm = Arm("sam", {}, range(2))
    assert compare.choose(arm, trials + other) == {"rho": "0.2"}, "the first of equals"
    assert compare.choose(Arm("none", {"rho": "0"}, range(2)), trials) == {"rho": "0"}


def test_an_arm_may_have_a_grid_and_seeds_of_its_own() -> None:
    words = (
        "--sweep rho=0.1,0.2 learning_rate=1,2 base:learning_rate=1,2,3,4 norm:rho=5,6 --seeds 5"
    )
    plan = parse_plan([*words.split(), "--arm", "norm", "perturb=norm", "seeds=3"])
    values = {
        arm.name: (len(arm.seeds), [tuple(point.values()) for point in plan.trials(arm)])
        for arm in plan.arms
    }
    common = [("0.1", "1"), ("0.1", "2"), ("0.2", "1"), ("0.2", "2")]
    assert values == {
        "base": (5, [("1",), ("2",), ("3",), ("4",)]),
        "base_2x": (5, [("1",), ("2",)]),
        "sam": (5, common),
        "norm": (3, [("5", "1"), ("5", "2"), ("6", "1"), ("6", "2")]),
    }
    assert dict(plan.arms[3].options) == {"perturb": "norm"}


def test_values_may_have_colons_and_averages_need_no_sam() -> None:
    words = "--sweep ema:weight_average=ema:0.9,swa:0.5 sam:perturb=last:0.3,last:0.5 rho=0.1"
    plan = parse_plan([*words.split(), "--arm", "ema", "rho=0"])
    trials = {arm.name: plan.trials(arm) for arm in plan.arms}
    assert trials["ema"] == [{"weight_average": "ema:0.9"}, {"weight_average": "swa:0.5"}]
    assert [trial["perturb"] for trial in trials["sam"]] == ["last:0.3", "last:0.5"]


@pytest.mark.parametrize(
    ("options", "cost"),
    [
        ("ascent_interval=5", 1.2),
        ("ascent_start=0.8", 1.2),
        ("ascent_fraction=0.25", 1.25),
        ("method=msam", 1.0),
        ("method=gsam", 2.0),
        ("max_overhead=1.25", 1.25),
        ("method=rst method_args=p=0.5", 1.5),
    ],
)
def test_cost_of_a_method(options: str, cost: float) -> None:
    plan = parse_plan(["--arm", "new", *options.split()])
    assert plan.cost(plan.arms[3].options) == pytest.approx(cost, abs=0.05)
