// What evaluations and audits share: distances to training clips, and generated clips beside the nearest ones.

/** Return a choice among evaluations or audits of several models; nothing if there is one. */
const modelChoice = (found, show) =>
  found.length > 1
    ? el(
        'div',
        { class: 'choices' },
        el(
          'label',
          {},
          'Model',
          el(
            'select',
            { onchange: (event) => show(found[Number(event.target.value)]) },
            found.map((item, k) => el('option', { value: k }, item.model || item.name)),
          ),
        ),
      )
    : '';

/** Return a card with cumulative shares of sorted values. Each line is (name, CSS tone, values). */
function cumulativeCard(title, text, lines, bound, note) {
  const plot = chart('tall', `${title}. ${text}`, () => ({
    traces: lines.map(([name, tone, values]) => ({
      type: 'scatter',
      mode: 'lines',
      name,
      x: values,
      y: values.map((_, k) => (k + 1) / values.length),
      line: { shape: 'hv', width: 2, color: color(tone) },
      hovertemplate: '%{y:.0%} up to %{x:.3f}<extra>%{fullData.name}</extra>',
    })),
    layout: {
      margin: { l: 44, r: 20, t: 10, b: 34 },
      xaxis: { nticks: 6 },
      yaxis: { range: [0, 1.02], tickformat: '.0%' },
      shapes: [
        {
          type: 'line',
          x0: bound,
          x1: bound,
          yref: 'paper',
          y0: 0,
          y1: 1,
          line: { color: color('muted'), width: 1, dash: 'dot' },
        },
      ],
    },
  }));
  return el(
    'div',
    { class: 'card' },
    el('h3', {}, title),
    el('p', { class: 'note' }, text),
    plot,
    legend(lines.map(([name, tone]) => [`var(--${tone})`, name])),
    el('p', { class: 'note' }, note),
  );
}

/** Return a card of generated clips beside training clips; null if there are none. */
const pairsCard = (title, note, pairs) =>
  pairs.length
    ? el(
        'div',
        { class: 'card' },
        el('h3', {}, title),
        el('p', { class: 'note' }, note),
        el('div', { class: 'grid' }, pairs.map(clipPair)),
      )
    : null;

function clipPair(item) {
  const image = item.images[Math.floor(item.images.length / 2)];
  const node = el(
    'figure',
    { class: 'nearest-pair' },
    el(
      'div',
      {},
      item.video ? clipVideo(item.video, item.prompt || 'generated clip') : el('p', { class: 'note' }, 'no file'),
      item.training_video
        ? clipVideo(item.training_video, 'nearest training clip')
        : image
          ? el('img', { class: 'media', src: `data:image/jpeg;base64,${image}`, alt: 'nearest training clip' })
          : el('p', { class: 'note' }, 'no thumbnail'),
    ),
    el('figcaption', {}, el('strong', {}, value(item.ratio)), ` ${item.prompt} · training clip ${item.training}`),
  );
  pairObserver.observe(node);
  return node;
}

/** Return a video without controls, which would hide most of a small one; the button of thumbnails stops it. */
const clipVideo = (src, label) =>
  el('video', { class: 'media', src, 'aria-label': label, loop: true, playsinline: true, preload: 'metadata' });

const visiblePairs = new Set();
const pairObserver = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries)
    if (isIntersecting) visiblePairs.add(target);
    else visiblePairs.delete(target);
  playPairs();
});

/** Play both videos of each pair on the screen in step, or stop them while thumbnails stand still. */
function playPairs() {
  for (const node of document.querySelectorAll('.nearest-pair')) {
    const videos = [...node.querySelectorAll('video')];
    const plays = playing && visiblePairs.has(node);
    if (plays !== videos.some((video) => video.paused)) continue;
    for (const video of videos) {
      video.muted = true;
      if (!plays) video.pause();
      else {
        video.currentTime = 0;
        video.play().catch(() => {});
      }
    }
  }
}
