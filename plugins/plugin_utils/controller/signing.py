"""Sign adapters at home (OpenSSF model signing), by its own program, where the user has a key.

The signature lies beside the adapter's folder, as ``adapter_style.sig``, so that no list of the
run's files changes. Signing with a key asks nothing of the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PROGRAM = "model_signing"
"""From the package model-signing, which also needs pyOpenSSL (1.1.1 doesn't say so)."""

SIGNS_WITHIN = 600.0
"""Seconds for one adapter; it is hashed as a whole."""


def sign(folder: str, key: str) -> str:
    """Sign a folder unless its signature is newer than all that is in it.

    :param key: the path of a private key, PEM, of an elliptic curve, without a password.
    :returns: why that could not be done; empty where it was.
    """
    signature = f"{folder}.sig"
    if _is_newer(signature, folder):
        return ""
    program = _program()
    if program is None:
        return (
            f"{os.path.basename(folder)} is not signed: there is no {PROGRAM} here; "
            "`pip install model-signing pyOpenSSL` brings it."
        )
    path = os.path.abspath(os.path.expanduser(key))
    temporary = f"{signature}.{os.getpid()}.tmp"
    words = [program, "sign", "key", "--private_key", path, "--signature", temporary, folder]
    try:
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=SIGNS_WITHIN
        )
        if done.returncode == 0:
            os.replace(temporary, signature)
            return ""
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no word"]
    except (OSError, subprocess.TimeoutExpired) as error:
        said = [str(error)]
    if os.path.lexists(temporary):
        os.unlink(temporary)
    return f"{os.path.basename(folder)} is not signed: {said[0]}"


def _program() -> str | None:
    """Beside the Python that runs this, or on the PATH."""
    return shutil.which(PROGRAM, path=os.path.dirname(sys.executable)) or shutil.which(PROGRAM)


def _is_newer(signature: str, folder: str) -> bool:
    if not os.path.isfile(signature):
        return False
    times = [
        os.lstat(os.path.join(where, name)).st_mtime_ns
        for where, folders, files in os.walk(folder)
        for name in (*files, *folders, ".")
    ]
    return os.stat(signature).st_mtime_ns > max(times)
