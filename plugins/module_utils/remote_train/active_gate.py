"""The active gate: what a training's own Python said is judged by a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from . import gate, memory_need
from .active_facts import Base, Facts
from .gate_model import (
    DATA,
    FAIL,
    GPU,
    OK,
    PACKAGES,
    SKIPPED,
    UNKNOWN,
    WARN,
    Check,
    Finding,
    Verdict,
    any_of,
    each_once,
    quantity,
)
from .memory_need import GIB


def torch(facts: Facts) -> Verdict:
    """Whether torch can be imported in the training's Python."""
    expected = "can be imported"
    action = (
        "See what `import torch` says there; remove the venv of the project "
        "(outputs/training_sync/venv) to have it made anew, or name another Python with "
        "provision_python."
    )
    found = facts.part("torch")
    return facts.trouble("torch", expected, action) or Verdict(
        OK, f"torch {found['version']} in {facts.python}", expected
    )


def cpu_product(facts: Facts) -> Verdict:
    """Whether matrix products on the processor, in float32 and bfloat16, are right."""
    expected = "every place of the result right"
    action = "Don't train here: take another machine, or another build of torch."
    trouble = facts.no_torch(expected) or facts.trouble("cpu_products", expected, action)
    return trouble or _judge_products({"processor": facts.found["cpu_products"]}, expected, action)


def _judge_products(by_device: Mapping[str, Any], expected: str, action: str) -> Verdict:
    wrong = [
        f"{device}: {found['wrong']} of {found['of']} places wrong in {kind}"
        for device, kinds in by_device.items()
        for kind, found in kinds.items()
        if found["wrong"]
    ]
    if wrong:
        return Verdict(FAIL, any_of(wrong), expected, action)
    kinds = sorted({kind for kinds in by_device.values() for kind in kinds}, reverse=True)
    return Verdict(OK, f"right in {' and '.join(kinds)}", expected)


def torch_cuda(facts: Facts) -> Verdict:
    """Whether torch can use a GPU."""
    expected = "torch.cuda.is_available()"
    action = (
        "See with `nvidia-smi` whether the driver answers; where it does, this torch doesn't fit "
        "it: take another image, or name another Python with provision_python."
    )
    trouble = facts.no_torch(expected) or facts.trouble("cuda", expected, action)
    if trouble:
        return trouble
    if facts.part("cuda").get("available"):
        return Verdict(OK, "available", expected)
    if facts.driver_fails:
        return Verdict(SKIPPED, "no GPU can be used, see driver", expected)
    why = str(facts.part("cuda").get("why") or "torch sees no GPU")
    if not (facts.part("torch").get("cuda") or facts.part("torch").get("hip")):
        why = f"torch {facts.part('torch').get('version')} is built without CUDA"
        action = "Name a Python whose torch has CUDA with provision_python, or take another image."
    return Verdict(FAIL, why, expected, action)


def torch_driver(facts: Facts) -> Verdict:
    """Whether torch's CUDA is one that the driver runs, and has code for these GPUs.

    Within one major version any minor one will do (CUDA's minor version compatibility).
    """
    expected = "a CUDA that the driver runs, and code for the GPU"
    action = "Take an image with a newer driver, or a torch that is built for an older CUDA."
    found = facts.part("torch")
    stop = facts.no_torch(expected) or facts.trouble("torch", expected, action)
    if stop:
        return stop
    if not found.get("cuda"):
        return Verdict(SKIPPED, f"torch {found.get('version')} is built without CUDA", expected)
    built = f"torch {found['version']} for CUDA {found['cuda']}"
    if not facts.driver_cuda:
        return Verdict(UNKNOWN, f"{built}; the driver's CUDA isn't known", expected)
    seen = f"{built}; the driver runs up to {facts.driver_cuda}"
    if _major(found["cuda"]) > _major(facts.driver_cuda):
        # With NVIDIA's forward compatibility package it works all the same, and torch knows.
        works = facts.part("cuda").get("available")
        return Verdict(WARN if works else FAIL, seen, expected, action)
    lacking = [
        f"{device['name']} is sm_{''.join(map(str, device['capability']))}"
        for device in facts.part("cuda").get("devices") or []
        if found.get("architectures")
        and not _has_code(found["architectures"], device["capability"])
    ]
    if lacking:
        seen = f"{any_of(lacking)}, and torch has code for {any_of(found['architectures'], 12)}"
        return Verdict(FAIL, seen, expected, "Use a torch that is built for this GPU.")
    return Verdict(OK, seen, expected)


def _major(version: Any) -> int:
    head = str(version).partition(".")[0]
    return int(head) if head.isdigit() else 0


def _has_code(architectures: Iterable[str], capability: Sequence[int]) -> bool:
    """Whether a build has machine code for a GPU (same major, no higher minor), or PTX."""
    have = (int(capability[0]), int(capability[1]))
    for name in architectures:
        kind, _, digits = str(name).partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        built = (int(digits[:-1] or 0), int(digits[-1]))
        if (kind == "sm" and built[0] == have[0] and built <= have) or (
            kind == "compute" and built <= have
        ):
            return True
    return False


def torch_gpus(facts: Facts) -> Verdict:
    """Whether torch sees as many GPUs as the run asks for."""
    expected = f"at least {facts.gpus}"
    action = "Look at CUDA_VISIBLE_DEVICES in the host's environment, and at the GPUs' state."
    stop = facts.no_gpu(expected) or facts.trouble("cuda", expected, action)
    if stop:
        return stop
    devices = facts.part("cuda")["devices"]
    seen = any_of([device["name"] for device in devices]) or "none"
    result = FAIL if len(devices) < facts.gpus else OK
    return Verdict(result, f"{len(devices)}: {seen}", expected, action if result == FAIL else "")


def gpu_product(facts: Facts) -> Verdict:
    """Whether matrix products on each GPU, in float32 and bfloat16, are right."""
    expected = "every place of the result right"
    action = "Don't train here: a GPU that computes wrong results or breaks is taken back."
    stop = facts.no_gpu(expected) or facts.trouble("gpu_products", expected, action)
    if stop:
        return stop
    made = {f"GPU {number}": found for number, found in enumerate(facts.found["gpu_products"])}
    return _judge_products(made, expected, action)


def gpu_bandwidth(facts: Facts) -> Verdict:
    """Whether data gets from the host's memory to each GPU at a speed that doesn't hold it up."""
    expected = f"at least {facts.warn_bandwidth:g} GiB/s"
    action = "The card's PCIe slot is slow or shared; loading and evaluation take longer."
    stop = facts.no_gpu(expected) or facts.trouble("bandwidth", expected, action)
    if stop:
        return stop
    speeds = [float(speed) for speed in facts.found["bandwidth"]]
    seen = any_of([f"GPU {number}: {speed:.1f} GiB/s" for number, speed in enumerate(speeds)])
    lowest = min(speeds, default=0.0)
    if lowest < facts.min_bandwidth:
        return Verdict(FAIL, seen, expected, action)
    if lowest < facts.warn_bandwidth:
        return Verdict(WARN, seen, expected, action)
    return Verdict(OK, seen, expected)


_Judge = Callable[[int, Base, dict[str, Any]], Verdict]


def _each_base(
    facts: Facts, check: str, part: str, texts: tuple[str, str], judge: _Judge
) -> Verdict:
    """The worst verdict over all base models; ok, with all that was seen, where all are well.

    :param check: the check's name.
    :param part: the beginning of the name of the part that is judged.
    :param texts: what is expected, and what to do where there is nothing to judge.
    """
    expected, action = texts
    if not facts.bases:
        return Verdict(SKIPPED, "no stage of this project's own training runs", expected)
    if not facts.python:
        return Verdict(UNKNOWN, "no Python for the training yet: provisioning makes one", expected)
    found = []
    for number, base in enumerate(facts.bases):
        cause = _cause(facts, number, base, check)
        if cause:
            verdict = Verdict(SKIPPED, cause, expected)
        elif not base.folder:
            away = f"{base.name} is not on the host yet: sync or provisioning brings it"
            verdict = Verdict(UNKNOWN, away, expected)
        else:
            name = f"{part}:{number}"
            verdict = facts.trouble(name, expected, action) or judge(number, base, facts.part(name))
            named = verdict.result == FAIL or name in facts.hung
            if named and base.name not in verdict.seen:
                verdict = dataclasses.replace(verdict, seen=f"{base.name}: {verdict.seen}")
        found.append(verdict)
    order = (FAIL, WARN, UNKNOWN, SKIPPED, OK)
    worst = min(found, key=lambda verdict: order.index(verdict.result))
    if worst.result == OK:
        return Verdict(OK, "; ".join(each_once(verdict.seen for verdict in found)), expected)
    return worst


def _cause(facts: Facts, number: int, base: Base, check: str) -> str:
    """What another check has told already and this one depends on; empty where there is nothing."""
    if not base.folder and base.name in facts.lost:
        return f"{base.name} is not there, see model_folder"
    if check == "model_config":
        return ""
    tokens = facts.part(f"tokenizer:{number}")
    broken = facts.broken(f"tokenizer:{number}")
    causes = (
        (facts.broken("transformers"), "transformers can't be imported, see model_config"),
        (_missing(base), f"{base.name} is not there, see model_config"),
        (
            broken and facts.broken(f"config:{number}"),
            f"the configuration of {base.name} can't be loaded, see model_config",
        ),
        (
            broken and check != "tokenizer",
            f"the tokenizer of {base.name} doesn't load, see tokenizer",
        ),
        (
            check == "chat_tokens" and tokens.get("template") is False,
            f"the tokenizer of {base.name} has no chat template, see chat_template",
        ),
    )
    return next((words for holds, words in causes if holds), "")


def _missing(base: Base) -> bool:
    """Whether a base model is a folder that isn't there, and that nothing will bring."""
    return not base.folder and base.name.startswith(("/", ".", "~"))


def model_config(facts: Facts) -> Verdict:
    """Whether each base model is a language model that transformers knows, with its weights."""
    expected = "a causal language model in safetensors"
    action = "Copy or fetch the model anew; config, weights and tokenizer are all needed."
    words = (
        "See what `import transformers` says there, or let provisioning make a Python "
        "(--tags provision)."
    )
    trouble = facts.trouble("transformers", expected, words)
    if facts.bases and trouble and facts.broken("transformers"):
        return dataclasses.replace(trouble, seen=f"transformers: {trouble.seen}")
    for base in facts.bases:
        if facts.python and _missing(base) and base.name not in facts.lost:
            words = "Set model_name_or_path to a folder on the GPU host, or to a name on the hub."
            return Verdict(FAIL, f"{base.name} is not there", expected, words)

    def judge(_number: int, base: Base, found: dict[str, Any]) -> Verdict:
        if not found["causal"]:
            seen = f"{base.name} is of the type {found['type']}, which answers no chats"
            return Verdict(FAIL, seen, expected, "Name a causal language model.")
        if not base.weights:
            seen = f"{base.name} has no weights, or not all that its index names"
            return Verdict(FAIL, seen, expected, action)
        return Verdict(OK, f"{base.name}: {found['type']}", expected)

    return _each_base(facts, "model_config", "config", (expected, action), judge)


def tokenizer(facts: Facts) -> Verdict:
    """Whether the tokenizer of each base model loads, and tells where its tokens come from."""
    expected = "loads, as a fast one"
    action = "Copy or fetch the model anew: its tokenizer.json is needed."

    def judge(_number: int, base: Base, found: dict[str, Any]) -> Verdict:
        if not found["fast"]:
            seen = f"{base.name} has a slow one, without offsets"
            return Verdict(FAIL, seen, expected, "Use a model that comes with a tokenizer.json.")
        return Verdict(OK, f"{found['words']} words", expected)

    return _each_base(facts, "tokenizer", "tokenizer", (expected, action), judge)


def chat_template(facts: Facts) -> Verdict:
    """Whether the tokenizer has a chat template, and that renders every chat."""
    expected = "there, and takes every chat"
    action = "Use the instruct or chat variant of the model, if there is one."

    def judge(number: int, base: Base, found: dict[str, Any]) -> Verdict:
        if not found["template"]:
            seen = f"the tokenizer of {base.name} has none: a default one will be used"
            return Verdict(WARN, seen, expected, action)
        trouble = facts.trouble(f"lengths:{number}", expected, "")
        if trouble:
            told = facts.broken(f"lengths:{number}")
            why = ", see chat_tokens" if told else f": {trouble.seen}"
            return Verdict(UNKNOWN, f"there, but no chat was rendered{why}", expected)
        files = facts.part(f"lengths:{number}")
        refused = [
            f"{file} line {line}: {why}"
            for file, lengths in files.items()
            for line, why in lengths.get("refused") or []
        ]
        if refused:
            words = "Write these chats in the form that the base model's template wants."
            return Verdict(FAIL, any_of(refused, 2), expected, words)
        away = _not_there(facts, files, expected)
        if away:
            return dataclasses.replace(away, seen=f"there, but {away.seen}")
        tried, of = (sum(lengths[key] for lengths in files.values()) for key in ("chats", "of"))
        if not tried:
            return Verdict(SKIPPED, "there; no chat to render", expected)
        chats = quantity(of, "chat")
        seen = f"the {tried} longest of {chats}" if tried < of else f"all {chats}"
        return Verdict(OK, f"renders {seen if of > 1 else 'the one chat'}", expected)

    return _each_base(facts, "chat_template", "tokenizer", (expected, action), judge)


def _not_there(
    facts: Facts, files: Mapping[str, Mapping[str, Any]], expected: str
) -> Verdict | None:
    """The verdict where files of chats aren't there; None where all are."""
    away = [file for file, lengths in files.items() if lengths.get("missing")]
    lost = [file for file in away if file not in facts.coming]
    if lost:
        are = "is" if len(lost) == 1 else "are"
        seen = f"{any_of(lost, 2)} {are} not on the host, see data_files"
        return Verdict(SKIPPED, seen, expected)
    if not away:
        return None
    are, them = ("is", "it") if len(away) == 1 else ("are", "them")
    seen = f"{any_of(away, 2)} {are} still to be sent: only what is on the host is rendered"
    action = (
        f"train_all asks by itself when it has sent {them}; to know it before, send {them} with "
        "`ansible-playbook playbooks/sync.yml` and give the same command again."
    )
    return Verdict(UNKNOWN, seen, expected, action)


def chat_tokens(facts: Facts) -> Verdict:
    """Whether the longest chat of each stage fits into max_length, in tokens."""
    limits = {int(stage["settings"]["max_length"]) for b in facts.bases for stage in b.stages}
    expected = f"within max_length ({any_of(sorted(limits))})" if limits else "within max_length"
    action = "Raise max_length, or shorten these chats: they are cut at a turn."

    def judge(_number: int, base: Base, found: dict[str, Any]) -> Verdict:
        over: list[str] = []
        longest = 0
        for stage in base.stages:
            limit = int(stage["settings"]["max_length"])
            for file in stage["train"]:
                lengths = (found.get(file) or {}).get("lengths") or []
                longest = max([longest, *(tokens for _line, tokens in lengths[:1])])
                too_long = [one for one in lengths if one[1] > limit]
                if too_long:
                    line, tokens = too_long[0]
                    over.append(
                        f"{stage['name']}: {quantity(len(too_long), 'chat')} over {limit} tokens, "
                        f"the longest {tokens} ({file} line {line})"
                    )
        if over:
            return Verdict(WARN, any_of(over, 2), expected, action)
        refused = sum(len(lengths.get("refused") or []) for lengths in found.values())
        if refused:
            seen = f"{quantity(refused, 'chat')} can't be rendered, see chat_template"
            return Verdict(SKIPPED, seen, expected)
        away = _not_there(facts, found, expected)
        if away:
            return dataclasses.replace(away, action="")  # chat_template has said it
        if not any(lengths["chats"] for lengths in found.values()):
            return Verdict(SKIPPED, "no chat to count", expected)
        return Verdict(OK, f"the longest has {longest} tokens", expected)

    return _each_base(facts, "chat_tokens", "lengths", (expected, action), judge)


def model_memory(facts: Facts) -> Verdict:
    """Whether the training fits into what torch sees free on a GPU, by the estimate of the gate.

    With the shapes of the model itself, and the longest chat in tokens.
    """
    expected = "the estimate within the free memory"
    action = (
        "Lower max_length or per_device_train_batch_size (with more gradient_accumulation_steps), "
        "set use_qlora, end what else is on the GPU, or take a larger one."
    )
    stop = facts.no_gpu(expected) or facts.trouble("cuda", expected, action)
    if stop:
        return stop
    needs = [
        need for number, base in enumerate(facts.bases) for need in _needs(facts, number, base)
    ]
    free = [int(device["free"]) for device in facts.part("cuda")["devices"][: facts.gpus]]
    if not needs or not free:
        return Verdict(UNKNOWN, "the size of no base model is known", expected)
    need = max(needs, key=lambda one: one.size)
    seen = f"{min(free) / GIB:.1f} GiB free; {need.stage} needs {need}"
    if need.size * (1 - facts.memory_slack) > min(free):
        return Verdict(FAIL, seen, expected, action)
    if need.size > min(free):
        return Verdict(WARN, seen, expected, action)
    return Verdict(OK, seen, expected)


def _needs(facts: Facts, number: int, base: Base) -> Iterable[memory_need.Need]:
    if base.model is None:
        return
    measured = facts.part(f"lengths:{number}")
    for stage in base.stages:
        settings = dict(stage["settings"])
        tokens = [
            lengths["lengths"][0][1]
            for file, lengths in measured.items()
            if file in stage["train"] and isinstance(lengths, dict) and lengths.get("lengths")
        ]
        if tokens:
            settings["max_length"] = min(settings["max_length"], max(tokens))
        bfloat16 = bool(facts.part("cuda").get("bfloat16"))
        yield memory_need.gpu_need(stage["name"], base.model, settings, bfloat16)


CHECKS: tuple[Check[Facts], ...] = (
    Check(PACKAGES, torch, "it can't, or takes too long"),
    Check(PACKAGES, cpu_product, "a place of a result is wrong"),
    Check(GPU, torch_cuda, "it can't; the reason is torch's own"),
    Check(
        GPU,
        torch_driver,
        "the major version is newer than the driver's, or code is lacking",
        "torch can use it all the same",
    ),
    Check(GPU, torch_gpus, "fewer", limits=("gpus",)),
    Check(GPU, gpu_product, "a place of a result is wrong, or the GPU breaks or hangs"),
    Check(
        GPU,
        gpu_bandwidth,
        "below `active_gate_min_bandwidth`",
        "below `active_gate_warn_bandwidth`",
    ),
    Check(DATA, model_config, "it can't be loaded, is of another kind, or lacks weights"),
    Check(DATA, tokenizer, "it doesn't load, or has no offsets"),
    Check(DATA, chat_template, "it refuses a chat", "there is none: a default one will be used"),
    Check(DATA, chat_tokens, "they can't be counted", "a chat is longer: it will be cut"),
    Check(
        GPU,
        model_memory,
        "it falls short by more than `gpu_gate_memory_slack`",
        "it falls short",
        ("memory_slack",),
    ),
)
"""Every check of the active gate, in the order of its table."""


def run_checks(facts: Facts, mode: str, silenced: Mapping[str, str]) -> list[Finding]:
    """The findings of all checks, in the order of the table."""
    return gate.run_table(facts, mode, CHECKS, silenced, facts.gpus)
