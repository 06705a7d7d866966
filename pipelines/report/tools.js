'use strict';
// The data of the page, elements, and numbers as text.
//
// The script of a report is all files of this folder, joined in the order of `SCRIPTS` in page.py.
// Texts from footage (captions, file names, errors) are only set as text, never as markup.

const data = JSON.parse(document.getElementById('data').textContent);
const table = data.rows.table;

/** Create an element. An attribute `on...` is a listener, `style` an object; children may be nested arrays. */
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'style') Object.assign(node.style, value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Return a table that scrolls sideways, of rows `tr`. `isNumber(title, k)` is true for columns of numbers. */
function dataTable(titles, isNumber, rows) {
  const heading = (title, k) => el('th', { scope: 'col', class: isNumber(title, k) ? 'num' : '' }, title);
  return el(
    'div',
    { class: 'scroll' },
    el('table', { class: 'table' }, el('thead', {}, el('tr', {}, titles.map(heading))), el('tbody', {}, rows)),
  );
}

const count = (n) => Math.round(n).toLocaleString('en-US');
const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many || one + 's'}`;
const percent = (share) =>
  share > 0 && share < 0.001
    ? 'under 0.1%'
    : `${(100 * share).toFixed(share < 0.0995 || (share > 0.995 && share < 1) ? 1 : 0)}%`;

const baseName = (uri) => uri.slice(uri.lastIndexOf('/') + 1);
/** Return a text with a file name as nodes that may break after its separators. */
const breakable = (name) => name.split(/(?<=[_./-])/).flatMap((part, k) => (k ? [el('wbr'), part] : [part]));
const dot = (fate) => el('span', { class: `dot ${fate}`, 'aria-hidden': 'true' });

/** Return a duration in a suitable unit: 2.4 h, 35 min, 12 s. */
function time(hours) {
  if (!hours) return '0 h';
  if (hours >= 100) return `${count(hours)} h`;
  if (hours >= 0.995) return `${hours.toFixed(hours < 9.95 ? 2 : 1)} h`;
  if (hours * 60 >= 1) return `${(hours * 60).toFixed(hours * 60 < 9.95 ? 1 : 0)} min`;
  return hours * 3600 >= 9.95 ? `${(hours * 3600).toFixed(0)} s` : seconds(hours * 3600);
}

/** Return a short duration: 3.2 s, 14 ms, 80 µs. */
function seconds(s) {
  const [scale, unit] = s >= 0.0995 ? [1, 's'] : s >= 1e-3 ? [1e3, 'ms'] : [1e6, 'µs'];
  return `${Number((s * scale).toPrecision(2))} ${unit}`;
}

/** Return a value of a column as text, with three significant digits. */
function value(x) {
  if (x === null || x === undefined || x === '') return '–';
  if (typeof x === 'string') return x;
  if (typeof x === 'boolean') return x ? 'yes' : 'no';
  if (Number.isInteger(x)) return count(x);
  const size = Math.abs(x);
  return size >= 1000 ? count(x) : size >= 1e-4 || size === 0 ? String(Number(x.toPrecision(3))) : x.toExponential(1);
}

/** Return a value with four significant digits, for values close to a threshold. */
const precise = (x) => (typeof x === 'number' && !Number.isInteger(x) ? String(Number(x.toPrecision(4))) : value(x));

/** Return a time in a source: 1:02:03.4. */
function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  const rest = (seconds - 60 * minutes).toFixed(1).padStart(4, '0');
  return minutes < 60
    ? `${minutes}:${rest}`
    : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, '0')}:${rest}`;
}

/** Return the URI of a row's source. */
const source = (i) => data.rows.sources[table.source[i]];

/** Return the file name of a row's source with the start of the clip. */
function clipName(i) {
  const start = table.start_s[i];
  return baseName(source(i)) + (start === null ? '' : ` at ${clock(start)}`);
}

/** Return the step and the reason of a row's fate; empty for a kept row. */
const why = (i) => (table.fate[i] === 'kept' ? '' : `${table.step[i]}: ${table.reason[i]}`);

/** Return the colour of a CSS variable. */
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// ---- Parts that several sections have

/** Ids and titles of the sections, in the order of the page. */
const sections = [];

/** Append a section to the page. */
function section(id, title, intro, ...content) {
  const node = el(
    'section',
    { id, 'aria-labelledby': `${id}-title` },
    el('header', {}, el('h2', { id: `${id}-title` }, title), intro ? el('p', {}, intro) : ''),
    content,
  );
  sections.push([id, title]);
  document.getElementById('main').append(node);
}

/** Return a legend of (CSS background, name), with further items. */
const legend = (items, ...more) =>
  el(
    'ul',
    { class: 'legend' },
    items.map(([background, name]) => el('li', {}, el('span', { class: 'dot', style: { background } }), name)),
    more,
  );

const sum = (values) => values.reduce((a, b) => a + b, 0);
