// Training runs: a table of them, and charts that compare them.

const RUN_TONES = ['train', 'dropped', 'kept', 'duplicate', 'failed', 'accent', 'uncut'];
/** Names of the runs that the charts leave out. */
const hiddenRuns = new Set();

const runTone = (run) => RUN_TONES[data.training.runs.indexOf(run) % RUN_TONES.length];
const shownRuns = () => data.training.runs.filter((run) => !hiddenRuns.has(run.name));
/** Return the last value of a curve. */
const last = (line) => (line ? line[1][line[1].length - 1] : null);
/** Return whether the pointer is as exact as a mouse. */
const finePointer = () => matchMedia('(pointer: fine)').matches;
/** Return the k-th of n colours from blue over purple to red; `depth` is saturation and lightness. */
const shade = (k, n, depth) => `hsl(${215 + (n > 1 ? (150 * k) / (n - 1) : 0)} ${depth})`;

/** Append the section with the training runs and samples. */
function training() {
  const { runs, n_runs: nRuns } = data.training;
  if (!runs.length && !data.samples.length) return;
  const sample = (item) =>
    el(
      'figure',
      { style: { margin: 0 } },
      item.kind === 'video'
        ? el('video', { class: 'media', src: item.file, controls: true, loop: true, muted: true, preload: 'metadata' })
        : el('img', { class: 'media', src: item.file, alt: item.prompt || '', loading: 'lazy' }),
      el('figcaption', {}, item.prompt || item.file),
    );
  const older = runs.length < nRuns ? ` The newest ${count(runs.length)} of ${count(nRuns)} runs are shown.` : '';
  section(
    'training',
    'Training',
    runs.length
      ? [
          'Strong lines are running means over a fiftieth of the run.',
          finePointer() ? ' Drag over a chart to zoom in, double-click to zoom out.' : '',
          older,
        ]
      : '',
    runs.length
      ? el(
          'div',
          { class: 'stack' },
          runTable(runs),
          lossCard(runs),
          ...oneRun(runs),
          el('div', { class: 'grid' }, metricCards(runs)),
        )
      : '',
    data.samples.length
      ? [el('h3', { class: 'sub' }, 'Samples'), el('div', { class: 'grid' }, data.samples.map(sample))]
      : '',
  );
}

/** Return the table of runs. If there are several, a click on one removes it from the charts or adds it again. */
function runTable(runs) {
  const numbers = [
    ['steps', (run) => count(run.steps)],
    ['loss', (run) => precise(last(run.curves['mean/loss']))],
    ['validation', (run) => precise(last(run.curves.val_loss))],
    ['tokens/s', (run) => (run.tokens_per_s ? count(run.tokens_per_s) : '–')],
    ...(runs.some((run) => run.curves['mean/mfu'])
      ? [['MFU', (run) => (run.curves['mean/mfu'] ? percent(last(run.curves['mean/mfu'])) : '–')]]
      : []),
  ];
  const toggle = (run) => (event) => {
    if (!hiddenRuns.delete(run.name)) hiddenRuns.add(run.name);
    event.currentTarget.setAttribute('aria-pressed', String(!hiddenRuns.has(run.name)));
    redraw();
  };
  const name = (run) => {
    const content = [
      el('span', { class: 'dot', 'aria-hidden': 'true', style: { background: `var(--${runTone(run)})` } }),
      run.label,
    ];
    return runs.length > 1
      ? el(
          'button',
          {
            type: 'button',
            class: 'chip',
            'aria-pressed': String(!hiddenRuns.has(run.name)),
            title: 'show in the charts, or not',
            onclick: toggle(run),
          },
          content,
        )
      : el('span', { class: 'fate' }, content);
  };
  const about = (run) =>
    run.label === run.name
      ? ''
      : el(
          'div',
          { class: 'note' },
          [run.name, ...Object.entries(run.different_settings).map(([key, text]) => `${key} ${text}`)].join(' · '),
        );
  return el(
    'div',
    { class: 'card' },
    dataTable(
      ['run', ...numbers.map(([title]) => title)],
      (_, k) => k > 0,
      runs.map((run) =>
        el(
          'tr',
          {},
          el('td', {}, name(run), about(run)),
          numbers.map(([, text]) => el('td', { class: 'num' }, text(run))),
        ),
      ),
    ),
  );
}

/** Return a line of a chart for a curve `[steps, values]`, with further settings of the line and the trace. */
function curve([x, y], tone, name, { line, ...more } = {}) {
  return {
    type: 'scatter',
    mode: 'lines',
    x,
    y,
    name,
    hovertemplate: '%{y:.4~g} at step %{x:,}<extra>%{fullData.name}</extra>',
    line: { color: tone, width: 2, ...line },
    ...more,
  };
}

/** Return the layout of a chart over steps. With a mouse, dragging zooms in. */
function overSteps(layout = {}) {
  return {
    dragmode: finePointer() ? 'zoom' : false,
    margin: { l: 44, r: 20, t: 10, b: 30 },
    ...layout,
    xaxis: { showgrid: false, tickformat: ',', nticks: 6, fixedrange: !finePointer(), rangemode: 'tozero' },
    yaxis: { nticks: 6, ...layout.yaxis },
  };
}

/** Return the range of an axis from the minimum to the 99th percentile, so that a spike does not flatten the rest. */
function range(values) {
  const sorted = values.slice().sort((a, b) => a - b);
  const [low, high] = [sorted[0], sorted[Math.min(sorted.length - 1, Math.floor(0.99 * sorted.length))]];
  const space = 0.06 * (high - low || Math.abs(high) || 1);
  return sorted.length ? [low - space, high + space] : undefined;
}

/** Return one number of each run as text. */
const describeRuns = (runs, number) =>
  runs.map((run) => `${run.label} ${precise(number(run))} after ${plural(run.steps, 'step')}`).join('; ');

/** Return the chart of the training and validation losses. */
function lossCard(runs) {
  const single = runs.length === 1;
  const tones = (run) => [color(runTone(run)), color(single ? 'val' : runTone(run))];
  const plot = chart('tall', `Loss: ${describeRuns(runs, (run) => last(run.curves['mean/loss']))}`, () => {
    const each = shownRuns().map((run) =>
      curve(run.curves.loss, tones(run)[0], single ? 'each step' : run.label, {
        opacity: 0.25,
        line: { width: 1 },
        hoverinfo: 'skip',
        hovertemplate: null,
      }),
    );
    const means = shownRuns().map((run) => curve(run.curves['mean/loss'], tones(run)[0], single ? 'mean' : run.label));
    const validation = shownRuns()
      .filter((run) => run.curves.val_loss)
      .map((run) =>
        curve(run.curves.val_loss, tones(run)[1], single ? 'validation' : `${run.label}, validation`, {
          mode: 'lines+markers',
          line: { dash: single ? 'solid' : 'dot' },
          marker: { size: 6 },
        }),
      );
    return {
      traces: [...each, ...means, ...validation],
      layout: overSteps({ yaxis: { range: range([...each, ...validation].flatMap((trace) => trace.y)) } }),
    };
  });
  const kinds = single
    ? [
        [`var(--${runTone(runs[0])})`, 'training loss: pale for each step, strong for the mean'],
        ...(runs[0].curves.val_loss ? [['var(--val)', 'validation loss']] : []),
      ]
    : [];
  return el(
    'div',
    { class: 'card' },
    el('h3', {}, 'Loss'),
    plot,
    single ? legend(kinds) : el('p', { class: 'note' }, 'Pale: each step. Strong: running mean. Dotted: validation.'),
  );
}

/** Return charts that compare one metric of all runs. */
function metricCards(runs) {
  const items = [
    ['lr', 'Learning rate', { rangemode: 'tozero' }],
    ['grad_norm', 'Gradient norm', { type: 'log', nticks: 3, tickformat: '~g' }],
    ['mean/tokens_per_s', 'Tokens per second', { rangemode: 'tozero', tickformat: '.3~s' }],
    ['mean/mfu', 'Model FLOPs utilisation', { rangemode: 'tozero', tickformat: '.0%' }],
    ['mean/tflops', 'Model TFLOP/s per rank', { rangemode: 'tozero', nticks: 4 }],
    ['mean/idle_share', 'Idle share: ranks that wait for others', { rangemode: 'tozero', tickformat: '.0%' }],
    ...[...new Set(runs.flatMap((run) => Object.keys(run.curves)))]
      .filter((key) => key.startsWith('score_'))
      .map((key) => [key, `Captions kept: ${key.slice(6)}`, { range: [0, 1.02], tickformat: '.0%' }]),
  ];
  return items
    .filter(([key]) => runs.some((run) => run.curves[key]))
    .map(([key, title, yaxis]) => {
      const having = runs.filter((run) => run.curves[key]);
      return el(
        'div',
        { class: 'card' },
        el('h3', {}, title),
        chart('small', `${title}: ${describeRuns(having, (run) => last(run.curves[key]))}`, () => ({
          traces: shownRuns()
            .filter((run) => run.curves[key])
            .map((run) => curve(run.curves[key], color(runTone(run)), run.label, { line: { width: 1.5 } })),
          layout: overSteps({ yaxis }),
        })),
      );
    });
}
