"""The gate's checks of what the training reads: its packages and its data files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .gate_model import (
    DATA,
    FAIL,
    OK,
    PACKAGES,
    SKIPPED,
    UNKNOWN,
    WARN,
    Check,
    Context,
    Verdict,
    any_of,
    quantity,
)
from .pythons import satisfies

#: Bytes of text for a token, on the high side: English has about 4.5, Chinese about 3.
TYPICAL_BYTES = 4.5


def packages(context: Context) -> Verdict:
    """Whether the training's Python has the packages it needs, in versions that fit.

    Unknown while no such Python is known, and provisioning will make one; what it would refuse is
    refused here, in its own words.
    """
    wanted = [f"{name}{bounds}" for name, bounds in context.requirements.items()]
    expected = any_of(wanted, most=6)
    if not context.requirements:
        return Verdict(SKIPPED, "no package is asked for")
    if context.packages is None and context.bare.get("msg"):
        return Verdict(FAIL, str(context.bare["msg"]), expected, str(context.bare["hint"]))
    if context.packages is None:
        return Verdict(UNKNOWN, "no Python for the training yet: provisioning sees to it", expected)
    bad, good = [], []
    for name, bounds in context.requirements.items():
        found = context.packages.get(name)
        if found is None:
            bad.append(f"{name} is missing")
        elif not satisfies(found, bounds):
            bad.append(f"{name} is {found}, not {bounds}")
        else:
            good.append(f"{name} {found}")
    if bad:
        action = "Let provisioning install them (--tags provision), or install them by hand."
        return Verdict(FAIL, any_of(bad, most=6), expected, action)
    return Verdict(OK, any_of(good, most=6), expected)


def _sentence(problem: Mapping[str, Any]) -> str:
    line = f", line {problem['line']}" if problem["line"] else ""
    return f"{problem['file']}{line}: {problem['reason']}."


def _some(sentences: list[str], count: int) -> str:
    """The first three sentences, and how many more there are."""
    seen = " ".join(sentences[:3])
    return f"{seen} And {count - 3} more." if count > 3 else seen


def data_files(context: Context) -> Verdict:
    """Whether every data file is there and holds something, every line a chat, every id once."""
    expected = "every line a chat, every id once"
    files = context.data.files
    bad = [file for file in files if file["problem_count"]]
    if bad:
        sentences = [_sentence(problem) for file in bad for problem in file["problems"]]
        seen = _some(sentences, sum(file["problem_count"] for file in bad))
        return Verdict(FAIL, seen, expected, "Put the file there, or correct the named lines.")
    if context.data.unfinished:
        return Verdict(UNKNOWN, context.data.unfinished, expected)
    if not files:
        return Verdict(SKIPPED, "no data file is known here")
    chats = quantity(sum(file["chats"] for file in files), "chat")
    places = sorted({file["where"] for file in files})
    seen = f"{chats} in {quantity(len(files), 'file')}, on the {any_of(places)}"
    return Verdict(OK, seen, expected)


def data_leak(context: Context) -> Verdict:
    """Whether a benchmark asks what the training data answers: its score would mean nothing."""
    expected = "no benchmark's question in the training data"
    if context.data.leaks:
        sentences = [str(problem) for problem in context.data.leaks]
        seen = _some(sentences, len(sentences))
        return Verdict(FAIL, seen, expected, "Take those chats out of one of the two files.")
    if context.data.unfinished:
        return Verdict(UNKNOWN, context.data.unfinished, expected)
    if not context.data.files:
        return Verdict(SKIPPED, "no data file is known here")
    bad = [str(file["file"]) for file in context.data.files if file["problem_count"]]
    if bad:
        has = "has" if len(bad) == 1 else "have"
        return Verdict(UNKNOWN, f"{any_of(bad)} {has} problems, see data_files", expected)
    apart = _apart(context)
    if apart:
        return Verdict(UNKNOWN, apart, expected)
    return Verdict(OK, "none", expected)


def _apart(context: Context) -> str:
    """Which benchmark was not compared with which data, since they lie on different machines."""
    where = {file["file"]: file["where"] for file in context.data.files}
    for stage in context.stages:
        for train in stage.get("train") or ():
            for item in stage.get("evaluate") or ():
                if where.get(train, "") != where.get(item, ""):
                    return (
                        f"{item} (on the {where.get(item, 'host')}) was not compared with "
                        f"{train} (on the {where.get(train, 'host')})"
                    )
    return ""


def data_length(context: Context) -> Verdict:
    """Whether the longest chat is likely to fit into max_length.

    Before there is a tokenizer, the bytes of its text are all there is to go by: no number of them
    is too many for a token. The active gate counts the tokens.
    """
    lengths = {
        stage["name"]: stage["settings"]["max_length"]
        for stage in context.stages
        if not stage["command"]
    }
    found: list[tuple[float, str, str]] = []
    for file in context.data.files:
        wanted = [lengths[name] for name in file["stages"] if name in lengths]
        if not file.get("longest") or not wanted:
            continue
        length, size = min(wanted), file["longest"]
        place = f"{file['file']}, line {file['longest_line']}: {size} bytes of text"
        if size / TYPICAL_BYTES > length:
            result, words = WARN, f"likely over {length} tokens"
        else:
            likely = "likely " if size > length else ""
            result, words = OK, f"{likely}within {length} tokens"
        found.append((size / length, result, f"{place}, {words}"))
    expected = f"at most {TYPICAL_BYTES:g} bytes of text for each token of max_length"
    # The longest first: what is worst there is worst of all.
    for _ratio, result, text in sorted(found, reverse=True)[:1]:
        others = sum(1 for _r, other, _t in found if other == result) - 1
        seen = f"{text} (and {others} more)" if others and result != OK else text
        action = "Raise max_length, or shorten the chat: what is over is cut off."
        return Verdict(result, seen, expected, action if result != OK else "")
    if context.data.unfinished:
        return Verdict(UNKNOWN, context.data.unfinished, expected)
    return Verdict(SKIPPED, "no chat of a training is known here")


DATA_CHECKS = (
    Check(DATA, data_files, "a file is missing or empty, a line is no chat, an id comes twice"),
    Check(DATA, data_leak, "a benchmark's item stands in the training data"),
    Check(
        DATA,
        data_length,
        "",
        f"it has over {TYPICAL_BYTES:g} bytes for each token",
    ),
)
"""Those of the data files: the same on the controller and on the host."""

CHECKS = (
    Check(
        PACKAGES,
        packages,
        "one is missing or of the wrong version; provisioning would refuse to make a Python",
    ),
    *DATA_CHECKS,
)
