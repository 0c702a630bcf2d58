"""Frames of video files and cameras, where OpenCV is installed."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.images import IMAGE_SUFFIXES, BadImageError, find_images, matches_of

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


@dataclass(frozen=True)
class Pictures:
    """Photos and frames that were asked for.

    Args:
        images: in order; what is wrong with a video comes in its place.
        count: about how many, where that is known.
        videos: whether frames are among them.
        live: whether they are a camera's, and have no end.
    """

    images: Iterable[Path | Frame | BadImageError]
    count: int | None
    videos: bool = False
    live: bool = False


def find_pictures(
    places: Sequence[str],
    every: float,
    *,
    leave_out: Callable[[BadImageError], None],
    over: Callable[[], bool],
) -> Pictures:
    """The photos and the frames of videos that files, folders, glob patterns and cameras name; of folders the photos alone.

    Args:
        every: seconds from one frame to the next; 0 takes all.
        leave_out: called for a video that can't be read; what it raises is raised here.
        over: as of `Video.frames`.

    Raises:
        ValueError: a place names nothing, or a camera is not asked for alone.
        ImportError: OpenCV is not installed, and a video is asked for.
    """
    found: list[Path | Video] = []
    counts: list[int | None] = []
    for place in chain.from_iterable(map(_videos_of, places)):
        if not Video.names(place):
            paths = find_images([place])
            found += paths
            counts.append(len(paths))
            continue
        video = Video(place, every)
        live = video.camera is not None
        if live and len(places) > 1:
            raise ValueError(f"{place} is watched until Ctrl-C: ask for it alone")
        try:
            counts.append(video.count())
        except BadImageError as error:
            leave_out(error)
            continue
        if live:
            return Pictures(_frames_of(video, over), None, videos=True, live=True)
        found.append(video)
    images = chain.from_iterable(
        _frames_of(place, over) if isinstance(place, Video) else [place] for place in found
    )
    known = [count for count in counts if count is not None]
    return Pictures(
        images,
        sum(known) if len(known) == len(counts) else None,
        videos=any(isinstance(place, Video) for place in found),
    )


def _frames_of(video: Video, over: Callable[[], bool]) -> Iterator[Frame | BadImageError]:
    try:
        yield from video.frames(over)
    except BadImageError as error:
        yield error


def _videos_of(place: str) -> list[str]:
    """A place, and before it the videos that it names where it is a pattern."""
    if Path(place).exists():
        return [place]
    matches = matches_of(place)
    videos = [str(match) for match in matches if Video.names(str(match))]
    photos = any(match.suffix.lower() in IMAGE_SUFFIXES for match in matches)
    return videos if videos and not photos else [*videos, place]
