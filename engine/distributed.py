"""The processes that train one model together, as torchrun starts them, or the one alone.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html, section "Environment Variables".
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import UserError

JOIN_MINUTES = 15  # until a rank that waits for the others gives up; filling a cache takes a while

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together.

    rank: from 0; the first one writes.
    count: of all machines.
    device: of this process.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, make: Callable[[], Value]) -> Value:
        """Return what `make` returns in the first process; the others do not call it."""
        if self.count == 1:
            return make()
        held: list[Any] = [make() if self.is_first else None]
        dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in their order, in each of them."""
        if self.count == 1:
            return [value]
        held: list[Any] = [None] * self.count
        dist.all_gather_object(held, value)
        return held

    def copy_from_first(self, model: nn.Module) -> None:
        """Give the model of every rank the weights and statistics of the first one's."""
        if self.count > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def together(self, model: nn.Module) -> nn.Module:
        """Return the model whose gradients are the mean over the ranks."""
        if self.count == 1:
            return model
        # an axis of length 1 has several legal strides; nothing is slower for it
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(
            model, device_ids=[self.device.index] if self.device.type == "cuda" else None
        )

    def leave(self) -> None:
        """Part from the other processes."""
        if self.count > 1:
            dist.destroy_process_group()


def join_ranks(device: torch.device) -> Ranks:
    """Return this process's place; where torchrun started several, meet the others.

    Args:
        device: of the process; on CUDA the machine's nth process gets the nth GPU.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks(0, 1, device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    check_restarts()
    wait = timedelta(minutes=JOIN_MINUTES)
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=wait))
        if keeps_store():  # and in it, over restarts, the addresses of those that are gone
            start = f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
            store = dist.PrefixStore(start, store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=wait)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"process {os.environ.get('RANK')} of {count} cannot meet the others ({reason}); start"
            " them with torchrun, with --max-restarts to try again"
        ) from error
    return Ranks(dist.get_rank(), count, device)


def keeps_store() -> bool:
    """Return whether the processes meet in torchrun's own store, which outlives them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def check_restarts() -> None:
    """Refuse restarts on several machines where torchrun would keep its store over them.

    The machines then do not agree on the number of the start, so it cannot tell old addresses from
    new ones.
    """
    several = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if several and restarts and keeps_store():
        raise UserError(
            "--max-restarts on several machines: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the"
            " environment of every torchrun, so that the processes meet anew after a restart"
        )


def has_lost_a_rank(error: RuntimeError) -> bool:
    """Return whether an error says that another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
