// The lines of the classes over alpha, their upper envelope and its breakpoints, and the stable interval, as SVG.

import { logitsAt, ranking, stretches } from './envelope.js';
import { markAt, path, scale, svg, ticks } from './svg.js';
import { short } from './answer.js';

const HEIGHT = 280;
const TOP = 30;
const BOTTOM = 24;
const CONTENDERS = 5;
const MOST_OTHERS = 60;
export const INSET = 13; // half of the slider's thumb: one alpha lies at one x in all drawings

/** The width to draw in; while the element is not laid out, some width. */
export const widthOf = (target) => target.getBoundingClientRect().width || 300;

/** What stays while alpha moves: recomputed for a new picture or prior_strength. */
export function sceneOf(lines, envelope) {
  const relative = { heights: lessMean(lines.heights), slopes: lessMean(lines.slopes) };
  const { low, high, breakpoints } = envelope;
  const probes = [...Array.from({ length: 25 }, (_, step) => low + ((high - low) * step) / 24), ...breakpoints];
  const contenders = new Set(envelope.winners);
  let floor = Infinity;
  let ceiling = -Infinity;
  for (const alpha of probes) {
    const logits = logitsAt(relative, alpha);
    const order = ranking(logits).slice(0, CONTENDERS);
    order.forEach((index) => contenders.add(index));
    ceiling = Math.max(ceiling, logits[order[0]]);
    floor = Math.min(floor, logits[order.at(-1)]);
  }
  return { relative, envelope, contenders, floor, ceiling };
}

function lessMean(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return values.map((value) => value - mean);
}

/** Draw it all; `alpha` is where the plumb line hangs, `stable` the stretch around it. */
export function drawLines(target, scene, { classes, alpha, stable }) {
  const width = widthOf(target);
  const { relative, envelope, contenders, floor, ceiling } = scene;
  const { low, high } = envelope;
  const x = scale(low, high, INSET, width - INSET);
  const y = scale(floor, ceiling, HEIGHT - BOTTOM - 8, TOP);
  const at = (index, where) => [x(where), y(relative.heights[index] - where * relative.slopes[index])];
  const line = (index, from = low, to = high) => path([at(index, from), at(index, to)]);
  const groupOf = (index) => classes[index].shot_group;
  const parts = stretches(envelope);
  const others = classes.length <= MOST_OTHERS ? classes.map((_, index) => index).filter((index) => !contenders.has(index)) : [];

  const clip = svg('clipPath', { id: 'plot' }, svg('rect', { x: INSET, y: 0, width: width - 2 * INSET, height: HEIGHT - BOTTOM }));
  const plot = svg('g', { 'clip-path': 'url(#plot)' });
  plot.append(
    svg('rect', { class: `stable ${groupOf(stable.winner)}`, x: x(stable.from), y: 0, width: Math.max(x(stable.to) - x(stable.from), 1), height: HEIGHT - BOTTOM }),
    ...others.map((index) => svg('path', { class: 'line other', d: line(index) })),
    ...[...contenders].map((index) => svg('path', { class: `line ${groupOf(index)}`, d: line(index) })),
    ...envelope.breakpoints.map((where) => svg('path', { class: 'crossing', d: path([[x(where), 0], [x(where), HEIGHT - BOTTOM]]) })),
    ...parts.map(({ winner, from, to }) => svg('path', { class: `line crown ${groupOf(winner)}`, d: line(winner, from, to) })),
    svg('path', { class: 'plumb', d: path([[x(alpha), 0], [x(alpha), HEIGHT - BOTTOM]]) }),
  );
  target.replaceChildren(
    svg('defs', {}, clip),
    ...axis(x, low, high),
    plot,
    ...envelope.breakpoints.map((where, index) => {
      const [cx, cy] = at(parts[index].winner, where);
      return svg('circle', { class: 'breakpoint', cx, cy, r: 4 });
    }),
    ...winnerLabels(parts, { x, width, classes }),
    ...endLabels({ contenders, parts, at, high, low, classes }),
    markAt(groupOf(stable.winner), ...at(stable.winner, alpha), 15),
  );
  target.lastChild.classList.add('here');
  target.setAttribute('height', HEIGHT);
  target.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
  target.setAttribute('aria-label', describe(parts, classes));
}

export function axis(x, low, high, height = HEIGHT) {
  return ticks(low, high, 6).map((value) =>
    svg('text', { class: 'tick', x: x(value), y: height - 6, 'text-anchor': 'middle' }, String(value)),
  );
}

/** The winner's name over its stretch, where it has room. */
function winnerLabels(parts, { x, classes }) {
  return parts.flatMap(({ winner, from, to }) => {
    const { name, shot_group: group } = classes[winner];
    const room = x(to) - x(from);
    const wide = name.length * 7.4 + 22;
    if (room < wide) return [];
    const middle = (x(from) + x(to)) / 2;
    return [
      markAt(group, middle - wide / 2 + 6, 13, 10),
      svg('text', { class: `name ${group}`, x: middle + 8, y: 17, 'text-anchor': 'middle' }, name),
    ];
  });
}

/** The names of the lines that never win, at whichever end they are higher, as far as they do not collide. */
function endLabels({ contenders, parts, at, low, high, classes }) {
  const winners = new Set(parts.map(({ winner }) => winner));
  const taken = { start: [at(parts[0].winner, low)[1]], end: [at(parts.at(-1).winner, high)[1]] };
  const labels = [];
  for (const index of contenders) {
    if (winners.has(index)) continue;
    const side = at(index, high)[1] < at(index, low)[1] ? 'end' : 'start';
    const [px, py] = at(index, side === 'end' ? high : low);
    if (py < TOP + 8 || py > HEIGHT - BOTTOM - 4 || taken[side].some((other) => Math.abs(other - py) < 14)) continue;
    taken[side].push(py);
    labels.push(
      svg('text', { class: 'loser', x: px + (side === 'end' ? -4 : 4), y: py - 4, 'text-anchor': side }, classes[index].name),
    );
  }
  return labels;
}

function describe(parts, classes) {
  const words = parts.map(({ winner, from, to }) => `${classes[winner].name} from ${short(from)} to ${short(to)}`);
  return `Logits of the classes over alpha. Highest: ${words.join(', then ')}.`;
}
