"""What the active gate judges: the base models, and what the training's Python said of them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import fingerprint, memory_need, model_cache
from .active_ask import REACHED, ask
from .gate_model import FAIL, OFF, SKIPPED, UNKNOWN, Verdict
from .memory_need import Model


@dataclass(frozen=True)
class Base:
    """A base model of the stages: where it lies (empty: not on the host yet) and who uses it.

    ``weights`` is whether all of its weights lie there, ``model`` its size, where its files tell.
    """

    name: str
    folder: str
    stages: tuple[Mapping[str, Any], ...]
    weights: bool = False
    model: Model | None = None


@dataclass(frozen=True)
class Facts:
    """What the training's Python said, and what it is judged by.

    ``found`` holds the facts of each part; ``hung`` and ``died`` name the parts that a child was
    in when it was killed, or ended by itself, with the words for that. ``driver_cuda`` is the
    newest CUDA that the driver runs, or empty.
    """

    python: str = ""
    found: Mapping[str, Any] = field(default_factory=dict)
    hung: Mapping[str, str] = field(default_factory=dict)
    died: Mapping[str, str] = field(default_factory=dict)
    bases: tuple[Base, ...] = ()
    gpus: int = 1
    driver_cuda: str = ""
    warn_bandwidth: float = 4.0
    min_bandwidth: float = 0.5
    memory_slack: float = 0.15

    def part(self, name: str) -> dict[str, Any]:
        """The facts of one part; empty where there are none."""
        value = self.found.get(name)
        return value if isinstance(value, dict) else {}

    def trouble(self, name: str, expected: str, action: str) -> Verdict | None:
        """The verdict on a part of which there is nothing to judge; None where there is."""
        if not self.python:
            return Verdict(UNKNOWN, "no Python for the training yet: provisioning makes one")
        if name in self.hung:
            return Verdict(FAIL, f"no answer in {self.hung[name]}", expected, action)
        if name in self.died:
            return Verdict(FAIL, f"its process {self.died[name]}", expected, action)
        if name not in self.found:
            return Verdict(UNKNOWN, self._not_reached(name))
        error = self.part(name).get("error")
        return Verdict(FAIL, str(error), expected, action) if error else None

    def broken(self, name: str) -> bool:
        """Whether a part was begun and gave nothing to judge: it hung, died, or raised an error."""
        return name in self.hung or name in self.died or bool(self.part(name).get("error"))

    def _not_reached(self, name: str) -> str:
        kind = "torch" if name in REACHED["torch"] else "model"
        for stuck, word in ((self.hung, "hung"), (self.died, "broke")):
            for part in stuck:
                if part.startswith(REACHED[kind]):
                    return f"not reached, since {part.partition(':')[0]} {word}"
        return "not reached"

    def no_gpu(self, expected: str) -> Verdict | None:
        """The verdict of a check that needs a GPU, where torch sees none; another one says why."""
        if self.broken("cuda"):
            return Verdict(SKIPPED, "torch can't ask for the GPUs, see torch_cuda", expected)
        if "cuda" in self.found and not self.part("cuda").get("available"):
            return Verdict(SKIPPED, "torch sees no GPU, see torch_cuda", expected)
        return self.no_torch(expected)

    def no_torch(self, expected: str) -> Verdict | None:
        """The verdict of a check that needs torch, where it can't be imported."""
        if self.broken("torch"):
            return Verdict(SKIPPED, "torch can't be imported, see torch", expected)
        return None


def bases_of(
    stages: Iterable[Mapping[str, Any]],
    root: str,
    storage: Mapping[str, Any],
    environment: Mapping[str, str],
) -> tuple[Base, ...]:
    """The base models of the stages that this project's own training runs, each once."""
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for stage in stages:
        if not stage["command"]:
            by_model.setdefault(json.dumps(stage["model"], sort_keys=True), []).append(stage)
    found = []
    for users in by_model.values():
        model = users[0]["model"]
        name = str(model["model_name_or_path"])
        folder = fingerprint.model_folder(name, root)
        if folder is None:
            one = {
                "name": name,
                "revision": str(model["model_revision"]),
                "modelscope": bool(model["use_modelscope"]),
            }
            folder = model_cache.place(one, storage, environment)
        found.append(base_in(name, folder, users))
    return tuple(found)


def places(stages: Iterable[Mapping[str, Any]], root: str, storage: Mapping[str, Any]) -> list[str]:
    """The folders in which :func:`bases_of` looks, the shortest first."""
    names = [str(stage["model"]["model_name_or_path"]) for stage in stages]
    caches = [model_cache.cache_folder(scope, storage, os.environ) for scope in (False, True)]
    paths = [root, *model_cache.folders(storage).values(), *caches, *names]
    return sorted({os.path.join(root, os.path.expanduser(path)) for path in paths}, key=len)


def base_in(name: str, folder: str, users: Iterable[Mapping[str, Any]]) -> Base:
    """A base model as it lies in a folder; an empty one is none."""
    return Base(
        name,
        folder,
        tuple(users),
        bool(folder) and model_cache.has_weights(folder),
        memory_need.find_model(folder, "/") if folder else None,
    )


def requests_for(facts: Facts, root: str, mode: str) -> dict[str, dict[str, Any]]:
    """What the children are asked: under ``off`` no GPU is touched."""
    models = [
        {
            "number": number,
            "folder": base.folder,
            "files": sorted({file for stage in base.stages for file in stage["train"]}),
        }
        for number, base in enumerate(facts.bases)
        if base.folder
    ]
    asked: dict[str, dict[str, Any]] = {"torch": {"gpus": 0 if mode == OFF else facts.gpus}}
    if models:
        asked["model"] = {"root": root, "models": models}
    return asked


def gather(facts: Facts, root: str, mode: str, program: str, seconds: float) -> Facts:
    """The facts with what the training's Python says; as they are, where there is none."""
    if not facts.python:
        return facts
    answer = ask(facts.python, program, requests_for(facts, root, mode), seconds)
    return dataclasses.replace(
        facts, found=answer["found"], hung=answer["hung"], died=answer["died"]
    )
