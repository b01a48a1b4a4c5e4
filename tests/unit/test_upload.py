"""An archive comes over a link that breaks: what is there stays, and only whole parts count."""

import contextlib
import os
import shutil
import subprocess
import time

import pytest
from ansible.errors import AnsibleConnectionFailure

from controller import link as link_module
from controller import upload as upload_module
from controller.action import GaveUpError
from controller.link import Link
from controller.progress import Line, Meter
from controller.upload import FIRST, LARGEST, Upload
from remote_train import parts
from remote_train.errors import TrainError
from tests.unit.small_disk import small_disk

MIB = 1024 * 1024


class Shell:
    """Runs what is sent to the host on this machine, and breaks when it is told to.

    :ivar breaks: how many bytes of its input get through, by the number of the call, from 0.
    :ivar sent: the bytes of input of each call that had any.
    """

    def __init__(self):
        self.breaks = {}
        self.calls = 0
        self.sent = []
        self.resets = 0

    def run(self, words, stdin):
        cut = self.breaks.get(self.calls)
        self.calls += 1
        if stdin:
            self.sent.append(len(stdin))
        if cut == "unreachable":
            raise AnsibleConnectionFailure("gone")
        done = subprocess.run(
            words, input=stdin if cut is None else stdin[:cut], capture_output=True, check=False
        )
        if cut is not None:
            raise AnsibleConnectionFailure("broken in the middle")
        if done.returncode:
            raise TrainError(done.stderr.decode("utf-8", "replace") or "no word")
        return os.fsdecode(done.stdout)

    def reset(self):
        self.resets += 1


def a_meter(path, say=print):
    return Meter(Line(say, None), "sending", path.stat().st_size)


class Sender:
    """A shell, a link over it and what was said."""

    def __init__(self, incoming, patience=60.0):
        self.shell = Shell()
        self.said = []
        self.link = Link(lambda _line: "", self.shell, patience, self.said.append, "x", "y")
        self.upload = Upload(self.shell.run, self.link, str(incoming))
        self.meter = None

    def send(self, path, folder="f"):
        self.meter = a_meter(path, self.said.append)
        return self.upload.send(str(path), folder, self.meter)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(link_module.time, "sleep", lambda _seconds: None)


@pytest.fixture
def incoming(tmp_path):
    return tmp_path / "host's folder" / "-incoming $x"


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "project.delta"
    path.write_bytes(os.urandom(3 * MIB + 17))
    return path


def there(folder):
    with parts.open_parts(folder) as stream:
        return stream.read()


def test_what_is_sent_is_there(incoming, archive):
    sender = Sender(incoming)
    folder = sender.send(archive)
    assert folder == str(incoming / "f" / "project.delta")
    assert there(folder) == archive.read_bytes()
    assert sum(sender.shell.sent) == archive.stat().st_size
    assert sender.shell.sent[0] == FIRST
    for made in (incoming, incoming / "f" / "project.delta"):
        assert made.stat().st_mode & 0o777 == 0o700
    assert sender.said == []


@pytest.mark.parametrize(
    "name", ["with blank", "-rf", "a'b\"c", "new\nline", "$(id)", "结论", os.fsdecode(b"\xe9"), "*"]
)
def test_any_name_will_do(incoming, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"content")
    assert there(Sender(incoming).send(path)) == b"content"
    assert os.listdir(incoming / "f") == [name]


@pytest.mark.parametrize("content", [b"", b"x", b"x" * FIRST, b"x" * (FIRST + 1)], ids=len)
def test_any_size_will_do(incoming, tmp_path, content):
    path = tmp_path / "project.delta"
    path.write_bytes(content)
    assert there(Sender(incoming).send(path)) == content


@pytest.mark.parametrize("through", [0, 1, 1000, FIRST - 1])
@pytest.mark.parametrize("call", [1, 2])
def test_a_link_that_breaks_in_the_middle_of_a_part_costs_that_part(
    incoming, archive, call, through
):
    """A cut looks like an end of the input; what came until then is not taken for the part."""
    sender = Sender(incoming)
    sender.shell.breaks[call] = through
    folder = sender.send(archive)
    assert there(folder) == archive.read_bytes()
    assert sender.shell.resets == 1
    assert sender.shell.sent[call - 1] == sender.shell.sent[call]
    assert sum(sender.shell.sent) == archive.stat().st_size + sender.shell.sent[call]
    assert len(os.listdir(folder)) == len(
        parts.arrived(os.listdir(folder))
    )  # and no rest lies there
    assert sender.said[0].strip().startswith("The connection broke; x.")
    assert sender.said[1].strip().startswith("Connected again after ")


def test_a_part_that_came_but_whose_answer_got_lost_is_sent_again_and_counts_once(
    incoming, archive
):
    sender = Sender(incoming)
    sender.shell.breaks[1] = FIRST
    assert there(sender.send(archive)) == archive.read_bytes()


def test_the_next_upload_sends_what_is_missing(incoming, archive):
    first = Sender(incoming, patience=-1.0)
    first.shell.breaks[2] = 5
    with pytest.raises(GaveUpError):
        first.send(archive)
    again = Sender(incoming)
    again.meter = None
    folder = again.send(archive)
    assert there(folder) == archive.read_bytes()
    assert sum(again.shell.sent) == archive.stat().st_size - FIRST
    again = Sender(incoming)
    assert again.send(archive) == folder
    assert again.shell.sent == []


def test_a_meter_counts_what_is_there_already_and_not_into_the_rate(incoming, archive, monkeypatch):
    first = Sender(incoming, patience=-1.0)
    first.shell.breaks[2] = 5
    with pytest.raises(GaveUpError):
        first.send(archive)
    updates = []
    meter = Meter(Line(updates.append, updates.append), "sending", archive.stat().st_size)
    monkeypatch.setattr("controller.progress.SHOWN_AFTER", 0.0)
    monkeypatch.setattr(Meter, "seconds", property(lambda _self: 1.0))
    Sender(incoming).upload.send(str(archive), "f", meter)
    assert updates[-1] == "  sending 3.1 MB of 3.1 MB, 2.1 MB/s"


def test_a_host_that_is_gone_for_good_is_given_up(incoming, archive):
    sender = Sender(incoming, patience=-1.0)
    sender.shell.breaks[0] = "unreachable"
    with pytest.raises(GaveUpError, match="could not be reached again"):
        sender.send(archive)


def test_another_archive_is_not_mixed_with_it(incoming, archive, tmp_path):
    """Not in another folder, and not by another name in the same one."""
    sender = Sender(incoming)
    one = sender.send(archive)
    other = tmp_path / "other.delta"
    other.write_bytes(os.urandom(2 * MIB))
    two, three = sender.send(other), sender.send(other, "g")
    assert there(one) == archive.read_bytes()
    assert there(two) == there(three) == other.read_bytes()
    assert len({one, two, three}) == 3


def test_a_small_file_comes_beside_an_archive(incoming, archive, tmp_path):
    """In one piece, over a cut; what was there under its name before is replaced."""
    sender = Sender(incoming)
    folder = sender.send(archive)
    small = tmp_path / "project.sig"
    for content in (b"signature", b"", b"another"):
        small.write_bytes(content)
        sender.shell.breaks[sender.shell.calls] = 3
        path = sender.upload.place(str(small), "f")
        with open(path, "rb") as stream:
            assert stream.read() == content
    assert sorted(os.listdir(incoming / "f")) == ["project.delta", "project.sig"]
    assert there(folder) == archive.read_bytes()


def test_more_than_was_ever_sent_is_named(incoming, archive):
    folder = Sender(incoming).send(archive)
    archive.write_bytes(archive.read_bytes()[:FIRST])
    with pytest.raises(TrainError, match="holds more than was ever sent") as error:
        Sender(incoming).send(archive)
    assert folder in error.value.message


def test_a_part_behind_a_gap_is_sent_again(incoming, archive):
    folder = Sender(incoming).send(archive)
    (first, _end), *_rest = parts.arrived(os.listdir(folder))
    os.unlink(os.path.join(folder, first))
    again = Sender(incoming)
    again.send(archive)
    assert there(folder) == archive.read_bytes()
    assert again.shell.sent[0] == FIRST


def test_what_others_left_a_day_ago_goes_and_what_is_younger_stays(incoming, archive):
    old, odd, young = (incoming / name for name in ("old", "-odd\nname", "young"))
    for folder in (old, odd, young):
        (folder / "x").mkdir(parents=True)
        (folder / "x" / parts.name(0, 1)).write_bytes(b"x")
    kept = incoming.parent / "old neighbour"
    kept.mkdir()
    day = time.time() - 24 * 3600
    for folder in (old, odd, kept):
        os.utime(folder, (day - 120, day - 120))
    os.utime(young, (day + 600, day + 600))
    Sender(incoming).send(archive)
    assert sorted(os.listdir(incoming)) == ["f", "young"]
    assert kept.exists()


def test_two_that_send_the_same_at_once_do_not_spoil_it(tmp_path):
    """One part, which both of them are in the middle of."""
    path = tmp_path / parts.name(0, 6)
    words = ["sh", "-c", upload_module._TAKE, "sh", str(path), "6", str(tmp_path)]
    both = []
    with contextlib.ExitStack() as stack:
        for begun in (3, 6):
            process = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE))
            process.stdin.write(b"abc")
            process.stdin.flush()
            both.append(process)
            deadline = time.monotonic() + 5
            while sum(one.stat().st_size for one in tmp_path.iterdir()) < begun:
                assert time.monotonic() < deadline, "they write to the same file"
                time.sleep(0.01)
        for process in both:
            process.stdin.write(b"def")
            process.stdin.close()
            assert process.wait(10) == 0
            assert path.read_bytes() == b"abcdef"
    assert os.listdir(tmp_path) == [path.name]


def test_one_that_goes_on_in_the_background_does_not_spoil_the_next(incoming, archive):
    """A controller was killed, and its worker sends one more part when the next one has begun."""
    first = Sender(incoming, patience=-1.0)
    first.shell.breaks[2] = 5
    with pytest.raises(GaveUpError):
        first.send(archive)
    content = archive.read_bytes()
    again = Sender(incoming)
    run = again.shell.run

    def late(words, stdin):
        if again.shell.calls == 2:
            path = incoming / "f" / archive.name / parts.name(FIRST, 5 * FIRST // 2)
            path.write_bytes(content[FIRST : 5 * FIRST // 2])
        return run(words, stdin)

    again.upload._run = late
    assert there(again.send(archive)) == content


def test_a_full_disk_is_named_and_leaves_nothing_half(archive, monkeypatch):
    with small_disk("size=2500k") as disk:
        sender = Sender(disk / "incoming")
        with pytest.raises(TrainError, match="There is no room for it on the host") as caught:
            sender.send(archive)
        assert str(disk / "incoming") in caught.value.message
        assert not sender.shell.sent
        monkeypatch.setattr(upload_module, "_room", lambda _line: 10**12)  # it filled up meanwhile
        with pytest.raises(TrainError, match="No space left on device"):
            sender.send(archive)
        folder = disk / "incoming" / "f" / "project.delta"
        assert len(os.listdir(folder)) == len(parts.arrived(os.listdir(folder)))


def test_a_folder_that_can_not_be_made_is_named(tmp_path, archive):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrainError, match="Not a directory"):
        Sender(tmp_path / "file" / "incoming").send(archive)


@pytest.mark.parametrize(
    ("length", "seconds", "expected"),
    [
        (FIRST, 10.0, FIRST),
        (FIRST, 1.5, FIRST),
        (FIRST, 1.0, FIRST * 3 // 2),
        (FIRST, 0.1, 2 * FIRST),
        (FIRST, 0.0, 2 * FIRST),
        (40 * FIRST, 0.0, LARGEST),
        (40 * FIRST, 15.0, 4 * FIRST),
        (LARGEST, 600.0, FIRST),
    ],
)
def test_a_part_takes_about_as_long_as_it_should(length, seconds, expected):
    assert upload_module._next(length, seconds) == expected


# -- a file that is to be whole there ------------------------------------------------------------


def test_a_whole_file_is_joined_over_cuts_and_not_sent_twice(tmp_path):
    path = tmp_path / "a wheel's.whl"
    path.write_bytes(os.urandom(3 * MIB + 5))
    sender = Sender(str(tmp_path / "in it's"))
    sender.shell.breaks = {3: MIB // 2, 6: "unreachable"}
    there = sender.upload.whole(str(path), "wheels", a_meter(path))
    assert there == str(tmp_path / "in it's" / "wheels" / path.name)
    with open(there, "rb") as stream:
        assert stream.read() == path.read_bytes()
    assert sorted(os.listdir(tmp_path / "in it's")) == ["wheels", "wheels.parts"]
    assert os.listdir(tmp_path / "in it's" / "wheels.parts") == []
    sent = len(sender.shell.sent)
    assert sender.upload.whole(str(path), "wheels", a_meter(path)) == there
    assert len(sender.shell.sent) == sent


def test_a_whole_file_of_another_length_is_replaced(tmp_path):
    path = tmp_path / "x.whl"
    path.write_bytes(b"new")
    there = tmp_path / "in" / "wheels" / "x.whl"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"longer than it is now")
    sender = Sender(str(tmp_path / "in"))
    sender.upload.whole(str(path), "wheels", a_meter(path))
    assert there.read_bytes() == b"new"


# -- beside others -------------------------------------------------------------------------------


def test_an_upload_that_is_at_work_is_not_swept_away(incoming, archive):
    """Its folder was made a day ago, and its last part came a moment ago."""
    sender = Sender(incoming)
    sender.send(archive)
    long_ago = time.time() - 25 * 3600
    os.utime(incoming / "f", (long_ago, long_ago))
    piece = ["sh", "-c", upload_module._TAKE, "sh", str(incoming / "f" / "x"), "1"]
    sender.shell.run([*piece, str(incoming / "f")], b"x")
    Sender(incoming).send(archive, "another")
    assert (incoming / "f").exists()
    os.utime(incoming / "f", (long_ago, long_ago))
    Sender(incoming).send(archive, "another")
    assert not (incoming / "f").exists()


def test_parts_that_another_sync_took_away_are_sent_again(incoming, archive):
    sender = Sender(incoming)
    run, taken = sender.shell.run, []

    def away(words, stdin):
        if len(sender.shell.sent) == 2 and not taken:
            taken.append(1)
            shutil.rmtree(incoming / "f")
        return run(words, stdin)

    sender.upload._run = away
    assert there(sender.send(archive)) == archive.read_bytes()


def test_a_folder_that_always_goes_is_an_error_in_the_end(incoming, archive):
    sender = Sender(incoming)
    run = sender.shell.run

    def away(words, stdin):
        if stdin:
            shutil.rmtree(incoming / "f")
        return run(words, stdin)

    sender.upload._run = away
    with pytest.raises(TrainError):
        sender.send(archive)


@pytest.mark.parametrize(
    ("line", "room"),
    [
        ("tmpfs 2560 0 2560 0% /tmp", 2560 * 1024),
        ("/dev/a 7 b 100 0 50 0% /x", 50 * 1024),
        ("no disk at all", upload_module.sys.maxsize),
        ("", upload_module.sys.maxsize),
    ],
)
def test_the_room_that_df_tells(line, room):
    assert upload_module._room(line) == room
