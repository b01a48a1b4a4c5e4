"""Turns a JSON object into a dataclass, and says which field is wrong when it can't."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from training.errors import JobError

T = TypeVar("T")


def build(cls: type[T], values: object, where: str) -> T:
    """Build the dataclass ``cls`` from the JSON object ``values``.

    Fields that are not given keep their defaults. An integer is taken where a float is declared;
    a boolean is never taken for a number.

    :param where: the name of the object in the job, for messages, such as ``settings``.
    :raises JobError: for a field that is unknown, missing or of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise JobError("ops", f"{where} is not a JSON object.", "Write it as {...}.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"Known are: {', '.join(fields)}."
            raise JobError("ops", f"{where}.{name} is not a setting.", hint)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING
        if required and field.default_factory is dataclasses.MISSING and name not in values:
            raise JobError("ops", f"{where}.{name} is missing.", "Give it in the job.")
    return cls(
        **{name: _checked(value, hints[name], f"{where}.{name}") for name, value in values.items()}
    )


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value as the type ``hint`` wants it."""
    allowed = typing.get_args(hint) if _is_union(hint) else (hint,)
    for kind in allowed:
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # more digits than a float can have
                return float(value)
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if kind in (bool, str) and isinstance(value, kind):
            return value
        is_list = typing.get_origin(kind) is list and isinstance(value, list)
        if is_list and all(isinstance(item, str) for item in value):
            return value
        if typing.get_origin(kind) is dict and isinstance(value, dict):
            return value
    wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
    raise JobError("ops", f"{where} is {value!r}, which is not {wanted}.", "Correct its type.")


def _is_union(hint: Any) -> bool:
    # `X | Y` has an origin of its own since Python 3.10, and Optional[X] another.
    return str(typing.get_origin(hint)) in (
        "<class 'types.UnionType'>",
        "typing.Union",
        "<class 'typing.Union'>",
    )
