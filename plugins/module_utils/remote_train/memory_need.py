"""How much memory a training will need, on the GPU and on the disk: estimates that say why.

The shapes come from the model's ``config.json`` where the model is a folder on this machine or in
the hub's cache, else from the size in its name (``Qwen3-8B``) and the shapes that models of that
size have. The amounts follow what ``training/`` does: weights in bfloat16 (float32 without it, 4
bits with QLoRA), adapter, gradient and two moments of AdamW in float32, no gradient
checkpointing, logits in float32 for the tokens that are learned.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import model_cache

MIB = 1024**2
GIB = 1024**3

#: What CUDA, its libraries and the allocator's gaps take, in bytes.
OVERHEAD = GIB

#: What a venv takes on the disk, in bytes: torch brings CUDA's libraries and Triton along, 6 to 7
#: GiB together; transformers, peft and all that the others bring have 0.3 GiB.
TORCH_VENV, VENV = 7 * GIB, GIB // 2

#: Bytes of a weight in 4 bits (NF4): half a byte, and the scales of blocks of 64.
FOUR_BITS = 0.5 + 4 / 64

#: Bytes of text for a token, on the low side: 3 to 4.5 in English, about 2 to 3 in Chinese.
BYTES_A_TOKEN = 2

# Parameters in billions: layers, width, inner width, width of queries and of keys, words in the
# vocabulary; those of SmolLM2, Qwen2.5, Qwen3 and Llama 3.
_SHAPES: dict[float, tuple[int, int, int, int, int, int]] = {
    0.14: (30, 576, 1536, 576, 192, 49_152),
    0.5: (24, 896, 4864, 896, 128, 151_936),
    0.6: (28, 1024, 3072, 2048, 1024, 151_936),
    1.5: (28, 1536, 8960, 1536, 256, 151_936),
    3.0: (36, 2048, 11_008, 2048, 256, 151_936),
    4.0: (36, 2560, 9728, 4096, 1024, 151_936),
    8.0: (36, 4096, 12_288, 4096, 1024, 151_936),
    14.0: (40, 5120, 17_408, 5120, 1024, 151_936),
    32.0: (64, 5120, 25_600, 8192, 1024, 151_936),
    70.0: (80, 8192, 28_672, 8192, 1024, 128_256),
}


@dataclass(frozen=True)
class Model:
    """The size and shape of a base model; ``source`` says where they come from.

    ``weights`` is what it takes on the disk, in bytes; ``here`` whether it is there already.
    """

    name: str
    source: str
    parameters: int
    layers: int
    width: int
    inner: int
    query_width: int
    key_width: int
    vocabulary: int
    weights: int
    here: bool = False
    tied: bool = False


@dataclass(frozen=True)
class Part:
    """One part of an estimate: what, how many bytes, and of what that follows."""

    what: str
    size: float
    why: str

    def __str__(self) -> str:
        """``weights 15.3 (8.2 billion parameters in bfloat16)``, in GiB."""
        return f"{self.what} {self.size / GIB:.1f}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class Need:
    """An estimate in bytes, its parts, and the stage that it is for."""

    stage: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> float:
        """All parts together, in bytes."""
        return sum(part.size for part in self.parts)

    @property
    def short(self) -> str:
        """The sum alone, for a person."""
        return f"about {self.size / GIB:.1f} GiB"

    def __str__(self) -> str:
        """The sum and its parts, for a person."""
        return f"{self.short}: {', '.join(map(str, self.parts))}"

    def as_dict(self) -> dict[str, Any]:
        """For a module's result; sizes in bytes."""
        parts = [{"what": p.what, "bytes": int(p.size), "why": p.why} for p in self.parts]
        return {"stage": self.stage, "bytes": int(self.size), "parts": parts}


def find_model(name: str, root: str, cache: str = "") -> Model | None:
    """What can be known of a base model without the network.

    :param name: a folder (absolute, or under ``root``) or the model's name on a hub.
    :param cache: the hub's cache; by default where its library has it.
    :returns: None where neither files nor the name tell a size.
    """
    for folder in (os.path.join(root, os.path.expanduser(name)), *_cached(name, cache)):
        if os.path.isfile(os.path.join(folder, "config.json")):
            found = _of_folder(name, folder)
            if found:
                return found
    return of_name(name)


def _cached(name: str, cache: str) -> list[str]:
    """The snapshots of a model in the hub's cache, the newest first."""
    folder = cache or model_cache.cache_folder(False, {}, os.environ)
    pattern = os.path.join(glob.escape(model_cache.repository(folder, name)), "snapshots", "*")
    return sorted(glob.glob(pattern), key=os.path.getmtime, reverse=True)


def _of_folder(name: str, folder: str) -> Model | None:
    """A model by the files in its folder; None where its config has no shapes that are known."""
    config = _json(os.path.join(folder, "config.json"))
    config = {**config, **(config.get("text_config") or {})}
    layers = _whole(config, "num_hidden_layers", "n_layer", "num_layers")
    width = _whole(config, "hidden_size", "n_embd", "d_model")
    vocabulary = _whole(config, "vocab_size")
    if not (layers and width and vocabulary):
        return None
    inner = _whole(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * width
    heads = _whole(config, "num_attention_heads", "n_head") or 1
    key_heads = _whole(config, "num_key_value_heads") or heads
    head = _whole(config, "head_dim") or max(width // heads, 1)
    query_width, key_width = heads * head, key_heads * head
    tied = config.get("tie_word_embeddings") is not False
    experts = max(_whole(config, "num_experts", "num_local_experts", "n_routed_experts"), 1)
    moe = _whole(config, "moe_intermediate_size") or inner
    blocks = (
        2 * width * (query_width + key_width)
        + 3 * width * (moe if experts > 1 else inner) * experts
    )
    counted = layers * blocks + vocabulary * width * (1 if tied else 2)
    weights = _bytes_on_disk(folder)
    bytes_each = 4 if "float32" in str(config.get("torch_dtype") or config.get("dtype")) else 2
    # Quantized weights, of which a byte isn't a half, are counted by their shapes.
    parameters = weights // bytes_each if weights and "quantization_config" not in config else 0
    return Model(
        name,
        "its config.json" + (" and weights" if parameters else ""),
        parameters or counted,
        layers,
        width,
        inner,
        query_width,
        key_width,
        vocabulary,
        weights or counted * 2,
        here=bool(weights),
        tied=tied,
    )


def _bytes_on_disk(folder: str) -> int:
    """What a model's weights take: of its index, else of the files; 0 where there are none."""
    index = _json(os.path.join(folder, "model.safetensors.index.json"))
    total = (index.get("metadata") or {}).get("total_size")
    names = {str(file) for file in (index.get("weight_map") or {}).values()}
    if total and names and all(os.path.isfile(os.path.join(folder, n)) for n in names):
        return int(total)
    if names:
        return 0
    files = glob.glob(os.path.join(glob.escape(folder), "*.safetensors"))
    return sum(os.path.getsize(path) for path in files)


def of_name(name: str) -> Model | None:
    """A model by the size in its name, such as ``8B``, ``0.5B``, ``135M`` or ``8x7B``."""
    last = name.rstrip("/").rpartition("/")[2]
    found = re.search(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z0-9])", last)
    if not found:
        return None
    billions = float(found.group(2)) * int(found.group(1) or 1)
    billions /= 1000 if found.group(3) in "Mm" else 1
    if not 0.001 < billions < 5000:
        return None
    nearest = min(_SHAPES, key=lambda size: abs(math.log(size / billions)))
    layers, width, inner, query_width, key_width, vocabulary = _SHAPES[nearest]
    # The width grows with the square root of what is left after the layers.
    scale = math.sqrt(billions / nearest)
    parameters = int(billions * 1e9)
    return Model(
        name,
        f"its name ({found.group(0)})",
        parameters,
        layers,
        int(width * scale),
        int(inner * scale),
        int(query_width * scale),
        int(key_width * scale),
        vocabulary,
        parameters * 2,
        tied=billions < 4.5,
    )


def _projections(model: Model) -> dict[str, tuple[int, int]]:
    """The linear layers of a block as transformers names them: sizes in and out."""
    w, i, q, k = model.width, model.inner, model.query_width, model.key_width
    return {
        "q_proj": (w, q),
        "k_proj": (w, k),
        "v_proj": (w, k),
        "o_proj": (q, w),
        "gate_proj": (w, i),
        "up_proj": (w, i),
        "down_proj": (i, w),
    }


def adapter_parameters(model: Model, settings: Mapping[str, Any]) -> int:
    """How many numbers a LoRA adapter has: rank times inputs and outputs of what it adapts."""
    layers = _projections(model)
    wanted = settings["target_modules"]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    chosen = [size for name, size in layers.items() if name in names]
    if not chosen:  # all-linear, or names of another architecture
        chosen = list(layers.values())
    return int(model.layers * settings["lora_r"] * sum(a + b for a, b in chosen))


def gpu_need(
    stage: str,
    model: Model,
    settings: Mapping[str, Any],
    bfloat16: bool = True,
    longest: int = 0,
) -> Need:
    """The memory that the training of a stage takes on one GPU.

    :param settings: the training's settings, as the request has them.
    :param bfloat16: whether the GPU computes in it.
    :param longest: the longest chat of the stage in bytes; 0 where it isn't known, and
        ``max_length`` is what counts.
    """
    half = bfloat16 and settings["dtype"] != "float32"
    billions = f"{model.parameters / 1e9:.3g} billion parameters"
    table = model.vocabulary * model.width
    if settings["use_qlora"]:
        rest = table * (1 if model.tied else 2)
        size = max(model.parameters - rest, 0) * FOUR_BITS + rest * 4
        weights = Part("weights", size, f"{billions} in 4 bits, by {model.source}")
    else:
        word = "bfloat16" if half else "float32"
        size = model.parameters * (2 if half else 4)
        weights = Part("weights", size, f"{billions} in {word}, by {model.source}")
    trained = adapter_parameters(model, settings)
    length, why = settings["max_length"], "max_length"
    if longest and longest // BYTES_A_TOKEN < length:
        length, why = max(longest // BYTES_A_TOKEN, 1), "the longest chat"
    tokens = length * settings["per_device_train_batch_size"]
    batch = f"{settings['per_device_train_batch_size']} x {length} tokens, {why}"
    return Need(
        stage,
        (
            weights,
            Part(
                "adapter and AdamW",
                trained * 16,
                f"rank {settings['lora_r']}, {trained / 1e6:.3g} million numbers",
            ),
            Part("activations", tokens * model.layers * _activation(model, half), batch),
            Part("logits", tokens * model.vocabulary * 12, f"{model.vocabulary} words each"),
            Part("CUDA", OVERHEAD, ""),
        ),
    )


def _activation(model: Model, half: bool) -> int:
    """Bytes that one token leaves in one layer until the way back.

    The two norms (input and scaled input in float32, output), queries and keys before and after
    their rotation, the attention's result and its projection, two sums, gate, up, their activation
    and product, and of each adapted layer's input the mask and the result of its dropout. Measured
    with torch on a small Qwen3 (a test does it again): within a tenth.
    """
    size = 2 if half else 4
    norms = 2 * (8 + size) * model.width
    attention = size * (model.width + 4 * model.query_width + 3 * model.key_width)
    sums = 2 * size * model.width
    dropout = (size + 1) * (5 * model.width + model.query_width + model.inner)
    return norms + attention + sums + 4 * size * model.inner + dropout


def disk_need(
    stages: list[Mapping[str, Any]],
    models: Mapping[str, Model | None],
    install: Sequence[str] = (),
) -> tuple[Need, int]:
    """What the run leaves on the disk of the project, in bytes, and how many files.

    Each adapter is written beside the old one and takes its place at the end.

    :param install: the packages that provisioning will put into a venv there.
    """
    size = 0
    for stage in stages:
        model = models.get(stage["model"]["model_name_or_path"])
        if model:
            size += adapter_parameters(model, stage["settings"]) * 4
    count = len(stages)
    word = "adapter" if count == 1 else "adapters"
    parts = [Part("logs and reports", count * 64 * MIB, f"64 MiB for each of {count}")]
    if size:
        parts.insert(0, Part(f"{count} {word}", size, "float32, old ones stay until then"))
    files = count * 100
    if install:
        venv, inside = (TORCH_VENV, 30_000) if "torch" in install else (VENV, 10_000)
        parts.append(Part("venv", venv, ", ".join(install)))
        files += inside
    return Need("", tuple(parts)), files


def _json(path: str) -> dict[str, Any]:
    """A JSON object in a file; empty where there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _whole(config: Mapping[str, Any], *names: str) -> int:
    """The first of some fields that is a positive whole number; 0 where none is."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
