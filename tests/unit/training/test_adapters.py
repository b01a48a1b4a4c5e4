"""DoRA and rsLoRA, and the seeds: what is asked for is what comes out, the same every time."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.training_process import Trainings
from training import base_model as base_module
from training.__main__ import Term, _do
from training.progress import Progress
from training.seeds import derived_seeds

pytestmark = pytest.mark.training


def done(job: dict[str, Any], kept: dict[str, Any] | None = None) -> dict[str, Any]:
    path = Path(job["result"]).with_name("job.json")
    path.write_text(json.dumps(job), encoding="utf-8")
    result = _do(path, Progress(), kept, Term())
    assert result["status"] == "done", result
    return result


def written(job: dict[str, Any]) -> bytes:
    folder = Path(job["project_root"]) / job["adapter_dir"]
    return (folder / "adapter_model.safetensors").read_bytes()


def test_dora_with_dropout_gives_the_same_bytes_after_a_kill(
    make_job: Any, project: Path, tmp_path: Path
) -> None:
    job = make_job(num_train_epochs=5, lora_dropout=0.2, use_dora=True)
    job["checkpoints"] = {"folder": "checkpoints", "steps": 2, "minutes": 0}
    with Trainings() as trainings:
        runs = []
        for stage in ("one", "two"):
            other = {**job, "adapter_dir": f"outputs/{stage}", "checkpoints": {}}
            runs.append(trainings.finish(other, tmp_path / stage))
        run = trainings.start(job, tmp_path / "run")
        run.wait_for_step(5)
        run.kill(signal.SIGKILL)
        again = trainings.finish(job, tmp_path / "run")
    assert again.status == 0, again.log
    assert again.result["resumed_from"] >= 4
    assert again.adapter == runs[0].adapter == runs[1].adapter
    assert again.metrics == runs[0].metrics


@pytest.mark.parametrize("name", ["use_dora", "use_rslora"])
def test_the_adapter_is_what_peft_calls_it(
    make_job: Any, base_folder: Path, project: Path, name: str
) -> None:
    """It is in the card, and plain peft loads it: with the same answer as without this project."""
    job = make_job(**{name: True})
    done(job)
    folder = project / job["adapter_dir"]
    assert json.loads((folder / "adapter_config.json").read_text())[name] is True
    assert f'"{name}": true' in (folder / "README.md").read_text(encoding="utf-8")
    base = transformers.AutoModelForCausalLM.from_pretrained(base_folder)
    model = peft.PeftModel.from_pretrained(base, str(folder))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    if name == "use_dora":
        assert layer.lora_magnitude_vector["default"].weight.shape == (32,)
    else:
        assert layer.scaling["default"] == pytest.approx(32 / math.sqrt(16))
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode(), model.disable_adapter():
        without = model(input_ids=ids).logits
    with torch.inference_mode():
        assert not torch.allclose(model(input_ids=ids).logits, without)


@pytest.mark.parametrize(
    ("setting", "purpose"),
    [("data_seed", "data_order"), ("init_seed", "lora_init"), ("dropout_seed", "dropout")],
)
def test_a_seed_that_is_named_by_itself_moves_no_other(
    make_job: Any, setting: str, purpose: str
) -> None:
    changes = {"lora_dropout": 0.5, "num_train_epochs": 1}
    plain, other = make_job("plain", **changes), make_job("other", **changes, **{setting: 7})
    assert done(plain)["effective"]["seeds"] == derived_seeds(42)
    assert done(other)["effective"]["seeds"] == {**derived_seeds(42), purpose: 7}
    assert written(other) != written(plain)
    same = make_job("same", **changes, **{setting: derived_seeds(42)[purpose]})
    done(same)
    assert written(same) == written(plain)


def test_four_adapters_answer_with_the_base_loaded_once(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated again, each gives its own scores and answers; one of them is a DoRA."""
    loads: list[str] = []
    load = base_module.fit.load

    def counted(settings: Any, *rest: Any) -> Any:
        loads.append(settings.model_name_or_path)
        return load(settings, *rest)

    monkeypatch.setattr(base_module.fit, "load", counted)
    kinds: dict[str, dict[str, Any]] = {
        "sample": {},
        "style": {"use_dora": True},
        "writing": {"lora_r": 4, "target_modules": ["q_proj"]},
        "all": {"use_rslora": True, "learning_rate": 5e-2},
    }
    kept: dict[str, Any] = {}
    answers = {}
    for stage, settings in kinds.items():
        job = make_job(stage, **settings)
        done(job, kept)
        answers[stage] = predictions(job)
    assert len(set(answers.values())) > 1
    for stage in reversed(kinds):
        job = make_job(stage, mode="evaluate")
        result = done(job, kept)
        assert predictions(job) == answers[stage]
        assert result["effective"]["generation"].startswith("generate: greedy")
    assert len(loads) == 1


def predictions(job: dict[str, Any]) -> str:
    folder = Path(job["project_root"]) / job["adapter_dir"]
    return (folder / f"predictions_{job['stage']}.jsonl").read_text(encoding="utf-8")
