// The curl command of exactly one request. Knows no document.

/** Quote a word for a POSIX shell, where it needs quoting. */
export function quote(word) {
  return /^[A-Za-z0-9@%+=:,./_-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/**
 * Return the command that asks for a picture at these knobs.
 *
 * picture: {path} of a sample of the service, or {name, type} of a file of the user's; null: none yet.
 * defaultPrior: what a request gets that names no prior_strength.
 * withKey: a key goes along; the command takes it from the environment, so that it can be shown and passed on.
 */
export function command(picture, { alpha, priorStrength, defaultPrior, withKey }, base) {
  const query = new URLSearchParams({ alpha, ...(priorStrength === defaultPrior ? {} : { prior_strength: priorStrength }) });
  const url = quote(`${new URL('predict', base)}?${query}`);
  const type = quote(`Content-Type: ${picture?.type || 'image/jpeg'}`) + (withKey ? ' -H "Authorization: Bearer $KEY"' : '');
  if (picture?.path) {
    return `curl -s ${quote(String(new URL(picture.path, base)))} |\n  curl --data-binary @- -H ${type} ${url}`;
  }
  return `curl --data-binary ${quote(`@${picture?.name ?? 'picture.jpg'}`)} -H ${type} \\\n  ${url}`;
}
