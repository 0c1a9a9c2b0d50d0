// COCO's run-length encoding of masks, read and painted. Knows no document beyond the canvas that it is given.

const LARGEST = 3e6; // pixels of a canvas; of a larger picture every second or third is painted

/** The lengths of the runs of zeros and ones in turn: service/masks.py packs them. */
export function unpack(text) {
  const counts = [];
  let at = 0;
  while (at < text.length) {
    let [value, shift, group] = [0, 1, 0];
    do {
      group = text.charCodeAt(at) - 48;
      value += (group & 31) * shift; // not <<: a picture may have more pixels than 31 bits count
      shift *= 32;
      at += 1;
    } while (group & 32);
    if (group & 16) value -= shift;
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

/** Call `paint(x, top, bottom)` for every stretch of a column that belongs to the object. */
export function eachStretch({ size: [height], counts }, paint) {
  let place = 0;
  unpack(counts).forEach((length, index) => {
    const end = place + length;
    while (index % 2 && place < end) {
      const x = Math.floor(place / height);
      const stop = Math.min(end, (x + 1) * height);
      paint(x, place - x * height, stop - x * height);
      place = stop;
    }
    place = end;
  });
}

/** Make a canvas ready for a picture's masks; returns how many of its pixels are one of the canvas. */
export function prepare(canvas, width, height) {
  const step = Math.ceil(Math.sqrt((width * height) / LARGEST));
  [canvas.width, canvas.height] = [Math.ceil(width / step), Math.ceil(height / step)]; // clears it too
  return step;
}

export function paintMask(canvas, mask, colour, step) {
  const context = canvas.getContext('2d');
  context.fillStyle = colour;
  eachStretch(mask, (x, top, bottom) => {
    if (x % step) return;
    const from = Math.round(top / step);
    context.fillRect(x / step, from, 1, Math.max(Math.round(bottom / step) - from, step === 1 ? 1 : 0));
  });
}
