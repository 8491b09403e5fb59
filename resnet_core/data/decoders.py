"""Processes that decode images, and the transfer of pixels to the device."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_core.data.decoding import View, decode_view
from resnet_core.fields import ConfigError

CHUNK = 32
"""Number of images that one process decodes at a time: part of a batch, so that all processes work on the next batch."""

Chunk = tuple[Sequence[View], bool]
"""Views to decode, and True if they complete a batch."""


class Decoders:
    """Processes that decode batches ahead of the training."""

    def __init__(self, processes: int, batch: int, device: torch.device) -> None:
        """Prepare the processes; the first batch starts them.

        Args:
            processes: number of processes.
            batch: typical number of images per batch; about two batches are decoded ahead.
            device: device of the pixels.
        """
        self._device = device
        self._schedule = _Schedule()
        self._loader: DataLoader[tuple[Tensor | ConfigError, bool]] | None = DataLoader(
            _Decoding(),
            sampler=self._schedule,
            batch_size=None,
            num_workers=processes,
            prefetch_factor=max(2, -(-2 * batch // (CHUNK * processes))),
            persistent_workers=True,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # separate, to leave the global generator unchanged
        )
        self._chunks: Iterator[tuple[Tensor | ConfigError, bool]] | None = None
        self._passes = 0

    def decode(self, batches: Iterable[Sequence[View]]) -> Iterator[Tensor]:
        """Yield the pixels of each batch (N, 3, H, W), uint8, on the device.

        Args:
            batches: views of each batch, all of one shape within a batch.

        Raises:
            ConfigError: a file is missing or damaged; the message names it.
            RuntimeError: another call of `decode`, or `close`, has ended this one.
        """
        parts = self._parts(batches)
        return self._copied_ahead(parts) if self._device.type == "cuda" else map(_joined, parts)

    def close(self) -> None:
        """Stop the processes."""
        self._passes += 1
        # This drops the last reference to DataLoader's iterator, whose finalizer stops the processes, even in the middle of a pass.
        self._chunks = self._loader = None

    def _parts(self, batches: Iterable[Sequence[View]]) -> Iterator[list[Tensor]]:
        if self._loader is None:
            raise RuntimeError("the batches are closed")
        self._passes += 1
        mine = self._passes
        self._schedule.batches = batches
        self._chunks = iter(self._loader)  # also clears the queues of an abandoned pass
        parts: list[Tensor] = []
        while True:
            if mine != self._passes or self._chunks is None:
                raise RuntimeError("these batches were ended: other batches were started, or the decoders were closed")
            chunk = next(self._chunks, None)
            if chunk is None:
                return
            pixels, ends_batch = chunk
            if isinstance(pixels, ConfigError):
                raise pixels
            parts.append(pixels)
            if ends_batch:
                yield parts
                parts = []

    def _copied_ahead(self, batches: Iterable[list[Tensor]]) -> Iterator[Tensor]:
        """Yield batches, copying the next one from pinned memory while the device works on the current one."""
        copying = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        ready: tuple[Tensor, torch.cuda.Event] | None = None
        for parts in chain(batches, (None,)):
            upcoming = None
            if parts is not None:
                with torch.cuda.stream(copying):
                    upcoming = torch.cat([part.to(self._device, non_blocking=True) for part in parts]), copying.record_event()
            if ready is not None:
                pixels, copied = ready
                working = torch.cuda.current_stream(self._device)
                working.wait_event(copied)
                pixels.record_stream(working)  # allocated on one stream, used on another: delays the reuse of its memory
                yield pixels
            ready = upcoming


class _Schedule:
    """Sampler that yields the next chunks to decode. DataLoader iterates over it in this process, a few chunks ahead."""

    batches: Iterable[Sequence[View]] = ()

    def __iter__(self) -> Iterator[Chunk]:
        for views in self.batches:
            for start in range(0, len(views), CHUNK):
                yield views[start : start + CHUNK], start + CHUNK >= len(views)


class _Decoding(Dataset[tuple[Tensor | ConfigError, bool]]):
    """Decoding of chunks in the processes, a pure function of the views."""

    def __getitem__(self, chunk: Chunk) -> tuple[Tensor | ConfigError, bool]:
        views, ends_batch = chunk
        try:
            # A permuted view of Pillow's channels-last pixels: no copy.
            return torch.from_numpy(np.stack([decode_view(view) for view in views])).permute(0, 3, 1, 2), ends_batch
        except ConfigError as error:
            return error, ends_batch  # returned, not raised: DataLoader would wrap the message


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts)
