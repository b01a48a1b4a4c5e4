"""What a run has brought home, made up: four stages on a GPU, their scores, answers and issues.

Written as ``collect`` leaves it, under digests of its own. Every number comes from a fixed seed.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import random
from pathlib import Path
from typing import Any

from remote_train.manifest import write_manifest

RUN = "run_20260209T093000Z"
START = datetime.datetime(2026, 2, 9, 9, 30, tzinfo=datetime.UTC)
STYLE, WRITING = (f"data/training/eval/{name}_benchmark.jsonl" for name in ("style", "writing"))
ADAPTERS = {"sample": "adapter_sample", "style": "adapter_style", "writing": "adapter_writing"} | {
    "all": "adapter_multitask"
}
SAMPLE = "data/training/processed/style_sft_sample.jsonl"
TRAINED_ON = {
    "sample": [SAMPLE],
    "style": ["data/training/processed/style_sft.jsonl"],
    "writing": ["data/training/processed/writing_sft.jsonl"],
    "all": ["data/training/processed/style_sft.jsonl", "data/training/processed/writing_sft.jsonl"],
}
SCORED_ON = {"sample": [SAMPLE], "style": [STYLE], "writing": [WRITING], "all": [STYLE, WRITING]}
THRESHOLDS = {
    "sample": {},
    "style": {"key_point_coverage": 0.9, "response_format": 0.95, "refusal_accuracy": 0.85},
    "writing": {"key_point_coverage": 0.7, "response_format": 0.8, "refusal_accuracy": 0.6},
    "all": {"key_point_coverage": 0.7, "response_format": 0.8, "citation_accuracy": 0.8},
}
GOOD = {"sample": 0.5, "style": 0.8, "writing": 0.9, "all": 0.85}
"""How often an answer is right."""


def sha(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def at(seconds: float) -> str:
    return (START + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Home:
    """``collect_dest`` with one run in it; change what it holds, then :meth:`write` it."""

    def __init__(self, path: Path, questions: int = 24, steps: int = 120, gpu: bool = True) -> None:
        self.path = path
        self.folder = path / "training_sync" / RUN
        self.files: dict[str, Any] = {}
        """The run's own files, by name."""
        self.outputs: dict[str, Any] = {}
        """Adapters and markers, by their path on the host."""
        self._dice = random.Random(7)  # noqa: S311 # no secret
        self._gpu = gpu
        rows, clock = [], 41.0
        for stage in ADAPTERS:
            seconds = self._stage(stage, clock, steps, questions)
            rows.append(self._row(stage, seconds))
            clock += seconds + 3
        self._run(rows, clock)

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    def adapter(self, stage: str, name: str) -> str:
        """The path on the host of a file beside an adapter."""
        return f"outputs/adapter/{ADAPTERS[stage]}/{name}"

    def predictions(self, stage: str) -> list[dict[str, Any]]:
        return self.outputs[self.adapter(stage, f"predictions_{stage}.jsonl")]

    def report(self, stage: str) -> dict[str, Any]:
        return self.files[f"eval_report_{stage}.json"]

    def steps(self, stage: str) -> list[dict[str, Any]]:
        return self.outputs[self.adapter(stage, "metrics.jsonl")]

    def row(self, stage: str) -> dict[str, Any]:
        return next(row for row in self.files["run.json"]["stages"] if row["name"] == stage)

    def write(self) -> Path:
        """Write all of it; the path of ``collect_dest``."""
        digests = {}
        for name, content in self.outputs.items():
            raw = encoded(content)
            digests[name] = hashlib.sha256(raw).hexdigest()
            put(self.path / name.removeprefix("outputs/"), raw)
        self.files["outputs.sha256"] = write_manifest(digests)
        own = {}
        for name, content in self.files.items():
            raw = encoded(content)
            own[name] = hashlib.sha256(raw).hexdigest()
            put(self.folder / name, raw)
        put(self.folder / "SHA256SUMS", write_manifest(own))
        return self.path

    def _stage(self, stage: str, clock: float, count: int, questions: int) -> float:
        files = SCORED_ON[stage]
        predictions = [
            self._prediction(stage, file, number)
            for file in files
            for number in range(1, (3 if stage == "sample" else questions) + 1)
        ]
        steps = [self._step(number, count) for number in range(1, count + 1)]
        trained = sum(sum(step["seconds"].values()) for step in steps)
        phases = {"load": 21.4, "train": trained, "evaluate": 30.5, "save": 1.2}
        seconds = sum(phases.values()) + 9
        accelerator = "cuda: NVIDIA H100 80GB HBM3" if self._gpu else "cpu: AMD EPYC"
        report = {
            "schema": 1,
            "stage": stage,
            "run": RUN,
            "base_model": "Qwen/Qwen3-8B",
            "adapter": f"outputs/adapter/{ADAPTERS[stage]}",
            "samples": len(predictions),
            "scores": scores_of(predictions),
            "by_type": {
                kind: scores_of([p for p in predictions if p["type"] == kind])
                for kind in ("concept", "refusal")
            },
            "data": {file: sha(file) for file in files},
            "answers_cut_by_limit": sum(not p["ended"] for p in predictions),
        }
        self.files[f"eval_report_{stage}.json"] = report
        self.files[f"stage_{stage}.json"] = {
            "state": "done",
            "mode": "train",
            "reasons": ["it has not been trained yet"],
            "started": at(clock),
            "ended": at(clock + seconds),
            "seconds": seconds,
            "phases": phases,
            "accelerator": accelerator,
        }
        self.outputs[f"outputs/training_sync/stages/{stage}.json"] = {
            "schema": 1,
            "stage": stage,
            "status": "done",
            "inputs": {
                "code": sha("code"),
                "data": {file: sha(file) for file in TRAINED_ON[stage]},
                "base_model": "Qwen/Qwen3-8B@b968826d9c46dd6066d109eabc6255188de91218",
                "settings": {
                    "learning_rate": 0.0002 if stage == "writing" else 0.0001,
                    "num_train_epochs": 4.0,
                    "target_modules": ["q_proj", "v_proj"],
                    "use_qlora": False,
                    "seed": 42,
                },
                "packages": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
            },
            "evaluation": {"data": {file: sha(file) for file in files}},
            "accelerator": accelerator,
        }
        self.outputs[self.adapter(stage, "adapter_model.safetensors")] = stage.encode()
        self.outputs[self.adapter(stage, "metrics.jsonl")] = steps
        self.outputs[self.adapter(stage, f"predictions_{stage}.jsonl")] = predictions
        self.outputs[self.adapter(stage, f"eval_report_{stage}.json")] = report
        return seconds

    def _step(self, number: int, count: int) -> dict[str, Any]:
        noise = self._dice.gauss(0, 0.12)
        return {
            "step": number,
            "epoch": round(4 * number / count, 4),
            "loss": max(0.05, 0.5 + 2.1 * 0.97**number + noise),
            "learning_rate": 1e-4,
            "tokens_per_second": round(9000 + self._dice.gauss(0, 700), 1),
            "seconds": {"data": 0.002, "forward": 0.21, "backward": 0.4, "optimizer": 0.03},
            "peak_memory_bytes": int(31e9 + min(number, 30) * 2.2e8),
        }

    def _prediction(self, stage: str, file: str, number: int) -> dict[str, Any]:
        kind = "refusal" if number % 4 == 0 else "concept"

        def right() -> bool:
            return self._dice.random() < GOOD[stage]

        verdict: dict[str, Any] = {"response_format": right(), "refusal_accuracy": right()}
        points = ["E = σ/ε₀", "内部场强为零", "垂直于导体表面"]
        missed = [] if kind == "refusal" else [point for point in points if not right()]
        if kind == "concept":
            verdict["key_point_coverage"] = 1 - len(missed) / 3
        return {
            "id": f"{Path(file).stem}-{number:03}",
            "file": file,
            "line": number,
            "type": kind,
            "prompt": [
                {"role": "system", "content": "你是电磁学助教。"},
                {"role": "user", "content": "用高斯定理推导导体表面外侧紧邻处的场强。"},
            ],
            "expected": {
                "should_refuse": kind == "refusal",
                "headings": ["### 结论", "### 推导", "### 检查（单位/边界条件/极限情况）"],
                "key_points": [{"text": point, "aliases": []} for point in points]
                if kind == "concept"
                else [],
            },
            "answer": "### 结论\nE = σ/ε₀，方向垂直于导体表面。\n### 推导\n取扁圆柱形高斯面。",
            "answer_tokens": 120 + number,
            "ended": number % 11 != 0,
            "ended_by": "end token" if number % 11 else "max_new_tokens",
            "verdict": {**verdict, "missed": missed, "empty": False},
            "base": {
                "answer": "场强等于面电荷密度除以真空介电常数。",
                "answer_tokens": 21,
                "ended": True,
                "verdict": {"response_format": False, "missed": points, "empty": False},
            },
        }

    def _row(self, stage: str, seconds: float) -> dict[str, Any]:
        scores = self.report(stage)["scores"]
        below = [
            f"{name} {scores[name]['value']:.2f} is below {asked:.2f}"
            if name in scores
            else f"{name} is absent"
            for name, asked in THRESHOLDS[stage].items()
            if scores.get(name, {"value": 0})["value"] < asked
        ]
        return {
            "name": stage,
            "state": "done",
            "reasons": ["it has not been trained yet"],
            "metrics": {
                "train_loss": 0.8123,
                "steps": len(self.steps(stage)),
                "samples": 3 if stage == "sample" else 36,
                "train_tokens": 49356,
                "scores": scores,
            },
            "seconds": seconds,
            "error": None,
            "acceptance": ("failed" if below else "passed")
            if THRESHOLDS[stage]
            else "no thresholds",
            "acceptance_reasons": below,
            "thresholds": THRESHOLDS[stage],
            "adapter_dir": f"outputs/adapter/{ADAPTERS[stage]}",
        }

    def _run(self, rows: list[dict[str, Any]], clock: float) -> None:
        self.files["run.json"] = {
            "schema": 1,
            "run": RUN,
            "started": at(0),
            "ended": at(clock + 12),
            "verdict": "done",
            "host": "gpu-7",
            "project_root": "/srv/tutor",
            "environment": {"GPU": "NVIDIA H100 80GB HBM3", "Driver": "570.86", "torch": "2.13.0"},
            "acceptance_gate": "warn",
            "plan": [],
            "stages": rows,
        }
        self.files["issues.jsonl"] = [
            issue(20, "warning", "gpu_throttle: the power brake was on", "Watch the temperature."),
            issue(
                95, "error", "CUDA ran out of memory at step 12.", "It went on with half as much."
            ),
        ]
        results = ("ok", "ok", "ok", "warn", "skipped")
        self.files["precheck.json"] = {
            "schema": 1,
            "stops": False,
            "findings": [
                {
                    "check": f"check_{number}",
                    "scope": "gpu",
                    "result": result,
                    "seen": f"seen {number}",
                    "expected": "something",
                    "action": "Do something." if result == "warn" else "",
                }
                for number, result in enumerate(results)
            ],
        }


def with_base(home: Home, stage: str, worse: float = 0.3) -> None:
    """Give a stage the scores of its base model, as the page would read them."""
    report = home.report(stage)
    report["base"] = {
        "scores": {
            name: {**score, "value": max(0.0, score["value"] - worse)}
            for name, score in report["scores"].items()
            if "value" in score
        }
    }
    report["against_base"] = {
        name: {"difference": worse, "p": 0.004, "n": report["scores"][name]["n"]}
        for name in report["base"]["scores"]
    }
    home.outputs[home.adapter(stage, f"eval_report_{stage}.json")] = report


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '"><img src=https://example.com/x onerror=alert(1)>',
    "</title></style></svg><iframe src=//example.com>",
    "<style>@import url(https://example.com)</style>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "\u202eevil\u2066",
    "\x00\x07\x1b[31m",
    "\ud800",
    "&lt;b&gt;",
    "]]><!--",
    "x" * 3000,
]
"""What a model may answer, or a host call things, to break out of a page."""


def full_of(home: Home, text: str) -> Home:
    """The same home with one text in every place that takes a text."""
    for stage in ADAPTERS:
        for one in home.predictions(stage):
            one.update(id=text, answer=text, type=text)
            one["prompt"][1]["content"] = text
            one["expected"]["key_points"] = [{"text": text}]
            one["expected"]["headings"] = [text, text, text]
        report = home.report(stage)
        report["base_model"] = text
        report["by_type"] = {text: report["by_type"]["concept"]}
        home.row(stage).update(reasons=[text], error={"symptom": text})
    for one in home.files["issues.jsonl"]:
        one.update(symptom=text, cause=text, action=text, category=text)
    home.files["run.json"].update(host=text, verdict=text, environment={text: text})
    for one in home.files["precheck.json"]["findings"]:
        one.update(check=text, seen=text)
    return home


def issue(seconds: float, severity: str, symptom: str, action: str) -> dict[str, Any]:
    return {
        "time": at(seconds),
        "phase": "train",
        "stage": "style",
        "category": "oom",
        "severity": severity,
        "symptom": symptom,
        "cause": "the micro-batch was too large",
        "action": action,
        "status": "handled",
    }


def scores_of(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores with intervals that are simple to foresee: a tenth to each side."""
    found: dict[str, Any] = {}
    for name in ("key_point_coverage", "response_format", "refusal_accuracy"):
        values = [float(p["verdict"][name]) for p in predictions if name in p["verdict"]]
        if values:
            value = sum(values) / len(values)
            low, high = max(0.0, value - 0.1), min(1.0, value + 0.1)
            found[name] = {"value": value, "n": len(values), "low": low, "high": high}
    empty = sum(p["verdict"]["empty"] for p in predictions)
    return {**found, "empty_responses": {"count": empty, "n": len(predictions)}}


def encoded(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, list):
        return "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in content).encode(
            "utf-8", "backslashreplace"
        )
    return json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")


def put(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
