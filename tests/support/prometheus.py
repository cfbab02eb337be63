"""A Prometheus for tests, from the system's package: in a folder, on a port of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import yaml

from support.patience import client, wait_until

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "docker/prometheus/rules.yml"
CONFIG = ROOT / "docker/prometheus/prometheus.yml"


def why_not() -> str | None:
    """Why none can be started here."""
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        return "needs Prometheus and its promtool: install the package prometheus"
    return None


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


class Prometheus:
    """Runs the configuration of docker/prometheus, with another target and shorter intervals."""

    def __init__(self, folder: Path, target: str) -> None:
        config = yaml.safe_load(CONFIG.read_text())
        config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(CONFIG.parent / name) for name in config["rule_files"]]
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = folder / "log"
        port = _free_port()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        self._http = client(f"http://127.0.0.1:{port}")
        try:
            wait_until(self._answers, "Prometheus")
        except AssertionError:
            self.stop()
            raise

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query now, `{"metric": labels, "value": [time, text]}`."""
        answer = self._http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer['error']}"
        result = answer["data"]["result"]
        assert isinstance(result, list), f"{expression} is a scalar"
        return result

    def label_values(self, label: str, metric: str) -> list[str]:
        answer = self._http.get(f"/api/v1/label/{label}/values", params={"match[]": metric}).json()
        return list(answer["data"])

    def alerts(self) -> dict[str, str]:
        """The state of every active alert by its name: `pending` or `firing`."""
        active = self._http.get("/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"]: alert["state"] for alert in active}

    def stop(self) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text(errors="replace")
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
