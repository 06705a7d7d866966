// Duplicates and failures.

/** Append the section with duplicate groups. */
function duplicates() {
  if (!data.duplicates || !data.duplicates.groups.length) return;
  const { groups, n_groups: nGroups, n_duplicates: nDuplicates } = data.duplicates;
  const about = (i) =>
    [
      table.duplicate_kind && table.duplicate_kind[i],
      table.duplicate_distance && table.duplicate_distance[i] !== null
        ? `distance ${value(table.duplicate_distance[i])}`
        : '',
      table.duplicate_overlap && table.duplicate_overlap[i] !== null
        ? `${percent(table.duplicate_overlap[i])} of it is in the kept clip`
        : '',
    ]
      .filter(Boolean)
      .join(', ');
  const size = (i) =>
    `${table.width[i]} × ${table.height[i]}${table.duration_s[i] ? `, ${value(table.duration_s[i])} s` : ''}`;
  const figure = (i, note) =>
    el(
      'figure',
      {},
      thumbnails(i),
      el('figcaption', {}, el('strong', {}, clipName(i)), el('br'), note ? [note, el('br')] : '', size(i)),
    );
  const card = (group) =>
    el(
      'div',
      { class: 'card pairs' },
      el('div', {}, el('h4', {}, 'Kept'), figure(group.kept)),
      el(
        'div',
        {},
        el(
          'h4',
          {},
          group.size > group.copies.length
            ? `${group.copies.length} of ${plural(group.size, 'duplicate')}`
            : plural(group.size, 'duplicate'),
        ),
        el(
          'div',
          { class: 'copies' },
          group.copies.map((i) => figure(i, about(i))),
        ),
      ),
    );
  section(
    'duplicates',
    'Duplicates',
    [
      `${plural(nDuplicates, 'clip repeats', 'clips repeat')} ${plural(nGroups, 'kept one')}. First come the least `,
      'similar, where a mistake is most likely, then the largest groups',
      groups.length < nGroups ? `; ${count(groups.length)} of ${count(nGroups)} groups are shown.` : '.',
    ],
    paged(groups, 6, card),
  );
}

/** Return cards of the items, and a button that shows a few more. */
function paged(items, size, card) {
  const list = el('div', { class: 'stack' });
  const button = el('button', { type: 'button', class: 'quiet', onclick: () => more() });
  let at = 0;
  const more = () => {
    list.append(...items.slice(at, at + size).map(card));
    at += size;
    button.textContent = `Show ${Math.min(size, items.length - at)} more`;
    button.hidden = at >= items.length;
  };
  more();
  return el('div', { class: 'stack' }, list, el('div', {}, button));
}

/** Append the section with the rows that failed. */
function failures() {
  if (!data.failures.length) return;
  const total = sum(data.failures.map((item) => item.rows));
  section(
    'failures',
    'Failures',
    `${plural(total, 'row')} failed with an error. No other row was affected.`,
    el(
      'div',
      { class: 'card' },
      data.failures.map((item, k) =>
        el(
          'details',
          { class: 'error', open: k === 0 },
          el(
            'summary',
            {},
            el('span', {}, el('strong', {}, item.error), ' ', el('span', { class: 'muted' }, `in ${item.step}`)),
            el('span', { class: 'muted' }, count(item.rows)),
          ),
          el(
            'ul',
            { tabindex: '0', 'aria-label': `Rows that failed with ${item.error}` },
            item.listed.map(({ row, message }) =>
              el(
                'li',
                {},
                el('strong', { title: source(row) }, clipName(row)),
                el('br'),
                el('span', { class: 'muted' }, message),
              ),
            ),
          ),
          item.listed.length < item.rows
            ? el('p', { class: 'note' }, `${count(item.listed.length)} of ${count(item.rows)} are listed.`)
            : '',
        ),
      ),
    ),
  );
}
