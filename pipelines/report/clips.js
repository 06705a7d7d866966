// Clips: their pictures, all that is known of one, and the table of them.

const PAGE = 25;
const BEAT_MS = 700;
const FATES = ['kept', 'dropped', 'duplicate', 'failed'];

// ---- Pictures that move

const visible = new Set();
const shown = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { fill(target); visible.add(target); } else visible.delete(target);
  }
}, { rootMargin: '80px' });
let moving = !matchMedia('(prefers-reduced-motion: reduce)').matches;

const pictures = (i) => data.rows.strips[i].map((text) => `data:image/jpeg;base64,${text}`);

/** The pictures of a clip in turn; a press opens all that is known of it. */
function strip(i, tag) {
  const node = el('button', { type: 'button', class: 'strip', 'data-row': i, 'aria-label': `${clipName(i)}${tag ? `, ${tag}` : ''}. Show details`, onclick: () => openClip(i) });
  if (!data.rows.strips[i].length) node.append(el('span', { class: 'none' }, table.clip[i] === null ? 'no clip' : 'no picture here'));
  else shown.observe(node);
  if (tag) node.append(el('span', { class: 'tag' }, tag));
  return node;
}

function fill(node) {
  if (node.querySelector('img')) return;
  pictures(Number(node.dataset.row)).forEach((src, k) => node.prepend(el('img', { src, alt: '', class: k === 0 ? 'on' : null, decoding: 'async' })));
}

function beat() {
  for (const node of visible) {
    const images = [...node.querySelectorAll('img')].reverse();
    const at = images.findIndex((image) => image.classList.contains('on'));
    if (!node.isConnected) { shown.unobserve(node); visible.delete(node); continue; }
    if (images.length < 2) continue;
    images[at].classList.remove('on');
    images[(at + 1) % images.length].classList.add('on');
  }
}

function setUpMotion() {
  const button = document.getElementById('motion');
  const show = () => { button.replaceChildren(moving ? 'Pause' : 'Play', el('span', { class: 'rest' }, ' pictures')); button.setAttribute('aria-pressed', String(!moving)); };
  button.addEventListener('click', () => { moving = !moving; show(); });
  setInterval(() => { if (moving && !document.hidden) beat(); }, BEAT_MS);
  show();
}

// ---- One clip

function openClip(i) {
  const dialog = document.getElementById('clip');
  const facts = [['length', table.duration_s[i] ? `${value(table.duration_s[i])} s` : '–'], ['size', table.width[i] ? `${table.width[i]} × ${table.height[i]}` : '–'],
    ['frames a second', value(table.fps[i])], ['codec', value(table.codec[i])]];
  const known = new Set(['duration_s', 'fps', 'width', 'height', 'codec']);
  const all = [...data.rows.measures, ...['duplicate_kind', 'duplicate_distance', 'duplicate_overlap'].filter((name) => name in table)];
  for (const name of new Set(all)) if (!known.has(name) && table[name][i] !== null) facts.push([name, value(table[name][i])]);
  dialog.replaceChildren(
    el('div', { class: 'top' }, el('div', {}, el('h3', {}, breakable(clipName(i))), el('p', { class: 'note' }, breakable(source(i)))),
      el('button', { type: 'button', class: 'quiet', onclick: () => dialog.close() }, 'Close')),
    el('div', { class: 'film' }, pictures(i).map((src) => el('img', { src, alt: '' }))),
    el('p', {}, fateLabel(i), why(i) ? ` ${why(i)}` : ''),
    table.value[i] === null ? '' : el('p', { class: 'note' }, `measured ${value(table.value[i])}${table.bound[i] === null ? '' : `, bound ${value(table.bound[i])}`}`),
    table.caption[i] ? el('p', {}, table.caption[i]) : '',
    el('dl', { class: 'values' }, facts.map(([name, x]) => el('div', {}, el('dt', {}, breakable(name)), el('dd', {}, x)))),
    el('p', { class: 'note mono' }, table.uid[i]),
  );
  dialog.showModal();
}

const fateLabel = (i) => el('span', { class: 'fate' }, dot(table.fate[i]), table.fate[i]);

// ---- Browsing

/** Uids are hashes, so that their order mixes all kinds of clips. */
const state = { fate: '', step: '', reason: '', source: '', text: '', sort: 'mixed', down: false, page: 0 };
const KEYS = { mixed: (i) => table.uid[i], clip: (i) => clipName(i), length: (i) => table.duration_s[i], size: (i) => (table.width[i] || 0) * (table.height[i] || 0), outcome: (i) => table.fate[i], why: (i) => why(i), caption: (i) => table.caption[i] };
const cell = {};
let haystack = null;

/** Whether a row counts under a reason of the funnel; rows carry their whole reasons, as `cause_of` gets them. */
function matchesCause(i, reason) {
  const full = table.reason[i];
  if (full === reason) return true;
  if (table.fate[i] === 'failed') return full.split(':')[0].trim() === reason || full.startsWith(reason);
  if (table.fate[i] === 'duplicate') return full.split(' of ')[0] === reason;
  return full.replace(/\d+x\d+|\d+\.\d+/g, '…') === reason;
}

function browser() {
  const totals = Object.fromEntries(FATES.map((fate) => [fate, data.causes.filter((c) => c.fate === fate).reduce((sum, c) => sum + c.rows, 0)]));
  cell.chips = el('div', { class: 'chips', role: 'group', 'aria-label': 'Outcome' }, ['', ...FATES].map((fate) => el('button', { type: 'button', class: 'chip', 'data-fate': fate, onclick: () => change({ fate, step: '', reason: '' }) },
    fate ? dot(fate) : '', fate || 'all', ' ', el('span', { class: 'muted-count' }, count(fate ? totals[fate] : Object.values(totals).reduce((a, b) => a + b, 0))))));
  const select = (name, key, options) => el('label', {}, name, (cell[key] = el('select', { onchange: (event) => change({ [key]: event.target.value }) }, options)));
  const option = (text, name) => el('option', { value: text }, name === undefined ? text : name);
  const used = [...new Set(table.source)].map((at) => data.rows.sources[at]).sort();
  const measures = data.rows.measures.filter((name) => !['duration_s'].includes(name));
  const search = el('label', {}, 'Search captions, sources and reasons', (cell.text = el('input', { type: 'search', placeholder: 'words', oninput: (event) => change({ text: event.target.value }) })));
  const sorts = [...Object.keys(KEYS).map((key) => option(key)), el('optgroup', { label: 'measured' }, measures.map((name) => option(name)))];
  cell.head = el('tr');
  cell.body = el('tbody');
  cell.said = el('span', { role: 'status', id: 'shown' });
  cell.back = el('button', { type: 'button', onclick: () => change({ page: state.page - 1 }) }, 'Previous');
  cell.next = el('button', { type: 'button', onclick: () => change({ page: state.page + 1 }) }, 'Next');
  section('clips', 'Clips', `Every outcome, kept clips too. The page holds ${plural(table.uid.length, 'row')} to look at, chosen near thresholds and from every reason; counts are of all.`,
    el('div', { class: 'card' }, el('div', { class: 'filters' }, cell.chips, el('div', { class: 'fields' }, search, select('Step', 'step', []), select('Reason', 'reason', []),
      select('Source', 'source', [option('', 'all'), used.map((uri) => option(uri, baseName(uri)))]), select('Sort by', 'sort', sorts))),
      el('table', { class: 'table', id: 'rows' }, el('thead', {}, cell.head), cell.body), el('div', { class: 'pager' }, cell.said, el('div', {}, cell.back, cell.next))));
  change({});
}

function change(to) {
  Object.assign(state, to);
  if (!('page' in to)) state.page = 0;
  if ('sort' in to && !('down' in to)) state.down = data.rows.measures.includes(to.sort);
  options('step', [...new Set(data.causes.filter((c) => c.step && (!state.fate || c.fate === state.fate)).map((c) => c.step))]);
  options('reason', [...new Set(data.causes.filter((c) => c.reason && (!state.fate || c.fate === state.fate) && (!state.step || c.step === state.step)).map((c) => c.reason))].sort());
  cell.source.value = state.source;
  cell.sort.value = state.sort;
  for (const chip of cell.chips.children) chip.setAttribute('aria-pressed', String(chip.dataset.fate === state.fate));
  showRows();
}

function options(key, names) {
  if (!names.includes(state[key])) state[key] = '';
  cell[key].replaceChildren(el('option', { value: '' }, 'all'), ...names.map((name) => el('option', { value: name }, name)));
  cell[key].value = state[key];
}

/** Go to the clips of one reason. */
function browse(to) {
  change({ fate: '', step: '', reason: '', source: '', text: '', ...to });
  cell.text.value = state.text;
  document.getElementById('clips').scrollIntoView();
}

function chosen() {
  haystack = haystack || table.uid.map((_, i) => `${table.caption[i]} ${source(i)} ${why(i)} ${table.uid[i]}`.toLowerCase());
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = table.uid.map((_, i) => i).filter((i) => (!state.fate || table.fate[i] === state.fate) && (!state.step || table.step[i] === state.step)
    && (!state.reason || matchesCause(i, state.reason)) && (!state.source || source(i) === state.source) && words.every((word) => haystack[i].includes(word)));
  return sorted(rows);
}

function sorted(rows) {
  const key = KEYS[state.sort] || ((i) => table[state.sort][i]);
  const none = (x) => x === null || x === undefined || x === '';
  const compare = (a, b) => (typeof a === 'string' || typeof b === 'string' ? String(a).localeCompare(String(b)) : a - b);
  return rows.map((i) => [key(i), i]).sort(([a, i], [b, j]) => Number(none(a)) - Number(none(b)) || (none(a) ? i - j : (state.down ? -1 : 1) * compare(a, b) || i - j)).map(([, i]) => i);
}

/** How many rows there are in all under the filters, where the counts can tell. */
function inAll() {
  if (state.text || state.source) return null;
  return data.causes.filter((c) => (!state.fate || c.fate === state.fate) && (!state.step || c.step === state.step) && (!state.reason || c.reason === state.reason)).reduce((sum, c) => sum + c.rows, 0);
}

function showRows() {
  const rows = chosen();
  const measure = data.rows.measures.includes(state.sort) ? state.sort : null;
  const pages = Math.max(1, Math.ceil(rows.length / PAGE));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const part = rows.slice(state.page * PAGE, (state.page + 1) * PAGE);
  const head = (key) => el('th', { scope: 'col', 'aria-sort': state.sort === key ? (state.down ? 'descending' : 'ascending') : null },
    el('button', { type: 'button', class: 'link', onclick: () => change({ sort: key, down: state.sort === key ? !state.down : false }) }, key));
  cell.head.replaceChildren(el('th', { scope: 'col' }, el('span', { class: 'muted' }, '')), ...['clip', 'length', 'size', 'outcome', 'why'].map(head), measure ? head(measure) : '', head('caption'));
  cell.body.replaceChildren(...part.map((i) => tableRow(i, measure)));
  const all = inAll();
  const range = rows.length ? `${count(state.page * PAGE + 1)} to ${count(state.page * PAGE + part.length)} of ${count(rows.length)} held in the page` : 'Nothing here matches';
  cell.said.textContent = all === null ? `${range} (searching these only)` : `${range}; ${count(all)} in all`;
  cell.back.disabled = state.page === 0;
  cell.next.disabled = state.page >= pages - 1;
}

function tableRow(i, measure) {
  return el('tr', { 'data-row': i }, el('td', {}, strip(i)), el('td', { class: 'name' }, el('span', { title: source(i) }, breakable(baseName(source(i)))), table.start_s[i] === null ? '' : [' ', el('span', { class: 'muted size' }, `at ${clock(table.start_s[i])}`)]),
    el('td', { class: 'muted size' }, table.duration_s[i] ? `${value(table.duration_s[i])} s` : ''), el('td', { class: 'muted size' }, table.width[i] ? `${table.width[i]} × ${table.height[i]}` : ''),
    el('td', {}, fateLabel(i)), el('td', { class: 'why' }, breakable(why(i))), measure ? el('td', {}, value(table[measure][i])) : '', el('td', { class: 'caption-cell' }, el('span', { class: 'caption' }, table.caption[i])));
}
