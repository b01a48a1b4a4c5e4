"""What the active gate asks of the training's own Python: torch, the GPUs, tokenizer and data.

    python gate_torch.py torch|model < REQUEST.json

It knows nothing of the rest of this package, so that its text alone can be sent there. It judges
nothing: it prints a JSON line as each part begins (``begin``) and one with what was found (``part``
and ``facts``), so that whoever started it knows in which part it hung or died.

``torch`` takes ``gpus``, how many are looked at; ``model`` takes ``root`` and ``models``, each with
its ``number``, its ``folder`` and the ``files`` of chats that are trained on with it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

SIDE = 256
"""Rows and columns of the matrices: small whole numbers, so that the right result is exact."""

COPIED = 256 * 1024 * 1024
"""Bytes that are copied to the GPU to measure how fast that goes."""

ALL_UP_TO = 2000
"""Chats of a file up to which all are counted in tokens; of more, those with the most text."""

LARGEST = 500


def tell(**facts: Any) -> None:
    """Print one line for whoever started this."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def part(name: str, look: Callable[[], Any]) -> Any:
    """Look at one part; an error is a fact as well."""
    tell(begin=name)
    try:
        facts = look()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        facts = {"error": f"{type(error).__name__}: {lines[0]}".rstrip(": ")}
    tell(part=name, facts=facts)
    return facts


def products(torch: Any, device: str, bfloat16: bool) -> dict[str, Any]:
    """Matrix products on a device whose right results are known, and how many places are wrong.

    Whole numbers from -4 to 4, so that a float32 sum of 256 products is exact in any order; in
    bfloat16 the result alone is rounded, by 2**-9 of it, and 2**-7 is allowed.
    """
    random = torch.Generator().manual_seed(20240229)
    one, two = (
        torch.randint(-4, 5, (SIDE, SIDE), generator=random, dtype=torch.int64) for _ in range(2)
    )
    right = one @ two
    found = {}
    for name in ("float32", "bfloat16") if bfloat16 else ("float32",):
        kind = getattr(torch, name)
        made = (one.to(device, kind) @ two.to(device, kind)).to("cpu", torch.float64)
        allowed = 0.0 if name == "float32" else right.abs().double() * 2**-7 + 1
        wrong = ~((made - right.double()).abs() <= allowed)
        found[name] = {"wrong": int(wrong.sum()), "of": SIDE * SIDE}
    return found


def about_torch() -> dict[str, Any]:
    """Which torch it is, and what it was built for."""
    torch: Any = importlib.import_module("torch")
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        # Empty where torch sees no GPU.
        "architectures": list(torch.cuda.get_arch_list()),
    }


def about_cuda(torch: Any) -> dict[str, Any]:
    """What torch sees of the GPUs, and why it sees none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = bool(torch.cuda.is_available())
        why = "; ".join(str(one.message).splitlines()[0] for one in caught)
    if not available:
        with contextlib.suppress(ImportError):
            try:
                torch.cuda.init()
            except Exception as error:
                why = str(error).strip().splitlines()[0]
        return {"available": False, "why": why, "count": 0, "devices": []}
    devices: list[dict[str, Any]] = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        devices.append(
            {
                "name": str(torch.cuda.get_device_name(number)),
                "capability": list(torch.cuda.get_device_capability(number)),
                "free": int(free),
                "total": int(total),
            }
        )
    # As the training decides it: before that, torch emulates.
    bfloat16 = all(device["capability"] >= [8, 0] for device in devices)
    return {
        "available": True,
        "why": why,
        "count": len(devices),
        "devices": devices,
        "bfloat16": bfloat16,
    }


def bandwidth(torch: Any, number: int) -> float:
    """GiB a second from the host's memory to a GPU's: the best of three copies."""
    host = torch.empty(COPIED, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(COPIED, dtype=torch.uint8, device=f"cuda:{number}")
    best = 0.0
    for _ in range(4):  # the first one warms up
        torch.cuda.synchronize(number)
        started = time.perf_counter()
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize(number)
        best = max(best, COPIED / 2**30 / (time.perf_counter() - started))
    return best


def look_at_torch(asked: dict[str, Any]) -> None:
    """All parts that are about torch."""
    if "error" in part("torch", about_torch):
        return
    torch: Any = importlib.import_module("torch")
    part("cpu_products", lambda: products(torch, "cpu", bfloat16=True))
    if not asked["gpus"]:
        return
    cuda = part("cuda", lambda: about_cuda(torch))
    if not cuda.get("available"):
        return
    with contextlib.suppress(AttributeError, RuntimeError):
        # Sums that are rounded on the way differ more than a result that is rounded.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    numbers = range(min(cuda["count"], asked["gpus"]))
    part(
        "gpu_products",
        lambda: [products(torch, f"cuda:{number}", cuda["bfloat16"]) for number in numbers],
    )
    part("bandwidth", lambda: [bandwidth(torch, number) for number in numbers])


def read_chats(path: str) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """The chats of a file that are looked at, with their line numbers, and how many it has.

    What is no chat, another check has told.
    """
    found = []
    with open(path, "rb") as stream:
        for number, line in enumerate(stream.read().split(b"\n"), start=1):
            with contextlib.suppress(ValueError):
                chat = json.loads(line.decode("utf-8-sig"))
                if isinstance(chat, dict) and isinstance(chat.get("messages"), list):
                    found.append((number, chat))
    of = len(found)
    if of > ALL_UP_TO:
        found = sorted(found, key=lambda one: -_text_length(one[1]))[:LARGEST]
    return found, of


def _text_length(chat: dict[str, Any]) -> int:
    return sum(len(str(message.get("content") or "")) for message in chat["messages"])


def as_rendered(message: dict[str, Any]) -> dict[str, Any]:
    """A message as the training hands it to the chat template."""
    made = {**message, "content": message.get("content") or ""}
    calls = made.pop("tool_calls", None) or []
    if calls:
        made["tool_calls"] = [_as_called(call.get("function", call)) for call in calls]
    return made


def _as_called(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def tokens_of(tokenizer: Any, chat: dict[str, Any]) -> int:
    """How many tokens a chat has up to its last answer, which is what is trained on."""
    messages = [as_rendered(message) for message in chat["messages"]]
    answers = [at for at, message in enumerate(messages) if message.get("role") == "assistant"]
    if not answers:
        return 0
    text = tokenizer.apply_chat_template(
        messages[: answers[-1] + 1], tools=chat.get("tools") or None, tokenize=False
    )
    return len(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def measure(tokenizer: Any, path: str) -> dict[str, Any]:
    """The chats of a file in tokens: ``[line, tokens]`` each, and what the template refuses."""
    if not os.path.isfile(path):
        return {"missing": True}
    lengths, refused = [], []
    chats, of = read_chats(path)
    for line, chat in chats:
        try:
            lengths.append([line, tokens_of(tokenizer, chat)])
        except Exception as error:  # a template raises what it likes
            refused.append([line, f"{type(error).__name__}: {error}".splitlines()[0]])
    lengths.sort(key=lambda one: -one[1])
    return {"chats": len(chats), "of": of, "lengths": lengths[:LARGEST], "refused": refused}


def look_at_model(asked: dict[str, Any]) -> None:
    """All parts that are about base models and the chats for them."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # all of it is folders here
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"

    def version() -> dict[str, Any]:
        return {"version": str(importlib.import_module("transformers").__version__)}

    if "error" in part("transformers", version):
        return
    library: Any = importlib.import_module("transformers")
    for model in asked["models"]:
        number, folder = model["number"], model["folder"]
        loaded: list[Any] = []

        def load(folder: str = folder, loaded: list[Any] = loaded) -> dict[str, Any]:
            loaded.append(library.AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
            return {
                "words": len(loaded[0]),
                "fast": bool(loaded[0].is_fast),
                "template": bool(loaded[0].chat_template),
            }

        def configuration(folder: str = folder) -> dict[str, Any]:
            config = library.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            kinds = getattr(library, "MODEL_FOR_CAUSAL_LM_MAPPING", None)
            return {
                "type": str(config.model_type),
                "causal": kinds is None or type(config) in kinds,
                "positions": getattr(config, "max_position_embeddings", None),
            }

        part(f"config:{number}", configuration)
        tokenizer = part(f"tokenizer:{number}", load)
        if tokenizer.get("template"):

            def lengths(model: Any = model, loaded: list[Any] = loaded) -> dict[str, Any]:
                return {
                    file: measure(loaded[0], os.path.join(asked["root"], file))
                    for file in model["files"]
                }

            part(f"lengths:{number}", lengths)


def main(arguments: list[str]) -> int:
    """Exit status 0 when all parts were looked at."""
    asked = json.loads(sys.stdin.read())
    {"torch": look_at_torch, "model": look_at_model}[arguments[0]](asked)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
