"""Following a stage: what a poll brings, and what happens when the connection breaks."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleConnectionFailure
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller import follow, link
from controller.action import GaveUpError
from controller.progress import Line
from plugins.action import stage as stage_action
from plugins.action.stage import ActionModule
from remote_train.atomic import write_json
from remote_train.errors import TrainError
from tests.unit.stage_host import HOUSE

# Polls


def poll(status: str, log: str, offset: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run the command as sshd has the user's shell run it."""
    command = follow.poll_command(status, log, offset)
    return subprocess.run(
        ["sh", "-c", command.encode("utf-8", "surrogateescape")],
        capture_output=True,
        check=False,
        cwd="/",
    )


def answer(status: str, log: str, offset: int = 0) -> tuple[dict[str, Any], bytes]:
    """The parsed answer, decoded as Ansible decodes it for the action."""
    done = poll(status, log, offset)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    found = follow.parse_answer(done.stdout.decode("utf-8", "surrogateescape"))
    assert found.start == offset
    return found.status, found.fresh


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "with blank",
        "quote's",
        'double"quote',
        "$(touch pwned)",
        "`touch pwned`",
        "; touch pwned #",
        "&& touch pwned",
        "| touch pwned",
        "new\nline",
        "back\\slash",
        "-n",
        "*",
        "~root",
        "${HOME}",
        "!!",
        "结论",
        "sep\x1earator",
        os.fsdecode(b"\xff\xfe"),
        "trailing ",
        "{a,b}",
    ],
)
def test_hostile_names_are_names_and_nothing_else(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    status, log = str(folder / "status.json"), str(folder / f"{name}.log")
    Path(status).write_text('{"state": "running"}')
    Path(log).write_bytes(b"line\n")
    assert answer(status, log) == ({"state": "running"}, b"line\n")
    assert sorted(os.listdir(tmp_path)) == [name]
    assert not Path("/pwned").exists()


file_names = st.binary(min_size=1, max_size=20).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=file_names, content=st.binary(max_size=40), offset=st.integers(0, 50))
def test_any_name_and_any_bytes(tmp_path_factory, name, content, offset):
    folder = tmp_path_factory.mktemp("poll")
    (folder / "status.json").write_text("{}")
    log = os.path.join(os.fsencode(folder), name + b"_")
    with open(log, "wb") as stream:
        stream.write(content)
    found = answer(str(folder / "status.json"), os.fsdecode(log), offset)
    assert found == ({}, content[offset:])


def test_a_log_comes_in_pieces_and_none_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "LOG_CHUNK", 7)
    status, log = tmp_path / "status.json", tmp_path / "log"
    write_json(str(status), {"state": "running"})
    content = "第一行\nsecond\x1eline\r\n".encode() + b"\xff\x00end"
    log.write_bytes(content)
    seen = b""
    while True:
        _, fresh = answer(str(status), str(log), len(seen))
        assert len(fresh) <= 7
        seen += fresh
        if len(fresh) < 7:
            break
    assert seen == content
    with log.open("ab") as stream:
        stream.write(b"more")
    assert answer(str(status), str(log), len(seen))[1] == b"more"


def test_a_log_that_is_not_there_yet_or_is_none(tmp_path):
    status = tmp_path / "status.json"
    status.write_text("{}")
    assert answer(str(status), str(tmp_path / "none.log")) == ({}, b"")
    assert answer(str(status), str(tmp_path)) == ({}, b"")


def test_where_nobody_reads_it_the_end_of_the_log_is_enough(tmp_path):
    status, log = tmp_path / "status.json", tmp_path / "log"
    status.write_text("{}")
    content = b"".join(b"line %d\n" % n for n in range(100_000))
    log.write_bytes(content)

    def newest(offset: int) -> follow.Poll:
        command = follow.poll_command(str(status), str(log), offset, newest=True)
        done = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
        return follow.parse_answer(done.stdout.decode())

    first = newest(5)
    assert first.fresh == content[-follow.NEWEST :]
    assert first.end == len(content)
    with log.open("ab") as stream:
        stream.write(b"more")
    assert newest(first.end) == ({}, b"more", len(content))


def test_a_log_that_was_cut_short_brings_nothing(tmp_path):
    status, log = tmp_path / "status.json", tmp_path / "log"
    status.write_text("{}")
    log.write_bytes(b"short")
    assert answer(str(status), str(log), 1000) == ({}, b"")


@pytest.mark.parametrize("held", [True, False])
def test_a_poll_waits_for_the_end_and_no_longer(tmp_path, held):
    """The lock is let go of with the stage's end: then the status is read at once."""
    status, lock = tmp_path / "status.json", tmp_path / "lo'ck"
    status.write_text("{}")
    lock.touch()
    command = follow.poll_command(str(status), str(tmp_path / "log"), 0, wait=(str(lock), 20))
    with lock.open() as stream:
        if held:
            fcntl.flock(stream, fcntl.LOCK_EX)
        poll = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True)
        if held:
            with pytest.raises(subprocess.TimeoutExpired):
                poll.wait(0.5)
            status.write_text('{"state": "done"}')
            fcntl.flock(stream, fcntl.LOCK_UN)
        printed, _ = poll.communicate(timeout=10)
    assert follow.parse_answer(printed).status == ({"state": "done"} if held else {})


@pytest.mark.parametrize("path", ["", "/bin"])
def test_without_a_lock_or_without_flock_there_is_no_wait(tmp_path, path):
    status, lock = tmp_path / "status.json", tmp_path / "lock"
    status.write_text("{}")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cat", "wc", "tail", "head", "sh", "true"):
        (tools / name).symlink_to(str(shutil.which(name)))
    if path:
        lock.touch()
    command = follow.poll_command(str(status), str(tmp_path / "log"), 0, wait=(str(lock), 20))
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        check=True,
        timeout=10,
        env={"PATH": str(tools)} if path else None,
    )
    assert follow.parse_answer(done.stdout.decode()).status == {}
    assert done.stderr == b""
    assert lock.exists() == bool(path)


def missed(log: Path, offset: int) -> follow.Missed:
    command = follow.missed_command(str(log), offset)
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
    text = done.stdout.decode("utf-8", "surrogateescape")
    assert len(done.stdout) < follow.MISSED_BYTES + 100
    return follow.parse_missed(text, offset)


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 5_000, 100_000])
@pytest.mark.parametrize("behind", ["", "half a line"])
@pytest.mark.parametrize("before", [0, 3])
def test_of_what_was_missed_the_last_lines_and_a_count(tmp_path, count, behind, before):
    log = tmp_path / "a log"
    seen = b"seen\n" * before
    lines = [f"第 {n} 行".encode() for n in range(count)]
    content = seen + b"".join(line + b"\n" for line in lines) + behind.encode()
    log.write_bytes(content)
    found = missed(log, len(seen))
    kept = found.text.split(b"\n")
    assert kept.pop() == behind.encode()
    assert found.left_out + len(kept) == count
    assert kept == lines[count - len(kept) :]
    assert len(kept) == min(count, follow.MISSED_LINES)
    assert found.end == len(content)


def test_a_missed_line_without_end_is_no_line(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 1_000_000)
    assert missed(log, 0) == (0, b"", 1_000_000)


def test_a_status_that_is_not_there_is_an_error_of_the_command(tmp_path):
    assert poll(str(tmp_path / "none/status.json"), str(tmp_path / "log")).returncode != 0


statuses = st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3)


@given(statuses, st.binary(max_size=30))
def test_what_was_printed_is_taken_apart_again(status, log):
    printed = json.dumps(status, ensure_ascii=False).encode("utf-8", "surrogatepass")
    whole = b"\x1d" + printed + b"\x1e12\x1e%d\x1e" % len(log) + log
    text = whole.decode("utf-8", "surrogateescape")
    if text.encode("utf-8", "surrogateescape") == whole:
        assert follow.parse_answer(text) == (status, log, 12)


@given(st.text())
def test_what_is_no_answer_is_a_value_error_and_nothing_else(text):
    try:
        status, _, _ = follow.parse_answer(text)
    except ValueError:
        return
    assert isinstance(status, dict)
    assert follow.SEPARATOR in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "{}\x1e",
        "\x1d{}",
        "\x1d\x1e",
        "\x1e{}\x1d",
        "\x1d{}\x1elog",
        "\x1d{}\x1e1\x1d",
        "\x1d{}\x1e1\x1e3",
        "\x1d{}\x1e1\x1elog",
        "\x1d{}\x1e1\x1e3\x1elo",
        "\x1d{}\x1e1\x1e3\x1elogs",
        "\x1d{}\x1e-1\x1e3\x1elog",
        "\x1d{}\x1eone\x1e3\x1elog",
        "\x1d{}\x1e1\x1ethree\x1elog",
        "\x1d{\x1e0\x1e3\x1elog",
        "\x1d[]\x1e0\x1e0\x1e",
        "\x1dnull\x1e0\x1e3\x1elog",
        '\x1d"x"\x1e0\x1e0\x1e',
        "\x1dwelcome {}\x1e",
    ],
)
def test_answers_that_are_cut_off_or_somebody_elses(text):
    with pytest.raises(ValueError):  # noqa: PT011
        follow.parse_answer(text)


@pytest.mark.parametrize(
    "banner", ["Welcome!\n", "no line's end", "{}", "\x1e{}\x1e", "\x1b[1mA\n"]
)
def test_what_a_login_file_prints_before_it_is_no_part_of_it(tmp_path, banner):
    status, log = tmp_path / "status.json", tmp_path / "log"
    status.write_text('{"state": "running"}')
    log.write_bytes(b"line\n")
    printed = banner + poll(str(status), str(log)).stdout.decode()
    assert follow.parse_answer(printed) == ({"state": "running"}, b"line\n", 0)


# The connection


class Clock:
    """Time that passes only where somebody sleeps, or a command takes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5000.0
        self.pauses: list[float] = []
        monkeypatch.setattr(link.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(link, "_clock", lambda: self.now)
        monkeypatch.setattr(link.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Wire:
    """A connection that is cut for some commands."""

    def __init__(self, clock: Clock, patience: float = 600, takes: float = 0) -> None:
        self.clock = clock
        self.takes = takes
        self.plan: list[bool] = []
        self.ran: list[str] = []
        self.resets = 0
        self.said: list[str] = []
        self.timeouts: list[int] = []
        self.timeout = 20
        self.link = link.Link(self.run, self, patience, self.said.append)

    def get_option(self, name: str) -> int:
        assert name == "timeout"
        return self.timeout

    def set_option(self, name: str, value: int) -> None:
        assert name == "timeout"
        self.timeout = value

    def run(self, line: str) -> str:
        self.ran.append(line)
        self.timeouts.append(self.timeout)
        self.clock.now += self.takes
        if self.plan and not self.plan.pop(0):
            raise AnsibleConnectionFailure("cut")
        return f"answer to {line}"

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_without_a_cut_nothing_is_said(clock):
    wire = Wire(clock)
    assert wire.link.command("a") == "answer to a"
    assert (wire.said, wire.resets, clock.pauses, wire.link.cuts) == ([], 0, [], [])


def test_only_what_is_thought_to_be_whole_is_given_little_time_to_connect(clock):
    wire = Wire(clock)
    wire.plan = [False, False]
    wire.link.command("a")
    wire.link.command("b")
    assert wire.timeouts == [4, 20, 20, 4]


@pytest.mark.parametrize(("configured", "whole"), [(20, 4), ("20", 4), (3, 3)])
def test_the_time_to_connect_is_never_longer_than_what_is_configured(configured, whole):
    found = {"timeout": configured}
    connection = SimpleNamespace(get_option=found.get, set_option=found.__setitem__)
    hurry = link.hurry(connection)
    hurry(True)
    assert found["timeout"] == whole
    hurry(False)
    assert found["timeout"] == int(configured)


def test_a_connection_without_such_an_option_is_left_alone():
    def get_option(name: str) -> None:
        raise KeyError(name)

    link.hurry(SimpleNamespace(get_option=get_option))(True)


@pytest.mark.parametrize("cuts", [1, 2, 5])
def test_over_a_cut_the_command_is_tried_again_on_a_new_connection(clock, cuts):
    wire = Wire(clock)
    wire.plan = [False] * cuts
    assert wire.link.command("a") == "answer to a"
    assert wire.ran == ["a"] * (cuts + 1)
    assert wire.resets == cuts
    assert len(wire.said) == 2
    assert "The connection broke; the training goes on there." in wire.said[0]
    away = sum(clock.pauses)
    assert wire.said[1] == f"  Connected again after {away:.0f} s."
    assert wire.link.cuts == [{"seconds": round(away, 1)}]


def test_it_waits_longer_each_time_and_not_for_ever(clock):
    wire = Wire(clock, patience=10_000)
    wire.plan = [False] * 20
    wire.link.command("a")
    assert clock.pauses[0] == 1.0
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == 30.0


@pytest.mark.parametrize("patience", [0, 5, 600])
def test_patience_ends_with_what_to_do(clock, patience):
    wire = Wire(clock, patience=patience, takes=2)
    wire.plan = [False] * 10_000
    began = clock.now
    with pytest.raises(TrainError) as caught:
        wire.link.command("a")
    assert caught.value.message == f"The host could not be reached again in {patience:.0f} s."
    assert "attaches" in caught.value.hint
    assert caught.value.category == "infra"
    assert patience < clock.now - began <= patience + 40
    assert wire.link.cuts == []


def test_every_cut_is_counted_and_patience_begins_anew(clock):
    wire = Wire(clock, patience=2)
    wire.plan = [False, True, False, True, True, False, False, True]
    for line in "abcde":
        wire.link.command(line)
        clock.now += 10
    assert len(wire.link.cuts) == 3
    assert len(wire.said) == 6


def test_what_is_no_cut_is_not_tried_again(clock):
    wire = Wire(clock)

    def attempt() -> None:
        wire.ran.append("x")
        raise TrainError("The module failed.")

    with pytest.raises(TrainError, match="The module failed"):
        wire.link(attempt)
    assert wire.ran == ["x"]
    assert wire.resets == 0


def test_modules_go_over_cuts_as_commands_do(clock):
    wire = Wire(clock)
    wire.plan = [False, False]
    assert wire.link(lambda: {"outcome": wire.run("start")}) == {"outcome": "answer to start"}
    assert wire.ran == ["start"] * 3


# The action


class Nothing:
    """A record at home that holds nothing."""

    def read(self, **_which: Any) -> dict[str, Any]:
        return {}

    def keep(self, *_seen: Any, **_more: Any) -> None:
        pass

    def forget(self, token: Any) -> None:
        pass


class Action(ActionModule):
    """The action without an Ansible around it: a test says what the host answers."""

    def __init__(self, answers: Any, check: bool = False, **arguments: Any) -> None:
        self.said: list[str] = []
        self.polls = 0
        self._request = {
            "project_root": "/srv/tutor",
            "on_lock": "attach",
            "stages": [],
            "survival": {"stage_retries": 2},
        }
        self._notes: list[Any] = []
        self._followed = Nothing()
        self._root = "/srv/tutor"
        self._line = self
        self._link = self
        self._answers = answers
        self._check = check
        self._given = arguments
        self.cuts: list[Any] = []

    check = property(lambda self: self._check)
    verbose = False

    def _watch(self) -> None:
        pass

    def argument(self, name: str, default: Any = None) -> Any:
        return self._given.get(name, default)

    def keep(self, line: str) -> None:
        self.said.append(line)

    def update(self, line: str) -> None:
        pass

    def command(self, _line: str) -> str:
        self.polls += 1
        assert self.polls < 10_000, "polls for ever"
        return str(self._answers(self.polls))


RUNNING = {"state": "running", "token": "t1", "stage": "style", "heartbeat": 1.0, "log": "log"}


def printed(**changes: Any) -> str:
    return f"\x1d{json.dumps({**RUNNING, **changes})}\x1e0\x1e0\x1e"


def test_answers_that_nobody_can_read_end_in_a_sentence(clock):
    action = Action(lambda _: "This account is closed.\n")
    began = clock.now
    with pytest.raises(TrainError) as caught:
        action._follow(RUNNING)
    assert caught.value.message == (
        "What the host says of style could not be read for 60 s; it begins with "
        "'This account is closed.'."
    )
    assert caught.value.category == "infra"
    assert follow.SILENT_AFTER < clock.now - began < follow.SILENT_AFTER + 5


def test_answers_that_are_unreadable_now_and_then_are_overlooked(clock):
    def answers(number: int) -> str:
        if number == 400:
            return printed(state="done", heartbeat=number)
        return printed(heartbeat=number) if number % 20 == 0 else "{"

    assert Action(answers)._follow(RUNNING)["state"] == "done"


def test_a_supervisor_that_says_nothing_new_counts_as_gone(clock):
    with pytest.raises(TrainError, match="no sign of life for 60 s") as caught:
        Action(lambda _: printed())._follow(RUNNING)
    assert "the disk is full" in caught.value.hint


STOPPED = {
    "state": "failed",
    "stopped": {"by": "me@laptop", "killed": False},
    "error": {"symptom": "The stage was stopped by me@laptop.", "action": "A", "category": "ops"},
    "started_at": 1.0,
    "heartbeat": 13.0,
}


def test_a_stage_that_was_stopped_is_said_to_be():
    action = Action(lambda _: printed(**STOPPED))
    ended = action._follow(RUNNING)
    assert ended["failed"]
    assert ended["msg"] == "The stage style was stopped by me@laptop."
    assert action.said == ["  style  was stopped after 0:12"]


def test_who_attached_to_a_stage_that_was_stopped_gets_to_know_it(monkeypatch):
    """Whoever goes on then would start that very stage again: see playbooks/tasks/attach.yml."""
    action = Action(lambda _: printed(**STOPPED), attach=True, live=RUNNING)
    monkeypatch.setattr(action, "_link", Through(action), raising=False)
    asked: list[Any] = []
    found = {"outcome": "attached", "status": RUNNING, "notes": ["Another supervisor follows it."]}
    monkeypatch.setattr(action, "call", lambda *given: (asked.append(given), found)[1])
    ended = action._attach({})
    ((module, arguments, _),) = asked
    assert (module, arguments["attach"]) == ("stage", True)
    assert [issue["symptom"] for issue in ended["issues"]] == ["Another supervisor follows it."]
    assert not ended["failed"]
    assert ended["trouble"]["recorded"]
    assert ended["trouble"]["msg"] == "The stage style was stopped by me@laptop."


FAILED = {
    "state": "failed",
    "error": {"symptom": "It ended with status 3.", "action": "A", "category": "training_logic"},
    "started_at": 1.0,
    "heartbeat": 21.0,
}


def attached(monkeypatch, end, **request):
    """What comes out where a stage is attached to that ends so."""
    action = Action(lambda _: printed(**end), attach=True, live=RUNNING)
    action._request.update(request)
    monkeypatch.setattr(action, "_link", Through(action), raising=False)
    found = {"outcome": "attached", "status": RUNNING, "notes": []}
    monkeypatch.setattr(action, "call", lambda *_: found)
    return action._attach({})


def test_a_stage_that_was_followed_to_its_failure_ends_the_command(monkeypatch):
    trouble = attached(monkeypatch, FAILED)["trouble"]
    assert trouble == {
        "msg": "The stage style failed: It ended with status 3.",
        "hint": "A",
        "category": "training_logic",
        "recorded": True,
    }


def test_or_is_a_result_where_the_others_go_on(monkeypatch):
    result = attached(monkeypatch, FAILED, on_stage_failure="continue")
    assert "trouble" not in result
    ended = result["ended"]
    assert (ended["stage"], ended["state"], ended["failed"]) == ("style", "failed", True)


@pytest.mark.parametrize(("end", "ends"), [(FAILED, False), (STOPPED, True)])
def test_who_waits_ends_after_a_stop_alone(monkeypatch, end, ends):
    result = attached(monkeypatch, end, on_lock="wait")
    assert "ended" not in result
    assert ("trouble" in result) is ends
    if ends:
        assert "give it again to train on" in result["trouble"]["hint"]


@pytest.mark.parametrize(
    ("seen", "progress", "line"),
    [
        ({}, {}, ""),
        ({"step": 3, "loss": 2.0}, {}, ""),
        ({}, {"loss": 2.0}, ""),
        ({}, {"step": 345, "steps": 720, "loss": 6.344}, "now at step 345 of 720"),
        ({"step": 3}, {"step": 7, "loss": 1.0}, "Meanwhile, in 0:00: step 3 -> 7."),
        (
            {"step": 3, "loss": 2.5},
            {"step": 7, "loss": 0.75},
            "Meanwhile, in 0:00: step 3 -> 7, loss 2.500 -> 0.750.",
        ),
    ],
)
def test_what_happened_meanwhile_is_said_as_far_as_it_is_known(seen, progress, line):
    assert stage_action._meanwhile(seen, {"progress": progress}) == line


@pytest.mark.parametrize("on_lock", ["attach", "wait"])
def test_a_start_that_found_another_stage_does_not_follow_on_a_stop(on_lock, monkeypatch):
    answers = [{"outcome": "busy", "status": RUNNING}, {"outcome": "skipped", "status": {}}]
    action = Action(lambda _: printed(**STOPPED), run="run", python="", requirements={})
    action._request["on_lock"] = on_lock
    monkeypatch.setattr(action, "_link", Through(action), raising=False)
    called: list[str] = []
    monkeypatch.setattr(action, "call", lambda *_: (called.append("x"), answers.pop(0))[1])
    with pytest.raises(TrainError, match=r"was stopped by me@laptop\.") as caught:
        action._start("style", {})
    assert caught.value.hint == stage_action.ENDS_TOO
    assert len(called) == 1


class Through:
    """A link that is never cut."""

    def __init__(self, action: Action) -> None:
        self.command = action.command
        self.cuts: list[Any] = []

    def __call__(self, attempt: Any) -> Any:
        return attempt()


@pytest.mark.parametrize(
    ("on_lock", "does"), [("attach", "follow it"), ("wait", "wait for its end")]
)
def test_in_check_mode_what_runs_is_said_and_not_followed(on_lock, does):
    action = Action(lambda _: printed(), check=True, attach=True, live=RUNNING)
    action._request["on_lock"] = on_lock
    assert action._attach({})["state"] == "running"
    (line,) = action.said
    assert line.startswith("  The stage style of ")
    assert line.endswith(f": a run would {does}.")
    assert action.polls == 0


def test_check_mode_does_not_plan_and_attach_again():
    """Else it would do so as long as the training runs."""
    tasks = yaml.safe_load((HOUSE / "playbooks/tasks/attach.yml").read_text())
    assert len(tasks) == 6
    for task in tasks[1:]:
        conditions = task["when"]
        assert "not ansible_check_mode" in (
            conditions if isinstance(conditions, list) else [conditions]
        )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {**RUNNING, "state": "done", "left": ["sleep (process 12)"]},
            "The stage style has ended, and something that it started is still running on the "
            "host: sleep (process 12).",
        ),
        (
            {"left": ["python3 (process 7)", "sh (process 8)"]},
            "The lock of /srv/tutor is held on the host by python3 (process 7), sh (process 8), "
            "and no stage says that it runs.",
        ),
        ({"left": []}, "The lock of /srv/tutor is held on the host by a process of another user,"),
    ],
)
def test_a_lock_without_a_running_stage_is_not_attached_to(status, words):
    action = Action(lambda _: printed(), attach=True, live=status)
    with pytest.raises(TrainError) as caught:
        action._attach({})
    assert caught.value.message.startswith(words)
    assert "/srv/tutor/outputs/training_sync/live/lock" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "flag"),
    [
        (link.GaveUpError("The host could not be reached again in 1 s.", "h", "infra"), True),
        (TrainError("The supervisor of style has given no sign of life.", "h", "infra"), None),
    ],
)
@pytest.mark.parametrize("attach", [True, False])
def test_a_host_that_is_given_up_on_is_flagged(monkeypatch, error, flag, attach):
    def fail(*_: Any, **_more: Any) -> None:
        raise error

    action = Action(
        None,
        attach=attach,
        stage="style",
        live=RUNNING,
        home="/nowhere",
        request={
            "project_root": "/srv/tutor",
            "reconnect_timeout": 1,
            "on_lock": "attach",
            "stages": [{"name": "style", "needs": []}],
        },
    )
    action._connection = SimpleNamespace(reset=None, get_option={}.get)
    monkeypatch.setattr(ActionModule, "_train", fail)
    found = {"outcome": "attached", "status": RUNNING, "notes": []}
    monkeypatch.setattr(ActionModule, "call", lambda *_: found)
    monkeypatch.setattr(ActionModule, "_follow", fail)
    result = action.act({})
    # Who has attached and can't follow to the end fails after what there is has been collected.
    assert result["failed"] is not attach
    assert result.get("unreachable_host") is flag
    if attach:
        assert result["trouble"]["msg"] == error.message
        assert result["trouble"]["recorded"] is False
    else:
        assert result["msg"] == error.message


def test_patience_that_ended_is_told_from_other_errors(clock):
    wire = Wire(clock, patience=1)
    wire.plan = [False] * 100
    with pytest.raises(link.GaveUpError):
        wire.link.command("a")


# One break, one record


def test_an_answer_of_nothing_ends_no_break(clock):
    """A command that could not even be begun was once taken for the host being back."""
    wire = Wire(clock)
    wire.plan = [False, False, True]
    tries = iter([False, True])

    def shared() -> None:
        if not next(tries):
            raise AnsibleConnectionFailure("cut")

    assert wire.link(shared) is None
    assert [line.split(";")[0] for line in wire.said] == ["  The connection broke"]
    assert wire.link.cuts == []
    assert wire.link(lambda: "back") == "back"
    assert wire.said[1:] == ["  Connected again after 1 s."]
    assert wire.link.cuts == [{"seconds": 1.0}]


@pytest.mark.parametrize(("between", "cuts"), [(2.0, [4.0]), (60.0, [1.0, 1.0])])
def test_breaks_next_to_each_other_are_one(clock, between, cuts):
    wire = Wire(clock)
    for pause in (between, 0.0):
        ends = iter([True, False])

        def attempt(ends=ends) -> str:
            if next(ends):
                raise AnsibleConnectionFailure("cut")
            return "whole"

        wire.link(attempt)
        clock.now += pause
    assert [cut["seconds"] for cut in wire.link.cuts] == cuts


@pytest.mark.parametrize("live", [True, False])
def test_a_long_break_is_not_silent(clock, live):
    said: list[str] = []
    rewritten: list[str] = []
    line = Line(said.append, rewritten.append if live else None)
    wire = Wire(clock)
    wire.link = link.Link(wire.run, wire, 600, line.keep)
    with pytest.raises(GaveUpError):
        wire.link(lambda: (_ for _ in ()).throw(AnsibleConnectionFailure("cut")))
    shown = rewritten if live else said
    waits = [text for text in shown if "next try in" in text]
    assert re.fullmatch(
        r"  No connection for \d:\d\d; next try in \d+ s, gives up in \d+:\d\d", waits[0]
    )
    if live:
        assert len(waits) > 500
        assert not [text for text in said if "next try" in text]
    else:
        assert 15 <= len(waits) <= 20
