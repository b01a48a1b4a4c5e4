"""Which base models come from a hub, and whether one is in the host's cache already."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from . import fingerprint

STORAGE = ("runtime_base", "hf_home", "modelscope_cache")
"""The settings that say where models lie on the host."""


_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def by_name(
    stages: Iterable[Mapping[str, Any]], root: str | None, coming: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """The base models of ``stages`` that are names on a hub, each once.

    Where a folder has the name, that is the model: only the host itself can say so.

    A stage with a command of its user's is left out: what that loads can't be known. So is a
    path that leads nowhere, for which there is no hub to ask.

    :param root: the project on the host that this runs on; None on any other machine, where every
        relative path may be a name.
    :param coming: the names of files that sync will bring.
    :returns: ``name``, ``revision`` and ``modelscope`` each.
    """
    found: list[dict[str, Any]] = []
    brought = coming = list(coming)
    for stage in stages:
        model = stage["model"]
        name = str(model["model_name_or_path"])
        if stage["command"] or is_path(name, root, coming):
            continue
        one = {
            "name": name,
            "revision": str(model["model_revision"]),
            "modelscope": bool(model["use_modelscope"]),
        }
        if one in found or (root is not None and fingerprint.model_folder(name, root)):
            continue
        inside = os.path.normpath(name) + "/"
        if not any(file.startswith(inside) for file in brought):
            found.append(one)
    return found


def is_path(name: str, root: str | None, coming: Iterable[str] = ()) -> bool:
    """Whether a base model's name can only be meant as a folder's path, there or not.

    Beside an absolute path, that is one that begins with a folder of the project, or with
    ``models``, where its own models lie.

    :param root: as in :func:`by_name`, and so is ``coming``.
    """
    if name.startswith(("/", ".", "~")):
        return True
    first, slash, _rest = name.partition("/")
    if not slash:
        return False
    return (
        first == "models"
        or (root is not None and os.path.isdir(os.path.join(root, first)))
        or any(file.startswith(f"{first}/") for file in coming)
    )


def lost(stages: Iterable[Mapping[str, Any]], root: str, coming: Iterable[str] = ()) -> list[str]:
    """The base models that are meant as folders, aren't there, and that sync doesn't bring."""
    brought = list(coming)
    found = []
    for stage in stages:
        name = str(stage["model"]["model_name_or_path"])
        if stage["command"] or name in found or fingerprint.model_folder(name, root):
            continue
        inside = os.path.normpath(name) + "/"
        if is_path(name, root, brought) and not any(file.startswith(inside) for file in brought):
            found.append(name)
    return found


def folders(storage: Mapping[str, Any]) -> dict[str, str]:
    """The environment names of the caches that the settings move, with their folders."""
    base = str(storage.get("runtime_base") or "")
    found = {
        "HF_HOME": storage.get("hf_home") or (base and f"{base}/huggingface"),
        "MODELSCOPE_CACHE": storage.get("modelscope_cache") or (base and f"{base}/modelscope"),
    }
    return {name: str(folder) for name, folder in found.items() if folder}


def is_cached(
    model: Mapping[str, Any], storage: Mapping[str, Any], environment: Mapping[str, str]
) -> bool:
    """Whether all files that the training loads are in the cache, as far as their list tells."""
    return bool(place(model, storage, environment))


def place(
    model: Mapping[str, Any], storage: Mapping[str, Any], environment: Mapping[str, str]
) -> str:
    """The folder of a model in the cache, empty where it isn't there, or not whole."""
    moved = {**environment, **folders(storage)}
    places = _modelscope(model, moved) if model["modelscope"] else _hub(model, moved)
    return next((folder for folder in places if is_complete(folder)), "")


def cache_folder(
    modelscope: bool, storage: Mapping[str, Any], environment: Mapping[str, str]
) -> str:
    """The folder that ModelScope, or the Hugging Face hub, downloads to, as its library says."""
    moved = {**environment, **folders(storage)}
    if modelscope:
        return os.path.expanduser(moved.get("MODELSCOPE_CACHE") or "~/.cache/modelscope")
    home = moved.get("HF_HOME") or os.path.join(
        moved.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return os.path.expanduser(moved.get("HF_HUB_CACHE") or os.path.join(home, "hub"))


def repository(cache: str, name: str) -> str:
    """The folder of one model in the hub's cache (its documented layout)."""
    return os.path.join(cache, "models--" + name.replace("/", "--"))


def _hub(model: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """The snapshot that the Hugging Face cache has for a revision."""
    folder = repository(cache_folder(False, {}, environment), str(model["name"]))
    commit = str(model["revision"])
    try:
        with open(os.path.join(folder, "refs", commit), encoding="ascii") as stream:
            commit = stream.read().strip()
    except (OSError, UnicodeDecodeError):
        pass  # the revision is a commit itself, or isn't there
    return [os.path.join(folder, "snapshots", commit)]


def _modelscope(model: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    cache = cache_folder(True, {}, environment)
    # Its library writes a name's dots as three underscores, and has moved its folder twice.
    names = {str(model["name"]), str(model["name"]).replace(".", "___")}
    return [
        os.path.join(cache, middle, name)
        for middle in ("models", "hub/models", "hub", "")
        for name in sorted(names)
    ]


def is_complete(folder: str) -> bool:
    """Whether a folder holds configuration, tokenizer and all weights that its index names."""
    if not _has(folder, "config.json"):
        return False
    if not any(_has(folder, name) for name in ("tokenizer.json", "tokenizer_config.json")):
        return False
    return has_weights(folder)


def has_weights(folder: str) -> bool:
    """Whether a folder holds weights in safetensors, all that its index names.

    Shards without an index can't be loaded, and an adapter is no base model.
    """
    try:
        with open(os.path.join(folder, "model.safetensors.index.json"), encoding="utf-8") as stream:
            shards = set(json.load(stream)["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return any(
            name.endswith(".safetensors")
            and not name.startswith("adapter_")
            and not _SHARD.search(name)
            for name in names
        )
    return bool(shards) and all(_has(folder, str(name)) for name in shards)


def _has(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))
