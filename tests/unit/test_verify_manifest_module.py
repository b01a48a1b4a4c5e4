"""The modules verify_manifest and apply_bundle, inside Ansible and as Ansible runs them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from remote_train.bundle import build
from remote_train.project_files import ProjectFile

HOUSE = Path(__file__).resolve().parents[2]
A = hashlib.sha256(b"a").hexdigest()
A1 = hashlib.sha1(b"a", usedforsecurity=False).hexdigest()


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    (folder / "SYNC_MANIFEST.sha256").write_text(f"{A}  a\n")
    return folder


def warnings(result):
    return " ".join(map(str, result.get("warnings", [])))


@pytest.mark.parametrize("check", [False, True])
def test_a_sound_folder(run_module, root, check):
    result = run_module("verify_manifest", root=str(root), check=check)
    assert result.pop("seconds") >= 0
    result.pop("invocation")
    assert result == {
        "changed": False,
        "algorithm": "sha256",
        "legacy": False,
        "verified": 1,
        "bytes": 1,
        "manifest": str(root / "SYNC_MANIFEST.sha256"),
        "problems": [],
        "problem_count": 0,
    }


def test_every_problem_is_reported_and_the_message_is_one_sentence(run_module, root):
    (root / "a").write_bytes(b"b")
    (root / os.fsdecode(b"odd\xff\n")).write_bytes(b"")
    result = run_module("verify_manifest", root=str(root))
    assert result["failed"]
    assert result["problems"] == [
        {
            "line": 1,
            "path": "a",
            "problem": "digest-differs",
            "message": "line 1: a has another digest than listed",
        },
        {
            "line": None,
            "path": "odd\\xff\\n",
            "problem": "unlisted",
            "message": "odd\\xff\\n is there and not listed",
        },
    ]
    assert result["msg"] == (
        f"{root}/SYNC_MANIFEST.sha256 has 2 problems; the first: line 1: a has another digest"
        " than listed"
    )
    assert result["category"] == "integrity"


def test_legacy_and_windows_forms_are_warned_of(run_module, root):
    (root / "SYNC_MANIFEST.sha256").unlink()
    (root / "SYNC_MANIFEST.txt").write_bytes(b"\xef\xbb\xbf" + f"{A1}  a\r\n".encode())
    result = run_module("verify_manifest", root=str(root))
    assert (result["algorithm"], result["legacy"]) == ("sha1", True)
    for words in ("SHA-1", "CRLF", "byte order mark"):
        assert words in warnings(result)


def test_options_reach_the_code(run_module, root):
    (root / "extra").touch()
    (root / "other.list").write_text(f"{A}  a\n")
    assert (
        run_module("verify_manifest", root=str(root), manifest="other.list")["problem_count"] == 1
    )
    result = run_module(
        "verify_manifest", root=str(root), manifest="other.list", allow_unlisted=True, workers=2
    )
    assert result["verified"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"root": "{root}/none"}, "no folder"),
        ({"root": "{root}", "manifest": "none"}, "none can't be read"),
        ({"root": "{root}", "workers": 0}, "workers is 0"),
    ],
)
def test_mistakes_are_one_sentence(run_module, root, arguments, words):
    filled = {
        key: value.format(root=root) if isinstance(value, str) else value
        for key, value in arguments.items()
    }
    result = run_module("verify_manifest", **filled)
    assert result["failed"]
    assert words in result["msg"]
    assert "exception" not in result


def test_apply_bundle_with_check_and_diff(run_module, root, tmp_path):
    made = build(str(root), [ProjectFile("a", 1, False)], str(tmp_path / "out"), "x")
    arguments = {
        "src": made.paths[0],
        "root": str(tmp_path / "to"),
        "state_dir": str(tmp_path / "to/state"),
    }
    result = run_module("apply_bundle", check=True, diff=True, **arguments)
    assert result["changed"]
    assert result["diff"] == {"before": "", "after": f"{A} - a\n"}
    assert not (tmp_path / "to").exists()
    result = run_module("apply_bundle", sha256=made.sha256, **arguments)
    assert (result["changed"], result["added"], result["sha256"]) == (True, ["a"], made.sha256)
    assert "diff" not in result
    assert not run_module("apply_bundle", **arguments)["changed"]
    result = run_module("apply_bundle", sha256="0" * 64, **arguments)
    assert [problem["problem"] for problem in result["problems"]] == ["archive-digest"]
    assert "64 hex digits" in run_module("apply_bundle", sha256="0", **arguments)["msg"]


def test_as_ansible_itself_runs_it(root, tmp_path):
    environment = {
        **os.environ,
        "ANSIBLE_LIBRARY": str(HOUSE / "plugins" / "modules"),
        "ANSIBLE_MODULE_UTILS": str(HOUSE / "plugins" / "module_utils"),
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "ansible"),
        "ANSIBLE_REMOTE_TEMP": str(tmp_path / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
    }
    (root / "a").write_bytes(b"b")
    (root / os.fsdecode(b"latin\xe9")).touch()
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible"),
            "localhost",
            "-m",
            "verify_manifest",
            "-a",
            f"root={root}",
            "-e",
            f"ansible_python_interpreter={sys.executable}",
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    result = json.loads(done.stdout.partition("=> ")[2])
    assert [problem["problem"] for problem in result["problems"]] == ["digest-differs", "unlisted"]
    assert result["problems"][1]["path"] == "latin\\xe9"


@pytest.mark.parametrize("name", ["verify_manifest", "apply_bundle"])
def test_the_documentation_renders(name):
    environment = {**os.environ, "ANSIBLE_LIBRARY": str(HOUSE / "plugins" / "modules")}
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-doc"), "-t", "module", "-j", name],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    shown = json.loads(done.stdout)[name]
    assert shown["doc"]["attributes"]["check_mode"]["support"] == "full"
    assert shown["examples"]
    assert "problems" in shown["return"]
