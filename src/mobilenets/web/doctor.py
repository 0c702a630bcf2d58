"""The doctor's page: every finding with its picture, in one file that needs nothing but itself."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from mobilenets.data.doctor import Finding, Report
from mobilenets.data.images import BadImageError
from mobilenets.training.checkpoint import write_aside

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
    environment = Environment(
        loader=PackageLoader("mobilenets.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
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
    page = environment.get_template("doctor.html").render(
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
        self._uris[name] = _data_uri(picture)
        return self._uris[name]


def _data_uri(picture: Image.Image) -> str:
    scale = THUMBNAIL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # A small picture is enlarged as it is, and kept exact.
    sampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    kind = "PNG" if scale > 1 else "JPEG"
    encoded = io.BytesIO()
    picture.resize(size, sampling).save(encoded, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded.getvalue()).decode()}"
