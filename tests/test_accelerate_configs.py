"""The files for `accelerate launch`: read as accelerate reads them, and their commands parsed."""

import importlib.util
import shlex
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from places import ROOT

from hf_sam.finetuning.options import parse_options

FILES = {path.stem: path for path in (ROOT / "accelerate_configs").glob("*.yaml")}
FIELDS: dict[str, dict[str, Any]] = {
    "one_device": {"distributed_type": DistributedType.NO, "num_machines": 1, "num_processes": 1},
    "ddp": {"distributed_type": DistributedType.MULTI_GPU, "num_machines": 1, "num_processes": 8},
    "ddp_two_machines": {
        "distributed_type": DistributedType.MULTI_GPU,
        "num_machines": 2,
        "num_processes": 16,
        "machine_rank": 0,
        "main_process_port": 29500,
    },
    "fsdp2": {"distributed_type": DistributedType.FSDP, "num_machines": 1, "num_processes": 8},
    **{
        f"deepspeed_zero{stage}": {
            "distributed_type": DistributedType.DEEPSPEED,
            "num_machines": 1,
            "num_processes": 8,
        }
        for stage in (2, 3)
    },
}


@pytest.mark.parametrize("name", FIELDS)
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(str(FILES[name]))  # refuses keys that it does not know
    assert {field: getattr(config, field) for field in FIELDS[name]} == FIELDS[name]
    assert not config.use_cpu
    assert bool(config.fsdp_config) == (name == "fsdp2")
    assert config.mixed_precision in ("no", None)  # `--bf16` of the command says it


def test_fsdp_is_the_second_version_and_writes_whole_models() -> None:
    settings = load_config_from_file(str(FILES["fsdp2"])).fsdp_config
    assert settings["fsdp_version"] == 2
    assert settings["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    assert set(settings) <= set(vars(launch_command_parser().parse_args(["x.py"])))


@pytest.mark.parametrize("name", FIELDS)
def test_the_header_says_the_command_and_when(name: str) -> None:
    text = FILES[name].read_text()
    header = [line.removeprefix("#").strip() for line in text.splitlines() if line[:1] == "#"]
    commands = [shlex.split(line) for line in header if line.startswith("accelerate launch")]
    assert len(commands) == load_config_from_file(str(FILES[name])).num_machines
    assert "where" in " ".join(header) or "for" in " ".join(header)
    for command in commands:
        launched = launch_command_parser().parse_args(command[2:])
        assert launched.config_file == f"accelerate_configs/{name}.yaml"
        if launched.module:
            assert importlib.util.find_spec(launched.training_script)
            parse_options([*launched.training_script_args, "--use_cpu"])
        else:
            assert (ROOT / launched.training_script).is_file()


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_every_file_is_of_one_machine_or_says_where_the_first_is(path: Any) -> None:
    values = yaml.safe_load(path.read_text())
    assert values["compute_environment"] == "LOCAL_MACHINE"
    assert values["num_machines"] == 1 or "--main_process_ip" in path.read_text()
