"""What the pages share: filling a template in, and pictures inside the page."""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image


def render(template: str, **values: Any) -> str:
    """A page from a template of this folder; whatever is filled in is escaped."""
    environment = Environment(
        loader=PackageLoader("mobilenets.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def embedded(value: Any) -> Markup:
    r"""JSON inside a page: no text in it can end the script that it stands in.

    >>> print(embedded({"name": "</script>"}))
    {"name": "\u003c/script>"}
    """
    return Markup(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))  # noqa: S704


def page_file(path: str) -> bytes:
    """A file of this folder that pages carry, such as `vendor/d3-geo.min.js`."""
    return (files("mobilenets.web") / path).read_bytes()


def data_uri(picture: Image.Image, kind: Literal["PNG", "JPEG"]) -> str:
    """A picture as an address that holds it."""
    encoded = io.BytesIO()
    picture.save(encoded, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded.getvalue()).decode()}"
