// A picture as the network's input, as `mobilenets predict` makes it: antialiased, to 8 bits after each direction.
const PIXELS_AT_ONCE = 1 << 21;

const FILTERS = {
  bilinear: {reach: 1, value: x => Math.max(0, 1 - Math.abs(x))},
  bicubic: {reach: 2, value: x => {
    const a = Math.abs(x);
    return a < 1 ? (1.5 * a - 2.5) * a * a + 1 : a < 2 ? ((-.5 * a + 2.5) * a - 4) * a + 2 : 0;
  }},
};

// Half goes to the even neighbour, as in Python.
const rounded = value => { const near = Math.round(value); return near - value === .5 && near % 2 ? near - 1 : near; };

// How large the whole picture would become, and which window of that is the input.
export function windowOf(width, height, {width: across, height: down, resize, crop_fraction: kept}) {
  if (resize === "squash") return {width: across, height: down, left: 0, top: 0};
  const scale = Math.max(down / height, across / width) / kept;
  const scaled = {width: Math.max(rounded(width * scale), across), height: Math.max(rounded(height * scale), down)};
  return {...scaled, left: Math.floor((scaled.width - across) / 2), top: Math.floor((scaled.height - down) / 2)};
}

// Of each output place from `first` on: where its inputs begin, and their weights, whole numbers of which 1 is `one`.
// PyTorch weights 8-bit values so: with as many bits as let the largest weight fit into 16.
export function weightsOf(from, to, first, count, interpolation) {
  const scale = from / to, window = places => places.slice(first, first + count);
  if (from === to || interpolation === "nearest") {
    const nearest = Array.from({length: to}, (_, out) => ({start: Math.min(from - 1, Math.floor(out * scale)), weights: [1]}));
    return {one: 1, places: window(nearest)};
  }
  const {reach, value} = FILTERS[interpolation], wide = Math.max(1, scale);
  const places = Array.from({length: to}, (_, out) => {
    const centre = (out + .5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach * wide + .5)), end = Math.min(from, Math.trunc(centre + reach * wide + .5));
    const weights = Array.from({length: end - start}, (_, step) => value((start + step - centre + .5) / wide));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return {start, weights: weights.map(weight => weight / sum)};
  });
  const largest = places.reduce((most, {weights}) => Math.max(most, ...weights), 0);
  let bits = 0;
  while (bits < 22 && Math.trunc(.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const one = 2 ** bits, whole = weight => Math.trunc(weight * one + (weight < 0 ? -.5 : .5));
  return {one, places: window(places).map(({start, weights}) => ({start, weights: weights.map(whole)}))};
}

const last = weights => weights.start + weights.weights.length;

// 8-bit values (H, W, 4) of the window, where `read(left, top, width, height)` gives such values of the picture.
export function resized(read, width, height, preprocessing) {
  const {width: across, height: down, interpolation} = preprocessing, target = windowOf(width, height, preprocessing);
  const {one: unit, places: columns} = weightsOf(width, target.width, target.left, across, interpolation);
  const {one: whole, places: rows} = weightsOf(height, target.height, target.top, down, interpolation);
  const [left, top] = [columns[0].start, rows[0].start], wide = Math.max(...columns.map(last)) - left, bottom = Math.max(...rows.map(last));
  const sums = new Float64Array(down * across * 4), line = new Uint8ClampedArray(across * 4);
  const stripe = Math.max(1, Math.floor(PIXELS_AT_ONCE / wide));
  // Rows of the output that still take rows of the picture.
  let open = 0;
  for (let y = top; y < bottom; y += stripe) {
    const count = Math.min(stripe, bottom - y), pixels = read(left, y, wide, count);
    for (let row = 0; row < count; row++) {
      const base = row * wide * 4;
      columns.forEach(({start, weights}, column) => {
        let red = 0, green = 0, blue = 0, alpha = 0, at = base + (start - left) * 4;
        for (const weight of weights) {
          red += weight * pixels[at]; green += weight * pixels[at + 1]; blue += weight * pixels[at + 2]; alpha += weight * pixels[at + 3];
          at += 4;
        }
        const to = 4 * column;
        line[to] = Math.floor(red / unit + .5); line[to + 1] = Math.floor(green / unit + .5);
        line[to + 2] = Math.floor(blue / unit + .5); line[to + 3] = Math.floor(alpha / unit + .5);
      });
      while (open < down && last(rows[open]) <= y + row) open++;
      for (let out = open; out < down && rows[out].start <= y + row; out++) {
        const weight = rows[out].weights[y + row - rows[out].start] || 0, to = out * across * 4;
        for (let value = 0; value < line.length; value++) sums[to + value] += weight * line[value];
      }
    }
  }
  return Uint8ClampedArray.from(sums, sum => Math.floor(sum / whole + .5));
}

// (C, H, W) of float32: `(pixel / 255 - mean) / std`.
export function normalised(pixels, {width, height, channels, mean, std}) {
  const order = {RGB: [0, 1, 2], BGR: [2, 1, 0], L: [0], RGBA: [0, 1, 2, 3]}[channels], area = width * height;
  const input = new Float32Array(order.length * area);
  order.forEach((from, channel) => {
    for (let place = 0; place < area; place++) input[channel * area + place] = (pixels[4 * place + from] / 255 - mean[channel]) / std[channel];
  });
  return input;
}

function grey(pixels) {
  for (let at = 0; at < pixels.length; at += 4) {
    pixels[at] = (19595 * pixels[at] + 38470 * pixels[at + 1] + 7471 * pixels[at + 2] + 32768) >> 16;
  }
  return pixels;
}

// What the network takes, of something that can be drawn.
export function inputOf(bitmap, preprocessing) {
  let canvas, pen;
  const read = (left, top, width, height) => {
    if (!canvas || canvas.width !== width || canvas.height !== height) {
      canvas = new OffscreenCanvas(width, height);
      pen = canvas.getContext("2d", {willReadFrequently: true});
    }
    pen.clearRect(0, 0, width, height);
    if (preprocessing.channels !== "RGBA") {
      pen.fillStyle = "white";
      pen.fillRect(0, 0, width, height);
    }
    pen.drawImage(bitmap, left, top, width, height, 0, 0, width, height);
    const {data} = pen.getImageData(0, 0, width, height);
    return preprocessing.channels === "L" ? grey(data) : data;
  };
  return normalised(resized(read, bitmap.width, bitmap.height, preprocessing), preprocessing);
}
