// How much of the kept clips is encoded, by bucket.

/** Append the section with the samples of each bucket. */
function buckets() {
  if (!data.buckets) return;
  const { buckets: uses, kept_s: kept, used_s: used, n_samples: nSamples, warnings } = data.buckets;
  const row = (name, fps, samples, usedSeconds) =>
    el(
      'tr',
      {},
      el('td', { class: 'mono' }, name),
      el('td', { class: 'num' }, fps),
      el('td', { class: 'num' }, count(samples)),
      el('td', { class: 'num' }, usedSeconds ? time(usedSeconds / 3600) : '–'),
      el('td', { class: 'num' }, kept ? percent(usedSeconds / kept) : '–'),
    );
  section(
    'buckets',
    'Buckets',
    kept
      ? `Samples use ${time(used / 3600)} of the ${time(kept / 3600)} of kept videos: ${percent(used / kept)}.`
      : `${plural(nSamples, 'sample')} of images.`,
    warnings.map((text) => el('p', {}, el('strong', {}, 'Warning: '), text)),
    dataTable(
      ['Bucket', 'Frames per second', 'Samples', 'Time used', 'Share of kept'],
      (_, k) => k > 0,
      uses.filter((use) => use.n_samples).map((use) => row(use.name, value(use.fps), use.n_samples, use.used_s)),
    ),
  );
}
