"""Make a GPU host ready for the training: a Python, room for models, the base models themselves.

Looking comes first and changes nothing; it gives the steps that are left, which is what check mode
and the plan show. Carrying them out is idempotent: each step looks again, and what is there stays.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import detached, installer, model_cache, programs, pythons, storage
from .atomic import write_text
from .detached import Reporter
from .errors import TrainError

INCOMING = f"{detached.FOLDER}/incoming"
"""Where wheels arrive that the controller sends, under the project root."""

FETCHER = "fetch_model.py"
"""The program that the training's Python fetches a model with, beside the status."""


@dataclass(frozen=True)
class Wanted:
    """What the host is to have.

    ``python`` is the only Python to use, where one is named; it is never installed into.
    ``models`` are names on a hub (:func:`model_cache.by_name`), ``in_use`` all base models as the
    settings name them. ``endpoint`` is a mirror of the hub, ``secrets`` what the fetch gets in its
    environment and what is written down nowhere. ``pip`` is a wheel of pip for a host without one;
    ``digests`` are those of the wheels that were sent.
    """

    root: str
    requirements: Mapping[str, str]
    python: str = ""
    source: installer.Source = field(default_factory=installer.Source)
    storage: Mapping[str, Any] = field(default_factory=dict)
    models: Sequence[Mapping[str, Any]] = ()
    in_use: Sequence[str] = ()
    endpoint: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict)
    pip: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def runtime_base(self) -> str:
        """The folder on a data disk, or empty."""
        return str(self.storage.get("runtime_base") or "").rstrip("/")

    @property
    def cache(self) -> str:
        """Where downloads are kept: on the data disk, else where the program itself keeps them."""
        return os.path.join(self.runtime_base, "cache") if self.runtime_base else ""


@dataclass(frozen=True)
class Outlook:
    """What there is, and what is left to do.

    ``python`` is the Python that trains (None: one is to be made); ``base`` what that would be made
    from; ``install`` what is missing in it; ``needs_pip`` whether the host has nothing to install
    with; ``steps`` all that is left, a phrase each.
    """

    python: dict[str, Any] | None
    tried: list[dict[str, Any]]
    base: Mapping[str, Any] | None = None
    install: list[str] = field(default_factory=list)
    fetch: list[Mapping[str, Any]] = field(default_factory=list)
    needs_pip: bool = False
    steps: list[str] = field(default_factory=list)


def look(wanted: Wanted) -> Outlook:
    """What is left to do on the host; nothing is changed.

    :raises TrainError: where it can't be done: a named Python lacks something, no Python can be
        used, the torch that is there won't do, or a base model would be moved away.
    """
    stored = storage.pending(wanted.root, wanted.runtime_base, wanted.in_use)
    fetch = [
        model
        for model in wanted.models
        if not model_cache.is_cached(model, wanted.storage, os.environ)
    ]
    last = [f"fetches the model {_from(model, wanted)}" for model in fetch]
    search = pythons.find(wanted.root, dict(wanted.requirements), wanted.python)
    if search["found"]:
        return Outlook(search["found"], search["tried"], fetch=fetch, steps=[*stored, *last])
    if wanted.python:
        raise TrainError(
            f"The Python {wanted.python} can't train: {', '.join(search['tried'][0]['missing'])}.",
            "Install that there, or leave provision_python out to have a venv made.",
            "infra",
        )
    base = base_of(search["tried"], wanted.requirements, _own(wanted.root))
    if wanted.source.wheels:
        installer.check_wheels(wanted.source.wheels)
    goes_on, names = to_install(wanted.root, search["tried"], base, wanted.requirements)
    install = [name + wanted.requirements[name] for name in names]
    made = f"makes a venv in {pythons.VENV} that sees {base['path']}, with {', '.join(install)}"
    if goes_on:
        made = f"installs {', '.join(install)} into the venv in {pythons.VENV}"
    return Outlook(
        None,
        search["tried"],
        base,
        install,
        fetch,
        installer.lacks_installer(base["path"], wanted.source.wheels),
        [*stored, made, *last],
    )


def _from(model: Mapping[str, Any], wanted: Wanted) -> str:
    place = "ModelScope" if model["modelscope"] else detached.scrubbed(wanted.endpoint) or "the hub"
    return f"{model['name']}@{model['revision']} from {place}"


def _own(root: str) -> str:
    return os.path.join(root, pythons.VENV, "bin", "python")


def to_install(
    root: str,
    tried: Sequence[Mapping[str, Any]],
    base: Mapping[str, Any],
    requirements: Mapping[str, str],
) -> tuple[bool, list[str]]:
    """Whether the project's venv is there to be gone on with, and the packages that are added.

    :param tried: the probes of all Pythons.
    :param base: that of the one that the venv is made from (:func:`base_of`).
    """
    own = _own(root)
    start = base
    for one in tried:
        if one["path"] == own and one["python"] and installer.sees(base["path"], own):
            start = one
    return start is not base, [name for name in requirements if lacks(start["missing"], name)]


def lacks(missing: Sequence[str], name: str) -> bool:
    """Whether a probe's phrases say that the package ``name`` is missing, or the wrong version."""
    starts = (f"{name}>", f"{name}<", f"{name}=", f"{name} (")
    return any(phrase == name or phrase.startswith(starts) for phrase in missing)


def base_of(
    tried: Sequence[Mapping[str, Any]], requirements: Mapping[str, str], own: str = ""
) -> Mapping[str, Any]:
    """The Python to make the venv from: one whose torch will do, else one without any.

    Among equals the first, in the order in which they were tried.

    :param own: this project's own venv, from which none is made.
    :raises TrainError: where none is new enough, or each has a torch that is too old or too new.
    """
    usable = [
        one
        for one in tried
        if one["path"] != own and one["python"] and pythons.satisfies(one["python"], ">=3.10")
    ]
    if not usable:
        raise TrainError(
            "The host has no Python 3.10 or newer.",
            "Install one, or name one with provision_python.",
            "infra",
        )
    bounds = requirements.get("torch", "")
    old = [one for one in usable if "torch" in one["packages"]]
    good = [one for one in old if pythons.satisfies(one["packages"]["torch"], bounds)]
    if good:
        return good[0]
    if old:
        # An image's torch fits its driver. Another one beside it may not.
        raise TrainError(
            f"The torch {old[0]['packages']['torch']} of {old[0]['path']} is not {bounds}, and a "
            "torch that is there is never replaced.",
            "Take an image with such a torch, or make a Python that has it and name that with "
            "provision_python.",
            "infra",
        )
    return usable[0]


def carry_out(wanted: Wanted, reporter: Reporter, fetcher: str) -> dict[str, Any]:
    """Do all that :func:`look` says is left.

    :param fetcher: the text of the program that fetches a model.
    :returns: ``changed``, ``python`` (the probe of the one that trains), ``installed``, ``done``
        (what was done, a phrase each) and ``models`` (the folder of each one that was fetched).
    """
    reporter.show("looking at the host")
    outlook = look(wanted)
    done = storage.make(wanted.root, wanted.runtime_base, wanted.in_use)
    for line in done:
        reporter.say(line)
    python = outlook.python
    installed: list[str] = []
    if python is None:
        python, installed, made = _make_python(wanted, outlook.base or {}, reporter)
        done.append(made)
    folders = {}
    for model in outlook.fetch:
        folders[str(model["name"])] = fetch(wanted, model, python["path"], reporter, fetcher)
        done.append(f"fetched the model {_from(model, wanted)}")
    return {
        "changed": bool(done),
        "python": python,
        "installed": installed,
        "done": done,
        "models": folders,
    }


def _make_python(
    wanted: Wanted, base: Mapping[str, Any], reporter: Reporter
) -> tuple[dict[str, Any], list[str], str]:
    """The probe of the venv's Python, what was installed there, and both in words."""
    verify_sent(wanted.digests)
    requirements = dict(wanted.requirements)
    python = _own(wanted.root)
    goes_on = installer.sees(base["path"], python)
    if goes_on:
        reporter.say(f"going on with the venv of {python}")
    else:
        reporter.show("making a venv")
        python = installer.make_venv(base["path"], os.path.join(wanted.root, pythons.VENV))
    before = pythons.probe(python, requirements)
    missing = [n + requirements[n] for n in requirements if lacks(before["missing"], n)]
    if missing:
        reporter.show(f"installing {', '.join(missing)}")

        def note(line: str) -> None:
            reporter.say(line)
            reporter.show(f"installing: {line.strip()[:90]}")

        program = installer.install(
            base["path"],
            python,
            missing,
            base["packages"].get("torch", ""),
            wanted.source,
            wanted.pip,
            wanted.cache,
            note,
        )
        reporter.say(f"installed with {program}: {', '.join(missing)}")
    made = pythons.probe(python, requirements)
    if made["missing"]:
        raise TrainError(
            f"After the installation {python} still lacks {', '.join(made['missing'])}.",
            "Install by hand into a Python of yours and name it with provision_python.",
            "infra",
        )
    kept, now = base["packages"].get("torch"), made["packages"].get("torch")
    if kept and kept != now:
        raise TrainError(
            f"{python} has torch {now} in place of the {kept} of {base['path']}.",
            f"Remove {os.path.join(wanted.root, pythons.VENV)} and give the same command again.",
            "infra",
        )
    words = f"made a venv in {pythons.VENV} that sees {base['path']}, with {', '.join(missing)}"
    if goes_on:
        words = f"installed {', '.join(missing)} into the venv in {pythons.VENV}"
    return made, missing, words


def verify_sent(digests: Mapping[str, str]) -> None:
    """Refuse a file that arrived with other bytes than were sent.

    :param digests: SHA-256 in hex, by path on the host.
    """
    for path, digest in digests.items():
        found = hashlib.sha256()
        try:
            with open(path, "rb") as stream:
                while chunk := stream.read(1 << 20):
                    found.update(chunk)
        except OSError as error:
            raise TrainError(
                f"{path} was sent and can't be read: {error.strerror}.",
                "Give the same command again.",
                "integrity",
            ) from error
        if found.hexdigest() != digest:
            os.unlink(path)
            raise TrainError(
                f"{os.path.basename(path)} arrived with another SHA-256 than it was sent with.",
                "Give the same command again.",
                "integrity",
            )


def fetch(
    wanted: Wanted, model: Mapping[str, Any], python: str, reporter: Reporter, fetcher: str
) -> str:
    """Fetch one model by the training's own Python; the folder that it lies in.

    :raises TrainError: with the fetcher's own sentence.
    """
    name = str(model["name"])
    program = detached.path(wanted.root, FETCHER)
    write_text(program, fetcher)
    moved = model_cache.folders(wanted.storage)
    answer: dict[str, Any] = {}
    reporter.show(f"fetching {name}")

    def take(line: str) -> None:
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            reporter.say(line)
        elif "text" in told:
            reporter.show(f"fetching {told['text']}", done=told.get("done"), of=told.get("of"))
        elif "log" in told:
            reporter.say(str(told["log"]))
        else:
            answer.update(told)

    try:
        programs.run(
            [python, program],
            f"The model {name} can't be fetched",
            f"The end of {reporter.log_name} on the host says more.",
            {
                **moved,
                **({"HF_ENDPOINT": wanted.endpoint} if wanted.endpoint else {}),
                **{name: value for name, value in wanted.secrets.items() if value},
            },
            take,
            within=24 * 3600.0,
            given=json.dumps(dict(model)),
        )
    except TrainError:
        error = answer.get("error")
        if not isinstance(error, dict):
            raise
        raise TrainError(error["msg"], error["hint"], error["category"]) from None
    reporter.say(f"fetched {name} into {answer.get('folder')}")
    return str(answer.get("folder", ""))
