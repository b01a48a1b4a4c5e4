"""Make a GPU host ready: start what takes long there, and follow it to its end."""

from __future__ import annotations

import glob
import hashlib
import os
import shlex
import sys
import sysconfig
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import follow, link
from controller.action import Result, TrainAction, new_token
from controller.progress import SHOWN_AFTER, Meter, duration, size
from controller.upload import Upload
from remote_train import detached, installer, provision
from remote_train.errors import TrainError
from remote_train.hashing import file_digest


class ActionModule(TrainAction):
    """``provision:`` with the request, the requirements and the role's own settings."""

    def act(self, task_vars: Result) -> Result:
        """Look, send what the host lacks to work with, start the work, follow it."""
        self._vars = task_vars
        self._request = self.argument("request")
        self._root = self._request["project_root"]
        self._places: dict[str, str] = {}
        self._line = self.line_for(task_vars, SHOWN_AFTER)
        self._link = link.Link(
            self._command,
            self._connection,
            float(self._request["reconnect_timeout"]),
            self._line.keep,
            "what was begun goes on there",
            "it follows that",
        )
        self._looking = self._arguments()
        here, self._looking["wheels"] = self._wheels()
        if self.check:
            return self._checked(self._call(self._looking), here)
        arguments, token = dict(self._looking), new_token()
        while True:
            answer = self._started(arguments, here, token)
            status = answer["status"]
            if status and status["token"] == token:
                return self._verdict(self._followed(answer))
            if not (status and answer["steps"]):
                return self._looked(answer)
            for line in other(status):
                self._line.keep(line)
            self._followed(answer)

    def _started(self, arguments: Result, here: str, token: str) -> Result:
        """Start the work, where there is any and no other runs; what the host lacks goes first.

        :param arguments: what the module gets; what was sent is added.
        :param here: the folder of wheels on this machine, or empty.
        """
        if here and "digests" not in arguments:
            # Only a host that lacks something is sent any.
            answer = self._call(arguments)
            if answer["installed"]:
                if answer["status"]:
                    return answer
                arguments.update(self._sent(_wheels_in(here)))
                self._places[arguments["wheels"]] = here
        answer = self._call({**arguments, "token": token})
        if answer["needs_pip"] and not answer["status"]:
            carried = self._sent([_own_pip()])
            arguments["digests"] = {**arguments.get("digests", {}), **carried["digests"]}
            arguments["pip"] = next(iter(carried["digests"]))
            answer = self._call({**arguments, "token": token})
        return answer

    def _arguments(self) -> Result:
        """What the module gets, without what is found out on the way."""
        stages = [s for s in self._request["stages"] if s["name"] in self.argument("stages")]
        endpoint = self.argument("endpoint", "")
        bare = detached.scrubbed(endpoint)
        # A mirror's password stands in no argument that the host's log may hold.
        secrets = {"HF_ENDPOINT": endpoint} if bare != endpoint else {}
        secrets.update({k: str(v) for k, v in self.argument("secrets", {}).items() if v})
        return {
            "project_root": self._root,
            "requirements": self.argument("requirements"),
            "python": self.argument("python", ""),
            "index_url": self.argument("index_url", ""),
            "storage": self.argument("storage", {}),
            "stages": [{"command": s["command"], "model": s["model"]} for s in stages],
            "endpoint": bare,
            "secrets": secrets,
        }

    def _call(self, arguments: Result) -> Result:
        answer: Result = self._link(lambda: self.call("provision", arguments, self._vars))
        return answer

    def _wheels(self) -> tuple[str, str]:
        """The folder of wheels here, and the one on the host; either may be empty."""
        given = str(self.argument("wheels", ""))
        here = os.path.abspath(os.path.expanduser(given)) if given else ""
        if not here or not os.path.isdir(here):
            return "", given
        if self._connection.transport == "local":
            return "", here
        if not _wheels_in(here):
            raise TrainError(
                f"provision_wheels is {here}, which holds no *.whl.",
                "Fill it with `pip download` for the host's kind of machine and Python.",
            )
        return here, ""

    def _sent(self, files: list[str]) -> Result:
        """Send files into a folder that holds no others; the arguments that say so."""
        incoming = os.path.join(self._root, provision.INCOMING)
        upload = Upload(self._on_host, self._link, incoming)
        total = sum(os.path.getsize(file) for file in files)
        meter = Meter(self._line, "sending wheels:", total)
        digests = {file: file_digest(file) for file in files}
        listed = "".join(f"{digests[file]}  {os.path.basename(file)}\n" for file in files)
        folder = f"wheels-{hashlib.sha256(os.fsencode(listed)).hexdigest()[:16]}"
        sent = {upload.whole(file, folder, meter): digests[file] for file in files}
        self._line.keep(f"  sent {_named(files)}")
        return {"digests": sent, "wheels": os.path.join(incoming, folder)}

    def _on_host(self, words: list[str], stdin: bytes) -> str:
        return self.shell(words, stdin, os.path.join(self._root, provision.INCOMING))

    def _command(self, line: str) -> str:
        return self.read(line, "How far provisioning is", f"Look into {detached.FOLDER} there.")

    def _checked(self, answer: Result, here: str) -> Result:
        """The result in check mode, in which what would be sent is a step as well."""
        if answer["status"] and answer["steps"]:
            self._line.keep(other(answer["status"])[0])
        sends = []
        if here and answer["installed"]:
            files = _wheels_in(here)
            sends.append(f"sends {_named(files)}")
        if answer["needs_pip"] and not installer.pip_wheel(here):
            sends.append(f"sends {_named([_own_pip()])}")
        return self._looked({**answer, "steps": [*sends, *answer["steps"]]})

    def _looked(self, answer: Result) -> Result:
        """The result where nothing was started: all is there, or nothing may be changed."""
        for step in answer["steps"]:
            self._line.keep(f"  {step}")
        return {
            "changed": bool(answer["steps"]),
            "python": answer["python"],
            "installed": answer["installed"],
            "done": [],
            "steps": answer["steps"],
        }

    def _followed(self, answer: Result) -> Result:
        """Poll until the work has ended; its last status."""
        for step in answer["steps"]:
            self._line.keep(f"  {step}")
        status: Result = answer["status"]
        path = detached.path(self._root, "status.json")
        log = os.path.join(self._root, str(status.get("log", "")))
        offset, pause = 0, follow.POLL_SECONDS[0]
        beat, seen = status.get("heartbeat"), time.monotonic()
        while status.get("state") == "running":
            time.sleep(pause)
            pause = min(pause * 1.3, follow.POLL_SECONDS[1])
            try:
                status, fresh = self._poll(path, log, offset)
            except ValueError:
                fresh = b""  # a login file printed in between; the next answer may be whole
            offset += len(fresh)
            if status.get("heartbeat") != beat:
                beat, seen = status.get("heartbeat"), time.monotonic()
            elif time.monotonic() - seen > follow.SILENT_AFTER:
                status = self._last_word(path, log, offset)
            if self.verbose:
                for line in fresh.decode("utf-8", "replace").splitlines():
                    self._line.keep(f"  | {line}")
            self._line.update(describe(status))
        return status

    def _poll(self, path: str, log: str, offset: int) -> tuple[Result, bytes]:
        printed: str = self._link.command(follow.poll_command(path, log, offset))
        answer = follow.parse_answer(printed)
        return answer.status, answer.fresh

    def _last_word(self, path: str, log: str, offset: int) -> Result:
        """The last word of work that says nothing any more.

        :raises TrainError: where there is none; who holds the lock tells why.
        """
        if self._call(self._looking)["status"]:
            raise TrainError(
                f"Provisioning has given no sign of life for {follow.SILENT_AFTER:.0f} s.",
                "The host hangs, or its disk is full: the same command goes on with it.",
                "infra",
            )
        status, _fresh = self._poll(path, log, offset)
        if status.get("state") == "running":
            raise TrainError(
                "Provisioning ended without a word.",
                f"Look first whether the host's disk is full: df -h {shlex.quote(self._root)}. "
                "Otherwise it was killed. The same command goes on with it.",
                "infra",
            )
        return status

    def _verdict(self, status: Result) -> Result:
        error = status.get("error")
        if error:
            raise TrainError(self._here(error["msg"]), self._here(error["hint"]), error["category"])
        result: Result = status.get("result") or {}
        for line in result.get("done", []):
            self._line.keep(f"  {line}")
        return {"steps": [], **result}

    def _here(self, text: str) -> str:
        """A text of the host's, with a folder that was sent there by its name on this machine."""
        for there, here in self._places.items():
            text = text.replace(there, here)
        return text


def describe(status: Result) -> str:
    """One line about work that runs: what it does, how much of it, for how long."""
    progress = status.get("progress") or {}
    parts = [f"  {progress.get('text') or 'provisioning'}"]
    if progress.get("of"):
        done, of = float(progress.get("done") or 0), float(progress["of"])
        parts.append(f"{done / 1e9:.2f} of {of / 1e9:.2f} GB")
    elapsed = float(status.get("heartbeat") or 0) - float(status.get("started_at") or 0)
    parts.append(f"{duration(elapsed)} elapsed")
    return "  ".join(parts)


def other(status: Result) -> tuple[str, str]:
    """Two lines about work that another command began: what runs, since when, how to end it."""
    lasts = duration(float(status.get("heartbeat") or 0) - float(status.get("started_at") or 0))
    doing = (status.get("progress") or {}).get("text") or "provisioning"
    pid = status.get("pid")
    which, how = (f", process {pid}", f"kill {pid}") if pid else ("", f"see {detached.FOLDER}")
    return (
        f"  Earlier provisioning still runs on the host{which}, for {lasts} now: {doing}",
        "  It is waited for, and then the rest is done with the settings of this command. To end "
        f"it instead, on the host: {how}",
    )


def _wheels_in(folder: str) -> list[str]:
    return sorted(glob.glob(os.path.join(glob.escape(folder), "*.whl")))


def _named(files: list[str]) -> str:
    what = f"{len(files)} wheels" if len(files) > 1 else os.path.basename(files[0])
    return f"{what}, {size(sum(map(os.path.getsize, files)))}"


def _own_pip() -> str:
    """The pip wheel that comes with this machine's own Python, for a host that has none."""
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR") or ""]
    try:
        import ensurepip  # noqa: PLC0415

        folders.append(os.path.join(os.path.dirname(ensurepip.__file__), "_bundled"))
    except ImportError:
        pass
    for folder in filter(None, folders):
        found = installer.pip_wheel(folder)
        if found:
            return found
    raise TrainError(
        "The host has neither uv nor pip, and this machine's Python has no pip to send.",
        "Install one there (on Debian and Ubuntu the package python3-pip), or put a pip wheel "
        "into the folder of provision_wheels.",
        "infra",
    )
