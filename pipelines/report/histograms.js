// Histograms of measured columns, and charts of the shares of splits.

/** Return the chart of a column by outcome. Below it is the yield of other thresholds, if the column has some. */
function histogram(item, thresholds, className) {
  const numeric = Boolean(item.edges);
  const lines = numeric ? thresholds.filter((threshold) => threshold.limit !== null) : [];
  const curves = lines.filter((threshold) => threshold.yields.length);
  const total = sum(item.counts.flat());
  const label = [
    `Histogram of ${item.name} over ${count(total)} clips`,
    ...thresholds.map(({ condition, dropped }) => `, dropped ${condition}: ${count(dropped)}`),
    ...curves.map(({ side, yields }) => {
      const kept = yields.map(([limit, clips]) => `${plural(clips, 'clip')} at ${value(limit)}`);
      return `. ${side} would keep ${kept.join(', ')}`;
    }),
  ].join('');
  return chart(`${className}${curves.length ? ' tall' : ''}`, label, () => {
    const scale = item.log ? Math.log10 : (x) => x;
    const { traces, peak, top } = bars(item, thresholds.length > 0);
    const small = { size: 11, color: color('ink') };
    const shapes = lines.map(({ limit }) => ({
      type: 'line',
      x0: scale(limit),
      x1: scale(limit),
      y0: 0,
      y1: 1,
      yref: 'paper',
      line: { color: color('ink'), width: 1.5, dash: '4px,3px' },
    }));
    const annotations = lines.map(({ side, limit }) => ({
      x: scale(limit),
      y: 1,
      yref: 'paper',
      text: ` ${side} ${value(limit)} `,
      showarrow: false,
      yanchor: 'bottom',
      xanchor: anchor(scale(limit), item),
      font: small,
    }));
    if (top)
      annotations.push({
        x: peak.x,
        y: top,
        text: `↑ ${count(peak.y)}${peak.kept && peak.kept < peak.y ? `, ${count(peak.kept)} kept` : ''}`,
        showarrow: false,
        xanchor: 'left',
        xshift: 4,
        yanchor: 'top',
        font: small,
      });
    const xaxis = { ...(numeric ? binAxis(item.edges, item.log) : { type: 'category' }), showgrid: false };
    const yaxis = { ...countAxis(top || peak.y), ...(top ? { range: [0, top] } : {}) };
    const layout = { barmode: 'stack', shapes, annotations, margin: { l: 44, r: 14, t: 20, b: 30 }, xaxis, yaxis };
    if (!curves.length) return { traces, layout };
    const maxKept = Math.max(...curves.flatMap(({ yields }) => yields.map(([, clips]) => clips)));
    annotations.push({
      bgcolor: color('card'),
      x: 0,
      xref: 'paper',
      y: 0.34,
      yref: 'paper',
      text: 'clips kept with the threshold here',
      showarrow: false,
      xanchor: 'left',
      yanchor: 'bottom',
      font: { size: 11, color: color('muted') },
    });
    return {
      traces: [...traces, ...curves.map((threshold) => yieldCurve(threshold, item))],
      layout: {
        ...layout,
        xaxis: { ...xaxis, anchor: 'y2' },
        yaxis: { ...yaxis, domain: [0.47, 1] },
        yaxis2: { ...countAxis(maxKept), domain: [0, 0.33], nticks: 4, range: [0, 1.12 * Math.max(maxKept, 1)] },
      },
    };
  });
}

/**
 * Return the bars of a histogram and the highest one. `top` is the end of the axis if the highest bar is cut off: it
 * is more than five times the others, as the zeros of a share often are.
 */
function bars(item, hasThresholds) {
  const x = item.edges ? middles(item.edges, item.log) : item.names;
  const ranges = item.edges ? binNames(item) : item.names;
  const sums = x.map((_, k) => sum(item.counts.map((counts) => counts[k])));
  const [highest, second] = [...sums].sort((a, b) => b - a);
  const groups = [
    ['kept', 'kept'],
    ['dropped here', 'dropped'],
    [hasThresholds ? 'lost elsewhere' : 'lost', 'lost'],
  ];
  const traces = groups
    .map(([name, tone], g) => ({
      type: 'bar',
      x,
      y: item.counts[g],
      width: item.edges ? widths(item.edges, item.log) : undefined,
      name,
      marker: { color: color(tone) },
      customdata: ranges,
      hovertemplate: `%{customdata}<br>%{y:,} ${name}<extra></extra>`,
    }))
    .filter((_, g) => item.counts[g].some(Boolean));
  const at = sums.indexOf(highest);
  return {
    traces,
    peak: {
      x: item.edges ? x[at] + widths(item.edges, item.log)[at] / 2 : x[at],
      y: highest,
      kept: item.counts[0][at],
    },
    top: second && highest > 5 * second ? 1.35 * second : null,
  };
}

/** Return the curve of the clips that other thresholds would keep; those beyond the axis are drawn at its ends. */
function yieldCurve({ side, limit: current, yields }, item) {
  const [low, high] = [item.edges[0], item.edges[item.edges.length - 1]];
  const limits = yields.map(([limit]) => Math.min(Math.max(limit, low), high));
  return {
    type: 'scatter',
    mode: 'lines+markers',
    cliponaxis: false,
    yaxis: 'y2',
    x: item.log ? limits.map(Math.log10) : limits,
    y: yields.map(([, clips]) => clips),
    line: { color: color('accent'), width: 1.5, dash: side === 'max' ? 'dot' : 'solid' },
    marker: {
      size: yields.map(([limit]) => (limit === current ? 9 : 5)),
      color: yields.map(([limit]) => color(limit === current ? 'ink' : 'accent')),
      opacity: 1,
    },
    customdata: yields.map(
      ([limit, clips, hours]) =>
        `${side} ${precise(limit)}${limit === current ? ' (current)' : ''}<br>` +
        `keeps ${plural(clips, 'clip')}, ${time(hours)}`,
    ),
    hovertemplate: '%{customdata}<extra></extra>',
  };
}

/** Return the chart of the shares of the clips of each split. `tone` maps a split to its colour. */
function shareChart(item, splits, tone) {
  const used = splits.filter((split) => item.counts[split] && item.counts[split].some(Boolean));
  const sizes = used.map((split) => `${split}, ${plural(sum(item.counts[split]), 'clip')}`);
  return chart('small', `${item.title}: ${sizes.join('; ')}`, () => {
    const numeric = Boolean(item.edges);
    const traces = used.map((split) => {
      const total = sum(item.counts[split]) || 1;
      const y = item.counts[split].map((n) => n / total);
      const names = numeric ? binNames(item) : item.labels;
      const common = {
        name: split,
        customdata: names.map((name, k) => [name, count(item.counts[split][k])]),
        hovertemplate: `%{customdata[0]}<br>%{y:.1%} of ${split}, %{customdata[1]} clips<extra></extra>`,
      };
      if (numeric && used.length > 1)
        return {
          ...common,
          type: 'scatter',
          mode: 'lines',
          line: { shape: 'hvh', width: 2, color: color(tone(split)) },
          x: middles(item.edges, item.log),
          y,
        };
      return {
        ...common,
        type: 'bar',
        x: numeric ? middles(item.edges, item.log) : item.labels,
        y,
        width: numeric ? widths(item.edges, item.log) : undefined,
        marker: { color: color(tone(split)) },
      };
    });
    return {
      traces,
      layout: {
        barmode: 'group',
        bargap: 0.25,
        margin: { l: 40, r: 10, t: 8, b: 30 },
        xaxis: numeric ? { ...binAxis(item.edges, item.log), showgrid: false } : { type: 'category', showgrid: false },
        yaxis: { tickformat: '.0%', rangemode: 'tozero' },
      },
    };
  });
}
