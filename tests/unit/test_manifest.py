"""Manifests: read as sha256sum and its relatives write them, and refused where they must be."""

import hashlib
import os
import socket
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train import hashing, manifest, tree
from remote_train.errors import TrainError
from remote_train.file_names import IllegalNameError, clean, shown, to_bytes, to_name
from remote_train.manifest import LEGACY, MODERN, find_manifest, parse, verify, write_manifest
from remote_train.problems import MAX_REPORTED

A = hashlib.sha256(b"a").hexdigest()
A1 = hashlib.sha1(b"a", usedforsecurity=False).hexdigest()

NAMES = [
    b"plain.txt",
    b"with blank .txt ",
    b" leading blank",
    b"-dash",
    b"new\nline",
    b"car\rriage",
    b"ends in return\r",
    b"back\\slash",
    b"back\\nslash",
    b"quo'te\"s`$(x)",
    b"caf\xe9-latin1",
    "结论/推导.jsonl".encode(),
    b"deep/er/file",
    b"a) = b",
    b"*star",
    b"#hash",
    b"tab\t",
]


def fill(root, names=NAMES):
    for name in names:
        path = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(b"content of " + name)


def snapshot(folder):
    """Every name below, with its kind, mode and bytes."""
    seen = {}
    for at, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(at, name)
            status = os.lstat(path)
            content = None
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as stream:
                    content = stream.read()
            seen[path] = (status.st_mode, status.st_mtime_ns, content)
    return seen


def run(command, root, names=NAMES):
    return subprocess.run(
        [*command, "--", *names], cwd=root, check=True, capture_output=True
    ).stdout


WRITERS = {
    "sha256sum": (["sha256sum"], MODERN),
    "sha256sum --binary": (["sha256sum", "-b"], MODERN),
    "sha256sum --tag": (["sha256sum", "--tag"], MODERN),
    "sha256sum in a legacy file": (["sha256sum"], LEGACY),
    "sha1sum": (["sha1sum"], LEGACY),
    "sha1sum --tag": (["sha1sum", "--tag"], LEGACY),
    "shasum -a 256": (["shasum", "-a", "256"], MODERN),
    "shasum -a 256 -b": (["shasum", "-a", "256", "-b"], MODERN),
    "shasum -a 256 --tag": (["shasum", "-a", "256", "--tag"], MODERN),
    "shasum": (["shasum"], LEGACY),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_the_real_programs_write_is_read(tmp_path, writer):
    command, label = WRITERS[writer]
    names = NAMES
    if command[0] == "shasum":
        # It writes a return at a name's end as it is; sha256sum -c can't read that back either.
        names = [name for name in NAMES if not name.endswith(b"\r")]
    fill(tmp_path, names)
    (tmp_path / label).write_bytes(run(command, tmp_path, names))
    result = verify(str(tmp_path))
    assert result.problems == []
    assert result.verified == len(names)
    assert result.bytes == sum(len(b"content of " + name) for name in names)
    assert result.algorithm == ("sha1" if "sha1" in writer or writer == "shasum" else "sha256")
    assert result.legacy == (result.algorithm == "sha1")
    assert any("legacy" in warning for warning in result.warnings) == result.legacy


def test_our_manifest_is_what_sha256sum_writes(tmp_path):
    fill(tmp_path)
    ordered = sorted(NAMES)
    digests = {to_name(name): hashlib.sha256(b"content of " + name).hexdigest() for name in ordered}
    assert write_manifest(digests) == run(["sha256sum"], tmp_path, ordered)


@pytest.mark.parametrize("damage", ["none", "changed", "missing"])
def test_verdict_agrees_with_sha256sum(tmp_path, damage):
    fill(tmp_path)
    (tmp_path / MODERN).write_bytes(run(["sha256sum"], tmp_path))
    if damage == "changed":
        (tmp_path / "plain.txt").write_text("other")
    elif damage == "missing":
        (tmp_path / "plain.txt").unlink()
    theirs = subprocess.run(
        ["sha256sum", "--strict", "--quiet", "-c", MODERN],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    ours = verify(str(tmp_path))
    assert bool(ours.problems) == bool(theirs.returncode)
    if damage != "none":
        assert [problem.path for problem in ours.problems] == ["plain.txt"]


def test_crlf_bom_blank_lines_and_dot_slash_are_read_with_a_warning(tmp_path):
    fill(tmp_path, [b"a", b"b"])
    text = run(["sha256sum"], tmp_path, [b"./a", b"b"]).replace(b"\n", b"\r\n")
    (tmp_path / MODERN).write_bytes(b"\xef\xbb\xbf" + text + b"\r\n\n")
    result = verify(str(tmp_path))
    assert not result.problems
    assert result.verified == 2
    assert any("byte order mark" in warning for warning in result.warnings)
    assert any("CRLF" in warning for warning in result.warnings)


def test_upper_case_digests_and_a_missing_last_newline_are_read():
    assert dict(parse(f"{A.upper()}  a".encode()).items()) == {"a": A}


def line(name, digest=A):
    return digest.encode() + b"  " + name + b"\n"


GOOD = line(b"fine")
# rule -> (content, label, number of the line, part of the message)
PARSE_REFUSALS = {
    "malformed-line": (GOOD + b"garbage\n", MODERN, 2, "not a line"),
    "malformed-line: comment": (b"# x\n" + GOOD, MODERN, 1, "comments"),
    "malformed-line: one blank": (A.encode() + b" x\n", MODERN, 1, "one blank"),
    "malformed-line: no name": (A.encode() + b"  \n", MODERN, 1, "not a line"),
    "malformed-line: shasum -U": (A.encode() + b" Ux\n", MODERN, 1, "shasum"),
    "malformed-line: -z": (A.encode() + b" x\0" + GOOD, MODERN, 1, "NUL"),
    "bad-escape": (b"\\" + line(b"a\\x"), MODERN, 1, "escape"),
    "empty-manifest": (b"\n\n", MODERN, 1, "no file"),
    "absolute-path": (GOOD + line(b"/etc/passwd"), MODERN, 2, "absolute"),
    "parent-reference": (GOOD + line(b"a/../../x"), MODERN, 2, "'..'"),
    "nul": (GOOD + line(b"a\0b"), MODERN, 2, "NUL"),
    "folder-name": (GOOD + line(b"a/"), MODERN, 2, "folder"),
    "duplicate": (GOOD + line(b"./fine"), MODERN, 2, "already on line 1"),
    "case-collision": (GOOD + line(b"FINE"), MODERN, 2, "case only"),
    "unicode-collision": (
        line("é".encode()) + line("e\u0301".encode()),
        MODERN,
        2,
        "Unicode form only",
    ),
    "file-and-folder": (line(b"a") + line(b"a/b"), MODERN, 1, "as a file"),
    "digest-length": (GOOD + line(b"x", A[:63]), MODERN, 2, "63 hex digits"),
    "digest-length: md5 in txt": (line(b"x", A[:32]), LEGACY, 1, "32 hex digits"),
    "digest-length: sha1 in .sha256": (line(b"x", A1), MODERN, 1, "40 hex digits"),
    "digest-length: tag lies": (b"SHA1 (x) = " + A.encode() + b"\n", LEGACY, 1, "SHA-1"),
    "unknown-algorithm": (b"SHA512 (x) = " + A.encode() + b"\n", LEGACY, 1, "SHA512"),
    "mixed-algorithms": (GOOD + line(b"x", A1), LEGACY, 2, "began with SHA-256"),
    "line-too-long": (GOOD + line(b"x" * manifest.MAX_LINE) + line(b"y"), MODERN, 2, "longer"),
    "utf-16": (GOOD.decode().encode("utf-16"), MODERN, 1, "UTF-16"),
}


@pytest.mark.parametrize("rule", PARSE_REFUSALS)
def test_a_bad_line_is_refused_by_its_own_rule(tmp_path, rule):
    content, label, number, words = PARSE_REFUSALS[rule]
    root = tmp_path / "root"
    root.mkdir()
    (root / "fine").write_bytes(b"a")
    (root / label).write_bytes(content)
    before = snapshot(tmp_path)
    listed = parse(content, label)
    assert [(p.problem, p.line) for p in listed.problems.items] == [
        (rule.partition(":")[0], number)
    ]
    assert words in listed.problems.items[0].message
    assert listed.problems.items[0].message.startswith(f"line {number}: ")
    assert rule.partition(":")[0] in {problem.problem for problem in verify(str(root)).problems}
    assert snapshot(tmp_path) == before


def test_a_manifest_over_the_limit_of_lines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_LINES", 3)
    listed = parse(b"".join(line(b"f%d" % number) for number in range(4)))
    assert [(p.problem, p.line) for p in listed.problems.items] == [("too-many-lines", 4)]
    assert not listed.complete
    assert not parse(b"".join(line(b"f%d" % number) for number in range(3))).problems


def test_a_thousand_problems_are_reported_and_all_are_counted():
    listed = parse(b"garbage\n" * (MAX_REPORTED + 7))
    assert len(listed.problems.items) == MAX_REPORTED
    assert listed.problems.count == MAX_REPORTED + 7


def link_to_outside(root):
    os.unlink(root / "a")
    (root / "a").symlink_to(root.parent / "outside" / "a")


def link_within(root):
    (root / "a").rename(root / "b")
    (root / "a").symlink_to("b")


def folder_is_link(root):
    (root / "sub").rename(root.parent / "elsewhere")
    (root / "sub").symlink_to(root.parent / "elsewhere")


def unlisted_link(root):
    (root / "link").symlink_to("/etc")


def fifo(root):
    os.unlink(root / "a")
    os.mkfifo(root / "a")


def unix_socket(root):
    os.unlink(root / "a")
    here = os.getcwd()
    os.chdir(root)  # a socket's path may have 107 bytes at most
    try:
        socket.socket(socket.AF_UNIX).bind("a")
    finally:
        os.chdir(here)


def folder_for_file(root):
    os.unlink(root / "a")
    (root / "a").mkdir()


def file_for_folder(root):
    os.unlink(root / "sub" / "b")
    (root / "sub").rmdir()
    (root / "sub").write_text("file")


TREE_REFUSALS = {
    "digest-differs": (lambda root: (root / "a").write_text("x"), "a", 1),
    "digest-differs, one byte more": (lambda root: (root / "a").write_text("aa"), "a", 1),
    "missing": (lambda root: os.unlink(root / "a"), "a", 1),
    "unlisted": (lambda root: (root / "sub" / "new").write_text("x"), "sub/new", None),
    "symlink": (link_to_outside, "a", 1),
    "symlink, within": (link_within, "a", 1),
    "symlink, folder": (folder_is_link, "sub/b", 2),
    "symlink, unlisted": (unlisted_link, "link", None),
    "not-a-regular-file, fifo": (fifo, "a", 1),
    "not-a-regular-file, socket": (unix_socket, "a", 1),
    "not-a-regular-file, folder": (folder_for_file, "a", 1),
    "not-a-folder": (file_for_folder, "sub/b", 2),
}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("rule", TREE_REFUSALS)
def test_a_bad_tree_is_refused_by_its_own_rule(tmp_path, rule, workers):
    damage, path, number = TREE_REFUSALS[rule]
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for file in (root / "a", root / "sub" / "b", tmp_path / "outside" / "a"):
        file.write_bytes(b"a")
    (root / MODERN).write_bytes(line(b"a") + line(b"sub/b"))
    assert not verify(str(root)).problems
    damage(root)
    before = snapshot(tmp_path)
    result = verify(str(root), workers=workers)
    assert (rule.partition(",")[0], path, number) in [
        (problem.problem, problem.path, problem.line) for problem in result.problems
    ]
    assert all(problem.path in problem.message for problem in result.problems)
    assert snapshot(tmp_path) == before


def test_unlisted_files_may_be_allowed(tmp_path):
    fill(tmp_path, [b"a", b"other/b"])
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / MODERN).write_bytes(run(["sha256sum"], tmp_path, [b"a"]))
    assert {p.path for p in verify(str(tmp_path)).problems} == {"other/b", "link"}
    assert not verify(str(tmp_path), allow_unlisted=True).problems


def test_manifests_signatures_and_apple_doubles_are_never_unlisted(tmp_path):
    fill(tmp_path, [b"a", b"sub/._a", LEGACY.encode(), b"x.SYNC_MANIFEST.sha256"])
    fill(tmp_path, [MODERN.encode() + b".sig", b"my.list.sig", b"sub/other.sig"])
    (tmp_path / "my.list").write_bytes(run(["sha256sum"], tmp_path, [b"a"]))
    (tmp_path / MODERN).write_bytes(run(["sha256sum"], tmp_path, [b"a"]))
    result = verify(str(tmp_path), "my.list")
    assert [p.path for p in result.problems] == ["sub/other.sig"]
    assert any("AppleDouble" in warning for warning in result.warnings)
    assert {p.path for p in verify(str(tmp_path)).problems} == {
        "my.list",
        "my.list.sig",
        "sub/other.sig",
    }


def test_the_simplest_script_lists_the_manifest_itself_and_that_is_passed_over(tmp_path):
    fill(tmp_path, [b"a", b"sub/b"])
    script = f"touch {MODERN}; find . -type f | xargs sha256sum > {MODERN}"
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    result = verify(str(tmp_path))
    assert not result.problems
    assert result.verified == 2
    assert any("lists itself" in warning for warning in result.warnings)


def test_the_sha256_manifest_counts_before_the_legacy_one(tmp_path):
    with pytest.raises(TrainError, match="no manifest"):
        find_manifest(str(tmp_path))
    (tmp_path / LEGACY).touch()
    assert find_manifest(str(tmp_path)) == str(tmp_path / LEGACY)
    (tmp_path / MODERN).symlink_to("nowhere")  # broken, and still the one that counts
    assert find_manifest(str(tmp_path)) == str(tmp_path / MODERN)
    with pytest.raises(TrainError, match="symlink"):
        verify(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _root: None, "no manifest"),
        (lambda root: (root / MODERN).mkdir(), "not a regular file"),
        (lambda root: os.mkfifo(root / MODERN), "not a regular file"),
        (lambda root: root.rmdir(), "no folder"),
    ],
)
def test_a_manifest_or_root_that_cannot_be_read_is_one_sentence(tmp_path, make, words):
    root = tmp_path / "root"
    root.mkdir()
    make(root)
    with pytest.raises(TrainError, match=words) as error:
        verify(str(root))
    assert error.value.category == "integrity"


@given(
    st.binary(max_size=300)
    | st.lists(
        st.sampled_from(
            [
                A.encode(),
                A1.encode(),
                b"  ",
                b" *",
                b"\\",
                b"\n",
                b"\r\n",
                b"..",
                b"/",
                b"SHA256 (",
                b") = ",
                b"a",
                b"A",
                b"\0",
                b"\xff",
                b"\xef\xbb\xbf",
                b"\\n",
                b"._",
            ]
        )
    ).map(b"".join)
)
def test_any_bytes_give_a_result_or_a_clean_refusal(content):
    for label in (MODERN, LEGACY):
        listed = parse(content, label)
        assert listed.problems or listed.lines or listed.warnings or not content.strip()
        for problem in listed.problems.items:
            assert problem.message.isprintable()
            assert problem.path.isprintable()
        for name, digest in listed.items():
            parts = to_bytes(name).split(b"/")
            assert not {b"", b".", b".."} & set(parts)
            assert len(digest) in {40, 64}


def is_legal(raw):
    try:
        return to_bytes(clean(raw)) == raw and not raw.rpartition(b"/")[2].startswith(b"._")
    except IllegalNameError:
        return False


@given(st.binary(min_size=1, max_size=40).filter(is_legal))
def test_any_legal_name_survives_writing_and_reading(raw):
    name = to_name(raw)
    assert dict(parse(write_manifest({name: A})).items()) == {name: A}
    assert shown(name).isprintable()


@settings(max_examples=30)
@given(raw=st.binary(min_size=1, max_size=20).filter(is_legal))
def test_sha256sum_reads_back_whatever_we_write(tmp_path_factory, raw):
    root = tmp_path_factory.mktemp("legal")
    fill(root, [raw])
    digest = hashlib.sha256(b"content of " + raw).hexdigest()
    done = subprocess.run(
        ["sha256sum", "--strict", "--quiet", "-c", "-"],
        cwd=root,
        check=False,
        input=write_manifest({to_name(raw): digest}),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["/a", "../a", "a\0", "a/", "a//b", "./a"])
def test_no_manifest_is_written_that_would_be_refused(name):
    with pytest.raises(TrainError, match="name"):
        write_manifest({name: A})


@pytest.mark.parametrize(
    "size", [0, 1, hashing.SMALL - 1, hashing.SMALL, hashing.SMALL + 1, 2 * hashing.BLOCK + 5]
)
@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_digests_are_those_of_sha256sum(tmp_path, size, algorithm):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    expected = subprocess.run([f"{algorithm}sum", path], capture_output=True, check=True).stdout
    assert hashing.file_digest(str(path), algorithm) == expected.split()[0].decode()


def test_many_files_are_hashed_in_order(tmp_path):
    fill(tmp_path, [b"%d" % number for number in range(500)])
    paths = [str(tmp_path / str(number)) for number in range(500)]
    digests = hashing.digest_files(paths, workers=3)
    assert list(digests) == paths
    assert digests[paths[7]] == hashlib.sha256(b"content of 7").hexdigest()
    with pytest.raises(FileNotFoundError):
        hashing.digest_files([str(tmp_path / "none")])


def test_large_files_do_not_hold_up_their_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "LARGE", 20)
    names = [b"s%03d" % number for number in range(100)] + [b"long name %030d" % 1]
    fill(tmp_path, names)
    (tmp_path / MODERN).write_bytes(run(["sha256sum"], tmp_path, names))
    assert verify(str(tmp_path), workers=2).verified == len(names)


def test_a_deep_tree_is_a_problem_and_not_a_crash(tmp_path):
    fill(tmp_path, [b"a"])
    (tmp_path / MODERN).write_bytes(run(["sha256sum"], tmp_path, [b"a"]))
    here = os.open(tmp_path, os.O_RDONLY)
    for _level in range(tree.MAX_DEPTH + 5):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert [p.problem for p in verify(str(tmp_path)).problems] == ["unreadable"]
