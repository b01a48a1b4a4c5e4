"""The settings of a run, checked and brought into the one form that everything else reads."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from . import git_url, model_cache, runs
from .errors import TrainError

TRAINING_SETTINGS = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "target_modules",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "use_qlora",
    "weight_decay",
    "warmup_ratio",
    "lr_scheduler_type",
    "max_grad_norm",
    "seed",
    "data_seed",
    "init_seed",
    "dropout_seed",
    "dtype",
)
"""What changes a stage's weights, beside its data, code, base model and packages."""

MODEL_SETTINGS = ("model_name_or_path", "model_revision", "use_modelscope")
"""Where the base model comes from; in the fingerprint as ``base_model``."""

EVALUATION_SETTINGS = ("max_new_tokens", "score_base")
"""What changes an adapter's answers, or what is scored beside them."""

EVALUATION_SPEED = ("eval_batch_size",)
"""What changes how fast they come, and nothing else."""

STEPS = ("precheck", "sync", "provision", "collect")
"""The steps of a run that are not stages, by their tags."""

SCORES = (
    "key_point_coverage",
    "response_format",
    "refusal_accuracy",
    "citation_accuracy",
    "tool_call_accuracy",
)
"""The scores that a threshold can name."""

_BOOLEANS = {
    **dict.fromkeys(("1", "true", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "no", "n", "off"), False),
}


def nearest(name: str, known: Iterable[str]) -> str:
    """``Did you mean ...?`` for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else ""


def boolean(name: str, value: Any) -> bool:
    """``value`` as a boolean: 1/true/yes/y/on or 0/false/no/n/off, in any case."""
    if isinstance(value, bool):
        return value
    try:
        return _BOOLEANS[str(value).strip().lower()]
    except KeyError:
        raise TrainError(
            f"{name} is {value!r}, which is neither true nor false.",
            "Use true or false (1/yes/y/on and 0/no/n/off work as well).",
        ) from None


def mode(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """``value`` as one of ``choices``; YAML reads a bare ``off`` as false."""
    text = "off" if value is False else str(value)
    if text not in choices:
        raise TrainError(f"{name} is {text!r}.", f"Use one of {', '.join(choices)}.")
    return text


def typed(name: str, value: Any, kind: str) -> Any:
    """``value`` in the type that the argument spec gives it; the environment holds text only."""
    if kind == "bool":
        return boolean(name, value)
    if kind in ("list", "dict"):
        return _collection(name, value, kind)
    if kind not in ("int", "float"):
        return str(value) if kind == "str" else value
    whole = kind == "int"
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if whole and not isinstance(value, (bool, float)):
            return int(value)
        number = math.nan if isinstance(value, bool) else float(value)
        if math.isfinite(number) and (number.is_integer() or not whole):
            return int(number) if whole else number
    raise TrainError(
        f"{name} is {value!r}, which is not a {'whole ' if whole else ''}number.",
        f"Give it a {'whole ' if whole else ''}number.",
    )


LANGUAGES = ("en", "zh")
"""The languages that a run's page can be in."""

_LEAST = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 8,
    "lora_r": 1,
    "lora_alpha": 1,
    "lora_dropout": 0,
    "weight_decay": 0,
    "warmup_ratio": 0,
    "max_grad_norm": 0,
    "seed": 0,
    "data_seed": -1,
    "init_seed": -1,
    "dropout_seed": -1,
    "max_new_tokens": 1,
    "eval_batch_size": 0,
}
_ABOVE = {"learning_rate": 0, "num_train_epochs": 0}
_SEEDS = ("seed", "data_seed", "init_seed", "dropout_seed")
_BELOW = {"lora_dropout": 1, "warmup_ratio": 1, **dict.fromkeys(_SEEDS, 2**63)}
_ONE_OF = {
    "lr_scheduler_type": ("cosine", "linear", "constant"),
    "dtype": ("auto", "float32", "bfloat16"),
}


def check_range(name: str, value: Any) -> None:
    """Refuse a setting that no training could use, before anything is sent.

    The training holds the same ranges (``training/settings.py``), for those who run it by hand.
    """
    wrong = ""
    if name in _LEAST and value < _LEAST[name]:
        wrong = f"{_LEAST[name]} or more"
    elif name in _ABOVE and value <= _ABOVE[name]:
        wrong = f"above {_ABOVE[name]}"
    elif name in _BELOW and value >= _BELOW[name]:
        wrong = f"below {_BELOW[name]}"
    elif name in _ONE_OF and value not in _ONE_OF[name]:
        wrong = f"one of {', '.join(_ONE_OF[name])}"
    if wrong:
        raise TrainError(f"{name} is {value!r}; it must be {wrong}.", f"Correct {name}.")


def _collection(name: str, value: Any, kind: str) -> Any:
    """A list or a mapping. ``-e name=value`` gives text: read as Ansible's argument specs do."""
    if kind == "list" and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if kind == "list" and isinstance(value, Iterable) and not isinstance(value, Mapping):
        return list(value)
    if kind == "dict" and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if kind == "dict" and isinstance(value, Mapping):
        return dict(value)
    if kind == "list":
        raise TrainError(f"{name} is {value!r}, which is not a list.", "Give it as [a, b].")
    # Without the quotes a shell, or Ansible, cuts it at its blanks.
    example = '{"driver": "reason"}' if name == "gpu_gate_silence" else '{"name": "value"}'
    raise TrainError(
        f"{name} is {value!r}, which is not a mapping of names.",
        f"On a command line, write -e '{{\"{name}\": {example}}}'.",
    )


def check_names(names: Iterable[str], known: Iterable[str], *, exact: bool) -> None:
    """Refuse a variable that is no setting.

    :param exact: whether every unknown name is refused (the command line), or only one that
        looks like a misspelt setting (the inventory, which may hold variables of its user's).
    """
    known = set(known)
    for name in names:
        if name in known or name.startswith(("ansible_", "_", "molecule_")):
            continue
        close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.85)
        if close or exact:
            raise TrainError(
                f"There is no setting {name}.",
                (f"Did you mean {close[0]}? " if close else "")
                + "A variable of your own is named in own_variables.",
            )


def choose_steps(
    run_tags: Iterable[str], skip_tags: Iterable[str], stage_tags: Iterable[str]
) -> tuple[list[str], list[str]]:
    """The steps and the stage tags that ``--tags`` and ``--skip-tags`` leave.

    A stage's tag brings all the steps along; a step's tag runs that step alone.
    """
    stage_tags = list(stage_tags)
    known = {*stage_tags, *STEPS}
    run, skip = set(run_tags), set(skip_tags)
    if skip & {"all", "tagged"}:
        raise TrainError("--skip-tags all leaves nothing to do.", "Name the tags to leave out.")
    for tag in sorted((run | skip) - {"all", "always", "tagged"}):
        if tag not in known:
            raise TrainError(
                f"The tag {tag} names no stage and no step.",
                f"{nearest(tag, known)} The tags are {', '.join([*stage_tags, *STEPS])}.".strip(),
            )
    everything = not run - {"always"} or bool(run & {"all", "tagged"})
    stages = [tag for tag in stage_tags if everything or tag in run]
    steps = [step for step in STEPS if everything or stages or step in run]
    return [s for s in steps if s not in skip], [t for t in stages if t not in skip]


def _inside(name: str, value: str) -> str:
    """``value`` as a clean path under the project root."""
    clean = posixpath.normpath(value)
    if not value or clean.startswith(("/", "../")) or clean in (".", ".."):
        raise TrainError(
            f"{name} is {value!r}, which is not a folder or file under project_root.",
            "Give a path relative to project_root.",
        )
    return clean


def _folder(name: str, value: Any) -> str:
    """``value`` as an absolute path on the host, or nothing."""
    text = str(value or "").rstrip("/")
    # Both hubs' libraries know the home folder; a link into it would not.
    if text and not text.startswith(("/",) if name == "runtime_base" else ("/", "~/")):
        raise TrainError(
            f"{name} is {value!r}, which is not an absolute path.",
            f"Give {name} as a path on the GPU host, such as /data.",
        )
    return text


def _target_modules(value: Any) -> Any:
    """One name as it is, several as a sorted list: their order changes nothing."""
    names = value.split(",") if isinstance(value, str) else list(value or [])
    names = sorted({str(name).strip() for name in names} - {""})
    if not names:
        raise TrainError("target_modules names no module.", "Use all-linear, or a list of names.")
    return names[0] if len(names) == 1 else names


def _command(stage: str, value: Any) -> list[str]:
    """A stage's own command in words; ``{stage}`` is what its ``{{ stage }}`` became."""
    try:
        words = shlex.split(value) if isinstance(value, str) else [str(word) for word in value]
    except ValueError as error:
        raise TrainError(
            f"The command of the stage {stage} can't be split into words ({error}).",
            "Close its quotes, or give it as a list of words.",
        ) from None
    return [word.replace("{stage}", stage) for word in words]


def _stage(
    item: Mapping[str, Any], values: Mapping[str, Any], kinds: Mapping[str, str]
) -> dict[str, Any]:
    """One stage with all that its run needs."""
    name = str(item["name"])
    own = {**(item.get("settings") or {}), **(values["stage_settings"].get(name) or {})}
    known = (*TRAINING_SETTINGS, *EVALUATION_SETTINGS, *EVALUATION_SPEED, *MODEL_SETTINGS)
    for key in own:
        if key not in known:
            raise TrainError(
                f"The stage {name} has no setting {key}.",
                nearest(key, known) or f"The settings are {', '.join(known)}.",
            )
    chosen = {key: typed(key, own.get(key, values[key]), kinds.get(key, "raw")) for key in known}
    for key, value in chosen.items():
        check_range(key, value)
    chosen["target_modules"] = _target_modules(chosen["target_modules"])
    thresholds = values["stage_thresholds"].get(name, item.get("thresholds")) or {}
    for key in thresholds:
        if key not in SCORES:
            raise TrainError(
                f"The stage {name} has a threshold on {key}, which is no score.",
                nearest(key, SCORES) or f"The scores are {', '.join(SCORES)}.",
            )
    return {
        "name": name,
        "tag": str(item.get("tag") or name),
        "needs": list(item.get("needs") or []),
        "ask_after": boolean("ask_after", item.get("ask_after") or False),
        "trial": boolean("trial", item.get("trial") or False),
        "train": [_inside("train", path) for path in item["train"]],
        "evaluate": [_inside("evaluate", path) for path in item.get("evaluate") or []],
        "adapter_dir": _inside("adapter", posixpath.join(values["out_base"], item["adapter"])),
        "thresholds": {key: typed(key, value, "float") for key, value in thresholds.items()},
        "settings": {key: chosen[key] for key in TRAINING_SETTINGS},
        "model": {key: chosen[key] for key in MODEL_SETTINGS},
        "evaluation": {key: chosen[key] for key in EVALUATION_SETTINGS},
        "evaluation_speed": {key: chosen[key] for key in EVALUATION_SPEED},
        "command": _command(name, item.get("command") or values["stage_command"]),
        "code": [_inside("code", path) for path in item.get("code") or values["stage_code"]],
    }


def data_files(request: Mapping[str, Any]) -> list[dict[str, str]]:
    """The data files of the chosen stages: ``name``, ``role`` (train, evaluate) and ``stage``."""
    return [
        {"name": name, "role": role, "stage": stage["name"]}
        for stage in request["stages"]
        if stage["name"] in request["selected"]
        for role in ("train", "evaluate")
        for name in stage[role]
    ]


def _check_files(stage: Mapping[str, Any], stages: list[dict[str, Any]]) -> None:
    """The files of a stage have names that are possible, and its own."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", stage["name"]) or stage["name"] in STEPS:
        raise TrainError(
            f"A stage can't be called {stage['name']!r}.",
            "Its name becomes part of file names: use letters, digits, '_', '-' and '.', and "
            f"none of {', '.join(STEPS)}.",
        )
    if [other["adapter_dir"] for other in stages].count(stage["adapter_dir"]) > 1:
        raise TrainError(
            f"Two stages have the adapter {stage['adapter_dir']}.",
            "Give each a folder of its own: one would undo the other.",
        )


def _check_stages(stages: list[dict[str, Any]], values: Mapping[str, Any]) -> None:
    """Names and tags are unique, needs come before, and settings name a stage that exists."""
    seen: list[str] = []
    for stage in stages:
        _check_files(stage, stages)
        for taken, word in ((seen, stage["name"]), ([s["tag"] for s in stages], stage["tag"])):
            if taken.count(word) > (0 if taken is seen else 1):
                raise TrainError(f"Two stages are called {word}.", "Rename one of them.")
        if stage["tag"] in (*STEPS, "all", "always", "never", "tagged", "untagged"):
            raise TrainError(
                f"The stage {stage['name']} has the tag {stage['tag']}, which is taken.",
                "Give the stage another tag.",
            )
        for need in stage["needs"]:
            if need not in seen:
                raise TrainError(
                    f"The stage {stage['name']} needs {need}, which is no stage before it.",
                    nearest(need, seen) or "Put the needed stage first.",
                )
        seen.append(stage["name"])
    for setting in ("stage_settings", "stage_thresholds"):
        for name in values[setting]:
            if name not in seen:
                raise TrainError(
                    f"{setting} names the stage {name}, and there is none.",
                    nearest(name, seen) or f"The stages are {', '.join(seen)}.",
                )


def build(
    values: Mapping[str, Any],
    kinds: Mapping[str, str],
    run_tags: Iterable[str] = ("all",),
    skip_tags: Iterable[str] = (),
    terminal: bool = False,
) -> dict[str, Any]:
    """The request of one run, out of the settings in force.

    :param values: every setting of the role ``settings``, templated.
    :param kinds: the type of each, from the role's argument spec.
    :param terminal: whether a person sits at a terminal and can be asked.
    """
    values = {
        name: typed(name, value, kinds[name]) if kinds.get(name) in ("list", "dict") else value
        for name, value in values.items()
    }
    for setting in ("stage_settings", "stage_thresholds"):
        for name, given in values[setting].items():
            values[setting][name] = typed(f"{setting}.{name}", given or {}, "dict")
    root = str(values["project_root"] or "").rstrip("/")
    if not root:
        raise TrainError(
            "project_root is missing: the training project's folder on the GPU host.",
            "Give it with -e project_root=/srv/tutor, in the inventory, or as "
            "TRAIN_SYNC_PROJECT_ROOT.",
        )
    if not root.startswith("/") or posixpath.normpath(root) != root:
        raise TrainError(
            f"project_root is {root!r}, which is not a plain absolute path.",
            "Give an absolute path such as /srv/tutor.",
        )
    for key in ("data_base", "out_base", "log_dir"):
        values[key] = _inside(key, str(values[key]))
    stages = [_stage(item, values, kinds) for item in [*values["stages"], *values["extra_stages"]]]
    _check_stages(stages, values)
    steps, tags = choose_steps(run_tags, skip_tags, [stage["tag"] for stage in stages])
    skip_sample = boolean("skip_sample", values["skip_sample"])
    skipped = {stage["name"] for stage in stages if stage["trial"]} if skip_sample else set()
    chosen = [stage["name"] for stage in stages if stage["tag"] in tags]
    assume_yes = boolean("assume_yes", values["assume_yes"])
    non_interactive = boolean("non_interactive", values["non_interactive"])
    gates = ("strict", "warn", "off")
    return {
        "project_root": root,
        "data_base": values["data_base"],
        "log_dir": values["log_dir"],
        "stages": stages,
        "selected": [name for name in chosen if name not in skipped],
        "left_out": sorted(skipped),
        "steps": steps,
        "interactive": terminal and not (assume_yes or non_interactive),
        "force": boolean("force", values["force"]),
        "gpu_gate": mode("gpu_gate", values["gpu_gate"], gates),
        "acceptance_gate": mode("acceptance_gate", values["acceptance_gate"], gates),
        "report_language": mode("report_language", values["report_language"], LANGUAGES),
        "on_stage_failure": values["on_stage_failure"],
        "on_lock": values["on_lock"],
        "reconnect_timeout": typed("reconnect_timeout", values["reconnect_timeout"], "int"),
        "fingerprint_ignore": list(values["fingerprint_ignore"]),
        "sign_adapters_key": str(values["sign_adapters_key"] or ""),
        "keep_runs": _not_below("keep_runs", values["keep_runs"], 0, "runs"),
        "pinned_runs": [runs.named("pinned_runs", run) for run in values["pinned_runs"]],
        "storage": {key: _folder(key, values[key]) for key in model_cache.STORAGE},
        "sync": _sync(values),
        "survival": _survival(values),
        "stop_grace": _not_below("stop_grace", values["stop_grace"], 0, "seconds"),
        "logs": _logs(values, [stage["name"] for stage in stages]),
    }


def _logs(values: Mapping[str, Any], stages: list[str]) -> dict[str, Any]:
    """What is shown of which log; an empty stage is the one that runs, or ran last."""
    stage = str(values["log_stage"] or "")
    if stage and stage not in stages:
        raise TrainError(
            f"log_stage is {stage!r}, and there is no such stage.",
            nearest(stage, stages) or f"The stages are {', '.join(stages)}.",
        )
    return {
        "stage": stage,
        "lines": _not_below("log_lines", values["log_lines"], 1, "lines"),
        "follow": boolean("follow", values["follow"]),
    }


def _survival(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage does against loss: checkpoints, memory, new attempts."""
    least = {
        "checkpoint_steps": (0, "steps"),
        "checkpoint_minutes": (0, "minutes"),
        "checkpoint_keep": (1, "checkpoints"),
        "stage_retries": (0, "attempts"),
        "stage_retry_pause": (0, "seconds"),
        "worker_idle_timeout": (0, "seconds"),
    }
    numbers = {name: _not_below(name, values[name], *rule) for name, rule in least.items()}
    return {**numbers, "low_memory": boolean("low_memory", values["low_memory"])}


def _not_below(name: str, value: Any, least: int, what: str) -> int:
    number: int = typed(name, value, "int")
    if number < least:
        raise TrainError(f"{name} is {number}.", f"Give a number of {what}, {least} or more.")
    return number


def _sync(values: Mapping[str, Any]) -> dict[str, Any]:
    """How the training project comes to the host; paths are the controller's."""
    keep = typed("sync_keep", values["sync_keep"], "int")
    if keep < 0:
        raise TrainError(f"sync_keep is {keep}.", "Give the number of versions to keep, 0 or more.")
    how = mode("code_sync_mode", values["code_sync_mode"], ("delta", "bundle", "git"))
    if values["bundle"] and how == "git":
        raise TrainError(
            "bundle names a bundle, and code_sync_mode is git.", "Leave out one of the two."
        )
    return {
        "mode": how,
        "src": values["project_src"],
        "bundle": values["bundle"],
        "whitelist": values["sync_whitelist"],
        "exclude": list(values["sync_exclude"]),
        "follow_links": boolean("sync_follow_links", values["sync_follow_links"]),
        "cache": boolean("sync_cache", values["sync_cache"]),
        "keep": keep,
        "signing_key": values["sync_signing_key"],
        "allowed_signers": values["sync_allowed_signers"],
        "git": {
            # The request is shown with -v. Who pulls takes the login from the setting itself.
            "url": git_url.without_login(str(values["sync_git_url"] or "")),
            "ref": str(values["sync_git_ref"]),
            "allow_dirty": boolean("sync_git_allow_dirty", values["sync_git_allow_dirty"]),
        },
    }
