"""What a run may go on from, what it then may not do, and what is said of it."""

import json
from pathlib import Path

import datasets
import pytest
from images import LABEL_NAMES, TINY, dataset, finetune_on, message_of, pictures, write_parquet

from hf_sam.comparing.plan import parse_plan
from hf_sam.finetuning.checkpoints import last_complete
from hf_sam.finetuning.folder import record_of
from hf_sam.finetuning.options import parse_options

SAVING = ["--save_strategy", "steps", "--save_steps", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    finetune_on(data, folder, *SAVING)
    return folder


def said_of(data: Path, folder: Path, checkpoint: object, *more: str) -> str:
    words = [*TINY, "--data_dir", str(data), "--output_dir", str(folder), *SAVING, *more]
    return message_of([*words, "--resume_from_checkpoint", str(checkpoint)])


def test_weights_alone_are_no_checkpoint(data: Path, run: Path, tmp_path: Path) -> None:
    """From them momentum and schedule would begin anew, without a word."""
    said = said_of(data, tmp_path / "new", run, "--max_steps", "4")
    assert "got " in said and f"pass {str(run / 'checkpoint-2')!r}" in said
    finetune_on(data, tmp_path / "only", *SAVING, "--save_only_model", "true")
    (tmp_path / "only" / "run.json").unlink()
    assert last_complete(tmp_path / "only") is None
    words = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "only")]
    assert "must not hold an earlier run or a model" in message_of(words)
    said = said_of(data, tmp_path / "only", "last", "--save_only_model", "true")
    assert "without the optimizer's state, and passed over: checkpoint-1, checkpoint-2" in said


def test_a_model_in_the_folder_is_not_overwritten(data: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    said = said_of(data, tmp_path, run / "checkpoint-1", "--max_steps", "4")
    assert "`output_dir` must not hold an earlier run or a model" in said
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_a_run_goes_on_from_another_ones_checkpoint(data: Path, run: Path, tmp_path: Path) -> None:
    said = said_of(data, tmp_path / "short", run / "checkpoint-2")
    assert "which is of step 2, got a run of 2 steps: train for longer (`--max" in said
    more = ["--max_steps", "3", "--resume_from_checkpoint", str(run / "checkpoint-2")]
    finetune_on(data, tmp_path / "long", *more)
    assert record_of(tmp_path / "long").train_overhead is not None


def test_a_run_that_has_its_evaluation_left_has_no_overhead(data: Path, tmp_path: Path) -> None:
    finetune_on(data, tmp_path, *SAVING)  # which ends in mid-epoch
    before = record_of(tmp_path)
    assert before.train_overhead > 1
    (tmp_path / "run.json").unlink()
    finetune_on(data, tmp_path, *SAVING, "--resume_from_checkpoint", "last")
    after = record_of(tmp_path)
    assert after.train_overhead is None and after.gradient_evaluations == 4
    assert after.metrics == before.metrics


def test_what_to_do_with_a_finished_run(data: Path, run: Path) -> None:
    words = [*TINY, "--data_dir", str(data), "--output_dir", str(run)]
    assert "`--resume_from_checkpoint last` and more `--max_steps`" in message_of(words)


def test_bad_images_may_be_skipped_after_training(tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "data", ("train",))
    rows = dataset().cast_column("image", datasets.Image(decode=False)).to_list()
    rows[3]["image"] = {"bytes": b"broken", "path": None}
    kinds = datasets.Features({**dataset().features, "image": datasets.Image(decode=False)})
    test = datasets.Dataset.from_list(rows, features=kinds)
    test.cast_column("image", datasets.Image()).to_parquet(data / "test.parquet")
    words = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out"), *SAVING]
    assert "or pass `--skip_bad_images`" in message_of(words)
    again = ["--skip_bad_images", "--resume_from_checkpoint", "last"]
    finetune_on(data, tmp_path / "out", *SAVING, *again)
    assert record_of(tmp_path / "out").eval_examples == len(rows) - 1


def test_best_weights_are_said_to_be_so_where_they_were_loaded(data: Path, tmp_path: Path) -> None:
    best = ["--load_best_model_at_end", "true"]
    each = [*SAVING, "--eval_strategy", "steps", "--eval_steps", "1"]
    options = {
        "loaded": [*best, *each],
        "none to choose from": best,
        "followed": ["--metric_for_best_model", "loss", *each],
    }
    said = {}
    for name, words in options.items():
        finetune_on(data, tmp_path / name, *words)
        said[name] = "did best on this split" in (tmp_path / name / "README.md").read_text()
    assert said == {"loaded": True, "none to choose from": False, "followed": False}


CHECKED = [
    (
        "--metric_for_best_model accuracy",
        "must be one of loss, mean_class_accuracy, top1_error, top5",
    ),
    ("--per_device_eval_batch_size 0", "`per_device_eval_batch_size` must be >= 1, got 0"),
    ("--gradient_accumulation_steps -1", "`gradient_accumulation_steps` must be >= 1, got -1"),
    ("--data_seed -1", "`data_seed` must be >= 0, got -1"),
    ("--learning_rate nan", "`learning_rate` must be a number, got nan"),
    ("--learning_rate inf", "`learning_rate` must be >= 0 and finite, got inf"),
    ("--weight_decay nan", "`weight_decay` must be a number, got nan"),
    ("--label_names label", "`label_names` would leave no labels"),
    ("--eval_do_concat_batches false", "`eval_do_concat_batches` must be true"),
    ("--neftune_noise_alpha 5", "`neftune_noise_alpha` is for models of text"),
    ("--optim_args momentun=0.9", "must name one of momentum, .* for sgd, got 'momentun=0.9'"),
    ("--optim_args momentum", "must be name=value, with commas between, got 'momentum'"),
    ("--optim_args nesterov=ture", "must be name=value, with commas between, got 'nesterov=ture'"),
    ("--lr_scheduler_type warmup_stable_decay", "`lr_scheduler_kwargs` must .* 'num_decay_steps'"),
    ('--lr_scheduler_kwargs {"foo":1}', "must be what cosine takes, got {'foo': 1}"),
    ('--accelerator_config {"foo":1}', "'foo'.*see the JSON of the options"),
    ("--optim_args momentum=x", "must be name=value, with commas between, got 'momentum=x'"),
    ("--optim adamw_torch --optim_args beta1=0.8", "must be left out for adamw_torch, got 'beta1"),
]


@pytest.mark.parametrize(("words", "message"), CHECKED, ids=[words for words, _ in CHECKED])
def test_arguments_are_checked_before_training(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options(words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--report_to wandb", "wandb"),
        ("--optim galore_adamw --optim_target_modules all-linear", "galore_torch"),
    ],
)
def test_what_the_trainer_lacks_is_one_message(
    words: str, message: str, data: Path, tmp_path: Path
) -> None:
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    assert message in message_of([*argv, *words.split()])


def test_folders_below_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shell leaves `~` alone after an equals sign, and so does a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_plan(["--output_dir=~/runs"]).output_dir == tmp_path / "runs"
    data, model, args = parse_options(["--data_dir=~/x", "--weights=~/w", "--output_dir=~/out"])
    assert [data.data_dir, model.weights] == [str(tmp_path / "x"), str(tmp_path / "w")]
    assert args.output_dir == str(tmp_path / "out")
    with pytest.raises(ValueError, match="`output_dir` must name a folder, got none"):
        parse_options(["--output_dir="])


def test_an_option_stands_once_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("rho: 0.1\nmax_steps: 2\nrho: 0.2\n")
    with pytest.raises(ValueError, match="rho is there twice"):
        parse_options(["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("values", ["0.05,0.1,5e-2", "0.1,"])
def test_a_value_stands_once_in_a_sweep(values: str) -> None:
    with pytest.raises(ValueError, match="must name each value of an option once, got rho="):
        parse_plan(["--sweep", f"rho={values}"])


@pytest.mark.parametrize("labels", [[0.0, 1.0], [0.5, 1.25], [0.0, float("nan")]])
def test_labels_that_are_floats(labels: list[float], tmp_path: Path) -> None:
    """So pandas writes integers, where one is missing."""
    for split in ("train", "test"):
        rows = {"image": pictures(12), "label": 6 * labels}
        kinds = {"image": datasets.Image(), "label": datasets.Value("float64")}
        made = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        (tmp_path / "data").mkdir(exist_ok=True)
        made.to_parquet(tmp_path / "data" / f"{split}.parquet")
    if labels == [0.0, 1.0]:
        finetune_on(tmp_path / "data", tmp_path / "out")
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["label_names"] == ["0", "1"]
        return
    said = message_of([*TINY, "--data_dir", str(tmp_path / "data")])
    assert ("must hold class labels, strings or integers, got 0.5" in said) == (labels[0] == 0.5)
    assert ("None stands for a missing" in said) == (labels[0] == 0.0)


def test_splits_within_the_only_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i, name in enumerate(LABEL_NAMES):
            (folder := tmp_path / "data" / "all" / split / "images" / name).mkdir(parents=True)
            for j, picture in enumerate(pictures(4)):
                picture.save(folder / f"{i}{j}.png")
    splits = ["--train_split", "train/images", "--eval_split", "test/images"]
    finetune_on(tmp_path / "data", tmp_path / "out", *splits)
    assert record_of(tmp_path / "out").classes == len(LABEL_NAMES)
