// The page for a detector: alpha changes scores, and with them which boxes suppress which, so each alpha is asked for
// anew, once the slider has settled. The lowest score shown only leaves out what is there.

import { short } from './answer.js';
import { detect, getBlob, getEvaluation, getModel, getSamples, getTerms, useKey } from './api.js';
import { command, copyOnClick } from './command.js';
import { allowed, limitAlpha, prepareAlpha, showAlpha } from './knobs.js';
import { pressSample, showPicture, showSamples, takePictures } from './picture.js';
import { clearProblem, daring } from './refusal.js';
import { drawScene, fitStage } from './scene.js';
import { html, mark } from './svg.js';
import { placeTags } from './tags.js';

const LOWEST = 0.01;
const BY_DEFAULT = 100; // what the service returns of a picture at most, if not asked for more
const SURE = 0.3; // to begin with, what scores as much is always shown
const SETTLED = 180; // milliseconds without a move of the slider
const $ = (id) => document.getElementById(id);
const state = { model: null, terms: null, evaluation: null, answer: null, picture: null, alpha: 0, threshold: SURE, limit: {}, chosen: null };
let underWay = new AbortController();
let settling = 0;

async function start() {
  document.querySelectorAll('[data-mark]').forEach((place) => place.append(mark(place.dataset.mark)));
  const [model, evaluation, samples] = await Promise.all([getModel(), getEvaluation(), getSamples()]);
  Object.assign(state, { model, evaluation });
  const classes = `${model.classes.length} class${model.classes.length === 1 ? '' : 'es'}`;
  $('model-line').textContent = `${model.name} · detects ${classes} · ${model.provider}, ${model.precision}`;
  prepareAlpha({ change: setAlpha, reset: () => setAlpha(state.terms.alpha.default) });
  useTerms({ alpha: model.alpha });
  $('threshold').addEventListener('input', () => {
    state.thresholdIsTheirs = true;
    setThreshold(Number($('threshold').value));
  });
  ['show-masks', 'show-boxes'].forEach((id) => $(id).addEventListener('change', draw));
  $('preview').addEventListener('load', () => fitStage($('preview').naturalWidth, $('preview').naturalHeight));
  new ResizeObserver(placeTags).observe($('stage'));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  showSamples(samples, takeSample);
  takePictures((blob, picture) => take(blob, picture));
  copyOnClick();
  $('key-form').addEventListener('submit', takeKey);
  setThreshold(state.threshold);
  if (samples.length) await takeSample(samples[0], 0);
}

function takeSample(sample, number) {
  return daring(async () => {
    const blob = await getBlob(sample.path);
    await take(blob, { name: `Sample ${number + 1}`, type: 'image/png', path: sample.path, number });
  });
}

function take(blob, picture) {
  showPicture(blob, picture);
  pressSample(picture.number ?? null);
  Object.assign(state, { blob, picture, answer: null, chosen: null, isNew: true });
  state.limit = { top_k: state.model.detection.max_detections };
  draw();
  return ask();
}

/** Ask for the picture at the alpha that the slider shows; a newer question takes precedence. */
function ask() {
  clearTimeout(settling);
  underWay.abort();
  underWay = new AbortController();
  const { signal } = underWay;
  if (!state.blob) return undefined;
  return daring(async () => {
    document.body.classList.add('waiting');
    try {
      state.answer = await find(signal);
      state.chosen = null;
      if (state.isNew && !state.thresholdIsTheirs) setThreshold(startFor(state.answer));
      state.isNew = false;
      clearProblem();
    } catch (error) {
      if (!signal.aborted) state.answer = null;
      throw error;
    } finally {
      if (!signal.aborted) {
        document.body.classList.remove('waiting');
        draw();
      }
    }
    announce();
  });
}

/** Ask for all that the model returns; where that is refused, as masks of a huge picture may be, for what comes by default. */
async function find(signal) {
  const asked = () => detect(state.blob, { alpha: state.alpha, score_threshold: LOWEST, ...state.limit }, signal);
  try {
    return await asked();
  } catch (error) {
    if (!state.limit.top_k || !['masks', 'top_k'].includes(error.body?.field)) throw error;
    state.limit = {}; // for this picture, at any alpha
    return asked();
  }
}

/** Ask for the same picture again, with a client's key and on its terms. */
function takeKey(event) {
  event.preventDefault();
  return daring(async () => {
    useKey($('key').value.trim());
    useTerms(await getTerms());
    state.withKey = true;
    await ask();
  });
}

function useTerms(terms) {
  Object.assign(state, { terms, alpha: allowed(terms.alpha.default, terms.alpha) });
  limitAlpha(terms);
  showKnobs();
}

function setAlpha(alpha) {
  state.alpha = allowed(alpha, state.terms.alpha);
  showKnobs();
  clearTimeout(settling);
  clearTimeout(pending); // what was found before was not found at this alpha
  settling = setTimeout(ask, SETTLED);
}

/** Half the best score where the model is not sure of anything, so that a new picture shows what there is. */
function startFor({ detections: [best] }) {
  return best ? Math.max(LOWEST, Math.min(SURE, Math.floor(50 * best.score) / 100)) : SURE;
}

function setThreshold(threshold) {
  Object.assign(state, { threshold, chosen: null });
  $('threshold').value = threshold;
  $('threshold-value').textContent = threshold.toFixed(2);
  showKnobs();
  draw();
}

/** What follows from the knobs alone. */
function showKnobs() {
  showAlpha(state.alpha);
  const query = { alpha: state.alpha, score_threshold: state.threshold, ...state.limit };
  $('command').textContent = command(state.picture, { query, withKey: state.withKey }, document.baseURI);
  $('measured').textContent = measuredAt(state.evaluation, state.alpha);
}

const shown = () => (state.answer ? state.answer.detections.filter(({ score }) => score >= state.threshold) : []);

function draw() {
  showKnobs();
  const found = shown();
  const { width, height } = state.answer ?? { width: 1, height: 1 };
  drawScene(found, { width, height, chosen: state.chosen, masks: $('show-masks').checked, boxes: $('show-boxes').checked });
  $('detections').replaceChildren(...found.map(row));
  $('summary').textContent = state.answer ? summary(found) : '';
}

/** One object as a button that has it stand alone, and all of them again. */
function row(each, number) {
  const button = html(
    'button',
    { type: 'button', class: each.shot_group, 'aria-pressed': state.chosen === number },
    html('span', { class: 'number-of' }, `${number + 1}`),
    mark(each.shot_group),
    html('span', { class: 'label' }, each.label),
    html('span', { class: 'group muted small' }, each.shot_group),
    html('span', { class: 'score' }, each.score.toFixed(3)),
  );
  button.addEventListener('click', () => {
    state.chosen = state.chosen === number ? null : number;
    draw();
    $('detections').querySelectorAll('button')[number]?.focus();
  });
  return html('li', {}, button);
}

const objects = (count) => `${count} object${count === 1 ? '' : 's'}`;

function summary(found) {
  const groups = ['many', 'medium', 'few'].map((group) => [group, found.filter((each) => each.shot_group === group).length]);
  const parts = groups.filter(([, count]) => count).map(([group, count]) => `${count} ${group}`);
  const all = state.answer.detections.length;
  const least = all === (state.limit.top_k ?? BY_DEFAULT) ? 'at least ' : ''; // as many as it may be: there may be more
  const below = all - found.length;
  const what = `${objects(found.length)}${parts.length ? `: ${parts.join(', ')}` : ''}`;
  return below ? `${what}; ${least}${below} below the lowest score` : `${least}${what}`;
}

/** What the bundle says of the model's precision, at the measured alpha that is nearest. */
function measuredAt(evaluation, alpha) {
  const curves = evaluation?.average_precision;
  if (!curves) return '';
  const nearest = curves.alpha.reduce((best, value, index) => (Math.abs(value - alpha) < Math.abs(curves.alpha[best] - alpha) ? index : best), 0);
  const named = [['box', 'AP', 'box AP'], ['mask', 'AP', 'mask AP'], ['mask', 'APr', 'of rare classes']];
  const values = named.map(([kind, name, words]) => [words, curves[kind][name]?.[nearest]]);
  const words = values.filter(([, value]) => typeof value === 'number').map(([name, value]) => `${name} ${(100 * value).toFixed(1)}`);
  if (!words.length) return '';
  return `Measured at alpha ${short(curves.alpha[nearest])} on ${evaluation.test_images} pictures: ${words.join(', ')}.`;
}

let pending = 0;

/** Tell those who do not see it what was found, once it has settled. */
function announce() {
  clearTimeout(pending);
  pending = setTimeout(() => {
    if (!state.answer) return;
    const found = shown();
    const best = found.length ? ` The surest: ${found[0].label}, ${found[0].score.toFixed(2)}.` : '';
    $('announcement').textContent = `At alpha ${short(state.alpha)}: ${summary(found)}.${best}`;
  }, 300);
}

daring(start);
