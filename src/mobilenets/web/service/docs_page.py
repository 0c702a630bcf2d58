"""The API's page: Swagger UI from this package, with nothing from elsewhere."""

from __future__ import annotations

from mobilenets.web.pages import page_file
from mobilenets.web.server import Page

# Swagger UI styles its elements one by one, and its pictures are in its style sheet.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = ("static/docs.js", "static/docs.css", "vendor/swagger-ui-bundle.js", "vendor/swagger-ui.css")  # fmt: skip


def docs_pages() -> dict[str, Page]:
    """The page and its files by their paths."""
    pages = {"/docs": Page.named("docs.html", page_file("static/docs.html"))}
    for path in _FILES:
        name = path.split("/")[-1]
        pages[f"/docs/{name}"] = Page.named(name, page_file(path))
    return pages
