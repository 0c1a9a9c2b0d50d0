// What is shown when something fails: the service's refusal in its own words, or what the page itself failed at.

import { Refusal } from './api.js';
import { html } from './svg.js';

const [problem, keyForm] = ['problem', 'key-form'].map((id) => document.getElementById(id));

/** Run what may be refused, and show the refusal. */
export async function daring(action) {
  try {
    await action();
  } catch (error) {
    if (error.name === 'AbortError') return;
    const body = error instanceof Refusal ? error.body : { code: 'page', message: `The page failed: ${error.message}` };
    show(body);
    keyForm.hidden = body.code !== 'invalid_key';
    if (!(error instanceof Refusal)) throw error;
  }
}

/** Show no refusal: what was asked for is there. */
export function clearProblem() {
  problem.replaceChildren();
  keyForm.hidden = true;
}

/** What, which field, which value, what to do. */
function show(body) {
  const facts = ['field', 'value', 'remedy'].filter((name) => body[name] !== null && body[name] !== undefined);
  problem.replaceChildren(
    html('p', {}, html('strong', {}, body.message), ' ', html('code', {}, body.code)),
    html('dl', {}, ...facts.flatMap((name) => [html('dt', {}, name), html('dd', {}, String(body[name]))])),
  );
}
