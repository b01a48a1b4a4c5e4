"""Any trees, one applied over the other, killed at any step, and back to any of them again."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from remote_train import durable
from remote_train.manifest import parse, write_manifest
from remote_train.recovery import recover
from tests.unit.bundle_host import Host, make, put, snapshot
from tests.unit.killing import killed_at

# Few names, so that trees meet: as files, as folders, as what lies in them.
NAMES = ["a", "a/b", "a/b/c", "a/d", "e", "e/f", "g h\n", "i/j/k"]
CONTENTS = [b"", b"1", b"22", b"x" * 70_000]


def fits(files):
    """Whether no file is also a folder."""
    return not parse(write_manifest(dict.fromkeys(files, "0" * 64))).problems


TREES = st.dictionaries(
    st.sampled_from(NAMES), st.tuples(st.sampled_from(CONTENTS), st.booleans()), min_size=1
).filter(fits)


def everything(host):
    """Folders, files, modes and bytes, but for the state."""
    state = os.fsencode(host.state)
    return {
        path: value[:2]
        for path, value in snapshot(host.folder).items()
        if path != state and not path.startswith(state + b"/")
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    users=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(CONTENTS)).filter(
        lambda files: not files or fits(files)
    ),
    trees=st.lists(TREES, min_size=2, max_size=4),
    kills=st.lists(st.integers(1, 90), min_size=8, max_size=8),
    plan_first=st.booleans(),
    data=st.data(),
)
def test_any_trees_in_a_row_and_back(users, trees, kills, plan_first, data):
    folder = Path(tempfile.mkdtemp(prefix="remote-train-"))
    saved = os.fsync, durable._whole
    os.fsync, durable._whole = lambda _descriptor: None, lambda _folder: True
    try:
        in_a_row_and_back(folder, users, trees, kills, plan_first, data)
    finally:
        os.fsync, durable._whole = saved
        shutil.rmtree(folder)


def in_a_row_and_back(folder, users, trees, kills, plan_first, data):
    host = Host(folder)
    (host.root / "outputs").mkdir()
    bundles = [
        make(folder, {n: c for n, (c, _x) in tree.items()}, f"t{number}", runs_of(tree)).paths[0]
        for number, tree in enumerate(trees)
    ]
    # The user's own files, as far as the first bundle doesn't have to refuse them.
    first = {name.split("/")[0] for name in trees[0]}
    put(
        host.root, {n: c for n, c in users.items() if n in trees[0] or n.split("/")[0] not in first}
    )
    for name in users:
        if (host.root / name).is_file():
            (host.root / name).chmod(0o640)
    states = {0: everything(host)}
    kills = iter(kills)
    for bundle in bundles:
        before = everything(host)
        if blocked(host, bundle):
            event("refused")
            break
        killed = killed_at(next(kills), "apply", bundle, host.root, host.state)
        if killed and plan_first:
            recovered = recover(str(host.root), str(host.state))
            assert not recovered or recovered.finished
        between = everything(host)
        done = host.apply(bundle)
        states[done.version] = everything(host)
        if not killed or plan_first:
            assert between in (before, states[done.version])
        event("killed" if killed else "not killed")
    present = max(states)
    number = data.draw(st.sampled_from(sorted(states)))
    if killed_at(next(kills), "rollback", host.root, host.state, number, 0, 20):
        event("rollback killed")
        recover(str(host.root), str(host.state))
        assert everything(host) in (states[present], states[number])
    more = data.draw(st.lists(st.sampled_from(sorted(states)), max_size=3))
    for another in [number, *more]:
        host.rollback(another, keep=20)
        assert everything(host) == states[another]


def runs_of(tree):
    return [name for name, (_content, executable) in tree.items() if executable]


def blocked(host, bundle):
    """Whether files of the user's stand where the bundle needs a folder, or the reverse."""
    try:
        host.apply(bundle, check=True)
    except Exception:
        return True
    return False
