"""Loggers that write TensorBoard's event file and a CSV table; a full disk does not end the run.

`EventFileWriter` of TensorBoard 2.21 writes from a thread. The first write that fails ends the thread, and
every later event raises that error.
"""

import io
import logging
import os
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from cocoseg.durations import now
from cocoseg.errors import WriteError
from cocoseg.files import whole_file

log = logging.getLogger(__name__)

MOST_KEPT = 64 * 2**20  # bytes that wait for room on the disk; if there are more, all are dropped


class Records:
    """Appends records to an event file every few seconds. What can't be written waits for the next time.

    Args:
        folder: folder of the file.
        flush_secs: seconds between two writes.
    """

    def __init__(self, folder: str, flush_secs: float):
        self.path = Path(folder, f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}")
        self.flush_secs = flush_secs
        self._kept = io.BytesIO()
        self._length = 0  # bytes of the file that are whole records
        self._flush_at = now()
        self._fails = False
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        return str(self.path.parent)

    def add_event(self, event: Event) -> None:
        RecordWriter(self._kept).write(event.SerializeToString())
        if now() >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Write what waits, or leave the file as it was and say once that it can't be written."""
        self._flush_at = now() + self.flush_secs
        content = self._kept.getvalue()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(content)
        except OSError as error:
            with suppress(OSError):  # a reader would stop at a partial record
                os.truncate(self.path, self._length)
            if not self._fails:
                log.warning("TensorBoard's file can't be written now (%s); training goes on", error.strerror)
            self._fails = True
            if len(content) <= MOST_KEPT:
                return
        else:
            self._length += len(content)
            self._fails = False
        self._kept = io.BytesIO()

    close = flush


class _Writer(SummaryWriter):
    def _get_file_writer(self) -> FileWriter:
        """Open a file where none is open. SummaryWriter of torch 2.11 has no public way in."""
        fields: Any = self  # which torch declares as None
        if fields.file_writer is None:
            fields.file_writer = FileWriter.__new__(FileWriter)  # its constructor opens TensorBoard's writer
            fields.file_writer.event_writer = Records(self.log_dir, self.flush_secs)
            fields.all_writers = {fields.file_writer.get_logdir(): fields.file_writer}
        return fields.file_writer


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Lightning's logger, with event files that outlive a full disk."""

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer, opened when it is first asked for."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir, **self._kwargs)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics; Lightning's `epoch` goes to the clock's group, which TensorBoard shows last."""
        renamed = {"wall_clock/epoch" if name == "epoch" else name: metrics[name] for name in metrics}
        super().log_metrics(renamed, step)

    @rank_zero_only
    def save(self) -> None:
        """Write what waits, and `hparams.yaml`."""
        try:
            super().save()
        except OSError as error:
            log.warning("hparams.yaml can't be written (%s)", error.strerror)


class CSVLogger(loggers.CSVLogger):
    """Lightning's logger, whose rows wait where the disk is full."""

    fails = False  # set by a failed write, which is logged once

    @rank_zero_only
    def save(self) -> None:
        """Write what waits, or leave the file as it was and say once that it can't be written."""
        try:
            if self.experiment.metrics:
                self._save_whole()
            self.fails = False
        except (OSError, WriteError) as error:
            if not self.fails:
                reason = getattr(error.__cause__ or error, "strerror", error)
                log.warning("metrics.csv can't be written now (%s); training goes on", reason)
            self.fails = True

    def _save_whole(self) -> None:
        """Let Lightning write to a copy, then put that in place: it empties its file for a new column."""
        table = self.experiment
        path, rows, keys = Path(table.metrics_file_path), table.metrics, list(table.metrics_keys)
        try:
            with whole_file(path) as copy:
                if path.exists():
                    shutil.copyfile(path, copy)
                table.metrics_file_path = str(copy)
                table.save()
        except BaseException:
            table.metrics, table.metrics_keys = rows, keys
            raise
        finally:
            table.metrics_file_path = str(path)
