"""Signatures: made with every kind of key, by an agent too, and held against the real program."""

import gzip
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train import bundle_archive, signature
from remote_train.errors import TrainError
from remote_train.manifest import LEGACY, MODERN
from remote_train.problems import RefusedError
from remote_train.signature import NAMESPACE, Trust, allowed_by, check, sign
from tests.unit.bundle_host import Host, no_waiting
from tests.unit.hostile_bundles import LISTING, OK, sound, tar_bytes
from tests.unit.hostile_signatures import LEGACY_LISTING
from tests.unit.signers import ME, certified, keygen, line, make_key, public, signed

MESSAGE = b"0" * 64 + b"  any\nbytes\0\xff"


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files, in which nothing may be left; no agent of the developer's."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    yield folder
    assert os.listdir(folder) == []


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {kind: make_key(folder, kind, kind) for kind in ("ed25519", "ecdsa", "rsa")}


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """An agent that really runs, and holds nothing yet."""
    # The path of a socket has a short limit, and pytest's folders have long names.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        socket = os.path.join(folder, "agent")
        process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 10
            while not os.path.exists(socket):
                assert time.monotonic() < until
                time.sleep(0.01)
            monkeypatch.setenv("SSH_AUTH_SOCK", socket)
            yield process
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def askpass(tmp_path, monkeypatch):
    """A window that asks for the passphrase, which may not open; the trace that it leaves."""
    script = tmp_path / "askpass"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\necho secret\n")
    script.chmod(0o755)
    monkeypatch.setenv("SSH_ASKPASS", str(script))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    monkeypatch.setenv("DISPLAY", ":0")
    return tmp_path / "asked"


def add(key):
    subprocess.run(["ssh-add", "-q", str(key)], check=True)


# -- signing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_ssh_keygen_itself_accepts_what_is_signed(tmp_path, keys, kind):
    (tmp_path / "signature").write_bytes(sign(MESSAGE, str(keys[kind])))
    (tmp_path / "allowed").write_text(line(keys[kind]))
    files = ("-s", tmp_path / "signature", "-f", tmp_path / "allowed")
    said = keygen("-Y", "verify", "-n", "remote-train", "-I", ME, *files, input=MESSAGE)
    assert said.startswith(b'Good "remote-train" signature for me@example.org')


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_the_key_of_a_signature_is_the_one_that_made_it(keys, kind):
    assert allowed_by(signed(MESSAGE, keys[kind]), ME) == line(keys[kind])


ARMOR = b"-----BEGIN SSH SIGNATURE-----\n%s\n-----END SSH SIGNATURE-----\n"


@pytest.mark.parametrize(
    "armored",
    [b"", b"garbage", ARMOR % b"%", ARMOR % b"AAA", ARMOR % b"U1NIU0lHAAAAAQAAADM="],
)
def test_what_is_no_signature_has_no_key(armored):
    with pytest.raises(ValueError):  # noqa: PT011 - Base64 has words of its own
        allowed_by(armored, ME)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_the_signer_of_each_kind_of_key_is_known(keys, kind):
    allowed = "".join(line(key, f"{name}@example.org") for name, key in keys.items())
    assert check(MESSAGE, signed(MESSAGE, keys[kind]), allowed, "x") == f"{kind}@example.org"


def test_a_path_may_begin_with_a_dash_or_a_home(tmp_path, monkeypatch):
    key = make_key(tmp_path, "-key")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sign(MESSAGE, "-key") == sign(MESSAGE, "~/-key") == signed(MESSAGE, key)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_an_agent_signs_for_a_public_key(tmp_path, agent, kind):
    key = make_key(tmp_path, kind=kind)
    add(key)
    key.unlink()
    made = sign(MESSAGE, str(public(key)))
    assert check(MESSAGE, made, line(key), "x") == ME


def test_an_agent_signs_for_a_key_with_a_passphrase(tmp_path, agent, askpass):
    key = make_key(tmp_path)
    add(key)
    keygen("-q", "-p", "-P", "", "-N", "secret", "-f", key)
    assert check(MESSAGE, sign(MESSAGE, str(key)), line(key), "x") == ME
    assert not askpass.exists()


def no_key(folder):
    return folder / "none"


def folder_for_a_key(folder):
    return folder


def pipe_for_a_key(folder):
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def garbage_for_a_key(folder):
    (folder / "garbage").write_bytes(bytes(range(256)) * 9)
    (folder / "garbage").chmod(0o600)
    return folder / "garbage"


def half_a_key(folder):
    key = make_key(folder)
    key.unlink()
    return public(key)


def key_for_all_to_read(folder):
    key = make_key(folder)
    key.chmod(0o644)
    return key


def key_with_a_passphrase(folder):
    return make_key(folder, passphrase="secret")  # noqa: S106


def old_key_with_a_passphrase(folder):
    key = make_key(folder, kind="rsa")
    keygen("-q", "-p", "-m", "PEM", "-P", "", "-N", "secret", "-f", key)
    public(key).unlink()
    return key


UNUSABLE = [
    (no_key, "can't be read: No such file or directory."),
    (folder_for_a_key, "is not a regular file."),
    (pipe_for_a_key, "is not a regular file."),
    (garbage_for_a_key, "is not one that ssh-keygen can use."),
    (half_a_key, "is a public one, and no agent holds its other half."),
    (key_for_all_to_read, "can be read by others."),
    (key_with_a_passphrase, "has a passphrase, and no agent holds the key."),
    (old_key_with_a_passphrase, "is not one that ssh-keygen can use."),
]


@pytest.mark.parametrize("running", ["agent", "no agent"])
@pytest.mark.parametrize(("make", "words"), UNUSABLE)
def test_an_unusable_key_is_named_and_nobody_is_asked(
    tmp_path, askpass, request, make, words, running
):
    if running == "agent":
        request.getfixturevalue("agent")
    key = make(tmp_path)
    with pytest.raises(TrainError) as error:
        sign(MESSAGE, str(key))
    assert error.value.message == f"The signing key {key} {words}"
    assert not askpass.exists()


def test_an_agent_that_is_gone_is_like_none(tmp_path, agent):
    agent.send_signal(signal.SIGKILL)
    agent.wait(10)
    with pytest.raises(TrainError, match="no agent holds its other half"):
        sign(MESSAGE, str(half_a_key(tmp_path)))


def test_a_passphrase_is_not_asked_for_on_a_terminal(tmp_path):
    key = key_with_a_passphrase(tmp_path)
    program = (
        "import sys; from remote_train.errors import TrainError\n"
        "from remote_train.signature import sign\n"
        "assert open('/dev/tty')\n"  # or there is nothing to see here
        "try: sign(b'', sys.argv[1])\n"
        "except TrainError as error: print('REFUSED', error.message)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(signature.__file__))}
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, "-c", program, str(key)], environment)  # noqa: S606
    said = b""
    try:
        while select.select([terminal], [], [], 20)[0]:
            try:
                said += os.read(terminal, 4096)
            except OSError:  # this is how a terminal ends
                break
        else:
            os.kill(process, signal.SIGKILL)
    finally:
        os.waitpid(process, 0)
        os.close(terminal)
    assert said.startswith(b"REFUSED The signing key")
    assert b"passphrase:" not in said


# -- whose signature counts ------------------------------------------------------------------------

ACCEPTED = {
    "one": (line, ME),
    "among others": (lambda key: "# we\n\n  # all\n" + line(key), ME),
    "with Windows line ends": (lambda key: ("# we\n\n" + line(key)).replace("\n", "\r\n"), ME),
    "without a last line end": (lambda key: line(key).rstrip(), ME),
    "with a comment behind": (lambda key: line(key).rstrip() + " laptop of mine\n", ME),
    "of several principals": (lambda key: line(key, "a@x,b@x"), "a@x"),
    "of a pattern": (lambda key: line(key, "*@x"), "*@x"),
    "of a pattern with exceptions": (lambda key: line(key, "!b@x,*@x"), "*@x"),
    "of a quoted name": (lambda key: line(key, '"Ann Lee"'), "Ann Lee"),
    "of a name in two scripts": (lambda key: line(key, "王@x"), "王@x"),
    "of a name that acts on terminals": (lambda key: line(key, "\x1b[2Ja@x"), "\\x1b[2Ja@x"),
    "of a name that isn't UTF-8": (lambda key: line(key, "a\udcff@x"), "a\\xff@x"),
    "of a name like an option": (lambda key: line(key, "-n"), "-n"),
    "for this purpose": (lambda key: line(key, options='namespaces="file,remote-*"'), ME),
    "for another purpose in a line before": (
        lambda key: line(key, "a@x", 'namespaces="file"') + line(key, "b@x"),
        "b@x",
    ),
    "that is over in a line before": (
        lambda key: line(key, "a@x", 'valid-before="20200101"') + line(key, "b@x"),
        "b@x",
    ),
    "within its time": (
        lambda key: line(key, options='valid-after="20200101Z",valid-before="20990101Z"'),
        ME,
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_who_has_signed(tmp_path, name):
    write, signer = ACCEPTED[name]
    key, other = make_key(tmp_path), make_key(tmp_path, "other")
    for allowed in (write(key), line(other) + write(key), write(key).rstrip() + "\n" + line(other)):
        assert check(MESSAGE, signed(MESSAGE, key), allowed, "x") == signer


@pytest.mark.parametrize(
    ("principals", "validity", "signer"),
    [
        (ME, "-1h:+1h", ME),
        ("you@example.org", "-1h:+1h", "you@example.org"),
        ("me@elsewhere.org", "-1h:+1h", None),
        (ME, "20200101:20200102", None),
    ],
)
def test_whoever_is_certified_counts(tmp_path, principals, validity, signer):
    key, authority = make_key(tmp_path), make_key(tmp_path, "authority")
    made = signed(MESSAGE, certified(key, authority, validity, principals))
    allowed = line(authority, "*@example.org", "cert-authority")
    if signer:
        assert check(MESSAGE, made, allowed, "x") == signer
    else:
        with pytest.raises(RefusedError) as error:
            check(MESSAGE, made, allowed, "x")
        assert error.value.problems.items[0].problem in {"signer-refused", "signer-not-allowed"}


def test_every_reason_is_said(tmp_path):
    key = make_key(tmp_path)
    allowed = line(key, "a@x", 'namespaces="file"') + line(key, "b@x", 'valid-before="20200101"')
    with pytest.raises(RefusedError) as error:
        check(MESSAGE, signed(MESSAGE, key), allowed, "x.tar.gz")
    found = [problem.problem for problem in error.value.problems.items]
    assert found == ["signer-namespace", "signer-expired"]
    assert error.value.message.startswith("The bundle x.tar.gz has 2 problems; the first: the key")
    assert error.value.message.count(" line 1: ") == 1


UNREADABLE = {
    "no key": ("garbage", "missing key"),
    "an option that there isn't": ("{name} revoked {key}", "bad options: unknown key option"),
    "a time that is none": ('{name} valid-before="2020" {key}', 'bad options: invalid "valid-b'),
    "half a key": ("{name} ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI", "invalid key"),
}


@pytest.mark.parametrize("whose", ["key", "other"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_a_line_that_says_nothing_is_named_wherever_it_stands(tmp_path, name, whose):
    template, words = UNREADABLE[name]
    keys = {"key": make_key(tmp_path), "other": make_key(tmp_path, "other")}
    bad = template.format(name=ME, key=line(keys[whose], "").strip()) + "\n"
    good = line(keys["key"])
    for allowed, at in ((bad + good, 1), (good + "\n#\n" + bad, 4), (good + bad + good, 2)):
        with pytest.raises(RefusedError) as error:
            check(MESSAGE, signed(MESSAGE, keys["key"]), allowed, "x")
        (problem,) = error.value.problems.items
        assert problem.problem == "allowed-signers-line"
        assert problem.line == at
        assert problem.message.startswith(f"line {at}: not understood: {words}")


def outcome(*arguments):
    """The signer or the refusal, either of which is one printable line."""
    try:
        said = check(*arguments, "x")
    except RefusedError as error:
        said = error
    assert str(said).isprintable()
    return said


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_bytes_pass_for_a_signature(tmp_path_factory, data):
    """A signature with bytes changed is refused, unless it still stands for the same."""
    key = make_key(tmp_path_factory.mktemp("fuzz"))
    changed = bytearray(signed(MESSAGE, key))
    for _change in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    other = data.draw(st.binary(max_size=100))
    for message, content in ((MESSAGE, bytes(changed)), (MESSAGE, other), (b"", bytes(changed))):
        said = outcome(message, content, line(key))
        assert (said == ME and message == MESSAGE) or isinstance(said, RefusedError)


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=80), at=st.integers(0, 120))
def test_no_text_stands_for_an_allowed_signer(tmp_path_factory, text, at):
    """Whatever the list says around them, only the key that is in it counts."""
    folder = tmp_path_factory.mktemp("fuzz")
    key, other = make_key(folder), make_key(folder, "other")
    allowed = line(key)
    allowed = allowed[:at] + text + allowed[at:]
    for signer in (key, other):
        said = outcome(MESSAGE, signed(MESSAGE, signer), allowed)
        assert signer is key or isinstance(said, RefusedError)


# -- the machine -----------------------------------------------------------------------------------

OTHER_PROGRAMS = {
    "8.0": ("echo 'unknown option -- Y' >&2; exit 1", "knows no -Y check-novalidate"),
    "a BSD's": ("echo 'ssh-keygen: illegal option -- Y' >&2; exit 1", "knows no -Y check-nov"),
    "8.1": (
        'case "$2" in find-principals)'
        " echo 'Too few arguments for sign/verify: missing namespace' >&2; exit 255;; esac;"
        ' exec ssh-keygen "$@"',
        "knows no -Y find-principals",
    ),
    "one that doesn't know the word": (
        "echo 'Unsupported operation for -Y: \"x\"' >&2; exit 1",
        "knows no -Y check-novalidate",
    ),
    "one that hangs": ("exec sleep 60", "didn't come to an end within 0.3 seconds"),
    "none that runs": (None, "can't be run: Permission denied"),
}


@pytest.mark.parametrize("name", OTHER_PROGRAMS)
def test_a_machine_that_can_not_check_says_so(tmp_path, monkeypatch, name):
    text, words = OTHER_PROGRAMS[name]
    key = make_key(tmp_path)
    made = signed(MESSAGE, key)
    program = tmp_path / "ssh-keygen"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755 if text else 0o644)
    monkeypatch.setattr(signature, "PROGRAM", str(program))
    if "hangs" in name:
        monkeypatch.setattr(signature, "TIMEOUT", 0.3)
    began = time.monotonic()
    with pytest.raises(TrainError, match=words):
        check(MESSAGE, made, line(key), "x")
    assert time.monotonic() - began < 10


def test_an_older_program_has_no_window_to_ask_in(tmp_path, monkeypatch, askpass):
    """Before OpenSSH 8.4, only the names of a display and of a program kept it from asking."""
    program = tmp_path / "ssh-keygen"
    program.write_text(
        f"#!/bin/sh\nenv > {tmp_path}/environment\nprintf 'no \\033[2J' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(signature, "PROGRAM", str(program))
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    with pytest.raises(TrainError, match=r"can't sign: no \\x1b\[2J\.$"):
        sign(MESSAGE, str(make_key(tmp_path)))
    seen = dict(name.split("=", 1) for name in (tmp_path / "environment").read_text().splitlines())
    assert not seen.keys() & {"DISPLAY", "WAYLAND_DISPLAY", "SSH_ASKPASS"}
    assert (seen["SSH_ASKPASS_REQUIRE"], seen["LC_ALL"]) == ("never", "C")


def test_a_machine_without_ssh_keygen_says_so(tmp_path, monkeypatch):
    key = make_key(tmp_path)
    made = signed(MESSAGE, key)
    monkeypatch.setenv("PATH", str(tmp_path))
    for work in (lambda: check(MESSAGE, made, line(key), "x"), lambda: sign(MESSAGE, str(key))):
        with pytest.raises(TrainError, match="There is no ssh-keygen on this machine") as error:
            work()
        assert "OpenSSH" in error.value.hint


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ("check-novalidate", "what should be its signature is none"),
        ("find-principals", "not among the allowed"),
        ("verify", "not among the allowed"),
    ],
)
def test_the_exit_status_counts_whatever_is_said(tmp_path, monkeypatch, operation, words):
    key = make_key(tmp_path)
    made = signed(MESSAGE, key)
    program = tmp_path / "ssh-keygen"
    program.write_text(
        f'#!/bin/sh\nssh-keygen "$@" || exit\nif [ "$2" = {operation} ]; then exit 255; fi\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(signature, "PROGRAM", str(program))
    with pytest.raises(RefusedError, match=words):
        check(MESSAGE, made, line(key), "x")


def test_what_is_checked_lies_where_nobody_else_can_write(tmp_path, monkeypatch):
    key = make_key(tmp_path)
    program = tmp_path / "ssh-keygen"
    program.write_text(f'#!/bin/sh\nstat -c %a . >> {tmp_path}/modes\nexec ssh-keygen "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(signature, "PROGRAM", str(program))
    assert check(MESSAGE, signed(MESSAGE, key), line(key), "x") == ME
    assert set((tmp_path / "modes").read_text().split()) == {"700"}


def test_no_room_for_the_check_is_said(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(signature._Check, "put", full)
    key = make_key(tmp_path)
    with pytest.raises(TrainError, match="written down to be checked: there is no room"):
        check(MESSAGE, signed(MESSAGE, key), line(key), "x")


# -- with a bundle ---------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path, monkeypatch):
    no_waiting(monkeypatch)
    return Host(tmp_path)


def write_bundle(folder, members, manifest_name=MODERN, listing=LISTING):
    path = folder / "x.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes(members, manifest_name, listing)))
    return path


PLACES = {
    "beside": (MODERN, {f"x.{MODERN}.sig": LISTING}, []),
    "at the top": (MODERN, {}, [OK, (MODERN + ".sig", LISTING)]),
    "before all": ("", {}, [(f"./{MODERN}.sig", LISTING), (MODERN, LISTING), OK]),
    "between": ("", {}, [OK, (MODERN + ".sig", LISTING), (MODERN, LISTING)]),
    "of an old manifest": (LEGACY, {}, [OK, (LEGACY + ".sig", LEGACY_LISTING)]),
    "beside an old one": (LEGACY, {f"x.{LEGACY}.sig": LEGACY_LISTING}, []),
    "of the old one too": (
        MODERN,
        {},
        [
            OK,
            (LEGACY, LEGACY_LISTING),
            (LEGACY + ".sig", b"another"),
            (MODERN + ".sig", LISTING),
        ],
    ),
    "beside the other one": (
        LEGACY,
        {f"x.{MODERN}.sig": b"another"},
        [OK, (LEGACY + ".sig", LEGACY_LISTING)],
    ),
}


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_a_signed_bundle_is_applied_and_its_signer_named(tmp_path, host, name, check_mode):
    key = make_key(tmp_path)
    manifest_name, beside, members = PLACES[name]
    for file, over in beside.items():
        (tmp_path / file).write_bytes(signed(over, key))
    inside = [
        (member, signed(data, key) if member.endswith(".sig") else data)
        for member, data in members or [OK]
    ]
    listing = LEGACY_LISTING if manifest_name == LEGACY else LISTING
    path = write_bundle(tmp_path, inside, manifest_name, listing)
    done = host.apply(path, check=check_mode, trust=Trust(line(key)))
    assert done.signer == ME
    assert done.written == ["ok"]
    assert host.files() == ({} if check_mode else {"ok": b"fine"})


def test_a_manifest_beside_is_what_is_signed(tmp_path, host):
    key = make_key(tmp_path)
    (tmp_path / f"x.{MODERN}").write_bytes(LISTING)
    path = write_bundle(tmp_path, [OK, (MODERN + ".sig", signed(LISTING, key))], "")
    assert host.apply(path, trust=Trust(line(key))).signer == ME


def test_a_signed_manifest_beside_counts_before_an_old_one_inside(tmp_path, host):
    key = make_key(tmp_path)
    (tmp_path / f"x.{MODERN}").write_bytes(LISTING)
    (tmp_path / f"x.{MODERN}.sig").write_bytes(signed(LISTING, key))
    path = write_bundle(tmp_path, [OK, (LEGACY + ".sig", b"another")], LEGACY, LEGACY_LISTING)
    done = host.apply(path, trust=Trust(line(key)))
    assert (done.signer, done.algorithm) == (ME, "sha256")


def test_a_signature_may_come_another_way(tmp_path, host):
    key = make_key(tmp_path)
    (tmp_path / f"x.{MODERN}.sig").write_bytes(b"damaged")
    path = write_bundle(tmp_path, [OK])
    done = host.apply(path, trust=Trust(line(key), signed(LISTING, key)))
    assert done.signer == ME


def test_nobody_is_named_where_nobody_is_asked_for(tmp_path, host):
    (tmp_path / f"x.{MODERN}.sig").write_bytes(b"garbage")
    done = host.apply(write_bundle(tmp_path, [OK]))
    assert done.signer == ""
    assert host.files() == {"ok": b"fine"}


@pytest.mark.parametrize("order", ["--sort=name", "--sort=none"])
def test_the_simplest_script_makes_a_signed_bundle(tmp_path, host, order):
    key = make_key(tmp_path)
    project = tmp_path / "made"
    project.mkdir()
    script = (
        "echo 1 > a; mkdir sub; echo 2 > sub/b;"
        f" find . -type f | xargs sha256sum > ../{MODERN}; mv ../{MODERN} .;"
        f" ssh-keygen -Y sign -q -n {NAMESPACE} -f {key} {MODERN};"
        f" tar {order} -czf ../x.tar.gz ."
    )
    subprocess.run(["sh", "-ec", script], cwd=project, check=True)
    assert host.apply(tmp_path / "x.tar.gz", trust=Trust(line(key))).signer == ME
    assert host.files() == {"a": b"1\n", "sub/b": b"2\n"}


def cut(folder, members):
    """A bundle whose second half can't be read."""
    path = folder / "x.tar.gz"
    content = gzip.compress(tar_bytes([*members, ("noise", os.urandom(200_000))]), 0)
    path.write_bytes(content[: len(content) // 2])
    return path


def carried(path, signed):
    with open(path, "rb") as archive:
        return bundle_archive.manifest_of(archive, str(path), 10**9, signed)


def test_no_more_is_read_than_is_needed(tmp_path):
    path = cut(tmp_path, [(MODERN + ".sig", b"near")])
    assert carried(path, signed=True).signature == b"near"
    path = cut(tmp_path, [])
    assert carried(path, signed=False).signature is None
    with pytest.raises(RefusedError, match="ends before its gzip"):
        carried(path, signed=True)
    (tmp_path / f"x.{MODERN}.sig").write_bytes(b"beside")
    assert carried(path, signed=True).signature == b"beside"


def test_a_huge_signature_costs_no_memory(tmp_path):
    path = write_bundle(tmp_path, [OK, (MODERN + ".sig", bytes(60_000_000))])
    (tmp_path / f"y.{MODERN}.sig").write_bytes(bytes(60_000_000))
    (tmp_path / "y.tar.gz").write_bytes(sound())
    tracemalloc.start()
    try:
        inside = carried(path, signed=True).signature
        beside = carried(tmp_path / "y.tar.gz", signed=True).signature
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert len(inside) > signature.MAX_SIGNATURE
    assert len(beside) == signature.MAX_SIGNATURE + 1
