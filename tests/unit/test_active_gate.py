"""The active gate: each check well and failing, and whatever the training's Python may do."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from remote_train import active_ask, active_facts, active_gate, gate, gate_torch
from remote_train.active_facts import Base, Facts, base_in
from remote_train.active_gate import CHECKS
from remote_train.gate_model import FAIL, OK, SKIPPED, UNKNOWN, WARN
from tests.unit.hanging import hanging_below
from tests.unit.stage_host import HOUSE

GIB = 1024**3
SETTINGS = {
    "max_length": 100,
    "per_device_train_batch_size": 1,
    "lora_r": 16,
    "target_modules": "all-linear",
    "use_qlora": False,
    "dtype": "auto",
}
STAGE = {
    "name": "style",
    "command": [],
    "train": ["data/a.jsonl"],
    "settings": SETTINGS,
    "model": {"model_name_or_path": "models/m", "model_revision": "main", "use_modelscope": False},
}
RIGHT = {"float32": {"wrong": 0, "of": 9}, "bfloat16": {"wrong": 0, "of": 9}}
WRONG = {"float32": {"wrong": 0, "of": 9}, "bfloat16": {"wrong": 2, "of": 9}}
CARD = {"name": "NVIDIA H100", "capability": [9, 0], "free": 79 * GIB, "total": 80 * GIB}
FOUND: dict[str, Any] = {
    "torch": {
        "version": "2.13.0+cu130",
        "cuda": "13.0",
        "hip": None,
        "architectures": ["sm_80", "sm_90", "compute_90"],
    },
    "cpu_products": RIGHT,
    "cuda": {"available": True, "why": "", "count": 1, "devices": [CARD], "bfloat16": True},
    "gpu_products": [RIGHT],
    "bandwidth": [24.3],
    "transformers": {"version": "5.23.0"},
    "config:0": {"type": "qwen3", "causal": True, "positions": 4096},
    "tokenizer:0": {"words": 3074, "fast": True, "template": True},
    "lengths:0": {
        "data/a.jsonl": {"chats": 2, "of": 2, "lengths": [[2, 80], [1, 60]], "refused": []}
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base model of some eight billion parameters, as far as its files tell."""
    path = tmp_path_factory.mktemp("models") / "m"
    path.mkdir()
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "vocab_size": 151936,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").touch()
    return str(path)


def well(folder: str, **more: Any) -> Facts:
    facts = Facts(
        python="/opt/python",
        found=FOUND,
        bases=(base_in("models/m", folder, [STAGE]),),
        driver_cuda="13.1",
        coming=("data/a.jsonl",),
    )
    return dataclasses.replace(facts, **more)


def but(facts: Facts, part: str, value: Any) -> Facts:
    """The same facts with one part other, or gone."""
    found = {name: known for name, known in facts.found.items() if name != part}
    if value is not None:
        found[part] = {**FOUND[part], **value} if isinstance(value, dict) else value
    return dataclasses.replace(facts, found=found)


def verdicts(facts: Facts, mode: str = "strict") -> dict[str, Any]:
    return {finding.check: finding for finding in active_gate.run_checks(facts, mode, {})}


NO_GPU = {"available": False, "why": "the driver is too old", "count": 0, "devices": []}
SMALL = {"devices": [{**CARD, "free": 2 * GIB}]}
NO_CHATS: dict[str, Any] = {"chats": 0, "of": 0, "lengths": [], "refused": []}
REFUSED = {"chats": 1, "of": 1, "lengths": [], "refused": [[7, "TemplateError: no system"]]}
MANY = {"chats": 500, "of": 9000, "lengths": [[2, 80], [1, 60]], "refused": []}

# Check, what is other, the result, and words of what was seen.
CASES: list[tuple[str, str, Any, str, str]] = [
    ("torch", "torch", {"error": "ImportError: libcudart.so"}, FAIL, "ImportError: libcudart.so"),
    ("cpu_product", "cpu_products", WRONG, FAIL, "processor: 2 of 9 places wrong in bfloat16"),
    ("cpu_product", "cpu_products", {"error": "RuntimeError: x"}, FAIL, "RuntimeError: x"),
    ("cpu_product", "torch", {"error": "ImportError: x"}, SKIPPED, "can't be imported"),
    ("torch_cuda", "cuda", NO_GPU, FAIL, "the driver is too old"),
    ("torch_cuda", "torch", {"error": "ImportError: x"}, SKIPPED, "can't be imported"),
    ("torch_driver", "torch", {"cuda": "14.0"}, WARN, "for CUDA 14.0; the driver runs up to 13.1"),
    ("torch_driver", "torch", {"cuda": "13.9"}, OK, "13.9"),
    ("torch_driver", "torch", {"cuda": "12.4"}, OK, "12.4"),
    ("torch_driver", "torch", {"cuda": None}, SKIPPED, "built without CUDA"),
    ("torch_driver", "torch", {"architectures": ["sm_80", "sm_100"]}, FAIL, "NVIDIA H100 is sm_90"),
    ("torch_driver", "torch", {"architectures": ["compute_80"]}, OK, ""),
    ("torch_driver", "torch", {"architectures": ["compute_100"]}, FAIL, "sm_90"),
    ("torch_driver", "torch", {"architectures": ["sm_90a"]}, OK, ""),
    ("torch_gpus", "cuda", {"devices": []}, FAIL, "0: none"),
    ("torch_gpus", "cuda", NO_GPU, SKIPPED, "sees no GPU"),
    ("gpu_product", "gpu_products", [RIGHT, WRONG], FAIL, "GPU 1: 2 of 9 places wrong"),
    ("gpu_product", "cuda", NO_GPU, SKIPPED, "sees no GPU"),
    ("gpu_product", "gpu_products", None, UNKNOWN, "not reached"),
    ("gpu_bandwidth", "bandwidth", [2.5], WARN, "GPU 0: 2.5 GiB/s"),
    ("gpu_bandwidth", "bandwidth", [24.0, 0.1], FAIL, "GPU 1: 0.1 GiB/s"),
    ("gpu_bandwidth", "cuda", NO_GPU, SKIPPED, "sees no GPU"),
    ("model_config", "config:0", {"causal": False, "type": "t5"}, FAIL, "of the type t5"),
    ("model_config", "config:0", {"error": "OSError: no config"}, FAIL, "models/m: OSError"),
    ("model_config", "transformers", {"error": "ImportError: x"}, FAIL, "transformers: Import"),
    ("tokenizer", "tokenizer:0", {"fast": False}, FAIL, "has a slow one"),
    ("tokenizer", "tokenizer:0", {"error": "ValueError: bad"}, FAIL, "ValueError: bad"),
    (
        "chat_template",
        "tokenizer:0",
        {"template": False},
        WARN,
        "the tokenizer of models/m has none: a default one will be used",
    ),
    (
        "chat_template",
        "lengths:0",
        {"data/a.jsonl": REFUSED},
        FAIL,
        "data/a.jsonl line 7: TemplateError: no system",
    ),
    (
        "chat_tokens",
        "lengths:0",
        {
            "data/a.jsonl": {
                "chats": 3,
                "of": 3,
                "lengths": [[3, 140], [2, 101], [1, 100]],
                "refused": [],
            }
        },
        WARN,
        "style: 2 chats over 100 tokens, the longest 140 (data/a.jsonl line 3)",
    ),
    ("chat_tokens", "lengths:0", {"error": "OSError: gone"}, FAIL, "OSError: gone"),
    ("chat_template", "lengths:0", {"data/a.jsonl": {"missing": True}}, UNKNOWN, "still to be"),
    ("chat_template", "lengths:0", None, UNKNOWN, "no chat was rendered"),
    ("chat_template", "lengths:0", {"error": "OSError: gone"}, UNKNOWN, "see chat_tokens"),
    ("chat_template", "lengths:0", {"data/a.jsonl": NO_CHATS}, SKIPPED, "no chat to render"),
    ("chat_template", "lengths:0", {"data/a.jsonl": MANY}, OK, "the 500 longest of 9000 chats"),
    ("chat_tokens", "lengths:0", {"data/a.jsonl": REFUSED}, SKIPPED, "see chat_template"),
    ("chat_tokens", "lengths:0", {"data/a.jsonl": NO_CHATS}, SKIPPED, "no chat to count"),
    # What depends on what failed gives no advice of its own.
    ("torch_driver", "torch", {"error": "ImportError: x"}, SKIPPED, "see torch"),
    ("torch_gpus", "cuda", {"error": "RuntimeError: x"}, SKIPPED, "see torch_cuda"),
    ("gpu_product", "cuda", {"error": "RuntimeError: x"}, SKIPPED, "see torch_cuda"),
    ("gpu_bandwidth", "cuda", {"error": "RuntimeError: x"}, SKIPPED, "see torch_cuda"),
    ("model_memory", "cuda", {"error": "RuntimeError: x"}, SKIPPED, "see torch_cuda"),
    ("tokenizer", "transformers", {"error": "ImportError: x"}, SKIPPED, "see model_config"),
    ("chat_template", "transformers", {"error": "ImportError: x"}, SKIPPED, "see model_config"),
    ("chat_tokens", "transformers", {"error": "ImportError: x"}, SKIPPED, "see model_config"),
    ("chat_template", "tokenizer:0", {"error": "ValueError: bad"}, SKIPPED, "see tokenizer"),
    ("chat_tokens", "tokenizer:0", {"error": "ValueError: bad"}, SKIPPED, "see tokenizer"),
    ("chat_tokens", "tokenizer:0", {"template": False}, SKIPPED, "see chat_template"),
    ("chat_tokens", "lengths:0", {"data/a.jsonl": {"missing": True}}, UNKNOWN, "still to be sent"),
    ("model_memory", "cuda", SMALL, FAIL, "2.0 GiB free; style needs about"),
    ("model_memory", "cuda", {"devices": [{**CARD, "free": 16 * GIB}]}, WARN, "16.0 GiB free"),
    ("model_memory", "cuda", NO_GPU, SKIPPED, "sees no GPU"),
]


def test_on_a_healthy_machine_all_is_well(folder: str) -> None:
    found = verdicts(well(folder))
    assert {name: one.result for name, one in found.items()} == dict.fromkeys(found, OK)
    assert found["chat_tokens"].seen == "the longest has 80 tokens"
    assert found["chat_template"].seen == "renders all 2 chats"
    assert all(one.action == "" for one in found.values())


@pytest.mark.parametrize(("check", "part", "value", "result", "words"), CASES)
def test_a_check_for_its_own_reason(
    folder: str, check: str, part: str, value: Any, result: str, words: str
) -> None:
    finding = verdicts(but(well(folder), part, value))[check]
    assert finding.result == result, finding
    assert words in finding.seen
    assert "\n" not in finding.seen
    assert not finding.action or result in (FAIL, WARN, UNKNOWN)
    assert finding.action or result not in (FAIL, WARN)


def test_a_torch_that_is_too_new_for_the_driver(folder: str) -> None:
    facts = but(but(well(folder), "torch", {"cuda": "14.0"}), "cuda", NO_GPU)
    assert verdicts(facts)["torch_driver"].result == FAIL
    facts = dataclasses.replace(well(folder), driver_cuda="")
    assert verdicts(facts)["torch_driver"].result == UNKNOWN


def test_every_check_has_a_case_in_which_it_does_not_pass() -> None:
    tried = {check for check, _part, _value, result, _words in CASES if result == FAIL}
    assert tried == {check.name for check in CHECKS}


@pytest.mark.parametrize(
    ("part", "failing"),
    [
        ("torch", "torch"),
        ("cpu_products", "cpu_product"),
        ("cuda", "torch_cuda"),
        ("gpu_products", "gpu_product"),
        ("bandwidth", "gpu_bandwidth"),
        ("transformers", "model_config"),
        ("config:0", "model_config"),
        ("tokenizer:0", "tokenizer"),
        ("lengths:0", "chat_tokens"),
    ],
)
@pytest.mark.parametrize("how", ["hung", "died"])
def test_the_part_that_hung_or_died_is_the_finding(
    folder: str, part: str, failing: str, how: str
) -> None:
    names = list(FOUND)
    after = names[names.index(part) :]
    group = 5 if names.index(part) < 5 else len(names)
    gone = [name for name in after if names.index(name) < group]
    facts = well(folder, **{how: {part: "45 s" if how == "hung" else "was killed by SIGSEGV"}})
    for name in gone:
        facts = but(facts, name, None)
    found = verdicts(facts)
    assert found[failing].result == FAIL
    words = "no answer in 45 s" if how == "hung" else "its process was killed by SIGSEGV"
    assert words in found[failing].seen
    # It alone fails: what depends on it names it, and what comes after was not reached.
    assert [name for name, one in found.items() if one.result == FAIL] == [failing]
    if how == "hung":
        assert "anew" not in found[failing].action
        assert "active_gate_timeout" in found[failing].action
        # A slow machine is no broken one.
        for slow in ({"cut_from": 90.0}, {"load": 4.8}):
            maybe = verdicts(dataclasses.replace(facts, **slow))
            assert not [name for name, one in maybe.items() if one.result == FAIL], slow
            assert maybe[failing].result == UNKNOWN
            assert words in maybe[failing].seen
            assert "its load is" in maybe[failing].action
            assert "anew" not in maybe[failing].action
    for one in found.values():
        if one.result == SKIPPED:
            assert one.seen.endswith(f"see {failing}"), one
        elif one.result == UNKNOWN:
            assert "not reached" in one.seen or f"see {failing}" in one.seen, one


@pytest.mark.parametrize(
    ("part", "value", "failing"),
    [
        ("torch", {"error": "ImportError: x"}, "torch"),
        ("cuda", {"error": "RuntimeError: x"}, "torch_cuda"),
        ("cuda", NO_GPU, "torch_cuda"),
        ("transformers", {"error": "ImportError: x"}, "model_config"),
        ("tokenizer:0", {"error": "ValueError: bad"}, "tokenizer"),
        ("tokenizer:0", {"template": False}, "chat_template"),
        ("lengths:0", {"error": "OSError: gone"}, "chat_tokens"),
        ("lengths:0", {"data/a.jsonl": REFUSED}, "chat_template"),
    ],
)
def test_one_cause_fails_one_check(folder: str, part: str, value: Any, failing: str) -> None:
    """Else a person reads two pieces of advice, of which one is wrong."""
    facts = but(well(folder), part, value)
    gone = {
        "torch": ["cpu_products", "cuda", "gpu_products", "bandwidth"],
        "cuda": ["gpu_products", "bandwidth"],
        "transformers": ["config:0", "tokenizer:0", "lengths:0"],
        "tokenizer:0": ["lengths:0"],
    }
    for name in gone.get(part, []):
        facts = but(facts, name, None)
    found = verdicts(facts)
    assert [name for name, one in found.items() if one.result in (FAIL, WARN)] == [failing]
    others = [one for one in found.values() if one.result in (SKIPPED, UNKNOWN)]
    assert others
    assert all(f"see {failing}" in one.seen for one in others), others


def test_a_model_that_can_not_be_read_fails_once(folder: str) -> None:
    """The tokenizer is loaded by the configuration: where both fail, the first one says why."""
    facts = but(well(folder), "config:0", {"error": "OSError: no config.json"})
    facts = but(but(facts, "tokenizer:0", {"error": "OSError: no config.json"}), "lengths:0", None)
    found = verdicts(facts)
    assert [name for name, one in found.items() if one.result == FAIL] == ["model_config"]
    assert "see model_config" in found["tokenizer"].seen
    gone = dataclasses.replace(well(folder), bases=(Base("/srv/none", "", (STAGE,)),))
    found = verdicts(gone)
    assert [name for name, one in found.items() if one.result == FAIL] == ["model_config"]
    for name in ("tokenizer", "chat_template", "chat_tokens"):
        assert (found[name].result, found[name].seen) == (
            SKIPPED,
            "/srv/none is not there, see model_config",
        )


def test_a_gpu_that_hangs_does_not_keep_the_model_from_being_looked_at(folder: str) -> None:
    facts = well(folder, hung={"gpu_products": "45 s"})
    for part in ("gpu_products", "bandwidth"):
        facts = but(facts, part, None)
    found = verdicts(facts)
    assert found["gpu_bandwidth"].seen == "not reached, since gpu_products hung"
    assert found["tokenizer"].result == found["chat_tokens"].result == OK


@pytest.mark.parametrize("mode", ["strict", "warn", "off"])
def test_the_mode_governs_the_gpu_alone(folder: str, mode: str) -> None:
    facts = but(well(folder), "gpu_products", [WRONG])
    findings = active_gate.run_checks(facts, mode, {})
    assert gate.judge(findings, mode)[0] is (mode == "strict")
    result = {one.check: one.result for one in findings}
    assert result["gpu_product"] == (SKIPPED if mode == "off" else FAIL)
    broken = active_gate.run_checks(but(facts, "tokenizer:0", {"error": "x"}), mode, {})
    assert gate.judge(broken, mode)[0]


def test_a_check_is_silenced_by_its_name(folder: str) -> None:
    facts = but(well(folder), "gpu_products", [WRONG])
    findings = active_gate.run_checks(facts, "strict", {"gpu_product": "known"})
    assert not gate.judge(findings, "strict")[0]
    (one,) = [f for f in findings if f.check == "gpu_product"]
    assert (one.silenced, one.would_be) == ("known", FAIL)


def test_before_there_is_a_python_everything_is_unknown(folder: str) -> None:
    facts = Facts(bases=well(folder).bases)
    assert active_facts.gather(facts, "/", "strict", "raise SystemExit", 1) is facts
    assert {one.result for one in verdicts(facts).values()} == {UNKNOWN}


def test_a_model_that_is_not_there_yet_is_unknown_and_a_path_that_is_not_fails() -> None:
    facts = dataclasses.replace(well(""), bases=(Base("owner/name", "", (STAGE,)),))
    assert verdicts(facts)["tokenizer"].result == UNKNOWN
    facts = dataclasses.replace(facts, bases=(Base("/srv/none", "", (STAGE,)),))
    assert verdicts(facts)["model_config"].seen == "/srv/none is not there"
    assert verdicts(facts)["model_config"].result == FAIL


def test_a_model_without_all_of_its_weights(folder: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    facts = dataclasses.replace(well(folder), bases=(base_in("mine", str(tmp_path), [STAGE]),))
    assert "no weights, or not all" in verdicts(facts)["model_config"].seen


def test_base_models_are_found_each_once(tmp_path: Path) -> None:
    (tmp_path / "models/m").mkdir(parents=True)
    stages = [
        STAGE,
        {**STAGE, "name": "writing"},
        {**STAGE, "name": "own", "command": ["sh"]},
        {**STAGE, "name": "hub", "model": {**STAGE["model"], "model_name_or_path": "o/n"}},
    ]
    bases = active_facts.bases_of(stages, str(tmp_path), {"hf_home": str(tmp_path)}, {})
    assert [(base.name, base.folder, len(base.stages)) for base in bases] == [
        ("models/m", str(tmp_path / "models/m"), 2),
        ("o/n", "", 1),
    ]
    asked = active_facts.requests_for(Facts(bases=bases, gpus=2), str(tmp_path), "off")
    assert asked["torch"] == {"gpus": 0}
    assert [model["number"] for model in asked["model"]["models"]] == [0]


# What the training's Python may do


def asked(program: str, seconds: float = 20.0, python: str = sys.executable) -> dict[str, Any]:
    return active_ask.ask(python, program, {"torch": {"gpus": 1}}, seconds)


BEGUN = 'print(\'{"begin": "cuda"}\', flush=True)\n'


@pytest.mark.parametrize(
    ("program", "died"),
    [
        (BEGUN + "import os; os.kill(os.getpid(), 11)", {"cuda": "was killed by SIGSEGV"}),
        (BEGUN + "raise SystemExit('boom')", {"cuda": "ended with status 1: boom"}),
        ("no Python", {"torch": "SyntaxError: invalid syntax"}),
        (BEGUN + 'print(\'{"part": "cuda", "facts": {}}\')', {}),
        ("print('not JSON'); print('[1]')", {}),
    ],
)
def test_a_child_that_dies_is_told_by_the_part_it_was_in(program: str, died: Any) -> None:
    answer = asked(program)
    assert answer["hung"] == {}
    assert set(answer["died"]) == set(died)
    for part, words in died.items():
        assert words in answer["died"][part]


@pytest.mark.parametrize(
    "program",
    [
        BEGUN + "import time; time.sleep(60)",
        BEGUN + "import signal, time; signal.signal(15, lambda *_: None); time.sleep(60)",
        # It closes its output and goes on; and what it starts goes with it.
        BEGUN + "import os, subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)",
        BEGUN + "import os, time; os.close(1); time.sleep(60)",
    ],
)
def test_a_child_that_hangs_is_killed_in_its_time(program: str, tmp_path: Path) -> None:
    noted = tmp_path / "group"
    note = f"import os; open({str(noted)!r}, 'w').write(str(os.getpgrp()))\n"
    began = time.monotonic()
    answer = asked(note + program, 1.0)
    assert time.monotonic() - began < 4
    group = noted.read_text()
    deadline = time.monotonic() + 2  # what was killed takes a moment to be gone
    while any(_group_of(path) == group for path in Path("/proc").glob("[0-9]*/stat")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert answer["hung"] == {"cuda": "1 s"}
    assert answer["died"] == {}


def _group_of(path: Path) -> str:
    """The process group of a process that hasn't ended (proc_pid_stat(5))."""
    try:
        state, _parent, group = path.read_text(errors="replace").rpartition(")")[2].split()[:3]
    except OSError:
        return ""
    return group if state != "Z" else ""


def test_what_got_much_less_than_its_time_is_not_called_broken(
    run_module: Any, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 60\n")
    python.chmod(0o755)
    found = run_module(
        "active_gate", project_root=str(tmp_path), python=str(python), timeout=1, full_timeout=45
    )
    (torch,) = [one for one in found["findings"] if one["check"] == "torch"]
    assert (torch["result"], found["stop"]) == (UNKNOWN, False)
    assert torch["seen"] == "no answer in 1 s (cut from 45: no more was left of the minute)"


def test_a_file_that_nothing_will_bring_is_not_said_to_come(folder: str) -> None:
    facts = but(well(folder, coming=()), "lengths:0", {"data/a.jsonl": {"missing": True}})
    found = verdicts(facts)
    for check in ("chat_template", "chat_tokens"):
        assert found[check].result == SKIPPED
        assert found[check].seen.endswith("data/a.jsonl is not on the host, see data_files")
    coming = verdicts(dataclasses.replace(facts, coming=("data/a.jsonl",)))
    assert coming["chat_tokens"].result == UNKNOWN
    assert "playbooks/sync.yml" in coming["chat_template"].action


def test_a_model_folder_that_the_passive_gate_missed_is_told_there_alone(folder: str) -> None:
    facts = well(folder, bases=(base_in("models/nope", "", [STAGE]),), lost=("models/nope",))
    found = verdicts(facts)
    assert not [one for one in found.values() if one.result == FAIL]
    assert found["model_config"].seen.endswith("see model_folder")
    assert "to fetch" not in found["model_config"].seen


def test_a_dead_driver_is_one_cause(folder: str) -> None:
    facts = but(well(folder, driver_fails=True), "cuda", NO_GPU)
    for built in ("12.4", None):
        found = verdicts(but(facts, "torch", {"cuda": built}))
        assert [name for name, one in found.items() if one.result == FAIL] == []
        assert found["torch_cuda"].seen.endswith("see driver")


def test_a_python_that_is_not_there() -> None:
    answer = asked("", python="/nowhere/python")
    assert answer["died"] == {"torch": "can't be started: No such file or directory"}


def test_the_module_answers_within_its_time(run_module: Any, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 60\n")
    python.chmod(0o755)
    (tmp_path / "models/m").mkdir(parents=True)
    began = time.monotonic()
    found = run_module(
        "active_gate",
        project_root=str(tmp_path),
        python=str(python),
        stages=[STAGE],
        timeout=1,
        silence={"gpu_ecc": "not ours", "torch_cuda": "no GPU here"},
    )
    assert time.monotonic() - began < 6
    seen = {one["check"]: one["seen"] for one in found["findings"]}
    result = {one["check"]: one["result"] for one in found["findings"]}
    assert seen["torch"] == "no answer in 1 s"
    # On a machine that is busy, as this one may be, it may just be slow.
    assert result["torch"] in (FAIL, UNKNOWN)
    assert found["stop"] == (result["torch"] == FAIL)
    assert result["torch_cuda"] == SKIPPED
    assert "no answer" in found["table"]


def test_a_folder_of_models_that_hangs_is_named(
    run_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging_below(monkeypatch, tmp_path / "dead")
    began = time.monotonic()
    found = run_module(
        "active_gate",
        project_root=str(tmp_path),
        python=sys.executable,
        stages=[STAGE],
        storage={"hf_home": str(tmp_path / "dead")},
    )
    assert time.monotonic() - began < 20
    assert found["msg"] == f"{tmp_path / 'dead'} gives no answer in 1 s: a dead mount?"
    assert found["category"] == "infra"


def test_the_module_refuses_a_silence_without_a_reason(run_module: Any, tmp_path: Path) -> None:
    found = run_module("active_gate", project_root=str(tmp_path), silence={"torch": " "})
    assert found["failed"]
    assert "gives no reason for torch" in found["msg"]


# The real program, on a processor


def test_a_product_that_is_wrong_in_one_place_is_seen() -> None:
    import torch  # noqa: PLC0415

    assert gate_torch.products(torch, "cpu", bfloat16=True)["bfloat16"]["wrong"] == 0

    class Broken:
        """torch on a device that adds up wrong in one place."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def randint(*args: Any, **options: Any) -> Any:
            return Matrix(torch.randint(*args, **options))

    class Matrix:
        def __init__(self, values: Any) -> None:
            self.values = values

        def to(self, *_args: Any) -> Any:
            return Matrix(self.values.to(*_args))

        def __matmul__(self, other: Any) -> Any:
            made = self.values @ other.values
            if made.dtype == torch.float32:
                made[3, 4] += 1
            return made

    found = gate_torch.products(Broken(), "cpu", bfloat16=False)
    assert found["float32"] == {"wrong": 1, "of": gate_torch.SIDE**2}


CHATS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {
        "messages": [
            {"role": "user", "content": "a longer question"},
            {"role": "assistant", "content": "an answer"},
            {"role": "user", "content": "what comes after the last answer is not learned"},
        ]
    },
    {"messages": [{"role": "user", "content": "nobody answers"}]},
    {
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
        ]
    },
]


class Words:
    """A tokenizer for which each word is a token."""

    def apply_chat_template(self, messages: Any, tools: Any, tokenize: bool) -> str:
        assert (tools, tokenize) == (None, False)
        if any("refuse" in message["content"] for message in messages):
            raise ValueError("I refuse")
        return " ".join(
            f"{m['role']} {m['content']} {json.dumps(m.get('tool_calls', []))}" for m in messages
        )

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, Any]:
        assert not add_special_tokens
        return {"input_ids": text.split()}


def test_chats_are_counted_up_to_their_last_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(chat) for chat in CHATS]
    refused = json.dumps({"messages": [{"role": "assistant", "content": "refuse"}]})
    path.write_text("\ufeff" + "\n".join([*lines, "no JSON", "", refused]), encoding="utf-8")
    found = gate_torch.measure(Words(), str(path))
    assert sorted(found["lengths"]) == [[1, 6], [2, 9], [3, 0], [4, 12]]
    assert found["lengths"][0] == [4, 12]
    (call,) = gate_torch.as_rendered(CHATS[3]["messages"][1])["tool_calls"]
    assert call == {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert found["refused"] == [[7, "ValueError: I refuse"]]
    assert gate_torch.measure(Words(), str(tmp_path / "none")) == {"missing": True}


def test_of_many_chats_those_with_the_most_text_are_counted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gate_torch, "ALL_UP_TO", 10)
    monkeypatch.setattr(gate_torch, "LARGEST", 3)
    chats = [{"messages": [{"role": "assistant", "content": "x " * n}]} for n in range(20)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    found, of = gate_torch.read_chats(str(path))
    assert ([line for line, _ in found], of) == ([20, 19, 18], 20)


def test_the_program_stands_alone() -> None:
    """Its text is sent to another Python: it may import nothing of this package."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", inspect.getsource(gate_torch) + "\nprint('read')", "none"],
        input='{"gpus": 0}',
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert "KeyError: 'none'" in done.stderr
    assert "remote_train" not in inspect.getsource(gate_torch)


@pytest.mark.training
def test_the_tokens_are_those_that_the_training_counts(tmp_path: Path) -> None:
    """The real program in a real Python, held against the training's own masker."""
    import transformers  # noqa: PLC0415

    import demo_base  # noqa: PLC0415
    from training.chats import read_chats  # noqa: PLC0415
    from training.masking import Masker  # noqa: PLC0415
    from training.template import ChatTemplate  # noqa: PLC0415

    root = HOUSE / "examples" / "tutor"
    file = "data/training/processed/style_sft.jsonl"
    made = demo_base._tokenizer([chat.messages for chat in read_chats(root, file).chats])
    base = tmp_path / "base"
    made.save_pretrained(base)
    (base / "config.json").write_text('{"model_type": "qwen3"}')
    stage = {**STAGE, "train": [file]}
    facts = Facts(python=sys.executable, bases=(Base("base", str(base), (stage,)),), gpus=1)
    facts = active_facts.gather(facts, str(root), "off", inspect.getsource(gate_torch), 60)
    assert facts.hung == facts.died == {}
    assert facts.part("cpu_products") == {
        kind: {"wrong": 0, "of": gate_torch.SIDE**2} for kind in ("float32", "bfloat16")
    }
    assert facts.part("config:0")["type"] == "qwen3"
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    masker = Masker(ChatTemplate(tokenizer), 10**6)
    right = {chat.line: masker.encode(chat).tokens for chat in read_chats(root, file).chats}
    assert dict(facts.part("lengths:0")[file]["lengths"]) == right


RAISES = "{% for m in messages %}{{ raise_exception('no such role') }}{% endfor %}"

# The base model, what is done to its folder, the check that fails or warns, and words of its own.
MODELS: list[tuple[str, dict[str, str | None], str, str, str]] = [
    ("sound", {}, "", OK, ""),
    ("no config", {"config.json": None}, "model_config", FAIL, ""),
    ("config broken", {"config.json": '{"model_type": '}, "model_config", FAIL, ""),
    ("no model of chats", {"config.json": '{"model_type": "vit"}'}, "model_config", FAIL, "vit"),
    ("no weights", {"model.safetensors": None}, "model_config", FAIL, "has no weights"),
    ("tokenizer cut off", {"tokenizer.json": '{"version": '}, "tokenizer", FAIL, ""),
    ("no template", {"chat_template.jinja": None}, "chat_template", WARN, "has none"),
    ("template refuses", {"chat_template.jinja": RAISES}, "chat_template", FAIL, "no such role"),
]


@pytest.mark.training
def test_a_real_transformers_on_models_that_are_broken(tmp_path: Path) -> None:
    """Each in its own way; one check alone fails, and the chats fit or don't, in real tokens."""
    import demo_base  # noqa: PLC0415
    from training.chats import read_chats  # noqa: PLC0415

    root = HOUSE / "examples" / "tutor"
    file = "data/training/processed/style_sft.jsonl"
    made = demo_base._tokenizer([chat.messages for chat in read_chats(root, file).chats])
    bases = []
    for name, changes, _check, _result, _words in MODELS:
        folder = tmp_path / name
        made.save_pretrained(folder)
        (folder / "config.json").write_text('{"model_type": "qwen3"}')
        (folder / "model.safetensors").touch()
        for changed, text in changes.items():
            (folder / changed).unlink()
            if text is not None:
                (folder / changed).write_text(text)
        settings = {**SETTINGS, "max_length": 4000}
        stage = {**STAGE, "train": [file], "settings": settings}
        bases.append(base_in(name, str(folder), [stage]))
    facts = Facts(python=sys.executable, bases=tuple(bases))
    facts = active_facts.gather(facts, str(root), "off", inspect.getsource(gate_torch), 120)
    assert facts.hung == facts.died == {}
    for number, (name, _changes, check, result, words) in enumerate(MODELS):
        parts = {
            key.replace(f":{number}", ":0"): value
            for key, value in facts.found.items()
            if not key.partition(":")[2] or key.endswith(f":{number}")
        }
        own = dataclasses.replace(facts, found=parts, bases=(bases[number],))
        found = verdicts(own, "off")
        wrong = {key: one for key, one in found.items() if one.result in (FAIL, WARN)}
        assert list(wrong) == ([check] if check else []), (name, wrong)
        if check:
            assert wrong[check].result == result
            assert words in wrong[check].seen
            assert wrong[check].action
        else:
            assert found["chat_template"].seen == "renders all 36 chats"
            shorter = {**bases[0].stages[0], "settings": SETTINGS}
            own = dataclasses.replace(own, bases=(base_in(name, bases[0].folder, [shorter]),))
            cut = verdicts(own, "off")["chat_tokens"]
            assert (cut.result, "over 100 tokens" in cut.seen) == (WARN, True)
            assert cut.action.startswith("Raise max_length")


@pytest.mark.parametrize("timeout", [0, -3, 50.1, float("nan")])
def test_a_timeout_that_is_none_is_refused(run_module, tmp_path, timeout):
    found = run_module("active_gate", project_root=str(tmp_path), timeout=timeout)
    assert found["failed"]
    assert found["msg"].startswith("active_gate_timeout is ")
    assert found["hint"] == "Give it a number of seconds from 1 to 50."
    assert found["category"] == "ops"
