"""Keeps what the base model answers without an adapter, for later stages and runs.

Answers are kept, not scores: another scorer judges them anew, and nothing is generated. A file
is named by the digest of all that the answers depend on, holds that and its own digest, and is
taken only when both are right; otherwise the answers are generated again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers

from training import chats, generate, template
from training.chats import ChatFile
from training.fit import Loaded
from training.generate import Answer
from training.job import Evaluation, Job
from training.log import say

FOLDER = "outputs/training_sync/base_answers"
"""Where they are kept, relative to the project's root."""
KEEP = 50
"""Files that are kept there, the newest ones."""

_CODE = (generate, template, chats)
"""What makes answers of a benchmark's chats."""


class BaseAnswers:
    """The answers that are kept of one base model."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """:param identity: of the base model, and of all that it is computed with."""
        self._folder = folder
        self._identity = identity

    def read(self, file: ChatFile, settings: Evaluation) -> list[Answer] | None:
        """The answers to a benchmark; None where they aren't there, or not as they were written."""
        key = self._key(file, settings)
        try:
            value = json.loads(self._path(key).read_bytes())
            answers = [Answer(**one) for one in value["answers"]]
            good = value["digest"] == _digest([key, value["answers"]])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            good, answers = False, []
        if good and len(answers) == len(file.chats):
            return answers
        say(f"The kept answers of the base model to {file.path} are damaged: asked again.")
        return None

    def write(self, file: ChatFile, settings: Evaluation, answers: list[Answer]) -> None:
        """Keep them. What can't be written is only not kept."""
        key, values = self._key(file, settings), [dataclasses.asdict(one) for one in answers]
        content = {"schema": 1, "key": key, "answers": values, "digest": _digest([key, values])}
        path = self._path(key)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with partial.open("w", encoding="utf-8", errors="backslashreplace") as stream:
                json.dump(content, stream)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
            self._forget_old()
        except OSError as error:
            say(f"The base model's answers are not kept: {error.strerror}.")
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _forget_old(self) -> None:
        found = [(path.stat().st_mtime, path) for path in self._folder.iterdir()]
        for _, path in sorted(found, reverse=True)[KEEP:]:
            path.unlink(missing_ok=True)

    def _key(self, file: ChatFile, settings: Evaluation) -> dict[str, Any]:
        generation = {"max_new_tokens": settings.max_new_tokens, "decoding": "greedy"}
        return {**self._identity, "benchmark": file.digest, "generation": generation}

    def _path(self, key: dict[str, Any]) -> Path:
        return self._folder / f"{_digest(key).removeprefix('sha256:')}.json"


def of_job(job: Job, loaded: Loaded) -> BaseAnswers:
    """What is kept of the base model of a job."""
    name = job.settings.model_name_or_path
    folder = (job.project_root / Path(name).expanduser()).resolve()
    identity = {
        # Whoever started the job may know the digest of the model's files.
        "base_model": job.provenance.get("base_model") or [str(folder), *_stamps(folder)],
        "name": None if folder.is_dir() else name,
        "revision": loaded.effective["base_model_revision"],
        "dtype": loaded.device.dtype_name,
        "device": loaded.device.accelerator,
        "attention": loaded.effective["attention"],
        # Training readies a model in 4 bits in another precision than it is loaded with.
        "four_bits": job.mode if job.settings.use_qlora else None,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "code": _digest([Path(module.__file__ or "").read_text("utf-8") for module in _CODE]),
    }
    return BaseAnswers(job.project_root / FOLDER, identity)


def _stamps(folder: Path) -> list[list[Any]]:
    """What tells that a model's folder was filled anew."""
    if not folder.is_dir():
        return []
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
