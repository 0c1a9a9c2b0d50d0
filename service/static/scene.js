// The picture with what was found in it: masks, boxes and numbers, coloured and dashed by shot group. Draws what it is
// given, and knows neither the service nor alpha.

import { html, svg } from './svg.js';
import { paintMask, prepare } from './runs.js';
import { showTags } from './tags.js';

const TALLEST = 0.72; // of the window
const LONGEST = 12; // times the other side: what is longer is drawn out of proportion, so that there is something to see
const $ = (id) => document.getElementById(id);

/** Give the stage the picture's proportions, within reason, as large as it fits. */
export function fitStage(width, height) {
  const stage = $('stage');
  const ratio = Math.max(1 / LONGEST, Math.min(LONGEST, width / height));
  stage.style.aspectRatio = ratio;
  stage.style.width = `min(100%, ${(TALLEST * innerHeight * ratio).toFixed(0)}px)`;
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
  showTags(detections.flatMap((each, number) => (aside(number) ? [] : tag(each, number, { width, height }))));
}

function frame({ box: [x1, y1, x2, y2], shot_group: group }, aside) {
  const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
  return svg('g', { class: `${group} ${aside ? 'aside' : ''}` }, svg('rect', { class: 'halo', ...place }), svg('rect', place));
}

function tag({ box: [x1, y1], shot_group: group }, number, { width, height }) {
  return { element: html('span', { class: `tag ${group}` }, String(number + 1)), x: x1 / width, y: y1 / height };
}

function toneOf(group) {
  const probe = html('span', { class: group });
  $('tags').append(probe);
  const tone = getComputedStyle(probe).getPropertyValue('--tone');
  probe.remove();
  return tone;
}
