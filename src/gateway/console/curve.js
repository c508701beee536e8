// Draws the outcomes of a job over time, as areas on top of each other.

import { html, nameOf } from './parts.js';
import { OUTCOMES } from './history.js';
import { clock, number, t } from './words.js';

// About as wide as its place on the page, so that its texts are as large as others.
const WIDTH = Math.round(innerWidth < 900 ? Math.max(innerWidth - 60, 300) : Math.min(innerWidth * 0.6, 960));
const [HEIGHT, LEFT, BOTTOM, TOP] = [220, 64, 24, 8];

/** A round number that is not less. */
function roundUp(value) {
  const step = 10 ** Math.floor(Math.log10(Math.max(value, 2)));
  return [1, 2, 4, 6, 10].map((it) => it * step).find((it) => it >= value && it >= 2);
}

export function Curve({ points }) {
  if (points.length < 2) {
    return html`<p class="empty">${t('The curve begins with the next outcome that this page hears of.')}</p>`;
  }
  const [from, to] = [points[0].at, points[points.length - 1].at];
  const most = roundUp(Math.max(...points.map((it) => OUTCOMES.reduce((sum, key) => sum + (it.accounts[key] || 0), 0))));
  const x = (at) => LEFT + ((at - from) / Math.max(to - from, 1)) * (WIDTH - LEFT - 8);
  const y = (value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - BOTTOM - TOP);
  let below = points.map(() => 0);
  const shown = OUTCOMES.filter((outcome) => points.some((it) => it.accounts[outcome] > 0));
  const areas = shown.map((outcome) => {
    const above = points.map((it, index) => below[index] + (it.accounts[outcome] || 0));
    const line = (values) => values.map((value, index) => `${x(points[index].at).toFixed(1)},${y(value).toFixed(1)}`);
    const area = [...line(above), ...line(below).reverse()].join(' ');
    below = above;
    return html`<polygon class=${`of-${outcome}`} points=${area} />`;
  });
  const last = points[points.length - 1].accounts;
  const told = shown.map((it) => `${nameOf(it)} ${number(last[it])}`).join(', ');
  return html`<figure class="curve">
    <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${`${t('Outcomes over time')}: ${told}`}>
      ${[0, 0.5, 1].map((part) => html`<g>
        <line class="grid" x1=${LEFT} x2=${WIDTH - 8} y1=${y(most * part)} y2=${y(most * part)} />
        <text x=${LEFT - 8} y=${y(most * part) + 4} text-anchor="end">${number(most * part)}</text>
      </g>`)}
      ${areas}
      <text x=${LEFT} y=${HEIGHT - 6}>${clock(from)}</text>
      <text x=${WIDTH - 8} y=${HEIGHT - 6} text-anchor="end">${clock(to)}</text>
    </svg>
    <figcaption>${shown.map((outcome) => html`<span class="key"><i class=${`of-${outcome}`}></i>${nameOf(outcome)}</span>`)}</figcaption>
  </figure>`;
}
