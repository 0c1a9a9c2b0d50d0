// The curl command of exactly one request, and how it is copied.

/** Quote a word for a POSIX shell, where it needs quoting. */
export function quote(word) {
  return /^[A-Za-z0-9@%+=:,./_-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/**
 * Return the command that asks for a picture with these options.
 *
 * picture: {path} of a sample of the service, or {name, type} of a file of the user's; null: none yet.
 * query: the options by name.
 * withKey: a key goes along; the command takes it from the environment, so that it can be shown and passed on.
 */
export function command(picture, { query, withKey }, base) {
  const url = quote(`${new URL('predict', base)}?${new URLSearchParams(query)}`);
  const type = quote(`Content-Type: ${picture?.type || 'image/jpeg'}`) + (withKey ? ' -H "Authorization: Bearer $KEY"' : '');
  if (picture?.path) {
    return `curl -s ${quote(String(new URL(picture.path, base)))} |\n  curl --data-binary @- -H ${type} ${url}`;
  }
  return `curl --data-binary ${quote(`@${picture?.name ?? 'picture.jpg'}`)} -H ${type} \\\n  ${url}`;
}

/** Have the button copy the command that is shown. */
export function copyOnClick() {
  const [button, text] = [document.getElementById('copy'), document.getElementById('command')];
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(text); // no clipboard without TLS: select it for Ctrl-C
      button.textContent = 'Selected';
    }
    document.getElementById('announcement').textContent = `${button.textContent}: the curl command`;
    setTimeout(() => (button.textContent = 'Copy'), 2000);
  });
}
