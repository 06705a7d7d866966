// Evaluations: generated clips beside real ones, and the training clips nearest to them.

const CLIP_SETS = [
  ['real', 'real clips', 'kept'],
  ['generated', 'generated', 'train'],
  ['null', 'without a caption', 'uncut'],
];
const interval = (found) => (found ? `${value(found.mean)} [${value(found.low)}, ${value(found.high)}]` : '–');
const metricName = (name) => name.replaceAll('_', ' ');
/** Return whether a metric is a share of cases, of which all are right at best. */
const isShare = ({ better, unit, target }) => better === 'high' && !unit && (target === null || target === 1);

/** Append the section with the evaluations. */
function evaluation() {
  const found = data.evaluations;
  if (!found.length) return;
  const node = el('div', { class: 'stack' });
  const show = (item) =>
    node.replaceChildren(
      ...[
        scoresCard(item),
        el('div', { class: 'grid two' }, intervalCards(item)),
        groupsCard(item),
        ...memorisationCards(item),
      ].flat(),
    );
  section(
    'evaluation',
    'Evaluation',
    'Clips generated from captions that were held out, measured beside the real clips of these captions. ' +
      'Brackets and bars are 95% intervals of a bootstrap over clips.',
    el('div', { class: 'stack' }, modelChoice(found, show), node),
  );
  show(found[0]);
}

/** Return the table of all metrics. */
function scoresCard({ model, metrics, distances }) {
  const best = { high: 'high', low: 'low', real: 'as real clips' };
  const row = (metric) =>
    el(
      'tr',
      {},
      el('td', {}, metricName(metric.metric), metric.unit ? el('div', { class: 'note' }, metric.unit) : ''),
      el('td', {}, metric.target === null ? best[metric.better] : value(metric.target)),
      CLIP_SETS.map(([key]) =>
        el(
          'td',
          { class: 'num' },
          interval(metric[key]),
          metric[key] ? el('div', { class: 'note' }, plural(metric[key].cases, 'case')) : '',
        ),
      ),
    );
  return el(
    'div',
    { class: 'card' },
    el('h3', {}, 'Scores'),
    model ? el('p', { class: 'note' }, model) : '',
    dataTable(['metric', 'best', ...CLIP_SETS.map(([, name]) => name)], (_, k) => k > 1, metrics.map(row)),
    distances
      ? el(
          'p',
          { class: 'note' },
          `Distances of generated to real clips: Fréchet ${value(distances.frechet)}, ` +
            `kernel ${value(distances.kernel)}.`,
        )
      : '',
  );
}

/** Return charts of means with intervals: shares as they are, other metrics over the mean of real clips. */
function intervalCards({ metrics }) {
  const shares = metrics.filter(isShare);
  const others = metrics.filter((metric) => !isShare(metric) && metric.real && metric.real.mean);
  return [
    shares.length
      ? intervalCard('Shares', 'The share of cases that are right.', shares, () => 1, {
          range: [0, 1.02],
          tickformat: '.0%',
        })
      : '',
    others.length
      ? intervalCard(
          'Relative to real clips',
          'Each mean over that of real clips, which is 1.',
          others,
          (one) => one.real.mean,
          { type: 'log', tickformat: '~g', dtick: 'D2' },
        )
      : '',
  ].filter(Boolean);
}

/** Return a chart with a line per metric and a mark per set of clips. `scale` returns what a metric is divided by. */
function intervalCard(title, note, metrics, scale, xaxis) {
  const names = metrics.map((metric) => metricName(metric.metric)).reverse();
  const label = metrics
    .map((one) => `${metricName(one.metric)}: real ${interval(one.real)}, generated ${interval(one.generated)}`)
    .join('; ');
  const plot = chart('', `${title}. ${label}`, () => ({
    traces: CLIP_SETS.map(([key, name, tone], k) => {
      const having = metrics.filter((metric) => metric[key]);
      const scaled = (metric, part) => metric[key][part] / scale(metric);
      const middle = having.map((metric) => scaled(metric, 'mean'));
      const ends = (part) => having.map((metric, i) => Math.abs(scaled(metric, part) - middle[i]));
      return {
        type: 'scatter',
        mode: 'markers',
        name,
        x: middle,
        y: having.map((metric) => names.indexOf(metricName(metric.metric)) + 0.22 * (1 - k)),
        text: having.map((metric) => `${metricName(metric.metric)}: ${interval(metric[key])}`),
        hovertemplate: '%{text}<extra>%{fullData.name}</extra>',
        marker: { size: 8, color: color(tone) },
        error_x: {
          type: 'data',
          symmetric: false,
          array: ends('high'),
          arrayminus: ends('low'),
          color: color(tone),
          thickness: 2,
          width: 0,
        },
      };
    }),
    layout: {
      margin: { l: 10, r: 16, t: 6, b: 30 },
      xaxis,
      yaxis: {
        tickvals: names.map((_, k) => k),
        ticktext: names,
        range: [-0.6, names.length - 0.4],
        showgrid: false,
        ticklabelstandoff: 6,
      },
    },
  }));
  plot.style.height = `${50 + 34 * names.length}px`;
  return el(
    'div',
    { class: 'card' },
    el('h3', {}, title),
    el('p', { class: 'note' }, note),
    plot,
    legend(CLIP_SETS.map(([, name, tone]) => [`var(--${tone})`, name])),
  );
}

/** Return charts of what generated clips show how often, beside the real clips of the same captions. */
function groupsCard({ groups }) {
  if (!groups.length) return '';
  const sets = CLIP_SETS.slice(0, 2);
  const tone = (set) => sets.find(([key]) => key === set)[2];
  const share = (group, set, k) => group.counts[set][k] / sum(group.counts[set]);
  const excess = (group, k) => share(group, 'generated', k) - share(group, 'real', k);
  const differs = ({ distances: { generated: found } }) => found.distance > 0.1 && found.distance > 2 * found.expected;
  const most = (group) => {
    const order = group.labels.map((_, k) => k).sort((a, b) => excess(group, b) - excess(group, a));
    const text = (k) => `${group.labels[k]} by ${value(100 * Math.abs(excess(group, k)))} points`;
    return `Over-represented most: ${text(order[0])}; under-represented most: ${text(order[order.length - 1])}.`;
  };
  const card = (group) => {
    const { distance, expected } = group.distances.generated;
    return el(
      'div',
      {},
      el('h4', {}, group.title),
      shareChart(
        group,
        sets.map(([key]) => key),
        tone,
      ),
      el('p', { class: 'note' }, `Distance ${percent(distance)}; ${percent(expected)} is expected by chance.`),
      differs(group) ? el('p', { class: 'note' }, el('strong', {}, most(group))) : '',
    );
  };
  return el(
    'div',
    { class: 'card' },
    el('h3', {}, 'What clips show'),
    el(
      'p',
      { class: 'note' },
      'Shares of the real clips, and of the clips that are generated from their captions. What is common in training ' +
        'is often made too often.',
    ),
    legend(sets.map(([, name, tone_]) => [`var(--${tone_})`, name])),
    el('div', { class: 'grid' }, groups.map(card)),
  );
}

/** Return the distribution of the distances to training clips, and the generated clips that come nearest to one. */
function memorisationCards({ memorisation: found }) {
  if (!found) return [];
  const text =
    `${percent(found.share_nearer)} of ${plural(found.generated.length, 'generated clip')} come nearer to a training ` +
    `clip than 95% of ${plural(found.held_out.length, 'held-out clip')}; 5% is what chance gives.`;
  return [
    cumulativeCard(
      'Distance to the nearest training clip',
      text,
      [
        ['held-out clips', 'kept', found.held_out],
        ['generated', 'train', found.generated],
      ],
      found.threshold,
      'Share of clips up to a distance, which is divided by the mean to the ten nearest: a copy is near 0. ' +
        'Dotted: below it are 5% of held-out clips.',
    ),
    pairsCard(
      'Nearest to a training clip',
      'Left: generated. Right: the training clip that is nearest to it.',
      found.nearest,
    ),
  ].filter(Boolean);
}
