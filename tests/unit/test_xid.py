"""The kernel's log and NVIDIA's messages in it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import kernel_log
from remote_train.kernel_log import KernelLog, Line, read
from remote_train.xid import FATAL, PROGRAM, SERIOUS, SEVERITIES, bus, find

# Lines as drivers of several generations write them; the ones of 154 name the action.
MESSAGES = [
    ("NVRM: Xid (PCI:0000:c6:00): 79, pid=1101, name=nvc, GPU has fallen off the bus.", 79, FATAL),
    ("NVRM: Xid (PCI:0000:3b:00): 48, pid=7, An uncorrectable double bit error (DBE)", 48, FATAL),
    ("NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked", 63, SERIOUS),
    ("NVRM: Xid (PCI:0000:10:1c): 64, pid=1896, Row Remapper: unable to remap", 64, FATAL),
    ("NVRM: Xid (0000:01:00): 31, Ch 0000000b, engmask 00000120, intr 10000000", 31, PROGRAM),
    ("NVRM: Xid (PCI:0000:07:00): 13, pid=1, Graphics SM Warp Exception", 13, PROGRAM),
    ("NVRM: Xid (PCI:0000:07:00): 43, pid=1, name=python, Ch 00000010", 43, PROGRAM),
    ("NVRM: Xid (PCI:0000:07:00): 74, pid='<unknown>', name=<unknown>, NVLink", 74, FATAL),
    ("NVRM: Xid (PCI:0000:07:00): 94, pid=9, Contained: SM (0x1). RST: No, D-RST: No", 94, SERIOUS),
    ("NVRM: Xid (PCI:0000:07:00): 95, pid=9, Uncontained: LTC TAG", 95, FATAL),
    ("NVRM: Xid (PCI:0000:07:00): 119, pid=9, Timeout after 45s of waiting for RPC", 119, FATAL),
    ("NVRM: Xid (PCI:0000:07:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 02", 149, FATAL),
    ("NVRM: Xid (PCI:0000:07:00): 145, RLW_REMAP  Nonfatal XC0 i0 Link 08", 145, SERIOUS),
    (
        "NVRM: Xid (PCI:0000:07:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 "
        "(GPU Reset Required)",
        154,
        FATAL,
    ),
    (
        "NVRM: Xid (PCI:0000:07:00): 154, GPU recovery action changed from 0x1 (GPU Reset "
        "Required) to 0x0 (None)",
        154,
        PROGRAM,
    ),
    ("NVRM: Xid (PCI:0000:07:00): 999, something new", 999, SERIOUS),
    (
        "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
        20034,
        FATAL,
    ),
    (
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore",
        28006,
        SERIOUS,
    ),
]


@pytest.mark.parametrize(("text", "number", "severity"), MESSAGES)
def test_message(text: str, number: int, severity: str) -> None:
    (found,) = find([Line(5.0, text)])
    assert (found.number, found.severity, found.age) == (number, severity, 5.0)
    assert found.meaning
    assert found.switch == ("nvswitch" in text)


def test_other_lines_are_none() -> None:
    assert find([Line(None, "NVRM: loading NVIDIA UNIX x86_64 Kernel Module 550.127.05")]) == []


@given(st.text())
def test_any_line_can_be_read(text: str) -> None:
    find([Line(None, text), Line(None, f"NVRM: Xid (PCI:0000:07:00): {text}")])


def test_table_names_a_severity_and_a_meaning() -> None:
    for number, (severity, meaning) in SEVERITIES.items():
        assert severity in (FATAL, SERIOUS, PROGRAM), number
        assert meaning, number


@pytest.mark.parametrize(
    "text", ["00000000:3B:00.0", "0000:3b:00", "0000:3B:00.0", "00000000:3b:00"]
)
def test_both_sides_name_a_device_alike(text: str) -> None:
    assert bus(text) == "0000:3b:00"


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_what_dmesg_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    at = now - 100
    program(
        tmp_path,
        "dmesg",
        f'echo "[{at:13.6f}] NVRM: Xid (PCI:0000:3b:00): 79, pid=1"; '
        'echo "[    0.000000] Linux version 6"; echo "NVRM: without a time"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = read(["dmesg"])
    assert found.source == "dmesg"
    assert [line.text for line in found.lines] == [
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=1",
        "NVRM: without a time",
    ]
    assert found.lines[0].age == pytest.approx(100, abs=5)
    assert found.lines[1].age is None


def test_what_the_journal_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(
        tmp_path,
        "journalctl",
        'echo "-- Boot 1234 --"; echo "[    5.000000] gpu7 kernel: NVRM: Xid (PCI:0000:3b:00): 48"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = read(["journal"])
    assert (found.source, [line.text for line in found.lines]) == (
        "journal",
        ["NVRM: Xid (PCI:0000:3b:00): 48"],
    )


def test_sources_are_tried_in_turn_and_all_reasons_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hanging dmesg is killed; a journal that may show nothing ends well and doesn't count."""
    program(tmp_path, "dmesg", "sleep 300")
    program(tmp_path, "journalctl", "echo 'No journal files were opened due to' >&2; exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(kernel_log, "KMSG", str(tmp_path / "none"))
    monkeypatch.setattr(kernel_log, "PROGRAM_TIMEOUT", 0.3)
    started = time.monotonic()
    found = read()
    assert time.monotonic() - started < 4
    assert found == KernelLog(
        reason=f"{tmp_path}/none: No such file or directory; dmesg gave no answer within 0.3 s; "
        "journalctl: No journal files were opened due to"
    )


def test_dmesg_without_the_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "dmesg", "echo 'dmesg: read kernel buffer failed: not permitted' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert read(["dmesg"]).reason == "dmesg: dmesg: read kernel buffer failed: not permitted"


def test_records_of_kmsg(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Documentation/ABI/testing/dev-kmsg has them, some of them overwritten meanwhile."""
    at = int((time.monotonic() - 50) * 1e6)
    records: list[bytes | OSError] = [
        b"6,1,0,-;Linux version 6\n",
        BrokenPipeError(),
        f"3,7,{at},-;NVRM: Xid (PCI:0000:3b:00): 62, pid=1\n SUBSYSTEM=pci\n".encode(),
        BlockingIOError(),
    ]

    def next_record(_descriptor: int, _most: int) -> bytes:
        record = records.pop(0)
        if isinstance(record, OSError):
            raise record
        return record

    monkeypatch.setattr(kernel_log, "KMSG", os.devnull)
    monkeypatch.setattr(kernel_log.os, "read", next_record)
    found = read(["kmsg"])
    assert found.source == "kmsg"
    (line,) = found.lines
    assert line.text == "NVRM: Xid (PCI:0000:3b:00): 62, pid=1"
    assert line.age == pytest.approx(50, abs=5)


@pytest.mark.parametrize("kind", ["null", "file", "terminal"])
def test_what_stands_in_the_place_of_kmsg_and_has_no_records_is_passed_over(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers have /dev/null mounted there; such a log would be without a fault."""
    program(tmp_path, "dmesg", 'echo "[ 5.0] NVRM: Xid (PCI:0000:3b:00): 79, pid=1"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "file").write_text("6,1,0,-;Linux version 6\n")
    leader, terminal = os.openpty()
    places = {"null": os.devnull, "file": str(tmp_path / "file"), "terminal": os.ttyname(terminal)}
    monkeypatch.setattr(kernel_log, "KMSG", places[kind])
    try:
        found = read(["kmsg", "dmesg"])
        assert (found.source, len(found.lines)) == ("dmesg", 1)
        assert read(["kmsg"]).reason.startswith(f"{places[kind]}: ")
    finally:
        os.close(leader)
        os.close(terminal)


def test_the_firmware_is_reached_over_spi() -> None:
    """NVIDIA's catalog: 122 is SPI PMU RPC Read, 123 Write, 124 Erase."""
    for number, word in ((122, "read"), (123, "written"), (124, "erased")):
        assert SEVERITIES[number][1].endswith(word)
