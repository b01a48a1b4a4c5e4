"""The module gpu_probe and the role gpu_gate, run for real against a fake nvidia-smi."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from remote_train import gate, gate_module
from remote_train.gate_limits import Limits
from tests.unit import fake_smi

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "plugins" / "modules" / "gpu_probe.py"


def ansible(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
        "ANSIBLE_VARS_ENABLED": "host_group_vars",
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_NOCOLOR": "1",
    }
    return subprocess.run(
        [str(Path(sys.executable).with_name(words[0])), "-i", "localhost,", *words[1:]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def probe(folder: Path, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """What the module returns, called as Ansible calls it."""
    arguments.setdefault("project_root", str(folder / "tutor"))
    done = ansible(
        folder,
        "ansible",
        "localhost",
        "-c",
        "local",
        "-e",
        json.dumps({"ansible_python_interpreter": sys.executable}),
        "-m",
        "gpu_probe",
        "-a",
        json.dumps(arguments),
        *(["--check"] if check else []),
    )
    head, arrow, result = done.stdout.partition(" => ")
    assert arrow, done.stdout + done.stderr
    return {"state": head.split()[-1], **json.loads(result)}


def result_of(result: dict[str, Any], check: str) -> str:
    return {found["check"]: found["result"] for found in result["findings"]}[check]


def test_healthy_machine(tmp_path: Path) -> None:
    result = probe(
        tmp_path,
        nvidia_smi=fake_smi.answers(tmp_path),
        limits={"memory_gib": 80, "min_disk_gib": 0, "max_load": 1000},
        packages={"torch": "2.13.0"},
        requirements={"torch": ">=2.6"},
    )
    assert result["state"] == "SUCCESS"
    assert (result["changed"], result["stop"], result["stopping"]) == (False, False, [])
    assert (result["message"], result["hint"], result["mode"]) == ("", "", "strict")
    assert (result["driver_version"], result["cuda_version"]) == ("550.127.05", "12.4")
    assert result["gpus"][0]["name"] == "NVIDIA H100 80GB HBM3"
    assert result["gpus"][0]["processes"] == []
    assert result["summary"]["fail"] == 0, result["table"]
    assert result["limits"] == {
        **asdict(Limits()),
        "memory_gib": 80,
        "min_disk_gib": 0,
        "max_load": 1000,
    }
    assert sum(result["summary"].values()) == len(result["findings"])
    assert "gpu_ecc" in result["full_table"]
    assert 0 <= result["seconds"] < 10
    assert list(tmp_path.glob("tutor*")) == []


def test_everything_wrong_at_once_and_nothing_changed(tmp_path: Path) -> None:
    data = tmp_path / "tutor" / "data.jsonl"
    data.parent.mkdir()
    data.write_text('{"id": "a" "b": 1}\n')
    before = sorted(tmp_path.glob("tutor/**/*"))
    result = probe(
        tmp_path,
        check=True,
        mode="warn",
        nvidia_smi=fake_smi.broken(tmp_path, "no driver"),
        limits={"min_disk_gib": 1e6, "max_load": 1000},
        data_files=[{"name": "data.jsonl", "role": "train"}, {"name": "no", "role": "evaluate"}],
    )
    assert result["state"] == "SUCCESS"
    assert result["stop"] is True
    # The mode is warn: the driver is reported, and the disk and the data are what stops.
    assert result_of(result, "driver") == "fail"
    assert [found["check"] for found in result["stopping"]] == ["disk_free", "data_files"]
    assert result["message"].startswith("The check disk_free failed: ")
    assert result["message"].endswith(" (and 1 more check failed).")
    assert result["hint"].startswith("Make room")
    assert "driver" in result["table"]
    assert [(report["file"], report["problem_count"]) for report in result["data"]] == [
        ("data.jsonl", 1),
        ("no", 1),
    ]
    assert result["data"][0]["problems"][0]["line"] == 1
    assert result["gpus"] == []
    assert result["driver_version"] is None
    assert sorted(tmp_path.glob("tutor/**/*")) == before


def test_hanging_program_is_a_finding(tmp_path: Path) -> None:
    program = fake_smi.broken(tmp_path, "hanging")
    started = time.monotonic()
    result = probe(tmp_path, nvidia_smi=program, timeout=0.5)
    assert time.monotonic() - started < 20
    assert result["stop"] is True
    assert result["stopping"][0]["seen"] == "nvidia-smi gave no answer within 0.5 s"
    assert result["seconds"] < 10


def test_silenced_check_is_on_record(tmp_path: Path) -> None:
    program = fake_smi.answers(tmp_path, fake_smi.DOCUMENTS["ECC errors"])
    result = probe(
        tmp_path, nvidia_smi=program, silence={"gpu_ecc": "known", "load": "all of it is ours"}
    )
    assert result["stop"] is False
    (ecc,) = [found for found in result["findings"] if found["check"] == "gpu_ecc"]
    assert (ecc["result"], ecc["silenced"], ecc["would_be"]) == ("skipped", "known", "fail")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"silence": {"gpu_ec": "x"}}, "gpu_gate_silence names gpu_ec", "Did you mean gpu_ecc?"),
        ({"silence": {"gpu_ecc": ""}}, "gives no reason for gpu_ecc", "Say why"),
        ({"limits": {"gpu": 2}}, "no threshold gpu", "Did you mean gpus?"),
        ({"timeout": 90}, "gpu_gate_timeout is 90", "seconds from 0.1 to 45"),
    ],
)
def test_wrong_settings_are_named(
    run_module: Any, arguments: dict[str, Any], message: str, hint: str
) -> None:
    result = run_module("gpu_probe", project_root="/srv/tutor", mode="off", **arguments)
    assert message in result["msg"]
    assert hint in result["hint"]
    assert result["category"] == "ops"


def test_off_does_not_even_ask(tmp_path: Path) -> None:
    program = fake_smi.script(tmp_path, f"touch {tmp_path}/asked")
    result = probe(tmp_path, mode="off", nvidia_smi=program, silence={"load": "ours"})
    assert result["stop"] is False
    assert result_of(result, "driver") == "skipped"
    assert not (tmp_path / "asked").exists()


def test_unknown_mode_is_named(tmp_path: Path) -> None:
    result = probe(tmp_path, mode="loose")
    assert result["state"] == "FAILED!"
    assert "strict, warn, off" in result["msg"]


def play(folder: Path, mode: Any, **plan: Any) -> subprocess.CompletedProcess[str]:
    """A play of the role, and a second one that reads what it found."""
    common = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    later = {"ansible.builtin.debug": {"msg": "later {{ __gpu_gate_probe.summary.fail }} failed"}}
    plays = [{**common, "roles": ["gpu_gate"]}, {**common, "tasks": [later]}]
    book = folder / "play.yml"
    book.write_text(yaml.safe_dump(plays))
    variables = {
        "ansible_python_interpreter": sys.executable,
        "gpu_gate_min_disk_gib": 0,
        "gpu_gate_nvidia_smi": "no-such-smi",
        # Other tests may run beside this one.
        **dict.fromkeys(("gpu_gate_warn_load", "gpu_gate_max_load"), 1000),
        "settings_request": {
            "project_root": str(folder / "tutor"),
            "gpu_gate": mode,
            "stages": [],
            "selected": [],
            "left_out": [],
            "storage": {},
            "reconnect_timeout": 0,
        },
        "plan_result": {"data_on_host": [], "python": None, "requirements": {}, **plan},
    }
    return ansible(folder, "ansible-playbook", str(book), "-e", json.dumps(variables))


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        (
            "strict",
            2,
            "The check driver failed: gpu_gate_nvidia_smi is no-such-smi, and there is no",
        ),
        ("warn", 0, "later 1 failed"),
        (False, 0, "later 0 failed"),  # how YAML reads a bare off
    ],
)
def test_role(tmp_path: Path, mode: Any, status: int, words: str) -> None:
    done = play(tmp_path, mode)
    assert done.returncode == status, done.stdout
    assert words in done.stdout
    # The table wraps its cells; the sentence that the run ends with stands in one piece.
    ending = "; expected: nvidia-smi answers. Correct gpu_gate_nvidia_smi, or leave it out"
    assert (ending in done.stdout) == (status == 2)
    # Where the run goes on, a line says how.
    passed = (
        "The machine passes with 1 failed check of the GPU that gpu_gate: warn passes over (dri"
    )
    assert (passed in done.stdout) == (mode == "warn")
    assert ("what to do" in done.stdout) == (mode is not False)
    assert "changed=0" in done.stdout


def test_role_passes_on_what_the_plan_found(tmp_path: Path) -> None:
    """Data that only the host has, and a Python whose torch is too old, stop in every mode."""
    done = play(
        tmp_path,
        "warn",
        data_on_host=[{"name": "data/x.jsonl", "role": "train", "stage": "style"}],
        python={"path": "/usr/bin/python3", "packages": {"torch": "2.5.0"}},
        requirements={"torch": ">=2.6"},
    )
    assert done.returncode == 2
    assert "The check packages failed: torch is 2.5.0, not >=2.6; expected: " in done.stdout
    assert " (and 1 more check failed)." in done.stdout


def test_precheck_shows_every_check(tmp_path: Path) -> None:
    """The playbook: settings, plan and gate together, with the data that the controller checked."""
    variables = {
        "ansible_python_interpreter": sys.executable,
        "provision_python": sys.executable,
        "project_root": str(tmp_path / "tutor"),
        "project_src": str(ROOT / "examples" / "tutor"),
        "gpu_gate": "warn",
        "gpu_gate_nvidia_smi": fake_smi.answers(tmp_path / "bin"),
        "gpu_gate_silence": {"load": "other tests run beside this one"},
        "hf_home": str(tmp_path / "hf"),
    }
    inventory = str(ROOT / "inventory" / "local" / "hosts.yml")
    book = str(ROOT / "playbooks" / "precheck.yml")
    done = ansible(tmp_path, "ansible-playbook", "-i", inventory, book, "-e", json.dumps(variables))
    assert done.returncode == 0, done.stdout
    for check in gate.CHECKS:
        assert f"{check.name} " in done.stdout, check.name
    # The tutor's longest chat bounds the tokens; its base model isn't there yet.
    assert "chats in 5 files" in done.stdout
    assert "longest chat" in done.stdout
    assert "14.9 GiB for the" in done.stdout
    assert "changed=0" in done.stdout
    assert not (tmp_path / "tutor").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"gpu_gate_silence": {"gpu_ec": "x"}},
            "gpu_gate_silence names gpu_ec, which is no check. Did you mean gpu_ecc?",
        ),
        ({"gpu_gate_silence": {"gpu_ecc": " "}}, "gpu_gate_silence gives no reason for gpu_ecc."),
        ({"gpu_gate_silence": "gpu_ecc"}, "gpu_gate_silence is 'gpu_ecc', which is not a mapping"),
        ({"gpu_gate_gpus": "many"}, "gpu_gate_gpus is 'many'."),
        ({"gpu_gate_memory_slack": 5}, "gpu_gate_memory_slack is 5."),
        ({"gpu_gate_warn_load": 99}, "gpu_gate_warn_load is 99, above gpu_gate_max_load"),
        ({"gpu_gate_timeout": 90}, "gpu_gate_timeout is 90."),
        ({"gpu_gate_nvidia_smi": ""}, "gpu_gate_nvidia_smi is '', which names no program."),
        ({"active_gate_timeout": 900}, "active_gate_timeout is 900."),
        ({"active_gate_min_bandwidth": 9}, "active_gate_min_bandwidth is 9, above"),
    ],
)
def test_wrong_settings_are_said_before_any_contact(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    book = tmp_path / "play.yml"
    common = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    book.write_text(yaml.safe_dump([{**common, "roles": ["settings"]}]))
    variables = {"project_root": "/srv/tutor", **given}
    done = ansible(tmp_path, "ansible-playbook", str(book), "-e", json.dumps(variables))
    assert done.returncode == 2
    assert message.split(". ", maxsplit=1)[0] in done.stdout, done.stdout
    assert message.rsplit(". ", maxsplit=1)[-1] in done.stdout, done.stdout


def arguments_of(module: Path) -> dict[str, Any]:
    """The argument_spec, as it stands in the source, with what both modules of the gate share."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "argument_spec":
            assert isinstance(node.value, ast.Dict)
            pairs = [
                (ast.literal_eval(key), ast.literal_eval(value))
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if key
            ]
            return {**gate_module.ARGUMENTS, **dict(pairs)}
    raise AssertionError("no argument_spec")


def compare(documented: dict[str, Any], taken: dict[str, Any]) -> None:
    """Documented options and taken arguments are the same, down to the suboptions."""
    assert documented.keys() == taken.keys()
    for name, option in documented.items():
        plain = {key: option[key] for key in option if key not in ("description", "suboptions")}
        assert plain == {key: taken[name][key] for key in taken[name] if key != "options"}, name
        compare(option.get("suboptions", {}), taken[name].get("options", {}))


def test_documentation_and_arguments_agree() -> None:
    """What ansible-doc shows is what the module and the role take, with the same defaults."""
    source = MODULE.read_text()
    documented = yaml.safe_load(source.split('DOCUMENTATION = r"""')[1].split('"""')[0])["options"]
    compare(documented, arguments_of(MODULE))
    theirs = MODULE.with_name("active_gate.py")
    text = theirs.read_text().split('DOCUMENTATION = r"""')[1].split('"""')[0]
    compare(yaml.safe_load(text)["options"], arguments_of(theirs))
    options = role_options()
    defaults = yaml.safe_load((ROOT / "roles/gpu_gate/defaults/main.yml").read_text())
    assert {name: option["default"] for name, option in options.items()} == defaults
    tasks = yaml.safe_load((ROOT / "roles/gpu_gate/tasks/main.yml").read_text())
    passed = tasks[0]["gpu_probe"]
    # The action plugin takes the one for itself, and adds the other as it sends.
    assert passed.keys() ^ documented.keys() == {"reconnect_timeout", "controller_time"}
    for name in ("silence", "nvidia_smi", "timeout"):
        variable = passed[name].strip("{} ")
        assert options[variable]["type"] == documented[name]["type"]
        assert defaults[variable] == documented[name]["default"]


def role_options() -> dict[str, Any]:
    """The settings of the role, from its argument spec."""
    specs = yaml.safe_load((ROOT / "roles/gpu_gate/meta/argument_specs.yml").read_text())
    return dict(specs["argument_specs"]["main"]["options"])


def test_every_threshold_is_a_setting_and_is_passed_on() -> None:
    """The class, the role's spec and the role's task name the same, with types and defaults."""
    options = role_options()
    passed = yaml.safe_load((ROOT / "roles/gpu_gate/tasks/main.yml").read_text())[0]["gpu_probe"]
    for field in fields(Limits):
        option = options[f"gpu_gate_{field.name}"]
        assert (option["type"], option["default"]) == (field.type, field.default), field.name
        assert passed["limits"].pop(field.name) == f"{{{{ gpu_gate_{field.name} }}}}"
    assert passed["limits"] == {}


def test_documented_results_are_those_that_come(tmp_path: Path) -> None:
    source = MODULE.read_text()
    documented = yaml.safe_load(source.split('RETURN = r"""')[1].split('"""')[0])
    result = probe(tmp_path, nvidia_smi=fake_smi.answers(tmp_path))
    assert documented.keys() == result.keys() - {"state", "changed"}
    assert documented["findings"]["contains"].keys() == result["findings"][0].keys()
