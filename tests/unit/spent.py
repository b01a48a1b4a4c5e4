"""What a piece of work takes of the machine: memory while it goes on, and bytes written."""

import contextlib
from pathlib import Path

ITSELF = Path("/proc/self")


def peak():
    """The most memory in bytes that this process had since this was asked last."""
    most = _field("status", "VmHWM") * 1024
    (ITSELF / "clear_refs").write_text("5")  # proc(5): forget the peak
    return most


@contextlib.contextmanager
def at_most(memory, written):
    """Hold the work to so many bytes of memory on top of what was there, and bytes written.

    What is written counts when it is handed over, on whatever disk, be it removed again later.
    """
    peak()
    before, wrote = _field("status", "VmRSS") * 1024, _field("io", "wchar")
    yield
    more, most = _field("io", "wchar") - wrote, peak() - before
    assert most <= memory, f"it took {most:,} bytes of memory"
    assert more <= written, f"it wrote {more:,} bytes"


def _field(file, name):
    lines = (ITSELF / file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
