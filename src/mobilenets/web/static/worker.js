// Runs the network beside the page, so that the page stays quick.
import {inputOf} from "./picture.js";

const AGAIN = "write this folder anew with “mobilenets web RUN --output DIR”";
const TIMED_MS = 2000, LEAST_TIMED = 5;
let model, ort, session;

class Said extends Error {}

async function download(name, told) {
  const answer = await fetch(name).catch(() => { throw new Said(`${name.split("?")[0]} could not be had: is the network or the server gone?`); });
  if (!answer.ok) throw new Said(`${name.split("?")[0]} is missing (${answer.status}): ${AGAIN}.`);
  const parts = [], whole = model.bytes;
  let done = 0;
  for (const reader = answer.body.getReader(); ;) {
    const {value, done: over} = await reader.read();
    if (over) break;
    parts.push(value); done += value.length;
    told(Math.min(1, done / whole));
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function checkedModel() {
  const name = `${model.file}?${model.sha256.slice(0, 12)}`;
  const bytes = await download(name, share => postMessage({loaded: share}));
  // Only pages of https and of this machine may compute checksums.
  const digest = self.crypto?.subtle && await crypto.subtle.digest("SHA-256", bytes);
  const found = digest && Array.from(new Uint8Array(digest), byte => byte.toString(16).padStart(2, "0")).join("");
  if (bytes.length !== model.bytes || found && found !== model.sha256) throw new Said(`${model.file} is damaged: ${AGAIN}.`);
  return bytes;
}

// The runtime starts while the model is still on its way: a session of nothing fails, but not before that.
async function start({runtime, processor, threads}) {
  const folder = new URL(`./${runtime}/`, import.meta.url).href, gpu = processor === "gpu";
  ort = await import(`${folder}${gpu ? "ort.jspi.min.mjs" : "ort.wasm.min.mjs"}`).catch(() => { throw new Said(`The runtime is missing: ${AGAIN}.`); });
  Object.assign(ort.env.wasm, {wasmPaths: folder, numThreads: gpu ? 1 : threads});
  ort.env.logLevel = "fatal";
  await ort.InferenceSession.create(new Uint8Array(1)).catch(() => {});
}
let starting;

async function open({model: about, processor}) {
  model = about;
  const bytes = await checkedModel();
  await starting;
  const gpu = processor === "gpu";
  try {
    session = await ort.InferenceSession.create(bytes, {executionProviders: [gpu ? "webgpu" : "wasm"], logSeverityLevel: 4});
    // The first call prepares what the others find ready.
    await outputsOf(new Float32Array(shape().reduce((product, side) => product * side)));
  } catch (error) {
    throw new Said(`The model could not be started on the ${gpu ? "GPU" : "CPU"} (${String(error.message || error).split("\n")[0]}).`);
  }
  return {};
}

const shape = () => [1, model.preprocessing.mean.length, model.preprocessing.height, model.preprocessing.width];

async function outputsOf(input) {
  const results = await session.run({[session.inputNames[0]]: new ort.Tensor("float32", input, shape())});
  const {data} = results[session.outputNames[0]];
  return Float32Array.from(data);
}

let shown;

async function run({bitmap, blob}) {
  const began = performance.now();
  // Colour profiles are left alone, and EXIF turns the picture, as in training.
  const picture = bitmap || await createImageBitmap(blob, {colorSpaceConversion: "none", imageOrientation: "from-image"}).catch(() => { throw new Said("This picture is damaged: it could not be read."); });
  shown = inputOf(picture, model.preprocessing);
  picture.close();
  const prepared = performance.now(), outputs = await outputsOf(shown), over = performance.now();
  return {outputs, picture_ms: prepared - began, network_ms: over - prepared};
}

// How long the network takes for the last picture, over and over; the middle of all.
async function time() {
  const times = [], began = performance.now();
  while (times.length < LEAST_TIMED || performance.now() - began < TIMED_MS) {
    const start = performance.now();
    await outputsOf(shown);
    times.push(performance.now() - start);
  }
  times.sort((one, other) => one - other);
  return {median_ms: times[times.length >> 1], calls: times.length};
}

// One after another: a network does one thing at a time.
let before = Promise.resolve();
onmessage = ({data}) => {
  if (data.what === "start") {
    starting = start(data);
    // Whoever opens the model is told.
    starting.catch(() => {});
    return;
  }
  before = before.then(async () => {
    try {
      postMessage({id: data.id, ...await {open, run, time}[data.what](data)});
    } catch (error) {
      postMessage({id: data.id, problem: error instanceof Said ? error.message : `That did not work (${error.message || error}).`});
    }
  });
};
