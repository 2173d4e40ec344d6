"""Prometheus, with node_exporter, as they would watch a node: the metrics of a directory, and our alerts."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.integration.node import wait_until

RES = Path(__file__).parents[2] / "res"


class Prometheus:
    """One that runs, to be asked."""

    def __init__(self, port: int) -> None:
        self._api = f"http://127.0.0.1:{port}/api/v1"

    def query(self, expression: str) -> Sequence[Any]:
        """Give the samples of now. Raises URLError if it can't answer that."""
        with urlopen(f"{self._api}/query?{urlencode({'query': expression})}", timeout=10) as answer:
            samples: Sequence[Any] = json.load(answer)["data"]["result"]
            return samples

    def has(self, expression: str) -> bool:
        try:
            return bool(self.query(expression))
        except URLError:  # not up yet
            return False


@contextmanager
def watching(metrics: Path, directory: Path) -> Iterator[Prometheus]:
    """Have both run on loopback, and all that the metrics tell read, during the block."""
    exporter_port, port = _free_ports(2)
    configuration = directory / "prometheus.json"  # JSON is YAML
    configuration.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(RES / "prometheus-alerts.yml")],
                "scrape_configs": [
                    {
                        "job_name": "node",
                        "static_configs": [{"targets": [f"127.0.0.1:{exporter_port}"]}],
                    }
                ],
            }
        )
    )
    with ExitStack() as stack:
        for command in (
            [
                "prometheus-node-exporter",
                "--collector.disable-defaults",
                "--collector.textfile",
                f"--collector.textfile.directory={metrics}",
                f"--web.listen-address=127.0.0.1:{exporter_port}",
            ],
            [
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
        ):
            stack.enter_context(_running(command, directory / f"{command[0]}.log"))
        prometheus = Prometheus(port)
        wait_until(lambda: prometheus.has("virt_rbd_backup_build_info"), 60, "Prometheus has the metrics")
        yield prometheus


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield
        finally:
            process.terminate()


def _free_ports(number: int) -> Sequence[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
