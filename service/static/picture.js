// How a picture gets here: chosen, dropped, pasted, or one of the service's samples. Knows nothing of answers.

import { html } from './svg.js';

/** Call `take(blob, {name, type, pasted})` for every picture that a person gives. */
export function takePictures(take) {
  const input = document.getElementById('file');
  const taken = (file, extra = {}) => file && take(file, { name: file.name || 'picture', type: file.type, ...extra });

  input.addEventListener('change', () => {
    taken(input.files[0]);
    input.value = ''; // the same file again is a picture again
  });
  document.addEventListener('paste', (event) => {
    const file = event.clipboardData?.files[0];
    if (file) event.preventDefault();
    taken(file, { pasted: true });
  });
  const hasFiles = (event) => event.dataTransfer?.types.includes('Files');
  document.addEventListener('dragover', (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.add('dropping');
  });
  document.addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) document.body.classList.remove('dropping');
  });
  document.addEventListener('drop', (event) => {
    document.body.classList.remove('dropping');
    if (!hasFiles(event)) return;
    event.preventDefault();
    taken(event.dataTransfer.files[0]);
  });
}

/** Show the service's samples as buttons; `take(sample, number)` when one is chosen. */
export function showSamples(samples, take) {
  const buttons = samples.map((sample, number) => {
    const image = html('img', { src: sample.path, alt: '' });
    image.addEventListener('load', () => image.classList.toggle('tiny', image.naturalWidth < 80));
    const name = `Sample ${number + 1}${sample.truth ? `, ${sample.truth.label}` : ''}`;
    const button = html('button', { type: 'button', class: 'sample', 'aria-label': name, title: name }, image);
    button.addEventListener('click', () => take(sample, number));
    return button;
  });
  document.getElementById('sample-list').replaceChildren(...buttons);
  document.getElementById('samples').hidden = !samples.length;
}

/** Mark the sample that is shown; null: none of them. */
export function pressSample(chosen) {
  document.querySelectorAll('.sample').forEach((button, number) => button.setAttribute('aria-pressed', number === chosen));
}

let shown = null;

/** Show a picture: its preview, its name, its true class where that is known. */
export function showPicture(blob, { name, truth }) {
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(blob);
  const preview = document.getElementById('preview');
  preview.onload = () => preview.classList.toggle('tiny', preview.naturalWidth < 80);
  preview.onerror = () => {
    preview.hidden = true;
    document.getElementById('no-preview').hidden = false;
  };
  preview.src = shown;
  preview.alt = `The picture ${name}`;
  preview.hidden = false;
  document.getElementById('no-preview').hidden = true;
  document.getElementById('picture-name').textContent = name;
  document.getElementById('picture-truth').textContent = truth ? `truly: ${truth.label}` : '';
}
