"""The nodes of the connected Ray cluster: whether all have the same packages, waiting for GPUs, and nodes that go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.telemetry import log

VERSIONED = ("worldloom", "ray", "torch", "deepspeed")
"""Packages of which all nodes must have the version of this process, besides Python."""
MODULES = ("cluster.storage", "captioning.engine", "training.settings", "pipelines.recipe")
"""A module of each of our packages, which another package of that name lacks."""
ANSWER_S = 120.0
"""Longest wait for what nodes have installed."""
MAX_LISTED_FAULTS = 12

GPU_WAIT_S = 1800.0
"""Longest wait for an autoscaler to start nodes with GPUs."""
POLL_S = 1.0
REMIND_S = 60.0
"""Time between two log lines of a wait."""


class NodeError(RuntimeError):
    """Nodes of the cluster lack packages of ours, or have other versions."""


def check_nodes() -> None:
    """Raise `NodeError` if a node of the connected cluster has another Python, other versions of the packages of this
    process, or imports another package in place of one of ours.

    Nodes that join later are not checked.
    """
    look = _looking()
    here, task = look(), ray.remote(look)
    answers = []
    for node in living_nodes().values():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answers.append((node, task.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()))
    ray.wait([answer for _, answer in answers], num_returns=len(answers), timeout=ANSWER_S)
    faults = []
    for node, answer in answers:
        name = f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
        try:
            faults += [f"{name}: {fault}" for fault in _faults(here, ray.get(answer, timeout=0))]
        except RayError as error:
            # A node that was lost since is no fault.
            if node["NodeID"] in living_nodes():
                late = isinstance(error, GetTimeoutError)
                reason = f"no answer within {ANSWER_S:.0f} s" if late else str(error).strip().splitlines()[-1]
                faults.append(f"{name}: runs no task of Python {here['Python']}: {reason}")
    if faults:
        more = [f"and {len(faults) - MAX_LISTED_FAULTS} more"] if len(faults) > MAX_LISTED_FAULTS else []
        raise NodeError("\n".join([*faults[:MAX_LISTED_FAULTS], *more]))


def living_nodes() -> dict[str, Mapping[str, Any]]:
    """Return what Ray says of each node of the connected cluster that is alive, by its id."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _looking() -> Callable[[], dict[str, str]]:
    """Return the function that returns the versions of Python and of `VERSIONED`, and the path of each other package
    that is imported in place of one of ours, by name.
    """

    # A local function is pickled by value, so that a node can call it that lacks this module.
    def look() -> dict[str, str]:
        import importlib.metadata
        import importlib.util
        import sys

        found = {"Python": ".".join(map(str, sys.version_info[:2]))}
        for package in packages:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "not installed"
        for module in modules:
            package = module.partition(".")[0]
            try:
                if importlib.util.find_spec(module) is not None:
                    continue
            except Exception:  # whatever another package does when it is imported
                pass
            spec = importlib.util.find_spec(package)
            if spec is not None:
                found[f"package {package}"] = spec.origin or str(next(iter(spec.submodule_search_locations or ()), ""))
        return found

    packages, modules = VERSIONED, MODULES
    return look


def _faults(here: Mapping[str, str], there: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with a node, and the fix, from what this process and the node have."""
    for name, version in here.items():
        found = there.get(name, "not installed")
        # Nodes with and without GPUs have torch 2.14.0+cu130 and 2.14.0+cpu.
        if found.partition("+")[0] != version.partition("+")[0]:
            fix = "start Ray there with this Python" if name == "Python" else f"pip install {name}=={version} there"
            if version == "not installed":
                fix = f"pip install {name}=={found} here"
            yield f"{name} is {found} there and {version} here; {fix}, or start this command with what the nodes have"
    for name in sorted(there.keys() - here.keys()):
        yield (
            f"Python imports {there[name]} as the {name}, which hides that of worldloom; install worldloom in the "
            "Python of Ray there, and take the folder out of PYTHONPATH, or rename it"
        )


def is_draining() -> bool:
    """Return whether the node of this worker is about to be taken from the cluster."""
    node: str = ray.get_runtime_context().get_node_id()
    # Ray Train and Serve ask the same; there is no public function.
    return node in ray._private.state.state.get_draining_nodes()


def wait_for_gpus(count: int, bound_s: float = GPU_WAIT_S) -> None:
    """Ask the autoscaler of the connected cluster for GPUs, and wait until there are `count` of them.

    GPUs that others use count, too: Ray Train waits for those itself. Raises `RuntimeError` after `bound_s`.
    """
    log.info(f"waiting for {count} GPUs, which the cluster was asked to start; it has {_gpus():g}")
    start_s = reminded_s = time.monotonic()
    # Autoscalers start nodes for what waits to be placed, and for nothing else.
    demand = placement_group([{"GPU": 1}] * count)
    try:
        while (found := _gpus()) < count:
            now_s = time.monotonic()
            if now_s - start_s > bound_s:
                raise RuntimeError(
                    f"train.device: cuda: the cluster has {found:g} of {count} GPUs after {bound_s / 60:.0f} min; see "
                    "why its autoscaler starts no nodes with GPUs (limits of the pool, quota, capacity), and run the "
                    "same command again; or write device: auto"
                )
            if now_s - reminded_s > REMIND_S:
                log.info(f"still waiting for GPUs after {(now_s - start_s) / 60:.0f} min: {found:g} of {count}")
                reminded_s = now_s
            time.sleep(POLL_S)
    finally:
        remove_placement_group(demand)


def _gpus() -> float:
    return float(ray.cluster_resources().get("GPU", 0.0))
