// Comparison of the splits.

/** Append the section that compares the splits. */
function balance() {
  const { splits, clips, hours, charts } = data.balance;
  if (!splits.length) return;
  const tone = (split) => (splits.length === 1 && split === 'kept' ? 'kept' : split);
  const different = charts
    .flatMap((item) => Object.entries(item.distances).map(([split, found]) => ({ title: item.title, split, ...found })))
    .filter(({ distance, expected }) => distance > 0.1 && distance > 2 * expected);
  const splitName = (split) => (split === 'kept' && splits.length > 1 ? 'no split' : split);
  const card = (item) =>
    el(
      'div',
      { class: 'card' },
      el('h3', {}, item.title),
      shareChart(item, splits, tone),
      Object.entries(item.distances).map(([split, { distance, expected }]) =>
        el(
          'p',
          { class: 'note' },
          `${split}: distance to train ${percent(distance)}; ${percent(expected)} is expected of a random split`,
        ),
      ),
    );
  section(
    'balance',
    'Balance',
    splits.length > 1
      ? 'The kept clips of each split, as shares of the split. Held-out splits should resemble the training split.'
      : 'The kept clips. There is no split yet.',
    legend(
      splits.map((split) => [
        `var(--${tone(split)})`,
        `${splitName(split)}: ${plural(clips[split], 'clip')}${hours[split] ? `, ${time(hours[split])}` : ''}`,
      ]),
    ),
    different.length
      ? el(
          'p',
          {},
          el('strong', {}, 'Splits differ in '),
          [...new Set(different.map(({ title }) => title))]
            .map((title) => {
              const names = different.filter((item) => item.title === title).map(({ split }) => split);
              return `${title.toLowerCase().split(',')[0]} (${names.join(', ')})`;
            })
            .join(', '),
          '.',
        )
      : '',
    el('div', { class: 'grid', style: { marginTop: '1rem' } }, charts.map(card)),
    el('div', { class: 'stack', style: { marginTop: '1rem' } }, wordCard(splits, tone), sourceCard(splits, tone)),
  );
}

/**
 * Return a list of names with one bar per split, or all splits in one bar (`stacked`), and a text at the end.
 *
 * `size` returns the length of the bar of a split and the k-th name, `text` the text of the k-th name.
 */
function barList(className, names, splits, { tone, size, text }) {
  const lengths = (k) => splits.map((split) => size(split, k));
  const longest = Math.max(
    1e-9,
    ...names.map((_, k) => (className === 'stacked' ? sum(lengths(k)) : Math.max(...lengths(k)))),
  );
  const bar = (split, k) =>
    el('i', {
      class: size(split, k) ? '' : 'zero',
      style: { width: `${(100 * size(split, k)) / longest}%`, background: `var(--${tone(split)})` },
    });
  return el(
    'ul',
    { class: `bars ${className}` },
    names.map((name, k) =>
      el(
        'li',
        {},
        el('span', { class: 'name', title: name }, name),
        el(
          'span',
          { class: 'track', 'aria-hidden': 'true' },
          splits.map((split) => bar(split, k)),
        ),
        el('span', { class: 'value' }, text(k)),
      ),
    ),
  );
}

function wordCard(splits, tone) {
  const { words, counts, captions } = data.balance.words;
  const used = splits.filter((split) => captions[split]);
  if (!words.length || !used.length) return '';
  const share = (split, k) => counts[split][k] / captions[split];
  return el(
    'div',
    { class: 'card' },
    el('h3', {}, 'Most common words'),
    el(
      'p',
      { class: 'note' },
      `Share of captions with the word${used.length > 1 ? `; numbers of ${used[0]}` : ''}. Stop words are left out.`,
    ),
    barList('words', words, used, { tone, size: share, text: (k) => percent(share(used[0], k)) }),
  );
}

function sourceCard(splits, tone) {
  const { names, counts, n_others: nOthers, n } = data.balance.sources;
  return el(
    'div',
    { class: 'card' },
    el('h3', {}, 'Sources with most clips'),
    el(
      'p',
      { class: 'note' },
      `${plural(n, 'source')} gave kept clips${nOthers ? `; ${count(nOthers)} more are not listed` : ''}.`,
    ),
    barList('stacked', names, splits, {
      tone,
      size: (split, k) => counts[split][k],
      text: (k) => count(sum(splits.map((split) => counts[split][k]))),
    }),
  );
}
