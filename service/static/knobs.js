// Both knobs: the slider of alpha with its ribbon of winners and its breakpoints to jump to, and prior_strength.

import { justWithin, stretches } from './envelope.js';
import { INSET, widthOf } from './lines.js';
import { html, scale, svg } from './svg.js';
import { short } from './answer.js';

const RIBBON = 14;
const WIDEST_JUMP = 58;
const $ = (id) => document.getElementById(id);

/** Four decimals: what is shown is what is asked for. */
const rounded = (alpha) => Number(alpha.toFixed(4));

/** The nearest alpha that may be asked for, with four decimals unless it is a bound. */
export const allowed = (alpha, { minimum, maximum }) => Math.min(Math.max(rounded(alpha), minimum), maximum);

/** Call `change(alpha)` and `changePrior(strength)` when a person moves one, `reset()` for the default alpha. */
export function prepareKnobs({ change, changePrior, reset }) {
  prepareAlpha({ change, reset });
  $('prior').addEventListener('input', () => changePrior(Number($('prior').value)));
}

/** The same of alpha alone. */
export function prepareAlpha({ change, reset }) {
  const [slider, number] = [$('alpha'), $('alpha-number')];
  slider.addEventListener('input', () => change(Number(slider.value)));
  // What is being typed stays as it is, whatever else is drawn meanwhile.
  number.addEventListener('input', () => number.toggleAttribute('data-typing', true));
  number.addEventListener('blur', () => number.removeAttribute('data-typing'));
  number.addEventListener('change', () => {
    number.removeAttribute('data-typing');
    const wanted = Number(number.value);
    if (number.value === '' || Number.isNaN(wanted)) reset();
    else change(wanted);
  });
  $('reset').addEventListener('click', reset);
}

/** Set the ranges to what may be asked for. */
export function limitKnobs(terms) {
  limitAlpha(terms);
  const { maximum: most } = terms.prior_strength;
  Object.assign($('prior'), { min: 0, max: most, step: Math.min(0.05, most / 10 || 0.05) });
  $('prior').closest('section').hidden = most === 0;
}

export function limitAlpha({ alpha: { minimum, maximum, default: chosen } }) {
  const span = maximum - minimum;
  Object.assign($('alpha'), { min: minimum, max: maximum, step: span > 0.5 ? 0.01 : span / 100 || 1 });
  Object.assign($('alpha-number'), { min: minimum, max: maximum });
  $('reset').setAttribute('aria-label', `Default alpha, ${short(chosen)}`);
}

/** Put both knobs where they are; `winner` is the class that answers, where there is a picture. */
export function showKnobs(alpha, priorStrength, winner) {
  showAlpha(alpha, winner);
  $('prior').value = priorStrength;
  $('prior').setAttribute('aria-valuetext', String(priorStrength));
  $('prior-value').textContent = priorStrength.toFixed(2);
}

export function showAlpha(alpha, winner) {
  const slider = $('alpha');
  slider.value = alpha;
  slider.setAttribute('aria-valuetext', short(alpha) + (winner ? `, ${winner.name}, ${winner.shot_group}-shot` : ''));
  const number = $('alpha-number');
  const says = document.activeElement === number && Number(number.value) === alpha;
  if (!says && !number.hasAttribute('data-typing')) number.value = alpha;
}

/** The winners over alpha as one ribbon along the slider; without a picture a plain one. */
export function drawRibbon(target, envelope, classes) {
  const width = widthOf(target);
  const x = envelope && scale(envelope.low, envelope.high, INSET, width - INSET);
  const parts = envelope ? stretches(envelope) : [];
  target.setAttribute('viewBox', `0 0 ${width} ${RIBBON}`);
  target.setAttribute('height', RIBBON);
  target.replaceChildren(
    svg('rect', { class: 'track', x: 0, y: 0, width, height: RIBBON, rx: RIBBON / 2 }),
    ...parts.map(({ winner, from, to }, index) => {
      const begin = index ? x(from) : 6;
      const end = index === parts.length - 1 ? width - 6 : x(to);
      return svg('rect', { class: `stretch ${classes[winner].shot_group}`, x: begin, y: 4, width: Math.max(end - begin - (index === parts.length - 1 ? 0 : 2), 0), height: RIBBON - 8, rx: 2 });
    }),
  );
}

/** A button below the slider for each breakpoint; those that would collide make room. */
export function showJumps(envelope, classes, jump) {
  const box = $('jumps');
  const parts = envelope ? stretches(envelope) : [];
  const width = widthOf(box);
  const x = envelope && scale(envelope.low, envelope.high, INSET, width - INSET);
  const places = spread(parts.slice(1).map(({ from }) => x(from)), width);
  const focused = [...box.children].indexOf(document.activeElement);
  box.replaceChildren(
    ...parts.slice(1).map((part, index) => {
      const [before, after] = [classes[parts[index].winner], classes[part.winner]];
      const name = `Alpha ${short(part.from)}: ${after.name} takes over from ${before.name}`;
      const button = html('button', { type: 'button', class: `jump ${after.shot_group}`, 'aria-label': name, title: name }, short(part.from));
      button.style.left = `${places[index]}px`;
      button.addEventListener('click', () => jump(justWithin(part)));
      return button;
    }),
  );
  if (!parts.length || parts.length === 1) {
    box.replaceChildren(html('p', { class: 'muted small' }, envelope ? 'The answer is the same at every alpha.' : ''));
  }
  if (focused >= 0) box.querySelectorAll('button')[focused]?.focus();
}

function spread(places, width) {
  const gap = Math.min(WIDEST_JUMP, width / Math.max(places.length, 1));
  const moved = [...places];
  for (let index = 0; index < moved.length; index += 1) {
    moved[index] = Math.max(moved[index], index ? moved[index - 1] + gap : gap / 2);
  }
  for (let index = moved.length - 1; index >= 0; index -= 1) {
    moved[index] = Math.min(moved[index], index === moved.length - 1 ? width - gap / 2 : moved[index + 1] - gap);
  }
  return moved;
}
