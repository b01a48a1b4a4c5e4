"""Loads the base model and its tokenizer, and puts a LoRA adapter on it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError

from training.device import Device
from training.errors import MODEL_DOWNLOAD, JobError
from training.settings import Settings
from training.template import DEFAULT_TEMPLATE

_PICKLE = (".bin", ".pt", ".pth", ".ckpt")
_ADAPTABLE = (torch.nn.Linear, torch.nn.Embedding, transformers.pytorch_utils.Conv1D)


def locate(settings: Settings, root: Path) -> str:
    """The base model's folder, or its name on the hub if it is no folder.

    A path is absolute, starts with ``.`` or ``~``, or is a folder under ``root``.

    :raises JobError: category ``model_download``: the folder is missing, or without safetensors.
    """
    name = settings.model_name_or_path
    folder = (root / Path(name).expanduser()).resolve()
    if not folder.is_dir():
        if name.startswith(("/", ".", "~")):
            raise JobError(
                "model_download",
                f"The base model's folder {name} is not there.",
                "Set model_name_or_path to a folder on the GPU host, or to a name on the hub.",
            )
        return _from_modelscope(settings) if settings.use_modelscope else name
    if not (folder / "config.json").is_file():
        raise JobError(
            "model_download",
            f"The base model's folder {name} has no config.json.",
            "Name the folder that the model's files are in.",
        )
    files = [path.name for path in folder.iterdir()]
    if not any(file.endswith(".safetensors") for file in files):
        what = "only pickled weights" if any(f.endswith(_PICKLE) for f in files) else "no weights"
        raise JobError(
            "model_download",
            f"The base model's folder {name} has {what}, no *.safetensors.",
            "Use a model in safetensors: pickled weights can run code, and are not loaded.",
        )
    return str(folder)


def check_model(source: str, settings: Settings, device: Device) -> None:
    """Refuse a model that can't be trained as asked, by its configuration alone: in a second.

    :raises JobError: ``model_download`` for one that is no causal language model, ``ops`` for 4
        bits that are not possible, or a name in ``target_modules`` that it doesn't have.
    """
    if settings.use_qlora:
        _four_bits(device)
    with _loading(settings):
        config = transformers.AutoConfig.from_pretrained(
            source, revision=settings.model_revision, trust_remote_code=False
        )
    what = _not_causal(config)
    if what:
        raise JobError(
            "model_download",
            f"The base model {settings.model_name_or_path} is {what}, no causal language model:"
            " it answers no chats.",
            "Set model_name_or_path to a causal language model, best its instruct variant.",
        )
    if settings.target_modules != "all-linear":
        with torch.device("meta"):  # its layers without their weights
            empty = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        _check_targets(empty, settings.target_modules)


def _not_causal(config: Any) -> str:
    """What a model is that is no causal language model; else nothing."""
    kinds = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in kinds:
        return f"of the type {config.model_type}"
    known = kinds[type(config)]
    names = {kind.__name__ for kind in (known if isinstance(known, tuple) else (known,))}
    made = config.architectures or []
    if made and not names & set(made):  # of that type, but with another head, or with none
        return f"a {made[0]}"
    if getattr(config, "is_decoder", True) is False:  # BERT and its kin can be either
        return f"an encoder ({config.model_type})"
    return ""


def load_tokenizer(source: str, settings: Settings) -> Any:
    """The base model's tokenizer, with a padding token and a chat template.

    :raises JobError: ``model_download`` where it can't be had, ``ops`` where it has no end token.
    """
    with _loading(settings):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=settings.model_revision, trust_remote_code=False
        )
    if tokenizer.eos_token_id is None:
        raise JobError(
            "ops",
            f"The tokenizer of {settings.model_name_or_path} has no end token, so that no answer"
            " would ever end.",
            "Name its eos_token in tokenizer_config.json, or use the instruct variant.",
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = DEFAULT_TEMPLATE
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(source: str, settings: Settings, device: Device) -> Any:
    """The base model on the device, frozen.

    :raises JobError: category ``model_download``, or ``ops`` where 4 bits are not possible.
    """
    options: dict[str, Any] = {}
    if settings.use_qlora:
        options["quantization_config"] = _four_bits(device)
    with _loading(settings):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            revision=settings.model_revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=device.dtype,
            device_map={"": device.where},
            **options,
        )
    return model.requires_grad_(False)


def add_adapter(base: Any, settings: Settings, seed: int) -> Any:
    """The base model with a new LoRA adapter, whose first weights come from ``seed``.

    :raises JobError: category ``ops``, if no layer has one of the names in ``target_modules``.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        target_modules=settings.target_modules,
        base_model_name_or_path=settings.model_name_or_path,
    )
    _check_targets(base, settings.target_modules)
    if settings.use_qlora:
        base = _ready_for_four_bits(base)
    return get_peft_model(base, config)


def load_adapter(base: Any, folder: Path) -> Any:
    """The base model with the adapter in ``folder``.

    :raises JobError: category ``data``, if there is no adapter, or none that fits the model.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise JobError(
            "data", f"{folder} has no adapter_model.safetensors.", "Train the stage first."
        )
    try:
        return PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError, KeyError) as error:
        raise JobError(
            "data",
            f"The adapter in {folder} does not fit the base model.",
            "Train the stage again, or name the base model that it was trained on.",
            str(error).splitlines()[0],
        ) from None


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter, without pickle: equal weights give equal files."""
    model.save_pretrained(str(folder), safe_serialization=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[name] = sorted(value)  # sets in peft: their order changes from run to run
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def revision(base: Any) -> str:
    """The commit of a model from the hub; ``local`` for a folder."""
    return getattr(base.config, "_commit_hash", None) or "local"


def _check_targets(base: Any, targets: str | list[str]) -> None:
    """Say which names match nothing that can be adapted; peft only says so when none does."""
    if targets == "all-linear":
        return
    fit = {name for name, m in base.named_modules() if isinstance(m, _ADAPTABLE)}
    wanted = [targets] if isinstance(targets, str) else targets
    lost = [t for t in wanted if not any(n == t or n.endswith("." + t) for n in fit)]
    if lost:
        raise JobError(
            "ops",
            f"target_modules names {', '.join(lost)}, which is no layer of this model that can be"
            " adapted.",
            f"Its layers are {', '.join(sorted({n.rpartition('.')[2] for n in fit}))};"
            " all-linear takes all linear ones.",
        )


def _four_bits(device: Device) -> Any:
    if device.where.type != "cuda":
        raise JobError("ops", "use_qlora needs a CUDA GPU, and there is none.", "Set it to false.")
    try:
        import bitsandbytes  # type: ignore[import-not-found,unused-ignore] # noqa: F401, PLC0415
    except ImportError:
        raise JobError(
            "ops",
            "use_qlora needs the package bitsandbytes.",
            "Install it, or set use_qlora to false.",
        ) from None
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=device.dtype,
    )


def _ready_for_four_bits(base: Any) -> Any:
    from peft import prepare_model_for_kbit_training  # noqa: PLC0415

    return prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)


def _from_modelscope(settings: Settings) -> str:
    """Download from ModelScope by its own library, which is needed for nothing else."""
    try:
        from modelscope import snapshot_download  # noqa: PLC0415
    except ImportError:
        raise JobError(
            "ops",
            "use_modelscope needs the package modelscope.",
            "Install it on the GPU host, or set it to false.",
        ) from None
    # Hugging Face's name for the default branch is not ModelScope's.
    wanted = "master" if settings.model_revision == "main" else settings.model_revision
    try:
        return str(snapshot_download(settings.model_name_or_path, revision=wanted))
    except Exception as error:  # its library has no common error class
        raise _not_loaded(settings, "ModelScope", error) from None


@contextlib.contextmanager
def _loading(settings: Settings) -> Iterator[None]:
    """Turn what transformers raises when it can't load a model into one sentence."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is not None and not error.filename:
            raise  # a full disk, say
        raise _not_loaded(settings, "the Hugging Face hub", error) from None


def _not_loaded(settings: Settings, hub: str, error: Exception) -> JobError:
    name = settings.model_name_or_path
    cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return JobError(
            "model_download",
            f"The base model {name} brings code of its own, which is not run.",
            "Use a model that transformers itself knows.",
            cause,
        )
    if name.startswith(("/", ".", "~")):
        return JobError(
            "model_download",
            f"The base model in {name} can't be loaded.",
            "Copy its files anew; config, weights and tokenizer are all needed.",
            cause,
        )
    return JobError(
        "model_download",
        f"The base model {name} can't be had from {hub} at revision {settings.model_revision},"
        " and is no folder of that name.",
        "Check the name and the host's way to the hub (HF_ENDPOINT, HF_TOKEN, use_modelscope), or"
        " name a folder on the host.",
        cause,
        MODEL_DOWNLOAD,
    )
