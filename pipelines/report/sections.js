// The sections of the page, in the order in which they stand.

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
    tile('Failed', count(failed), data.ledger.filter((a) => a.fates.failed).map((a) => plural(a.fates.failed, a.level.slice(0, -1))).join(', ') || 'nothing failed'));
  const kept = table.fate.flatMap((fate, i) => (fate === 'kept' && data.rows.strips[i].length ? [i] : []));
  // Whole rows of pictures, whether there are three, six or nine in one.
  const heads = main ? spread(kept, 18) : [];
  heads.length -= heads.length % 6;
  const when = new Date(data.when).toLocaleString('en-GB', { day: 'numeric', month: 'long', year: 'numeric', hour: '2-digit', minute: '2-digit' });
  document.getElementById('main').append(el('section', { id: 'overview', style: { marginTop: 0 }, 'aria-labelledby': 'title' },
    el('p', { class: 'note' }, 'Curation report'), el('h1', { id: 'title' }, data.name), el('p', { class: 'muted' }, `${when} · worldloom ${data.version}`),
    el('dl', { class: 'tiles' }, tiles),
    heads.length ? el('div', { class: `hero${heads.length < 18 ? ' few' : ''}`, 'aria-label': 'Some of the kept clips' }, heads.map((i) => strip(i))) : '',
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
  const legend = (names, ...more) => el('ul', { class: 'legend' }, names.map(([tone, name]) => el('li', {}, el('span', { class: 'dot', style: { background: `var(--${tone})` } }), name)), more);
  const sides = (marks) => (marks.length > 1 ? marks.map(({ side }) => el('li', {}, el('span', { class: `line ${side}` }), `another ${side}`)) : []);
  const missing = (item) => (item.missing ? el('p', { class: 'note' }, `${plural(item.missing, 'clip')} not measured`) : '');
  const card = (item) => el('div', { class: 'card measure' },
    el('div', {}, el('h3', {}, item.name), el('p', { class: 'note' }, item.doc), histogram(item, marksOf(item.name), ''),
      legend([['kept', 'kept'], ['dropped', 'dropped here'], ['else', 'lost elsewhere']], sides(marksOf(item.name).filter((mark) => mark.yields.length))), missing(item)),
    el('div', {}, marksOf(item.name).map(nearest)));
  const small = (item) => el('div', { class: 'card' }, el('h3', {}, item.name), el('p', { class: 'note' }, item.doc), histogram(item, [], 'small'), missing(item));
  if (!data.histograms.length) return;
  section('measures', 'Measures', ['What was measured of every clip, with the thresholds of the recipe. Beside each, the clips nearest to it on both sides: are they on the right one? ',
      'The line under a histogram says how many clips other thresholds would keep, all else unchanged; those that a looser one lets through to steps that have not seen them count as kept.'],
    el('div', { class: 'stack' }, judged.map(card)),
    others.length ? [el('h3', { class: 'sub' }, 'Measured, without a threshold'), legend([['kept', 'kept'], ['else', 'lost']]), el('div', { class: 'grid', style: { marginTop: '.8rem' } }, others.map(small))] : '');
}

function nearest(mark) {
  const [out, inside] = mark.near;
  const side = (title, fate, rows) => (rows.length ? el('div', { class: 'side' }, el('h4', {}, dot(fate), title), el('div', { class: 'strips' }, rows.map((i) => strip(i, precise(table[mark.column][i]))))) : '');
  return el('div', { class: 'near' },
    el('p', {}, el('strong', {}, mark.words), ' ', el('span', { class: 'muted' }, mark.dropped ? `drops ${plural(mark.dropped, 'clip')}, ${time(mark.hours)} (${mark.label})` : `drops nothing (${mark.label})`)),
    el('div', { class: `sides${out.length && inside.length ? '' : ' one'}` }, side(mark.bound === null ? 'Dropped' : 'Nearest dropped', 'dropped', out), side('Nearest kept', 'kept', inside)));
}

function balance() {
  const { splits, clips, hours, shares } = data.balance;
  if (!splits.length) return;
  const tone = (split) => (splits.length === 1 && split === 'kept' ? 'kept' : split);
  const worst = shares.flatMap((item) => Object.entries(item.apart).map(([split, far]) => [item.title, split, far])).filter(([, , far]) => far.distance > 0.1 && far.distance > 2 * far.chance);
  const legend = el('ul', { class: 'legend' }, splits.map((split) => el('li', {}, el('span', { class: 'dot', style: { background: `var(--${tone(split)})` } }), `${split === 'kept' ? (splits.length > 1 ? 'no split' : 'kept') : split}: ${plural(clips[split], 'clip')}, ${time(hours[split])}`)));
  const card = (item) => el('div', { class: 'card' }, el('h3', {}, item.title), shareChart(item, splits, tone), Object.entries(item.apart).map(([split, far]) =>
    el('p', { class: 'note' }, `${split}: ${percent(far.distance)} apart from train, ${percent(far.chance)} by chance`)));
  section('balance', 'Balance', splits.length > 1 ? 'What the kept clips are like, each split as shares of its own clips. What is held out should look like what is trained on.' : 'What the kept clips are like. There is no split yet.',
    legend, worst.length ? el('p', {}, el('strong', {}, 'Splits differ in '), [...new Set(worst.map(([title]) => title))].map((title) => `${title.toLowerCase().split(',')[0]} (${worst.filter(([name]) => name === title).map(([, split]) => split).join(', ')})`).join(', '), '.') : '',
    el('div', { class: 'grid', style: { marginTop: '1rem' } }, shares.map(card)),
    el('div', { class: 'stack', style: { marginTop: '1rem' } }, wordCard(splits, tone), sourceCard(splits, tone)));
}

/** A bar a split beside each name, or all splits in one bar (`stacked`), and a number in words. */
function barList(className, names, splits, tone, size, words) {
  const lengths = (k) => splits.map((split) => size(split, k));
  const most = Math.max(1e-9, ...names.map((_, k) => (className === 'stacked' ? lengths(k).reduce((a, b) => a + b, 0) : Math.max(...lengths(k)))));
  const bar = (split, k) => el('i', { class: size(split, k) ? '' : 'zero', style: { width: `${(100 * size(split, k)) / most}%`, background: `var(--${tone(split)})` } });
  return el('ul', { class: `bars ${className}` }, names.map((name, k) => el('li', {}, el('span', { class: 'name', title: name }, name),
    el('span', { class: 'track', 'aria-hidden': 'true' }, splits.map((split) => bar(split, k))), el('span', { class: 'value' }, words(k)))));
}

function wordCard(splits, tone) {
  const { words, counts, captions } = data.balance.words;
  const used = splits.filter((split) => captions[split]);
  if (!words.length || !used.length) return '';
  const share = (split, k) => counts[split][k] / captions[split];
  return el('div', { class: 'card' }, el('h3', {}, 'Most common words'),
    el('p', { class: 'note' }, `Share of captions that hold the word${used.length > 1 ? `; the numbers are of ${used[0]}` : ''}. Stop words are left out.`),
    barList('words', words, used, tone, share, (k) => percent(share(used[0], k))));
}

function sourceCard(splits, tone) {
  const { names, counts, n_others: nOthers, n } = data.balance.sources;
  return el('div', { class: 'card' }, el('h3', {}, 'Sources with most clips'), el('p', { class: 'note' }, `${plural(n, 'source')} gave kept clips${nOthers ? `; ${count(nOthers)} more are not listed` : ''}.`),
    barList('stacked', names, splits, tone, (split, k) => counts[split][k], (k) => count(splits.reduce((sum, split) => sum + counts[split][k], 0))));
}

// ---- Duplicates, failures, time, lineage

function duplicates() {
  if (!data.duplicates || !data.duplicates.groups.length) return;
  const { groups, n_groups: nGroups, n_duplicates: nDuplicates } = data.duplicates;
  const about = (i) => [table.duplicate_kind && table.duplicate_kind[i], table.duplicate_distance && table.duplicate_distance[i] !== null ? `distance ${value(table.duplicate_distance[i])}` : '',
    table.duplicate_overlap && table.duplicate_overlap[i] !== null ? `${percent(table.duplicate_overlap[i])} of it in the kept one` : ''].filter(Boolean).join(', ');
  const size = (i) => `${table.width[i]} × ${table.height[i]}${table.duration_s[i] ? `, ${value(table.duration_s[i])} s` : ''}`;
  const figure = (i, note) => el('figure', {}, strip(i), el('figcaption', {}, el('strong', {}, clipName(i)), el('br'), note ? [note, el('br')] : '', size(i)));
  const card = (group) => el('div', { class: 'card pairs' }, el('div', {}, el('h4', {}, 'Kept'), figure(group.kept)),
    el('div', {}, el('h4', {}, group.size > group.copies.length ? `${group.copies.length} of ${plural(group.size, 'duplicate')}` : plural(group.size, 'duplicate')), el('div', { class: 'copies' }, group.copies.map((i) => figure(i, about(i))))));
  section('duplicates', 'Duplicates', `${plural(nDuplicates, 'clip repeats', 'clips repeat')} ${plural(nGroups, 'kept one')}. First the least alike, where a mistake is most likely, then the largest groups${groups.length < nGroups ? `; ${count(groups.length)} of ${count(nGroups)} are shown` : ''}.`,
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
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
