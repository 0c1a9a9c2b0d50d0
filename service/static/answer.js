// The answer in words and bars: plain beside TDE, the stable interval, the classes in order. Draws what it is given.

import { html, mark } from './svg.js';

const LONGEST = 5;
const calm = matchMedia('(prefers-reduced-motion: reduce)');
const rows = new Map();

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const short = (alpha) => String(Number(alpha.toFixed(3)));
const samplesOf = (each) => `${each.shot_group}-shot, ${each.train_count} training sample${each.train_count === 1 ? '' : 's'}`;

/** One side of the comparison: {title, classInfo, probability, verdict}. */
export function showSide(id, { title, classInfo, probability, verdict }) {
  const side = document.getElementById(id);
  side.className = `side ${classInfo.shot_group}`;
  side.replaceChildren(
    html('h3', {}, title),
    html('p', { class: 'winner' }, mark(classInfo.shot_group), classInfo.name),
    html('p', { class: 'muted small' }, samplesOf(classInfo)),
    html('p', { class: 'small' }, percent(probability), ...(verdict ? [html('span', { class: 'verdict' }, verdict)] : [])),
  );
}

/** The classes in order, moved to their new places so that the eye can follow. */
export function showRanking(order, { classes, shares, plainOrder }) {
  const list = document.getElementById('ranking');
  const before = new Map([...list.children].map((row) => [row, row.getBoundingClientRect().top]));
  const ranked = order.slice(0, LONGEST).map((index, place) => {
    const row = rows.get(index) ?? newRow(index, classes[index]);
    row.style.setProperty('--share', shares[index]);
    row.querySelector('.share').textContent = percent(shares[index]);
    showMove(row.querySelector('.move'), plainOrder.indexOf(index), place);
    return row;
  });
  if (ranked.some((row, place) => list.children[place] !== row) || list.children.length !== ranked.length) {
    list.replaceChildren(...ranked);
    if (!calm.matches) ranked.forEach((row) => glide(row, before.get(row)));
  }
}

function newRow(index, each) {
  const row = html(
    'li',
    { class: each.shot_group, 'data-index': index },
    mark(each.shot_group),
    html('span', { class: 'label' }, each.name),
    html('span', { class: 'group muted small' }, each.shot_group),
    html('span', { class: 'move small' }),
    html('span', { class: 'share' }),
    html('span', { class: 'bar', 'aria-hidden': 'true' }),
  );
  rows.set(index, row);
  return row;
}

function showMove(cell, from, to) {
  const by = from - to;
  cell.className = `move small ${by > 0 ? 'up' : ''}`;
  const words = by ? `${by > 0 ? 'up' : 'down'} ${Math.abs(by)} from alpha 0` : '';
  cell.replaceChildren(
    ...(by ? [html('span', { 'aria-hidden': 'true' }, `${by > 0 ? '↑' : '↓'}${Math.abs(by)}`), html('span', { class: 'covered' }, words)] : []),
  );
}

function glide(row, top) {
  const now = row.getBoundingClientRect().top;
  if (top === undefined) row.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 200 });
  else if (top !== now) {
    row.animate([{ transform: `translateY(${top - now}px)` }, { transform: 'none' }], { duration: 240, easing: 'ease-out' });
  }
}
