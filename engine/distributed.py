"""The processes (ranks) that train one model together under torchrun, or the one process alone.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html, section "Environment Variables".
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import UserError

TIMEOUT = timedelta(minutes=15)  # for the slowest step of one rank: decoding all photos

Value = TypeVar("Value")


@dataclass(frozen=True)
class Distributed:
    """This process among those that train together.

    rank: from 0 to world_size - 1; rank 0 is the main one.
    world_size: number of processes on all machines.
    device: of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def broadcast_object(self, compute: Callable[[], Value]) -> Value:
        """Return what `compute` returns on rank 0; the other ranks do not call it."""
        if self.world_size == 1:
            return compute()
        held: list[Any] = [compute() if self.is_main else None]
        dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]

    def all_gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in order of rank, on every rank."""
        if self.world_size == 1:
            return [value]
        held: list[Any] = [None] * self.world_size
        dist.all_gather_object(held, value)
        return held

    def broadcast_weights(self, model: nn.Module) -> None:
        """Copy weights and statistics of rank 0's model to every rank's."""
        if self.world_size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model whose gradients are averaged over the ranks."""
        if self.world_size == 1:
            return model
        # an axis of length 1 has several legal strides; nothing is slower for it
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(
            model, device_ids=[self.device.index] if self.device.type == "cuda" else None
        )

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1:
            dist.destroy_process_group()


def launched_by_torchrun() -> bool:
    """Return whether torchrun, or a program that sets the same variables, started this process."""
    return "WORLD_SIZE" in os.environ


def init_distributed(device: torch.device) -> Distributed:
    """Return this process's place; where torchrun started several, join their process group.

    Args:
        device: of the process; on CUDA the machine's n-th process gets the n-th GPU.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Distributed(0, 1, device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        store, rank, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # torchrun keeps its store when it restarts: without a prefix the addresses of ranks that
        # have ended are read
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"rank {os.environ.get('RANK')} of {world_size} cannot join the others ({reason})."
            " Start them with torchrun"
        ) from error
    return Distributed(dist.get_rank(), world_size, device)


@contextmanager
def explain_lost_rank(distributed: Distributed) -> Iterator[None]:
    """Turn the errors that follow when another rank has ended into one line."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if distributed.world_size == 1 or not lost:
            raise
        message = "another rank of this run has ended; its own message says why"
        raise UserError(message) from error
