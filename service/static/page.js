// The page: what is known of the model and the picture, where the knobs stand, and what is drawn when any of it changes.
// One request a picture: its lines. Every alpha and prior_strength is drawn from them.

import { drawAccuracy } from './accuracy.js';
import { percent, short, showRanking, showSide } from './answer.js';
import { getBlob, getEvaluation, getModel, getSamples, getTerms, predictLines, useKey } from './api.js';
import { command, copyOnClick } from './command.js';
import { linesAt, logShare, logitsAt, probabilities, ranking, stretchAt, temperature, upperEnvelope } from './envelope.js';
import { allowed, drawRibbon, limitKnobs, prepareKnobs, showJumps, showKnobs } from './knobs.js';
import { INSET, drawLines, sceneOf } from './lines.js';
import { pressSample, showPicture, showSamples, takePictures } from './picture.js';
import { clearProblem, daring } from './refusal.js';
import { mark } from './svg.js';

const $ = (id) => document.getElementById(id);
const state = { model: null, terms: null, evaluation: null, branches: null, scene: null, picture: null, alpha: 0, priorStrength: 0 };
let underWay = new AbortController();

async function start() {
  document.querySelectorAll('[data-mark]').forEach((place) => place.append(mark(place.dataset.mark)));
  const [model, evaluation, samples] = await Promise.all([getModel(), getEvaluation(), getSamples()]);
  Object.assign(state, { model, evaluation, logShare: logShare(model.classes) });
  $('model-line').textContent = `${model.name} · ${model.classes.length} classes · ${model.provider}, ${model.precision}`;
  prepareKnobs({ change: setAlpha, changePrior: setPriorStrength, reset: () => setAlpha(state.terms.alpha.default) });
  useTerms({ alpha: model.alpha, prior_strength: { maximum: model.max_prior_strength, default: 0 } });
  showSamples(samples, takeSample);
  takePictures((blob, picture) => take(blob, picture));
  copyOnClick();
  $('key-form').addEventListener('submit', takeKey);
  [$('lines'), $('accuracy')].forEach(followPointer);
  new ResizeObserver(redraw).observe($('lines'));
  redraw();
  if (samples.length) await takeSample(samples[0], 0);
}

function takeSample(sample, number) {
  return daring(async () => {
    const blob = await getBlob(sample.path);
    await take(blob, { name: `Sample ${number + 1}`, type: 'image/png', path: sample.path, truth: sample.truth, number });
  });
}

/** Ask for a picture's lines and show the answer; a newer picture takes precedence. */
function take(blob, picture) {
  underWay.abort();
  underWay = new AbortController();
  const { signal } = underWay;
  return daring(async () => {
    showPicture(blob, picture);
    pressSample(picture.number ?? null);
    Object.assign(state, { blob, picture, branches: null });
    document.body.classList.add('waiting');
    try {
      state.branches = await predictLines(blob, signal);
      clearProblem();
    } finally {
      if (!signal.aborted) {
        document.body.classList.remove('waiting');
        recompute();
      }
    }
    announce();
  });
}

/** Ask for the same picture again, with a client's key and on its terms. */
function takeKey(event) {
  event.preventDefault();
  return daring(async () => {
    useKey($('key').value.trim());
    useTerms(await getTerms());
    state.withKey = true;
    await take(state.blob, state.picture);
  });
}

/** Let the knobs reach what may be asked for, and put them where requests that name none are answered. */
function useTerms(terms) {
  const alpha = allowed(terms.alpha.default, terms.alpha);
  Object.assign(state, { terms, alpha, priorStrength: terms.prior_strength.default });
  limitKnobs(terms);
}

function recompute() {
  const { branches, terms } = state;
  state.lines = branches && linesAt(branches, state.logShare, state.priorStrength);
  state.envelope = branches && upperEnvelope(state.lines, terms.alpha.minimum, terms.alpha.maximum);
  state.scene = branches && sceneOf(state.lines, state.envelope);
  redraw();
}

/** All that depends on the width or the picture, then all that depends on the knobs. */
function redraw() {
  if (!state.model) return;
  drawRibbon($('ribbon'), state.envelope, state.model.classes);
  showJumps(state.envelope, state.model.classes, setAlpha);
  drawAtAlpha();
}

function drawAtAlpha() {
  const { model, alpha, priorStrength } = state;
  const stable = state.branches && stretchAt(state.envelope, alpha);
  showKnobs(alpha, priorStrength, stable && model.classes[stable.winner]);
  if (stable) showAnswer(stable);
  else clearAnswer();
  showCurve();
  const query = priorStrength === state.terms.prior_strength.default ? { alpha } : { alpha, prior_strength: priorStrength };
  $('command').textContent = command(state.picture, { query, withKey: state.withKey }, document.baseURI);
}

function showAnswer(stable) {
  const { classes } = state.model;
  const { alpha, lines, picture } = state;
  const [logits, plain] = [logitsAt(lines, alpha), logitsAt(lines, 0)];
  const [order, plainOrder] = [ranking(logits), ranking(plain)];
  const [shares, plainShares] = [sharesOf(logits, alpha), sharesOf(plain, 0)];
  const verdict = (index) => picture.truth && (picture.truth.index === index ? '✓ right' : '✗ wrong');
  const side = (title, index, probability) => ({ title, classInfo: classes[index], probability, verdict: verdict(index) });
  showSide('plain', side('Plain, alpha 0', plainOrder[0], plainShares[plainOrder[0]]));
  showSide('tde', side(`TDE, alpha ${short(alpha)}`, order[0], shares[order[0]]));
  const { name } = classes[stable.winner];
  $('stable').textContent = `The answer stays ${name} for alpha from ${short(stable.from)} to ${short(stable.to)}.`;
  showRanking(order, { classes, shares, plainOrder });
  drawLines($('lines'), state.scene, { classes, alpha, stable });
}

/** Probabilities at these knobs, by the model's temperature where it has one. */
function sharesOf(logits, alpha) {
  return probabilities(logits, temperature(state.model.calibration, alpha, state.priorStrength));
}

function clearAnswer() {
  ['plain', 'tde', 'stable', 'ranking', 'lines'].forEach((id) => $(id).replaceChildren());
  $('lines').setAttribute('aria-label', 'No picture yet');
}

function showCurve() {
  const { accuracy, test_images: images } = state.evaluation;
  $('accuracy-figure').hidden = !accuracy;
  if (!accuracy) return;
  const { minimum, maximum } = state.terms.alpha;
  const { default: chosen } = state.model.alpha;
  const prior = state.priorStrength ? ' Measured without prior correction: it does not know your prior strength.' : '';
  $('accuracy-note').textContent = `Accuracy on ${images} test pictures; dotted: the model's default.${prior}`;
  drawAccuracy($('accuracy'), accuracy, { alpha: state.alpha, defaultAlpha: chosen, low: minimum, high: maximum });
}

function setAlpha(alpha) {
  const before = state.branches && stretchAt(state.envelope, state.alpha).winner;
  state.alpha = allowed(alpha, state.terms.alpha);
  drawAtAlpha();
  const changed = state.branches && stretchAt(state.envelope, state.alpha).winner !== before;
  if (changed && document.activeElement !== $('alpha')) announce(); // the slider says it by itself
}

function setPriorStrength(priorStrength) {
  state.priorStrength = priorStrength;
  recompute();
}

let pending = 0;

/** Tell those who do not see it what the answer is now, once it has settled. */
function announce() {
  clearTimeout(pending);
  pending = setTimeout(() => {
    if (!state.branches) return;
    const { classes } = state.model;
    const logits = logitsAt(state.lines, state.alpha);
    const [winner] = ranking(logits);
    const [plain] = ranking(logitsAt(state.lines, 0));
    const { name, shot_group: group } = classes[winner];
    const share = percent(sharesOf(logits, state.alpha)[winner]);
    $('announcement').textContent = `At alpha ${short(state.alpha)}: ${name}, ${group}-shot, ${share}. Plain: ${classes[plain].name}.`;
  }, 300);
}

/** Dragging over a drawing moves alpha, as the slider does. */
function followPointer(target) {
  const move = (event) => {
    const { left, width } = target.getBoundingClientRect();
    const { minimum, maximum } = state.terms.alpha;
    const share = Math.min(Math.max((event.clientX - left - INSET) / (width - 2 * INSET), 0), 1);
    setAlpha(Number((minimum + share * (maximum - minimum)).toFixed(2)));
  };
  target.addEventListener('pointerdown', (event) => {
    target.setPointerCapture(event.pointerId);
    move(event);
  });
  target.addEventListener('pointermove', (event) => target.hasPointerCapture(event.pointerId) && move(event));
}

daring(start);
