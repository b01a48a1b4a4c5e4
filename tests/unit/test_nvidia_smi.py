"""Reading nvidia-smi: every schema, everything it can fail with."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.nvidia_smi import Answer, Links, ask, capabilities, links
from remote_train.smi_xml import Process, SmiError, parse
from tests.unit import smi_documents as docs


def program(folder: Path, script: str) -> str:
    """A fake nvidia-smi that insists on being asked as the real one."""
    path = folder / "nvidia-smi"
    path.write_text(f'#!/bin/sh\n[ "$*" = "-q -x" ] || exit 2\n{script}\n')
    path.chmod(0o755)
    return str(path)


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_healthy_document() -> None:
    snapshot = parse(docs.HEALTHY)
    assert (snapshot.schema, snapshot.driver_version) == ("v12", "550.127.05")
    assert snapshot.cuda_version == "12.4"
    assert snapshot.notes == ()
    (gpu,) = snapshot.gpus
    assert gpu.name == "NVIDIA H100 80GB HBM3"
    assert gpu.uuid == "GPU-11111111-2222-3333-4444-555555555555"
    assert gpu.bus_id == "00000000:3B:00.0"
    assert (gpu.memory_total_mib, gpu.memory_used_mib, gpu.memory_free_mib) == (81559, 1, 81008)
    assert (gpu.utilization, gpu.temperature) == (0, 31)
    assert (gpu.temperature_margin, gpu.slowdown_margin) == (56, -2)
    assert gpu.temperature_slowdown is None
    assert (gpu.ecc_enabled, gpu.ecc_uncorrected) == (True, 0)
    assert gpu.ecc_threshold_exceeded is False
    assert (gpu.remap_pending, gpu.remap_failed) == (False, False)
    assert (gpu.retired_pages, gpu.retirement_pending) == (None, None)
    assert gpu.throttle is not None
    assert [name for name, active in gpu.throttle.items() if active] == ["gpu_idle"]
    assert gpu.throttle["hw_slowdown"] is False
    assert (gpu.pcie_generation, gpu.pcie_generation_max) == (5, 5)
    assert (gpu.pcie_width, gpu.pcie_width_max) == (16, 16)
    assert (gpu.mig_enabled, gpu.mig_devices) == (False, ())
    assert gpu.persistence is True
    assert (gpu.fabric_state, gpu.fabric_status) == ("Completed", "Success")
    assert (gpu.performance_state, gpu.pcie_generation_device) == ("P0", 5)
    assert gpu.mig_pending is False
    assert gpu.recovery_action == "none"
    assert gpu.processes == ()
    assert gpu.faults == ()


@pytest.mark.parametrize(
    ("edits", "schema"),
    [((), "v12"), ((docs.older,), "v11"), ((docs.newer,), "v13")],
    ids=["v12", "v11", "v13"],
)
def test_every_schema_tells_the_same(edits: tuple[docs.Edit, ...], schema: str) -> None:
    snapshot = parse(docs.document(*edits, schema=schema))
    assert snapshot.schema == schema
    assert snapshot.driver_version == "550.127.05"
    assert snapshot.cuda_version == "12.4"
    (gpu,) = snapshot.gpus
    assert gpu.ecc_uncorrected == 0
    assert gpu.throttle is not None
    assert gpu.throttle["gpu_idle"] is True
    assert gpu.memory_total_mib == 81559
    assert gpu.recovery_action == (None if schema == "v11" else "none")


@pytest.mark.parametrize(
    ("edit", "field", "value"),
    [
        (docs.put(ecc_errors__volatile__dram_uncorrectable="2"), "ecc_uncorrected", 2),
        (docs.put(ecc_errors__volatile__sram_uncorrectable_parity="1"), "ecc_uncorrected", 1),
        (docs.put(ecc_errors__aggregate__dram_uncorrectable="7"), "ecc_uncorrected", 0),
        (docs.put(remapped_rows__remapped_row_failure="Yes"), "remap_failed", True),
        (docs.put(remapped_rows__remapped_row_pending="Yes"), "remap_pending", True),
        (docs.put(remapped_rows="N/A"), "remap_pending", None),
        (docs.put(gpu_reset_status__reset_required="Yes"), "recovery_action", "reset"),
        (
            docs.add(".", "<gpu_recovery_action>Drain and Reset</gpu_recovery_action>"),
            "recovery_action",
            "drain and reset",
        ),
        (docs.put(processes="N/A"), "processes", None),
        (docs.process(), "processes", (Process(4242, "python", "C", 9000),)),
        (docs.process(memory="N/A"), "processes", (Process(4242, "python", "C", None),)),
        (docs.lost, "faults", ("GPU is lost",)),
        (docs.process(name="GPU is lost"), "faults", ()),
        (docs.turing, "retired_pages", 3),
        (docs.turing, "temperature_slowdown", 93),
        (docs.turing, "temperature_margin", None),
        (docs.put(temperature__gpu_temp="[N/A]"), "temperature", None),
        (docs.put(temperature__gpu_temp="warm"), "temperature", None),
        (docs.put(fb_memory_usage__total="79 GiB"), "memory_total_mib", None),
    ],
)
def test_one_field(edit: docs.Edit, field: str, value: object) -> None:
    (gpu,) = parse(docs.document(edit)).gpus
    assert getattr(gpu, field) == value


def test_mig_slices() -> None:
    (gpu,) = parse(docs.document(docs.mig(2))).gpus
    assert gpu.mig_enabled is True
    assert [(s.index, s.memory_total_mib, s.memory_free_mib) for s in gpu.mig_devices] == [
        (0, 9984, 9972),
        (1, 9984, 9972),
    ]


def test_eight_gpus_keep_their_order() -> None:
    found = parse(docs.document(docs.gpus(8))).gpus
    assert [gpu.index for gpu in found] == list(range(8))


def test_consumer_card_is_read_without_complaint() -> None:
    (gpu,) = parse(docs.document(docs.consumer)).gpus
    assert (gpu.ecc_enabled, gpu.ecc_uncorrected, gpu.remap_failed) == (None, None, None)
    assert gpu.processes is not None
    assert [process.computes for process in gpu.processes] == [False]


@pytest.mark.parametrize("path", [element.tag for element in docs.ET.fromstring(docs.HEALTHY)[-1]])
def test_any_field_may_be_missing(path: str) -> None:
    assert len(parse(docs.document(docs.drop(path))).gpus) == 1


BOMB = b"""<?xml version="1.0"?>
<!DOCTYPE nvidia_smi_log [
 <!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">
]>
<nvidia_smi_log><driver_version>&c;</driver_version></nvidia_smi_log>"""


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (BOMB, "entity"),
        (docs.HEALTHY.replace(b"550.127.05", b"&version;"), "entity"),
        (
            b'<!DOCTYPE nvidia_smi_log [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
            b"<nvidia_smi_log><driver_version>&x;</driver_version></nvidia_smi_log>",
            "entity",
        ),
        (
            b'<!DOCTYPE nvidia_smi_log [<!ENTITY % x SYSTEM "file:///etc/hostname">%x;]>'
            b"<nvidia_smi_log/>",
            "entity",
        ),
        (docs.HEALTHY[: len(docs.HEALTHY) // 2], "broken at line"),
        (b"", "broken"),
        (b"<nvidia_smi_log>", "broken at line 1"),
        (b"<html><body/></html>", "not an nvidia_smi_log"),
    ],
    ids=["bomb", "undeclared", "external", "parameter", "truncated", "empty", "open", "other"],
)
def test_refused(xml: bytes, reason: str) -> None:
    with pytest.raises(SmiError, match=reason):
        parse(xml)


def test_lines_around_the_document_are_notes() -> None:
    noisy = b"WARNING: one\n" + docs.HEALTHY + b"\nWARNING: infoROM is corrupted\n"
    snapshot = parse(noisy)
    assert snapshot.notes == ("WARNING: one", "WARNING: infoROM is corrupted")
    assert len(snapshot.gpus) == 1


def test_process_names_may_hold_any_byte() -> None:
    strange = docs.document(docs.process(name="NAME")).replace(b"NAME", b"a\xff\x01\x00b")
    (gpu,) = parse(strange).gpus
    assert gpu.processes is not None
    assert gpu.processes[0].name == "a\ufffd\ufffd\ufffdb"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_never_crashes(data: st.DataObject) -> None:
    """Whatever is cut out or put in: a snapshot, or SmiError."""
    start = data.draw(st.integers(0, len(docs.HEALTHY)))
    length = data.draw(st.integers(0, 400))
    filling = data.draw(st.binary(max_size=20) | st.sampled_from([b"N/A", b"<", b"&", b"]]>"]))
    with contextlib.suppress(SmiError):
        parse(docs.HEALTHY[:start] + filling + docs.HEALTHY[start + length :])


def test_asks_and_reads(tmp_path: Path) -> None:
    path = tmp_path / "answer.xml"
    path.write_bytes(docs.HEALTHY)
    answer = ask(program(tmp_path, f"cat {path}"))
    assert (answer.state, answer.code, answer.text) == ("ok", 0, "")
    assert answer.snapshot == parse(docs.HEALTHY)


@pytest.mark.parametrize(
    ("script", "state", "code", "text"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it couldn'\"'\"'t communicate with the NVIDIA "
            "driver.'; exit 9",
            "failed",
            9,
            "couldn't communicate",
        ),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "failed",
            18,
            "mismatch",
        ),
        ("echo 'No devices were found'; exit 6", "failed", 6, "No devices"),
        ("echo 'gone' >&2; kill -9 $$", "failed", -9, "gone"),
        ("echo hello", "unreadable", 0, "hello"),
        ("exit 0", "unreadable", 0, "nothing"),
        ("echo '<nvidia_smi_log><gpu>'", "unreadable", 0, "broken"),
    ],
    ids=["exit 9", "mismatch", "no devices", "killed", "no XML", "silent", "truncated"],
)
def test_failures(tmp_path: Path, script: str, state: str, code: int, text: str) -> None:
    answer = ask(program(tmp_path, script))
    assert (answer.state, answer.code) == (state, code)
    assert text in answer.text


def test_answer_with_a_complaint_is_still_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "answer.xml"
    path.write_bytes(docs.HEALTHY)
    answer = ask(program(tmp_path, f"cat {path}; echo 'infoROM is corrupted' >&2; exit 14"))
    assert (answer.state, answer.code, answer.text) == ("ok", 14, "infoROM is corrupted")


def test_missing_program() -> None:
    assert ask("no-such-nvidia-smi").state == "missing"
    assert ask("/no/such/nvidia-smi").state == "missing"


def test_unusable_program(tmp_path: Path) -> None:
    path = tmp_path / "nvidia-smi"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    answer = ask(str(path))
    assert answer.state == "unusable"
    assert "No such file" in answer.text


@pytest.mark.parametrize("trap", ["", "trap '' TERM INT HUP"], ids=["plain", "stubborn"])
def test_hanging_program_is_killed_with_its_children(tmp_path: Path, trap: str) -> None:
    script = f"{trap}\nsleep 300 &\necho $$ $! > {tmp_path}/pids\nwait"
    started = time.monotonic()
    answer = ask(program(tmp_path, script), timeout=0.5)
    assert time.monotonic() - started < 5
    assert (answer.state, answer.seconds) == ("hangs", 0.5)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if alive(pid)] == []


def test_child_that_keeps_the_pipe_open_does_not_hold_us(tmp_path: Path) -> None:
    """The program ends, a child of it in a session of its own keeps its output open."""
    (tmp_path / "answer.xml").write_bytes(docs.HEALTHY)
    script = f"setsid sleep 30 & echo $! > {tmp_path}/pid\ncat {tmp_path}/answer.xml"
    started = time.monotonic()
    answer = ask(program(tmp_path, script), timeout=20)
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert time.monotonic() - started < 5
    assert (answer.state, len(answer.snapshot.gpus)) == ("ok", 1)


def other(folder: Path, script: str) -> str:
    """A fake nvidia-smi that is asked something else."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("0, 9.0\n1, 12.0\n", {0: (9, 0), 1: (12, 0)}),
        ("0, [N/A]\n1, 8.6\n", {1: (8, 6)}),
        ('Field "compute_cap" is not a valid field to query.', {}),
        ("", {}),
    ],
)
def test_capabilities(tmp_path: Path, printed: str, found: dict[int, tuple[int, int]]) -> None:
    (tmp_path / "said").write_text(printed)
    want = '[ "$*" = "--query-gpu=index,compute_cap --format=csv,noheader" ] || exit 2'
    assert capabilities(other(tmp_path, f"{want}\ncat {tmp_path}/said")) == found


NVLINK = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
\t Link 0: 26.562 GB/s
\t Link 1: 26.562 GB/s
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)
\t Link 0: 26.562 GB/s
\t Link 1: <inactive>
"""
NO_NVLINK = """GPU 0: NVIDIA L40S (UUID: GPU-1)
\t NVML: Unable to retrieve NVLink information: Not Supported
"""
DARK = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
\t Link 0: 26.562 GB/s
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)
\t NVML: Unable to retrieve NVLink information as all links are inActive
"""


@pytest.mark.parametrize(
    ("printed", "code", "found"),
    [
        (NVLINK, 0, Links(True, {0: 2, 1: 1}, {1: 1})),
        ("GPU 0: NVIDIA L4 (UUID: GPU-1)\n", 0, Links(True)),
        ("Unable to retrieve NVLink information as all links are inActive\n", 1, Links(True)),
        (NO_NVLINK, 0, Links(True)),
        (NO_NVLINK, 3, Links(True)),
        (DARK, 0, Links(True, {0: 1}, {}, (1,))),
        ("Invalid combination of input arguments\n", 2, Links()),
        ("GPU 0: x\n\t Link 0: 0 GB/s\n", 0, Links(True, {}, {0: 1})),
    ],
    ids=[
        "some",
        "none",
        "all inactive",
        "not supported",
        "not supported, with an exit code",
        "one GPU dark",
        "unknown command",
        "no speed",
    ],
)
def test_links(tmp_path: Path, printed: str, code: int, found: Links) -> None:
    (tmp_path / "said").write_text(printed)
    script = f'[ "$*" = "nvlink --status" ] || exit 9\ncat {tmp_path}/said; exit {code}'
    assert links(other(tmp_path, script)) == found


def test_small_questions_end_where_the_driver_hangs(tmp_path: Path) -> None:
    program_ = other(tmp_path, "sleep 60")
    assert links(program_, timeout=0.2) == Links()
    assert capabilities(program_, timeout=0.2) == {}
    assert links("no-such-smi") == Links()
    assert capabilities("no-such-smi") == {}


def test_answer_is_plain_data() -> None:
    assert Answer("missing").snapshot.gpus == ()
