// Costs and lineage.

/** Append the section with the CPU and wall-clock time of the steps. */
function costs() {
  const items = data.costs
    .flatMap((segment) =>
      segment.steps.length
        ? segment.steps
        : [{ label: segment.labels.join(' › '), rows: segment.rows, cpu_s: segment.cpu_s }],
    )
    .filter((item) => item.rows);
  if (!items.length) return;
  const total = sum(items.map((item) => item.cpu_s));
  const hours = data.funnel.videos ? data.funnel.videos.hours : 0;
  const row = (item) =>
    el(
      'tr',
      {},
      el('td', { class: 'mono' }, item.label),
      el('td', { class: 'num' }, count(item.rows)),
      el('td', { class: 'num' }, time(item.cpu_s / 3600)),
      el('td', { class: 'num' }, item.wall_s ? time(item.wall_s / 3600) : '–'),
      el('td', { class: 'num' }, seconds(item.cpu_s / item.rows)),
      el('td', { class: 'num' }, total ? percent(item.cpu_s / total) : '–'),
    );
  section(
    'time',
    'Time',
    [
      `${time(total / 3600)} of CPU`,
      hours && total ? `: ${value((hours * 3600) / total)} hours of video per core hour` : '',
      '. The times are stored in the parts of the tables, and include all runs that wrote them.',
    ],
    el(
      'div',
      { class: 'card measure' },
      chart('', `CPU seconds by step: ${items.map((item) => `${item.label} ${value(item.cpu_s)}`).join(', ')}`, () => ({
        traces: [
          {
            type: 'bar',
            orientation: 'h',
            y: items.map((item) => item.label),
            x: items.map((item) => item.cpu_s),
            marker: { color: color('accent') },
            width: 0.55,
            hovertemplate: '%{y}: %{x:,.1f} s<extra></extra>',
          },
        ],
        layout: {
          margin: { l: 10, r: 14, t: 6, b: 34 },
          yaxis: { autorange: 'reversed', showgrid: false, type: 'category' },
          xaxis: { title: { text: 'CPU seconds', font: { size: 11 } } },
        },
      })),
      dataTable(
        ['step', 'rows', 'CPU', 'wall clock', 'CPU per row', 'share'],
        (_, k) => k > 0,
        items.map(row),
      ),
    ),
  );
}

/** Append the section with the recipe, the steps, the data set and the packages. */
function lineage() {
  const { recipe, segments, packages, python, dataset } = data.lineage;
  const fact = (name, x) => el('div', {}, el('dt', {}, name), el('dd', { class: 'mono' }, x));
  const steps = segments.flatMap((segment) =>
    segment.steps.map((step, k) =>
      el(
        'tr',
        {},
        el('td', { class: 'mono' }, step.label),
        el('td', { class: 'num' }, step.version),
        el('td', { class: 'mono muted' }, k === 0 ? segment.folder : ''),
        el('td', { class: 'num' }, k === 0 ? count(segment.rows) : ''),
        el('td', { class: 'mono muted' }, step.weights || '–'),
      ),
    ),
  );
  section(
    'lineage',
    'Lineage',
    'Recipe, versions and weights of these results. The same recipe on the same files gives the same tables.',
    el(
      'div',
      { class: 'stack' },
      el(
        'div',
        { class: 'card' },
        el('h3', {}, 'Steps and tables'),
        dataTable(
          ['step', 'version', 'table', 'rows', 'weights'],
          (name) => name === 'version' || name === 'rows',
          steps,
        ),
      ),
      dataset
        ? el(
            'div',
            { class: 'card' },
            el('h3', {}, 'Data set'),
            el(
              'dl',
              { class: 'values', style: { gridTemplateColumns: '1fr' } },
              fact('fingerprint', dataset.fingerprint),
              fact('autoencoder', `${dataset.autoencoder} ${dataset.autoencoder_identity}`),
              fact('text encoder', `${dataset.text_encoder} ${dataset.text_encoder_identity}`),
            ),
          )
        : '',
      el(
        'div',
        { class: 'card' },
        el(
          'details',
          { open: recipe.length < 4000 },
          el('summary', {}, el('strong', {}, 'Recipe with all defaults')),
          el('pre', { tabindex: '0' }, recipe),
        ),
      ),
      el(
        'div',
        { class: 'card' },
        el('h3', {}, 'Packages'),
        el(
          'dl',
          { class: 'values wide' },
          fact('Python', python),
          Object.entries(packages).map(([name, x]) => fact(name, x)),
        ),
      ),
    ),
  );
}
