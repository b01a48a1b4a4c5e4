"""Settings have one place each: argument specs, defaults and code say the same."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from remote_train import request
from tests.unit.stage_host import HOUSE, kinds, specs, values
from training.job import Evaluation
from training.settings import SCHEDULERS, Settings, read_settings

ROLES = sorted(path.parts[-1] for path in (HOUSE / "roles").iterdir() if path.is_dir())


def read(role: str, *parts: str) -> Any:
    path = HOUSE.joinpath("roles", role, *parts)
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


def entry_points(role: str) -> dict[str, Any]:
    return dict(read(role, "meta", "argument_specs.yml")["argument_specs"])


def options(role: str) -> dict[str, Any]:
    return specs()[role]


def all_options() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every option with its role and path, those of items as well."""

    def below(role: str, path: str, found: dict[str, Any]) -> Iterator[Any]:
        for name, option in found.items():
            yield role, f"{path}{name}", option
            yield from below(role, f"{path}{name}.", option.get("options") or {})

    for role in ROLES:
        yield from below(role, "", options(role))


# The same names, the same defaults, every option described


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_described(role):
    for name, entry in entry_points(role).items():
        assert entry["short_description"], name
        assert entry["description"], name
        assert (HOUSE / "roles" / role / "tasks" / f"{name}.yml").is_file()
    assert (HOUSE / "roles" / role / "README.md").is_file()


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specs_have_the_same_names(role):
    assert set(read(role, "defaults", "main.yml")) == set(options(role))


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specs_have_the_same_values(role):
    """Where a spec has a default; ``stages`` and the like have theirs in one place alone."""
    defaults = read(role, "defaults", "main.yml")
    for name, option in options(role).items():
        if "default" in option:
            assert (defaults[name], type(defaults[name])) == (
                option["default"],
                type(option["default"]),
            ), name
        else:
            assert name in ("stages", "extra_stages") or option.get("required"), name


@pytest.mark.parametrize("role", ROLES)
def test_the_defaults_pass_their_own_spec(role):
    validator = ArgumentSpecValidator(options(role))
    result = validator.validate(read(role, "defaults", "main.yml"), True)
    assert result.error_messages == []


def test_every_option_is_described_and_typed():
    described = 0
    for role, name, option in all_options():
        text = option["description"]
        for sentence in [text] if isinstance(text, str) else text:
            assert sentence.rstrip(")").endswith("."), (role, name)
            described += 1
        assert option["type"] in ("str", "bool", "int", "float", "list", "dict", "raw"), name
        assert ("elements" in option) == (option["type"] == "list"), (role, name)
    assert described > 60


def test_variables_have_their_roles_prefix():
    """Those of the role ``settings`` have the names of the documented contract."""
    for role in ROLES:
        if role != "settings":
            for name in options(role):
                assert name.startswith(f"{role}_"), name


def test_secrets_are_marked_as_such():
    for _, name, option in all_options():
        secret = re.search("token$|password|secret|index_url$", name) is not None
        assert bool(option.get("no_log")) == secret, name


def test_a_setting_stands_in_one_role():
    seen: dict[str, str] = {}
    for role in ROLES:
        for name in options(role):
            assert name not in seen, (name, role, seen.get(name))
            seen[name] = role


# The training's settings are those of the role


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
EVALUATION = {field.name: field for field in dataclasses.fields(Evaluation)}


def test_the_training_has_exactly_the_settings_of_the_request():
    assert set(FIELDS) == {*request.TRAINING_SETTINGS, *request.MODEL_SETTINGS}
    assert set(EVALUATION) == {*request.EVALUATION_SETTINGS, *request.EVALUATION_SPEED}


@pytest.mark.parametrize("name", sorted([*FIELDS, *EVALUATION]))
def test_a_setting_has_the_same_default_here_and_there(name):
    default = {**FIELDS, **EVALUATION}[name].default
    here = options("settings")[name]
    if default is dataclasses.MISSING:  # the training itself has no base model of its own
        assert name == "model_name_or_path"
        return
    assert default == here["default"]
    assert isinstance(default, bool) == isinstance(here["default"], bool)


@pytest.mark.parametrize("name", sorted([*FIELDS, *EVALUATION]))
def test_a_setting_has_a_type_that_the_training_takes(name):
    declared = {**FIELDS, **EVALUATION}[name].type
    taken = {
        "str": {"str"},
        "bool": {"bool"},
        "int": {"int"},
        "float": {"float", "int"},
        "str | list[str]": {"raw"},
    }[declared]
    assert options("settings")[name]["type"] in taken


def test_every_choice_of_a_schedule_is_there_in_both():
    assert set(options("settings")["lr_scheduler_type"]["choices"]) == set(SCHEDULERS)


@pytest.mark.parametrize("name", ["dtype", "lr_scheduler_type"])
def test_every_choice_of_the_role_is_one_of_the_training(name):
    for choice in options("settings")[name]["choices"]:
        read_settings({"model_name_or_path": "m", name: choice})


def test_the_defaults_of_a_stage_are_a_job_that_the_training_takes():
    for stage in request.build(values(), kinds())["stages"]:
        made = read_settings({**stage["settings"], **stage["model"]})
        assert made == Settings(model_name_or_path="Qwen/Qwen3-8B")


# Every setting is read by somebody


def names_in_request() -> set[str]:
    """The settings that building a request reads, by the names in its source."""
    source = (HOUSE / "plugins/module_utils/remote_train/request.py").read_text(encoding="utf-8")
    constants = {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return constants & set(options("settings"))


def names_in_roles() -> set[str]:
    """The words in what tasks and variables of roles and playbooks compute."""
    found: set[str] = set()
    paths = [*HOUSE.glob("roles/*/tasks/*.yml"), *HOUSE.glob("roles/*/vars/*.yml")]
    for path in [*paths, *HOUSE.glob("playbooks/**/*.yml")]:
        text = path.read_text(encoding="utf-8")
        templates = re.findall(r"\{\{.*?\}\}", text, re.DOTALL)
        conditions = re.findall(r"(?:when|that|loop|- ).*", text)
        for part in (*templates, *conditions):
            found |= set(re.findall(r"\b[a-z]\w+\b", part))
    return found


def names_in_actions() -> set[str]:
    """What an action reads by itself: the names of variables that are the user's own."""
    text = (HOUSE / "plugins/action/settings.py").read_text(encoding="utf-8")
    return set(re.findall(r'self\._value\("(\w+)"', text))


def test_a_request_reads_the_settings_that_its_source_names():
    """Each of them matters: without it, there is no request."""
    for name in names_in_request():
        missing = {key: value for key, value in values().items() if key != name}
        with pytest.raises(KeyError, match=name):
            request.build(missing, kinds())


@pytest.mark.parametrize(
    ("role", "name"), [(role, name) for role in ROLES for name in options(role)]
)
def test_every_setting_is_read_by_somebody(role, name):
    read_by = names_in_request() | names_in_roles() | names_in_actions()
    assert name in read_by


def test_every_setting_of_a_stage_is_read():
    """The fields of an item of ``stages``."""
    source = (HOUSE / "plugins/module_utils/remote_train/request.py").read_text(encoding="utf-8")
    for name in options("settings")["stages"]["options"]:
        assert re.search(rf'item(\.get\(|\[)"{name}"', source), name
    assert (
        options("settings")["stages"]["options"] == (options("settings")["extra_stages"]["options"])
    )
