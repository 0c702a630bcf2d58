// Whether this browser can run the page at all; written so that an old one understands it.
(function () {
  "use strict";
  var simd = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]);
  function say(sentence) {
    var problem = document.getElementById("problem");
    problem.textContent = sentence;
    problem.hidden = false;
    document.getElementById("work").hidden = true;
  }
  if (location.protocol === "file:") {
    say("A browser starts no model from a file: run “mobilenets web RUN”, or put this folder on any web server.");
  } else if (typeof WebAssembly !== "object" || !WebAssembly.validate(simd) || !window.OffscreenCanvas || !window.createImageBitmap) {
    say("This browser is too old for the model: it needs WebAssembly with SIMD, as Chrome 91, Firefox 114, Safari 16.4 and later have it.");
  } else {
    var script = document.createElement("script");
    script.type = "module";
    script.src = "app.js";
    script.onerror = function () { say("app.js is missing: write this folder anew with “mobilenets web RUN --output DIR”."); };
    document.head.appendChild(script);
  }
})();
