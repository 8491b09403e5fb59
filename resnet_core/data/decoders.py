"""Processes that decode images, and the way of the pixels from there to the device."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_core.data.decoding import View, decode_view
from resnet_core.fields import ConfigError

CHUNK = 32
"""Images that one process decodes at a time: a part of a batch, so that all processes work on the next one."""

Chunk = tuple[Sequence[View], bool]
"""What to decode, and whether it ends a batch."""


class Decoders:
    """Decodes batch after batch in other processes, ahead of whoever takes them."""

    def __init__(self, processes: int, batch: int, device: torch.device) -> None:
        """Starts nothing yet.

        Args:
            processes: how many.
            batch: usual images per batch; two batches are kept in the making.
            device: where the pixels are wanted.
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
            generator=torch.Generator(),  # of its own: the global one is left alone
        )
        self._chunks: Iterator[tuple[Tensor | ConfigError, bool]] | None = None
        self._passes = 0

    def decode(self, batches: Iterable[Sequence[View]]) -> Iterator[Tensor]:
        """The pixels of each batch on the device (N, 3, H, W), uint8. All views of a batch have one shape.

        Raises:
            ConfigError: a file is gone or damaged; its text names the file.
            RuntimeError: somebody asked for other batches meanwhile.
        """
        parts = self._parts(batches)
        return self._copied_ahead(parts) if self._device.type == "cuda" else map(_joined, parts)

    def close(self) -> None:
        """Ends the processes."""
        self._passes += 1
        # Nothing else holds on to DataLoader's iterator: its finalizer runs here, also where a pass was left half-way.
        self._chunks = self._loader = None

    def _parts(self, batches: Iterable[Sequence[View]]) -> Iterator[list[Tensor]]:
        if self._loader is None:
            raise RuntimeError("the batches are closed")
        self._passes += 1
        mine = self._passes
        self._schedule.batches = batches
        self._chunks = iter(self._loader)  # also drops what an abandoned pass left in the queues
        parts: list[Tensor] = []
        while True:
            if mine != self._passes or self._chunks is None:
                raise RuntimeError("these batches cannot go on: others were begun, or all were closed")
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
        """Copies the next batch from pinned memory while the device works on this one."""
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
                pixels.record_stream(working)  # made on one stream, used on another: not to be reused too early
                yield pixels
            ready = upcoming


class _Schedule:
    """What is to be decoded next, in chunks. DataLoader asks for them in this process, a few ahead."""

    batches: Iterable[Sequence[View]] = ()

    def __iter__(self) -> Iterator[Chunk]:
        for views in self.batches:
            for start in range(0, len(views), CHUNK):
                yield views[start : start + CHUNK], start + CHUNK >= len(views)


class _Decoding(Dataset[tuple[Tensor | ConfigError, bool]]):
    """What happens in the processes. Nothing but the views decides it."""

    def __getitem__(self, chunk: Chunk) -> tuple[Tensor | ConfigError, bool]:
        views, ends_batch = chunk
        try:
            # Channels last, as Pillow has them: only the shape says otherwise.
            return torch.from_numpy(np.stack([decode_view(view) for view in views])).permute(0, 3, 1, 2), ends_batch
        except ConfigError as error:
            return error, ends_batch  # not raised: DataLoader would wrap its text in a text of its own


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts)
