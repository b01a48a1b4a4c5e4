"""Settings from the controller's environment: above the inventory, below the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleParserError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader

from tests.unit.stage_host import HOUSE, kinds

SPEC = importlib.util.spec_from_file_location(
    "environment_vars", HOUSE / "plugins" / "vars" / "environment.py"
)
environment = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(environment)

NAMES = sorted({name for names in environment.ENVIRONMENT.values() for name in names})


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Nothing of the environment that the tests run in takes part."""
    for name in [*NAMES, "AWX_ISOLATED_DATA_DIR"]:
        monkeypatch.delenv(name, raising=False)


def host_vars(tmp_path: Path, content: Any, name: str = "gpu") -> dict[str, Any]:
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump(content))
    loader = DataLoader()
    host = InventoryManager(loader, sources=[str(path)]).get_host(name)
    found: dict[str, Any] = environment.VarsModule().get_vars(loader, str(tmp_path), [host])
    found.pop("controller_terminal", None)
    found.pop("controller_columns", None)
    return found


ONE = {"gpu_hosts": {"hosts": {"gpu": {}}}}
LOCAL = {"gpu_hosts": {"hosts": {"gpu": {"ansible_connection": "local"}}}}


@pytest.mark.parametrize(
    ("given_environment", "found"),
    [
        ({}, {}),
        ({"REMOTE_HOST": "h", "REMOTE_PORT": "22"}, {"ansible_host": "h", "ansible_port": "22"}),
        ({"REMOTE_HOST": ""}, {}),
        ({"TRAIN_SYNC_PROJECT_ROOT": "/a"}, {"project_root": "/a"}),
        ({"REMOTE_PROJECT_ROOT": "/b"}, {"project_root": "/b"}),
        (
            {"TRAIN_SYNC_PROJECT_ROOT": "/a", "REMOTE_PROJECT_ROOT": "/b"},
            {"project_root": "/a"},
        ),
        ({"TRAIN_SYNC_PROJECT_ROOT": "", "REMOTE_PROJECT_ROOT": "/b"}, {"project_root": "/b"}),
        ({"SEED": "0", "USE_QLORA": "no"}, {"seed": "0", "use_qlora": "no"}),
        ({"HOME": "/root", "STAGES": "x", "seed": "1", "FORCE": "1"}, {}),
    ],
    ids=str,
)
def test_names_and_values(given_environment, found):
    assert environment.settings_from(given_environment) == found


def test_the_table_of_the_design_brief():
    """Each name of it sets the variable of its row; these names are fixed."""
    table = {
        "REMOTE_HOST": "ansible_host",
        "REMOTE_PORT": "ansible_port",
        "REMOTE_USER": "ansible_user",
        "TRAIN_SYNC_PROJECT_ROOT": "project_root",
        "REMOTE_PROJECT_ROOT": "project_root",
        "TRAIN_SYNC_NON_INTERACTIVE": "non_interactive",
        "TRAIN_SYNC_ASSUME_YES": "assume_yes",
        "TRAIN_SYNC_SKIP_SAMPLE": "skip_sample",
        "TRAIN_SYNC_GPU_GATE": "gpu_gate",
        "TRAIN_SYNC_ACCEPTANCE_GATE": "acceptance_gate",
    }
    training = """
        MODEL_NAME_OR_PATH USE_MODELSCOPE MODELSCOPE_CACHE HF_HOME HF_ENDPOINT HF_TOKEN
        RUNTIME_BASE DATA_BASE OUT_BASE LOG_DIR MAX_LENGTH PER_DEVICE_TRAIN_BATCH_SIZE
        GRADIENT_ACCUMULATION_STEPS NUM_TRAIN_EPOCHS LEARNING_RATE TARGET_MODULES USE_QLORA
        SEED
    """
    table |= {name: name.lower() for name in re.findall(r"\w+", training)}
    for name, variable in table.items():
        assert environment.settings_from({name: "x"}) == {variable: "x"}, name
    assert set(NAMES) == set(table)


def test_each_variable_is_a_setting_of_the_inventory():
    own = {v for v in environment.ENVIRONMENT if not v.startswith("ansible_")}
    assert own <= set(kinds())


def test_the_hosts_of_the_group_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SEED", "7")
    assert host_vars(tmp_path, ONE) == {"seed": "7"}
    deeper = {"gpu_hosts": {"children": {"rented": {"hosts": {"gpu": {}}}}}}
    assert host_vars(tmp_path, deeper) == {"seed": "7"}


def test_other_hosts_and_groups_get_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("REMOTE_HOST", "h")
    assert host_vars(tmp_path, {"web": {"hosts": {"gpu": {}}}}) == {}
    loader = DataLoader()
    inventory = InventoryManager(loader, sources=[str(tmp_path / "hosts.yml")])
    group = inventory.groups["web"]
    assert environment.VarsModule().get_vars(loader, str(tmp_path), [group]) == {}


def test_an_address_turns_this_machine_into_that_one(tmp_path, monkeypatch):
    assert host_vars(tmp_path, LOCAL) == {}
    monkeypatch.setenv("REMOTE_HOST", "gpu.example.com")
    assert host_vars(tmp_path, LOCAL) == {
        "ansible_host": "gpu.example.com",
        "ansible_connection": "ssh",
        "ansible_python_interpreter": "auto_silent",
    }
    assert host_vars(tmp_path, ONE) == {"ansible_host": "gpu.example.com"}


def test_one_address_for_several_hosts_is_refused(tmp_path, monkeypatch):
    two = {"gpu_hosts": {"hosts": {"gpu": {}, "other": {}}}}
    assert host_vars(tmp_path, two) == {}
    monkeypatch.setenv("REMOTE_HOST", "h")
    with pytest.raises(AnsibleParserError, match="REMOTE_HOST names one host"):
        host_vars(tmp_path, two)


TERMINAL = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("e", {str(HOUSE / "plugins/vars/environment.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.exit(0 if module.person_at_terminal() else 5)
"""


@pytest.mark.parametrize(
    ("stdin", "stdout", "runner", "there"),
    [
        ("tty", "tty", False, True),
        ("null", "tty", False, False),
        ("tty", "pipe", False, False),
        ("tty", "tty", True, False),  # ansible-runner's terminal has nobody in front of it
    ],
)
def test_who_sits_there(stdin, stdout, runner, there):
    master, terminal = pty.openpty()
    ends = {"tty": terminal, "null": subprocess.DEVNULL, "pipe": subprocess.PIPE}
    done = subprocess.run(
        [sys.executable, "-c", TERMINAL],
        stdin=ends[stdin],
        stdout=ends[stdout],
        env={**os.environ, **({"AWX_ISOLATED_DATA_DIR": "/x"} if runner else {})},
        check=False,
    )
    os.close(master)
    os.close(terminal)
    assert done.returncode == (0 if there else 5)


def test_ansible_puts_the_environment_above_the_inventory(tmp_path):
    """Ansible itself is asked what holds for a host: by its name, in its group, above all."""
    path = tmp_path / "hosts.yml"
    hosts = {"gpu_hosts": {"hosts": {"gpu": {"seed": 1, "lora_r": 2}}, "vars": {"seed": 3}}}
    path.write_text(yaml.safe_dump(hosts))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-inventory"), "-i", path, "--host", "gpu"],
        env={**os.environ, "ANSIBLE_CONFIG": str(HOUSE / "ansible.cfg"), "SEED": "7"},
        capture_output=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert (found["seed"], found["lora_r"]) == ("7", 2)
