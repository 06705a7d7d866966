// Navigation, and the start of the page.

/** Fill the navigation bar, and mark the section that is on the screen. */
function navigation() {
  const links = new Map(sections.map(([id, title]) => [id, el('a', { href: `#${id}` }, title)]));
  const list = document.getElementById('nav-links');
  list.append(...[...links.values()].map((link) => el('li', {}, link)));
  const markCurrent = () => {
    const tops = sections.map(([id]) => [id, document.getElementById(id).getBoundingClientRect().top]);
    const [current] = tops.filter(([, top]) => top < innerHeight / 3).pop() || tops[0];
    for (const [id, link] of links) {
      if (id !== current) link.removeAttribute('aria-current');
      else if (!link.hasAttribute('aria-current')) {
        link.setAttribute('aria-current', 'true');
        list.scrollTo({ left: link.offsetLeft - list.offsetLeft - 40 });
      }
    }
  };
  addEventListener('scroll', () => requestAnimationFrame(markCurrent), { passive: true });
  markCurrent();
}

for (const append of [
  overview,
  funnels,
  buckets,
  measures,
  balance,
  clipTable,
  duplicates,
  failures,
  training,
  evaluation,
  memorisation,
  costs,
  lineage,
])
  append();
navigation();
startThumbnails();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
