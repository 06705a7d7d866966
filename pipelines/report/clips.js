// The table of clips, with filters, a search and an order.

const ROWS_PER_PAGE = 25;
const FATES = ['kept', 'dropped', 'duplicate', 'failed'];

/** The filters, the order and the page of the table. */
const state = { fate: '', step: '', reason: '', source: '', text: '', sort: 'mixed', down: false, page: 0 };
/** Orders of the table besides the measured columns. Uids are hashes, so the order `mixed` is random. */
const ORDERS = {
  mixed: (i) => table.uid[i],
  clip: (i) => clipName(i),
  duration: (i) => table.duration_s[i],
  size: (i) => (table.width[i] || 0) * (table.height[i] || 0),
  outcome: (i) => table.fate[i],
  why: (i) => why(i),
  caption: (i) => table.caption[i],
};
/** Elements of the table and its controls. */
const cell = {};
/** Text of each row in which a search looks, made at the first search. */
let searchTexts = null;

/** Return whether a row belongs to a reason of the funnel, which `cause_of` in causes.py made of the whole reason. */
function matchesCause(i, reason) {
  const full = table.reason[i];
  if (full === reason) return true;
  if (table.fate[i] === 'failed') return full.split(':')[0].trim() === reason || full.startsWith(reason);
  if (table.fate[i] === 'duplicate') return full.split(' of ')[0] === reason;
  return full.replace(/\d+x\d+|\d+\.\d+/g, '…') === reason;
}

/** Append the section with the table of clips. */
function clipTable() {
  const totals = Object.fromEntries(
    FATES.map((fate) => [fate, sum(data.causes.filter((c) => c.fate === fate).map((c) => c.rows))]),
  );
  cell.chips = el(
    'div',
    { class: 'chips', role: 'group', 'aria-label': 'Outcome' },
    ['', ...FATES].map((fate) =>
      el(
        'button',
        { type: 'button', class: 'chip', 'data-fate': fate, onclick: () => change({ fate, step: '', reason: '' }) },
        fate ? dot(fate) : '',
        fate || 'all',
        ' ',
        el('span', { class: 'muted-count' }, count(fate ? totals[fate] : sum(Object.values(totals)))),
      ),
    ),
  );
  const select = (name, key, options) =>
    el(
      'label',
      {},
      name,
      (cell[key] = el('select', { onchange: (event) => change({ [key]: event.target.value }) }, options)),
    );
  const option = (text, name) => el('option', { value: text }, name === undefined ? text : name);
  const used = [...new Set(table.source)].map((at) => data.rows.sources[at]).sort();
  const measures = data.rows.measures.filter((name) => !['duration_s'].includes(name));
  const search = el(
    'label',
    {},
    'Search captions, sources and reasons',
    (cell.text = el('input', {
      type: 'search',
      placeholder: 'words',
      oninput: (event) => change({ text: event.target.value }),
    })),
  );
  const sorts = [
    ...Object.keys(ORDERS).map((key) => option(key)),
    el(
      'optgroup',
      { label: 'measured' },
      measures.map((name) => option(name)),
    ),
  ];
  cell.head = el('tr');
  cell.body = el('tbody');
  cell.status = el('span', { role: 'status', id: 'shown' });
  cell.back = el('button', { type: 'button', onclick: () => change({ page: state.page - 1 }) }, 'Previous');
  cell.next = el('button', { type: 'button', onclick: () => change({ page: state.page + 1 }) }, 'Next');
  section(
    'clips',
    'Clips',
    [
      `Kept clips and all others. The page holds ${plural(table.uid.length, 'row')}: those nearest to thresholds, `,
      'and some of every reason. Counts are those of all rows.',
    ],
    el(
      'div',
      { class: 'card' },
      el(
        'div',
        { class: 'filters' },
        cell.chips,
        el(
          'div',
          { class: 'fields' },
          search,
          select('Step', 'step', []),
          select('Reason', 'reason', []),
          select('Source', 'source', [option('', 'all'), used.map((uri) => option(uri, baseName(uri)))]),
          select('Sort by', 'sort', sorts),
        ),
      ),
      el('table', { class: 'table', id: 'rows' }, el('thead', {}, cell.head), cell.body),
      el('div', { class: 'pager' }, cell.status, el('div', {}, cell.back, cell.next)),
    ),
  );
  change({});
}

/** Change the filters, the order or the page, and show the rows. */
function change(to) {
  Object.assign(state, to);
  if (!('page' in to)) state.page = 0;
  if ('sort' in to && !('down' in to)) state.down = data.rows.measures.includes(to.sort);
  options('step', [
    ...new Set(data.causes.filter((c) => c.step && (!state.fate || c.fate === state.fate)).map((c) => c.step)),
  ]);
  options(
    'reason',
    [
      ...new Set(
        data.causes
          .filter((c) => c.reason && (!state.fate || c.fate === state.fate) && (!state.step || c.step === state.step))
          .map((c) => c.reason),
      ),
    ].sort(),
  );
  cell.source.value = state.source;
  cell.sort.value = state.sort;
  for (const chip of cell.chips.children) chip.setAttribute('aria-pressed', String(chip.dataset.fate === state.fate));
  showRows();
}

/** Fill a select element, and reset its filter if the value is gone. */
function options(key, names) {
  if (!names.includes(state[key])) state[key] = '';
  cell[key].replaceChildren(
    el('option', { value: '' }, 'all'),
    ...names.map((name) => el('option', { value: name }, name)),
  );
  cell[key].value = state[key];
}

/** Scroll to the table and show the clips of one reason. */
function browse(to) {
  change({ fate: '', step: '', reason: '', source: '', text: '', ...to });
  cell.text.value = state.text;
  document.getElementById('clips').scrollIntoView();
}

/** Return the rows of the page that pass the filters, in order. */
function filteredRows() {
  searchTexts =
    searchTexts || table.uid.map((_, i) => `${table.caption[i]} ${source(i)} ${why(i)} ${table.uid[i]}`.toLowerCase());
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = table.uid
    .map((_, i) => i)
    .filter(
      (i) =>
        (!state.fate || table.fate[i] === state.fate) &&
        (!state.step || table.step[i] === state.step) &&
        (!state.reason || matchesCause(i, state.reason)) &&
        (!state.source || source(i) === state.source) &&
        words.every((word) => searchTexts[i].includes(word)),
    );
  return sorted(rows);
}

function sorted(rows) {
  const key = ORDERS[state.sort] || ((i) => table[state.sort][i]);
  const none = (x) => x === null || x === undefined || x === '';
  const compare = (a, b) =>
    typeof a === 'string' || typeof b === 'string' ? String(a).localeCompare(String(b)) : a - b;
  return rows
    .map((i) => [key(i), i])
    .sort(
      ([a, i], [b, j]) =>
        Number(none(a)) - Number(none(b)) || (none(a) ? i - j : (state.down ? -1 : 1) * compare(a, b) || i - j),
    )
    .map(([, i]) => i);
}

/** Return the number of all rows that pass the filters; null if the counts by cause cannot tell. */
function countAll() {
  if (state.text || state.source) return null;
  return data.causes
    .filter(
      (c) =>
        (!state.fate || c.fate === state.fate) &&
        (!state.step || c.step === state.step) &&
        (!state.reason || c.reason === state.reason),
    )
    .reduce((total, c) => total + c.rows, 0);
}

function showRows() {
  const rows = filteredRows();
  const measure = data.rows.measures.includes(state.sort) ? state.sort : null;
  const pages = Math.max(1, Math.ceil(rows.length / ROWS_PER_PAGE));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const first = state.page * ROWS_PER_PAGE;
  const part = rows.slice(first, first + ROWS_PER_PAGE);
  const head = (key) =>
    el(
      'th',
      { scope: 'col', 'aria-sort': state.sort === key ? (state.down ? 'descending' : 'ascending') : null },
      el(
        'button',
        {
          type: 'button',
          class: 'link',
          onclick: () => change({ sort: key, down: state.sort === key ? !state.down : false }),
        },
        key,
      ),
    );
  cell.head.replaceChildren(
    el('th', { scope: 'col' }, el('span', { class: 'muted' }, '')),
    ...['clip', 'duration', 'size', 'outcome', 'why'].map(head),
    measure ? head(measure) : '',
    head('caption'),
  );
  cell.body.replaceChildren(...part.map((i) => tableRow(i, measure)));
  const all = countAll();
  const range = rows.length
    ? `${count(first + 1)} to ${count(first + part.length)} of ${count(rows.length)} on the page`
    : 'No row matches';
  cell.status.textContent =
    all === null ? `${range} (only rows on the page are searched)` : `${range}; ${count(all)} in all`;
  cell.back.disabled = state.page === 0;
  cell.next.disabled = state.page >= pages - 1;
}

function tableRow(i, measure) {
  return el(
    'tr',
    { 'data-row': i },
    el('td', {}, thumbnails(i)),
    el(
      'td',
      { class: 'name' },
      el('span', { title: source(i) }, breakable(baseName(source(i)))),
      table.start_s[i] === null ? '' : [' ', el('span', { class: 'muted size' }, `at ${clock(table.start_s[i])}`)],
    ),
    el('td', { class: 'muted size' }, table.duration_s[i] ? `${value(table.duration_s[i])} s` : ''),
    el('td', { class: 'muted size' }, table.width[i] ? `${table.width[i]} × ${table.height[i]}` : ''),
    el('td', {}, fateLabel(i)),
    el('td', { class: 'why' }, breakable(why(i))),
    measure ? el('td', {}, value(table[measure][i])) : '',
    el('td', { class: 'caption-cell' }, el('span', { class: 'caption' }, table.caption[i])),
  );
}
