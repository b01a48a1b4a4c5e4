"""Deliver an archive to the host: sent, over cuts, then verified and applied there."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable

from ansible.errors import AnsibleConnectionFailure

from remote_train import runs
from remote_train.errors import TrainError

from . import link
from .action import GaveUpError, Result, TrainAction, failed, warnings_of
from .progress import SHOWN_AFTER, Line, Meter, size, waiting
from .upload import Upload

INCOMING = f"{runs.SYNC}/incoming"
"""Where what is sent arrives on the host, under the project root and on its file system."""

INLINE = 256 * 1024
"""Bytes up to which an archive comes along with the module, and costs no round trip of its own."""


class Delivery(TrainAction):
    """An action that delivers archives; :meth:`connect` comes first."""

    _vars: Result

    def connect(self, root: str, line: Line, patience: float) -> None:
        """Say where it goes, and for how long a broken connection is tried again.

        :param root: the project's root on the host.
        :param patience: in seconds.
        """
        self._root, self._line, self._patience = root, line, patience
        self._link = link.Link(
            lambda _line: "",
            self._connection,
            patience,
            line.keep,
            "what was sent stays there",
            "it goes on from there",
        )

    def while_reached(self, do: Callable[[], Result], undone: str) -> Result:
        """What ``do()`` gives; a host that is gone is a failure and not "unreachable".

        So the record of the run so far is still left at home.

        :param undone: the half of a sentence that says what hasn't been done then.
        """
        try:
            return do()
        except AnsibleConnectionFailure:
            return failed(
                GaveUpError(
                    f"The host can't be reached, so {undone}.",
                    "Give the same command again when the host is back.",
                    "infra",
                )
            )
        except GaveUpError as error:
            return failed(error)

    def deliver(self, paths: list[str], sha256: str, terms: Result, made: Result) -> Result:
        """Bring an archive, and what speaks of it, to the host, and apply it there.

        :param made: what the plan says of it.
        """
        archive, label = paths[0], made["offer"]["label"]
        length = os.path.getsize(archive)
        meter = Meter(self._line, f"sending {label}:", length)
        terms = {**terms, "sha256": sha256, "label": label, "project_root": self._root}
        doing = f"the host verifies and applies {label}, {size(length)}"
        if length <= INLINE and len(paths) == 1:
            with open(archive, "rb") as stream:
                terms["content"] = base64.b64encode(stream.read()).decode("ascii")
            with waiting(self._line, doing):
                applied = self._applied(terms, made["sync"])
        else:
            applied = self._uploaded(paths, terms, made, meter, doing)
        rate = f" at {meter.rate}" if meter.seconds >= SHOWN_AFTER else ""
        before = f", {meter.skipped:,} were there already" if meter.skipped else ""
        for warning in warnings_of(applied):
            self.warn(warning)
        keys = ("added", "replaced", "removed", "kept")
        counts = ", ".join(f"{len(applied[key])} {key}" for key in keys if applied[key])
        signer = f", signed by {applied['signer']}" if applied["signer"] else ""
        self._line.keep(
            f"  {label}: {length - meter.skipped:,} bytes sent{rate}{before},"
            f" verified{signer} and applied ({counts or 'same'})"
        )
        return {key: applied[key] for key in (*keys, "unchanged", "bytes", "sha256", "signer")}

    def _uploaded(
        self, paths: list[str], terms: Result, made: Result, meter: Meter, doing: str
    ) -> Result:
        """Send an archive in parts, and what lies beside it; let the host apply it.

        What was sent stays on the host where it can be of use to the same command given again.
        """
        incoming = os.path.join(self._root, INCOMING)
        folder = terms["sha256"][:32]
        upload = Upload(self._on_host, self._link, incoming)
        again = True
        while True:
            terms["src"] = upload.send(paths[0], folder, meter, made["offer"]["bytes"])
            for path in paths[1:]:
                upload.place(path, folder)
            try:
                with waiting(self._line, doing):
                    applied = self._applied(terms, made["sync"])
                break
            except TrainError as error:
                # Another sync of the same files has ended, and has taken them away with it.
                if again and upload.missing(paths[0], folder):
                    again = False
                    continue
                if error.category == "integrity":  # sending it again wouldn't help
                    self._forget(os.path.join(incoming, folder))
                raise
        self._forget(os.path.join(incoming, folder))
        return applied

    def _applied(self, terms: Result, planned: dict[str, list[str]]) -> Result:
        """Let the host apply it, over cuts; what that changed.

        One that is cut off goes on there by itself: the next one waits for it, and finds nothing
        left to do. What it did is then what was planned.
        """
        tries = 0

        def once() -> Result:
            nonlocal tries
            tries += 1
            patience = self._patience if tries > 1 else 0
            return self.call("apply_bundle", {**terms, "wait": patience}, self._vars)

        applied: Result = self._link(once)
        if tries > 1 and not applied["changed"] and planned:
            changed = planned["change"] + planned["mode"]
            applied.update(added=planned["add"], replaced=changed, removed=planned["remove"])
        return applied

    def _on_host(self, words: list[str], stdin: bytes) -> str:
        return self.shell(words, stdin, os.path.join(self._root, INCOMING))

    def _forget(self, folder: str) -> None:
        """Remove what was sent; where the host is gone, the next day's sync does it."""
        try:
            self.shell(["rm", "-r", "-f", "--", folder])
        except (AnsibleConnectionFailure, TrainError) as error:
            self.warn(f"{folder} is left on the host: {error}")
