"""Bundles that others made, by a few lines of shell and the programs that are everywhere."""

import hashlib
import os
import shutil
import subprocess

import pytest

from remote_train.bundle_archive import beside
from remote_train.errors import TrainError
from remote_train.file_names import to_bytes, to_name
from remote_train.manifest import LEGACY, MODERN
from remote_train.problems import RefusedError
from remote_train.signature import Trust
from tests.unit.bundle_host import Host, put

PLAIN = {"a": b"1", "sub/b": b"2" * 300, "sub/run.sh": b"#!/bin/sh\n"}
ODD = {
    **PLAIN,
    "with blank ": b"3",
    " leading": b"4",
    "-rf": b"5",
    "new\nline": b"6",
    "back\\slash": b"7",
    "back\\nslash": b"8",
    "quo'te\"s`$(x)": b"9",
    "*star": b"10",
    "结论/推导.jsonl": b"11",
    to_name(b"caf\xe9"): b"12",
    "a) = b": b"13",
    ".hidden": b"14",
    "#hash": b"15",
    "long/" + "n" * 180: b"16",
}

MANIFEST = f"-not -name {MODERN} -not -name {LEGACY}"
EACH = f"find . -type f {MANIFEST} -print0 | xargs -0"  # names with a leading ./
SORTED = f"find . -type f {MANIFEST} -print0 | sort -z | xargs -0"
BARE = f"find . -type f {MANIFEST} -printf '%P\\0' | xargs -0"  # names without one
TAR = "tar -czf ../x.tar.gz ."

# Each script runs in the folder, and its archive is ../x.tar.gz.
SIMPLE = {
    "as simple as can be": f"find . -type f | xargs sha256sum > {MODERN}; {TAR}",
    "sorted": f"find . -type f | sort | xargs sha256sum > {MODERN}; {TAR}",
    "all but itself": f"find . -type f {MANIFEST} -exec sha256sum {{}} + > {MODERN}; {TAR}",
    "by globs": f"sha256sum * */* 2>&- > {MODERN} || :; tar -czf ../x.tar.gz *",
    "from outside": f"sha256sum a sub/* > {MODERN}; cd ..; tar -czf x.tar.gz -C source .",
    "gzip by itself": f"sha256sum a sub/* > {MODERN}; tar -cf ../x.tar .; gzip -9 ../x.tar",
    "through a pipe": f"sha256sum a sub/* > {MODERN}; tar -cf - . | gzip -n > ../x.tar.gz",
    "attributes": f"sha256sum a sub/* > {MODERN}; tar --xattrs --acls --posix -czf ../x.tar.gz .",
    "as old tar does it": f"sha256sum a sub/* > {MODERN}; tar --format=oldgnu -czf ../x.tar.gz .",
    "git archive": (
        f"sha256sum a sub/* > {MODERN}; git init -q . && git add -A && "
        "git -c user.name=t -c user.email=t@example.org commit -qm x && "
        "git archive --format=tar.gz -o ../x.tar.gz HEAD; rm -rf .git"
    ),
    "Python": (
        f"sha256sum a sub/* > {MODERN}; "
        'python3 -c \'import shutil; shutil.make_archive("../x", "gztar", ".")\''
    ),
    "owned by others": (
        f"sha256sum a sub/* > {MODERN}; "
        "tar --owner=nobody:65534 --group=video:44 --mtime=2001-01-01 -czf ../x.tar.gz ."
    ),
    "the manifest last": f"sha256sum a sub/* > {MODERN}; tar -czf ../x.tar.gz a sub {MODERN}",
    "by openssl": f"openssl dgst -r -sha256 a sub/* > {MODERN}; {TAR}",
    "upper case": (
        f"sha256sum a sub/* | awk '{{ print toupper($1) \"  \" $2 }}' > {MODERN}; {TAR}"
    ),
}

# Programs that write a manifest, for any names; {} is where their lines go.
WRITERS = {
    "GNU, ./ names": (f"{EACH} sha256sum -- > {{}}", MODERN),
    "GNU, sorted": (f"{SORTED} sha256sum > {{}}", MODERN),
    "GNU, bare names": (f"{BARE} sha256sum -- > {{}}", MODERN),
    "GNU, binary": (f"{EACH} sha256sum -b > {{}}", MODERN),
    "GNU, tags": (f"{EACH} sha256sum --tag > {{}}", MODERN),
    "GNU, tags, bare names": (f"{BARE} sha256sum --tag -- > {{}}", MODERN),
    "GNU, SHA-1": (f"{EACH} sha1sum > {{}}", LEGACY),
    "GNU, SHA-1 tags": (f"{BARE} sha1sum --tag -- > {{}}", LEGACY),
    "GNU, SHA-256 in the legacy file": (f"{EACH} sha256sum > {{}}", LEGACY),
    "cksum": (f"{EACH} cksum -a sha256 > {{}}", MODERN),
    "cksum, untagged": (f"{EACH} cksum -a sha256 --untagged > {{}}", MODERN),
    "Perl": (f"{EACH} shasum -a 256 > {{}}", MODERN),
    "Perl, binary": (f"{BARE} shasum -a 256 -b -- > {{}}", MODERN),
    "Perl, tags": (f"{EACH} shasum -a 256 --tag > {{}}", MODERN),
    "Perl, SHA-1": (f"{EACH} shasum > {{}}", LEGACY),
    "Perl, SHA-256 in the legacy file": (f"{BARE} shasum -a 256 -- > {{}}", LEGACY),
}

TARS = {
    "gnu": TAR,
    "pax": "tar --format=pax -czf ../x.tar.gz .",
    "bare names": "tar -czf ../x.tar.gz --no-unquote -- * .[!.]*",
}

# What an editor or a copy by way of Windows makes of a manifest; {} is its name.
ENDS = {
    "CRLF": (r"sed -i 's/$/\r/' {}", {"CRLF"}),
    "BOM": (r"sed -i '1s/^/\xef\xbb\xbf/' {}", {"byte order mark"}),
    "both": (r"sed -i '1s/^/\xef\xbb\xbf/; s/$/\r/' {}", {"CRLF", "byte order mark"}),
    "CRLF and blank lines": (r"printf '\n\n' >> {}; sed -i 's/$/\r/' {}", {"CRLF"}),
    "no last newline": (r"truncate -s -1 {}", set()),
}


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def shell(script, folder):
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "GIT_CONFIG_GLOBAL": "/dev/null"}
    environment = {k: v for k, v in environment.items() if k not in {"GIT_DIR", "GIT_WORK_TREE"}}
    subprocess.run(["bash", "-ec", script], cwd=folder, env=environment, check=True)


def lay(tmp_path, files):
    source = tmp_path / "source"
    put(source, files)
    (source / "sub/run.sh").chmod(0o755)
    return source


def applied(tmp_path, host, files, archive="x.tar.gz"):
    """Apply it: the files are there, the digests recorded are right, a second time is no change."""
    done = host.apply(tmp_path / archive)
    assert host.files() == files
    assert os.access(host.root / "sub/run.sh", os.X_OK)
    assert not (host.root / "a").stat().st_mode & 0o111
    check = ["sha256sum", "--strict", "--quiet", "-c", host.state / MODERN]
    subprocess.run(check, cwd=host.root, check=True)
    assert not host.apply(tmp_path / archive).changed
    return done


@pytest.mark.parametrize("script", SIMPLE)
def test_the_simplest_scripts(tmp_path, host, script):
    shell(SIMPLE[script], lay(tmp_path, PLAIN))
    applied(tmp_path, host, PLAIN)


@pytest.mark.parametrize("archive", ["source", "./source", "$PWD/source", "._source source"])
def test_a_folder_packed_from_outside_by_its_name(tmp_path, host, archive):
    """``tar -czf x.tar.gz folder``: each member lies in that folder, the manifest too."""
    script = f"sha256sum a sub/* > {MODERN}; cd ..; touch ._source; tar -czf x.tar.gz {archive}"
    shell(script, lay(tmp_path, PLAIN))
    assert "which is left out of the files' names" in " ".join(
        applied(tmp_path, host, PLAIN).warnings
    )


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 1 > ../other; cd ..; tar -czf x.tar.gz source other", "it holds no manifest"),
        ("mkdir ../b; cp * ../b 2>&- || :; cd ..; tar -czf x.tar.gz source b", "holds no manifest"),
        ("echo 1 > more; cd ..; tar -czf x.tar.gz source", "more is in it and not listed"),
        ("ln -s a more; cd ..; tar -czf x.tar.gz source", "more is a symlink"),
        ("cd ..; tar -czf x.tar.gz source source/a --hard-dereference", "a is in it twice"),
        (
            "cd ..; tar -Pczf x.tar.gz --transform 's,e/a$,e/../a,' source",
            "leads out of its folder",
        ),
    ],
)
def test_what_is_refused_in_such_a_folder(tmp_path, host, script, words):
    shell(f"sha256sum a sub/* > {MODERN}; {script}", lay(tmp_path, PLAIN))
    with pytest.raises(RefusedError, match=words):
        host.apply(tmp_path / "x.tar.gz")
    assert host.files() == {}


@pytest.mark.parametrize("tar", TARS)
@pytest.mark.parametrize("writer", WRITERS)
def test_any_names_by_any_program(tmp_path, host, writer, tar):
    script, label = WRITERS[writer]
    source = lay(tmp_path, ODD)
    shell(f"{script.format('../list')}; mv ../list {label}; {TARS[tar]}", source)
    done = applied(tmp_path, host, ODD)
    assert done.legacy == ("SHA-1" in writer)
    assert done.algorithm == ("sha1" if done.legacy else "sha256")


def test_those_names_are_such_that_matter(tmp_path):
    """Some are escaped by the programs, and some no text file could hold otherwise."""
    source = lay(tmp_path, ODD)
    lines = subprocess.run(
        ["sh", "-c", f"{EACH} sha256sum"], cwd=source, check=True, capture_output=True
    ).stdout.splitlines()
    assert len(lines) == len(ODD)
    assert sum(line.startswith(b"\\") for line in lines) == 3
    assert any(b"\xe9" in to_bytes(name) for name in ODD)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("writer", ["GNU, ./ names", "GNU, tags", "Perl", "GNU, SHA-1"])
def test_line_ends_and_marks_of_other_systems(tmp_path, host, writer, end):
    script, label = WRITERS[writer]
    edit, warned = ENDS[end]
    source = lay(tmp_path, ODD)
    shell(
        f"{script.format('../list')}; mv ../list {label}; {edit.format(label, label)}; {TAR}",
        source,
    )
    done = applied(tmp_path, host, ODD)
    said = " ".join(done.warnings)
    for words in ("CRLF", "byte order mark"):
        assert (words in said) == (words in warned)


@pytest.mark.parametrize(
    "order",
    [f"{MODERN} {LEGACY} a sub", f"{LEGACY} {MODERN} a sub", f"{LEGACY} a sub {MODERN}", "."],
)
@pytest.mark.parametrize(
    "legacy",
    [f"sha1sum a sub/* > {LEGACY}", f"echo nonsense > {LEGACY}", f"sha256sum a > {LEGACY}"],
)
def test_of_two_manifests_the_sha256_one_counts(tmp_path, host, order, legacy):
    script = f"{legacy}; sha256sum a sub/* > {MODERN}; tar -czf ../x.tar.gz {order}"
    shell(script, lay(tmp_path, PLAIN))
    assert applied(tmp_path, host, PLAIN).algorithm == "sha256"


def test_a_broken_sha256_manifest_does_not_make_way_for_the_legacy_one(tmp_path, host):
    script = f"sha1sum a sub/* > {LEGACY}; echo nonsense > {MODERN}; {TAR}"
    shell(script, lay(tmp_path, PLAIN))
    with pytest.raises(RefusedError, match="not a line that sha256sum writes"):
        host.apply(tmp_path / "x.tar.gz")
    assert host.files() == {}


IN, OUT = "mv list {}", "mv list ../x.{}"
BOTH = "cp list ../x.{}; mv list {}"
SHA_256, SHA_1 = "sha256sum a sub/* > list", "sha1sum a sub/* > list"
OTHER = "sha256sum a > list"

# Where manifests lie, and the one that counts: a SHA-256 one wherever it is, else the legacy one.
PLACES = {
    "SHA-256 beside it": ([(SHA_256, OUT, MODERN)], "sha256"),
    "legacy beside it": ([(SHA_1, OUT, LEGACY)], "sha1"),
    "legacy in both": ([(SHA_1, BOTH, LEGACY)], "sha1"),
    "SHA-256 in both": ([(SHA_256, BOTH, MODERN)], "sha256"),
    "SHA-256 beside, legacy in it": ([(SHA_256, OUT, MODERN), (SHA_1, IN, LEGACY)], "sha256"),
    "SHA-256 beside, another in it": ([(SHA_256, OUT, MODERN), (OTHER, IN, LEGACY)], "sha256"),
    "SHA-256 in it, legacy beside": ([(SHA_256, IN, MODERN), (OTHER, OUT, LEGACY)], "sha256"),
    "both beside": ([(SHA_256, OUT, MODERN), (OTHER, OUT, LEGACY)], "sha256"),
}


def packed_with(tmp_path, manifests):
    made = "; ".join(f"{write}; {place.replace('{}', name)}" for write, place, name in manifests)
    shell(f"{made}; {TAR}", lay(tmp_path, PLAIN))


@pytest.mark.parametrize(("manifests", "algorithm"), PLACES.values(), ids=PLACES)
def test_a_sha256_manifest_counts_wherever_it_is(tmp_path, host, manifests, algorithm):
    packed_with(tmp_path, manifests)
    assert applied(tmp_path, host, PLAIN).algorithm == algorithm


@pytest.mark.parametrize("name", [MODERN, LEGACY])
def test_two_manifests_of_one_kind_have_to_be_the_same(tmp_path, host, name):
    packed_with(tmp_path, [(SHA_256, IN, name), (OTHER, OUT, name)])
    with pytest.raises(RefusedError, match=f"x.{name} beside it is another manifest than"):
        host.apply(tmp_path / "x.tar.gz")
    assert host.files() == {}


def test_a_legacy_manifest_beside_a_folder_with_a_sha256_one(tmp_path, host):
    script = f"sha256sum a sub/* > {MODERN}; cp {MODERN} ../x.{LEGACY}; cd ..; tar -czf x.tar.gz"
    shell(f"{script} source", lay(tmp_path, PLAIN))
    assert "left out" in " ".join(applied(tmp_path, host, PLAIN).warnings)


def test_all_manifests_and_signatures_travel_along(tmp_path):
    assert {os.path.basename(path) for path in beside(str(tmp_path / "x.tar.gz"))} == {
        f"x.{MODERN}",
        f"x.{MODERN}.sig",
        f"x.{LEGACY}",
        f"x.{LEGACY}.sig",
    }


ODD_KINDS = {
    "a folder": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
    "a link to a FIFO": lambda path: (os.mkfifo(f"{path}.f"), path.symlink_to(f"{path}.f")),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a loop": lambda path: path.symlink_to(path),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", ODD_KINDS.values(), ids=ODD_KINDS)
@pytest.mark.parametrize("end", ["tar.gz.sha256", MODERN, LEGACY, f"{MODERN}.sig"])
def test_what_lies_beside_it_and_is_no_file(tmp_path, host, end, make):
    """One error, at once, and never taken for none."""
    packed_with(tmp_path, [(SHA_256, IN, MODERN)])
    make(tmp_path / f"x.{end}")
    with pytest.raises(TrainError, match=f"x.{end} (is not a regular file|can't be read)"):
        host.apply(tmp_path / "x.tar.gz", trust=Trust("me@example.com ssh-ed25519 AAAA"))
    assert host.files() == {}


def test_a_link_to_a_digest_is_read(tmp_path, host):
    packed_with(tmp_path, [(SHA_256, IN, MODERN)])
    shell("sha256sum x.tar.gz > elsewhere; ln -s elsewhere x.tar.gz.sha256", tmp_path)
    assert applied(tmp_path, host, PLAIN).warnings == []


BESIDE = {
    "another name": "mv x.tar.gz y; sha256sum y > x.tar.gz.sha256; mv y x.tar.gz",
    "a path": "sha256sum $PWD/x.tar.gz > x.tar.gz.sha256",
    "binary": "sha256sum -b x.tar.gz > x.tar.gz.sha256",
    "tag": "sha256sum --tag x.tar.gz > x.tar.gz.sha256",
    "escaped name": r"cp x.tar.gz 'b\s'; sha256sum 'b\s' > x.tar.gz.sha256",
    "Perl": "shasum -a 256 x.tar.gz > x.tar.gz.sha256",
    "openssl": "openssl dgst -r -sha256 x.tar.gz > x.tar.gz.sha256",
    "the digest alone": "sha256sum x.tar.gz | cut -d' ' -f1 > x.tar.gz.sha256",
    "no newline": "sha256sum < x.tar.gz | cut -c1-64 | tr -d '\\n' > x.tar.gz.sha256",
    "standard input": "sha256sum < x.tar.gz > x.tar.gz.sha256",
    "CRLF": "sha256sum x.tar.gz | sed 's/$/\\r/' > x.tar.gz.sha256",
    "upper case": "sha256sum x.tar.gz | tr a-f A-F > x.tar.gz.sha256",
}


@pytest.mark.parametrize("form", BESIDE)
def test_the_digest_beside_it_in_any_form(tmp_path, host, form):
    shell(f"sha256sum a sub/* > {MODERN}; {TAR}", lay(tmp_path, PLAIN))
    shell(BESIDE[form], tmp_path)
    assert applied(tmp_path, host, PLAIN).warnings == []
    (tmp_path / "x.tar.gz.sha256").write_text(f"{hashlib.sha256(b'').hexdigest()}  x.tar.gz\n")
    with pytest.raises(RefusedError, match="its SHA-256 is"):
        host.apply(tmp_path / "x.tar.gz")


def test_the_other_suffix(tmp_path, host):
    shell(f"sha256sum a sub/* > ../x.{MODERN}; tar -czf ../x.tgz .", lay(tmp_path, PLAIN))
    assert "x.tgz.sha256 beside it" in applied(tmp_path, host, PLAIN, "x.tgz").warnings[0]


def test_a_bundle_that_was_unpacked_and_packed_again(tmp_path, host):
    """By the program that everybody has, with what it makes of owners, times and folders."""
    shell(f"{SORTED} sha256sum > ../list; mv ../list {MODERN}; {TAR}", lay(tmp_path, ODD))
    again = tmp_path / "again"
    again.mkdir()
    shell(f"tar -xzf ../x.tar.gz; sha256sum --quiet --strict -c {MODERN}; {TAR}", again)
    applied(tmp_path, host, ODD)
    shutil.rmtree(again)
