"""One model at a time is loaded in a process.

While they load one, diffusers and transformers change what all threads share: the methods of `torch.nn.Module` and of
their own classes, torch's dtype and its functions. A model that another thread made meanwhile had parameters without
data, or the wrong dtype.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
