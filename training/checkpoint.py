"""A checkpoint: a folder that holds a training's state, whole or not at all. No pickle.

``step_00000012/`` has ``adapter.safetensors``, ``optimizer.safetensors``, ``random.safetensors``,
``state.json``, ``metrics.jsonl`` up to that step, and ``SHA256SUMS`` over these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from training.folder import make, sync
from training.state import State

SCHEMA = 1
SUMS = "SHA256SUMS"
TENSORS = ("adapter", "optimizer", "random")
FILES = (*(f"{name}.safetensors" for name in TENSORS), "state.json", "metrics.jsonl")

_NAME = re.compile(r"step_\d{8,}")
_IN_STATE = ("step", "loss_sum", "token_sum", "memory")


class DamagedError(Exception):
    """A checkpoint is not what was written, and why."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    state: State
    metrics: list[str]
    """The lines of ``metrics.jsonl`` up to its step."""
    facts: dict[str, Any]
    """What else was said about it: whose it is, and what it was computed on."""


def found(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, whole or not, that of the highest step first."""
    try:
        names = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []
    return sorted(names, key=lambda path: -int(path.name.removeprefix("step_")))


def size_of(checkpoint: Checkpoint) -> int:
    """Bytes that it takes on the disk, about."""
    state = checkpoint.state
    tensors = [t for some in (state.adapter, state.optimizer, state.random) for t in some.values()]
    headers = 200 * len(tensors) + 65536
    return (
        sum(t.numel() * t.element_size() for t in tensors)
        + sum(len(line) for line in checkpoint.metrics)
        + headers
    )


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint beside its place, flush all of it to the disk, and move it there.

    :raises OSError: where the disk doesn't take it; nothing of it is left then.
    """
    place = folder / f"step_{checkpoint.state.step:08d}"
    partial = folder / f".{place.name}.partial"
    make(folder)
    remove(partial)
    partial.mkdir()
    try:
        sums = ""
        for name in FILES:
            data = _content(name, checkpoint)
            _write_file(partial / name, data)
            sums += f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        _write_file(partial / SUMS, sums.encode())
        sync(partial)
        remove(place)  # of that step only what is damaged, or another's, can be there
        os.replace(partial, place)
        sync(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(partial)
        raise
    return place


def read(path: Path) -> Checkpoint:
    """The checkpoint in the folder ``path``.

    :raises DamagedError: unless every file has the digest that was written.
    """
    try:
        return _parsed(_verified(path))
    except OSError as error:
        what = os.path.basename(error.filename or path)
        raise DamagedError(f"{what} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DamagedError(f"it can't be understood: {error}") from None


def remove(path: Path) -> None:
    """Remove a checkpoint, or whatever is in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _content(name: str, checkpoint: Checkpoint) -> bytes:
    state = checkpoint.state
    if name == "metrics.jsonl":
        return "".join(checkpoint.metrics).encode()
    if name == "state.json":
        values = {key: getattr(state, key) for key in _IN_STATE}
        text = json.dumps({"schema": SCHEMA, **values, **checkpoint.facts}, ensure_ascii=False)
        return text.encode() + b"\n"
    return safetensors.torch.save(getattr(state, name.removesuffix(".safetensors")))


def _verified(path: Path) -> dict[str, bytes]:
    """The bytes of the files, by name."""
    lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if set(listed) != set(FILES):
        raise DamagedError(f"{SUMS} lists other files")
    contents = {}
    for name in FILES:
        contents[name] = (path / name).read_bytes()
        if hashlib.sha256(contents[name]).hexdigest() != listed[name]:
            raise DamagedError(f"{name} is not what was written")
    return contents


def _parsed(contents: dict[str, bytes]) -> Checkpoint:
    facts = json.loads(contents["state.json"])
    if facts.pop("schema") != SCHEMA:
        raise DamagedError("it is of another version of this program")
    values: dict[str, Any] = {key: facts.pop(key) for key in _IN_STATE}
    for name in TENSORS:
        values[name] = safetensors.torch.load(contents[f"{name}.safetensors"])
    lines = str(contents["metrics.jsonl"], "utf-8").splitlines(keepends=True)
    return Checkpoint(State(**values), lines, facts)


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
