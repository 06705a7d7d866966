// Charts, which Plotly draws when they come near the screen.

let libraryIsLoaded = false;
const drawn = [];

/** Return Plotly. It is loaded for the first chart: that takes longer than the rest of the page. */
function library() {
  if (!libraryIsLoaded) {
    const script = document.createElement('script');
    script.textContent = document.getElementById('chart-library').textContent;
    document.head.append(script);
    libraryIsLoaded = true;
  }
  return window.Plotly;
}

const chartObserver = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      chartObserver.unobserve(target);
      drawn.push(target);
      target.replaceChildren();
      target.draw();
    }
  },
  { rootMargin: '300px' },
);

/** Return a chart with a description for screen readers. `make` returns the traces and the layout for Plotly. */
function chart(className, label, make) {
  const node = el(
    'div',
    { class: `plot ${className}`, role: 'img', 'aria-label': label },
    el('span', { class: 'wait' }, 'drawn when in view'),
  );
  node.draw = () => {
    const { traces, layout } = make();
    const styled = Object.entries({ xaxis: {}, yaxis: {}, ...layout }).map(([key, part]) => [
      key,
      /^[xy]axis/.test(key) ? { ...axisStyle(), ...part } : part,
    ]);
    library().react(
      node,
      traces,
      { ...baseLayout(), ...Object.fromEntries(styled) },
      { displayModeBar: false, responsive: true, scrollZoom: false },
    );
  };
  chartObserver.observe(node);
  return node;
}

/** Draw the charts on the page again, as after a change of colours. */
const redraw = () => drawn.filter((node) => node.isConnected).forEach((node) => node.draw());

const baseLayout = () => ({
  margin: { l: 44, r: 10, t: 14, b: 34 },
  paper_bgcolor: 'rgba(0,0,0,0)',
  plot_bgcolor: 'rgba(0,0,0,0)',
  showlegend: false,
  dragmode: false,
  font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color('muted') },
  hovermode: 'closest',
  bargap: 0.08,
  hoverlabel: { bgcolor: color('ink'), bordercolor: color('ink'), font: { color: color('paper'), size: 12 } },
});
const axisStyle = () => ({
  gridcolor: color('line'),
  linecolor: color('line'),
  zeroline: false,
  fixedrange: true,
  automargin: true,
  tickcolor: color('line'),
  exponentformat: 'none',
});

/** Return the middle of each bin, on the scale of the axis. */
const middles = (edges, log) =>
  edges.slice(1).map((edge, k) => (log ? (Math.log10(edge) + Math.log10(edges[k])) / 2 : (edge + edges[k]) / 2));

/** Return the width of the bar of each bin, on the scale of the axis. */
const widths = (edges, log) =>
  edges.slice(1).map((edge, k) => 0.94 * (log ? Math.log10(edge) - Math.log10(edges[k]) : edge - edges[k]));

/** Return the settings of an axis of bins. Ticks of a logarithmic one are at 1, 2 and 5. */
function binAxis(edges, log) {
  const scale = log ? Math.log10 : (x) => x;
  const range = [scale(edges[0]), scale(edges[edges.length - 1])];
  if (!log) return { range, ...(edges.every(Number.isInteger) && range[1] - range[0] < 5 ? { dtick: 1 } : {}) };
  const ticks = [];
  for (let power = Math.floor(range[0]); power <= range[1]; power += 1)
    for (const lead of range[1] - range[0] > 2.5 ? [1] : [1, 2, 5]) ticks.push(lead * 10 ** power);
  return { range, tickvals: ticks.map(Math.log10), ticktext: ticks.map(value) };
}

/** Return names of the bins. The first and the last one include all values beyond the axis. */
function binNames({ edges, below, above }) {
  const last = edges.length - 2;
  return edges
    .slice(1)
    .map((edge, k) =>
      k === 0 && below
        ? `under ${value(edge)}`
        : k === last && above
          ? `from ${value(edges[k])}`
          : `${value(edges[k])} to ${value(edge)}`,
    );
}

/** Return the alignment of a text at a position of the axis, such that the text is inside the chart. */
function anchor(at, item) {
  const scale = item.log ? Math.log10 : (x) => x;
  const [low, high] = [scale(item.edges[0]), scale(item.edges[item.edges.length - 1])];
  const share = (at - low) / (high - low);
  return share < 0.15 ? 'left' : share > 0.85 ? 'right' : 'center';
}

/** Return the settings of an axis of counts up to a maximum, without ticks between whole numbers. */
const countAxis = (maximum) => ({ tickformat: ',', rangemode: 'tozero', ...(maximum < 5 ? { dtick: 1 } : {}) });
