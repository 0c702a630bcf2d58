"""The doctor's page: every finding with its picture, in one file that needs nothing but itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from mobilenets.data.doctor import Finding, Report
from mobilenets.data.files import write_aside
from mobilenets.data.images import BadImageError
from mobilenets.data.transforms import scaled
from mobilenets.web.pages import data_uri, render

THUMBNAIL = 160
# About 6 KB each: more would make a page that a browser is slow to open.
MOST_PICTURES = 1_000
_PLURAL = {"error": "errors", "warning": "warnings", "note": "notes"}


@dataclass(frozen=True)
class _Shown:
    finding: Finding
    picture: str | None
    other: str | None


@dataclass(frozen=True)
class _Section:
    kind: str
    severity: str
    shown: tuple[_Shown, ...]


def write_page(report: Report, path: Path) -> None:
    """Write the page: figures, then the findings kind by kind, copies side by side."""
    pictures = _Pictures(report)
    sections = [
        _Section(
            kind,
            severity,
            tuple(
                _Shown(finding, pictures.uri(finding.name), pictures.uri(finding.other))
                for finding in report.findings
                if (finding.severity, finding.kind) == (severity, kind)
            ),
        )
        for severity, kind in report.counts()
    ]
    numbers = report.to_dict()["counts"]
    page = render(
        "doctor.html",
        report=report,
        sections=sections,
        tiles=[(severity, numbers[severity], _PLURAL[severity]) for severity in numbers],
        splits=list(report.images),
        classes=_class_rows(report),
        left_out=pictures.left_out,
        most=MOST_PICTURES,
    )
    write_aside(path, page.encode())


def _class_rows(report: Report) -> list[tuple[str, list[int]]]:
    """Images of each class by split, smallest training class first; [] without classes."""
    labels = dict.fromkeys(
        label for classes in report.images.values() for label in classes if label
    )
    rows = [
        (label, [classes.get(label, 0) for classes in report.images.values()]) for label in labels
    ]
    return sorted(rows, key=lambda row: row[1])


class _Pictures:
    """Thumbnails by image name, read once each, up to a number."""

    def __init__(self, report: Report) -> None:
        self._items = report.item_by_name
        self._uris: dict[str, str | None] = {}
        self.left_out = 0

    def uri(self, name: str) -> str | None:
        """None where the name is no image's, or the image can't be shown."""
        if name in self._uris:
            return self._uris[name]
        item = self._items.get(name)
        if item is None:
            return None
        if len(self._uris) >= MOST_PICTURES:
            self.left_out += 1
            return None
        try:
            pixels_CHW = item.read()
        except BadImageError:
            self._uris[name] = None
            return None
        picture = Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy())
        # A small picture is enlarged as it is, and kept exact.
        kind: Literal["PNG", "JPEG"] = "PNG" if max(picture.size) < THUMBNAIL else "JPEG"
        self._uris[name] = data_uri(scaled(picture, THUMBNAIL), kind)
        return self._uris[name]
