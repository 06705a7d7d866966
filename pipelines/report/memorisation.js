// Audits of models: which training clips they have learnt by heart.

const TESTS = {
  content: [
    'Content of samples',
    'What samples of captions of training clips show, beside the training clip nearest to it.',
    'Distance to the nearest training clip, divided by the mean to the ten nearest: a copy is near 0.',
  ],
  motion: [
    'Motion of samples',
    'Where and how much samples change from frame to frame, whatever their colours.',
    'The same distance, of what changes from frame to frame.',
  ],
  recall: [
    'Caption recall',
    'What the model predicts of training clips from their captions out of noise. Nothing is sampled.',
    'Loss with the caption over that without, at noise levels 0.8 to 1: a clip learnt by heart is near 0.',
  ],
};

/** Append the section with the audits of models. */
function memorisation() {
  const found = data.audits;
  if (!found.length) return;
  const node = el('div', { class: 'stack' });
  const show = (item) => node.replaceChildren(...auditCards(item));
  section(
    'memorisation',
    'Memorisation',
    'Training clips tested for being learnt by heart, beside held-out clips that the model has not seen.',
    el('div', { class: 'stack' }, modelChoice(found, show), node),
  );
  show(found[0]);
}

function auditCards(item) {
  const { tests, seeds } = item;
  const pairs = ['content', 'motion'].map((name) =>
    pairsCard(
      `${name === 'content' ? 'Content' : 'Motion'}: nearest to a training clip`,
      'Left: a sample of the caption of a training clip. Right: the training clip nearest to it, as the autoencoder ' +
        'shows it. Lowest first.',
      tests[name].pairs,
    ),
  );
  return [
    verdictCard(item),
    el('div', { class: 'grid three' }, Object.keys(TESTS).map((name) => testCard(name, tests[name], seeds))),
    ...pairs,
  ].filter(Boolean);
}

/** Return what the audit found, and the captions that it flags. */
function verdictCard({ model, rate, clips, seeds, n_flagged: nFlagged, flagged }) {
  const tested = `${plural(clips, 'training clip')}, ${plural(seeds, 'sample')} of each caption`;
  const row = ({ clip, tests, caption }) =>
    el(
      'tr',
      {},
      el('td', { class: 'mono' }, clip),
      el('td', { class: 'size' }, tests.join(', ')),
      el('td', { class: 'caption-cell' }, caption),
    );
  return el(
    'div',
    { class: 'card' },
    el(
      'h3',
      {},
      nFlagged ? `${count(nFlagged)} of ${plural(clips, 'clip')} learnt by heart` : 'Nothing learnt by heart',
    ),
    el('p', { class: 'note' }, `${model ? `${model} · ` : ''}${tested}`),
    nFlagged ? dataTable(['clip', 'flagged by', 'caption'], () => false, flagged.map(row)) : '',
    flagged.length < nFlagged ? el('p', { class: 'note' }, `The first ${count(flagged.length)} are shown.`) : '',
    el(
      'p',
      { class: 'note' },
      `Of audits of a model that has learnt nothing by heart, at most ${value(100 * rate)}% flag a clip.`,
    ),
  );
}

function testCard(name, { fewest, values, held_out: heldOut, n_flagged: nFlagged }, seeds) {
  const [title, text, note] = TESTS[name];
  const best = name !== 'recall' && seeds > 1 ? ` Of the ${seeds} samples of a caption the nearest one counts.` : '';
  return cumulativeCard(
    title,
    `${text} Flagged: ${count(nFlagged)} of ${count(values.length)}.`,
    [
      ['held-out clips', 'kept', heldOut],
      [name === 'recall' ? 'training clips' : 'samples', 'train', values],
    ],
    heldOut[0],
    `${note}${best} Dotted: the lowest held-out clip. From ${count(fewest)} below it on they are flagged.`,
  );
}
