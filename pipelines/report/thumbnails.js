// Thumbnails of clips, and the details of one clip.

const FRAME_MS = 700;

const visible = new Set();
const thumbnailObserver = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        addImages(target);
        visible.add(target);
      } else visible.delete(target);
    }
  },
  { rootMargin: '80px' },
);
let playing = !matchMedia('(prefers-reduced-motion: reduce)').matches;

/** Return the thumbnails of a row as URLs. */
const thumbnailUrls = (i) => data.rows.thumbnails[i].map((text) => `data:image/jpeg;base64,${text}`);

/** Return a button that shows the thumbnails of a row one after the other. A click opens its details. */
function thumbnails(i, tag) {
  const node = el('button', {
    type: 'button',
    class: 'thumbnails',
    'data-row': i,
    'aria-label': `${clipName(i)}${tag ? `, ${tag}` : ''}. Show details`,
    onclick: () => openClip(i),
  });
  if (!data.rows.thumbnails[i].length)
    node.append(el('span', { class: 'none' }, table.clip[i] === null ? 'no clip' : 'no thumbnail'));
  else thumbnailObserver.observe(node);
  if (tag) node.append(el('span', { class: 'tag' }, tag));
  return node;
}

/** Add the images of thumbnails that come near the screen. */
function addImages(node) {
  if (node.querySelector('img')) return;
  thumbnailUrls(Number(node.dataset.row)).forEach((src, k) =>
    node.prepend(el('img', { src, alt: '', class: k === 0 ? 'on' : null, decoding: 'async' })),
  );
}

/** Show the next image of all visible thumbnails. */
function showNextImages() {
  for (const node of visible) {
    const images = [...node.querySelectorAll('img')].reverse();
    const at = images.findIndex((image) => image.classList.contains('on'));
    if (!node.isConnected) {
      thumbnailObserver.unobserve(node);
      visible.delete(node);
      continue;
    }
    if (images.length < 2) continue;
    images[at].classList.remove('on');
    images[(at + 1) % images.length].classList.add('on');
  }
}

/** Start the thumbnails, and the button that pauses them. */
function startThumbnails() {
  const button = document.getElementById('motion');
  const show = () => {
    button.replaceChildren(playing ? 'Pause' : 'Play', el('span', { class: 'rest' }, ' thumbnails'));
    button.setAttribute('aria-pressed', String(!playing));
  };
  button.addEventListener('click', () => {
    playing = !playing;
    show();
    playPairs();
  });
  setInterval(() => {
    if (playing && !document.hidden) showNextImages();
  }, FRAME_MS);
  show();
}

/** Open a dialog with the details of a row. */
function openClip(i) {
  const dialog = document.getElementById('clip');
  const facts = [
    ['duration', table.duration_s[i] ? `${value(table.duration_s[i])} s` : '–'],
    ['size', table.width[i] ? `${table.width[i]} × ${table.height[i]}` : '–'],
    ['frames per second', value(table.fps[i])],
    ['codec', value(table.codec[i])],
  ];
  const known = new Set(['duration_s', 'fps', 'width', 'height', 'codec']);
  const names = [
    ...data.rows.measures,
    ...['duplicate_kind', 'duplicate_distance', 'duplicate_overlap'].filter((name) => name in table),
  ];
  for (const name of new Set(names))
    if (!known.has(name) && table[name][i] !== null) facts.push([name, value(table[name][i])]);
  dialog.replaceChildren(
    el(
      'div',
      { class: 'top' },
      el('div', {}, el('h3', {}, breakable(clipName(i))), el('p', { class: 'note' }, breakable(source(i)))),
      el('button', { type: 'button', class: 'quiet', onclick: () => dialog.close() }, 'Close'),
    ),
    el(
      'div',
      { class: 'film' },
      thumbnailUrls(i).map((src) => el('img', { src, alt: '' })),
    ),
    el('p', {}, fateLabel(i), why(i) ? ` in ${why(i)}` : ''),
    table.value[i] === null
      ? ''
      : el(
          'p',
          { class: 'note' },
          `measured ${value(table.value[i])}${table.bound[i] === null ? '' : `, bound ${value(table.bound[i])}`}`,
        ),
    table.caption[i] ? el('p', {}, table.caption[i]) : '',
    el(
      'dl',
      { class: 'values' },
      facts.map(([name, x]) => el('div', {}, el('dt', {}, breakable(name)), el('dd', {}, x))),
    ),
    el('p', { class: 'note mono' }, table.uid[i]),
  );
  dialog.showModal();
}

const fateLabel = (i) => el('span', { class: 'fate' }, dot(table.fate[i]), table.fate[i]);
