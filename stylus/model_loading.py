"""Where models work, and that a process loads one at a time.

While they load one, diffusers and transformers change what all threads share: the methods of `torch.nn.Module` and of
their own classes, torch's dtype and its functions. A model that another thread made meanwhile had parameters without
data, or the wrong dtype.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stylus.errors import SettingsError

if TYPE_CHECKING:
    import torch

_TURN = threading.Lock()


@contextmanager
def model_loading() -> Iterator[None]:
    """Waits for the other threads' loads; the libraries show no progress bars of their own meanwhile."""
    from transformers.utils import logging

    with _TURN:
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            if shown:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def pick_device(name: str | None) -> "torch.device":
    """The device of that name, or the best there is. Raises SettingsError when it can't be used here."""
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(
            f"STYLUS_DEVICE={name}: this device can't be used here ({str(error).splitlines()[0]}). "
            "Set cpu, cuda, cuda:N or mps, or unset it."
        ) from error
    return device
