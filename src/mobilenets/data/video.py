"""Frames of video files and cameras, where OpenCV is installed."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.images import BadImageError

if TYPE_CHECKING:
    from cv2 import VideoCapture

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})
_CAMERA = re.compile(r"camera(?::(\d{1,2}))?")
# In seconds; and how much of what a file says of its length there is at least.
_TICK, _WHOLE = 1e-3, 0.9


@dataclass(frozen=True)
class Frame:
    """One picture of a video.

    Args:
        place: the file or camera.
        seconds: since its beginning.
        pixels_HWC: uint8, RGB.
    """

    place: str
    seconds: float
    pixels_HWC: NDArray[np.uint8]

    def __str__(self) -> str:
        return f"{self.place} at {self.seconds:.2f} s"


@dataclass(frozen=True)
class Video:
    """A video file, or a camera (`camera`, `camera:1`), which has no end.

    Args:
        place: the file or camera.
        every: seconds from one frame to the next; 0 takes all.
    """

    place: str
    every: float = 1.0

    @classmethod
    def names(cls, place: str) -> bool:
        """Whether something is the name of a video or a camera.

        >>> [Video.names(place) for place in ("holiday.MP4", "camera:1", "holiday.jpg")]
        [True, True, False]
        """
        if Path(place).is_dir():
            return False
        return Path(place).suffix.lower() in VIDEO_SUFFIXES or cls(place).camera is not None

    @property
    def camera(self) -> int | None:
        """The number of the camera that is meant, if one is.

        >>> Video("camera").camera, Video("camera:2").camera
        (0, 2)
        """
        named = None if Path(self.place).is_file() else _CAMERA.fullmatch(self.place)
        return int(named[1] or 0) if named else None

    def count(self) -> int | None:
        """About how many frames there will be, if the file says how long it is; a camera does not.

        Raises:
            BadImageError: it is missing, can't be read, or holds no frame.
            ImportError: OpenCV is not installed; it says how to install it.
        """
        with self._opened() as capture:
            if not capture.grab():
                raise BadImageError(f"{self.place}: no frame of it can be read")
            seconds, rate = _length(capture)
        if seconds is None:
            return None
        return max(1, math.ceil(seconds / self.every if self.every else seconds * rate))

    def frames(self, over: Callable[[], bool] = lambda: False) -> Iterator[Frame]:
        """Its frames, upright, one at a time.

        Args:
            over: asked between frames; when it says so, no more are looked for.

        Raises:
            BadImageError: it is missing, can't be read, or ends before its end.
            ImportError: OpenCV is not installed; it says how to install it.
        """
        import cv2

        with self._opened() as capture:
            due = seconds = 0.0
            started = time.monotonic()
            while not over():
                if not capture.grab():
                    break
                if self.camera is None:
                    seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                else:
                    seconds = time.monotonic() - started
                # Times are rounded to a tick of the file's clock.
                if self.every and seconds < due - _TICK:
                    continue
                whole, pixels_HWC = capture.retrieve()
                if not whole:
                    break
                yield Frame(self.place, seconds, cv2.cvtColor(pixels_HWC, cv2.COLOR_BGR2RGB))
                while self.every and due < seconds + _TICK:
                    due += self.every
            else:
                return
            if self.camera is not None:
                raise BadImageError(f"{self.place}: it gives no more pictures")
            length, _ = _length(capture)
            if length is not None and seconds < _WHOLE * length - 1:
                raise BadImageError(
                    f"{self.place}: damaged after {seconds:.1f} of its {length:.1f} seconds"
                )

    @contextmanager
    def _opened(self) -> Iterator[VideoCapture]:
        capture = self._open()
        try:
            yield capture
        finally:
            capture.release()

    def _open(self) -> VideoCapture:
        # FFmpeg's own messages; what can't be read is said by us.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        try:
            import cv2
        except ImportError:
            raise ImportError(
                f"{self.place} needs OpenCV: pip install opencv-python-headless"
            ) from None
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        if self.camera is not None:
            capture = cv2.VideoCapture(self.camera)
            if not capture.isOpened():
                raise BadImageError(
                    f"{self.place}: there is no such camera, or another program uses it"
                )
            return capture
        if not Path(self.place).is_file():
            raise BadImageError(f"{self.place}: there is no such video")
        # An absolute path can't be taken for an address on the network.
        capture = cv2.VideoCapture(str(Path(self.place).absolute()), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise BadImageError(f"{self.place}: not a video that OpenCV can read")
        # OpenCV 4.11 has it switched off.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        return capture


def _length(capture: VideoCapture) -> tuple[float | None, float]:
    """Seconds, if the file says so, and frames a second."""
    import cv2

    frames, rate = (capture.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    return (frames / rate if frames > 0 and rate > 0 else None), rate
