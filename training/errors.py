"""The one exception that ends a job with a sentence instead of a traceback."""

from __future__ import annotations

MODEL_DOWNLOAD, DIVERGED, DISK_FULL, SIGNAL = "model_download", "diverged", "disk_full", "signal"
KINDS = (MODEL_DOWNLOAD, DIVERGED, DISK_FULL, SIGNAL)
"""What a result names beside its category, in the names of ``remote_train.failures.KINDS``: a
model that its hub doesn't give, a loss that isn't finite, a full disk, a signal."""


class JobError(Exception):
    """Something that whoever started the job can act on.

    :param category: ``oom``, ``data``, ``model_download``, ``training_logic``, ``infra``, ``ops``.
    :param symptom: one sentence that names what is wrong.
    :param action: what to do about it.
    :param cause: why it is so, where that is known and says more than the symptom.
    :param kind: one of :data:`KINDS`, where the category alone doesn't say whether it would be so
        again; whoever started the job decides by it whether to try again.
    """

    def __init__(
        self, category: str, symptom: str, action: str, cause: str = "", kind: str = ""
    ) -> None:
        super().__init__(symptom)
        if kind and kind not in KINDS:
            raise ValueError(f"no such kind of failure: {kind}")
        self.kind = kind
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
            "kind": self.kind,
        }
