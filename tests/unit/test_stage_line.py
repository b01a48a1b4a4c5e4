"""What is said of a running stage, and nothing that isn't known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.stage_line import WHY, StageLine
from remote_train import failures


def status(beat: float = 1065, **changes: Any) -> dict[str, Any]:
    """What a host says 65 seconds after a stage's start."""
    return {"state": "running", "started_at": 1000, "heartbeat": beat, **changes}


def train(step: int, steps: int = 40, **more: Any) -> dict[str, Any]:
    return {"phase": "train", "step": step, "steps": steps, **more}


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({}, "running"),
        ({"phase": "load"}, "loading the model"),
        ({"phase": "save"}, "saving"),
        ({"phase": "polish"}, "polish"),
        (
            train(3, loss=1.2345, tokens_per_second=12345.6),
            "step 3 of 40  loss 1.234  12,346 tokens/s",
        ),
        (train(3), "step 3 of 40"),
        (train(0, loss=None), "step 0 of 40"),
        (train(3, memory_bytes=12.34e9), "step 3 of 40  GPU 12.3 GB"),
        ({"phase": "train"}, "train"),
        ({"phase": "evaluate", "done": 3, "of": 11}, "answers 3 of 11"),
        ({"phase": "evaluate"}, "answering"),
    ],
    ids=str,
)
def test_a_line_says_what_is_known_and_no_more(said: dict[str, Any], line: str) -> None:
    assert StageLine("style").line(status(progress=said)) == f"  style  {line}  1:05 elapsed"


@pytest.mark.parametrize(
    ("gpu", "shown"),
    [
        ({}, ""),
        (
            {"memory_bytes": 12.34e9, "memory_total_bytes": 80e9, "utilisation": 97},
            "  GPU 12.3 GB of 80.0 GB, 97 %",
        ),
        ({"memory_bytes": 12.34e9}, "  GPU 12.3 GB"),
        ({"utilisation": 0}, "  GPU 0 %"),
        ({"utilisation": None, "memory_total_bytes": 80e9}, ""),
        ("none of it", ""),
    ],
    ids=str,
)
def test_the_gpu_as_far_as_it_is_known(gpu: Any, shown: str) -> None:
    line = StageLine("style").line(status(progress=train(1), gpu=gpu))
    assert line == f"  style  step 1 of 40{shown}  1:05 elapsed"


def test_the_hosts_own_reading_beats_torchs() -> None:
    said = train(1, memory_bytes=1e9)
    assert "GPU 2.0 GB" in StageLine("s").line(status(progress=said, gpu={"memory_bytes": 2e9}))


def left(line: str) -> str | None:
    """What stands before "left"."""
    return line.rpartition("elapsed  ")[2].removesuffix(" left") if line.endswith(" left") else None


def seen(*steps: tuple[float, Any]) -> list[str | None]:
    """What is said to be left, for progress at times."""
    shown = StageLine("style")
    return [left(shown.line(status(beat, progress=said))) for beat, said in steps]


def test_nothing_is_said_to_be_left_before_three_steps_have_been_seen() -> None:
    beats = [(1000.0 + 10 * step, train(step)) for step in range(6)]
    assert seen(*beats) == [None, None, None, None, "6:00", "5:50"]


def test_what_was_done_before_anybody_looked_has_no_part_in_it() -> None:
    """A resumed training, or a late look: 500 steps that cost none of this time."""
    beats = [(9000.0 + 10 * n, train(500 + n, 600)) for n in range(6)]
    assert seen(*beats)[-2:] == ["16:00", "15:50"]


def test_the_first_look_is_in_the_middle_of_a_step() -> None:
    beats = [(1000.0, train(5)), (1001.0, train(6))]
    beats += [(1001.0 + 10 * n, train(6 + n)) for n in (1, 2, 3)]
    assert seen(*beats)[-1] == "5:10"


def test_between_two_steps_it_goes_on_counting() -> None:
    beats = [(1000.0 + 10 * step, train(step)) for step in range(6)]
    assert seen(*beats, (1054.0, train(5)))[-2:] == ["5:50", "5:46"]
    assert seen(*beats, (9000.0, train(5)))[-1] == "0:00"


@pytest.mark.parametrize(
    "after",
    [
        pytest.param((1060.0, train(2)), id="resumed from a checkpoint"),
        pytest.param((900.0, train(6)), id="the clock was set back"),
        pytest.param((1060.0, {"phase": "evaluate", "done": 6, "of": 40}), id="another phase"),
    ],
)
def test_it_is_reckoned_anew(after: tuple[float, Any]) -> None:
    beats = [(1000.0 + 10 * step, train(step)) for step in range(6)]
    assert seen(*beats, after)[-2:] == ["5:50", None]


def test_answers_have_a_rest_as_well() -> None:
    beats = [(1000.0 + n, {"phase": "evaluate", "done": 8 * n, "of": 80}) for n in range(4)]
    assert seen(*beats)[-1] == "0:07"


def test_an_attempt_that_is_not_the_first_is_counted() -> None:
    shown = StageLine("style", attempts=3)
    assert "attempt" not in shown.line(status(attempt=1))
    assert shown.line(status(attempt=2)).startswith("  style  attempt 2 of 3  running")


def test_a_pause_before_another_attempt_is_said_once() -> None:
    shown = StageLine("style", attempts=3)
    waits = status(1065.0, attempt=1, kind="disk_full", retry_at=1075.0)
    assert shown.news(status()) is None
    assert shown.news(waits) == "  style: attempt 2 of 3 in 10 s, since the disk is full"
    assert shown.news({**waits, "heartbeat": 1067.0}) is None
    again = {**waits, "attempt": 2, "kind": "a new one", "retry_at": 1100.0}
    assert shown.news(again) == "  style: attempt 3 of 3 in 35 s, since a new one"


def test_a_kind_has_a_reason_if_and_only_if_it_is_tried_again() -> None:
    again = (failures.RETRY, failures.ROOM)
    assert set(WHY) == {name for name, kind in failures.KINDS.items() if kind.policy in again}


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ({"state": "done"}, "  style  done in 1:05  step 39 of 40  loss 0.500"),
        ({"state": "failed"}, "  style  failed in 1:05  step 39 of 40  loss 0.500"),
        (
            {"state": "failed", "stopped": {"by": "me"}},
            "  style  was stopped after 1:05  step 39 of 40  loss 0.500",
        ),
    ],
)
def test_the_end_says_how_far_it_came(last: dict[str, Any], line: str) -> None:
    shown = StageLine("style")
    shown.line(status(progress=train(39, loss=0.5)))
    final = status(progress={"phase": "save"}, **last)
    shown.line(final)
    assert shown.ended(final) == line


def test_the_end_of_a_command_of_the_users_says_its_time() -> None:
    shown = StageLine("style")
    shown.line(status())
    assert shown.ended(status(state="done")) == "  style  done in 1:05"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
facts = ("phase", "step", "steps", "loss", "tokens_per_second", "done", "of", "memory_bytes")
named = ("heartbeat", "started_at", "attempt", "kind", "retry_at", "gpu", "stopped", "state")


@settings(deadline=None)  # a busy machine is no defect
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "progress": anything
                | st.fixed_dictionaries(
                    {"phase": st.sampled_from(["train", "evaluate"])},
                    optional=dict.fromkeys(facts[1:], anything),
                )
            },
            optional=dict.fromkeys(named, anything),
        ),
        max_size=4,
    )
)
def test_nothing_that_a_host_says_ends_the_run(said: list[dict[str, Any]]) -> None:
    shown = StageLine("style", 3)
    for one in said:
        assert shown.line(one).startswith("  style")
        shown.news(one)
        assert shown.ended(one).startswith("  style")


def test_where_an_attempt_goes_on_is_said_once() -> None:
    shown = StageLine("writing", 3)

    def said(attempt: int, **progress: Any) -> str | None:
        return shown.resumed(status(attempt=attempt, progress=progress))

    assert said(1) is None
    assert said(1, **train(1, 720, resumed_from=0)) is None
    assert said(1, **train(121, 720, resumed_from=120)) == "  writing: goes on at step 120 of 720"
    assert said(1, **train(122, 720, resumed_from=120)) is None
    assert said(2, **train(121, 720, resumed_from=120)) == "  writing: goes on at step 120 of 720"
    assert said(3, step=5, resumed_from="120") is None
