"""`make bench-gpu`: its arithmetic, and the whole script on a shape that a CPU can do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu
from tests.benchmarks.flops import Work, training

NOTHING = {"inner": 0, "output": 0, "adapters": 0, "layers": 0, "attention_width": 0}


@pytest.mark.parametrize(
    ("lengths", "trained", "model", "expected"),
    [
        # 10 tokens by 7 weights: 2 forward and 2 for the inputs' gradients, each 70.
        ([10], 0, {"inner": 7}, Work(280, 0, 0)),
        # The output layer works for the learned tokens alone.
        ([10], 3, {"output": 5}, Work(60, 0, 0)),
        # An adapter's own gradients come on top: 6 for each weight and token.
        ([4, 6], 0, {"adapters": 3}, Work(0, 0, 180)),
        # Rows don't look at each other: 6 (16 + 36), not 6 x 100; by width 8 and 2 layers.
        ([4, 6], 0, {"attention_width": 8, "layers": 2}, Work(0, 4992, 0)),
        # Width without layers is no attention.
        ([4, 6], 0, {"attention_width": 8}, Work(0, 0, 0)),
        # All of it at once.
        (
            [2, 3],
            1,
            {"inner": 11, "output": 13, "adapters": 2, "layers": 1, "attention_width": 4},
            Work(4 * 11 * 5 + 4 * 13, 6 * 13 * 4, 60),
        ),
        ([], 0, {"inner": 7, "adapters": 2}, Work(0, 0, 0)),
    ],
)
def test_operations_by_hand(
    lengths: list[int], trained: int, model: dict[str, int], expected: Work
) -> None:
    work = training(lengths, trained, **{**NOTHING, **model})
    assert work == expected
    assert work.all == expected.base + expected.attention + expected.adapters


def test_operations_of_the_real_shape() -> None:
    """Qwen3-8B: 36 layers of 192,937,984 linear weights; a chat of 1000 tokens."""
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 12288
    assert layer == 192_937_984
    work = training(
        [1000],
        1000,
        inner=36 * layer,
        output=151936 * 4096,
        adapters=0,
        layers=36,
        attention_width=4096,
    )
    assert work.base == 4 * 1000 * (36 * 192_937_984 + 622_329_856)
    assert work.attention / work.base == pytest.approx(0.0292, abs=1e-4)


@pytest.mark.training
def test_the_whole_script_on_a_tiny_shape(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    assert gpu.main(["--shape", "tiny", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    head, _, rest = shown.partition("\n\n")
    result = json.loads(file.read_text())
    assert head.startswith(result["date"])
    assert f"torch {torch.__version__}" in head
    assert json.loads(shown.splitlines()[-1]) == result
    values = {row["what"]: row["value"] for row in result["rows"]}
    table = [line for line in rest.splitlines() if line.startswith("| ")]
    assert len(table) == len(values) + 2  # the head, and the line below it
    for what in (
        "matrix rate of the chip",
        "LoRA, deterministic: real tokens per second",
        "LoRA, not deterministic: model FLOPs utilisation, of the matrix rate",
        "LoRA, deterministic: tokens/s, ours / plain reference",
        "evaluation: 6 prompts / one at a time",
    ):
        assert values[what] > 0, what
    assert values["LoRA, deterministic: steps counted"] == 2  # of three; the first is not counted


def test_what_there_is_no_time_for_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gpu.main(["--shape", "tiny", "--minutes", "0"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("left out, no time was left") == 2 * 4  # in the table, and in the JSON


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "needs a CUDA GPU" in captured.err
