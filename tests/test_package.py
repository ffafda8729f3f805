"""What is published: the wheel alone, in an environment without the source, does what is promised.

The environment takes the dependencies from the one that runs the tests, and the package from the
wheel.
"""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from places import ROOT

pytest.importorskip("build")
pytest.importorskip("hatch_fancy_pypi_readme")

DIGITS = "finetune --max_steps 2 --max_train_samples 64 --max_eval_samples 32 --use_cpu"
RECIPE = "oxford_flowers/efficientnet_lite0.yaml"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, the wheel made from it, and in `tree/` that of the tree."""
    folder = tmp_path_factory.mktemp("built")
    for options in (["-o", folder], ["--wheel", "-o", folder / "tree"]):
        command = [sys.executable, "-m", "build", "--no-isolation", *options, ROOT]
        subprocess.run(command, capture_output=True, check=True)
    return folder


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and, by reference, the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    [own] = folder.glob("lib/*/site-packages")
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (own / "dependencies.pth").write_text("\n".join(others))  # whose own .pth files hold no more
    [wheel] = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
    subprocess.run([*install, "--no-index", wheel], capture_output=True, check=True)
    return folder


def said(environment: Path, command: str, folder: Path) -> str:
    """What a command of the environment prints, started in a folder of its own."""
    name, *words = command.split()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [environment / "bin" / name, *words], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_all_of_the_package_and_the_recipes(built: Path) -> None:
    [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = (p for p in (ROOT / "hf_sam").rglob("*") if p.is_file() and p.suffix != ".pyc")
    wanted = {str(path.relative_to(ROOT)) for path in package}
    recipes = [*(ROOT / "recipes").glob("*/*.yaml"), ROOT / "recipes" / "text_classification.py"]
    wanted |= {f"hf_sam/{path.relative_to(ROOT)}" for path in recipes}
    assert names == wanted
    assert {"hf_sam/py.typed", "hf_sam/reporting/templates/report.html"} <= names


def test_the_source_archive_builds_the_same_wheel(built: Path) -> None:
    from_archive, from_tree = (next(place.glob("*.whl")) for place in (built, built / "tree"))
    assert from_archive.read_bytes() == from_tree.read_bytes()
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        inside = {name.split("/", 1)[-1] for name in opened.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "tests/test_package.py"} <= inside


def test_the_description_links_to_the_repository(built: Path) -> None:
    """An index shows the README alone, without the files beside it."""
    [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        text = wheel.read(name).decode()
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_the_wheel_is_what_runs(environment: Path, tmp_path: Path) -> None:
    code = "from importlib.util import find_spec; print(find_spec('hf_sam').origin)"
    (tmp_path / "where.py").write_text(code)
    where = said(environment, "python where.py", tmp_path).strip()
    assert Path(where).is_relative_to(environment)


def test_finetunes_digits_up_to_the_errors(environment: Path, tmp_path: Path) -> None:
    out = said(environment, f"hf-sam {DIGITS} --disable_tqdm true", tmp_path)
    assert "| top-1 error |" in out
    assert "model, metrics and card: runs/digits-rho0.05" in out
    assert {"README.md", "model.safetensors"} <= {p.name for p in (tmp_path / "runs").glob("*/*")}


def test_finds_its_recipes_from_any_folder(environment: Path, tmp_path: Path) -> None:
    """In a launcher too, which starts the module and not the command."""
    launch = "python -m accelerate.commands.launch --cpu --num_processes 1 -m hf_sam.finetuning"
    shown = said(environment, f"{launch} --config {RECIPE} --print_config", tmp_path)
    values = yaml.safe_load(shown[shown.index("#") :])
    own = yaml.safe_load((ROOT / "recipes" / RECIPE).read_text())
    assert {name: values[name] for name in own if name in values}.items() <= own.items()
    assert values["dataset"] == "oxford_flowers"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("hf-sam", "finetune"),
        ("hf-sam compare", "--sweep"),
        ("hf-sam report", "--compare"),
        ("python -m hf_sam.recipes.text_classification", "--lora"),
    ],
)
def test_says_what_there_is(command: str, option: str, environment: Path, tmp_path: Path) -> None:
    shown = said(environment, f"{command} --help", tmp_path)
    assert shown.startswith("usage: ")
    assert option in shown
    assert command != "hf-sam" or len(shown.splitlines()) <= 24  # one screen
