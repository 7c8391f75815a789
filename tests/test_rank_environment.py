"""Rank of a process by the environment that its launcher made."""

from typing import Any

import pytest

from cocoseg.rank_environment import has_launcher, is_rank_zero, may_be_several


@pytest.mark.parametrize(
    ("trainer", "several"),
    [
        ({}, False),
        ({"devices": 1, "num_nodes": 1, "strategy": "auto"}, False),
        ({"devices": "1"}, False),
        ({"devices": [3]}, False),
        ({"devices": 2}, True),
        ({"devices": "auto"}, True),
        ({"devices": [0, 1]}, True),
        ({"devices": 1, "num_nodes": 2}, True),
        ({"devices": 1, "strategy": "ddp"}, True),
        ({"strategy": {"_target_": "lightning.pytorch.strategies.DDPStrategy"}}, True),
    ],
)
def test_what_may_be_several(trainer: dict[str, Any], several: bool) -> None:
    assert may_be_several(trainer) == several


@pytest.mark.parametrize(
    ("environment", "first", "by_others"),
    [
        ({}, True, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True, False),
        ({"LOCAL_RANK": "1"}, False, False),
        ({"NODE_RANK": "1"}, False, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False, True),
        # torchrun on two of Slurm's machines, which counts them in an order of its own
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, True, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, True, True),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, False, True),
    ],
)
def test_which_process_is_rank_zero(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool, by_others: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero({"devices": 2}) == first
    assert has_launcher({"devices": 2}) == by_others
    assert is_rank_zero({"devices": 1})
    assert not has_launcher({"devices": 1})
