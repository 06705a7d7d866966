// Charts, drawn by Plotly when they come near the screen.

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
    const styled = Object.entries({ xaxis: {}, yaxis: {}, ...layout }).map(([key, part]) => [key, /^[xy]axis/.test(key) ? { ...axisStyle(), ...part } : part]);
    library().react(node, traces, { ...baseLayout(), ...Object.fromEntries(styled) }, { displayModeBar: false, responsive: true, scrollZoom: false });
  };
  near.observe(node);
  return node;
}

/** Draw again what has been drawn and is still there, as after a change of colours. */
const redraw = () => drawn.filter((node) => node.isConnected).forEach((node) => node.draw());

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
  if (!log) return { range, ...(edges.every(Number.isInteger) && range[1] - range[0] < 5 ? { dtick: 1 } : {}) };
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

/** What became of the clips by value; under it, for a column with thresholds, what other ones would keep. */
function histogram(item, marks, className) {
  const numeric = Boolean(item.edges);
  const lines = numeric ? marks.filter((mark) => mark.bound !== null) : [];
  const curves = lines.filter((mark) => mark.yields.length);
  const total = item.counts.flat().reduce((a, b) => a + b, 0);
  const says = `Histogram of ${item.name} over ${count(total)} clips${marks.map((m) => `, dropped ${m.words}: ${count(m.dropped)}`).join('')}`
    + curves.map((m) => `. ${m.side} would keep ${m.yields.map(([at, clips]) => `${plural(clips, 'clip')} at ${value(at)}`).join(', ')}`).join('');
  return chart(`${className}${curves.length ? ' tall' : ''}`, says, () => {
    const scale = item.log ? Math.log10 : (x) => x;
    const { traces, peak, top } = bars(item, marks.length > 0);
    const small = { size: 11, color: color('ink') };
    const shapes = lines.map((mark) => ({ type: 'line', x0: scale(mark.bound), x1: scale(mark.bound), y0: 0, y1: 1, yref: 'paper', line: { color: color('ink'), width: 1.5, dash: '4px,3px' } }));
    const annotations = lines.map((mark) => ({ x: scale(mark.bound), y: 1, yref: 'paper', text: ` ${mark.side} ${value(mark.bound)} `, showarrow: false, yanchor: 'bottom', xanchor: anchor(scale(mark.bound), item), font: small }));
    if (top) annotations.push({ x: peak.x, y: top, text: `↑ ${count(peak.y)}${peak.kept && peak.kept < peak.y ? `, ${count(peak.kept)} kept` : ''}`, showarrow: false, xanchor: 'left', xshift: 4, yanchor: 'top', font: small });
    const xaxis = { ...(numeric ? binAxis(item.edges, item.log) : { type: 'category' }), showgrid: false };
    const yaxis = { ...counts(top || peak.y), ...(top ? { range: [0, top] } : {}) };
    const layout = { barmode: 'stack', shapes, annotations, margin: { l: 44, r: 14, t: 20, b: 30 }, xaxis, yaxis };
    if (!curves.length) return { traces, layout };
    const most = Math.max(...curves.flatMap((mark) => mark.yields.map(([, clips]) => clips)));
    annotations.push({ bgcolor: color('card'), x: 0, xref: 'paper', y: 0.34, yref: 'paper', text: 'clips kept, were the threshold here', showarrow: false, xanchor: 'left', yanchor: 'bottom', font: { size: 11, color: color('muted') } });
    return { traces: [...traces, ...curves.map((mark) => yieldCurve(mark, item))], layout: { ...layout, xaxis: { ...xaxis, anchor: 'y2' }, yaxis: { ...yaxis, domain: [0.47, 1] },
      yaxis2: { ...counts(most), domain: [0, 0.33], nticks: 4, range: [0, 1.12 * Math.max(most, 1)] } } };
  });
}

/** The bars of a histogram, and its highest. One that dwarfs all others, as the zeros of a share do, is cut off at `top`. */
function bars(item, judged) {
  const x = item.edges ? middle(item.edges, item.log) : item.names;
  const ranges = item.edges ? binNames(item) : item.names;
  const sums = x.map((_, k) => item.counts.reduce((sum, group) => sum + group[k], 0));
  const [highest, second] = [...sums].sort((a, b) => b - a);
  const groups = [['kept', 'kept'], ['dropped here', 'dropped'], [judged ? 'lost elsewhere' : 'lost', 'else']];
  const traces = groups.map(([name, tone], g) => ({
    type: 'bar', x, y: item.counts[g], width: item.edges ? widths(item.edges, item.log) : undefined, name, marker: { color: color(tone) },
    customdata: ranges, hovertemplate: `%{customdata}<br>%{y:,} ${name}<extra></extra>`,
  })).filter((_, g) => item.counts[g].some(Boolean));
  const at = sums.indexOf(highest);
  return { traces, peak: { x: item.edges ? x[at] + widths(item.edges, item.log)[at] / 2 : x[at], y: highest, kept: item.counts[0][at] }, top: second && highest > 5 * second ? 1.35 * second : null };
}

/** What a threshold would keep at other places, its own marked; places beyond the axis are drawn at its ends. */
function yieldCurve({ side, bound, yields }, item) {
  const [low, high] = [item.edges[0], item.edges[item.edges.length - 1]];
  const places = yields.map(([at]) => Math.min(Math.max(at, low), high));
  return {
    type: 'scatter', mode: 'lines+markers', cliponaxis: false, yaxis: 'y2', x: item.log ? places.map(Math.log10) : places, y: yields.map(([, clips]) => clips),
    line: { color: color('accent'), width: 1.5, dash: side === 'max' ? 'dot' : 'solid' }, marker: { size: yields.map(([at]) => (at === bound ? 9 : 5)), color: yields.map(([at]) => color(at === bound ? 'ink' : 'accent')), opacity: 1 },
    customdata: yields.map(([at, clips, hours]) => `${side} ${precise(at)}${at === bound ? ', as it is,' : ''}<br>keeps ${plural(clips, 'clip')}, ${time(hours)}`), hovertemplate: '%{customdata}<extra></extra>',
  };
}

/** An axis of counts up to a number: no ticks between whole ones. */
const counts = (most) => ({ tickformat: ',', rangemode: 'tozero', ...(most < 5 ? { dtick: 1 } : {}) });

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
