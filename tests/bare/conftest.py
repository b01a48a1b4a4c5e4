"""Bare machines; where one can't be made, its tests are skipped with the reason."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bare.bare_host import BareHost, MissingError, bare_host
from tests.integration.sites import Playbooks


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareHost]:
    """A bare machine that has never been provisioned."""
    context = bare_host(tmp_path_factory.mktemp("bare"))
    try:
        host = context.__enter__()
    except MissingError as error:
        pytest.skip(f"no bare machine: {error}")
    try:
        yield host
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def playbooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playbooks]:
    """Runs playbooks, with an Ansible home of the tests' own."""
    # A socket's path may have some hundred characters, and pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="rt-") as control:
        yield Playbooks(tmp_path_factory.mktemp("ansible_home"), Path(control))
