"""Gather what the passive gate looks at: all at once, each part in a child that can be killed.

What hangs is given up after its own time, so that the gate as a whole ends within a minute.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import (
    chats,
    gate_gpu,
    gate_limits,
    handover,
    host_facts,
    kernel_log,
    memory_need,
    model_cache,
)
from .chats import Problem
from .gate_host import MODELS, ROOT
from .gate_limits import Limits
from .gate_model import STRICT, Context, Data, left_out
from .host_facts import HostFacts, Place
from .killable import DONE, HANGS, Job, Outcome, run
from .memory_need import Model, Need
from .nvidia_smi import DEFAULT_TIMEOUT, Answer, Links, ask, capabilities, links
from .smi_xml import Process

#: Seconds for a look at a folder, at a model's files, at the kernel's log and at the data.
LOOK_SECONDS = 10.0
MODEL_SECONDS = 15.0
KERNEL_SECONDS = 16.0
DATA_SECONDS = 25.0
USERS_SECONDS = 3.0

#: The most seconds for all parts, which are asked at once; the users' names come after them.
MOST_SECONDS = 50.0

#: What :func:`programs.ask` takes over its limit where the program can't be killed.
_AFTER_TIMEOUT = 4.0


@dataclass(frozen=True)
class Wanted:
    """What the gate is asked for.

    ``stages`` are those that run, as the request has them. ``data_files`` are to be checked here;
    ``data_checked`` are the facts of those that were checked on the controller. ``storage`` says
    where models lie, as the request has it; ``controller_time`` is the controller's clock as it
    sent this, in seconds since 1970, 0 where it isn't known. ``data_leaks`` are the leaks that
    were found on the controller. ``seconds`` is for how long anything is waited for.
    """

    project_root: str
    mode: str = STRICT
    limits: Limits = field(default_factory=Limits)
    stages: tuple[Mapping[str, Any], ...] = ()
    data_files: tuple[Mapping[str, str], ...] = ()
    data_checked: tuple[Mapping[str, Any], ...] = ()
    data_leaks: tuple[Mapping[str, Any], ...] = ()
    packages: Mapping[str, str | None] | None = None
    bare: Mapping[str, Any] = field(default_factory=dict)
    requirements: Mapping[str, str] = field(default_factory=dict)
    storage: Mapping[str, Any] = field(default_factory=dict)
    nvidia_smi: str = "nvidia-smi"
    timeout: float = DEFAULT_TIMEOUT
    seconds: float = MOST_SECONDS
    controller_time: float = 0.0


def gather(wanted: Wanted) -> Context:
    """Everything that the checks look at; takes as long as the slowest part, and never hangs.

    :raises TrainError: for a timeout that is none, or more than a minute allows.
    """
    gate_limits.timeout(wanted.timeout)
    ahead = time.time() - wanted.controller_time if wanted.controller_time else None
    places = _places(wanted)
    jobs = {**_jobs(wanted), **{name: _look(name, path) for name, path in places.items()}}
    ended = run({name: _within(job, wanted.seconds) for name, job in jobs.items()})
    models, unsized = _models(ended["models of the stages"], wanted.stages)
    smi = _with_users(_without_own(_answer(ended.get("smi"), wanted), wanted.project_root))
    data = _data(ended["data"], wanted)
    download = sum(model.weights for model in models.values() if not model.here)
    seen = {name: _place(name, path, ended[name]) for name, path in places.items()}
    shared = seen.pop("shared memory")
    if not download:  # nothing is written there
        seen.pop(MODELS, None)
    install = wanted.bare.get("install") or ()
    disk, files = memory_need.disk_need(_own(wanted.stages), models, install)
    context = Context(
        smi=smi,
        capabilities=_value(ended.get("capabilities"), {}),
        links=_value(ended.get("links"), Links()),
        kernel=_kernel(ended.get("kernel")),
        limits=wanted.limits,
        stages=wanted.stages,
        model=max(models.values(), key=lambda model: model.parameters, default=None),
        unsized=unsized,
        disk=disk if wanted.stages or install else None,
        disk_files=files,
        download=download,
        host=HostFacts(
            places=tuple(seen.values()),
            shared_memory=shared,
            memory=host_facts.available_memory(),
            load=host_facts.load(),
            cpus=os.cpu_count(),
            clock_ahead=ahead,
        ),
        packages=wanted.packages,
        bare=wanted.bare,
        requirements=wanted.requirements,
        data=data,
    )
    return dataclasses.replace(context, need=_need(context, models))


def _jobs(wanted: Wanted) -> dict[str, Job]:
    """What is asked beside the places."""
    program, root = wanted.nvidia_smi, wanted.project_root
    timeout = _timeout(wanted)
    jobs = {
        "data": Job(lambda: _check_data(root, wanted.data_files), DATA_SECONDS),
        "models of the stages": Job(lambda: _find_models(wanted), MODEL_SECONDS),
    }
    if not left_out(wanted.mode, wanted.limits.gpus):
        limit = timeout + _AFTER_TIMEOUT
        jobs["smi"] = Job(lambda: ask(program, timeout), limit)
        jobs["capabilities"] = Job(lambda: capabilities(program, timeout), limit)
        jobs["links"] = Job(lambda: links(program, timeout), limit)
        jobs["kernel"] = Job(kernel_log.read, KERNEL_SECONDS)
    return jobs


def _within(job: Job, seconds: float) -> Job:
    return Job(job.function, min(job.seconds, seconds))


def _timeout(wanted: Wanted) -> float:
    """For how long nvidia-smi is waited for, so that it can still be killed in time."""
    return max(min(wanted.timeout, wanted.seconds - _AFTER_TIMEOUT), 0.1)


def _places(wanted: Wanted) -> dict[str, str]:
    """The folders that the run writes to, by what they are for."""
    return {
        ROOT: wanted.project_root,
        "outputs": os.path.join(wanted.project_root, "outputs"),
        MODELS: _cache(wanted),
        "temporary files": os.environ.get("TMPDIR") or "/tmp",  # noqa: S108 - looked at only
        "shared memory": host_facts.SHARED_MEMORY,
    }


def _cache(wanted: Wanted) -> str:
    """Where models are downloaded to."""
    scope = any(stage["model"].get("use_modelscope") for stage in _own(wanted.stages))
    return model_cache.cache_folder(scope, wanted.storage, os.environ)


def _look(name: str, path: str) -> Job:
    return Job(lambda: host_facts.look(name, path), LOOK_SECONDS)


def _place(name: str, path: str, ended: Outcome) -> Place:
    if ended.state == DONE:
        found: Place = ended.value
        return found
    if ended.state == HANGS:
        return Place(name, path, path, silent=ended.seconds)
    return Place(name, path, path)


def _value(ended: Outcome | None, otherwise: Any) -> Any:
    return ended.value if ended and ended.state == DONE else otherwise


def _answer(ended: Outcome | None, wanted: Wanted) -> Answer | None:
    """nvidia-smi's answer; one that even its killing didn't end counts as hanging."""
    if ended is None:
        return None
    if ended.state == HANGS:
        return Answer("hangs", wanted.nvidia_smi, seconds=_timeout(wanted))
    if ended.state != DONE:
        return Answer("unusable", wanted.nvidia_smi, text=ended.reason)
    answer: Answer = ended.value
    return answer


def _kernel(ended: Outcome | None) -> kernel_log.KernelLog:
    if ended is not None and ended.state == HANGS:
        return kernel_log.KernelLog(reason=f"no answer in {ended.seconds:g} s")
    found: kernel_log.KernelLog = _value(ended, kernel_log.KernelLog())
    return found


def _with_users(answer: Answer | None) -> Answer | None:
    """The answer with the users of the processes, where this machine knows them."""
    if answer is None or not any(gpu.processes for gpu in answer.snapshot.gpus):
        return answer
    processes = [p for gpu in answer.snapshot.gpus for p in gpu.processes or ()]
    ended = run({"users": Job(lambda: _users(processes), USERS_SECONDS)})["users"]
    users: dict[int, str] = _value(ended, {})
    gpus = tuple(
        dataclasses.replace(
            gpu,
            processes=None
            if gpu.processes is None
            else tuple(dataclasses.replace(p, user=users.get(p.pid or 0)) for p in gpu.processes),
        )
        for gpu in answer.snapshot.gpus
    )
    return dataclasses.replace(answer, snapshot=dataclasses.replace(answer.snapshot, gpus=gpus))


def _without_own(answer: Answer | None, root: str) -> Answer | None:
    """The answer without this project's own worker that waits: the next stage is what it waits for.

    It is known by its lock, its start time and the boot. Its memory counts as free.
    """
    own = handover.own_processes(root) if answer is not None else set()
    if answer is None or not own:
        return answer
    gpus = []
    for gpu in answer.snapshot.gpus:
        mine = [p for p in gpu.processes or () if p.pid in own]
        memory = sum(p.memory_mib or 0 for p in mine)
        used, free = gpu.memory_used_mib, gpu.memory_free_mib
        gpus.append(
            dataclasses.replace(
                gpu,
                processes=gpu.processes and tuple(p for p in gpu.processes if p.pid not in own),
                memory_used_mib=used if used is None else max(0, used - memory),
                memory_free_mib=free if free is None else free + memory,
            )
        )
    return dataclasses.replace(
        answer, snapshot=dataclasses.replace(answer.snapshot, gpus=tuple(gpus))
    )


def _users(processes: Sequence[Process], proc: str = "/proc") -> dict[int, str]:
    """Whose processes these are.

    In a container a pid is the host's, and may be another process's here: the name has to fit.
    """
    found = {}
    for process in processes:
        if process.pid is None or process.name is None:
            continue
        folder = os.path.join(proc, str(process.pid))
        try:
            with open(os.path.join(folder, "cmdline"), "rb") as stream:
                words = stream.read(65536).decode("utf-8", "replace").replace("\0", " ")
            owner = os.stat(folder).st_uid
        except OSError:
            continue
        if os.path.basename(process.name.split(" ")[0]) not in words:
            continue
        try:
            found[process.pid] = pwd.getpwuid(owner).pw_name
        except KeyError:
            found[process.pid] = f"user id {owner}"
    return found


def _own(stages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The stages that this project's own training runs: of a user's command nothing is known."""
    return [stage for stage in stages if not stage["command"]]


def _find_models(wanted: Wanted) -> dict[str, Model | None]:
    found = {}
    for stage in _own(wanted.stages):
        name = str(stage["model"]["model_name_or_path"])
        model = {
            "name": name,
            "revision": str(stage["model"].get("model_revision", "main")),
            "modelscope": bool(stage["model"].get("use_modelscope")),
        }
        folder = model_cache.place(model, wanted.storage, os.environ)
        found[name] = (memory_need.find_model(folder, "/") if folder else None) or (
            memory_need.find_model(name, wanted.project_root, _cache(wanted))
        )
    return found


def _models(ended: Outcome, stages: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Model], str]:
    """The models of known size by name, and the name of one whose size isn't known."""
    found: dict[str, Model | None]
    found = _value(ended, {stage["model"]["model_name_or_path"]: None for stage in _own(stages)})
    known = {name: model for name, model in found.items() if model}
    unsized = next((name for name, model in found.items() if not model), "")
    return known, unsized


def _need(context: Context, models: Mapping[str, Model]) -> Need | None:
    """The estimate of the stage that takes the most memory of a GPU."""
    found = [gate_gpu.capability(context, gpu) for gpu in context.gpus]
    bfloat16 = all(c is None or c >= gate_gpu.BFLOAT16 for c in found)
    needs = []
    for stage in _own(context.stages):
        model = models.get(stage["model"]["model_name_or_path"])
        if model:
            longest = _longest(context.data, stage)
            needs.append(
                memory_need.gpu_need(stage["name"], model, stage["settings"], bfloat16, longest)
            )
    return max(needs, key=lambda need: need.size, default=None)


def _longest(data: Data, stage: Mapping[str, Any]) -> int:
    """The longest chat that a stage trains on, in bytes; 0 where not all of its files are known."""
    sizes = {file["file"]: file.get("longest", 0) for file in data.files}
    names = list(stage.get("train") or ())
    if not names or any(name not in sizes for name in names):
        return 0
    return max(int(sizes[name]) for name in names)


def _check_data(
    root: str, files: Sequence[Mapping[str, str]]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    reports, leaks = chats.check_files(root, [dict(file) for file in files])
    return [report.facts() for report in reports], leaks


def _data(ended: Outcome, wanted: Wanted) -> Data:
    """What is known of the data files, the controller's among them."""
    here, leaks = _value(ended, ([], []))
    unfinished = ""
    if ended.state == HANGS:
        unfinished = f"the data files were not read in {ended.seconds:g} s"
    elif ended.state != DONE:
        unfinished = f"the data files could not be read ({ended.reason})"
    files = [
        {**facts, "where": "host", "stages": chats.trained_by(facts["file"], wanted.data_files)}
        for facts in here
    ]
    there = from_controller(wanted.data_checked, wanted.data_leaks)
    return Data((*files, *there.files), (*leaks, *there.leaks), unfinished)


def from_controller(files: Sequence[Mapping[str, Any]], leaks: Sequence[Mapping[str, Any]]) -> Data:
    """What was found of the data files on the controller, in the form of the checks.

    :param files: their facts, with the stages that train on each.
    :param leaks: as :meth:`chats.Problem.as_dict` gives them.
    """
    found = tuple(Problem(leak["file"], leak["line"], leak["reason"]) for leak in leaks)
    return Data(tuple({**facts, "where": "controller"} for facts in files), found)
