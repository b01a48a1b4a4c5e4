"""The gate: every check in a case that is ok and in one that fails, and the verdict."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import gate, host_facts
from remote_train.chats import FileReport, Problem
from remote_train.gate_model import MODES, RESULTS, SCOPES, Context, Finding
from remote_train.host_facts import HostFacts
from remote_train.nvidia_smi import Answer, parse
from remote_train.text_table import text_table, width, wrap
from tests.unit import smi_documents as docs

GIB = 1024**3
HEALTHY_HOST = HostFacts(
    project_root="/srv/tutor",
    folder="/srv",
    read_only=False,
    disk_free=100 * GIB,
    disk_total=200 * GIB,
    inodes_free=10**6,
    inodes_total=10**7,
    memory_available=64 * GIB,
)
SOUND_FILE = FileReport("data/style.jsonl", lines=3, chats=3)


def healthy(**changes: Any) -> Context:
    """A machine in which nothing is wrong, but for some changes."""
    context = Context(
        smi=Answer("ok", code=0, snapshot=parse(docs.HEALTHY)),
        gpu_memory_gib=80,
        min_disk_gib=10,
        host=HEALTHY_HOST,
        packages={"torch": "2.13.0+cu126", "peft": "0.21.2"},
        requirements={"torch": ">=2.6", "peft": ">=0.21,<1"},
        data_files=(SOUND_FILE,),
    )
    return dataclasses.replace(context, **changes)


def card(*edits: docs.Edit, **changes: Any) -> Context:
    """That machine with an edited answer of nvidia-smi."""
    return healthy(smi=Answer("ok", code=0, snapshot=parse(docs.document(*edits))), **changes)


def host(**changes: Any) -> Context:
    """That machine with other facts of disk and memory."""
    return healthy(host=dataclasses.replace(HEALTHY_HOST, **changes))


def broken_file() -> FileReport:
    report = FileReport("data/style.jsonl", lines=9)
    for line in range(1, 6):
        report.add(line, "it has no messages")
    return report


def finding(context: Context, check: str) -> Finding:
    (found,) = [item for item in gate.run_checks(context) if item.check == check]
    return found


def test_healthy_data_centre_card_leaves_nothing_unknown() -> None:
    results = {found.check: found.result for found in gate.run_checks(healthy())}
    assert results.pop("gpu_retired_pages") == "skipped"  # it remaps rows instead
    assert set(results.values()) == {"ok"}, results


@pytest.mark.parametrize("edit", [docs.older, docs.newer, docs.turing, docs.gpus(8)])
def test_other_healthy_cards_neither_warn_nor_fail(edit: docs.Edit) -> None:
    results = {found.check: found.result for found in gate.run_checks(card(edit))}
    assert set(results.values()) <= {"ok", "skipped"}, results


def test_consumer_card_is_no_failure() -> None:
    results = {
        found.check: found.result
        for found in gate.run_checks(card(docs.consumer, gpu_memory_gib=24))
    }
    unknown = {check for check, result in results.items() if result == "unknown"}
    assert unknown == {"gpu_ecc", "gpu_row_remap", "gpu_retired_pages"}
    assert set(results.values()) <= {"ok", "unknown"}, results


def silent(state: str, **how: Any) -> Context:
    return healthy(smi=Answer(state, program="nvidia-smi", **how))


LEAK = Problem("data/bench.jsonl", 2, "the same question is in the training data (x, line 1)")

# Context, check, result, and a piece of what is seen and of what to do.
CASES = [
    (silent("missing"), "driver", "fail", "there is no nvidia-smi", "Rent a machine"),
    (
        silent("missing", text="the driver is loaded"),
        "driver",
        "fail",
        "though the driver is loaded",
        "gpu_gate_nvidia_smi",
    ),
    (silent("unusable", text="Exec format error"), "driver", "fail", "Exec format", "Install"),
    (silent("hangs", seconds=20.0), "driver", "fail", "no answer within 20 s", "reboot"),
    (
        silent("failed", code=9, text="it couldn't communicate with the NVIDIA driver."),
        "driver",
        "fail",
        "the driver isn't loaded (exit 9",
        "Reboot",
    ),
    (
        silent("failed", code=18, text="Failed: Driver/library version mismatch"),
        "driver",
        "fail",
        "different versions",
        "Reboot",
    ),
    (silent("failed", code=18), "driver", "fail", "different versions", "Reboot"),
    (
        silent("failed", code=15, text="GPU 0000:3B:00.0: GPU is lost."),
        "driver",
        "fail",
        "fallen off the bus",
        "Reboot",
    ),
    (silent("failed", code=77, text="odd"), "driver", "fail", "exit 77: odd", "Run nvidia-smi"),
    (silent("failed", code=-9), "driver", "fail", "killed by signal 9", "Run nvidia-smi"),
    (silent("unreadable", text="it is cut"), "driver", "fail", "it is cut", "Run nvidia-smi"),
    (
        healthy(smi=Answer("ok", code=14, text="x", snapshot=parse(docs.HEALTHY))),
        "driver",
        "warn",
        "infoROM",
        "Ask the provider",
    ),
    (healthy(smi=None), "driver", "skipped", "not asked", ""),
    (card(gpu_count=2), "gpu_count", "fail", "1 usable GPU (NVIDIA H100 80GB HBM3)", "Rent"),
    (card(docs.gpus(8), gpu_count=8), "gpu_count", "ok", "8 usable GPUs", ""),
    (
        card(docs.gpus(2), docs.only(1, docs.lost), gpu_count=2),
        "gpu_count",
        "fail",
        "1 usable GPU (NVIDIA H100 80GB HBM3) of 2",
        "Rent",
    ),
    (card(docs.mig(0)), "gpu_count", "fail", "0 usable GPUs of 1", "MIG"),
    (card(docs.mig(2)), "gpu_count", "ok", "1 usable GPU", ""),
    (card(docs.lost), "gpu_state", "fail", "GPU 0: GPU is lost", "Reset"),
    (
        card(docs.put(gpu_reset_status__reset_required="Yes")),
        "gpu_state",
        "fail",
        "GPU 0: needs reset",
        "Reset",
    ),
    (card(gpu_memory_gib=141), "gpu_memory", "fail", "79.6 GiB", "Rent a larger GPU"),
    (card(docs.mig(2), gpu_memory_gib=24), "gpu_memory", "fail", "9.8 GiB", "Rent a larger"),
    (card(docs.put(fb_memory_usage__total="N/A")), "gpu_memory", "unknown", "not told", ""),
    (
        card(docs.put(fb_memory_usage__free="40000 MiB")),
        "gpu_memory_free",
        "fail",
        "39.1 GiB free",
        "End what holds",
    ),
    (
        card(docs.put(fb_memory_usage__free="0 MiB"), gpu_memory_gib=0),
        "gpu_memory_free",
        "warn",
        "0.0 GiB free",
        "End what holds",
    ),
    (card(gpu_memory_gib=0), "gpu_memory_free", "ok", "79.1 GiB free", ""),
    (
        card(docs.process()),
        "gpu_processes",
        "fail",
        "GPU 0: pid 4242 (python, 9000 MiB)",
        "End them",
    ),
    (
        card(docs.gpus(2), docs.only(1, docs.process())),
        "gpu_processes",
        "warn",
        "GPU 1: pid 4242",
        "CUDA_VISIBLE_DEVICES",
    ),
    (card(docs.process(kind="G", name="Xorg")), "gpu_processes", "ok", "none", ""),
    (card(docs.process(kind="C+G", name="gnome-shell")), "gpu_processes", "ok", "none", ""),
    (card(docs.process(kind="M+C")), "gpu_processes", "fail", "pid 4242", "End them"),
    (card(docs.process(kind="N/A")), "gpu_processes", "fail", "pid 4242", "End them"),
    (card(docs.put(processes="N/A")), "gpu_processes", "unknown", "not told", ""),
    (
        card(docs.put(ecc_errors__volatile__dram_uncorrectable="2")),
        "gpu_ecc",
        "fail",
        "GPU 0: 2 uncorrected",
        "Reset",
    ),
    (
        card(docs.put(ecc_errors__aggregate__sram_threshold_exceeded="Yes")),
        "gpu_ecc",
        "fail",
        "over the limit",
        "Reset",
    ),
    (
        card(
            docs.consumer,
            docs.put(ecc_mode__current_ecc="Disabled"),
        ),
        "gpu_ecc",
        "skipped",
        "switched off",
        "",
    ),
    (
        card(docs.put(remapped_rows__remapped_row_pending="Yes")),
        "gpu_row_remap",
        "fail",
        "GPU 0: a row waits to be remapped",
        "Reset",
    ),
    (
        card(docs.put(remapped_rows__remapped_row_failure="Yes")),
        "gpu_row_remap",
        "fail",
        "couldn't be remapped",
        "another machine",
    ),
    (card(docs.turing), "gpu_row_remap", "skipped", "retires pages", ""),
    (card(docs.turing), "gpu_retired_pages", "ok", "3 retired, none pending", ""),
    (
        card(docs.turing, docs.put(retired_pages__pending_retirement="Yes")),
        "gpu_retired_pages",
        "fail",
        "GPU 0: a page waits",
        "Reset",
    ),
    (
        card(docs.throttled(hw_slowdown="Active", hw_thermal_slowdown="Active")),
        "gpu_throttle",
        "fail",
        "hw_slowdown, hw_thermal_slowdown, and nothing runs on it",
        "another machine",
    ),
    (
        card(docs.throttled(hw_slowdown="Active"), docs.put(utilization__gpu_util="97 %")),
        "gpu_throttle",
        "warn",
        "GPU 0: hw_slowdown",
        "another machine",
    ),
    (card(docs.throttled(sw_thermal_slowdown="Active")), "gpu_throttle", "warn", "sw_", "take"),
    (card(docs.throttled(sw_power_cap="Active")), "gpu_throttle", "ok", "none", ""),
    (card(docs.drop("clocks_event_reasons")), "gpu_throttle", "unknown", "not told", ""),
    (
        card(docs.put(temperature__gpu_temp="89 C", temperature__gpu_temp_tlimit="-2 C")),
        "gpu_temperature",
        "fail",
        "GPU 0: 89 °C",
        "cooled down",
    ),
    (
        card(docs.put(temperature__gpu_temp="80 C", temperature__gpu_temp_tlimit="7 C")),
        "gpu_temperature",
        "warn",
        "GPU 0: 80 °C",
        "cooled down",
    ),
    # It slows down at a margin of -2 °C, not of 0.
    (card(docs.put(temperature__gpu_temp_tlimit="-1 C")), "gpu_temperature", "warn", "31", ""),
    (
        card(docs.turing, docs.put(temperature__gpu_temp="93 C")),
        "gpu_temperature",
        "fail",
        "93",
        "",
    ),
    (
        card(docs.turing, docs.put(temperature__gpu_temp="84 C")),
        "gpu_temperature",
        "warn",
        "84",
        "",
    ),
    (card(docs.turing, docs.put(temperature__gpu_temp="82 C")), "gpu_temperature", "ok", "82", ""),
    (card(docs.put(temperature__gpu_temp="N/A")), "gpu_temperature", "unknown", "not told", ""),
    (host(read_only=True), "disk_writable", "fail", "read-only", "project_root"),
    (host(blocked="/srv is not a folder"), "disk_writable", "fail", "not a folder", "project_root"),
    (host(read_only=None), "disk_writable", "unknown", "not known", ""),
    (host(disk_free=9 * GIB), "disk_free", "fail", "9.0 GiB free at /srv", "Make room"),
    (host(disk_free=10 * GIB), "disk_free", "ok", "10.0 GiB", ""),
    (host(disk_free=None), "disk_free", "unknown", "not known", ""),
    (host(inodes_free=5), "disk_inodes", "fail", "5 free at /srv", "Delete files"),
    (host(inodes_free=0, inodes_total=0), "disk_inodes", "skipped", "no fixed number", ""),
    (host(memory_available=GIB // 4), "memory", "fail", "0.2 GiB", "End other programs"),
    (host(memory_available=GIB), "memory", "warn", "1.0 GiB", "End other programs"),
    (host(memory_available=None), "memory", "unknown", "not known", ""),
    (healthy(packages=None), "packages", "unknown", "no Python for the training yet", ""),
    (
        healthy(packages={"torch": "2.5.1", "peft": None}),
        "packages",
        "fail",
        "torch is 2.5.1, not >=2.6, peft is missing",
        "provisioning",
    ),
    (healthy(requirements={}), "packages", "skipped", "no package", ""),
    (
        healthy(data_files=(broken_file(),)),
        "data_files",
        "fail",
        "data/style.jsonl, line 1: it has no messages. data/style.jsonl, line 2: it has no "
        "messages. data/style.jsonl, line 3: it has no messages. And 2 more.",
        "correct the named lines",
    ),
    (healthy(), "data_files", "ok", "3 chats in 1 file", ""),
    (healthy(data_files=()), "data_files", "skipped", "on the controller", ""),
    (healthy(leaks=(LEAK,)), "data_leak", "fail", "data/bench.jsonl, line 2", "Take those chats"),
]


@pytest.mark.parametrize(("context", "check", "result", "seen", "action"), CASES)
def test_check(context: Context, check: str, result: str, seen: str, action: str) -> None:
    found = finding(context, check)
    assert (found.result, seen in found.seen, action in found.action) == (result, True, True), found
    if result in ("ok", "unknown", "skipped"):
        assert found.action == ""
    else:
        assert found.action
        assert found.expected


@pytest.mark.parametrize("check", gate.CHECKS, ids=lambda check: check.name)
def test_every_check_has_an_ok_case_and_a_failing_one(check: gate.Check) -> None:
    failing = {name for _context, name, result, *_rest in CASES if result == "fail"}
    assert check.name in failing
    ok = {found.check for found in gate.run_checks(healthy()) if found.result == "ok"}
    ok |= {name for _context, name, result, *_rest in CASES if result == "ok"}
    assert check.name in ok
    assert check.function.__doc__
    assert check.scope in SCOPES


def test_names_of_checks_are_unique() -> None:
    names = [check.name for check in gate.CHECKS]
    assert len(names) == len(set(names))


def test_without_a_driver_the_other_checks_of_the_gpu_are_skipped() -> None:
    found = [item for item in gate.run_checks(silent("missing")) if item.scope == "gpu"]
    assert [item.check for item in found if item.result != "skipped"] == ["driver"]


def test_driver_without_gpus_is_a_failure_of_the_count_alone() -> None:
    found = gate.run_checks(card(docs.gpus(0)))
    assert [item.check for item in found if item.result == "fail"] == ["gpu_count"]


@pytest.mark.parametrize(
    ("mode", "gpu_stops", "others_stop"),
    [("strict", True, True), ("warn", False, True), ("off", False, True)],
)
def test_what_stops(mode: str, gpu_stops: bool, others_stop: bool) -> None:
    for scope in SCOPES:
        for result in RESULTS:
            item = Finding("a", scope, result, "b")
            expected = result == "fail" and (gpu_stops if scope == "gpu" else others_stop)
            assert gate.judge([item], mode) == (expected, [item] if expected else [])


findings = st.lists(
    st.builds(
        Finding,
        st.text(max_size=8),
        st.sampled_from(SCOPES),
        st.sampled_from(RESULTS),
        st.text(max_size=30),
        st.text(max_size=30),
        st.text(max_size=30),
    )
)


@given(findings)
def test_a_stricter_mode_never_lets_more_through(items: list[Finding]) -> None:
    stopping = {mode: gate.judge(items, mode)[1] for mode in MODES}
    assert all(item in stopping["strict"] for item in stopping["warn"])
    assert stopping["warn"] == stopping["off"]
    assert sum(gate.count_results(items).values()) == len(items)


def test_off_leaves_out_the_gpu_and_nothing_else() -> None:
    found = gate.run_checks(card(docs.lost), "off")
    assert {item.result for item in found if item.scope == "gpu"} == {"skipped"}
    assert {item.result for item in found if item.scope != "gpu"} == {"ok"}


@pytest.mark.parametrize("mode", ["", "loose", "STRICT"])
def test_unknown_mode(mode: str) -> None:
    with pytest.raises(ValueError, match="strict, warn, off"):
        gate.judge([], mode)
    with pytest.raises(ValueError, match="strict, warn, off"):
        gate.run_checks(healthy(), mode)


def test_sentence() -> None:
    assert gate.sentence([]) == ("", "")
    one = Finding("disk_free", "host", "fail", "1 GiB free.", "10 GiB", "Make room.")
    assert gate.sentence([one]) == (
        "The check disk_free failed: 1 GiB free.",
        "Make room.",
    )
    assert gate.sentence([one, one, one])[0].endswith("1 GiB free (and 2 more checks failed).")


def test_table_shows_what_is_not_as_expected() -> None:
    found = gate.run_checks(healthy(packages=None))
    shown = gate.table(found)
    assert "packages" in shown
    assert "disk_free" not in shown
    assert gate.table(gate.run_checks(healthy())) == ""
    assert "disk_free" in gate.table(found, everything=True)


def test_table_keeps_its_columns_with_wide_characters() -> None:
    rows = [("数据文件", "fail", "第七行没有消息"), ("disk", "ok", "fine")]
    lines = text_table(("check", "result", "seen"), rows, (20, 7, 8)).splitlines()
    assert lines[0] == "check     result  seen"
    assert lines[2].startswith("数据文件  fail    第七行没")
    assert lines[3].strip() == "有消息"
    assert all(line == line.rstrip() for line in lines)


@given(st.text(), st.integers(2, 40))
def test_wrapping_loses_nothing_and_keeps_the_limit(text: str, limit: int) -> None:
    lines = wrap(text, limit)
    assert all(width(line) <= limit for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_host_facts_of_a_folder_still_to_be_made(tmp_path: Path) -> None:
    facts = host_facts.gather(str(tmp_path / "not" / "yet"))
    real = os.statvfs(tmp_path)
    assert facts.folder == str(tmp_path)
    assert (facts.blocked, facts.read_only) == ("", False)
    assert facts.disk_total == real.f_blocks * real.f_frsize
    assert facts.inodes_total == real.f_files
    assert facts.memory_available is not None
    assert facts.memory_available > 0


def test_host_facts_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    facts = host_facts.gather(str(tmp_path / "file" / "tutor"))
    assert facts.blocked == f"{tmp_path}/file is not a folder"


@pytest.mark.parametrize(
    ("root", "words"), [("new", "can't be given new folders by"), ("", "can't be written to by")]
)
def test_host_facts_without_the_right_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, words: str
) -> None:
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert words in host_facts.gather(str(tmp_path / root)).blocked


def test_host_facts_of_a_read_only_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = list(os.statvfs(tmp_path))
    # Free in all and for an unprivileged user: blocks, then inodes; and the flags.
    real[1], real[3], real[4], real[6], real[7] = 4096, 10, 7, 9, 8
    real[8] |= os.ST_RDONLY
    monkeypatch.setattr(os, "statvfs", lambda *_: os.statvfs_result(real))
    facts = host_facts.gather(str(tmp_path))
    assert facts.read_only is True
    assert (facts.disk_free, facts.inodes_free) == (7 * 4096, 8)


def test_host_facts_where_nothing_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: str) -> os.statvfs_result:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "statvfs", stale)
    facts = host_facts.gather(str(tmp_path))
    assert "Stale file handle" in facts.blocked
    assert (facts.disk_free, facts.read_only) == (None, None)


def test_available_memory_heeds_a_container_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(tmp_path / name) for name in ("max", "current", "stat")]
    for name, value in zip(names, ("1000", "700", "anon 1\ninactive_file 200\n"), strict=True):
        Path(name).write_text(value)
    monkeypatch.setattr(host_facts, "_CGROUP_FILES", ((names[0], names[1]),))
    monkeypatch.setattr(host_facts, "_CGROUP_STAT", (names[2],))
    assert host_facts.available_memory() == 500
    Path(names[0]).write_text("max\n")
    assert (host_facts.available_memory() or 0) > 1000
