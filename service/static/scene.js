// The picture with what was found in it: masks, boxes and numbers, coloured and dashed by shot group. Draws what it is
// given, and knows neither the service nor alpha.

import { html, svg } from './svg.js';
import { paintMask, prepare } from './runs.js';

const TALLEST = 0.72; // of the window
const $ = (id) => document.getElementById(id);

/** Give the stage the picture's proportions, as large as it fits. */
export function fitStage(width, height) {
  const stage = $('stage');
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.width = `min(100%, ${((TALLEST * innerHeight * width) / height).toFixed(0)}px)`;
}

/** Draw detections over a picture of width x height; `chosen` is the number of the one that alone counts, or null. */
export function drawScene(detections, { width, height, chosen, masks, boxes }) {
  const tones = Object.fromEntries(['many', 'medium', 'few'].map((group) => [group, toneOf(group)]));
  const step = prepare($('masks'), width, height);
  const aside = (number) => chosen !== null && chosen !== number;
  // The best last, so that it lies on top.
  detections.map((each, number) => [each, number]).reverse().forEach(([each, number]) => {
    if (masks && each.mask && !aside(number)) paintMask($('masks'), each.mask, tones[each.shot_group], step);
  });
  $('boxes').setAttribute('viewBox', `0 0 ${width} ${height}`);
  $('boxes').setAttribute('preserveAspectRatio', 'none');
  $('boxes').replaceChildren(...(boxes ? detections.map((each, number) => frame(each, aside(number))).reverse() : []));
  $('tags').replaceChildren(...detections.map((each, number) => tag(each, number, { width, height, aside: aside(number) })).reverse());
}

function frame({ box: [x1, y1, x2, y2], shot_group: group }, aside) {
  const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
  return svg('g', { class: `${group} ${aside ? 'aside' : ''}` }, svg('rect', { class: 'halo', ...place }), svg('rect', place));
}

function tag({ box: [x1, y1], shot_group: group }, number, { width, height, aside }) {
  const element = html('span', { class: `tag ${group} ${aside ? 'aside' : ''}` }, String(number + 1));
  element.style.left = `min(${(100 * x1) / width}%, 100% - 24px)`;
  element.style.top = `min(${(100 * y1) / height}%, 100% - 22px)`;
  return element;
}

function toneOf(group) {
  const probe = html('span', { class: group });
  $('tags').append(probe);
  const tone = getComputedStyle(probe).getPropertyValue('--tone');
  probe.remove();
  return tone;
}
