"""Frames of video files and cameras, where OpenCV is installed."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.images import BadImageError

if TYPE_CHECKING:
    from cv2 import VideoCapture

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})
_CAMERA = re.compile(r"camera(?::(\d+))?")


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

    def count(self) -> int:
        """About how many frames there will be, by what the file says of itself; of a camera 1.

        Raises:
            BadImageError: it is missing, can't be read, or holds no frame.
            ImportError: OpenCV is not installed; it says how to install it.
        """
        capture = self._open()
        import cv2

        if not capture.grab():
            raise BadImageError(f"{self.place}: no frame of it can be read")
        frames, rate = (capture.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
        capture.release()
        if self.camera is not None or not (frames > 0 and rate > 0):
            return 1
        return math.ceil(frames / max(1.0, self.every * rate))

    def frames(self) -> Iterator[Frame]:
        """Its frames, upright, one at a time.

        Raises:
            BadImageError: it is missing, or can't be read.
            ImportError: OpenCV is not installed; it says how to install it.
        """
        capture = self._open()
        import cv2

        due, started = 0.0, time.monotonic()
        try:
            while capture.grab():
                if self.camera is None:
                    seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                else:
                    seconds = time.monotonic() - started
                # Times are rounded to a tick of the file's clock.
                if seconds < due - 1e-3:
                    continue
                whole, pixels_HWC = capture.retrieve()
                if not whole:
                    break
                yield Frame(self.place, seconds, cv2.cvtColor(pixels_HWC, cv2.COLOR_BGR2RGB))
                due = max(due, seconds) + self.every
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
        return capture
