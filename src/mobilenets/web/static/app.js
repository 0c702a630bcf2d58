// The page: pictures in, answers out; the network runs in worker.js.
import {cosine, read} from "./answers.js";

const at = id => document.getElementById(id);
const WIDEST = 1200, COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000"];
// Of its own accord, and when it is asked to.
const USUAL_THREADS = 4, MOST_THREADS = 16;

class Said extends Error {}
function fail(error) {
  at("problem").textContent = error instanceof Said ? error.message : `That did not work (${error.message || error}).`;
  at("problem").hidden = false;
}
const wellAgain = () => { at("problem").hidden = true; };

// The network, and the requests to it that wait for their answers.
let worker, broken = null, waiting = new Map(), asked = 0;
function ask(what, values = {}, moved = []) {
  if (broken) return Promise.reject(broken);
  const id = ++asked;
  return new Promise((resolve, reject) => {
    waiting.set(id, {resolve, reject});
    worker.postMessage({id, what, ...values}, moved);
  });
}
function startWorker() {
  worker?.terminate();
  for (const {reject} of waiting.values()) reject(new Said("This picture was given up: the model moves."));
  waiting = new Map();
  broken = null;
  worker = new Worker("worker.js", {type: "module"});
  worker.postMessage({what: "start", runtime: document.documentElement.dataset.runtime, processor: at("processor").value, threads});
  worker.onmessage = ({data}) => {
    if (data.loaded !== undefined) { at("loading").value = data.loaded; return; }
    const {resolve, reject} = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.problem) reject(new Said(data.problem)); else resolve(data);
  };
  worker.onerror = event => {
    event.preventDefault();
    broken = new Said("worker.js is missing or damaged: write this folder anew with “mobilenets web RUN --output DIR”.");
    for (const {reject} of waiting.values()) reject(broken);
    waiting.clear();
  };
}

const wished = new URLSearchParams(location.hash.slice(1));
const processors = new Map([["cpu", ""]]);
// Threads wait for each other: more than half of the cores make small networks slower.
const wishedThreads = Math.min(MOST_THREADS, Math.floor(Number(wished.get("threads"))));
const threads = crossOriginIsolated ? wishedThreads > 0 ? wishedThreads : Math.min(USUAL_THREADS, Math.ceil(navigator.hardwareConcurrency / 2) || 1) : 1;
processors.set("cpu", `CPU, ${threads === 1 ? "1 thread" : `${threads} threads`}`);

let model, ready;
async function begin() {
  startWorker();
  const answer = await fetch("model.json").catch(() => { throw new Said("model.json could not be had: is the network or the server gone?"); });
  if (!answer.ok) throw new Said(`model.json is missing (${answer.status}): write this folder anew with “mobilenets web RUN --output DIR”.`);
  model = await answer.json().catch(() => { throw new Said("model.json is damaged: write this folder anew with “mobilenets web RUN --output DIR”."); });
  showLeast();
  await open();
}
async function open() {
  const processor = at("processor").value;
  at("loading").hidden = false; at("loading").removeAttribute("value");
  at("state").textContent = `Loading the model, ${(model.bytes / 1e6).toFixed(1)} MB`;
  try {
    await ask("open", {model, processor});
  } catch (error) {
    at("state").textContent = "The model does not run.";
    throw error;
  } finally {
    at("loading").hidden = true;
  }
  sayReady();
}
const sayReady = () => { at("state").textContent = `Ready: ${model.name}, ${processors.get(at("processor").value)}`; };
// Its runtime is loaded only once it is asked for.
async function offerGpu() {
  const adapter = "Suspending" in WebAssembly && await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return;
  processors.set("gpu", "GPU, by WebGPU");
  listProcessors();
  if (wished.get("processor") === "gpu") { at("processor").value = "gpu"; await move(); }
}
function listProcessors() {
  const chosen = at("processor").value;
  at("processor").replaceChildren(...[...processors].map(([value, text]) => new Option(text, value)));
  at("processor").value = chosen || "cpu";
}
async function move() {
  wellAgain();
  startWorker();
  ready = open().catch(async error => {
    if (at("processor").value !== "gpu") throw error;
    at("processor").value = "cpu"; processors.delete("gpu"); listProcessors();
    fail(new Said(`${error.message} The CPU goes on.`));
    startWorker();
    await open();
  });
  await ready;
  for (const slot of slots) if (slot.blob) await slot.take(slot.blob);
}
function keepForLater() {
  navigator.serviceWorker?.register("service-worker.js").catch(() => { /* The page works without it, as long as there is a network. */ });
}

// Of each picture: where it is shown, and what the network said of it.
class Slot {
  constructor(section) {
    [this.stage, this.canvas, this.video, this.empty] = [".stage", "canvas", "video", ".empty"].map(name => section.querySelector(name));
    this.name = section.getAttribute("aria-label");
    const input = section.querySelector("input");
    input.addEventListener("change", () => { if (input.files[0]) this.offer(input.files[0]); input.value = ""; });
    section.addEventListener("dragover", event => { event.preventDefault(); event.stopPropagation(); this.stage.classList.add("over"); });
    section.addEventListener("dragleave", () => this.stage.classList.remove("over"));
    section.addEventListener("drop", event => {
      event.preventDefault(); event.stopPropagation();
      this.stage.classList.remove("over");
      if (event.dataTransfer.files[0]) this.offer(event.dataTransfer.files[0]);
    });
  }
  offer(blob) {
    stopCamera();
    wellAgain();
    return this.take(blob).catch(fail);
  }
  async take(blob) {
    await ready;
    const image = await opened(blob);
    at("state").textContent = `Looking at ${blob.name || "the picture"}`;
    const began = performance.now(), {outputs, picture_ms, network_ms} = await ask("run", {blob}).finally(sayReady);
    this.blob = blob;
    this.draw(image, image.naturalWidth, image.naturalHeight);
    this.answered(outputs, {picture_ms, network_ms, whole_ms: performance.now() - began});
    URL.revokeObjectURL(image.src);
  }
  // Large pictures are shown smaller: a screen has no room for them, nor a phone's memory.
  draw(source, width, height) {
    const scale = Math.min(1, WIDEST / Math.max(width, height));
    Object.assign(this.canvas, {width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale))});
    this.canvas.getContext("2d").drawImage(source, 0, 0, this.canvas.width, this.canvas.height);
    this.canvas.hidden = false; this.video.hidden = true; this.empty.hidden = true;
  }
  answered(outputs, times) {
    this.outputs = outputs;
    this.answer = read(model, outputs);
    if (model.task === "detection") this.drawBoxes();
    show(times);
  }
  drawBoxes() {
    const {canvas} = this, pen = canvas.getContext("2d"), thick = Math.max(2, Math.min(canvas.width, canvas.height) / 150), size = Math.max(12, canvas.height / 26);
    pen.font = `${size}px system-ui, sans-serif`; pen.lineWidth = thick; pen.textBaseline = "top";
    // The surest last, on top of the others.
    for (const {label, index, score, box} of [...this.answer.predictions].reverse()) {
      const [left, top, right, bottom] = box.map((side, place) => side * (place % 2 ? canvas.height : canvas.width));
      const text = `${label} ${percent(score)}`, wide = pen.measureText(text).width + size / 2, x = Math.max(0, Math.min(left, canvas.width - wide)), y = Math.max(0, top - 1.25 * size);
      pen.strokeStyle = pen.fillStyle = COLOURS[index % COLOURS.length];
      pen.strokeRect(left, top, right - left, bottom - top);
      pen.fillRect(x, y, wide, 1.25 * size);
      pen.fillStyle = "white";
      pen.fillText(text, x + size / 4, y + size / 8);
    }
  }
}
async function opened(blob) {
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  await new Promise((resolve, reject) => { image.onload = resolve; image.onerror = () => reject(new Said(`${blob.name || "What was pasted"} is not a picture that this browser can read.`)); });
  const pixels = image.naturalWidth * image.naturalHeight;
  if (!pixels) throw new Said(`${blob.name || "This picture"} tells no size in pixels.`);
  if (pixels > model.most_pixels) throw new Said(`${blob.name || "This picture"} has ${(pixels / 1e6).toFixed(0)} megapixels, and ${(model.most_pixels / 1e6).toFixed(0)} are the most that are read: make it smaller.`);
  return image;
}

// Answers.
const percent = score => `${(100 * score).toFixed(1)} %`;
let map;
function show(times) {
  const slot = slots.find(one => one.answer), {rows, first, lit} = TELLERS[model.task](slot.answer);
  at("answer").textContent = first;
  at("rows").replaceChildren(...rows.map((cells, place) => {
    if (cells instanceof Node) return cells;
    const row = document.createElement("tr");
    if (lit && !lit[place]) row.className = "no";
    for (const text of cells) row.insertCell().textContent = text;
    return row;
  }));
  at("rows").parentElement.hidden = rows.length === 0;
  for (const one of slots) if (one.answer) one.canvas.setAttribute("aria-label", slots.length > 1 ? one.name : `${one.name}: ${first}`);
  at("times").textContent = `Picture ${times.picture_ms.toFixed(1)} ms, network ${times.network_ms.toFixed(1)} ms, ${(1000 / times.whole_ms).toFixed(1)} frames/s`;
  at("measure").disabled = false;
  document.dispatchEvent(new CustomEvent("answered", {detail: {answers: slots.map(one => one.answer), ...times}}));
}
const TELLERS = {
  classification: ({predictions}) => ({first: `${predictions[0].label}, ${percent(predictions[0].score)}`, rows: predictions.map(({label, score}) => [label, percent(score)])}),
  attributes({attributes}) {
    const sorted = [...attributes].sort((one, other) => other.yes - one.yes || other.score - one.score), found = sorted.filter(one => one.yes);
    return {first: found.map(one => one.label).join(", ") || "None of the attributes", rows: sorted.map(({label, score, yes}) => [label, percent(score), yes ? "yes" : "no"]), lit: sorted.map(one => one.yes)};
  },
  detection: ({predictions}) => ({first: predictions.length ? counted(predictions) : "Nothing found", rows: predictions.map(({label, score, box}) => [label, percent(score), box.map(side => side.toFixed(2)).join(" ")])}),
  embedding() {
    const given = slots.map(one => one.answer?.embedding);
    if (!given[0] || !given[1]) return {first: "Give a second picture to compare with.", rows: []};
    return {first: `Cosine ${cosine(...given).toFixed(3)}`, rows: [["cosine, 1 is alike", cosine(...given).toFixed(4)], ["values each", given[0].length]]};
  },
  geolocation(answer) {
    map ||= worldMap(Object.fromEntries(["map", "told", "globe", "closer", "farther", "home"].map(id => [id === "map" ? "canvas" : id, at(id)])), model.world, model.colours);
    map.show(answer, slots[0].name);
    return {first: `${placeWords(answer.place)}, within ${Math.round(answer.radius_km).toLocaleString("en")} km`, rows: cellRows(answer)};
  },
};
function counted(predictions) {
  const counts = new Map();
  for (const {label} of predictions) counts.set(label, (counts.get(label) || 0) + 1);
  return [...counts].map(([label, count]) => (count > 1 ? `${count} × ${label}` : label)).join(", ");
}
function showLeast() {
  if (model.task !== "detection") return;
  at("least").value = Math.round(100 * model.score);
  at("least-told").textContent = `${at("least").value} %`;
  at("least").addEventListener("input", async () => {
    model.score = at("least").value / 100;
    at("least-told").textContent = `${at("least").value} %`;
    if (slots[0].blob && !stream) slots[0].take(slots[0].blob).catch(fail);
  });
}

// The camera: one frame after another, as fast as the network is.
let stream = null;
async function startCamera() {
  wellAgain();
  if (!navigator.mediaDevices) throw new Said("Browsers give the camera to pages of https or of this machine alone: open this page so.");
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
  } catch (error) {
    const why = {NotAllowedError: "The camera was refused: allow it for this page in the browser's settings, or choose a picture.", NotFoundError: "There is no camera here: choose a picture.", NotReadableError: "The camera is in use elsewhere: close what uses it, or choose a picture."};
    throw new Said(why[error.name] || `The camera does not work (${error.message}): choose a picture.`);
  }
  at("camera").textContent = "Stop the camera"; at("camera").setAttribute("aria-pressed", true);
  at("answer").setAttribute("aria-live", "off");
  const slot = slots.at(-1), {video} = slot, mine = stream;
  slot.blob = null;
  video.srcObject = stream;
  await video.play();
  let before = performance.now();
  while (stream === mine) {
    await ready;
    const bitmap = await createImageBitmap(video), shown = await createImageBitmap(bitmap);
    const {outputs, picture_ms, network_ms} = await ask("run", {bitmap}, [bitmap]);
    if (stream !== mine) break;
    slot.draw(shown, shown.width, shown.height);
    shown.close();
    const now = performance.now();
    slot.answered(outputs, {picture_ms, network_ms, whole_ms: now - before});
    before = now;
    await new Promise(requestAnimationFrame);
  }
}
function stopCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  at("camera").textContent = "Use the camera"; at("camera").setAttribute("aria-pressed", false);
  at("answer").setAttribute("aria-live", "polite");
}

const slots = [...document.querySelectorAll(".slot")].map(section => new Slot(section));
const following = () => slots.find(one => !one.answer) ?? slots.at(-1);
listProcessors();
at("processor").addEventListener("change", () => move().catch(fail));
at("camera").addEventListener("click", () => { if (stream) stopCamera(); else startCamera().catch(error => { stopCamera(); fail(error); }); });
at("measure").addEventListener("click", async () => {
  at("measure").disabled = true;
  at("times").textContent = "Measuring for two seconds";
  try {
    const {median_ms, calls} = await ask("time");
    at("times").textContent = `Network ${median_ms.toFixed(2)} ms, the middle of ${calls} calls: ${(1000 / median_ms).toFixed(1)} frames/s on ${processors.get(at("processor").value)}`;
    document.dispatchEvent(new CustomEvent("measured", {detail: {median_ms, calls}}));
  } catch (error) { fail(error); }
  at("measure").disabled = false;
});
addEventListener("paste", event => {
  const file = [...event.clipboardData.files][0];
  if (file) following().offer(file); else fail(new Said("What was pasted holds no picture."));
});
addEventListener("dragover", event => event.preventDefault());
addEventListener("drop", event => { event.preventDefault(); if (event.dataTransfer.files[0]) following().offer(event.dataTransfer.files[0]); });
ready = begin();
ready.then(offerGpu).then(keepForLater).catch(fail);
