"""Bring the training project and the engine to the host: packed, sent, verified, applied."""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from ansible.errors import AnsibleConnectionFailure

from controller import link, project, source
from controller.action import (
    GaveUpError,
    Result,
    TrainAction,
    failed,
    warnings_of,
)
from controller.progress import SHOWN_AFTER, Meter, size, waiting
from controller.scratch import scratch
from controller.upload import Upload
from remote_train import bundle, bundle_archive, offer, plan, runs, signature
from remote_train.errors import TrainError
from remote_train.hashing import file_digest
from remote_train.offer import Offer
from remote_train.project_files import ProjectFile

INCOMING = f"{runs.SYNC}/incoming"
"""Where what is sent arrives on the host, under the project root and on its file system."""

INLINE = 256 * 1024
"""Bytes up to which an archive comes along with the module, and costs no round trip of its own."""


class ActionModule(TrainAction):
    """``code_sync:`` with the request and the plan; sends what the plan says differs."""

    def act(self, task_vars: Result) -> Result:
        """Send the project, then the engine, where they differ.

        A host that can't be reached is a failure like any other here, so that what was seen of
        the run so far is still left at home.
        """
        try:
            return self._sync(task_vars)
        except AnsibleConnectionFailure:
            return failed(
                GaveUpError(
                    "The host can't be reached, so the training project was not synced.",
                    "Give the same command again when the host is back.",
                    "infra",
                )
            )
        except GaveUpError as error:
            return failed(error)
        except OSError as error:
            raise TrainError(
                f"The training project can't be packed in {tempfile.gettempdir()}:"
                f" {error.strerror or error}.",
                "Make room there, or name another folder in the environment as TMPDIR.",
                "infra",
            ) from error

    def _sync(self, task_vars: Result) -> Result:
        self._vars = task_vars
        request, made = self.argument("request"), self.argument("plan")
        self._root, self._settings = request["project_root"], request["sync"]
        result: Result = {"changed": bool(made["sends"]), "sent": {}}
        if self._task.diff or self.check:
            result["diff"] = [{"prepared": _shown(made)}]
        self._line = self.line_for(task_vars, SHOWN_AFTER)
        if not made["sends"]:
            self._line.keep(f"  {_nothing(made)}")
        if self.check or not made["sends"]:
            return result
        self._patience = float(request["reconnect_timeout"])
        self._link = link.Link(
            lambda _line: "",
            self._connection,
            self._patience,
            self._line.keep,
            "what was sent stays there",
            "it goes on from there",
        )
        with scratch() as folder:
            if made["git"] and made["git"]["changes"]:
                result["sent"]["git"] = self._pull(made["git"])
            if any(made["sync"].values()):
                result["sent"]["project"] = self._project(made, request["data_base"], folder)
            if made["engine_changed"]:
                result["sent"]["engine"] = self._engine(folder)
        return result

    # -- what is sent ---------------------------------------------------------------------------

    def _pull(self, git: Result) -> Result:
        """Let the host bring the project to its commit by itself."""
        arguments = {
            "root": self._root,
            "url": source.with_login(git["url"], self.setting("sync_git_url", self._vars)),
            "ref": git["ref"],
            "allow_dirty": self._settings["git"]["allow_dirty"],
            "allowed_signers": source.allowed_signers(self._settings),
        }
        with waiting(self._line, f"the host pulls {git['ref'] or 'its branch'}"):
            # One that was cut is taken up by the next.
            pulled = self._link(lambda: self.call("pull", arguments, self._vars))
        for warning in warnings_of(pulled):
            self.warn(warning)
        for line in pulled["lines"]:
            self._line.keep(line)
        return {key: pulled[key] for key in ("before", "after", "ref", "kind", "files")}

    def _project(self, made: Result, data_base: str, folder: str) -> Result:
        """Send what the host lacks of the project, or all of it where a bundle is wanted."""
        sync = self._settings
        terms: Result = {
            "root": self._root,
            "state_dir": os.path.join(self._root, made["state"]),
            "keep": sync["keep"],
            "cache": sync["cache"],
            "allowed_signers": source.allowed_signers(sync),
        }
        if sync["bundle"]:
            path = os.path.abspath(os.path.expanduser(sync["bundle"]))
            if file_digest(path) != made["offer"]["archive"]:
                raise _changed(f"The bundle {path}")
            beside = [name for name in bundle_archive.beside(path) if os.path.isfile(name)]
            return self._deliver([path, *beside], made["offer"]["archive"], terms, made)
        if made["offer"]["part"] and sync["mode"] != "bundle":
            part = offer.unpack(made["offer"]["part"])
            place = source.folder_of(sync)
            files = source.files_in(place, part)
            terms["offer_sha256"] = made["offer"]["sha256"]
            return self._delta(place, files, part, folder, terms, made)
        with source.opened(sync, data_base, self._line) as found:
            if found is None or found.offer.sha256 != made["offer"]["sha256"]:
                raise _changed("The training project")
            if terms["allowed_signers"] is not None:
                if not sync["signing_key"]:  # git's own commits are signed, what goes beside isn't
                    raise source.unsigned()
                signed = signature.sign(found.offer.raw, sync["signing_key"])
                # As the host will do it again; but here it is known before anything is sent.
                signature.check(found.offer.raw, signed, terms["allowed_signers"], found.label)
                terms["signature"] = signed.decode("ascii")
            if sync["mode"] == "bundle":
                meter = self._packing(found.label, found.files)
                # A folder's name may hold what an archive's may not.
                built = bundle.build(found.folder, found.files, folder, "project", meter.add)
                return self._deliver([built.paths[0]], built.sha256, terms, made)
            chosen = {found.offer.names[place] for place in made["offer"]["places"]}
            files = [file for file in found.files if file.name in chosen]
            if made["offer"]["kept"]:
                terms["offer_sha256"] = found.offer.sha256
            else:
                terms["offer"] = found.offer.packed()
            return self._delta(found.folder, files, found.offer, folder, terms, made)

    def _delta(
        self,
        place: str,
        files: list[ProjectFile],
        digests: Offer,
        folder: str,
        terms: Result,
        made: Result,
    ) -> Result:
        """Send these files alone."""
        path = os.path.join(folder, "project.delta")
        meter = self._packing(made["offer"]["label"], files)
        sha256 = bundle.build_delta(place, files, digests, path, meter.add)
        return self._deliver([path], sha256, terms, made)

    def _engine(self, folder: str) -> Result:
        """Send this project's own code, all of it."""
        laid = os.path.join(folder, "engine")
        built = bundle.build(laid, project.lay_engine(laid), folder, "engine")
        terms = {
            "root": os.path.join(self._root, plan.ENGINE),
            "state_dir": os.path.join(self._root, plan.ENGINE, ".state"),
            "keep": 0,
        }
        asked = {"offer": {"label": "engine", "bytes": built.bytes}, "sync": {}}
        return self._deliver([built.paths[0]], built.sha256, terms, asked)

    def _packing(self, label: str, files: list[ProjectFile]) -> Meter:
        return Meter(self._line, f"packing {label}:", sum(file.size for file in files))

    # -- how it is sent -------------------------------------------------------------------------

    def _deliver(self, paths: list[str], sha256: str, terms: Result, made: Result) -> Result:
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


def _nothing(made: Result) -> str:
    """Why there is nothing to send."""
    if made["offer"] is None and made["git"] is None:
        return "no project is synced: there is no project_src, or it is project_root itself"
    return "nothing to send: all of it is there already"


def _changed(what: str) -> TrainError:
    return TrainError(
        f"{what} changed after the plan was made.",
        "Run it again when nothing writes there.",
        "data",
    )


def _shown(made: Result) -> str:
    """What would be sent, a line a path, as ``--diff`` shows it."""
    signs = (("add", "+"), ("change", "~"), ("mode", "x"), ("remove", "-"))
    lines: list[Any] = [f"{sign} {name}" for key, sign in signs for name in made["sync"][key]]
    if made["git"] and made["git"]["changes"]:
        lines.append(f"~{made['git']['lines'][0]}")
    if made["engine_changed"]:
        lines.append(f"~ {plan.ENGINE}/ (this project's own code)")
    return "".join(f"{line}\n" for line in lines)
