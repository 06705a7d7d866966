// The runs trained on these results: their curves, one over the other, and what each of them sampled on the way.

const RUN_TONES = ['train', 'dropped', 'kept', 'duplicate', 'failed', 'accent', 'uncut'];
const hiddenRuns = new Set();
/** What is looked at closely: one run, its training or its validation losses. */
const lens = { run: 0, prefix: 'mean/' };

const runTone = (run) => RUN_TONES[data.training.runs.indexOf(run) % RUN_TONES.length];
const shownRuns = () => data.training.runs.filter((run) => !hiddenRuns.has(run.name));
const last = (line) => (line ? line[1][line[1].length - 1] : null);
const finePointer = () => matchMedia('(pointer: fine)').matches;
/** Of n colours from blue over purple to red. */
const shade = (k, n, depth) => `hsl(${215 + (n > 1 ? (150 * k) / (n - 1) : 0)} ${depth})`;

function training() {
  const { runs, n_runs: nRuns } = data.training;
  if (!runs.length && !data.samples.length) return;
  const sample = (item) => el('figure', { style: { margin: 0 } }, item.kind === 'video' ? el('video', { class: 'media', src: item.file, controls: true, loop: true, muted: true, preload: 'metadata' }) : el('img', { class: 'media', src: item.file, alt: item.prompt || '', loading: 'lazy' }), el('figcaption', {}, item.prompt || item.file));
  const older = runs.length < nRuns ? ` The newest ${count(runs.length)} of ${count(nRuns)} runs are shown.` : '';
  section('training', 'Training', runs.length ? `Strong lines are means over the last fiftieth of a run.${finePointer() ? ' Drag over a chart to look closer, press twice to come back.' : ''}${older}` : '',
    runs.length ? el('div', { class: 'stack' }, runTable(runs), lossCard(runs), ...closely(runs), el('div', { class: 'grid' }, overlays(runs))) : '',
    data.samples.length ? [el('h3', { class: 'sub' }, 'Samples'), el('div', { class: 'grid' }, data.samples.map(sample))] : '');
}

/** What came of each run; where there are several, a press on one takes it out of the charts. */
function runTable(runs) {
  const numbers = [['steps', (run) => count(run.steps)], ['loss', (run) => precise(last(run.curves['mean/loss']))], ['validation', (run) => precise(last(run.curves.val_loss))],
    ['tokens/s', (run) => (run.tokens_per_s ? count(run.tokens_per_s) : '–')], ...(runs.some((run) => run.curves['mean/mfu']) ? [['MFU', (run) => (run.curves['mean/mfu'] ? percent(last(run.curves['mean/mfu'])) : '–')]] : [])];
  const toggle = (run) => (event) => {
    if (!hiddenRuns.delete(run.name)) hiddenRuns.add(run.name);
    event.currentTarget.setAttribute('aria-pressed', String(!hiddenRuns.has(run.name)));
    redraw();
  };
  const name = (run) => {
    const content = [el('span', { class: 'dot', 'aria-hidden': 'true', style: { background: `var(--${runTone(run)})` } }), run.label];
    return runs.length > 1 ? el('button', { type: 'button', class: 'chip', 'aria-pressed': String(!hiddenRuns.has(run.name)), title: 'in the charts, or not', onclick: toggle(run) }, content) : el('span', { class: 'fate' }, content);
  };
  const about = (run) => (run.label === run.name ? '' : el('div', { class: 'note' }, [run.name, ...Object.entries(run.differs).map(([key, text]) => `${key} ${text}`)].join(' · ')));
  return el('div', { class: 'card' }, el('div', { class: 'scroll' }, el('table', { class: 'table' }, el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'run'), numbers.map(([title]) => el('th', { scope: 'col', class: 'num' }, title)))),
    el('tbody', {}, runs.map((run) => el('tr', {}, el('td', {}, name(run), about(run)), numbers.map(([, of]) => el('td', { class: 'num' }, of(run)))))))));
}

/** One line of a chart, of `[steps, values]`; `more` may hold further settings of the line and of the trace. */
function curve([x, y], tone, name, { line, ...more } = {}) {
  return { type: 'scatter', mode: 'lines', x, y, name, hovertemplate: '%{y:.4~g} at step %{x:,}<extra>%{fullData.name}</extra>', line: { color: tone, width: 2, ...line }, ...more };
}

/** An axis of steps; where there is a mouse, what is dragged over is looked at closer. */
function overSteps(layout = {}) {
  return { dragmode: finePointer() ? 'zoom' : false, margin: { l: 44, r: 20, t: 10, b: 30 }, ...layout, xaxis: { showgrid: false, tickformat: ',', nticks: 6, fixedrange: !finePointer(), rangemode: 'tozero' }, yaxis: { nticks: 6, ...layout.yaxis } };
}

/** From a little under the lowest to a little over what all but a hundredth are below: one spike must not flatten the rest. */
function range(values) {
  const sorted = values.slice().sort((a, b) => a - b);
  const [low, high] = [sorted[0], sorted[Math.min(sorted.length - 1, Math.floor(0.99 * sorted.length))]];
  const space = 0.06 * (high - low || Math.abs(high) || 1);
  return sorted.length ? [low - space, high + space] : undefined;
}

const legend = (items) => el('ul', { class: 'legend' }, items.map(([background, name]) => el('li', {}, el('span', { class: 'dot', style: { background } }), name)));
const words = (runs, of) => runs.map((run) => `${run.label} ${precise(of(run))} after ${plural(run.steps, 'step')}`).join('; ');

function lossCard(runs) {
  const alone = runs.length === 1;
  const tones = (run) => [color(runTone(run)), color(alone ? 'val' : runTone(run))];
  const plot = chart('tall', `Loss: ${words(runs, (run) => last(run.curves['mean/loss']))}`, () => {
    const raws = shownRuns().map((run) => curve(run.curves.loss, tones(run)[0], alone ? 'each step' : run.label, { opacity: 0.25, line: { width: 1 }, hoverinfo: 'skip', hovertemplate: null }));
    const means = shownRuns().map((run) => curve(run.curves['mean/loss'], tones(run)[0], alone ? 'mean' : run.label));
    const held = shownRuns().filter((run) => run.curves.val_loss).map((run) => curve(run.curves.val_loss, tones(run)[1], alone ? 'validation' : `${run.label}, validation`, { mode: 'lines+markers', line: { dash: alone ? 'solid' : 'dot' }, marker: { size: 6 } }));
    return { traces: [...raws, ...means, ...held], layout: overSteps({ yaxis: { range: range([...raws, ...held].flatMap((trace) => trace.y)) } }) };
  });
  const kinds = alone ? [[`var(--${runTone(runs[0])})`, 'training loss: each step pale, mean strong'], ...(runs[0].curves.val_loss ? [['var(--val)', 'validation loss']] : [])] : [];
  return el('div', { class: 'card' }, el('h3', {}, 'Loss'), plot, alone ? legend(kinds) : el('p', { class: 'note' }, 'Each step pale, means strong, validation dotted.'));
}

/** Charts of one number a run: all runs in one chart. */
function overlays(runs) {
  const items = [['lr', 'Learning rate', {}], ['grad_norm', 'Gradient norm', { type: 'log', nticks: 3, tickformat: '~g' }], ['mean/tokens_per_s', 'Tokens a second', { rangemode: 'tozero', tickformat: '.3~s' }],
    ['mean/mfu', 'Model FLOPs utilisation', { rangemode: 'tozero', tickformat: '.0%' }], ['mean/tflops', 'Model TFLOP/s a rank', { rangemode: 'tozero' }], ['mean/idle_share', 'Idle: ranks that wait for others', { rangemode: 'tozero', tickformat: '.0%' }]];
  return items.filter(([key]) => runs.some((run) => run.curves[key])).map(([key, title, yaxis]) => {
    const having = runs.filter((run) => run.curves[key]);
    return el('div', { class: 'card' }, el('h3', {}, title), chart('small', `${title}: ${words(having, (run) => last(run.curves[key]))}`, () => ({
      traces: shownRuns().filter((run) => run.curves[key]).map((run) => curve(run.curves[key], color(runTone(run)), run.label, { line: { width: 1.5 } })), layout: overSteps({ yaxis }) })));
  });
}

// ---- One run, closely

/** Parts of the loss and previews of the run that is chosen. */
function closely(runs) {
  const place = el('div', { class: 'stack' });
  const show = () => place.replaceChildren(...partCards(data.training.runs[lens.run]), previewCard(data.training.runs[lens.run]));
  const select = (name, key, options) => el('label', {}, name, el('select', { onchange: (event) => { lens[key] = key === 'run' ? Number(event.target.value) : event.target.value; show(); } }, options.map(([value_, text]) => el('option', { value: value_ }, text))));
  const choices = [runs.length > 1 ? select('Run', 'run', runs.map((run, k) => [k, run.label])) : '', runs.some((run) => run.curves.val_loss) ? select('Parts of', 'prefix', [['mean/', 'the training loss'], ['val_', 'the validation loss']]) : ''];
  show();
  return [choices.some(Boolean) ? el('div', { class: 'choices' }, choices) : '', place];
}

function partCards(run) {
  const parts = [['loss_time/', 'Loss by noise level', (name) => `${name} to ${(Number(name) + 0.1).toFixed(1)}`], ['loss_bucket/', 'Loss by size and frames', (name) => name.replace('_', ', ').replace(/px/, ' px').replace(/(\d)f$/, '$1 f')], ['loss_kind/', 'Loss of images and videos', (name) => name]];
  const order = new Intl.Collator('en', { numeric: true }).compare;
  const cards = parts.flatMap(([part, title, label]) => {
    const start = `${lens.prefix}${part}`;
    const keys = Object.keys(run.curves).filter((key) => key.startsWith(start)).sort(order);
    if (!keys.length) return [];
    const name = (key) => label(key.slice(start.length));
    const mode = lens.prefix === 'val_' ? { mode: 'lines+markers', marker: { size: 5 } } : {};
    return [el('div', { class: 'card' }, el('h3', {}, title), chart('', `${title}, last: ${keys.map((key) => `${name(key)} ${precise(last(run.curves[key]))}`).join('; ')}`, () => {
      const traces = keys.map((key, k) => curve(run.curves[key], shade(k, keys.length, color('shade')), name(key), { line: { width: 1.5 }, ...mode }));
      return { traces, layout: overSteps({ yaxis: { range: range(traces.flatMap((trace) => trace.y)) } }) };
    }), legend(keys.map((key, k) => [shade(k, keys.length, 'var(--shade)'), name(key)])))];
  });
  return cards.length ? [el('div', { class: 'grid' }, cards)] : [];
}

/** What the run sampled on the way: a picture a step, moved through with a slider; its video, which lies beside the page, plays when asked. */
function previewCard(run) {
  const items = run.previews;
  if (!items.length) return '';
  const frame = el('div', { class: 'preview' });
  const said = el('output', {});
  const captions = el('ol', { class: 'captions' });
  const slider = el('input', { type: 'range', min: 0, max: items.length - 1, value: items.length - 1, 'aria-label': 'Step of the preview', disabled: items.length < 2, oninput: () => show() });
  const button = el('button', { type: 'button', class: 'quiet', onclick: () => { playing = !playing; show(); } });
  let playing = false;
  const show = () => {
    const item = items[slider.value];
    const about = `Samples after step ${count(item.step)}`;
    said.textContent = `step ${count(item.step)}`;
    slider.setAttribute('aria-valuetext', said.textContent);
    button.textContent = playing ? 'Pause' : 'Play';
    button.hidden = !item.video;
    captions.replaceChildren(...(item.captions || []).map((text) => el('li', {}, text || 'no caption')));
    const poster = item.poster ? `data:image/jpeg;base64,${item.poster}` : item.picture;
    if (item.failed) frame.replaceChildren(el('p', { class: 'note' }, `There are none: ${item.failed}`));
    else if (!item.video || !playing) frame.replaceChildren(el('img', { src: poster, alt: about }));
    else frame.replaceChildren(el('video', { src: item.video, poster, 'aria-label': about, autoplay: true, loop: true, muted: true, playsinline: true,
      onerror: () => frame.replaceChildren(el('img', { src: poster, alt: about }), el('p', { class: 'note' }, `${item.video} is not beside this page.`)) }));
  };
  show();
  return el('div', { class: 'card' }, el('h3', {}, 'Previews'), el('p', { class: 'note' }, 'The same captions from the same noise, by the averaged weights so far.'), el('div', { class: 'slide' }, slider, said, button), frame, captions);
}
