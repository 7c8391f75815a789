"""TensorBoard itself, in this process, and what its HTTP API says."""

import json
import logging
import urllib.request
from pathlib import Path
from typing import Any

from tensorboard import program

STATUSES = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]


class TensorBoardApi:
    """Serves a folder of runs on loopback.

    Args:
        folder: as for `--logdir`; all is written there already.
    """

    def __init__(self, folder: Path):
        board = program.TensorBoard()
        board.configure(
            argv=[
                *("tensorboard", "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0"),
                *("--load_fast", "false", "--reload_interval", "0", "--reload_task", "blocking"),
            ]
        )
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self.address = board.launch()  # when it has read all
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, **content: Any) -> Any:
        """Return the JSON of a page; `content` is posted to it."""
        body = json.dumps(content).encode() if content else None
        request = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"})
        with self._opener.open(request, timeout=60) as answer:
            return json.load(answer)

    def scalars(self, run: str, tag: str) -> dict[int, float]:
        """Step -> value."""
        points = self.get(f"data/plugin/scalars/scalars?run={run}&tag={tag}")
        return {step: value for _, step, value in points}

    def columns(self) -> list[str]:
        """The table of hyperparameters: names of those that are shown at once, metrics last."""
        experiment = self._experiment()
        shown = [info["name"] for info in experiment["hparamInfos"]][:5]
        return [*shown, *(metric["name"]["tag"] for metric in experiment["metricInfos"])]

    def rows(self) -> dict[str, dict[str, Any]]:
        """The table of hyperparameters: run -> hyperparameters, metrics, `status`."""
        metrics = [{"metric": info["name"]} for info in self._experiment()["metricInfos"]]
        answer = self.get(
            "data/plugin/hparams/session_groups",
            allowedStatuses=STATUSES,
            colParams=metrics,
            startIndex=0,
            sliceSize=100,
        )
        rows = {}
        for group in answer["sessionGroups"]:
            values = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
            (session,) = group["sessions"]
            rows[group["name"]] = {**group["hparams"], **values, "status": session["status"]}
        return rows

    def _experiment(self) -> dict[str, Any]:
        return self.get("data/plugin/hparams/experiment", experimentName="")
