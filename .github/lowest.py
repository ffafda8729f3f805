"""Print the oldest release of each dependency that pyproject.toml allows, as pip's constraints."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for dependency in project["dependencies"]:
    print(dependency.split(",")[0].replace(">=", "=="))
