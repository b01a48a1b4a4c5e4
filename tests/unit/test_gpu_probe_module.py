"""The module gpu_probe and the role gpu_gate, run for real against a fake nvidia-smi."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit import smi_documents as docs

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "plugins" / "modules" / "gpu_probe.py"


def fake(folder: Path, document: bytes | None = None, script: str = "") -> str:
    """A fake nvidia-smi that prints a document, or does something else."""
    (folder / "answer.xml").write_bytes(document or docs.HEALTHY)
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script or f'cat {folder}/answer.xml'}\n")
    path.chmod(0o755)
    return str(path)


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
        nvidia_smi=fake(tmp_path),
        gpu_memory_gib=80,
        min_disk_gib=0,
        packages={"torch": "2.13.0"},
        requirements={"torch": ">=2.6"},
    )
    assert result["state"] == "SUCCESS"
    assert (result["changed"], result["stop"], result["stopping"]) == (False, False, [])
    assert (result["message"], result["hint"], result["mode"]) == ("", "", "strict")
    assert (result["driver_version"], result["cuda_version"]) == ("550.127.05", "12.4")
    assert result["gpus"][0]["name"] == "NVIDIA H100 80GB HBM3"
    assert result["gpus"][0]["processes"] == []
    assert result["summary"]["fail"] == 0
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
        nvidia_smi=fake(
            tmp_path, script='echo "it couldn\'t communicate with the NVIDIA driver"; exit 9'
        ),
        min_disk_gib=1e6,
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
    result = probe(tmp_path, nvidia_smi=fake(tmp_path, script="sleep 300"), timeout=0.5)
    assert result["stop"] is True
    assert result["stopping"][0]["seen"] == "nvidia-smi gave no answer within 0.5 s"
    assert result["seconds"] < 5


def test_off_does_not_even_ask(tmp_path: Path) -> None:
    script = f"touch {tmp_path}/asked"
    result = probe(tmp_path, mode="off", nvidia_smi=fake(tmp_path, script=script), min_disk_gib=0)
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
        "settings_request": {"project_root": str(folder / "tutor"), "gpu_gate": mode},
        "plan_result": {"data_on_host": [], "python": None, "requirements": {}, **plan},
    }
    return ansible(folder, "ansible-playbook", str(book), "-e", json.dumps(variables))


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("strict", 2, "The check driver failed: there is no no-such-smi on this machine"),
        ("warn", 0, "later 1 failed"),
        (False, 0, "later 0 failed"),  # how YAML reads a bare off
    ],
)
def test_role(tmp_path: Path, mode: Any, status: int, words: str) -> None:
    done = play(tmp_path, mode)
    assert done.returncode == status, done.stdout
    assert words in done.stdout
    # The table wraps its cells; the sentence that the run ends with stands in one piece.
    assert ("and no GPU. Rent a machine with an NVIDIA GPU" in done.stdout) == (status == 2)
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
    words = "The check packages failed: torch is 2.5.0, not >=2.6 (and 1 more check failed)."
    assert words in done.stdout


def arguments_of_the_module() -> dict[str, Any]:
    """The argument_spec, as it stands in the source."""
    for node in ast.walk(ast.parse(MODULE.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "argument_spec":
            return dict(ast.literal_eval(node.value))
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
    compare(documented, arguments_of_the_module())
    specs = yaml.safe_load((ROOT / "roles/gpu_gate/meta/argument_specs.yml").read_text())
    defaults = yaml.safe_load((ROOT / "roles/gpu_gate/defaults/main.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == defaults
    tasks = yaml.safe_load((ROOT / "roles/gpu_gate/tasks/main.yml").read_text())
    passed = tasks[0]["gpu_probe"]
    assert passed.keys() == documented.keys()
    for name in ("gpu_count", "gpu_memory_gib", "min_disk_gib", "nvidia_smi", "timeout"):
        variable = passed[name].strip("{} ")
        assert options[variable]["type"] == documented[name]["type"]
        assert defaults[variable] == documented[name]["default"]


def test_documented_results_are_those_that_come(tmp_path: Path) -> None:
    source = MODULE.read_text()
    documented = yaml.safe_load(source.split('RETURN = r"""')[1].split('"""')[0])
    result = probe(tmp_path, nvidia_smi=fake(tmp_path))
    assert documented.keys() == result.keys() - {"state", "changed"}
    assert documented["findings"]["contains"].keys() == result["findings"][0].keys()
