// The model's accuracy over alpha, as measured on its test pictures, with the current alpha on it, as SVG.

import { percent, short } from './answer.js';
import { INSET, axis, widthOf } from './lines.js';
import { html, mark, markAt, path, scale, svg, ticks } from './svg.js';

const HEIGHT = 190;
const TOP = 8;
const BOTTOM = 24;
const LABEL = 40; // pixels that a share takes
const GROUPS = ['many', 'medium', 'few'];
const NAMES = { overall: 'all', many: 'many-shot', medium: 'medium-shot', few: 'few-shot' };

/** Every measured accuracy at alpha, between the two nearest measured alphas the nearer one's. */
export function accuracyAt(accuracy, alpha) {
  const nearest = accuracy.alpha.reduce((best, value, index) => (Math.abs(value - alpha) < Math.abs(accuracy.alpha[best] - alpha) ? index : best), 0);
  return Object.fromEntries(namesOf(accuracy).map((name) => [name, accuracy[name][nearest]]));
}

const namesOf = (accuracy) => ['overall', ...GROUPS].filter((name) => accuracy[name]);

export function drawAccuracy(target, accuracy, { alpha, defaultAlpha, low, high }) {
  const width = widthOf(target);
  const names = namesOf(accuracy);
  const all = names.flatMap((name) => accuracy[name]);
  const floor = Math.max(0, Math.floor(10 * Math.min(...all) - 0.3) / 10);
  const ceiling = Math.min(1, Math.ceil(10 * Math.max(...all) + 0.3) / 10);
  const x = scale(low, high, INSET, width - INSET);
  const y = scale(floor, ceiling, HEIGHT - BOTTOM, TOP + 6);
  const here = accuracyAt(accuracy, alpha);
  const grid = ticks(floor, ceiling, 4);
  const curves = names.map((name) => accuracy.alpha.map((each, index) => [x(each), y(accuracy[name][index])]));
  const inner = { x: INSET, y: 0, width: width - 2 * INSET, height: HEIGHT };
  const shown = low <= defaultAlpha && defaultAlpha <= high;
  target.replaceChildren(
    svg('defs', {}, svg('clipPath', { id: 'measured' }, svg('rect', inner))),
    ...grid.map((value) => svg('path', { class: 'grid', d: path([[INSET, y(value)], [width - INSET, y(value)]]) })),
    ...axis(x, low, high, HEIGHT),
    ...(shown ? [svg('path', { class: 'default', d: path([[x(defaultAlpha), TOP], [x(defaultAlpha), HEIGHT - BOTTOM]]) })] : []),
    svg('g', { 'clip-path': 'url(#measured)' }, ...names.map((name, index) => svg('path', { class: `line measured ${name}`, d: path(curves[index]) })).reverse()),
    ...grid.map((value) => shareLabel(value, y(value) - 3, curves, width)),
    svg('path', { class: 'plumb', d: path([[x(alpha), TOP], [x(alpha), HEIGHT - BOTTOM]]) }),
    ...names.map((name) => (name === 'overall' ? svg('circle', { class: 'overall here', cx: x(alpha), cy: y(here[name]), r: 4.5 }) : markAt(name, x(alpha), y(here[name]), 11))),
  );
  target.setAttribute('height', HEIGHT);
  target.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
  const words = names.map((name) => `${NAMES[name]} ${percent(here[name])}`).join(', ');
  target.setAttribute('aria-label', `Accuracy over alpha. At alpha ${short(alpha)}: ${words}.`);
  showLegend(names, here, accuracyAt(accuracy, 0));
}

/** A share at its line of the grid, at the side where the curves leave more room. */
function shareLabel(value, baseline, curves, width) {
  const middle = baseline - 4;
  const points = curves.flat();
  const room = (from, to) => Math.min(...points.filter(([px]) => from <= px && px <= to).map(([, py]) => Math.abs(py - middle)));
  const right = room(INSET, INSET + LABEL) < 10 && room(width - INSET - LABEL, width - INSET) > room(INSET, INSET + LABEL);
  const place = right ? { x: width - INSET - 3, 'text-anchor': 'end' } : { x: INSET + 3, 'text-anchor': 'start' };
  return svg('text', { class: 'tick share', y: baseline, ...place }, `${Math.round(100 * value)} %`);
}

function showLegend(names, here, plain) {
  const rows = names.map((name) => {
    const change = 100 * (here[name] - plain[name]);
    const sign = change >= 0.05 ? '+' : change <= -0.05 ? '−' : '±';
    return html(
      'li',
      { class: name },
      name === 'overall' ? svg('svg', { class: 'mark', viewBox: '0 0 12 12', 'aria-hidden': 'true' }, svg('path', { class: 'line measured overall', d: 'M0 6H12' })) : mark(name),
      html('span', {}, NAMES[name]),
      html('strong', {}, percent(here[name])),
      html('span', { class: 'muted small', title: 'points against alpha 0' }, `${sign}${Math.abs(change).toFixed(1)}`),
    );
  });
  document.getElementById('legend').replaceChildren(...rows);
}
