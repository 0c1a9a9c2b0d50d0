// Elements of a drawing, scales, and the marks of the shot groups. Knows nothing of classes or alpha.

const NAMESPACE = 'http://www.w3.org/2000/svg';

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The function from [low, high] to [from, to]. */
export function scale(low, high, from, to) {
  const unit = (to - from) / (high - low || 1);
  return (value) => from + (value - low) * unit;
}

/** Round numbers within [low, high], about `count` of them. */
export function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((each) => each * power >= rough) * power;
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + 1e-9 * step; index += 1) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

export function path(points) {
  return points.map(([x, y], index) => `${index ? 'L' : 'M'}${x.toFixed(2)} ${y.toFixed(2)}`).join('');
}

const MARKS = {
  many: () => svg('circle', { cx: 6, cy: 6, r: 4.75 }),
  medium: () => svg('path', { d: 'M6 .5 11.500 6 6 11.500 .5 6Z' }),
  few: () => svg('path', { d: 'M6 .8 11.600 10.800H.4Z' }),
};

/** The mark of a shot group: many a disc, medium a diamond, few a triangle, so that colour is never alone. */
export function mark(group) {
  return svg('svg', { class: `mark ${group}`, viewBox: '0 0 12 12', 'aria-hidden': 'true' }, MARKS[group]());
}

/** The same mark within a drawing, centred on a point. */
export function markAt(group, x, y, size = 9) {
  const unit = size / 12;
  return svg('g', { class: group, transform: `translate(${x - size / 2} ${y - size / 2}) scale(${unit})` }, MARKS[group]());
}
