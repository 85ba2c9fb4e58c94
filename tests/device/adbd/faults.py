"""What goes wrong with a daemon of the tests, and when."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


class CutError(Exception):
    """The link is to be cut now."""


@dataclass
class Faults:
    """What a test wants to go wrong; all of it may be set at any time.

    Attributes
    ----------
    messages
        How many messages came and went over this daemon's links, all in all.
    cut_at, stall_at
        The number of the message before which the link is cut (once; the next link works), or before which the daemon
        falls silent for good. `cut_after` and `stall_after` count from now.
    refuse
        The beginnings of services (``"sync:"``) that are not opened.
    damage
        Whether a byte of every file that comes is changed.
    space
        Bytes of files that fit, or None for as many as the disk takes; more are refused as on a full disk.
    silent
        Whether the daemon accepts links but does not say who it is.
    unauthorised
        Whether the daemon asks for a key and accepts none.
    banner
        The kind of device that it says it is: ``device``, ``recovery``, ...
    features
        What it says it can.
    """

    messages: int = 0
    cut_at: int | None = None
    stall_at: int | None = None
    refuse: tuple[str, ...] = ()
    damage: bool = False
    space: int | None = None
    silent: bool = False
    unauthorised: bool = False
    banner: str = "device"
    features: tuple[str, ...] = ("shell_v2", "cmd", "stat_v2", "fixed_push_mkdir")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cut_after(self, messages: int) -> None:
        """Cut the link once, when this many more messages have passed."""
        with self._lock:
            self.cut_at = self.messages + messages

    def stall_after(self, messages: int) -> None:
        """Fall silent when this many more messages have passed."""
        with self._lock:
            self.stall_at = self.messages + messages

    def pass_message(self) -> bool:
        """Count a message that is about to pass; False if the daemon is silent by now.

        Raises
        ------
        CutError
            If the link is to be cut instead.
        """
        with self._lock:
            if self.cut_at is not None and self.messages >= self.cut_at:
                self.cut_at = None
                raise CutError
            if self.stall_at is not None and self.messages >= self.stall_at:
                return False
            self.messages += 1
            return True

    def take_space(self, size: int) -> bool:
        """Use up some of the disk; False if there is not enough."""
        with self._lock:
            if self.space is None:
                return True
            if size > self.space:
                return False
            self.space -= size
            return True
