// What a network's outputs say, as `mobilenets predict` reads them.
const TOP = 5, LEAST_TOLD = .001, RADIUS_SHARE = .9, EARTH_KM = 6371.0088;

const largest = values => values.reduce((most, value) => Math.max(most, value), -Infinity);
const order = scores => scores.map((_, place) => place).sort((one, other) => scores[other] - scores[one] || one - other);

function logSoftmax(values) {
  const most = largest(values), sum = values.reduce((total, value) => total + Math.exp(value - most), 0);
  return values.map(value => value - most - Math.log(sum));
}

function classes({labels}, outputs) {
  // Outputs beyond the labels take their share of probability, but have no name to give.
  const scores = logSoftmax(Array.from(outputs)).map(Math.exp).slice(0, labels.length);
  return {predictions: order(scores).slice(0, TOP).map(index => ({label: labels[index], index, score: scores[index]}))};
}

function attributes({labels, thresholds}, outputs) {
  return {attributes: labels.map((label, place) => {
    const score = 1 / (1 + Math.exp(-outputs[place]));
    return {label, score, threshold: thresholds[place], yes: score >= thresholds[place]};
  })};
}

// Rows of left, top, right, bottom, score, class; those that are empty have a score of 0.
function boxes({labels, score: least}, outputs) {
  const predictions = [];
  for (let at = 0; at < outputs.length; at += 6) {
    const [score, index] = [outputs[at + 4], Math.round(outputs[at + 5])];
    if (score > 0 && score >= least) predictions.push({label: labels[index], index, score, box: Array.from(outputs.slice(at, at + 4))});
  }
  return {predictions};
}

function embedding(_, outputs) {
  const length = Math.hypot(...outputs) || 1;
  return {embedding: Array.from(outputs, value => value / length)};
}

export const cosine = (one, other) => one.reduce((total, value, place) => total + value * other[place], 0);

function kilometres([longitude, latitude], [other, across]) {
  const radians = Math.PI / 180, half = angle => Math.sin(angle * radians / 2) ** 2;
  const share = half(across - latitude) + Math.cos(latitude * radians) * Math.cos(across * radians) * half(other - longitude);
  return 2 * EARTH_KM * Math.asin(Math.min(1, Math.sqrt(share)));
}

function place({cells}, outputs) {
  const logits = Array.from(outputs, value => value / cells.temperature);
  const finest = new Array(cells.told_of.length).fill(0);
  let begin = 0;
  cells.sizes.forEach((size, level) => {
    const logs = logSoftmax(logits.slice(begin, begin + size));
    begin += size;
    cells.parents[level].forEach((parent, cell) => { finest[cell] += logs[parent]; });
  });
  const scores = new Array(cells.told.length).fill(0);
  logSoftmax(finest).forEach((log, cell) => { scores[cells.told_of[cell]] += Math.exp(log); });
  const sorted = order(scores), answer = cells.told[sorted[0]];
  const reaches = cells.told.map(cell => kilometres(answer.place, cell.place) + cell.spread_km);
  const near = reaches.map((_, cell) => cell).sort((one, other) => reaches[one] - reaches[other]);
  let passed = 0;
  const edge = near.find(cell => (passed += scores[cell]) >= RADIUS_SHARE) ?? near.at(-1);
  const likely = sorted.filter((cell, rank) => rank === 0 || scores[cell] >= LEAST_TOLD);
  return {
    place: answer.place, radius_km: Math.max(reaches[edge], cells.least_km), finest: cells.finest,
    cells: likely.map(cell => ({token: cells.told[cell].token, place: cells.told[cell].place, ring: cells.told[cell].ring, score: scores[cell]})),
  };
}

const READERS = {classification: classes, attributes, detection: boxes, embedding, geolocation: place};

export const read = (model, outputs) => READERS[model.task](model, outputs);
