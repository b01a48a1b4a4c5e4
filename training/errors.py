"""The one exception that ends a job with a sentence instead of a traceback."""

from __future__ import annotations


class JobError(Exception):
    """Something that whoever started the job can act on.

    :param category: ``oom``, ``data``, ``model_download``, ``training_logic``, ``infra``, ``ops``.
    :param symptom: one sentence that names what is wrong.
    :param action: what to do about it.
    :param cause: why it is so, where that is known and says more than the symptom.
    """

    def __init__(self, category: str, symptom: str, action: str, cause: str = "") -> None:
        super().__init__(symptom)
        self.category = category
        self.symptom = symptom
        self.action = action
        self.cause = cause

    def as_dict(self) -> dict[str, str]:
        """The ``error`` object of ``result.json``."""
        return {
            "category": self.category,
            "symptom": self.symptom,
            "cause": self.cause,
            "action": self.action,
        }
