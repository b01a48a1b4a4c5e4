"""The gate's first check: whether the NVIDIA driver is there and answers, and why not."""

from __future__ import annotations

from .gate_model import FAIL, GPU, OK, SKIPPED, UNKNOWN, WARN, Check, Context, Verdict
from .nvidia_smi import NO_XML, Answer

NO_GPU = "Rent a machine with an NVIDIA GPU; to train without one, set gpu_gate_gpus to 0."
OTHER_MACHINE = "Ask the provider to repair it, or take another machine."

# How to know what went wrong when nvidia-smi gave no XML: a piece of its words or its exit code
# (manual page, "RETURN VALUE"; the codes above 18 are NVML's), what that means, what to do.
_FAILURES: tuple[tuple[str, int, str, str], ...] = (
    (
        "driver/library version mismatch",
        18,
        "the driver in the kernel and its library are of different versions",
        "Reboot the machine; in a container, restart it so that it gets the host's library.",
    ),
    (
        "couldn't communicate with the nvidia driver",
        9,
        "the driver isn't loaded",
        "Reboot the machine, or install the driver again (the kernel may be newer than it); "
        "in a container, start it with its GPUs.",
    ),
    (
        "gpu is lost",
        15,
        "a GPU has fallen off the bus",
        "Reboot the machine; if it falls off again, take another one.",
    ),
    (
        "unable to determine the device handle",
        15,
        "a GPU has fallen off the bus",
        "Reboot the machine; if it falls off again, take another one.",
    ),
    (
        "no devices were found",
        6,
        "the driver sees no GPU",
        "Check that the machine was rented with a GPU and that the container was given it.",
    ),
    (
        "nvml shared library couldn't be found",
        12,
        "the driver's library is missing",
        "In a container, start it with its GPUs; else install the driver again.",
    ),
    (
        "insufficient permissions",
        4,
        "this user may not ask the driver",
        "Give the user read and write access to /dev/nvidia*.",
    ),
    ("infoROM is corrupted", 14, "the infoROM of a GPU is corrupted", OTHER_MACHINE),
    ("", 8, "a GPU's power cables aren't attached", OTHER_MACHINE),
    ("", 10, "the kernel found an interrupt issue with a GPU", OTHER_MACHINE),
)


def driver(context: Context) -> Verdict:
    """Whether the driver is there and answers.

    Fails when nvidia-smi is missing, doesn't answer in time, can't reach the driver or says
    what can't be read; warns when it answers and complains (a corrupted infoROM, for one).
    """
    answer, expected = context.smi, "nvidia-smi answers"
    if answer is None:
        return Verdict(SKIPPED, "nvidia-smi was not asked")
    if answer.state != "ok":
        seen, action = _no_answer(answer)
        return Verdict(FAIL, seen, expected, action)
    if answer.code:
        meaning, action = _meaning(answer)
        return Verdict(WARN, f"it answers, but {meaning} ({_words(answer)})", expected, action)
    snapshot = answer.snapshot
    if snapshot.driver_version is None:
        return Verdict(UNKNOWN, "it answers, but names no version", expected)
    cuda = f", CUDA {snapshot.cuda_version}" if snapshot.cuda_version else ""
    return Verdict(OK, f"driver {snapshot.driver_version}{cuda}", expected)


def _no_answer(answer: Answer) -> tuple[str, str]:
    """Why there is no answer, and what to do."""
    meaning, action = _meaning(answer)
    # Where a setting names the program, and nothing of it looks like nvidia-smi, doubt the setting.
    doubtful = (
        answer.state in ("missing", "unusable")
        or (answer.state == "unreadable" and answer.text.startswith(NO_XML))
        or (answer.state == "failed" and meaning == _NO_MEANING)
    )
    if answer.named and doubtful:
        return _of_the_setting(answer)
    if answer.state == "failed":
        return f"{meaning} ({_words(answer)})", action
    missing = "there is no nvidia-smi on this machine"
    if answer.state == "missing" and not answer.text:
        return f"{missing}, so no NVIDIA driver and no GPU", NO_GPU
    table = {
        "missing": (
            f"{missing}, though {answer.text}",
            "Put nvidia-smi into the image, or name its path in gpu_gate_nvidia_smi.",
        ),
        "unusable": (
            f"{answer.program} can't be run ({answer.text})",
            "Install the driver again, or name another nvidia-smi in gpu_gate_nvidia_smi.",
        ),
        "hangs": (
            f"nvidia-smi gave no answer within {answer.seconds:g} s",
            "The driver hangs: reboot the machine (a provider's restart does); if it hangs again, "
            "take another one. gpu_gate_timeout is how long it is waited for.",
        ),
        "unreadable": (
            f"the answer of nvidia-smi can't be read: {answer.text}",
            "Run nvidia-smi -q -x on the machine and look at what it prints.",
        ),
    }
    return table[answer.state]


def _of_the_setting(answer: Answer) -> tuple[str, str]:
    """The same where it is the setting that is to be doubted."""
    wrong = {
        "missing": "and there is no such program on this machine",
        "unusable": f"which can't be run ({answer.text})",
        "unreadable": f"whose answer can't be read: {answer.text}",
        "failed": f"which failed ({_words(answer)})",
    }
    other = (
        f"the machine has {answer.usual}"
        if answer.usual
        else "then nvidia-smi is looked for where it usually is"
    )
    return (
        f"gpu_gate_nvidia_smi is {answer.named}, {wrong[answer.state]}",
        f"Correct gpu_gate_nvidia_smi, or leave it out: {other}.",
    )


_NO_MEANING = "nvidia-smi failed"


def _meaning(answer: Answer) -> tuple[str, str]:
    """What a failed call means, and what to do: by its words, else by its exit code."""
    said = answer.text.lower()
    for piece, _code, meaning, action in _FAILURES:
        if piece and piece.lower() in said:
            return meaning, action
    for _piece, code, meaning, action in _FAILURES:
        if code == answer.code:
            return meaning, action
    return _NO_MEANING, "Run nvidia-smi on the machine and look at what it says."


def _words(answer: Answer) -> str:
    code = answer.code if answer.code is not None else 0
    ended = f"killed by signal {-code}" if code < 0 else f"exit {code}"
    return f"{ended}: {answer.text}" if answer.text else ended


CHECKS = (
    Check(
        GPU,
        driver,
        "nvidia-smi is missing, hangs, can't reach the driver, or prints what can't be read",
        "it answers and complains",
        ("timeout",),
    ),
)
