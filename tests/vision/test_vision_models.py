"""Classifiers from every source, and saved folders that two libraries load."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from images import LABEL_NAMES, TINY, pictures, write_parquet
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_sam.finetuning import finetune
from hf_sam.finetuning.options import parse_options
from hf_sam.finetuning.resolved import image_size
from hf_sam.vision import ModelSource, load_classifier


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data"))


def logits(model: Any, images: torch.Tensor) -> torch.Tensor:
    for tensor in (*model.parameters(), *model.buffers()):
        # loading leaves them in the mapped file, at addresses where kernels round apart
        tensor.data = tensor.data.clone()
    with torch.no_grad():
        out = model.eval()(images)
    return out if isinstance(out, torch.Tensor) else out.logits


def backbone(path: Path) -> Path:
    """A weights file without its head, as backbones are published."""
    torch.manual_seed(3)
    state = timm.create_model("test_resnet").state_dict()
    save_file({n: t for n, t in state.items() if not n.startswith("fc.")}, path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model", "test_vit"],
        ["--model", "test_efficientnet", "--model_kwargs", '{"drop_rate": 0.1}'],
        ["--model", "mobilenetv2_035", "--model_kwargs", '{"pad_type": "same", "bn_eps": 1e-3}'],
        ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25", "--no_channels_last"],
        ["--weights"],
    ],
    ids=str,
)
def test_saved_model_loads_in_both_libraries(
    options: list[str], data: Path, tmp_path: Path
) -> None:
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out"), *options]
    if options == ["--weights"]:
        argv[-1:] = ["--weights", str(backbone(tmp_path / "w.safetensors"))]
        argv.remove("--init_scratch")
    parsed = parse_options(argv)
    run = finetune.load(*parsed)
    trainer = finetune.build_trainer(parsed[0], parsed[2], run)
    trainer.train()
    trainer.save_model()
    out = tmp_path / "out"
    images = torch.randn(2, 3, 32, 32)
    trained = run.classifier.model.to(memory_format=torch.contiguous_format)
    expected = logits(trained, images)
    wrapped = AutoModelForImageClassification.from_pretrained(out)
    assert torch.equal(logits(wrapped, images), expected)
    assert wrapped.config.id2label == dict(enumerate(LABEL_NAMES))
    plain = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert torch.equal(logits(plain, images), expected)
    # both libraries prepare images as training did
    config = timm.data.resolve_data_config({}, pretrained_cfg=plain.pretrained_cfg)
    assert tuple(config["input_size"]) == (3, 32, 32)
    assert tuple(config["mean"]) == tuple(run.classifier.data_config["mean"])
    processor = AutoImageProcessor.from_pretrained(out)
    assert processor(pictures(1))["pixel_values"].shape == (1, 3, 32, 32)
    # and the folder is a start for another run, with another head
    argv[argv.index("--output_dir") + 1] = str(tmp_path / "again")
    again = [a for a in argv if a != "--init_scratch"]
    if "--weights" in again:
        del again[again.index("--weights") : again.index("--weights") + 2]
    reloaded = finetune.load(*parse_options([*again, "--model", str(out)])).classifier
    assert not reloaded.report.head_drawn_anew
    assert not reloaded.report.missing


def test_a_vit_takes_the_weights_of_another_image_size(tmp_path: Path) -> None:
    """As timm loads them: the positions are resampled; the rest is the file's."""
    given = timm.create_model("test_vit", img_size=160)
    save_file(given.state_dict(), tmp_path / "w.safetensors")
    source = ModelSource("test_vit", weights=tmp_path / "w.safetensors", image_size=96)
    model = load_classifier(source, ["a", "b"]).model.timm_model
    overlay = {"file": str(tmp_path / "w.safetensors"), "num_classes": 1000}
    expected = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=2, img_size=96
    )
    assert model.pos_embed.shape == expected.pos_embed.shape != given.pos_embed.shape
    torch.testing.assert_close(model.pos_embed, expected.pos_embed, rtol=0, atol=0)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, given.blocks[0].mlp.fc1.weight)


def test_weights_are_reported(tmp_path: Path, data: Path) -> None:
    argv = [a for a in TINY if a != "--init_scratch"]
    argv += ["--weights", str(backbone(tmp_path / "w.safetensors")), "--data_dir", str(data)]
    report = finetune.load(*parse_options([*argv, "--output_dir", str(tmp_path)])).classifier.report
    assert report.missing == ("fc.weight", "fc.bias")
    assert (report.unexpected, report.head_drawn_anew) == ((), True)
    assert str(report) == (
        f"{report.loaded} tensors loaded, head drawn anew; 2 (fc.weight, fc.bias) missing, "
        "none unexpected"
    )


def small_vit(folder: Path, labels: int) -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=labels,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    ViTImageProcessor(size=size, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    return model


@pytest.mark.parametrize("labels", [3, 7])
def test_transformers_classifier(labels: int, data: Path, tmp_path: Path) -> None:
    """Its own head is kept where the number of classes agrees, and drawn anew where not."""
    start = small_vit(tmp_path / "vit", labels)
    argv = [a for a in TINY if a != "--init_scratch"]
    argv += ["--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    argv += ["--model", str(tmp_path / "vit")]
    classifier = finetune.load(*parse_options(argv)).classifier
    assert classifier.report.head_drawn_anew == (labels != 3)
    assert torch.equal(classifier.model.vit.embeddings.cls_token, start.vit.embeddings.cls_token)
    assert list(classifier.data_config["mean"]) == [0.1, 0.2, 0.3]
    finetune.main(argv)
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert saved.config.id2label == dict(enumerate(LABEL_NAMES))
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean) == [0.1, 0.2, 0.3]


def test_what_does_not_fit_a_transformers_model_is_refused(tmp_path: Path) -> None:
    small_vit(tmp_path / "vit", 3)
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    damaged = ModelSource(str(tmp_path / "vit"), weights=tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="with `--weights` '.*w.safetensors' cannot be loaded"):
        load_classifier(damaged, LABEL_NAMES)
    load_classifier(ModelSource(str(tmp_path / "vit"), image_size=32), LABEL_NAMES)
    larger = ModelSource(str(tmp_path / "vit"), image_size=64)
    with pytest.raises(ValueError, match="`--image_size` must be one that .* takes, got 64"):
        load_classifier(larger, LABEL_NAMES)


def test_a_head_is_drawn_anew_only_if_it_is_missing(tmp_path: Path) -> None:
    state = small_vit(tmp_path / "vit", 3).state_dict()
    del state["vit.layernorm.weight"]
    save_file(state, tmp_path / "w.safetensors")
    source = ModelSource(str(tmp_path / "vit"), weights=tmp_path / "w.safetensors")
    report = load_classifier(source, LABEL_NAMES).report
    assert (report.missing, report.head_drawn_anew) == (("vit.layernorm.weight",), False)


@pytest.mark.parametrize("classes", [3, 1000])
def test_a_head_of_other_classes_is_not_counted_as_loaded(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained, **more: build(*a, **more))
    report = load_classifier(ModelSource("test_resnet"), [str(i) for i in range(classes)]).report
    drawn = () if classes == 1000 else ("fc.weight", "fc.bias")
    total = len(build("test_resnet").state_dict())
    assert (report.loaded, report.missing) == (total - len(drawn), drawn)
    assert report.head_drawn_anew == bool(drawn)


@pytest.mark.parametrize("kind", ["timm", "vit", "clip"])
def test_a_squashing_run_saves_that_it_squashes(kind: str, data: Path, tmp_path: Path) -> None:
    """Who loads the model prepares images as the run has measured it, whatever their shape."""
    small_vit(tmp_path / "vit", 3)
    if kind == "clip":  # resizes the shorter side and crops
        CLIPImageProcessor(
            size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
        ).save_pretrained(tmp_path / "vit")
    model = "test_resnet" if kind == "timm" else str(tmp_path / "vit")
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    argv += ["--squash", "--model", model]
    parsed = parse_options(argv)
    run = finetune.load(*parsed)
    trainer = finetune.build_trainer(parsed[0], parsed[2], run)
    trainer.save_model()
    picture = pictures(1, size=(80, 40))[0]
    measured = trainer.eval_dataset.transform(picture)
    saved = AutoImageProcessor.from_pretrained(tmp_path / "out")
    loaded = saved(picture, return_tensors="pt")["pixel_values"][0]
    assert (loaded - measured).abs().max() < 0.05  # one of 256 levels, normalised, is 0.02
    if kind == "timm":
        config = timm.create_model(f"local-dir:{tmp_path / 'out'}").pretrained_cfg
        assert (config["crop_mode"], config["crop_pct"]) == ("squash", 1.0)


def test_squash_is_refused_where_it_could_not_be_saved(data: Path, tmp_path: Path) -> None:
    small_vit(tmp_path / "vit", 3)
    ConvNextImageProcessor().save_pretrained(tmp_path / "vit")
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="image processor that squashes"):
        finetune.load(*parse_options([*argv, "--squash", "--model", str(tmp_path / "vit")]))


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_a_saved_network_for_grey_images_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "timm":
        config = {"architecture": "test_resnet", "model_args": {"in_chans": 1}}
        (tmp_path / "config.json").write_text(json.dumps(config))
    else:
        ViTConfig(num_channels=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must take three channels .*, got 1"):
        load_classifier(ModelSource(str(tmp_path), init_scratch=True), LABEL_NAMES)


def test_a_transformers_model_reads_its_file_and_resumes(data: Path, tmp_path: Path) -> None:
    """What it saves has other tensor names than it has itself."""
    start = small_vit(tmp_path / "vit", 3)
    argv = [a for a in TINY if a != "--init_scratch"] + ["--data_dir", str(data)]
    argv += ["--model", str(tmp_path / "vit"), "--output_dir", str(tmp_path / "out")]
    weights = ["--weights", str(tmp_path / "vit" / "model.safetensors")]
    report = finetune.load(*parse_options([*argv, *weights])).classifier.report
    assert (report.loaded, report.missing) == (len(start.state_dict()), ())
    argv += ["--save_strategy", "steps", "--save_steps", "1"]
    finetune.main(argv)
    finetune.main([*argv, "--resume_from_checkpoint", "last", "--max_steps", "4"])
    out = Path(argv[argv.index("--output_dir") + 1])
    assert json.loads((out / "trainer_state.json").read_text())["epoch"] > 1


def test_frozen_batch_norm_keeps_its_statistics(data: Path, tmp_path: Path) -> None:
    options = ["--weights", str(backbone(tmp_path / "w.safetensors")), "--freeze_batch_norm"]
    argv = [a for a in TINY if a != "--init_scratch"]
    argv += ["--data_dir", str(data), "--output_dir", str(tmp_path / "out"), *options]
    finetune.main(argv)
    torch.manual_seed(3)
    before = timm.create_model("test_resnet").state_dict()
    after = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).state_dict()
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    affine = [name.replace("running_mean", "weight") for name in before if "running_mean" in name]
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert any(not torch.equal(before[name], after[name]) for name in affine)


def test_a_folder_with_a_name_of_timms_is_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that `--print_config` prints repeats the run, whose size only the folder knows."""
    monkeypatch.chdir(tmp_path)
    assert ModelSource("timm/resnet18").timm_name == "resnet18"
    assert image_size(ModelSource("resnet18")) == 224
    for name in ("resnet18", "resnet18.mine"):
        Path(name).mkdir()
        assert ModelSource(name).timm_name is None
        assert image_size(ModelSource(name)) is None
