"""Which value of a setting wins: command line, environment, inventory, default, in this order.

One playbook shows every setting as the roles see it, and the request that they are turned into;
it connects to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.vars.environment import ENVIRONMENT
from tests.integration.sites import PROJECT, Outcome, write_yaml

pytestmark = pytest.mark.ssh

CONNECTION = ("ansible_host", "ansible_port", "ansible_user")


def load(path: Path) -> Any:
    """A YAML file's content."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


SPECS: dict[str, dict[str, Any]] = {
    name: option
    for path in sorted(PROJECT.glob("roles/*/meta/argument_specs.yml"))
    for name, option in load(path)["argument_specs"]["main"]["options"].items()
    # The play names the stage, one after the other: it is no setting of a user's.
    if name != "train_stage_name"
}
"""Every setting of every role, with its spec."""

DEFAULTS: dict[str, Any] = {
    name: value
    for path in sorted(PROJECT.glob("roles/*/defaults/main.yml"))
    for name, value in load(path).items()
    if name in SPECS
}

STAGE = {"name": "mine", "train": ["data/x.jsonl"], "adapter": "adapter_mine"}
SPECIAL = {
    "project_root": "/srv/{}",
    "stages": [STAGE],
    "extra_stages": [{**STAGE, "name": "more", "adapter": "adapter_more"}],
    "stage_settings": {"mine": {"seed": 7}},
    "stage_thresholds": {"mine": {"response_format": 0.5}},
    "stage_command": ["true"],
    "target_modules": ["q_proj"],
    "stage_code": ["code/train.py"],
    "gpu_gate_silence": {"torch": "known"},
    "runtime_base": "/data/{}",
    "hf_home": "/huggingface/{}",
    "modelscope_cache": "~/modelscope/{}",
    "log_stage": "mine",
    "pinned_runs": ["run_20260209T093000Z"],
    "provision_index_url": "https://mirror-{}.example/simple",
    "code_sync_mode": "bundle",  # git and a bundle exclude each other
}
"""Values that a setting's type alone doesn't give."""


def another(name: str, rank: int) -> Any:
    """A valid value of a setting that is not its default; another one for each ``rank``."""
    option = SPECS.get(name, {"type": "str"})
    if name in SPECIAL:
        value = SPECIAL[name]
        return value.format(rank) if isinstance(value, str) else value
    if option.get("choices"):
        others = [choice for choice in option["choices"] if choice != option.get("default")]
        return others[rank % len(others)] if others else option["default"]
    kinds: dict[str, Callable[[], Any]] = {
        "int": lambda: int(option.get("default") or 0) + rank,
        # An eighth is exact in binary, and small enough for shares, which stay below 1.
        "float": lambda: float(option.get("default") or 0) + rank / 8,
        "bool": lambda: not option.get("default"),
        "list": lambda: [f"{name}_{rank}"],
        "str": lambda: f"{name}_{rank}",
    }
    return kinds[option.get("type", "str")]()


INVENTORY = {name: another(name, 1) for name in SPECS}


@pytest.fixture(scope="module")
def playbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shows what the roles see; a role that is imported brings its defaults along."""
    roles = sorted(path.parts[-3] for path in PROJECT.glob("roles/*/meta/argument_specs.yml"))
    names = [*SPECS, *CONNECTION]
    shown = ", ".join(f"'{name}': {name} | default(none)" for name in names)
    others = [
        {"ansible.builtin.import_role": {"name": role}, "when": False}
        for role in roles
        if role != "settings"
    ]
    tasks = [
        {"ansible.builtin.import_role": {"name": "settings"}},
        *others,
        {"ansible.builtin.debug": {"msg": f"SEEN {{{{ {{{shown}}} | to_json }}}}"}},
        {"ansible.builtin.debug": {"msg": "REQUEST {{ settings_request | to_json }}"}},
    ]
    play = {"hosts": "gpu_hosts", "gather_facts": False, "tasks": tasks}
    return write_yaml(tmp_path_factory.mktemp("precedence") / "show.yml", [play])


@pytest.fixture(scope="module")
def show(
    playbook: Path, run_playbook: Callable[..., Outcome]
) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """``show(inventory variables, environment, extra)``: the settings and the request."""

    def run(
        variables: dict[str, Any],
        env: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        hosts = {"gpu_hosts": {"hosts": {"gpu": variables}}}
        inventory = write_yaml(playbook.with_name("hosts.yml"), hosts)
        words = [word for item in (extra or {}).items() for word in ("-e", "=".join(item))]
        outcome = run_playbook("-i", str(inventory), *words, playbook=playbook, env=env)
        assert outcome.status == 0, outcome.output
        found = dict(line.split(" ", 1) for line in outcome.lines if line[:4] in ("SEEN", "REQU"))
        return json.loads(found["SEEN"]), json.loads(found["REQUEST"])

    return run


Shown = tuple[dict[str, Any], dict[str, Any]]
Show = Callable[..., Shown]


@pytest.fixture(scope="module")
def by_default(show: Show) -> Shown:
    """An inventory that sets what has no default, and nothing else."""
    return show({"project_root": "/srv/0"})


@pytest.fixture(scope="module")
def by_inventory(show: Show) -> Shown:
    """An inventory that sets everything."""
    return show(INVENTORY)


ENVIRONMENT_VALUES = {
    names[0]: str(another(variable, 2)) for variable, names in ENVIRONMENT.items()
} | {"REMOTE_PORT": "2202", "TARGET_MODULES": "o_proj"}
COMMAND_LINE = {variable: str(another(variable, 3)) for variable in ENVIRONMENT} | {
    "ansible_port": "2203",
    "target_modules": "v_proj",
    "use_qlora": "no",
    "skip_sample": "off",
}


@pytest.fixture(scope="module")
def by_environment(show: Show) -> Shown:
    """The same inventory, and every name of the environment."""
    return show(INVENTORY, ENVIRONMENT_VALUES)


@pytest.fixture(scope="module")
def by_command_line(show: Show) -> Shown:
    """The same again, and each of them with ``-e``."""
    return show(INVENTORY, ENVIRONMENT_VALUES, COMMAND_LINE)


PROMISED = [
    "REMOTE_HOST",
    "REMOTE_PORT",
    "REMOTE_USER",
    "TRAIN_SYNC_PROJECT_ROOT",
    "REMOTE_PROJECT_ROOT",
    "TRAIN_SYNC_NON_INTERACTIVE",
    "TRAIN_SYNC_ASSUME_YES",
    "TRAIN_SYNC_SKIP_SAMPLE",
    "TRAIN_SYNC_GPU_GATE",
    "TRAIN_SYNC_ACCEPTANCE_GATE",
    "MODEL_NAME_OR_PATH",
    "USE_MODELSCOPE",
    "MODELSCOPE_CACHE",
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "RUNTIME_BASE",
    "DATA_BASE",
    "OUT_BASE",
    "LOG_DIR",
    "MAX_LENGTH",
    "PER_DEVICE_TRAIN_BATCH_SIZE",
    "GRADIENT_ACCUMULATION_STEPS",
    "NUM_TRAIN_EPOCHS",
    "LEARNING_RATE",
    "TARGET_MODULES",
    "USE_QLORA",
    "SEED",
]
"""The names that users know."""


def test_every_name_that_users_know_is_read() -> None:
    assert {name for names in ENVIRONMENT.values() for name in names} >= set(PROMISED)


def test_every_setting_has_a_default_and_a_spec_that_agree() -> None:
    assert set(DEFAULTS) == set(SPECS)
    stated = {name: option["default"] for name, option in SPECS.items() if "default" in option}
    assert {name: DEFAULTS[name] for name in stated} == stated


@pytest.mark.parametrize("name", sorted(SPECS))
def test_an_inventory_wins_over_the_default(
    name: str, by_default: Shown, by_inventory: Shown
) -> None:
    if name not in ("stages", "project_root"):  # those are templates, or have none
        assert by_default[0][name] == DEFAULTS[name]
    assert by_inventory[0][name] == INVENTORY[name]
    if len(SPECS[name].get("choices", "12")) > 1:
        assert INVENTORY[name] != DEFAULTS[name]


@pytest.mark.parametrize("variable", sorted(ENVIRONMENT))
def test_the_environment_wins_over_the_inventory(variable: str, by_environment: Shown) -> None:
    assert by_environment[0][variable] == ENVIRONMENT_VALUES[ENVIRONMENT[variable][0]]
    assert by_environment[0][variable] != INVENTORY.get(variable)


@pytest.mark.parametrize("variable", sorted(ENVIRONMENT))
def test_the_command_line_wins_over_the_environment(variable: str, by_command_line: Shown) -> None:
    assert by_command_line[0][variable] == COMMAND_LINE[variable]


def test_what_has_no_name_in_the_environment_stays_the_inventorys(by_environment: Shown) -> None:
    kept = set(SPECS) - set(ENVIRONMENT)
    assert {name: by_environment[0][name] for name in kept} == {n: INVENTORY[n] for n in kept}


@pytest.mark.parametrize(
    ("rank", "shown"), [(1, "by_inventory"), (2, "by_environment"), (3, "by_command_line")]
)
def test_the_winner_reaches_the_request_in_its_type(
    rank: int, shown: str, request: pytest.FixtureRequest
) -> None:
    """The environment and ``-e`` hold text; the request holds numbers and booleans."""
    _, wanted = request.getfixturevalue(shown)
    assert wanted["project_root"] == f"/srv/{rank}"
    assert wanted["gpu_gate"] == another("gpu_gate", rank)
    stage = wanted["stages"][0]
    for name in ("max_length", "num_train_epochs", "gradient_accumulation_steps"):
        assert stage["settings"][name] == another(name, rank)
        assert type(stage["settings"][name]) is {"int": int, "float": float}[SPECS[name]["type"]]
    assert stage["settings"]["learning_rate"] == another("learning_rate", rank)
    assert stage["settings"]["use_qlora"] is (rank != 3)
    assert stage["settings"]["target_modules"] == ("", "q_proj", "o_proj", "v_proj")[rank]
    assert stage["model"]["model_name_or_path"] == f"model_name_or_path_{rank}"
    # stage_settings names this one stage's.
    assert stage["settings"]["seed"] == 7


def test_an_empty_value_in_the_environment_means_not_set(show: Show) -> None:
    empty = {name: "" for names in ENVIRONMENT.values() for name in names}
    seen, _ = show(INVENTORY, empty)
    assert {name: seen[name] for name in SPECS} == INVENTORY


@pytest.mark.parametrize(
    ("env", "root"),
    [
        ({"REMOTE_PROJECT_ROOT": "/srv/b"}, "/srv/b"),
        ({"REMOTE_PROJECT_ROOT": "/srv/b", "TRAIN_SYNC_PROJECT_ROOT": "/srv/a"}, "/srv/a"),
        ({"REMOTE_PROJECT_ROOT": "/srv/b", "TRAIN_SYNC_PROJECT_ROOT": ""}, "/srv/b"),
    ],
)
def test_project_root_has_two_names_and_the_first_wins(
    show: Show, env: dict[str, str], root: str
) -> None:
    _, wanted = show({}, env)
    assert wanted["project_root"] == root


def test_a_bare_off_in_yaml_is_the_mode_off(show: Show) -> None:
    """YAML reads it as false."""
    _, wanted = show({"project_root": "/srv/0", "gpu_gate": False, "acceptance_gate": False})
    assert (wanted["gpu_gate"], wanted["acceptance_gate"]) == ("off", "off")
