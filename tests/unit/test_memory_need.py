"""The estimates of memory and disk: sizes from files and names, and torch itself as the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remote_train import memory_need
from remote_train.memory_need import GIB, Model, adapter_parameters, disk_need, find_model, gpu_need

SETTINGS = {
    "max_length": 2048,
    "per_device_train_batch_size": 1,
    "lora_r": 16,
    "target_modules": "all-linear",
    "use_qlora": False,
    "dtype": "auto",
}
# That of Qwen3-0.6B, as the hub has it.
CONFIG = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def named(name: str) -> Model:
    model = memory_need.of_name(name)
    assert model is not None
    return model


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-8B", 8),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5),
        ("HuggingFaceTB/SmolLM2-135M", 0.135),
        ("meta-llama/Llama-3.1-70B-Instruct", 70),
        ("mistralai/Mixtral-8x7B-v0.1", 56),
        ("Qwen/Qwen3-30B-A3B", 30),  # all experts are loaded
        ("google/gemma-2b-it", 2),
        ("/models/7B/", 7),
        ("microsoft/phi-4", None),
        ("bert-base", None),
        ("a8b", None),
        ("model-0B", None),
        ("", None),
    ],
)
def test_size_in_a_name(name: str, billions: float | None) -> None:
    model = memory_need.of_name(name)
    assert (model and model.parameters) == (billions and int(billions * 1e9))


@pytest.mark.parametrize("size", sorted(memory_need._SHAPES))
def test_shapes_add_up_to_their_size(size: float) -> None:
    """The shapes by which names are filled in are those of models of that size."""
    layers, width, inner, query_width, key_width, words = memory_need._SHAPES[size]
    counted = layers * (2 * width * (query_width + key_width) + 3 * width * inner) + words * width
    assert counted / 1e9 == pytest.approx(size, rel=0.25)


def folder(path: Path, config: dict[str, Any] | str = "", **files: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text)
    for name, content in files.items():
        (path / f"{name}.safetensors").write_bytes(content)
    return path


def test_folder_without_weights_is_counted_by_its_shapes(tmp_path: Path) -> None:
    model = find_model("base", str(tmp_path), "")
    assert model is None
    folder(tmp_path / "base", CONFIG)
    model = find_model("base", str(tmp_path))
    assert model is not None
    assert model.parameters / 1e9 == pytest.approx(0.596, rel=0.01)  # what Qwen says of it
    assert (model.source, model.here, model.key_width) == ("its config.json", False, 1024)


def test_folder_with_weights(tmp_path: Path) -> None:
    folder(tmp_path / "base", CONFIG, model=b"x" * 2_000_000)
    model = find_model(str(tmp_path / "base"), "/nowhere")
    assert model is not None
    assert (model.parameters, model.weights, model.here) == (1_000_000, 2_000_000, True)


def test_folder_with_an_index(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", CONFIG, a=b"x", b=b"y")
    names = {"t": "a.safetensors", "u": "b.safetensors"}
    index = {"metadata": {"total_size": 1_200_000_000}, "weight_map": names}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    model = find_model("base", str(tmp_path))
    assert model is not None
    assert (model.parameters, model.here) == (600_000_000, True)
    # A part of it is missing: the rest has to be downloaded.
    (base / "a.safetensors").unlink()
    model = find_model("base", str(tmp_path))
    assert model is not None
    assert (model.source, model.here) == ("its config.json", False)


def test_hub_cache(tmp_path: Path) -> None:
    place = tmp_path / "home" / "hub" / "models--Qwen--Qwen3-0.6B" / "snapshots" / "abc"
    folder(place, CONFIG, model=b"x" * 1000)
    model = find_model("Qwen/Qwen3-0.6B", str(tmp_path), str(tmp_path / "home/hub"))
    assert model is not None
    assert (model.parameters, model.here) == (500, True)


@pytest.mark.parametrize("config", ["", "{", "[]", "{}", '{"hidden_size": "x"}', "[" * 100_000])
def test_config_that_can_not_be_read_leaves_the_name(tmp_path: Path, config: str) -> None:
    folder(tmp_path / "small-3B", config)
    model = find_model("small-3B", str(tmp_path))
    assert model is not None
    assert model.source == "its name (3B)"


def test_estimate_says_what_it_is_made_of() -> None:
    need = gpu_need("style", named("Qwen3-8B"), SETTINGS)
    assert [part.what for part in need.parts] == [
        "weights",
        "adapter and AdamW",
        "activations",
        "logits",
        "CUDA",
    ]
    assert need.parts[0].size == 16e9
    assert str(need).startswith(
        f"about {need.size / GIB:.1f} GiB: weights 14.9 (8 billion parameters in bfloat16, by "
        "its name (8B)), adapter and AdamW 0.7 (rank 16, 43.6 million numbers), activations"
    )
    assert need.as_dict()["bytes"] == sum(part["bytes"] for part in need.as_dict()["parts"])


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"max_length": 4096}, True),
        ({"per_device_train_batch_size": 2}, True),
        ({"lora_r": 64}, True),
        ({"dtype": "float32"}, True),
        ({"use_qlora": True}, False),
        ({"target_modules": ["q_proj", "v_proj"]}, False),
        ({"max_length": 512}, False),
    ],
)
def test_what_makes_it_more(change: dict[str, Any], more: bool) -> None:
    model = named("Qwen3-8B")
    before, after = (gpu_need("s", model, {**SETTINGS, **c}).size for c in ({}, change))
    assert (after > before) == more
    assert after != before


def test_without_bfloat16_it_is_about_double() -> None:
    model = named("Qwen3-8B")
    half, full = (gpu_need("s", model, SETTINGS, bfloat16=b) for b in (True, False))
    assert full.parts[0].size == 2 * half.parts[0].size
    assert full.size > 1.5 * half.size


def test_longest_chat_bounds_the_tokens() -> None:
    model = named("Qwen3-8B")
    short = gpu_need("s", model, SETTINGS, longest=1000)
    assert "1 x 500 tokens, the longest chat" in str(short)
    assert short.size < gpu_need("s", model, SETTINGS).size
    assert gpu_need("s", model, SETTINGS, longest=10**6) == gpu_need("s", model, SETTINGS)


def test_disk_of_the_stages() -> None:
    model = named("Qwen3-8B")
    stage = {"settings": SETTINGS, "model": {"model_name_or_path": "m"}}
    need, files = disk_need([stage, stage], {"m": model})
    assert need.parts[0].size == 2 * 4 * adapter_parameters(model, SETTINGS)
    assert (need.parts[0].what, files) == ("2 adapters", 200)
    unknown, _files = disk_need([stage], {"m": None})
    assert [part.what for part in unknown.parts] == ["logs and reports"]


@pytest.mark.training
def test_activations_and_adapter_are_what_torch_keeps() -> None:
    """A small Qwen3 with an adapter, the way training/ runs it: the bytes kept for the way back."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    layers, tokens = 4, 256
    config = transformers.Qwen3Config(
        hidden_size=512,
        num_hidden_layers=layers,
        intermediate_size=1536,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        vocab_size=1000,
        tie_word_embeddings=True,
    )
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear"
    )
    trained = peft.get_peft_model(base.requires_grad_(False), lora).train()
    weights = {p.untyped_storage().data_ptr() for p in trained.parameters()}
    kept: dict[int, Any] = {}  # the tensors are held, so that no address is used twice

    def keep(tensor: Any) -> Any:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        inside = trained.get_base_model().model
        inside(input_ids=torch.randint(0, 1000, (1, tokens)), use_cache=False)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    model = Model("m", "s", 0, layers, 512, 1536, 8 * 128, 2 * 128, 1000, 0)
    estimated = tokens * layers * memory_need._activation(model, half=True)
    assert estimated == pytest.approx(measured, rel=0.15), measured
    numbers = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    assert adapter_parameters(model, SETTINGS) == numbers


@pytest.mark.parametrize(
    ("install", "least", "most"),
    [((), 0, 0), (("peft", "transformers"), 0.3, 1), (("torch", "peft"), 6, 10)],
)
def test_what_provisioning_installs_counts(
    install: tuple[str, ...], least: float, most: float
) -> None:
    need, files = memory_need.disk_need([], {}, install)
    assert least * GIB <= need.size <= most * GIB
    parts = [part for part in need.parts if part.what == "venv"]
    assert [part.why for part in parts] == ([", ".join(install)] if install else [])
    assert (files >= 10_000) == bool(install)
