"""The API's page: Swagger UI from this package, with nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from mobilenets.web.server import Page

# Swagger UI styles its elements one by one, and its pictures are in its style sheet.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mobilenets: the API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/style.css">
<div id="api"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
_START = """"use strict";
SwaggerUIBundle({
  url: "openapi.json", dom_id: "#api", validatorUrl: null, tryItOutEnabled: true, defaultModelsExpandDepth: 0,
});
// Swagger UI gives these no name to be read aloud.
new MutationObserver(() => {
  for (const input of document.querySelectorAll("input[type=file]:not([aria-label])")) input.setAttribute("aria-label", "An image");
}).observe(document.getElementById("api"), {childList: true, subtree: true});
"""
# Its own colours are too faint to be read by everybody.
_STYLE = """body { margin: 0; }
.swagger-ui .info .title small pre.version, .swagger-ui .info .title small.version-stamp { color: #fff; background: #46505c; }
.swagger-ui .info .title small.version-stamp pre.version, .swagger-ui .info .title small { background: #46505c; }
.swagger-ui .info .url, .swagger-ui a.nostyle { color: #1b4f91; }
.swagger-ui .opblock.opblock-get .opblock-summary-method { background: #1b5fa8; }
.swagger-ui .opblock.opblock-post .opblock-summary-method { background: #0b6b4a; }
.swagger-ui .btn.execute, .swagger-ui .btn.execute:hover { color: #fff; background: #1b5fa8; border-color: #1b5fa8; }
.swagger-ui .btn.cancel { color: #b00020; border-color: #b00020; }
.swagger-ui .parameter__in, .swagger-ui .parameter__deprecated, .swagger-ui .response-col_links,
.swagger-ui .json-schema-2020-12-expand-deep-button, .swagger-ui .json-schema-2020-12__attribute--muted { color: #4a4a4a; }
.swagger-ui .json-schema-2020-12__attribute--primary { color: #1b4f91; }
"""


def docs_pages() -> dict[str, Page]:
    """The page and its files by their paths."""
    vendor = files("mobilenets.web") / "vendor"
    html, script, style = (f"text/{kind}; charset=utf-8" for kind in ("html", "javascript", "css"))
    return {
        "/docs": Page(html, _HTML.encode()),
        "/docs/start.js": Page(script, _START.encode()),
        "/docs/style.css": Page(style, _STYLE.encode()),
        "/docs/swagger-ui-bundle.js": Page(script, (vendor / "swagger-ui-bundle.js").read_bytes()),
        "/docs/swagger-ui.css": Page(style, (vendor / "swagger-ui.css").read_bytes()),
    }
