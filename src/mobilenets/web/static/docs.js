"use strict";
SwaggerUIBundle({
  url: "openapi.json", dom_id: "#api", validatorUrl: null, tryItOutEnabled: true, defaultModelsExpandDepth: 0,
});
// Swagger UI gives these no name to be read aloud.
new MutationObserver(() => {
  for (const input of document.querySelectorAll("input[type=file]:not([aria-label])")) input.setAttribute("aria-label", "An image");
}).observe(document.getElementById("api"), {childList: true, subtree: true});
