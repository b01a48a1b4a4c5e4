"""The fingerprint: a digest over all that went into a stage and changes its weights.

Design brief, section 7. Everything here is computed where the files are, on the GPU host; the
digests of code come from the engine folder that the controller sent.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from .errors import TrainError
from .hashing import digest_files, file_digest

WEIGHTS_ENTRY = "fit"
"""The module of ``training/`` whose imports, followed through, can change weights."""

SCORER_ENTRIES = ("evaluate", "report", "card")
"""The modules whose imports, less those above, can change scores, reports and cards only."""


def digest(value: Any) -> str:
    """``sha256:...`` over the canonical JSON of ``value``."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def canonical_code(source: bytes, name: str) -> str:
    """``source`` as text that is equal for equal code under every supported Python.

    Comments, formatting and docstrings are gone. The tree is written out by hand because
    :func:`ast.dump` and :func:`ast.unparse` differ between Python versions: fields that a newer
    version added are empty for code that an older one can read, so empty fields are left out.
    """
    tree = ast.parse(source, filename=name)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and isinstance(body, list)
            and body
        ):
            node.body = [statement for statement in body if not _is_text(statement)]
    return _written(tree)


def _is_text(statement: ast.AST) -> bool:
    """Whether a statement is a bare string: a docstring, of an attribute as well."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _written(node: Any) -> str:
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_written(value)}"
            for name, value in ast.iter_fields(node)
            if name not in ("ctx", "kind", "type_comment") and value not in (None, [])
        ]
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(_written(item) for item in node)}]"
    return ascii(node)


def import_closure(package: str, *entries: str) -> list[str]:
    """The files of ``package`` that ``entries`` import, through others too, themselves included.

    :param package: the package's folder; its name is how its modules import each other.
    :returns: file names relative to ``package``, sorted.
    """
    name = os.path.basename(package)
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        path = f"{module}.py"
        if path in found or not os.path.isfile(os.path.join(package, path)):
            continue
        found.add(path)
        with open(os.path.join(package, path), "rb") as stream:
            tree = ast.parse(stream.read(), filename=path)
        for node in ast.walk(tree):
            waiting += _imported(node, name)
    return sorted(found)


def _imported(node: ast.AST, package: str) -> list[str]:
    """The modules of ``package`` that one import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name.split(".") for alias in node.names]
        return [parts[1] for parts in names if parts[0] == package and len(parts) > 1]
    if isinstance(node, ast.ImportFrom):
        parts = (node.module or "").split(".") if node.module else []
        if node.level == 0 and parts[:1] != [package]:
            return []
        inner = parts[1:] if node.level == 0 else parts
        return inner[:1] or [alias.name for alias in node.names]
    return []


def code_digests(package: str) -> tuple[str, str]:
    """The digests of the training's code: what can change weights, and what can change scores."""
    weights = import_closure(package, WEIGHTS_ENTRY)
    scorer = sorted(set(import_closure(package, *SCORER_ENTRIES)) - set(weights))
    if not weights or not scorer:
        raise TrainError(
            f"The training's code is not in {package}.", "Check the checkout.", "integrity"
        )

    def written(names: list[str]) -> dict[str, str]:
        sources = {}
        for name in names:
            with open(os.path.join(package, name), "rb") as stream:
                sources[name] = canonical_code(stream.read(), name)
        return sources

    return digest(written(weights)), digest(written(scorer))


def files_digest(root: str, names: list[str]) -> str:
    """One digest over the named files' bytes, for a stage that runs the user's own code."""
    return digest({name: _data_digest(root, name) for name in sorted(names)})


def model_folder(name: str, root: str) -> str | None:
    """The base model's folder, where ``name`` is one: absolute, from home, or under ``root``."""
    folder = os.path.join(root, os.path.expanduser(name))
    return folder if os.path.isdir(folder) else None


def base_model(model: Mapping[str, Any], root: str) -> str:
    """What the base model is: the digest of a folder's files, or ``name@revision``.

    A folder on the host is its bytes, wherever it lies. A name on a hub is what was asked for,
    so that fetching it changes no fingerprint; the commit it stood for is recorded as effective.
    """
    name = str(model["model_name_or_path"])
    folder = model_folder(name, root)
    if folder is None:
        return f"{name}@{model['model_revision']}"
    paths = []
    for where, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        paths += [
            os.path.join(where, file)
            for file in files
            if not file.startswith(".") and _is_model_file(file)
        ]
    digests = digest_files(sorted(paths))
    return digest({os.path.relpath(str(path), folder): found for path, found in digests.items()})


def _is_model_file(name: str) -> bool:
    """Weights, configuration and tokenizer; a card or a training log says nothing of weights."""
    return name.endswith((".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken"))


def _data_digest(root: str, name: str, coming: Mapping[str, str] | None = None) -> str | None:
    """The digest of one file: as sync will bring it, else as it lies on the host."""
    if coming and name in coming:
        return "sha256:" + coming[name]
    path = os.path.join(root, name)
    if not os.path.isfile(path):
        return None
    return "sha256:" + file_digest(path, "sha256")


def stage_inputs(
    stage: Mapping[str, Any],
    root: str,
    code: tuple[str, str],
    packages: Mapping[str, str] | None,
    base: str,
    coming: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs of a stage and those of its evaluation, as its marker keeps them.

    :param code: what :func:`code_digests` gave.
    :param packages: versions of torch, transformers and peft in the training's Python, or None
        where that isn't known yet.
    :param base: what :func:`base_model` gave.
    :param coming: the digests of the files that sync would bring, by name.
    """
    own = bool(stage["command"])
    inputs: dict[str, Any] = {
        "code": files_digest(root, list(stage["code"])) if own else code[0],
        "data": {name: _data_digest(root, name, coming) for name in stage["train"]},
        "base_model": base,
        "settings": dict(stage["settings"]),
        # What the user's own command imports can't be known, and isn't invented.
        "packages": {} if own else None if packages is None else dict(packages),
    }
    if own:
        inputs["command"] = list(stage["command"])
        return inputs, {"data": {}, "scorer": None, "settings": {}}
    evaluation = {
        "data": {name: _data_digest(root, name, coming) for name in stage["evaluate"]},
        "scorer": code[1],
        "settings": dict(stage["evaluation"]),
    }
    return inputs, evaluation


def without(inputs: Mapping[str, Any], ignored: list[str]) -> dict[str, Any]:
    """``inputs`` without the dotted fields of ``fingerprint_ignore``."""
    kept = json.loads(json.dumps(inputs))
    for field in ignored:
        _drop(kept, field)
    return dict(kept)


def _drop(place: dict[str, Any], field: str) -> None:
    """Take out one dotted field; a name in it, such as a data file's, may hold dots itself."""
    place.pop(field, None)
    for name, inner in place.items():
        if isinstance(inner, dict) and field.startswith(f"{name}."):
            _drop(inner, field[len(name) + 1 :])


def difference(before: Any, after: Any, path: str = "") -> list[str]:
    """What differs between two inputs, a line a field: ``settings.learning_rate 1 -> 2``."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines: list[str] = []
        for key in sorted({*before, *after}):
            inner = f"{path}.{key}" if path else str(key)
            if key in before and key in after:
                lines += difference(before[key], after[key], inner)
            else:
                old, new = (_short(side.get(key, "(absent)")) for side in (before, after))
                lines.append(f"{inner} {old} -> {new}")
        return lines
    # As the digest sees them: 1, 1.0 and true are equal in Python, and not in JSON.
    same = digest(before) == digest(after)
    return [] if same else [f"{path} {_short(before)} -> {_short(after)}"]


def _short(value: Any) -> str:
    """A value as the plan shows it: digests by their first digits, None as a word."""
    if value is None:
        return "(none)"
    text = str(value)
    return text[: len("sha256:") + 8] if text.startswith("sha256:") else text
