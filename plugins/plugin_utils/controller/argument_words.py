"""Ansible's words for a wrong setting, said with the setting's name first."""

from __future__ import annotations

import re

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping of names",
}
_ARGUMENT_ERRORS = (
    (r"value of (\S+) must be one of: (.*), got: (.*)$", "{0} is {2!r}; it must be one of {1}."),
    (r"argument '(\S+)' is of type .* unable to convert to (\w+)", "{0} must be {kind}."),
    (
        r"Elements value for option '(\S+)' is of type .* unable to convert to (\w+)",
        "Each item of {0} must be {kind}.",
    ),
    (r"missing required arguments: (.*) found in (\S+)$", "An item of {1} lacks {0}."),
    (
        r"(\S+)\.(\S+)\. Supported parameters include: (.*)\.$",
        "An item of {0} has no field {1}; the fields are {2}.",
    ),
)


def argument_error(errors: list[str]) -> str:
    """Ansible's words for a wrong setting, with the setting's name first.

    It says some things twice; the first time that a name is among them counts.
    """
    for text in errors:
        for pattern, sentence in _ARGUMENT_ERRORS:
            match = re.match(pattern, text)
            if match:
                found = match.groups()
                return sentence.format(*found, kind=_KINDS.get(found[1], found[1]))
    return errors[0]
