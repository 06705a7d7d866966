// One training run: parts of its loss, and its previews.

/** The run on view, and the prefix of its training or validation losses. */
const selection = { run: 0, prefix: 'mean/' };

/** Return the parts of the loss and the previews of one run, with a choice of the run. */
function oneRun(runs) {
  const node = el('div', { class: 'stack' });
  const show = () =>
    node.replaceChildren(
      ...lossPartCards(data.training.runs[selection.run]),
      previewCard(data.training.runs[selection.run]),
    );
  const select = (name, key, options) =>
    el(
      'label',
      {},
      name,
      el(
        'select',
        {
          onchange: (event) => {
            selection[key] = key === 'run' ? Number(event.target.value) : event.target.value;
            show();
          },
        },
        options.map(([key_, text]) => el('option', { value: key_ }, text)),
      ),
    );
  const choices = [
    runs.length > 1
      ? select(
          'Run',
          'run',
          runs.map((run, k) => [k, run.label]),
        )
      : '',
    runs.some((run) => run.curves.val_loss)
      ? select('Parts of', 'prefix', [
          ['mean/', 'the training loss'],
          ['val_', 'the validation loss'],
        ])
      : '',
  ];
  show();
  return [choices.some(Boolean) ? el('div', { class: 'choices' }, choices) : '', node];
}

/** Return charts of the loss by noise level, by size and number of frames, and by kind. */
function lossPartCards(run) {
  const parts = [
    ['loss_time/', 'Loss by noise level', (name) => `${name} to ${(Number(name) + 0.1).toFixed(1)}`],
    [
      'loss_bucket/',
      'Loss by size and frames',
      (name) =>
        name
          .replace('_', ', ')
          .replace(/px/, ' px')
          .replace(/(\d+)f$/, (_, n) => plural(Number(n), 'frame')),
    ],
    ['loss_kind/', 'Loss of images and videos', (name) => name],
  ];
  const order = new Intl.Collator('en', { numeric: true }).compare;
  const cards = parts.flatMap(([part, title, label]) => {
    const start = `${selection.prefix}${part}`;
    const keys = Object.keys(run.curves)
      .filter((key) => key.startsWith(start))
      .sort(order);
    if (!keys.length) return [];
    const name = (key) => label(key.slice(start.length));
    const mode = selection.prefix === 'val_' ? { mode: 'lines+markers', marker: { size: 5 } } : {};
    return [
      el(
        'div',
        { class: 'card' },
        el('h3', {}, title),
        chart(
          '',
          `${title}, last: ${keys.map((key) => `${name(key)} ${precise(last(run.curves[key]))}`).join('; ')}`,
          () => {
            const traces = keys.map((key, k) =>
              curve(run.curves[key], shade(k, keys.length, color('shade')), name(key), {
                line: { width: 1.5 },
                ...mode,
              }),
            );
            return { traces, layout: overSteps({ yaxis: { range: range(traces.flatMap((trace) => trace.y)) } }) };
          },
        ),
        legend(keys.map((key, k) => [shade(k, keys.length, 'var(--shade)'), name(key)])),
      ),
    ];
  });
  return cards.length ? [el('div', { class: 'grid' }, cards)] : [];
}

/** Return the previews of a run, with a slider over steps. Videos are files beside the page, and play on request. */
function previewCard(run) {
  const items = run.previews;
  if (!items.length) return '';
  const frame = el('div', { class: 'preview' });
  const status = el('output', {});
  const captions = el('ol', { class: 'captions' });
  const slider = el('input', {
    type: 'range',
    min: 0,
    max: items.length - 1,
    value: items.length - 1,
    'aria-label': 'Step of the preview',
    disabled: items.length < 2,
    oninput: () => show(),
  });
  const button = el('button', {
    type: 'button',
    class: 'quiet',
    onclick: () => {
      playing = !playing;
      show();
    },
  });
  let playing = false;
  const show = () => {
    const item = items[slider.value];
    const about = `Samples after step ${count(item.step)}`;
    status.textContent = `step ${count(item.step)}`;
    slider.setAttribute('aria-valuetext', status.textContent);
    button.textContent = playing ? 'Pause' : 'Play';
    button.hidden = !item.video;
    captions.replaceChildren(...(item.captions || []).map((text) => el('li', {}, text || 'no caption')));
    const poster = item.poster ? `data:image/jpeg;base64,${item.poster}` : item.image;
    if (item.failed) frame.replaceChildren(el('p', { class: 'note' }, `No preview: ${item.failed}`));
    else if (!item.video || !playing) frame.replaceChildren(el('img', { src: poster, alt: about }));
    else
      frame.replaceChildren(
        el('video', {
          src: item.video,
          poster,
          'aria-label': about,
          autoplay: true,
          loop: true,
          muted: true,
          playsinline: true,
          onerror: () =>
            frame.replaceChildren(
              el('img', { src: poster, alt: about }),
              el('p', { class: 'note' }, `${item.video} is not beside this page.`),
            ),
        }),
      );
  };
  show();
  return el(
    'div',
    { class: 'card' },
    el('h3', {}, 'Previews'),
    el(
      'p',
      { class: 'note' },
      'Samples of the averaged weights (EMA), from the same captions and the same noise at each step.',
    ),
    el('div', { class: 'slide' }, slider, status, button),
    frame,
    captions,
  );
}
