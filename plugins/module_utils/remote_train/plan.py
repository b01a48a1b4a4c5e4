"""The plan: what a run would do on this host, and why, before anything is changed.

Design brief, sections 7 and 9. It uses the digests that sync would bring; what can't be known
yet counts as "runs", and the fingerprint that is taken at a stage's start decides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import (
    bundle,
    fingerprint,
    git_tree,
    limited,
    live,
    markers,
    model_cache,
    provision,
    pythons,
    runs,
    storage,
    target_change,
)
from .digest_cache import DigestCache
from .errors import TrainError
from .file_names import is_within, shown
from .hashing import file_digest
from .offer import Offer
from .problems import RefusedError

ENGINE = "outputs/training_sync/engine"
"""Where this project's own code lies on the host, under the project root."""


STATES = (runs.SYNC, git_tree.UNTRACKED)
"""Where the state of a sync lies, under the project root, by how it is made."""


def plan_stages(
    request: Mapping[str, Any],
    code: tuple[str, str],
    packages: Mapping[str, str] | None,
    coming: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Each stage of the request with what it needs: train, evaluate, skip, or left out.

    :returns: ``name``, ``action``, ``reasons`` and ``warnings`` for each stage.
    """
    root = request["project_root"]
    bases: dict[str, str] = {}
    planned = []
    for stage in request["stages"]:
        name = stage["name"]
        if name not in request["selected"]:
            why = "skip_sample is set" if name in request["left_out"] else "not among the tags"
            planned.append({"name": name, "action": "leave", "reasons": [why], "warnings": []})
            continue
        key = str(sorted(stage["model"].items()))
        if key not in bases:
            bases[key] = fingerprint.base_model(stage["model"], root)
        inputs, evaluation = fingerprint.stage_inputs(
            stage, root, code, packages, bases[key], coming
        )
        verdict = markers.judge(
            root, name, inputs, evaluation, request["fingerprint_ignore"], request["force"]
        )
        planned.append({"name": name, **verdict})
    return planned


def work_of(stages: list[dict[str, Any]]) -> list[str]:
    """The names of the stages that would train or be evaluated."""
    return [stage["name"] for stage in stages if stage["action"] in ("train", "evaluate")]


def unsure(
    stages: list[dict[str, Any]], request: Mapping[str, Any], changed: set[str] | None, why: str
) -> None:
    """Let stages run that would be skipped, whose files may change in a way nobody knows yet.

    :param stages: the plan; changed in place.
    :param changed: the files that change; None where that isn't known.
    :param why: the beginning of the reason.
    """
    reads = {
        stage["name"]: {*stage["train"], *stage["evaluate"], *stage["code"]}
        for stage in request["stages"]
    }
    bases = {stage["name"]: _base(stage, request["project_root"]) for stage in request["stages"]}
    for stage in stages:
        if stage["action"] != "skip":
            continue
        base = bases[stage["name"]]
        if (
            changed is None
            or changed & reads[stage["name"]]
            or (base and any(is_within(name, base) for name in changed))
        ):
            stage["action"] = "train"
            stage["reasons"] = [f"{why}, which may change what it reads; its start decides"]


def _base(stage: Mapping[str, Any], root: str) -> str:
    """The base model's folder under the project root, if it may be one there; else empty."""
    name = os.path.expanduser(str(stage["model"]["model_name_or_path"]))
    folder = os.path.relpath(os.path.join(root, name), root)
    return "" if folder.split(os.sep)[0] in (os.curdir, os.pardir) else folder


def at_home(root: str) -> list[dict[str, Any]]:
    """What the last collect gathered, so that the controller can verify what it has at home.

    :returns: ``path`` under the project root, ``sha256`` and ``size`` of each file; empty where
        nothing has been collected yet, and where a file of the list has gone from the host since,
        or a stage of the run has ended since, so that only a new gathering says what there is.
    """
    run = runs.latest(root)
    files = _collected(root, run)
    gone = any(not os.path.isfile(os.path.join(root, file["path"])) for file in files)
    if gone or _ended_since(root, run, files):
        return []
    return [{**file, "size": os.path.getsize(os.path.join(root, file["path"]))} for file in files]


def _ended_since(root: str, run: str | None, files: list[dict[str, Any]]) -> bool:
    """Whether a stage has ended that was given up, after ``files`` of its run were gathered."""
    if run is None or not files:
        return False
    known = {file["path"]: file["sha256"] for file in files}
    where = f"{runs.SYNC}/{run}"
    return any(
        known.get(f"{where}/{name}") != file_digest(os.path.join(root, where, name), "sha256")
        for name in runs.stage_records(root, run)
    )


def _collected(root: str, run: str | None) -> list[dict[str, Any]]:
    """The files that ``run`` was gathered with; empty where it was not, or not to its end."""
    where = f"{runs.SYNC}/{run}"
    outputs, own = (
        runs.listed(os.path.join(root, where, n)) for n in ("outputs.sha256", "SHA256SUMS")
    )
    if outputs is None or not own or own.get("outputs.sha256") != _digest(root, where):
        return []
    own = {f"{where}/{name}": digest for name, digest in own.items()}
    files = [{"path": path, "sha256": digest} for path, digest in {**outputs, **own}.items()]
    files.append(
        {
            "path": f"{where}/SHA256SUMS",
            "sha256": file_digest(os.path.join(root, where, "SHA256SUMS"), "sha256"),
        }
    )
    return files


def uncollected(root: str, work: bool = False) -> str | None:
    """The last run, where it is to be collected: its controller went away in the middle.

    :param work: whether a stage will run. If one does, a run that was collected once is over,
        and what has gone from the host since is left to the new run's own gathering.
    """
    run = runs.latest(root)
    if run is None or at_home(root):
        return None
    return None if work and _collected(root, run) else run


def _digest(root: str, where: str) -> str:
    return file_digest(os.path.join(root, where, "outputs.sha256"), "sha256")


def reach(request: Mapping[str, Any], python: str = "") -> None:
    """Look once at every folder that the plan looks at, before it does.

    :raises TrainError: category ``infra``, where one gives no answer.
    """
    paths = _places(request, python)
    try:
        limited.look(lambda: [os.path.exists(path) for path in paths], paths)
    except TrainError as error:
        hint = f"Nothing was changed. {error.hint}"
        raise TrainError(error.message, hint, error.category) from None


def _places(request: Mapping[str, Any], python: str = "") -> list[str]:
    """Where a plan looks. What lies in a folder that hangs hangs too, so the shortest is first."""
    root, stored = request["project_root"], request["storage"]
    base, stages = str(stored["runtime_base"] or ""), request["stages"]
    caches = [model_cache.cache_folder(scope, stored, os.environ) for scope in (False, True)]
    reads = [name for s in stages for name in (*s["train"], *s["evaluate"], *s["code"])]
    under = [f"{base}/{name}" for name in storage.FOLDERS] if base else []
    models = [str(stage["model"]["model_name_or_path"]) for stage in stages]
    own = [root, *(f"{root}/{name}" for name in ("outputs", runs.SYNC, ENGINE, "models"))]
    moved = model_cache.folders(stored).values()
    named = [base, *under, *moved, *caches, *models, *map(os.path.dirname, reads), python]
    paths = [*own, *(os.path.join(root, os.path.expanduser(path)) for path in named if path)]
    return sorted({os.path.normpath(path) for path in paths}, key=len)


def make(
    request: Mapping[str, Any],
    code: tuple[str, str],
    requirements: dict[str, str],
    python: str = "",
    coming: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The whole plan, less what sync would send (its caller compares the files).

    :param code: the digests of the training's code, as the controller has it.
    :param requirements: what the training's Python must have.
    :param python: the Python that the user named, if one.
    """
    root = request["project_root"]
    search = pythons.find(root, requirements, python)
    found = search["found"]
    packages = pythons.recorded(found["packages"]) if found else None
    stages = plan_stages(request, code, packages, coming)
    work = work_of(stages)
    return {
        "stages": stages,
        "work": work,
        "live": live.running(root),
        "python": found,
        "pythons_tried": search["tried"],
        "provision": limited.look(lambda: provisioning(request, work, coming), _places(request)),
        "models_lost": limited.look(
            lambda: model_cache.lost(_to_run(request, work), root, coming or ()), _places(request)
        ),
        "bare": bare(root, requirements, python, search),
        "home": at_home(root),
        "uncollected": uncollected(root, bool(work)),
    }


def bare(
    root: str, requirements: Mapping[str, str], python: str, search: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What provisioning will do about a Python; None where there is one, or none is needed.

    :returns: ``install``, the packages that it adds, and ``msg`` and ``hint`` of its refusal,
        empty where it will make one.
    """
    if search["found"] or not requirements:
        return None
    try:
        if python:
            provision.look(provision.Wanted(root=root, requirements=requirements, python=python))
        own = os.path.join(root, pythons.VENV, "bin", "python")
        base = provision.base_of(search["tried"], requirements, own)
    except TrainError as error:
        return {"install": [], "msg": error.message, "hint": error.hint}
    install = provision.to_install(root, search["tried"], base, requirements)[1]
    return {"install": install, "msg": "", "hint": ""}


def _to_run(request: Mapping[str, Any], work: list[str]) -> list[Mapping[str, Any]]:
    """The stages that run; where none does, all of them."""
    return [s for s in request["stages"] if s["name"] in work or not work]


def provisioning(
    request: Mapping[str, Any], work: list[str], coming: Mapping[str, str] | None = None
) -> list[str]:
    """What provisioning would do beside a Python: the storage and the models of what would run.

    :param work: the stages that would train or be evaluated. Where no stage was asked for, the
        host is made ready for all of them.
    :param coming: the files that sync would bring: a base model may be among them.
    """
    if request["selected"] and not work:
        return []
    stages = _to_run(request, work)
    root, stored = request["project_root"], request["storage"]
    in_use = [str(stage["model"]["model_name_or_path"]) for stage in stages]
    return [
        *storage.pending(root, stored["runtime_base"], in_use),
        *(
            f"fetches the model {model['name']}@{model['revision']}"
            for model in model_cache.by_name(stages, root, coming or ())
            if not model_cache.is_cached(model, stored, os.environ)
        ),
    ]


def compare(
    root: str, state_dir: str, offered: Offer, cache: DigestCache | None = None
) -> dict[str, list[Any]]:
    """What sync would do to the files of an offer.

    :param state_dir: the folder of the sync's own state.
    :returns: ``add``, ``change`` and ``mode`` (whose executable bit alone changes) hold places
        in the offer, which are short and mind no encoding; ``remove`` and ``kept`` (left there,
        since they were changed on the host) hold names to be shown.
    :raises RefusedError: where something stands in the way of a file.
    """
    previous = target_change.applied_before(state_dir, [])
    change = target_change.to_manifest(root, state_dir, offered.manifest, previous, cache)
    if change.problems:
        raise RefusedError(root, change.problems, "Nothing was changed there.")
    sync: dict[str, list[Any]] = {"add": [], "change": [], "mode": []}
    for place, name in enumerate(offered.names):
        found = change.same.get(name)
        if found is None:
            kind = "change" if change.write[name].kind == "different" else "add"
            sync[kind].append(place)
        elif found.executable != (name in offered.executable):
            sync["mode"].append(place)
    sync["remove"] = sorted(shown(name) for name in change.remove)
    sync["kept"] = sorted(shown(name) for name in change.kept)
    return sync


def sends(sync: Mapping[str, list[Any]]) -> bool:
    """Whether a sync that does this changes anything."""
    return any(value for key, value in sync.items() if key != "kept")


def engine_differs(root: str, engine: Mapping[str, str]) -> bool:
    """Whether this project's own code on the host is not what the controller has."""
    try:
        found = bundle.compare(os.path.join(root, ENGINE), engine)
    except TrainError:
        return True
    return bool(found["missing"] or found["different"])
