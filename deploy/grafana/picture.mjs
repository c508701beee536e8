// Draws a dashboard of this folder as Grafana shows it: its own queries, asked of a Prometheus that
// scrapes a real run with faults.
//
//   node deploy/grafana/picture.mjs FANWISE MODULES PICTURE [SECONDS] [DASHBOARD]
//
// MODULES is the folder `node_modules` with playwright-core; CHROMIUM names the browser, if it is not
// Debian's. The run takes SECONDS (40) before the PICTURE of the DASHBOARD (overview) is taken. A panel
// that finds nothing is an error. Everything else stays in a folder that is removed.

import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import assert from 'node:assert/strict';

const [fanwise, modules, picture, seconds = '40', dashboard = 'overview'] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, 'x.js'))('playwright-core');
const here = dirname(fileURLToPath(import.meta.url));
const work = mkdtempSync(join(tmpdir(), 'fanwise-dashboard.'));
const children = new Set();
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Starts a process, and returns what this pattern finds in its output. */
async function start(pattern, program, ...args) {
  const child = spawn(program, args);
  children.add(child);
  child.gone = new Promise((resolve) => child.on('exit', () => { children.delete(child); resolve(); }));
  let log = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => { log += text; });
  const end = Date.now() + 30_000;
  while (!pattern.test(log)) {
    assert(Date.now() < end && child.exitCode === null, `${program}: ${log}`);
    await pause(50);
  }
  return pattern.exec(log).slice(1);
}

// --- the run --------------------------------------------------------------------------------------

/** As every producer must, it repeats a request that is answered 503: "not possible now, try again". */
async function post(url, value, method = 'POST') {
  const end = Date.now() + 30_000;
  for (;;) {
    const response = await fetch(url, { method, body: JSON.stringify(value), headers: { 'Content-Type': 'application/json' } });
    if (response.ok) return;
    const text = await response.text();
    assert(response.status === 503 && Date.now() < end, `${url}: ${response.status} ${text}`);
    await pause(500);
  }
}

async function startAll() {
  const [mock] = await start(/(127\.0\.0\.1:\d+)/, fanwise, 'mock-im', '--listen', '127.0.0.1:0', '--wukongim', 'v3');
  await post(`http://${mock}/_mock/faults`, { latency: '20ms', refuse_prefix: 'bad-' });
  const target = (address) => `type = "wukongim"\nversion = "v3"\nsender = "news"\nurl = "http://${address}"\n`;
  writeFileSync(join(work, 'fanwise.toml'), `
[embedded]
dir = "${work}/data"
[gateway]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[log]
format = "text"
[apps.default]
target = "im"
[targets.im]
limit = "1200/s"
${target(mock)}
[targets.away]
${target('127.0.0.1:9')}
`);
  const [gateway, admin] = await start(
    /^(?=[^]*gateway listens.*?(127\.0\.0\.1:\d+))(?=[^]*admin port listens.*?(127\.0\.0\.1:\d+))(?=[^]*ready: jobs are taken)/,
    fanwise, 'serve', '--config', join(work, 'fanwise.toml'),
  );
  writeFileSync(join(work, 'prometheus.json'), JSON.stringify({
    global: { scrape_interval: '1s', evaluation_interval: '1s' },
    rule_files: [join(here, '../prometheus/rules/fanwise.yml')],
    scrape_configs: [{ job_name: 'fanwise', static_configs: [{ targets: [admin], labels: { namespace: 'shop' } }] }],
  }));
  const [prometheus] = await start(/Listening on.*?(127\.0\.0\.1:\d+)/, 'prometheus',
    `--config.file=${join(work, 'prometheus.json')}`, `--storage.tsdb.path=${join(work, 'metrics')}`, '--web.listen-address=127.0.0.1:0');
  return { mock, gateway, prometheus };
}

/** Campaigns, small notices, refused users, a burst of 429, and a target that is not there. */
async function broadcast({ mock, gateway }) {
  const begun = Date.now();
  const send = (key, users, more = {}) => post(`http://${gateway}/v1/jobs`, {
    v: 1, client_msg_no: key, audience: { users }, message: { type: 'text', text: 'hello' }, ...more,
  });
  const people = (count, name) => Array.from({ length: count }, (_, at) => `${at % 97 ? '' : 'bad-'}${name}-${at}`);
  const length = Number(seconds) * 1000;
  await send('away', people(40, 'away'), { target: 'away' });
  await send('later', people(500, 'later'), { not_before: new Date(begun + 2 * length).toISOString() });
  for (let round = 0, big = 0; Date.now() - begun < length; round += 1, await pause(1000)) {
    if (Date.now() - begun > big * 20_000) await send(`sale-${big += 1}`, people(9000 + 3000 * (big % 3), 'sale'));
    await send(`notice-${round}`, people(30 + 170 * (round % 4), 'notice'), { priority: 'high' });
    if (round === Math.floor(length / 2500)) await post(`http://${mock}/_mock/faults`, { burst: { after: 100, for: '3s', retry_after: 2 } });
  }
}

// --- the queries ----------------------------------------------------------------------------------

const fill = (expression) => expression.replaceAll(/\$(namespace|target|app)\b/g, '.*')
  .replaceAll('$__rate_interval', '10s').replaceAll('$__range', `${seconds}s`);

async function ask(prometheus, path, parameters) {
  const response = await fetch(`http://${prometheus}/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const answer = await response.json();
  assert.equal(answer.status, 'success', JSON.stringify(answer));
  return answer.data.result;
}

/** The series of a panel, each with its name and its points. */
async function series(prometheus, panel, span) {
  const found = panel.targets.map(async ({ expr, legendFormat, refId }) => {
    const result = await ask(prometheus, 'query_range', { query: fill(expr), ...span });
    return result.map(({ metric, values }) => ({
      name: legendFormat === '__auto' ? Object.values(metric).join(' ') : legendFormat.replaceAll(/{{(\w+)}}/g, (_, label) => metric[label] ?? ''),
      points: values.map(([at, value]) => [at, Number(value)]).filter(([, value]) => Number.isFinite(value)),
      metric,
      refId,
    }));
  });
  return (await Promise.all(found)).flat().filter(({ points }) => points.length);
}

// --- the drawing ----------------------------------------------------------------------------------

const COLOURS = { green: '#56a64b', orange: '#ff780a', red: '#e02f44' };
const PALETTE = ['#73bf69', '#5794f2', '#f2cc0c', '#ff9830', '#f2495c', '#b877d9', '#37872d', '#8ab8ff', '#a16a03', '#c4162a'];
const text = (value) => String(value).replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');
const last = ({ points }) => points.at(-1)[1];
const round = (value) => String(Number(value.toPrecision(3)));

function shown(value, unit) {
  if (unit === 'percentunit') return `${round(value * 100)} %`;
  if (unit === 's') {
    const [size, name] = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's'], [0.001, 'ms']].find(([size]) => value >= size) ?? [1, 's'];
    return `${round(value / size)} ${name}`;
  }
  const [size, name] = [[1e9, ' Bil'], [1e6, ' Mil'], [1e3, ' K']].find(([size]) => value >= size) ?? [1, ''];
  return `${round(value / size)}${name}${unit === 'ops' ? ' ops/s' : ''}`;
}

/** The colour of the last threshold that the value has reached. */
const colourOf = (value, steps) => COLOURS[steps.filter((step) => step.value === null || value >= step.value).at(-1).color];
const line = (points, x, y) => points.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(' ');

function stat([first], { unit, thresholds: { steps } }, { colorMode }, { start, end }) {
  const value = last(first);
  const [most, colour] = [Math.max(...first.points.map(([, it]) => it), 1e-9), colourOf(value, steps)];
  const [x, y] = [(at) => ((at - start) / (end - start)) * 200, (it) => 40 - (it / most) * 36];
  const area = `${x(first.points[0][0])},40 ${line(first.points, x, y)} ${x(first.points.at(-1)[0])},40`;
  return `<div class="stat ${colorMode}" style="--colour: ${colour}"><svg viewBox="0 0 200 40" preserveAspectRatio="none"><polygon points="${area}"/></svg><b>${shown(value, unit)}</b></div>`;
}

/** A round number that is not less. */
function roundUp(value) {
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((it) => it * step).find((it) => it >= value);
}

function axis(most, { start, end }, unit, [width, height, left, bottom]) {
  const x = (at) => left + ((at - start) / (end - start)) * (width - left - 8);
  const y = (value) => height - bottom - (value / most) * (height - bottom - 8);
  const across = [0, 0.25, 0.5, 0.75, 1].map((part) => `<line class="grid" x1="${left}" x2="${width - 8}" y1="${y(most * part)}" y2="${y(most * part)}"/>
    ${unit && `<text x="${left - 6}" y="${y(most * part) + 4}" text-anchor="end">${shown(most * part, unit)}</text>`}`);
  const times = [0.1, 0.5, 0.9].map((part) => start + (end - start) * part)
    .map((at) => `<text x="${x(at)}" y="${height - 4}" text-anchor="middle">${new Date(at * 1000).toISOString().slice(11, 19)}</text>`);
  return { x, y, drawn: (unit ? across : []).concat(times).join('') };
}

function timeseries(all, { unit, thresholds: { steps }, custom }, options, span, [width, height]) {
  const stacked = custom.stacking.mode === 'normal';
  const sums = new Map();
  const drawn = all.map(({ points }) => {
    const base = points.map(([at]) => [at, stacked ? sums.get(at) ?? 0 : 0]);
    const tops = points.map(([at, value], index) => [at, base[index][1] + value]);
    tops.forEach(([at, top]) => sums.set(at, top));
    return { base, tops };
  });
  const most = roundUp(Math.max(...drawn.flatMap(({ tops }) => tops.map(([, top]) => top)), unit === 'short' ? 4 : 1e-3) * 1.02);
  const rows = Math.min(all.length, 5);
  const tall = height - rows * 17 - 18;
  const { x, y, drawn: frame } = axis(most, span, unit, [width, tall, 76, 20]);
  const marks = steps.filter(({ value }) => custom.thresholdsStyle && value && value < most)
    .map(({ value, color }) => `<line class="mark" stroke="${COLOURS[color]}" x1="76" x2="${width - 8}" y1="${y(value)}" y2="${y(value)}"/>`);
  const shapes = drawn.map(({ tops, base }, number) => {
    const colour = PALETTE[number % PALETTE.length];
    const area = stacked ? `<polygon fill="${colour}" fill-opacity="${custom.fillOpacity / 100}" points="${line(tops, x, y)} ${line(base.toReversed(), x, y)}"/>` : '';
    return `${area}<polyline stroke="${colour}" points="${line(tops, x, y)}"/>`;
  });
  const keys = all.map((one, number) => [one, PALETTE[number % PALETTE.length]]).sort(([one], [other]) => last(other) - last(one)).slice(0, rows)
    .map(([one, colour]) => `<tr><td><i style="background: ${colour}"></i>${text(one.name)}</td><td>${shown(last(one), unit)}</td><td>${shown(Math.max(...one.points.map(([, it]) => it)), unit)}</td></tr>`);
  return `<svg viewBox="0 0 ${width} ${tall}" height="${tall}">${frame}${shapes.join('')}${marks.join('')}</svg>
    <table class="legend"><tr><th>Name</th><th>Last</th><th>Max</th></tr>${keys.join('')}</table>`;
}

function timeline(all, { thresholds: { steps } }, options, span, [width, height]) {
  const { x, drawn } = axis(1, span, '', [width, height, 150, 20]);
  const tall = Math.min((height - 24) / all.length, 60);
  const rows = all.map(({ name, points }, number) => {
    const bars = points.map(([at, value]) => `<rect x="${x(at)}" width="${x(at + span.step) - x(at) + 0.5}" y="${number * tall + 4}" height="${tall - 8}" fill="${colourOf(value, steps)}"/>`);
    return `<text x="144" y="${number * tall + tall / 2 + 4}" text-anchor="end">${text(name)}</text>${bars.join('')}`;
  });
  return `<svg viewBox="0 0 ${width} ${height}" height="${height}">${drawn}${rows.join('')}</svg>`;
}

function table(all, { unit }, { transformations }) {
  const { excludeByName, renameByName } = transformations.find(({ id }) => id === 'organize').options;
  const rows = new Map();
  for (const { metric, refId, points } of all) {
    const labels = Object.fromEntries(Object.entries(metric).filter(([label]) => !excludeByName[label]));
    const column = renameByName[`Value #${refId}`] ?? renameByName.Value ?? 'Value';
    const key = JSON.stringify(labels);
    rows.set(key, { ...labels, ...rows.get(key), [column]: shown(points.at(-1)[1], unit) });
  }
  const columns = [...new Set([...rows.values()].flatMap(Object.keys))];
  const cells = (kind, values) => `<tr>${values.map((it) => `<${kind}>${text(it ?? '')}</${kind}>`).join('')}</tr>`;
  return `<table>${cells('th', columns)}${[...rows.values()].map((row) => cells('td', columns.map((it) => row[it]))).join('')}</table>`;
}

const KINDS = { stat, timeseries, table, 'state-timeline': timeline };
const [COLUMN, ROW, GAP] = [52, 30, 8];

async function drawn(prometheus, panel, span) {
  const { x, y, w, h } = panel.gridPos;
  const place = `grid-area: ${y + 1} / ${x + 1} / span ${h} / span ${w}`;
  if (panel.type === 'row') return `<h2 style="${place}">${text(panel.title)}</h2>`;
  const all = await series(prometheus, panel, span);
  assert(all.length, `the panel ${panel.title} finds nothing`);
  const size = [w * (COLUMN + GAP) - GAP - 20, h * (ROW + GAP) - GAP - 42];
  const options = { ...panel.options, transformations: panel.transformations };
  return `<section style="${place}"><h3>${text(panel.title)}</h3>${KINDS[panel.type](all, panel.fieldConfig.defaults, options, span, size)}</section>`;
}

const STYLE = `body { margin: 0; padding: 16px; background: #f4f5f5; color: #24292e; font: 13px Inter, "DejaVu Sans", sans-serif; width: ${24 * (COLUMN + GAP) - GAP}px }
h1 { font-size: 18px; margin: 0 0 12px } h1 small { font-weight: normal; color: #6b7177; margin-left: 12px }
main { display: grid; grid-template-columns: repeat(24, ${COLUMN}px); grid-auto-rows: ${ROW}px; gap: ${GAP}px }
h2 { font-size: 15px; margin: 0; align-self: center } h3 { font-size: 13px; font-weight: 600; margin: 0 0 8px }
section { background: #fff; border: 1px solid #dcdfe3; border-radius: 2px; padding: 8px 10px; overflow: hidden; position: relative }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: 4px 6px; border-bottom: 1px solid #eceef0; font-weight: normal } th { color: #1f62e0 }
.legend { font-size: 11px; line-height: 1 } .legend td, .legend th { padding: 1px 4px; border: 0 } .legend :not(:first-child) { text-align: right } .legend i { display: inline-block; width: 12px; height: 3px; margin: 0 6px 3px 0 }
svg { display: block; width: 100% } svg text { font-size: 11px; fill: #6b7177 } rect { shape-rendering: crispEdges } polyline { fill: none; stroke-width: 1.3 } .grid { stroke: #e9ebed } .mark { stroke-dasharray: 6 4 }
.stat { position: absolute; inset: 0; padding: 30px 10px 0; color: var(--colour); text-align: center } .stat.background { background: var(--colour); color: #fff; z-index: 0 }
.stat svg { position: absolute; inset: auto 0 0 0; height: 60% } .stat polygon { fill: currentColor; opacity: 0.2 } .stat b { font-size: 36px; font-weight: 500; position: relative }
section h3 { position: relative; z-index: 1 } section:has(.background) h3 { color: #fff }`;

async function page(prometheus) {
  const { title, panels } = JSON.parse(readFileSync(join(here, `${dashboard}.json`), 'utf8'));
  const end = Math.floor(Date.now() / 1000) - 1;
  const span = { start: end - Number(seconds), end, step: Math.max(1, Math.round(Number(seconds) / 200)) };
  const parts = await Promise.all(panels.map((panel) => drawn(prometheus, panel, span)));
  return `<!doctype html><meta charset="utf-8"><style>${STYLE}</style><h1>${text(title)}<small>namespace All, target All, last ${shown(Number(seconds), 's')}</small></h1><main>${parts.join('')}</main>`;
}

try {
  const servers = await startAll();
  await broadcast(servers);
  const content = await page(servers.prometheus);
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'] });
  try {
    const shot = await browser.newPage({ viewport: { width: 24 * (COLUMN + GAP) + 24, height: 900 } });
    await shot.setContent(content);
    await shot.screenshot({ path: picture, fullPage: true });
  } finally {
    await browser.close();
  }
} finally {
  children.forEach((child) => child.kill('SIGKILL'));
  await Promise.all([...children].map((child) => child.gone));
  rmSync(work, { recursive: true, force: true });
}
