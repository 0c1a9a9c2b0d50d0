// What the page asks of the service. Addresses are relative, so that it works behind a proxy's prefix too.

let key = '';

/** Send a client's key from now on. It stays in this page's memory alone. */
export function useKey(given) {
  key = given;
}

/** A refusal in the service's own words, or ours where there was no answer. */
export class Refusal extends Error {
  constructor(body) {
    super(body.message);
    this.body = body;
  }
}

export const getModel = () => ask('model');
export const getEvaluation = () => ask('model/evaluation');
export const getSamples = async () => (await ask('samples')).samples;

const withKey = (headers) => (key ? { ...headers, Authorization: `Bearer ${key}` } : headers);

/** What may be asked with the key: defaults and bounds of both knobs. */
export const getTerms = () => ask('terms', { headers: withKey({}) });

/** Both branch logits of a picture: every alpha follows from them. */
export async function predictLines(blob, signal) {
  const headers = withKey({ 'Content-Type': blob.type || 'application/octet-stream' });
  const answer = await ask('predict?lines=true', { method: 'POST', body: blob, headers, signal });
  return answer.images[0].lines;
}

/** What a detector finds in a picture, with these options. */
export async function detect(blob, options, signal) {
  const headers = withKey({ 'Content-Type': blob.type || 'application/octet-stream' });
  const answer = await ask(`predict?${new URLSearchParams(options)}`, { method: 'POST', body: blob, headers, signal });
  return answer.images[0];
}

export async function getBlob(path) {
  return (await reach(path)).blob();
}

async function ask(path, options) {
  return (await reach(path, options)).json();
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refusal({
      code: 'no_answer',
      message: 'The service did not answer.',
      remedy: 'See whether it still runs, and try again.',
    });
  }
  if (!response.ok) throw new Refusal(await refusalOf(response));
  return response;
}

async function refusalOf(response) {
  try {
    const body = await response.json();
    if (body.message) return body;
  } catch {
    // Not the service's own answer: a proxy's, most likely.
  }
  return { code: String(response.status), message: `The answer was ${response.status} ${response.statusText}.` };
}
