"""Runs that are kept, and given back to an empty host, over a real sshd."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import GpuHost
from tests.integration.cutting_proxy import CuttingProxy
from tests.integration.sites import STAGES, Site, tree

Clone = Callable[..., Site]
RESTORE = "playbooks/restore.yml"


def kept(folder: Path) -> dict[str, bytes | str]:
    return {name: content for name, content in tree(folder).items() if content != "folder"}


def test_a_run_is_given_back_to_an_empty_host(trained_clone: Clone) -> None:
    """Its stages are up to date there: the next command has nothing to do, and trains nothing."""
    site = trained_clone()
    (run,) = [path.name for path in site.runs()]
    outputs = {path.name: kept(site.sync / run / path.name) for path in [site.sync / run / "kept"]}
    trained = site.trained()
    shutil.rmtree(site.root)
    check = site.run("--check", playbook=RESTORE)
    assert check.status == 0, check.output
    assert f"would restore {run} (all, sample, style, writing): " in check.output
    assert not site.root.exists()
    outcome = site.run(playbook=RESTORE)
    assert outcome.status == 0, outcome.output
    assert " files verified on the host (" in outcome.output
    for stage in STAGES:
        assert outcome.plan_of(stage).startswith(f"{stage}"), outcome.output
        assert "skips: up to date" in outcome.plan_of(stage), outcome.output
    assert kept(site.sync / run / "kept") == outputs["kept"]
    assert not (site.sync / "restored" / run).exists()
    again = site.run()
    assert again.status == 0, again.output
    assert again.recap["gpu"]["changed"] == 0, again.output
    assert site.trained() == trained
    assert [path.name for path in site.runs()] == [run]
    second = site.run(playbook=RESTORE)
    assert second.recap["gpu"]["changed"] == 0, second.output


def test_a_stage_that_is_done_there_with_something_else_is_replaced_by_force_alone(
    trained_clone: Clone,
) -> None:
    site = trained_clone()
    (first,) = [path.name for path in site.runs()]
    old = site.adapter("style").read_bytes()
    arguments = ("-e", '{"stage_settings": {"style": {"learning_rate": 0.5}}}')
    outcome = site.run(*arguments)
    assert outcome.status == 0, outcome.output
    new = site.adapter("style").read_bytes()
    assert new != old
    # The run before keeps its own, on the host and at home.
    for sync in (site.sync, site.home / "training_sync"):
        path = sync / first / "kept/outputs/adapter/adapter_style/adapter_model.safetensors"
        assert path.read_bytes() == old
    before = tree(site.root / "outputs/adapter")
    refused = site.run("-e", f"restore_run={first}", playbook=RESTORE)
    assert refused.status != 0
    assert "style is done with something else" in refused.failures[0]
    assert tree(site.root / "outputs/adapter") == before
    forced = site.run("-e", f"restore_run={first}", "-e", "force=true", playbook=RESTORE)
    assert forced.status == 0, forced.output
    assert site.adapter("style").read_bytes() == old


def test_a_run_that_is_damaged_at_home_is_refused_and_the_one_before_is_the_newest(
    trained_clone: Clone,
) -> None:
    site = trained_clone()
    (first,) = [path.name for path in site.runs()]
    assert site.run("-e", '{"stage_settings": {"style": {"learning_rate": 0.5}}}').status == 0
    second = site.runs()[-1].name
    path = site.home / "adapter/adapter_style/adapter_model.safetensors"
    path.write_bytes(b"damaged")  # as it lies: what is kept is the same file
    shutil.rmtree(site.root)
    refused = site.run("-e", f"restore_run={second}", playbook=RESTORE)
    assert refused.status != 0
    assert "is not at home as it was collected" in refused.failures[0]
    assert not site.root.exists()
    outcome = site.run(playbook=RESTORE)
    assert outcome.status == 0, outcome.output
    assert f"{first} (all, sample, style, writing)" in outcome.output
    assert "skips: up to date" in outcome.plan_of("style")


def test_where_something_differs_the_plan_names_it(trained_clone: Clone) -> None:
    site = trained_clone()
    shutil.rmtree(site.root)
    outcome = site.run(
        "-e", '{"stage_settings": {"style": {"learning_rate": 0.5}}}', playbook=RESTORE
    )
    assert outcome.status == 0, outcome.output
    assert "learning_rate" in outcome.plan_of("style")
    assert "skips: up to date" in outcome.plan_of("writing")


def test_so_many_runs_are_kept(trained_clone: Clone) -> None:
    site = trained_clone(keep_runs=1)
    (first,) = [path.name for path in site.runs()]
    outcome = site.run("-e", "force=true")
    assert outcome.status == 0, outcome.output
    for sync in (site.sync, site.home / "training_sync"):
        (run,) = sorted(sync.glob("run_*"))
        assert run.name != first
        assert (run / "kept/outputs/training_sync/stages/style.json").exists()
    assert f"old runs removed there (keep_runs): {first}" in outcome.output
    assert f"old runs removed here (keep_runs): {first}" in outcome.output


# A link that is cut


@pytest.fixture
def proxy(gpu_host: GpuHost) -> Iterator[CuttingProxy]:
    made = CuttingProxy(("127.0.0.1", gpu_host.port))
    yield made
    made.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_collect_that_is_cut_at_random_points_goes_on(
    trained_clone: Clone, gpu_host: GpuHost, proxy: CuttingProxy, seed: int
) -> None:
    drawn = random.Random(seed)  # noqa: S311
    site = trained_clone(
        ansible_port=proxy.port,
        reconnect_timeout=60,
        # The proxy is that server, by another port.
        ansible_ssh_extra_args=f"-o HostKeyAlias=[127.0.0.1]:{gpu_host.port}",
    )
    name = "large.safetensors"
    content = drawn.randbytes(48 * 1024 * 1024)
    (site.adapter("style").parent / name).write_bytes(content)
    run = site.runs()[-1]
    (run / "SHA256SUMS").unlink()  # its controller went away before it was collected
    process = site.start(playbook="playbooks/collect.yml")
    over = threading.Event()
    sizes: list[int] = []

    def cut() -> None:
        """Cut the link whenever some megabytes more have come."""
        folder = site.home / ".incoming"
        want = drawn.randrange(1, 12) * 1024 * 1024
        while not over.is_set() and len(sizes) < 3:
            have = 0
            with contextlib.suppress(FileNotFoundError):  # it is at its place by now
                have = max((p.stat().st_size for p in folder.glob("?" * 64)), default=0)
            if have >= want:
                sizes.append(have)
                want = have + drawn.randrange(1, 12) * 1024 * 1024
                proxy.reset()
                time.sleep(0.3)
                proxy.mend()
            time.sleep(0.005)

    beside = threading.Thread(target=cut)
    beside.start()
    output, _ = process.communicate(timeout=240)
    over.set()
    beside.join()
    assert process.returncode == 0, output
    assert sizes, output
    assert "The connection broke; what was fetched stays here. Reconnecting." in output
    assert (site.home / "adapter/adapter_style" / name).read_bytes() == content
    assert not (site.home / ".incoming").exists()
