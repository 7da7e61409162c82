"""Every pixel of prepared data compared with their card, while training has begun."""

from __future__ import annotations

import threading

from softtrunc.data import ImageDataset
from softtrunc.feedback.errors import UserError


class DataCheck:
    """A comparison in a thread of its own.

    Args:
        data: the images. `here`: whether this is the process that compares.
    """

    def __init__(self, data: ImageDataset, *, here: bool) -> None:
        self._data = data
        self._error: ValueError | None = None
        # A daemon: nobody waits for it who has a reason to end.
        self._thread = threading.Thread(target=self._compare, daemon=True, name="softtrunc-verify")
        if here and data.unread:
            self._thread.start()

    def _compare(self) -> None:
        try:
            self._data.verify()
        except ValueError as error:
            self._error = error

    def look(self) -> None:
        """Refuse data that are known by now to have changed.

        Raises:
            UserError: if they have.
        """
        if self._error is not None:
            raise UserError(f"{self._error}; nothing learned of them was saved") from self._error

    def wait(self) -> None:
        """Refuse data that have changed, once all of them were read.

        Raises:
            UserError: if they have.
        """
        if self._thread.is_alive():
            self._thread.join()
        self.look()
