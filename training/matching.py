"""Finds things in answers: key points, headings, refusals, citations, tool calls.

Standard library only. All of it compares folded text: NFKC (which makes full-width and half-width
forms equal), case-folded, white space of any kind and amount alike.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

REFUSALS = (
    # 中文
    r"(?:不能|无法|不会|不应|不可以|没有办法|没办法)(?:直接)?(?:替|代替|为|帮|给)(?:你|您|同学)",
    r"(?:不能|无法|不会|不便|不宜|难以)(?:直接)?(?:回答|提供|给出|完成|确定|判断|编造|代写|代做|作答|计算|求出|得出|核实|生成|协助|满足)",
    r"不(?:予|提供)(?:回答|答案|代写)",
    r"(?:信息|条件|资料|数据|材料|题设|已知量|证据)(?:还|仍|尚)?(?:不足|不够|不完整|不充分|缺失)",
    r"(?:缺少|缺乏|没有给出|未给出|没有提供|未提供)[^。\n]{0,20}(?:条件|信息|数据|资料|来源|文献|原文|材料)",
    r"超出[^。\n]{0,20}范围",
    r"(?:抱歉|对不起|很遗憾)",
    r"我(?:拒绝|不能|无法|没法)",
    # English
    r"\b(?:i|we) (?:can ?not|can't|won't|will not|am unable to|am not able to|must decline)\b",
    r"\bi'm (?:unable|not able|sorry)\b",
    r"\b(?:insufficient|not enough|missing) (?:information|data|context)\b",
    r"\b(?:beyond|outside|out of) (?:the |my |this )?(?:[a-z]+ )?scope\b",
)
"""What a refusal says, as regular expressions over folded text."""

_REFUSAL = re.compile("|".join(REFUSALS))
_REFUSAL_WITHIN = 200
"""A refusal says so early: within this many characters of the folded answer."""

_HEADING = re.compile(r"^ {0,3}###[ \t]+(\S.*?)(?:[ \t]+#+)?[ \t]*$", re.MULTILINE)
_THINKING = re.compile(r"^\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_TOOL_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_CITATION = re.compile(r"\[\d{1,3}(?:\s*[-,]\s*\d{1,3})*\]")


def fold(text: str) -> str:
    """The form in which texts are compared."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("’", "'").split())


def without_reasoning(answer: str) -> str:
    """The answer without a ``<think>`` block in front; one that isn't closed leaves nothing."""
    return _THINKING.sub("", answer)


def mentions(answer: str, phrase: str) -> bool:
    """Whether the answer contains the phrase, white space and width aside.

    A phrase that begins with a Latin letter or digit must not go on before it, one that ends with
    a digit must not go on behind it: 9.8 is not in 19.8 or 9.81, *charge* not in *discharge*, but
    in *charges*.
    """
    bare = fold(phrase).replace(" ", "")
    if not bare:
        return False
    pattern = r"\s*".join(re.escape(character) for character in bare)
    if re.match(r"[0-9a-z]", bare):
        pattern = (r"(?<![0-9a-z])(?<!\d\.)" if bare[0].isdigit() else r"(?<![0-9a-z])") + pattern
    if bare[-1].isdigit():
        pattern += r"(?!\.?\d)"
    return re.search(pattern, fold(answer)) is not None


def headings(text: str) -> list[str]:
    """The ``###`` headings of a text, folded, in order."""
    return [fold(found).replace(" ", "") for found in _HEADING.findall(text)]


def refuses(answer: str) -> bool:
    """Whether the answer says that it doesn't do what was asked."""
    return _REFUSAL.search(fold(answer)[:_REFUSAL_WITHIN]) is not None


def numbered_citations(text: str) -> set[str]:
    """Citations such as ``[3]`` or ``[1, 2]``."""
    return {found.replace(" ", "") for found in _CITATION.findall(fold(text))}


def tool_calls(answer: str) -> list[tuple[str, Any]]:
    """Names and arguments of the tool calls in an answer; what can't be read has the name "".

    Read are ``<tool_call>{...}</tool_call>`` and an answer that is one JSON object or a list.
    """
    blocks = _TOOL_CALL.findall(answer)
    if not blocks and answer.strip()[:1] in ("{", "["):
        blocks = [answer]
    calls: list[tuple[str, Any]] = []
    for block in blocks:
        try:
            value = json.loads(block)
        except ValueError:
            calls.append(("", None))
            continue
        calls.extend(as_call(item) for item in (value if isinstance(value, list) else [value]))
    return calls


def as_call(value: object) -> tuple[str, Any]:
    """Name and arguments of one call, in any of the usual forms."""
    call = value.get("function", value) if isinstance(value, dict) else None
    if isinstance(call, str) and isinstance(value, dict):  # {"function": "name", "arguments": {}}
        call = {**value, "name": call}
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ("", None)
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            return (call["name"], arguments)
    return (call["name"], _folded(arguments))


def _folded(value: Any) -> Any:
    if isinstance(value, str):
        return fold(value)
    if isinstance(value, dict):
        return {key: _folded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_folded(item) for item in value]
    return value
