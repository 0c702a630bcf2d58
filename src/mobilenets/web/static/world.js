// A map of the world with the cells that a photo may be from; needs d3-array, d3-geo and topojson-client.
"use strict";
const KM_PER_DEGREE = 111.195;

function placeWords([longitude, latitude]) {
  return `${Math.abs(latitude).toFixed(1)}° ${latitude >= 0 ? "N" : "S"}, ${Math.abs(longitude).toFixed(1)}° ${longitude >= 0 ? "E" : "W"}`;
}
function shareWords(score) { return `${(100 * score).toFixed(1)} %`; }

// Rows of a table with the five likeliest cells.
function cellRows(answer) {
  return answer.cells.slice(0, 5).map(cell => {
    const row = document.createElement("tr");
    for (const text of [cell.token, placeWords(cell.place), shareWords(cell.score)]) row.insertCell().textContent = text;
    return row;
  });
}

// Draws answers on a canvas: cells with a ring, a place and a score, light to dark in `colours`.
function worldMap({canvas, told, globe: globeButton, closer, farther, home}, world, colours) {
  const countries = topojson.feature(world, world.objects.countries);
  const borders = topojson.mesh(world, world.objects.countries);
  const pen = canvas.getContext("2d");
  let answer = null, globe = false, zoom = 1, centre = [0, 0], width = 0, height = 0, projection = null;

  // Thousandths to one, by powers of ten.
  function colourOf(score) {
    const at = Math.max(0, Math.min(1, 1 + Math.log10(score) / 3)) * (colours.length - 1);
    const low = Math.min(colours.length - 2, Math.floor(at)), share = at - low;
    const mixed = colours[low].map((value, channel) => Math.round(value + share * (colours[low + 1][channel] - value)));
    return `rgb(${mixed.join(" ")})`;
  }
  function project() {
    if (globe) {
      projection = d3.geoOrthographic().scale(zoom * Math.min(width, height) / 2.1).translate([width / 2, height / 2]).rotate([-centre[0], -centre[1]]).clipAngle(90);
    } else {
      projection = d3.geoNaturalEarth1().rotate([-centre[0], 0]).fitSize([width, height], {type: "Sphere"});
      projection.scale(projection.scale() * zoom).translate([width / 2, height / 2]);
      const [, y] = projection([centre[0], centre[1]]);
      projection.translate([width / 2, height - y]);
    }
  }
  function draw() {
    if (!answer) return;
    project();
    const style = getComputedStyle(document.documentElement), path = d3.geoPath(projection, pen);
    const fill = (shape, colour) => { pen.beginPath(); path(shape); pen.fillStyle = colour; pen.fill(); };
    const stroke = (shape, colour, size) => { pen.beginPath(); path(shape); pen.strokeStyle = colour; pen.lineWidth = size; pen.stroke(); };
    const variable = name => style.getPropertyValue(name).trim();
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, width, height);
    fill({type: "Sphere"}, variable("--sea"));
    fill(countries, variable("--land"));
    pen.globalAlpha = .85;
    for (const cell of [...answer.cells].reverse()) {
      fill(cell.shape, colourOf(cell.score));
    }
    pen.globalAlpha = 1;
    stroke(borders, variable("--border"), .6);
    stroke({type: "Sphere"}, variable("--border"), 1);
    if (answer.radius_km < 9000) {
      stroke(d3.geoCircle().center(answer.place).radius(answer.radius_km / KM_PER_DEGREE)(), variable("--ink"), 1.2);
    }
    const visible = !globe || d3.geoDistance(answer.place, centre) < Math.PI / 2;
    const at = projection(answer.place);
    if (visible && at) {
      pen.beginPath(); pen.arc(at[0], at[1], 5, 0, 7); pen.fillStyle = variable("--paper"); pen.fill();
      pen.strokeStyle = variable("--ink"); pen.lineWidth = 2.5; pen.stroke();
    }
  }
  function resize() {
    width = canvas.parentElement.clientWidth;
    height = Math.round(Math.min(width * (globe ? 1 : .56), Math.max(260, innerHeight * .75)));
    canvas.style.height = `${height}px`;
    canvas.width = width * devicePixelRatio; canvas.height = height * devicePixelRatio;
    draw();
  }
  function move(to) {
    centre = [((to[0] + 540) % 360) - 180, Math.max(-89, Math.min(89, to[1]))];
    draw();
  }
  function zoomTo(value) { zoom = Math.max(1, Math.min(60, value)); if (!globe && zoom === 1) centre = [centre[0], 0]; draw(); }
  function setGlobe(on) {
    globe = on;
    globeButton.setAttribute("aria-pressed", on);
    zoom = 1; centre = on ? answer.place : [0, 0];
    resize();
  }

  globeButton.addEventListener("click", () => setGlobe(!globe));
  closer.addEventListener("click", () => zoomTo(zoom * 1.5));
  farther.addEventListener("click", () => zoomTo(zoom / 1.5));
  home.addEventListener("click", () => { zoom = 1; centre = globe ? answer.place : [0, 0]; draw(); });
  const STEPS = {ArrowLeft: [-15, 0], ArrowRight: [15, 0], ArrowUp: [0, 10], ArrowDown: [0, -10]};
  canvas.addEventListener("keydown", event => {
    if (STEPS[event.key]) move([centre[0] + STEPS[event.key][0] / zoom, centre[1] + STEPS[event.key][1] / zoom]);
    else if (event.key === "+" || event.key === "=") zoomTo(zoom * 1.5);
    else if (event.key === "-") zoomTo(zoom / 1.5);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("wheel", event => { event.preventDefault(); zoomTo(zoom * Math.exp(-event.deltaY / 400)); }, {passive: false});
  let held = null;
  canvas.addEventListener("pointerdown", event => { held = [event.offsetX, event.offsetY]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointermove", event => {
    const at = [event.offsetX, event.offsetY];
    if (held) {
      const degrees = 57.3 / projection.scale();
      move([centre[0] - (at[0] - held[0]) * degrees, centre[1] + (at[1] - held[1]) * degrees]);
      held = at;
    }
    const place = projection.invert(at);
    const cell = place && answer.cells.find(one => d3.geoContains(one.shape, place));
    told.hidden = !cell;
    if (cell) told.textContent = `${shareWords(cell.score)} · cell ${cell.token} · ${placeWords(cell.place)}`;
  });
  canvas.addEventListener("pointerleave", () => { told.hidden = true; });
  addEventListener("resize", resize);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  function show(found, name) {
    answer = found;
    // S2 goes round a cell as a map's reader would call it counter-clockwise, and d3 takes the inside of a clockwise ring.
    answer.cells.forEach(cell => { cell.shape = {type: "Polygon", coordinates: [[...cell.ring, cell.ring[0]].reverse()]}; });
    canvas.setAttribute("aria-label", `A map of the world: ${name} at ${placeWords(answer.place)}`);
    if (globe) centre = answer.place;
    resize();
  }
  return {show, project: place => projection(place), view: () => [zoom, ...centre]};
}
