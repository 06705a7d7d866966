// Measured columns with their thresholds.

/** Append the section with the histograms, and the clips nearest to each threshold. */
function measures() {
  const thresholdsOf = (item) => data.thresholds.filter((threshold) => threshold.column === item.name);
  const withThresholds = data.histograms.filter((item) => thresholdsOf(item).length);
  const others = data.histograms.filter((item) => !thresholdsOf(item).length && item.counts.flat().some(Boolean));
  const sides = (thresholds) =>
    thresholds.length > 1
      ? thresholds.map(({ side }) => el('li', {}, el('span', { class: `line ${side}` }), `another ${side}`))
      : [];
  const missing = (item) =>
    item.missing ? el('p', { class: 'note' }, `${plural(item.missing, 'clip')} not measured`) : '';
  const card = (item) =>
    el(
      'div',
      { class: 'card measure' },
      el(
        'div',
        {},
        el('h3', {}, item.name),
        el('p', { class: 'note' }, item.doc),
        histogram(item, thresholdsOf(item), ''),
        legend(
          [
            ['var(--kept)', 'kept'],
            ['var(--dropped)', 'dropped here'],
            ['var(--lost)', 'lost elsewhere'],
          ],
          sides(thresholdsOf(item).filter((threshold) => threshold.yields.length)),
        ),
        missing(item),
      ),
      el('div', {}, thresholdsOf(item).map(nearestClips)),
    );
  const small = (item) =>
    el(
      'div',
      { class: 'card' },
      el('h3', {}, item.name),
      el('p', { class: 'note' }, item.doc),
      histogram(item, [], 'small'),
      missing(item),
    );
  if (!data.histograms.length) return;
  section(
    'measures',
    'Measures',
    [
      'Measures of all clips, with the thresholds of the recipe. Beside a threshold are the clips nearest to it: is ',
      'each on the right side? The line under a histogram shows how many clips other thresholds would keep, with all ',
      'other settings unchanged. Clips that a looser threshold passes on to later steps count as kept.',
    ],
    el('div', { class: 'stack' }, withThresholds.map(card)),
    others.length
      ? [
          el('h3', { class: 'sub' }, 'Measured, without a threshold'),
          legend([
            ['var(--kept)', 'kept'],
            ['var(--lost)', 'lost'],
          ]),
          el('div', { class: 'grid', style: { marginTop: '.8rem' } }, others.map(small)),
        ]
      : '',
  );
}

/** Return the nearest clips on both sides of a threshold. */
function nearestClips(threshold) {
  const { dropped, kept } = threshold.nearest;
  const side = (title, fate, rows) =>
    rows.length
      ? el(
          'div',
          { class: 'side' },
          el('h4', {}, dot(fate), title),
          el(
            'div',
            { class: 'thumbnail-grid' },
            rows.map((i) => thumbnails(i, precise(table[threshold.column][i]))),
          ),
        )
      : '';
  return el(
    'div',
    { class: 'near' },
    el(
      'p',
      {},
      el('strong', {}, threshold.condition),
      ' ',
      el(
        'span',
        { class: 'muted' },
        threshold.dropped
          ? `drops ${plural(threshold.dropped, 'clip')}, ${time(threshold.hours)} (${threshold.label})`
          : `drops nothing (${threshold.label})`,
      ),
    ),
    el(
      'div',
      { class: `sides${dropped.length && kept.length ? '' : ' one'}` },
      side(threshold.limit === null ? 'Dropped' : 'Nearest dropped', 'dropped', dropped),
      side('Nearest kept', 'kept', kept),
    ),
  );
}
