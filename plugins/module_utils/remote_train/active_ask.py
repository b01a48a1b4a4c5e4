"""Ask a training's own Python, in children that can be killed.

The questions run in two children at once, since a GPU that hangs must not keep the tokenizer from
being looked at. Each has the same time; one that hasn't ended by then is killed, and the part that
it was in is named.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from .processes import signal_name
from .programs import HANGS, UNUSABLE, Ended, ask_all

REACHED = {
    "torch": ("torch", "cpu_products", "cuda", "gpu_products", "bandwidth"),
    "model": ("transformers", "config:", "tokenizer:", "lengths:"),
}
"""The parts of each child, in their order."""


def ask(
    python: str, program: str, requests: Mapping[str, Mapping[str, Any]], seconds: float
) -> dict[str, dict[str, Any]]:
    """Run the program once for each request, all at once; what they said.

    :param program: the text of :mod:`gate_torch`.
    :param seconds: after which a child that hasn't ended is killed.
    :returns: ``found``, ``hung`` and ``died``, each by part.
    """
    folder = tempfile.mkdtemp(prefix="remote-train-")
    try:
        path = os.path.join(folder, "gate_torch.py")
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(program)
        ended = ask_all(
            {kind: [python, path, kind] for kind in requests},
            seconds,
            {kind: json.dumps(dict(request)) for kind, request in requests.items()},
            folder,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    answer: dict[str, dict[str, Any]] = {"found": {}, "hung": {}, "died": {}}
    for kind, one in ended.items():
        _tell(answer, kind, one, seconds)
    return answer


def _tell(answer: dict[str, dict[str, Any]], kind: str, ended: Ended, seconds: float) -> None:
    """Add to the answer what one child said in JSON lines, and how it ended."""
    begun = ""
    for line in ended.text.splitlines():
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and "begin" in told:
                begun = str(told["begin"])
            elif isinstance(told, dict) and "part" in told:
                answer["found"][told["part"]] = told["facts"]
                begun = ""
    well = ended.state not in (HANGS, UNUSABLE) and not ended.status
    begun = begun or ("" if well else REACHED[kind][0])
    if ended.state == HANGS:
        answer["hung"][begun or REACHED[kind][-1]] = f"{seconds:.0f} s"
    elif not well and begun not in answer["found"]:
        answer["died"][begun] = _ending(ended)


def _ending(ended: Ended) -> str:
    if ended.state == UNUSABLE:
        return f"can't be started: {ended.reason}"
    if ended.status < 0:
        return f"was killed by {signal_name(-ended.status)}"
    lines = ended.complaints.splitlines()
    return f"ended with status {ended.status}: {lines[-1] if lines else 'no word'}"
