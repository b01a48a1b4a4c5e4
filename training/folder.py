"""The adapter's folder: filled beside its place, and moved there when all of it is written."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from training.job import Job


def open_partial(job: Job) -> Path:
    """A folder to write into; what an earlier, broken job left there is removed.

    For an evaluation it starts as a copy of the adapter's folder.
    """
    shutil.rmtree(job.partial, ignore_errors=True)
    if job.mode == "evaluate":
        shutil.copytree(job.adapter, job.partial)
    else:
        job.partial.mkdir(parents=True)
    return job.partial


def make(path: Path) -> None:
    """Make a folder and those above it, and flush the names of the new ones to the disk."""
    new = []
    while not path.exists():
        new.append(path)
        path = path.parent
    for folder in reversed(new):
        folder.mkdir(exist_ok=True)
    for folder in new:
        sync(folder.parent)


def put_back(job: Job) -> None:
    """Undo what :func:`swap_in` had half done when its process was killed."""
    if not job.adapter.exists():
        with contextlib.suppress(FileNotFoundError):
            _old(job).rename(job.adapter)


def swap_in(job: Job) -> list[str]:
    """Put the written folder, flushed to the disk, in the adapter's place.

    :returns: the paths of its files, relative to the project's root, sorted.
    """
    for path in (*job.partial.rglob("*"), job.partial):
        sync(path)
    old = _old(job)
    shutil.rmtree(old, ignore_errors=True)
    if job.adapter.exists():
        job.adapter.rename(old)
    job.partial.rename(job.adapter)
    sync(job.adapter.parent)
    shutil.rmtree(old, ignore_errors=True)
    files = [path for path in job.adapter.rglob("*") if path.is_file()]
    return sorted(f"{job.adapter_dir}/{path.relative_to(job.adapter).as_posix()}" for path in files)


def _old(job: Job) -> Path:
    return job.adapter.with_name(job.adapter.name + ".old")


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
