'use strict';
// The page of a report. All texts of footage (captions, file names, errors) are set as text, never as markup.

const data = JSON.parse(document.getElementById('data').textContent);
const table = data.rows.table;
const PAGE = 25;
const BEAT_MS = 700;
const FATES = ['kept', 'dropped', 'duplicate', 'failed'];

// ---- Small tools

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'style') Object.assign(node.style, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const count = (n) => Math.round(n).toLocaleString('en-US');
const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many || one + 's'}`;
const percent = (share) => (share > 0 && share < 0.001 ? 'under 0.1%' : `${(100 * share).toFixed(share < 0.0995 || share > 0.995 && share < 1 ? 1 : 0)}%`);
const baseName = (uri) => uri.slice(uri.lastIndexOf('/') + 1);
const dot = (fate) => el('span', { class: `dot ${fate}`, 'aria-hidden': 'true' });

/** A length of time in the unit that suits it: 2.4 h, 35 min, 12 s. */
function time(hours) {
  if (!hours) return '0 h';
  if (hours >= 100) return `${count(hours)} h`;
  if (hours >= 0.995) return `${hours.toFixed(hours < 9.95 ? 2 : 1)} h`;
  if (hours * 60 >= 1) return `${(hours * 60).toFixed(hours * 60 < 9.95 ? 1 : 0)} min`;
  return hours * 3600 >= 9.95 ? `${(hours * 3600).toFixed(0)} s` : seconds(hours * 3600);
}

/** A short time: 3.2 s, 14 ms, 80 µs. */
function seconds(s) {
  const [scale, unit] = s >= 0.0995 ? [1, 's'] : s >= 1e-3 ? [1e3, 'ms'] : [1e6, 'µs'];
  return `${Number((s * scale).toPrecision(2))} ${unit}`;
}

function value(x) {
  if (x === null || x === undefined || x === '') return '–';
  if (typeof x === 'string') return x;
  if (typeof x === 'boolean') return x ? 'yes' : 'no';
  if (Number.isInteger(x)) return count(x);
  const size = Math.abs(x);
  return size >= 1000 ? count(x) : size >= 1e-4 || size === 0 ? String(Number(x.toPrecision(3))) : x.toExponential(1);
}

/** With a digit more, for values close to a bound. */
const precise = (x) => (typeof x === 'number' && !Number.isInteger(x) ? String(Number(x.toPrecision(4))) : value(x));

/** A place in a source: 1:02:03.4 */
function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  const rest = (seconds - 60 * minutes).toFixed(1).padStart(4, '0');
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, '0')}:${rest}`;
}

const source = (i) => data.rows.sources[table.source[i]];

function clipName(i) {
  const start = table.start_s[i];
  return baseName(source(i)) + (start === null ? '' : ` at ${clock(start)}`);
}

const why = (i) => (table.fate[i] === 'kept' ? '' : `${table.step[i]}: ${table.reason[i]}`);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

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
  const show = () => { button.textContent = moving ? 'Pause pictures' : 'Play pictures'; button.setAttribute('aria-pressed', String(!moving)); };
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
    el('div', { class: 'top' }, el('div', {}, el('h3', {}, clipName(i)), el('p', { class: 'note' }, source(i))),
      el('button', { type: 'button', class: 'quiet', onclick: () => dialog.close() }, 'Close')),
    el('div', { class: 'film' }, pictures(i).map((src) => el('img', { src, alt: '' }))),
    el('p', {}, fateLabel(i), why(i) ? ` ${why(i)}` : ''),
    table.value[i] === null ? '' : el('p', { class: 'note' }, `measured ${value(table.value[i])}${table.bound[i] === null ? '' : `, bound ${value(table.bound[i])}`}`),
    table.caption[i] ? el('p', {}, table.caption[i]) : '',
    el('dl', { class: 'values' }, facts.map(([name, x]) => el('div', {}, el('dt', {}, name), el('dd', {}, x)))),
    el('p', { class: 'note mono' }, table.uid[i]),
  );
  dialog.showModal();
}

const fateLabel = (i) => el('span', { class: 'fate' }, dot(table.fate[i]), table.fate[i]);

// ---- Charts, drawn when they come near

let libraryIsHere = false;
const drawn = [];

function library() {
  if (!libraryIsHere) {
    const script = document.createElement('script');
    script.textContent = document.getElementById('charts').textContent;
    document.head.append(script);
    libraryIsHere = true;
  }
  return window.Plotly;
}

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    drawn.push(target);
    target.replaceChildren();
    target.draw();
  }
}, { rootMargin: '300px' });

/** A chart in words for those who do not see it, and drawn by Plotly once it is close to the screen. */
function chart(className, label, make) {
  const node = el('div', { class: `plot ${className}`, role: 'img', 'aria-label': label }, el('span', { class: 'wait' }, 'drawn when in view'));
  node.draw = () => {
    const { traces, layout } = make();
    library().react(node, traces, { ...baseLayout(), ...layout, xaxis: { ...axisStyle(), ...layout.xaxis }, yaxis: { ...axisStyle(), ...layout.yaxis } },
      { displayModeBar: false, responsive: true, scrollZoom: false });
  };
  near.observe(node);
  return node;
}

const baseLayout = () => ({
  margin: { l: 44, r: 10, t: 14, b: 34 }, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', showlegend: false, dragmode: false,
  font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color('muted') }, hovermode: 'closest', bargap: 0.08,
  hoverlabel: { bgcolor: color('ink'), bordercolor: color('ink'), font: { color: color('paper'), size: 12 } },
});
const axisStyle = () => ({ gridcolor: color('line'), linecolor: color('line'), zeroline: false, fixedrange: true, automargin: true, tickcolor: color('line') });

const middle = (edges, log) => edges.slice(1).map((edge, k) => (log ? (Math.log10(edge) + Math.log10(edges[k])) / 2 : (edge + edges[k]) / 2));
const widths = (edges, log) => edges.slice(1).map((edge, k) => 0.94 * (log ? Math.log10(edge) - Math.log10(edges[k]) : edge - edges[k]));

/** Axis settings for bins; a logarithmic one has its ticks at 1, 2 and 5. */
function binAxis(edges, log) {
  const scale = log ? Math.log10 : (x) => x;
  const range = [scale(edges[0]), scale(edges[edges.length - 1])];
  if (!log) return { range };
  const ticks = [];
  for (let power = Math.floor(range[0]); power <= range[1]; power += 1) for (const lead of range[1] - range[0] > 2.5 ? [1] : [1, 2, 5]) ticks.push(lead * 10 ** power);
  return { range, tickvals: ticks.map(Math.log10), ticktext: ticks.map(value) };
}

/** The bins in words; the first and the last one take in all beyond them. */
function binNames({ edges, below, above }) {
  const last = edges.length - 2;
  return edges.slice(1).map((edge, k) => (k === 0 && below ? `under ${value(edge)}` : k === last && above ? `from ${value(edges[k])}` : `${value(edges[k])} to ${value(edge)}`));
}

/** Which side of a mark its words go, so that they stay inside the chart. */
function anchor(at, item) {
  const scale = item.log ? Math.log10 : (x) => x;
  const [low, high] = [scale(item.edges[0]), scale(item.edges[item.edges.length - 1])];
  const share = (at - low) / (high - low);
  return share < 0.15 ? 'left' : share > 0.85 ? 'right' : 'center';
}

function histogram(item, marks, className) {
  const here = marks.length > 0;
  const groups = [['kept', 'kept', 'kept'], ['dropped', 'dropped here', 'dropped'], [here ? 'lost elsewhere' : 'lost', here ? 'lost elsewhere' : 'lost', 'else']];
  const total = item.counts.flat().reduce((a, b) => a + b, 0);
  const says = `Histogram of ${item.name} over ${count(total)} clips${marks.map((m) => `, dropped ${m.words}: ${count(m.dropped)}`).join('')}`;
  return chart(className, says, () => {
    const numeric = Boolean(item.edges);
    const x = numeric ? middle(item.edges, item.log) : item.names;
    const ranges = numeric ? binNames(item) : item.names;
    const sums = x.map((_, k) => item.counts.reduce((sum, counts) => sum + counts[k], 0));
    const [highest, second] = [...sums].sort((a, b) => b - a);
    // One bar that dwarfs all others, as the zeros of a share do, is cut off and says its count.
    const top = second && highest > 5 * second ? 1.35 * second : null;
    const traces = groups.map(([, name, tone], g) => ({
      type: 'bar', x, y: item.counts[g], width: numeric ? widths(item.edges, item.log) : undefined, name, marker: { color: color(tone) },
      customdata: ranges, hovertemplate: `%{customdata}<br>%{y:,} ${name}<extra></extra>`,
    })).filter((trace, g) => item.counts[g].some(Boolean));
    const scale = item.log ? Math.log10 : (v) => v;
    const lines = numeric ? marks.filter((mark) => mark.bound !== null) : [];
    const shapes = lines.map((mark) => ({ type: 'line', x0: scale(mark.bound), x1: scale(mark.bound), y0: 0, y1: 1, yref: 'paper', line: { color: color('ink'), width: 1.5, dash: '4px,3px' } }));
    const annotations = lines.map((mark) => ({ x: scale(mark.bound), y: 1, yref: 'paper', text: ` ${mark.side} ${value(mark.bound)} `, showarrow: false, yanchor: 'bottom', xanchor: anchor(scale(mark.bound), item),  font: { color: color('ink'), size: 11 } }));
    if (top) annotations.push({ x: x[sums.indexOf(highest)], y: top, text: `↑ ${count(highest)}`, showarrow: false, xanchor: 'left', xshift: 9, yanchor: 'top', font: { color: color('ink'), size: 11 } });
    return { traces, layout: { barmode: 'stack', shapes, annotations, margin: { l: 44, r: 14, t: 20, b: 30 }, xaxis: numeric ? { ...binAxis(item.edges, item.log), showgrid: false } : { type: 'category', showgrid: false }, yaxis: { tickformat: ',', ...(top ? { range: [0, top] } : { rangemode: 'tozero' }) } } };
  });
}

// ---- Sections

const sections = [];

function section(id, title, intro, ...content) {
  const node = el('section', { id, 'aria-labelledby': `${id}-title` }, el('header', {}, el('h2', { id: `${id}-title` }, title), intro ? el('p', {}, intro) : ''), content);
  sections.push([id, title]);
  document.getElementById('main').append(node);
}

function overview() {
  const { videos, images } = data.funnel;
  const main = videos || images;
  const tile = (name, number, of, tone) => el('div', { class: 'tile' }, el('dt', {}, name), el('dd', {}, el('span', { class: tone || '' }, number), el('span', { class: 'of' }, of)));
  const sources = data.ledger.filter((a) => a.level !== 'clips');
  const clips = data.ledger.find((a) => a.level === 'clips');
  const failed = data.ledger.reduce((sum, a) => sum + a.fates.failed, 0);
  const tiles = [];
  if (videos) tiles.push(tile('Footage in', time(videos.hours), plural(videos.files, 'video')), tile('Footage kept', time(videos.kept_hours), videos.hours ? `${percent(videos.kept_hours / videos.hours)} of what came in` : '', 'good'));
  tiles.push(tile('Clips kept', count(clips.fates.kept), `of ${count(clips.inputs)} cut${clips.inputs ? `, ${percent(clips.fates.kept / clips.inputs)}` : ''}`, 'good'),
    tile('Sources', count(sources.reduce((sum, a) => sum + a.inputs, 0)), sources.filter((a) => a.inputs).map((a) => plural(a.inputs, a.level.slice(0, -1))).join(', ')),
    tile('Duplicates', count(clips.fates.duplicate), clips.inputs ? `${percent(clips.fates.duplicate / clips.inputs)} of the clips` : ''),
    tile('Failed', count(failed), failed ? 'files and clips' : 'nothing failed'));
  const kept = table.fate.flatMap((fate, i) => (fate === 'kept' && data.rows.strips[i].length ? [i] : []));
  const heads = main && spread(kept, 18);
  const when = new Date(data.when).toLocaleString('en-GB', { day: 'numeric', month: 'long', year: 'numeric', hour: '2-digit', minute: '2-digit' });
  document.getElementById('main').append(el('section', { id: 'overview', style: { marginTop: 0 }, 'aria-labelledby': 'title' },
    el('p', { class: 'note' }, 'Curation report'), el('h1', { id: 'title' }, data.name), el('p', { class: 'muted' }, `${when} · worldloom ${data.version}`),
    el('dl', { class: 'tiles' }, tiles),
    heads && heads.length >= 6 ? el('div', { class: 'hero', 'aria-label': 'Some of the kept clips' }, heads.map((i) => strip(i))) : '',
    data.ledger.every((a) => a.balanced) ? '' : el('p', {}, 'The ledger does not add up: inputs are not kept + dropped + failed + duplicate. Run `worldloom ledger`.')));
  sections.push(['overview', 'Overview']);
}

/** At most n of the rows, of as many sources as there are. */
function spread(rows, n) {
  const bySource = new Map();
  for (const i of rows) bySource.set(table.source[i], [...(bySource.get(table.source[i]) || []), i]);
  const found = [];
  for (let turn = 0; found.length < Math.min(n, rows.length); turn += 1) for (const list of bySource.values()) if (list[turn] !== undefined && found.length < n) found.push(list[turn]);
  return found;
}

function funnels() {
  const cards = [];
  for (const [kind, funnel] of Object.entries(data.funnel)) cards.push(el('div', { class: 'card' }, el('h3', {}, kind === 'videos' ? 'Videos' : 'Images'), funnelList(funnel, kind)));
  section('funnel', 'Where it went', 'From what came in to what was kept: each step, and what it took away and why. Press a reason to see those clips.', el('div', { class: 'stack' }, cards));
}

function funnelList(funnel, kind) {
  const byHours = kind === 'videos' && funnel.hours > 0;
  const whole = byHours ? funnel.hours : Math.max(funnel.files, funnel.clips, 1);
  const cut = funnel.stages.findIndex((stage) => stage.made) ;
  const left = (stage, k) => (byHours ? stage.hours : cut >= 0 && k >= cut ? stage.clips : stage.files);
  const size = (loss) => (byHours ? loss.hours : loss.rows);
  const stages = funnel.stages.map((stage, k) => [stage, k]).filter(([stage]) => stage.losses.length || stage.made);
  const bar = (kept, losses) => el('div', { class: 'bar', 'aria-hidden': 'true' }, el('i', { class: 'kept', style: { width: `${(100 * kept) / whole}%` } }),
    losses.filter(size).map((loss) => el('i', { class: loss.fate, style: { width: `${(100 * size(loss)) / whole}%` } })));
  const first = el('li', {}, el('strong', {}, 'In'), bar(whole, []), el('span', { class: 'left' }, byHours ? time(funnel.hours) : '', el('small', {}, plural(funnel.files, 'file'))));
  const rest = stages.map(([stage, k]) => el('li', {}, el('span', { class: 'mono' }, stage.label), bar(left(stage, k), stage.losses),
    el('span', { class: 'left' }, byHours ? time(stage.hours) : '', el('small', {}, cut >= 0 && k >= cut ? plural(stage.clips, 'clip') : plural(stage.files, 'file'))),
    stage.losses.length ? lossList(stage, byHours) : ''));
  const unknown = funnel.unknown_lengths ? el('p', { class: 'note' }, `${plural(funnel.unknown_lengths, 'video')} ended before ${funnel.unknown_lengths === 1 ? 'its' : 'their'} length was known, and count${funnel.unknown_lengths === 1 ? 's' : ''} as no hours.`) : '';
  return el('div', {}, el('ol', { class: 'funnel' }, first, rest), unknown);
}

function lossList(stage, byHours) {
  const line = (loss) => {
    const rows = loss.rows ? plural(loss.rows, loss.unit.slice(0, -1)) : '';
    const amount = [rows, byHours && loss.hours ? time(loss.hours) : ''].filter(Boolean).join(', ');
    const content = [dot(loss.fate), el('span', {}, loss.reason, ' ', el('span', { class: 'muted' }, amount))];
    return el('li', {}, loss.rows ? el('button', { type: 'button', class: 'link', onclick: () => browse({ fate: loss.fate, step: stage.label, reason: loss.reason }) }, content) : el('span', { class: 'loss' }, content));
  };
  const most = stage.losses.slice(0, 10);
  const more = stage.losses.slice(10);
  return el('ul', {}, most.map(line), more.length ? el('li', { style: { flexBasis: '100%' } }, el('details', {}, el('summary', { class: 'muted' }, `${plural(more.length, 'reason')} more`), el('ul', {}, more.map(line)))) : '');
}

function thresholds() {
  const marksOf = (name) => data.thresholds.filter((mark) => mark.column === name);
  const judged = data.histograms.filter((item) => marksOf(item.name).length);
  const others = data.histograms.filter((item) => !marksOf(item.name).length && item.counts.flat().some(Boolean));
  const legend = (names) => el('ul', { class: 'legend' }, names.map(([tone, name]) => el('li', {}, el('span', { class: 'dot', style: { background: `var(--${tone})` } }), name)));
  const missing = (item) => (item.missing ? el('p', { class: 'note' }, `${plural(item.missing, 'clip')} not measured`) : '');
  const card = (item) => el('div', { class: 'card measure' },
    el('div', {}, el('h3', {}, item.name), el('p', { class: 'note' }, item.doc), histogram(item, marksOf(item.name), ''),
      legend([['kept', 'kept'], ['dropped', 'dropped here'], ['else', 'lost elsewhere']]), missing(item)),
    el('div', {}, marksOf(item.name).map(nearest)));
  const small = (item) => el('div', { class: 'card' }, el('h3', {}, item.name), el('p', { class: 'note' }, item.doc), histogram(item, [], 'small'), missing(item));
  if (!data.histograms.length) return;
  section('measures', 'Measures', 'What was measured of every clip, with the thresholds of the recipe. Beside each, the clips nearest to it on both sides: are they on the right one?',
    el('div', { class: 'stack' }, judged.map(card)),
    others.length ? [el('h3', { class: 'sub' }, 'Measured, without a threshold'), legend([['kept', 'kept'], ['else', 'lost']]), el('div', { class: 'grid', style: { marginTop: '.8rem' } }, others.map(small))] : '');
}

function nearest(mark) {
  const [out, inside] = mark.near;
  const side = (title, fate, rows) => (rows.length ? el('div', { class: 'side' }, el('h4', {}, dot(fate), title), el('div', { class: 'strips' }, rows.map((i) => strip(i, precise(table[mark.column][i]))))) : '');
  return el('div', { class: 'near' },
    el('p', {}, el('strong', {}, mark.words), ' ', el('span', { class: 'muted' }, mark.dropped ? `drops ${plural(mark.dropped, 'clip')}, ${time(mark.hours)} (${mark.label})` : `drops nothing (${mark.label})`)),
    el('div', { class: `sides${out.length && inside.length ? '' : ' one'}` }, side(mark.bound === null ? 'Dropped' : 'Just dropped', 'dropped', out), side('Just kept', 'kept', inside)));
}

function balance() {
  const { splits, clips, hours, shares } = data.balance;
  if (!splits.length) return;
  const tone = (split) => (splits.length === 1 && split === 'kept' ? 'kept' : split);
  const worst = shares.flatMap((item) => Object.entries(item.apart).map(([split, far]) => [item.title, split, far])).filter(([, , far]) => far.distance > 0.1 && far.distance > 2 * far.chance);
  const legend = el('ul', { class: 'legend' }, splits.map((split) => el('li', {}, el('span', { class: 'dot', style: { background: `var(--${tone(split)})` } }), `${split === 'kept' ? (splits.length > 1 ? 'no split' : 'kept') : split}: ${plural(clips[split], 'clip')}, ${time(hours[split])}`)));
  const card = (item) => el('div', { class: 'card' }, el('h3', {}, item.title), shareChart(item, splits, tone), Object.entries(item.apart).map(([split, far]) =>
    el('p', { class: 'note' }, `${split} is ${percent(far.distance)} apart from train; chance gives ${percent(far.chance)}`)));
  section('balance', 'Balance', splits.length > 1 ? 'What the kept clips are like, each split as shares of its own clips. What is held out should look like what is trained on.' : 'What the kept clips are like. There is no split yet.',
    legend, worst.length ? el('p', {}, el('strong', {}, 'Splits differ in '), [...new Set(worst.map(([title, split]) => `${title.toLowerCase()} (${split})`))].join(', '), '.') : '',
    el('div', { class: 'grid', style: { marginTop: '1rem' } }, shares.map(card)),
    el('div', { class: 'stack', style: { marginTop: '1rem' } }, wordCard(splits, tone), sourceCard(splits, tone)));
}

function shareChart(item, splits, tone) {
  const used = splits.filter((split) => item.counts[split]);
  return chart('small', `${item.title}: ${used.map((split) => `${split}, ${plural(item.counts[split].reduce((a, b) => a + b, 0), 'clip')}`).join('; ')}`, () => {
    const numeric = Boolean(item.edges);
    const traces = used.map((split) => {
      const total = item.counts[split].reduce((a, b) => a + b, 0) || 1;
      const y = item.counts[split].map((n) => n / total);
      const names = numeric ? binNames(item) : item.labels;
      const common = { name: split, customdata: names.map((name, k) => [name, count(item.counts[split][k])]), hovertemplate: `%{customdata[0]}<br>%{y:.1%} of ${split}, %{customdata[1]} clips<extra></extra>` };
      if (numeric && used.length > 1) return { ...common, type: 'scatter', mode: 'lines', line: { shape: 'hvh', width: 2, color: color(tone(split)) }, x: middle(item.edges, item.log), y };
      return { ...common, type: 'bar', x: numeric ? middle(item.edges, item.log) : item.labels, y, width: numeric ? widths(item.edges, item.log) : undefined, marker: { color: color(tone(split)) } };
    });
    return { traces, layout: { barmode: 'group', bargap: 0.25, margin: { l: 40, r: 10, t: 8, b: 30 }, xaxis: numeric ? { ...binAxis(item.edges, item.log), showgrid: false } : { type: 'category', showgrid: false }, yaxis: { tickformat: '.0%', rangemode: 'tozero' } } };
  });
}

function barList(className, names, splits, tone, share, titles) {
  const most = Math.max(1e-9, ...names.flatMap((_, k) => splits.map((split) => share(split, k))));
  return el('ul', { class: `bars ${className}` }, names.map((name, k) => el('li', {}, el('span', { class: 'name', title: titles ? titles[k] : name }, name),
    el('span', { class: 'track', 'aria-hidden': 'true' }, splits.map((split) => el('i', { style: { width: `${(100 * share(split, k)) / most}%`, background: `var(--${tone(split)})` } }))),
    el('span', { class: 'value' }, percent(Math.max(...splits.map((split) => share(split, k))))))));
}

function wordCard(splits, tone) {
  const { words, counts, captions } = data.balance.words;
  if (!words.length) return '';
  return el('div', { class: 'card' }, el('h3', {}, 'Most common words'), el('p', { class: 'note' }, 'Share of captions that hold the word, without the words every text has.'),
    barList('words', words, splits.filter((split) => captions[split]), tone, (split, k) => counts[split][k] / captions[split]));
}

function sourceCard(splits, tone) {
  const { names, counts, others, n_others: nOthers, n } = data.balance.sources;
  const total = Object.fromEntries(splits.map((split) => [split, counts[split].reduce((a, b) => a + b, 0) + others[split]]));
  return el('div', { class: 'card' }, el('h3', {}, 'Sources with most clips'), el('p', { class: 'note' }, `Share of the kept clips. ${plural(n, 'source')} gave kept clips${nOthers ? `; ${count(nOthers)} more are not listed` : ''}.`),
    barList('', names, splits.filter((split) => total[split]), tone, (split, k) => counts[split][k] / total[split]));
}

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
  return el('tr', { 'data-row': i }, el('td', {}, strip(i)), el('td', { class: 'name' }, el('span', { title: source(i) }, baseName(source(i))), table.start_s[i] === null ? '' : el('span', { class: 'muted' }, ` at ${clock(table.start_s[i])}`)),
    el('td', { class: 'muted size' }, table.duration_s[i] ? `${value(table.duration_s[i])} s` : ''), el('td', { class: 'muted size' }, table.width[i] ? `${table.width[i]} × ${table.height[i]}` : ''),
    el('td', {}, fateLabel(i)), el('td', {}, why(i)), measure ? el('td', {}, value(table[measure][i])) : '', el('td', { class: 'caption-cell' }, el('span', { class: 'caption' }, table.caption[i])));
}

// ---- Duplicates, failures, training, time, lineage

function duplicates() {
  if (!data.duplicates || !data.duplicates.groups.length) return;
  const { groups, n_groups: nGroups, n_duplicates: nDuplicates } = data.duplicates;
  const about = (i) => [table.duplicate_kind && table.duplicate_kind[i], table.duplicate_distance && table.duplicate_distance[i] !== null ? `distance ${value(table.duplicate_distance[i])}` : '',
    table.duplicate_overlap && table.duplicate_overlap[i] !== null ? `${percent(table.duplicate_overlap[i])} of it` : ''].filter(Boolean).join(', ');
  const size = (i) => `${table.width[i]} × ${table.height[i]}${table.duration_s[i] ? `, ${value(table.duration_s[i])} s` : ''}`;
  const figure = (i, note) => el('figure', {}, strip(i), el('figcaption', {}, el('strong', {}, clipName(i)), el('br'), note ? [note, el('br')] : '', size(i)));
  const card = (group) => el('div', { class: 'card pairs' }, el('div', {}, el('h4', {}, 'Kept'), figure(group.kept)),
    el('div', {}, el('h4', {}, group.size > group.copies.length ? `${group.copies.length} of ${plural(group.size, 'duplicate')}` : plural(group.size, 'duplicate')), el('div', { class: 'copies' }, group.copies.map((i) => figure(i, about(i))))));
  section('duplicates', 'Duplicates', `${plural(nDuplicates, 'clip')} repeat ${plural(nGroups, 'kept one')}. First the least alike, where a mistake is most likely, then the largest groups; ${count(groups.length)} of ${count(nGroups)} are shown.`,
    paged(groups, 6, card));
}

/** Cards a few at a time. */
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

function failures() {
  if (!data.failures.length) return;
  const total = data.failures.reduce((sum, item) => sum + item.rows, 0);
  section('failures', 'Failures', `${plural(total, 'row')} failed with an error. Each stands alone: no other row was touched.`, el('div', { class: 'card' }, data.failures.map((item, k) => el('details', { class: 'error', open: k === 0 },
    el('summary', {}, el('span', {}, el('strong', {}, item.error), ' ', el('span', { class: 'muted' }, `in ${item.step}`)), el('span', { class: 'muted' }, count(item.rows))),
    el('ul', { tabindex: '0', 'aria-label': `Rows that failed with ${item.error}` }, item.listed.map(({ row, message }) => el('li', {}, el('strong', { title: source(row) }, clipName(row)), el('br'), el('span', { class: 'muted' }, message)))),
    item.listed.length < item.rows ? el('p', { class: 'note' }, `${count(item.listed.length)} of ${count(item.rows)} are listed.`) : ''))));
}

function training() {
  if (!data.training.length && !data.samples.length) return;
  const card = (run) => el('div', { class: 'card' }, el('h3', {}, run.name), el('p', { class: 'note' }, `${plural(run.steps, 'step')}${run.tokens_per_s ? `, ${count(run.tokens_per_s)} tokens a second` : ''}`),
    chart('', `Loss of ${run.name} over ${plural(run.steps, 'step')}`, () => ({
      traces: [{ type: 'scatter', mode: 'lines', x: run.train.map((p) => p[0]), y: run.train.map((p) => p[1]), line: { color: color('train'), width: 1.5 }, hovertemplate: 'step %{x:,}: %{y:.4f}<extra>train</extra>' },
        { type: 'scatter', mode: 'lines+markers', x: run.validation.map((p) => p[0]), y: run.validation.map((p) => p[1]), line: { color: color('val') }, hovertemplate: 'step %{x:,}: %{y:.4f}<extra>validation</extra>' }],
      layout: { xaxis: { showgrid: false, tickformat: ',' } } })),
    el('ul', { class: 'legend' }, [['train', 'training loss'], ['val', 'validation loss']].map(([tone, name]) => el('li', {}, el('span', { class: 'dot', style: { background: `var(--${tone})` } }), name))));
  const sample = (item) => el('figure', { style: { margin: 0 } }, item.kind === 'video' ? el('video', { class: 'media', src: item.file, controls: true, loop: true, muted: true, preload: 'metadata' }) : el('img', { class: 'media', src: item.file, alt: item.prompt || '', loading: 'lazy' }), el('figcaption', {}, item.prompt || item.file));
  section('training', 'Training', '', el('div', { class: 'grid' }, data.training.map(card)),
    data.samples.length ? [el('h3', { class: 'sub' }, 'Samples'), el('div', { class: 'grid' }, data.samples.map(sample))] : '');
}

function spent() {
  const items = data.time.flatMap((segment) => (segment.steps.length ? segment.steps : [{ label: segment.labels.join(' › '), rows: segment.rows, cpu_s: segment.cpu_s }])).filter((item) => item.rows);
  if (!items.length) return;
  const total = items.reduce((sum, item) => sum + item.cpu_s, 0);
  const hours = data.funnel.videos ? data.funnel.videos.hours : 0;
  const row = (item) => el('tr', {}, el('td', { class: 'mono' }, item.label), el('td', { class: 'num' }, count(item.rows)), el('td', { class: 'num' }, time(item.cpu_s / 3600)), el('td', { class: 'num' }, item.wall_s ? time(item.wall_s / 3600) : '–'), el('td', { class: 'num' }, seconds(item.cpu_s / item.rows)), el('td', { class: 'num' }, total ? percent(item.cpu_s / total) : '–'));
  section('time', 'Time', `${time(total / 3600)} of CPU${hours && total ? `: ${value((hours * 3600) / total)} hours of video for one hour of one core` : ''}. As the parts of the tables remember it, over all runs that wrote them.`,
    el('div', { class: 'card measure' },
      chart('', `CPU seconds by step: ${items.map((item) => `${item.label} ${value(item.cpu_s)}`).join(', ')}`, () => ({
        traces: [{ type: 'bar', orientation: 'h', y: items.map((item) => item.label), x: items.map((item) => item.cpu_s), marker: { color: color('accent') }, width: 0.55, hovertemplate: '%{y}: %{x:,.1f} s<extra></extra>' }],
        layout: { margin: { l: 10, r: 14, t: 6, b: 34 }, yaxis: { autorange: 'reversed', showgrid: false, type: 'category' }, xaxis: { title: { text: 'CPU seconds', font: { size: 11 } } } } })),
      el('div', { class: 'scroll' }, el('table', { class: 'table' }, el('thead', {}, el('tr', {}, ['step', 'rows', 'CPU', 'clock', 'CPU a row', 'share'].map((name, k) => el('th', { scope: 'col', class: k ? 'num' : '' }, name)))), el('tbody', {}, items.map(row))))));
}

function lineage() {
  const { recipe, segments, packages, python, dataset } = data.lineage;
  const fact = (name, x) => el('div', {}, el('dt', {}, name), el('dd', { class: 'mono' }, x));
  const steps = segments.flatMap((segment) => segment.steps.map((step, k) => el('tr', {}, el('td', { class: 'mono' }, step.label), el('td', { class: 'num' }, step.version), el('td', { class: 'mono muted' }, k === 0 ? segment.folder : ''), el('td', { class: 'num' }, k === 0 ? count(segment.rows) : ''), el('td', { class: 'mono muted' }, step.weights || '–'))));
  section('lineage', 'Lineage', 'What these results follow from. The same recipe on the same files gives the same tables.',
    el('div', { class: 'stack' },
      el('div', { class: 'card' }, el('h3', {}, 'Steps and tables'), el('div', { class: 'scroll' }, el('table', { class: 'table' }, el('thead', {}, el('tr', {}, ['step', 'version', 'table', 'rows', 'weights'].map((name) => el('th', { scope: 'col', class: name === 'version' || name === 'rows' ? 'num' : '' }, name)))), el('tbody', {}, steps)))),
      dataset ? el('div', { class: 'card' }, el('h3', {}, 'Data set'), el('dl', { class: 'values', style: { gridTemplateColumns: '1fr' } }, fact('fingerprint', dataset.fingerprint), fact('autoencoder', `${dataset.autoencoder} ${dataset.autoencoder_identity}`), fact('text encoder', `${dataset.text_encoder} ${dataset.text_encoder_identity}`))) : '',
      el('div', { class: 'card' }, el('details', { open: recipe.length < 4000 }, el('summary', {}, el('strong', {}, 'Recipe, every default spelled out')), el('pre', { tabindex: '0' }, recipe))),
      el('div', { class: 'card' }, el('h3', {}, 'Packages'), el('dl', { class: 'values wide' }, fact('Python', python), Object.entries(packages).map(([name, x]) => fact(name, x))))));
}

// ---- The page

function navigation() {
  const links = new Map(sections.map(([id, title]) => [id, el('a', { href: `#${id}` }, title)]));
  const list = document.getElementById('nav-links');
  list.append(...[...links.values()].map((link) => el('li', {}, link)));
  const mark = () => {
    const tops = sections.map(([id]) => [id, document.getElementById(id).getBoundingClientRect().top]);
    const [current] = tops.filter(([, top]) => top < innerHeight / 3).pop() || tops[0];
    for (const [id, link] of links) {
      if (id !== current) link.removeAttribute('aria-current');
      else if (!link.hasAttribute('aria-current')) { link.setAttribute('aria-current', 'true'); list.scrollTo({ left: link.offsetLeft - list.offsetLeft - 40 }); }
    }
  };
  addEventListener('scroll', () => requestAnimationFrame(mark), { passive: true });
  mark();
}

for (const draw of [overview, funnels, thresholds, balance, browser, duplicates, failures, training, spent, lineage]) draw();
navigation();
setUpMotion();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => drawn.forEach((node) => node.draw()));
