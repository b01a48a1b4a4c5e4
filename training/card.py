"""Writes the adapter's model card: what it is, what it was made of, how to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.job import Job
from training.report import scores_table
from training.template import DEFAULT_TEMPLATE

_CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags:
- lora
- remote-train
- {stage}
---

# {name}

A LoRA adapter for {base_text}, trained by the stage `{stage}`{of_run}.

## Load it

```python
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained({adapter})
```

The path is relative to the training project. The base model is looked for where the training found
it (`base_model_name_or_path` in `adapter_config.json`); change it there if it is elsewhere.

{template}## Scores

{scores}
## Training

{training}

Settings:

```json
{settings}
```

Inputs:

```json
{inputs}
```
"""


_TEMPLATE = """## Chat template

The base model has none. The adapter was trained with this one:

```jinja
{text}```

"""


def write_card(
    folder: Path, job: Job, metrics: dict[str, Any], data: dict[str, str], effective: dict[str, Any]
) -> None:
    """Write the ``README.md`` of the adapter's folder."""
    base = job.settings.model_name_or_path
    scores = metrics.get("scores") or {}
    facts = {
        name: metrics[name]
        for name in ("train_loss", "steps", "samples", "train_tokens")
        if name in metrics
    }
    inputs = {**job.provenance, "data": {**job.provenance.get("data", {}), **data}}
    text = _CARD.format(
        base=json.dumps(base, ensure_ascii=False),  # JSON's quotes are YAML's
        base_text=base,
        stage=job.stage,
        name=Path(job.adapter_dir).name,
        of_run=f" of {job.run}" if job.run else "",
        adapter=json.dumps(job.adapter_dir, ensure_ascii=False),
        template=_TEMPLATE.format(text=DEFAULT_TEMPLATE)
        if effective.get("chat_template") == "default"
        else "",
        scores=scores_table(scores) if scores else "It was not evaluated.\n",
        training=", ".join(f"{name} {_short(value)}" for name, value in facts.items()) or "unknown",
        settings=_json(vars(job.settings) | {"effective": effective}),
        inputs=_json(inputs),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _short(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True)
