"""Reads a run at home: its folder, and of adapters and markers what this very run left.

A run's ``SHA256SUMS`` and ``outputs.sha256`` say which bytes it had. A file that is something else
by now (an adapter that a later run has trained again, say) is not shown as this run's.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from remote_train import runs
from remote_train.errors import TrainError
from remote_train.hashing import digest_of
from remote_train.manifest import parse

from ..home import home_path, is_inside
from .facts import Facts, parse_lines

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RECORD = re.compile(rf"stage_({_NAME.pattern})\.json")

LARGEST = 256 << 20
"""Bytes of a file that is read; what is larger is named and left out."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a run left of one stage."""

    name: str
    row: Facts
    """Its row in ``run.json``: state, reasons, scores, verdict of the acceptance gate."""
    record: Facts
    """``stage_<name>.json``: how it went in this run; empty where it wasn't run."""
    marker: Facts
    """``stages/<name>.json``: what the adapter was made of."""
    evaluation: Facts
    """``eval_report_<name>.json``."""
    steps: list[Facts]
    """``metrics.jsonl``."""
    predictions: list[Facts]
    """``predictions_<name>.jsonl``."""
    adapter: str
    """The adapter's folder at home; empty where none came home."""
    weights: str
    """The SHA-256 of its weights."""

    @property
    def scores(self) -> Facts:
        """Its scores: the evaluation's own, else those on record."""
        return self.evaluation.at("scores") or self.row.at("metrics", "scores")

    @property
    def thresholds(self) -> dict[str, float]:
        """What the acceptance gate asks for."""
        found = ((name, one.number()) for name, one in self.row.items("thresholds"))
        return {name: value for name, value in found if value is not None}

    @property
    def on_gpu(self) -> bool:
        """Whether it was trained on a GPU."""
        where = self.record.text("accelerator") or self.marker.text("accelerator")
        return bool(where) and not where.startswith("cpu")

    @property
    def benchmarks(self) -> dict[str, str]:
        """The files that it is scored on, with their digests."""
        return _digests(self.evaluation.at("data")) or _digests(self.marker.at("evaluation"))

    @property
    def trained_on(self) -> dict[str, str]:
        """The files that it was trained on, with their digests."""
        return _digests(self.marker.at("inputs")) or _digests(self.evaluation.at("trained_on"))

    @property
    def is_trial(self) -> bool:
        """Whether it is scored on nothing but what it was trained on."""
        files = self.benchmarks
        return bool(files) and set(files) <= set(self.trained_on)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it lies at home."""

    name: str
    folder: str
    facts: Facts
    """``run.json``; empty where only the controller's part of the record is here."""
    stages: list[Stage]
    issues: list[Facts]
    precheck: Facts
    left_out: list[str]
    """The files that aren't what this run had, or can't be read."""
    broken_lines: int
    """Lines of JSON files that hold no object."""
    sealed: bool
    """Whether the run has its list of digests, so that all that is shown was held against it."""


def newest(home: str) -> str | None:
    """The newest run at home, or None."""
    found = names(home)
    return found[-1] if found else None


def names(home: str) -> list[str]:
    """The runs at home, oldest first."""
    try:
        return sorted(
            name for name in os.listdir(os.path.join(home, "training_sync")) if runs.is_name(name)
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_run(home: str, name: str) -> Run:
    """Everything about a run that is at home.

    :raises TrainError: where there is no such run.
    :raises OSError: where its folder can't be read.
    """
    folder = os.path.join(home, "training_sync", name)
    if not runs.is_name(name) or not os.path.isdir(folder):
        there = names(home)
        raise TrainError(
            f"There is no run {name!r} in {home}.",
            f"There are {', '.join(there)}." if there else "Nothing has been collected there yet.",
            "ops",
        )
    files = _Files(home, folder)
    facts = files.own("run.json")
    stages = [_stage(files, row) for row in _rows(facts, folder)]
    return Run(
        name=name,
        folder=folder,
        facts=facts,
        stages=stages,
        issues=files.lines(files.read_own("issues.jsonl")),
        precheck=files.own("precheck.json"),
        left_out=sorted(set(files.left_out)),
        broken_lines=files.broken_lines,
        sealed=files.sealed,
    )


def _rows(facts: Facts, folder: str) -> list[Facts]:
    """The rows of all stages; where the host's record isn't here, none is known to have run."""
    rows = [row for row in facts.each("stages") if _NAME.fullmatch(row.text("name"))]
    if rows:
        return rows
    found = (_RECORD.fullmatch(name) for name in sorted(os.listdir(folder)))
    return [Facts({"name": match.group(1)}) for match in found if match]


def _stage(files: _Files, row: Facts) -> Stage:
    name = row.text("name")
    evaluation = files.own(f"eval_report_{name}.json")
    folder = files.adapter_folder(name) or row.text("adapter_dir") or evaluation.text("adapter")
    if not is_inside(folder):
        return Stage(name, row, files.own(f"stage_{name}.json"), Facts(), Facts(), [], [], "", "")
    weights = f"{folder}/adapter_model.safetensors"
    return Stage(
        name=name,
        row=row,
        record=files.own(f"stage_{name}.json"),
        marker=Facts.parse(files.read_output(f"{runs.SYNC}/stages/{name}.json")),
        evaluation=evaluation,
        steps=files.lines(files.read_output(f"{folder}/metrics.jsonl")),
        predictions=files.lines(files.read_output(f"{folder}/predictions_{name}.jsonl")),
        adapter=files.place(folder) if files.has_output(weights) else "",
        weights=files.outputs.get(weights, ""),
    )


def _digests(facts: Facts) -> dict[str, str]:
    """The digests in an object, or in its member ``data``."""
    inside = facts.at("data") or facts
    found = {name: one.text() for name, one in inside.items()}
    return {name: digest for name, digest in found.items() if digest.startswith("sha256:")}


class _Files:
    """The files of a run, each held against the run's own digests."""

    def __init__(self, home: str, folder: str) -> None:
        self.left_out: list[str] = []
        self.broken_lines = 0
        self._home = home
        self._folder = folder
        self._sums = self._digests_in("SHA256SUMS")
        self.sealed = bool(self._sums)
        # The list of the outputs is in the first list, where there is one.
        self.outputs = dict(parse(self.read_own("outputs.sha256")).items())

    def own(self, name: str) -> Facts:
        """A JSON file of the run's folder."""
        return Facts.parse(self.read_own(name))

    def read_own(self, name: str) -> bytes:
        """A file of the run's folder; empty where it isn't what it was."""
        return self._read(os.path.join(self._folder, name), name, self._sums)

    def read_output(self, path: str) -> bytes:
        """A file by its path on the host; empty where it isn't what this run had."""
        return self._read(self._at_home(path), path, self.outputs) if self._has(path) else b""

    def has_output(self, path: str) -> bool:
        """Whether a file that this run had is at home."""
        return self._has(path) and os.path.isfile(self._at_home(path))

    def lines(self, content: bytes) -> list[Facts]:
        """The objects in JSON lines."""
        found, wrong = parse_lines(content)
        self.broken_lines += wrong
        return found

    def adapter_folder(self, stage: str) -> str:
        """The folder on the host that holds a stage's adapter, as the list of outputs has it."""
        end = f"/eval_report_{stage}.json"
        return next((name[: -len(end)] for name in self.outputs if name.endswith(end)), "")

    def place(self, path: str) -> str:
        """Where a path of the host lies under the home."""
        return home_path(path)

    def _has(self, path: str) -> bool:
        return not self.outputs or path in self.outputs

    def _at_home(self, path: str) -> str:
        return os.path.join(self._home, home_path(path))

    def _digests_in(self, name: str) -> dict[str, str]:
        try:
            with open(os.path.join(self._folder, name), "rb") as stream:
                return dict(parse(stream).items())
        except FileNotFoundError:
            return {}

    def _read(self, path: str, name: str, digests: Mapping[str, Any]) -> bytes:
        try:
            if os.path.getsize(path) > LARGEST:
                self.left_out.append(name)
                return b""
            with open(path, "rb") as stream:
                content = stream.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            if name in digests:
                self.left_out.append(name)
            return b""
        if digests and digests.get(name) != digest_of(content):
            self.left_out.append(name)
            return b""
        return content
