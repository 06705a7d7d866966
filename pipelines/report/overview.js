// The head of the page, and the funnels.

/** Append the title of the page, the main numbers and some kept clips. */
function overview() {
  const { videos, images } = data.funnel;
  const main = videos || images;
  const tile = (name, number, detail, tone) =>
    el(
      'div',
      { class: 'tile' },
      el('dt', {}, name),
      el('dd', {}, el('span', { class: tone || '' }, number), el('span', { class: 'detail' }, detail)),
    );
  const sources = data.ledger.filter((account) => account.level !== 'clips');
  const clips = data.ledger.find((account) => account.level === 'clips');
  const failed = sum(data.ledger.map((account) => account.fates.failed));
  const tiles = [];
  if (videos)
    tiles.push(
      tile('Input footage', time(videos.hours), plural(videos.files, 'video')),
      tile(
        'Kept footage',
        time(videos.kept_hours),
        videos.hours ? `${percent(videos.kept_hours / videos.hours)} of the input` : '',
        'good',
      ),
    );
  tiles.push(
    tile(
      'Kept clips',
      count(clips.fates.kept),
      `of ${count(clips.inputs)} cut${clips.inputs ? `, ${percent(clips.fates.kept / clips.inputs)}` : ''}`,
      'good',
    ),
    tile(
      'Sources',
      count(sum(sources.map((account) => account.inputs))),
      sources
        .filter((account) => account.inputs)
        .map(
          (account) =>
            `${plural(account.inputs, account.level.slice(0, -1))}, ${count(account.contributing)} with kept clips`,
        )
        .join('; '),
    ),
    tile(
      'Duplicates',
      count(clips.fates.duplicate),
      clips.inputs ? `${percent(clips.fates.duplicate / clips.inputs)} of the clips` : '',
    ),
    tile(
      'Failed',
      count(failed),
      data.ledger
        .filter((account) => account.fates.failed)
        .map((account) => plural(account.fates.failed, account.level.slice(0, -1)))
        .join(', ') || 'nothing failed',
    ),
  );
  const kept = table.fate.flatMap((fate, i) => (fate === 'kept' && data.rows.thumbnails[i].length ? [i] : []));
  // Fill whole rows: of nine if there are 18 clips, else of six, and of three on narrow screens.
  const heads = main ? spreadOverSources(kept, 18) : [];
  heads.length -= heads.length % 6;
  const when = new Date(data.when).toLocaleString('en-GB', {
    day: 'numeric',
    month: 'long',
    year: 'numeric',
    hour: '2-digit',
    minute: '2-digit',
  });
  document.getElementById('main').append(
    el(
      'section',
      { id: 'overview', style: { marginTop: 0 }, 'aria-labelledby': 'title' },
      el('p', { class: 'note' }, 'Curation report'),
      el('h1', { id: 'title' }, data.name),
      el('p', { class: 'muted' }, `${when} · worldloom ${data.version}`),
      el('dl', { class: 'tiles' }, tiles),
      heads.length
        ? el(
            'div',
            { class: `hero${heads.length < 18 ? ' few' : ''}`, 'aria-label': 'Some of the kept clips' },
            heads.map((i) => thumbnails(i)),
          )
        : '',
      data.ledger.every((account) => account.balanced)
        ? ''
        : el(
            'p',
            {},
            'The ledger does not add up: inputs are not kept + dropped + failed + duplicate. Run `worldloom ledger`.',
          ),
    ),
  );
  sections.push(['overview', 'Overview']);
}

/** Return at most n of the rows, from as many sources as possible. */
function spreadOverSources(rows, n) {
  const bySource = new Map();
  for (const i of rows) bySource.set(table.source[i], [...(bySource.get(table.source[i]) || []), i]);
  const found = [];
  for (let k = 0; found.length < Math.min(n, rows.length); k += 1)
    for (const list of bySource.values()) if (list[k] !== undefined && found.length < n) found.push(list[k]);
  return found;
}

/** Append the section with the funnels of videos and images. */
function funnels() {
  const cards = [];
  for (const [kind, funnel] of Object.entries(data.funnel))
    cards.push(
      el('div', { class: 'card' }, el('h3', {}, kind === 'videos' ? 'Videos' : 'Images'), funnelList(funnel, kind)),
    );
  section(
    'funnel',
    'Funnel',
    'From the input to the kept clips: what each step removed, and why. Click a reason to see its clips.',
    el('div', { class: 'stack' }, cards),
  );
}

/** Return the stages of a funnel with their losses, as bars of hours, or of rows if there are no hours. */
function funnelList(funnel, kind) {
  const byHours = kind === 'videos' && funnel.hours > 0;
  const whole = byHours ? funnel.hours : Math.max(funnel.files, funnel.clips, 1);
  const cut = funnel.stages.findIndex((stage) => stage.new_clips);
  const left = (stage, k) => (byHours ? stage.hours : cut >= 0 && k >= cut ? stage.clips : stage.files);
  const size = (loss) => (byHours ? loss.hours : loss.rows);
  const stages = funnel.stages
    .map((stage, k) => [stage, k])
    .filter(([stage]) => stage.losses.length || stage.new_clips);
  const bar = (kept, losses) =>
    el(
      'div',
      { class: 'bar', 'aria-hidden': 'true' },
      el('i', { class: 'kept', style: { width: `${(100 * kept) / whole}%` } }),
      losses
        .filter(size)
        .map((loss) => el('i', { class: loss.fate, style: { width: `${(100 * size(loss)) / whole}%` } })),
    );
  const first = el(
    'li',
    {},
    el('strong', {}, 'Input'),
    bar(whole, []),
    el('span', { class: 'left' }, byHours ? time(funnel.hours) : '', el('small', {}, plural(funnel.files, 'file'))),
  );
  const rest = stages.map(([stage, k]) =>
    el(
      'li',
      {},
      el('span', { class: 'mono' }, stage.label),
      bar(left(stage, k), stage.losses),
      el(
        'span',
        { class: 'left' },
        byHours ? time(stage.hours) : '',
        el('small', {}, cut >= 0 && k >= cut ? plural(stage.clips, 'clip') : plural(stage.files, 'file')),
      ),
      stage.losses.length ? lossList(stage, byHours) : '',
    ),
  );
  const unknown = funnel.unknown_durations
    ? el(
        'p',
        { class: 'note' },
        `${plural(funnel.unknown_durations, 'video')} without a known duration: counted as 0 h.`,
      )
    : '';
  return el('div', {}, el('ol', { class: 'funnel' }, first, rest), unknown);
}

/** Return the losses of a stage, the largest ten first and the rest folded. */
function lossList(stage, byHours) {
  const line = (loss) => {
    const rows = loss.rows ? plural(loss.rows, loss.unit.slice(0, -1)) : '';
    const amount = [rows, byHours && loss.hours ? time(loss.hours) : ''].filter(Boolean).join(', ');
    const content = [dot(loss.fate), el('span', {}, loss.reason, ' ', el('span', { class: 'muted' }, amount))];
    return el(
      'li',
      {},
      loss.rows
        ? el(
            'button',
            {
              type: 'button',
              class: 'link',
              onclick: () => browse({ fate: loss.fate, step: stage.label, reason: loss.reason }),
            },
            content,
          )
        : el('span', { class: 'loss' }, content),
    );
  };
  const first = stage.losses.slice(0, 10);
  const more = stage.losses.slice(10);
  return el(
    'ul',
    {},
    first.map(line),
    more.length
      ? el(
          'li',
          { style: { flexBasis: '100%' } },
          el(
            'details',
            {},
            el('summary', { class: 'muted' }, `${plural(more.length, 'reason')} more`),
            el('ul', {}, more.map(line)),
          ),
        )
      : '',
  );
}
