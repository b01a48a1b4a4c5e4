"""Draws ``report.html``: one file, no script, nothing from outside."""

from __future__ import annotations

import base64
import functools
import hashlib
import os

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from remote_train import runs
from remote_train.atomic import write_text

from . import sections
from .read import Run, read_run
from .words import Words

_HERE = os.path.dirname(__file__)


def write_page(home: str, run: str, language: str) -> str:
    """Draw the page of a run from what is at home; its path.

    :param home: ``collect_dest``, with ``training_sync`` and ``adapter`` in it.
    :param language: ``en`` or ``zh``.
    :raises TrainError: where there is no such run.
    :raises OSError: where files can't be read or written.
    """
    found = read_run(home, run)
    path = os.path.join(found.folder, runs.PAGE)
    write_text(path, page_of(found, language))
    return path


def page_of(run: Run, language: str) -> str:
    """The page of a run."""
    words = Words(language)
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = _environment().get_template("page.html.j2")
    return template.render(
        t=words,
        page=sections.all_of(run, words),
        style=Markup(style),  # noqa: S704 # this project's own file
        style_digest=digest,
    )


@functools.cache
def _style() -> str:
    with open(os.path.join(_HERE, "page.css"), encoding="utf-8") as stream:
        return stream.read()


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
