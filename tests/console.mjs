// Uses the console as people do, in Chromium, against a `fanwise serve` and a mock IM of its own.
//
//   node tests/console.mjs FANWISE MODULES [PICTURES]
//
// MODULES is the folder `node_modules` with playwright-core and axe-core; CHROMIUM names the browser,
// if it is not Debian's. Into the folder PICTURES, if it is given, go pictures of the main pages.
// Everything stays on this machine, in a folder that is removed.

import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { createServer as createWeb } from 'node:http';
import { createServer } from 'node:net';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import assert from 'node:assert/strict';

const [fanwise, modules, pictures] = process.argv.slice(2);
const require = createRequire(join(modules, 'x.js'));
const { chromium } = require('playwright-core');
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

/** Longest wait for anything. */
const BOUND = 30_000;

/** Texts that would run a script, if they ever became more than texts. */
const EVIL = '<img src=x onerror="window.pwned=1">';

const work = mkdtempSync(join(tmpdir(), 'fanwise-console.'));
const children = new Set();

function start(...args) {
  const child = spawn(fanwise, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  child.log = '';
  child.stderr.on('data', (text) => { child.log = (child.log + text).slice(-4000); });
  children.add(child);
  child.gone = new Promise((resolve) => child.on('exit', () => { children.delete(child); resolve(); }));
  return child;
}

const freePort = () => new Promise((resolve) => {
  const server = createServer().listen(0, '127.0.0.1', () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

async function until(what, check) {
  const end = Date.now() + BOUND;
  for (;;) {
    const found = await check().catch(() => null);
    if (found) return found;
    assert(Date.now() < end, `in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

// --- servers --------------------------------------------------------------------------------------

const [gateway, admin, mock] = [await freePort(), await freePort(), await freePort()];
const base = `http://127.0.0.1:${gateway}/`;
writeFileSync(join(work, 'fanwise.toml'), `
[embedded]
dir = "${work}/data"
[gateway]
listen = "127.0.0.1:${gateway}"
token = "all"
[admin]
listen = "127.0.0.1:${admin}"
[retry]
delay_max = "1s"
[apps.default]
target = "im"
[apps.default.list_sources.here]
hosts = ["127.0.0.1"]
private = true
[apps.shop]
target = "im"
token = "shop-token"
[targets.im]
type = "wukongim"
version = "v3"
sender = "news"
url = "http://127.0.0.1:${mock}"
call_timeout = "2s"
limit = "2000/s"
`);

const serve = () => start('serve', '--config', join(work, 'fanwise.toml'));
const headers = (token) => ({ Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' });

async function api(method, path, value, token = 'all') {
  const response = await fetch(base + path, { method, headers: headers(token), body: value && JSON.stringify(value) });
  const text = await response.text();
  assert(response.ok, `${method} ${path}: ${response.status} ${text}`);
  return text ? JSON.parse(text) : null;
}

const faults = (value) => fetch(`http://127.0.0.1:${mock}/_mock/faults`, {
  method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(value),
});

const job = (key, users, more = {}) => api('POST', 'v1/jobs', {
  v: 1, client_msg_no: key, audience: { users }, message: { type: 'text', text: 'hello' }, ...more,
});

const many = (count) => Array.from({ length: count }, (_, index) => `user-${index}`);

// --- browser --------------------------------------------------------------------------------------

const complaints = [];

async function open(browser, { width = 1280, look = 'light', language = 'en' } = {}) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, reducedMotion: 'reduce' });
  await context.addInitScript(([look, language]) => {
    localStorage.setItem('fanwise.look', look);
    localStorage.setItem('fanwise.language', language);
  }, [look, language]);
  const page = await context.newPage();
  page.setDefaultTimeout(BOUND);
  page.on('pageerror', (error) => complaints.push(error.stack));
  // A violation of the rules of the page is reported like this.
  page.on('console', (message) => message.text().includes('Content Security Policy') && complaints.push(message.text()));
  page.on('request', (request) => request.url().startsWith(base) || complaints.push(`asks for ${request.url()}`));
  return page;
}

async function signIn(page, token) {
  await page.goto(base);
  await page.getByLabel('Token', { exact: true }).or(page.getByLabel('令牌', { exact: true })).fill(token);
  await page.keyboard.press('Enter');
}

async function signedIn(browser, token, options) {
  const page = await open(browser, options);
  await signIn(page, token);
  await page.locator('header nav').waitFor();
  return page;
}

const visit = async (page, path, title) => {
  await page.goto(`${base}#/${path}`);
  await page.getByRole('heading', { level: 1, name: title }).waitFor();
};

const row = (page, text) => page.getByRole('row').filter({ hasText: text });
const notice = (page) => page.locator('dialog[open]');

/** What axe finds that keeps people out. */
async function accessible(page, what) {
  await page.evaluate(axe);
  const serious = await page.evaluate(async () => {
    const found = await window.axe.run(document, { resultTypes: ['violations'] });
    return found.violations.filter((it) => ['serious', 'critical'].includes(it.impact))
      .map((it) => `${it.id}: ${it.nodes.map((node) => `${node.html} ${node.failureSummary}`).join('\n')}`);
  });
  assert.deepEqual(serious, [], what);
}

// --- what people do -------------------------------------------------------------------------------

async function documentsNeedNoToken() {
  for (const [path, status] of [['', 200], ['docs', 200], ['openapi.json', 200], ['v1/about', 401], ['v1/events', 401]]) {
    assert.equal((await fetch(base + path)).status, status, path);
  }
}

async function aWrongTokenIsRefused(browser) {
  const page = await open(browser);
  await signIn(page, 'wrong');
  await page.getByText('This token is not known.').waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
  await page.context().close();
}

async function aBroadcastIsSubmittedAndWatched(page) {
  await visit(page, 'submit', 'Submit a job');
  await page.getByLabel('Text', { exact: true }).fill('Hello {{ name }}');
  await page.getByLabel('Format').selectOption('csv');
  await page.getByLabel('List').fill(`id,name\nu1,Ann\nu2,${EVIL}\nbad-1,Bob\n`);
  await page.getByLabel('Key (client_msg_no)').fill('first');
  await page.getByLabel('Rate').fill('1/s burst 1');
  await page.getByRole('button', { name: 'Dry run' }).click();
  await page.getByText('Hello Ann').waitFor();
  const estimate = await page.getByTestId('estimate').textContent();
  assert.match(estimate, /^\s*3 calls, about [\d.,]+ kB\. At least 2 s \(1\/s.* of the job\)\.\s*$/);
  await page.getByLabel('Rate').fill('');
  await page.getByRole('button', { name: 'Dry run' }).click();
  await page.getByText(`Hello ${EVIL}`).waitFor();
  await page.getByRole('button', { name: 'Send to 3 recipients' }).click();
  await page.getByRole('heading', { level: 1, name: 'first completed' }).waitFor();
  assert.equal(await page.getByTestId('percent').textContent(), '100 %');
  await page.getByLabel('User', { exact: true }).fill('bad-1');
  await page.getByRole('button', { name: 'Look up' }).click();
  await page.getByTestId('fate').filter({ hasText: 'failed' }).waitFor();
  await page.getByRole('button', { name: 'Count again in the ledger' }).click();
  await page.getByText('The accounts are exact.').waitFor();
}

async function aBadListIsExplained(page) {
  await visit(page, 'submit', 'Submit a job');
  await page.getByLabel('Text', { exact: true }).fill('Hello');
  await page.getByRole('button', { name: 'File', exact: true }).click();
  await page.getByLabel('File', { exact: true }).setInputFiles({ name: 'list.ndjson', mimeType: '', buffer: Buffer.from('"u1"\n{"no": 1}\n') });
  await page.getByRole('button', { name: 'Dry run' }).click();
  await page.getByRole('alert').filter({ hasText: 'line 2' }).waitFor();
}

async function aListIsFetchedByItsAddress(page) {
  const lists = createWeb((_, answer) => answer.end('id,name\nl1,Ann\nl2,Bob\n'));
  await new Promise((resolve) => lists.listen(0, '127.0.0.1', resolve));
  await visit(page, 'submit', 'Submit a job');
  await page.getByLabel('Text', { exact: true }).fill('Hello {{ name }}');
  await page.getByRole('button', { name: 'Address', exact: true }).click();
  await page.getByLabel('Address of the list').fill(`http://127.0.0.1:${lists.address().port}/users.csv`);
  await page.getByLabel('Key (client_msg_no)').fill('fetched');
  await page.getByLabel('SHA-256').fill('0'.repeat(64));
  await page.getByRole('button', { name: 'Dry run' }).click();
  await page.getByRole('alert').filter({ hasText: 'it is another version, or damaged' }).waitFor();
  await page.getByLabel('SHA-256').fill('');
  await page.getByRole('button', { name: 'Dry run' }).click();
  await page.getByText('Hello Bob').waitFor();
  await page.getByRole('button', { name: 'Send to 2 recipients' }).click();
  await page.getByRole('heading', { level: 1, name: 'fetched completed' }).waitFor();
  await page.getByText('/users.csv').waitFor();
  lists.close();
}

async function aJobIsPausedResumedAndCancelled(page) {
  const { job: id } = await job('slow', many(3000), { rate: '50/s' });
  await visit(page, 'jobs', 'Jobs');
  await row(page, 'slow').filter({ hasText: 'running' }).waitFor();
  await row(page, 'slow').getByRole('link').click();
  await page.getByRole('button', { name: 'Pause' }).click();
  await notice(page).getByLabel('Reason').fill(EVIL);
  await notice(page).getByRole('button', { name: 'Pause' }).click();
  await page.getByRole('heading', { level: 1, name: 'slow paused' }).waitFor();
  await page.getByTestId('hindrance').filter({ hasText: EVIL }).waitFor();
  await page.getByRole('button', { name: 'Resume' }).click();
  await notice(page).getByRole('button', { name: 'Resume' }).click();
  await page.getByRole('heading', { level: 1, name: 'slow running' }).waitFor();
  // It moves without the page being loaded again.
  const before = await page.getByTestId('percent').textContent();
  await until('progress', async () => (await page.getByTestId('percent').textContent()) !== before);
  await page.getByRole('button', { name: 'Spread' }).click();
  await notice(page).getByLabel('Spread until').fill('2h');
  await notice(page).getByRole('button', { name: 'Spread' }).click();
  await page.getByTestId('trail').filter({ hasText: 'pace' }).waitFor();
  await page.getByRole('button', { name: 'Cancel' }).click();
  // A dialog is left by a key, and nothing has happened.
  await page.keyboard.press('Escape');
  assert.equal((await api('GET', `v1/jobs/${id}`)).state, 'running');
  await page.getByRole('button', { name: 'Cancel' }).click();
  await notice(page).getByRole('button', { name: 'Cancel' }).click();
  await page.getByRole('heading', { level: 1, name: 'slow completed' }).waitFor();
  await page.getByText('cancelled', { exact: true }).first().waitFor();
}

async function theDeadAreSeenAndRedriven(page) {
  await visit(page, 'dead', 'Dead letters');
  await row(page, 'bad-1').filter({ hasText: 'first' }).waitFor();
  await page.getByRole('button', { name: 'By code' }).click();
  await faults({ refuse_prefix: null });
  const group = row(page, 'default → im');
  await group.getByRole('button', { name: 'Redrive' }).click();
  await notice(page).getByTestId('redrive').filter({ hasText: '1' }).waitFor();
  await notice(page).getByRole('button', { name: 'Redrive' }).click();
  await notice(page).getByRole('link', { name: 'first~r1' }).click();
  await page.getByRole('heading', { level: 1, name: 'first~r1 completed' }).waitFor();
  assert.equal((await api('GET', 'v1/jobs/first~r1?app=default')).accounts.sent, 1);
  await visit(page, 'dead?job=first&app=default', 'Dead letters');
  await page.getByRole('button', { name: 'Purge' }).click();
  await notice(page).getByLabel('Type 1 to confirm').fill('1');
  await notice(page).getByRole('button', { name: 'Purge' }).click();
  await page.getByText('No dead letters.').or(page.getByRole('alert')).waitFor();
}

async function aTargetIsParkedAndUnparked(page) {
  await visit(page, 'targets', 'Targets');
  await page.getByRole('button', { name: 'Park' }).click();
  await notice(page).getByLabel('Reason').fill(EVIL);
  await notice(page).getByRole('button', { name: 'Park' }).click();
  await page.getByTestId('parked').filter({ hasText: EVIL }).waitFor();
  await page.getByRole('button', { name: 'Unpark' }).click();
  await notice(page).getByRole('button', { name: 'Unpark' }).click();
  await page.getByText('moving').waitFor();
}

async function aTargetIsTestedWithAMessage(page) {
  await visit(page, 'targets', 'Targets');
  await page.getByRole('button', { name: 'Test message' }).click();
  await notice(page).getByLabel('User').fill('probe');
  await notice(page).getByLabel('Text').fill(EVIL);
  await notice(page).getByRole('button', { name: 'Send test message' }).click();
  const tested = notice(page).getByTestId('tested');
  await tested.filter({ hasText: 'probe got the message.' }).waitFor();
  await tested.filter({ hasText: `POST http://127.0.0.1:${mock}/` }).waitFor();
  await tested.filter({ hasText: /Answer after [\d,]+ ms/ }).waitFor();
  await accessible(page, 'a tested target');
  if (pictures) await page.screenshot({ path: join(pictures, 'target-test.png') });
  // What the target refuses is told with its code.
  await faults({ refuse_prefix: 'bad-' });
  await notice(page).getByLabel('User').fill('bad-probe');
  await notice(page).getByRole('button', { name: 'Send test message' }).click();
  await tested.filter({ hasText: /bad-probe did not get the message.*permanent/s }).waitFor();
  // So is what Fanwise refuses.
  await notice(page).getByLabel('User').fill('x'.repeat(5000));
  await notice(page).getByRole('button', { name: 'Send test message' }).click();
  await notice(page).getByRole('alert').filter({ hasText: 'audience' }).waitFor();
  await notice(page).getByRole('button', { name: 'Back' }).click();
  await faults({ refuse_prefix: null });
}

/** What the server says is in the language of the page; what people and backends say stays. */
async function theServerSpeaksChinese(browser) {
  const page = await signedIn(browser, 'all', { language: 'zh' });
  const { job: id } = await job('chinese', many(3000), { rate: '50/s' });
  await api('POST', `v1/jobs/${id}:pause`, { author: 'ana', reason: 'wrong picture', expires_in: '1h' });
  await api('POST', `v1/jobs/${id}:schedule`, { not_before: '2h' }).catch(() => null);
  await visit(page, `jobs/${id}`, /chinese/);
  const paused = page.getByTestId('hindrance').filter({ hasText: /任务已暂停（ana）：wrong picture，直到 \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/ });
  await paused.waitFor();
  await page.getByTestId('trail').filter({ hasText: /暂停.*ana: wrong picture/s }).filter({ hasText: /HTTP, 管理员/ }).waitFor();
  await page.getByLabel('用户').fill('user-2999');
  await page.getByRole('button', { name: '查询' }).click();
  await page.getByTestId('fate').filter({ hasText: '等待轮到它' }).waitFor();
  await visit(page, 'jobs', '任务');
  await row(page, 'chinese').filter({ hasText: '任务已暂停（ana）：wrong picture' }).waitFor();
  await api('POST', 'v1/targets/im:park', { author: 'bo', reason: 'upgrade' });
  await visit(page, 'targets', '目标');
  await page.getByTestId('parked').filter({ hasText: /人工停靠：.*bo.*upgrade/s }).waitFor();
  await visit(page, `jobs/${id}`, /chinese/);
  await page.getByTestId('hindrance').filter({ hasText: /目标 im 已停靠，直到 .*人工停靠：.*upgrade/ }).waitFor();
  await api('POST', 'v1/targets/im:unpark', {});
  await visit(page, 'about', '关于');
  await row(page, '网关').filter({ hasText: '正常' }).waitFor();
  await row(page, 'worker').filter({ hasText: '1 个 worker 在运行' }).waitFor();
  await visit(page, 'submit', '提交任务');
  await page.getByLabel('文本', { exact: true }).fill('你好 {{ name }}');
  await page.getByLabel('列表').fill('u1');
  await page.getByLabel('速率').fill('fast');
  await page.getByRole('button', { name: '试运行' }).click();
  await page.getByRole('alert').filter({ hasText: '任务无效' }).filter({ hasText: '“fast” 不是速率' }).waitFor();
  await api('POST', `v1/jobs/${id}:cancel`, {});
  // Dead letters have the answers of the backend.
  const pages = PAGES.map(([path]) => path).filter((path) => path !== 'dead');
  for (const path of [...pages, `jobs/${id}`]) {
    await page.goto(`${base}#/${path}`);
    await page.locator('main h1').waitFor();
    await page.getByRole('status').filter({ hasText: '加载中' }).waitFor({ state: 'detached' });
    const text = await page.locator('main').innerText();
    assert.doesNotMatch(text, /\d{4}-\d\d-\d\dT\d\d:\d\d/, `a time as the server writes it on ${path}`);
    assert.doesNotMatch(text, /\b(is|are|not|the|no|until)\b/, `English of the server on ${path}`);
  }
  await page.context().close();
}

async function aTemplateIsStoredAndShown(page) {
  await visit(page, 'templates', 'Templates');
  await page.getByRole('button', { name: 'New template' }).click();
  await notice(page).getByLabel('Name').fill('welcome');
  await notice(page).getByLabel('Message as JSON').fill(JSON.stringify({ type: 'text', text: EVIL }));
  await notice(page).getByRole('button', { name: 'Save' }).click();
  await row(page, 'welcome').getByRole('button', { name: 'Show' }).click();
  await notice(page).getByText('window.pwned').waitFor();
  await notice(page).getByRole('button', { name: 'Close' }).click();
}

async function aScheduledJobIsListed(page) {
  await job(`later ${EVIL}`, ['u1'], { not_before: new Date(Date.now() + 3_600_000).toISOString() });
  await visit(page, 'schedules', 'Schedules');
  await row(page, `later ${EVIL}`).waitFor();
}

async function anAppSeesOnlyItsOwn(browser) {
  await job('of-shop', ['u1'], { app: 'shop' });
  const other = (await job('of-default', ['u1'])).job;
  const page = await signedIn(browser, 'shop-token');
  await row(page, 'of-shop').waitFor();
  assert.equal(await row(page, 'of-default').count(), 0);
  assert.equal(await page.getByRole('link', { name: 'Targets' }).count(), 0);
  // It steers them, and nothing else.
  await job('shop-later', ['u1'], { app: 'shop', not_before: new Date(Date.now() + 3_600_000).toISOString() });
  await visit(page, 'schedules', 'Schedules');
  await row(page, 'shop-later').getByRole('link').click();
  await page.getByRole('button', { name: 'Cancel' }).click();
  await notice(page).getByLabel('Reason').fill('wrong text');
  await notice(page).getByRole('button', { name: 'Cancel' }).click();
  await page.getByRole('heading', { level: 1, name: 'shop-later completed' }).waitFor();
  await page.getByTestId('trail').filter({ hasText: 'wrong text' }).filter({ hasText: 'shop' }).waitFor();
  await visit(page, 'dead', 'Dead letters');
  await row(page, 'bad-').first().waitFor();
  assert.equal(await page.getByRole('button', { name: 'Redrive' }).count(), 0);
  await page.goto(`${base}#/jobs/${other}`);
  await page.getByRole('alert').filter({ hasText: 'not found' }).waitFor();
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByLabel('Token', { exact: true }).waitFor();
  await page.context().close();
}

async function tenStreamsMayBeOpen(page) {
  const ended = new AbortController();
  const streams = await Promise.all(Array.from({ length: 10 }, () => fetch(`${base}v1/events`, { headers: headers('all'), signal: ended.signal })));
  assert(streams.every((it) => it.ok));
  await visit(page, 'jobs', 'Jobs');
  const { job: id } = await job('eleventh', many(10));
  await row(page, 'eleventh').filter({ hasText: 'completed' }).waitFor();
  // Each stream tells the end of the job.
  await Promise.all(streams.map(async (stream) => {
    let text = '';
    for await (const chunk of stream.body) {
      text += Buffer.from(chunk).toString();
      if (text.includes(`"event":"completed","job":"${id}"`)) return;
    }
    assert.fail('a stream ended');
  }));
  ended.abort();
}

async function theServerGoesAndComesBack(page, server) {
  await visit(page, 'jobs', 'Jobs');
  server.kill('SIGKILL');
  await server.gone;
  await page.getByTestId('away').waitFor();
  await accessible(page, 'while the server is away');
  const next = serve();
  await page.getByTestId('away').waitFor({ state: 'detached' });
  await job('after', ['u1']);
  await row(page, 'after').first().waitFor();
  return next;
}

const PAGES = [['jobs', 'Jobs'], ['submit', 'Submit a job'], ['schedules', 'Schedules'], ['dead', 'Dead letters'], ['targets', 'Targets'], ['templates', 'Templates'], ['about', 'About']];

/** Every page, as everybody can use it: in both looks, on a phone, in both languages. */
async function everybodyCanUseIt(browser, id) {
  const pages = [...PAGES.map(([path]) => path), `jobs/${id}`];
  for (const options of [{ width: 1600 }, { width: 360, look: 'dark', language: 'zh' }]) {
    const page = await signedIn(browser, 'all', options);
    for (const path of pages) {
      await page.goto(`${base}#/${path}`);
      await page.locator('main h1').waitFor();
      await page.getByRole('status').filter({ hasText: /Loading|加载中/ }).waitFor({ state: 'detached' });
      const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert(over <= 0, `${path} is ${over} pixels too wide at ${options.width}`);
      await accessible(page, `${path} at ${options.width}`);
      if (pictures) await page.screenshot({ path: join(pictures, `${path.split('/').length > 1 ? 'job' : path}-${options.width}.png`) });
    }
    // Without a mouse: the first stop leads past the navigation.
    await page.goto(`${base}#/about`);
    await page.reload();
    await page.locator('main h1').waitFor();
    await page.keyboard.press('Tab');
    await page.keyboard.press('Enter');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'page');
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    await page.context().close();
  }
}

// --- all of it ------------------------------------------------------------------------------------

async function play(browser) {
  const page = await signedIn(browser, 'all');
  await documentsNeedNoToken();
  await aWrongTokenIsRefused(browser);
  await aBroadcastIsSubmittedAndWatched(page);
  await aBadListIsExplained(page);
  await aListIsFetchedByItsAddress(page);
  await aJobIsPausedResumedAndCancelled(page);
  await theDeadAreSeenAndRedriven(page);
  await aTargetIsParkedAndUnparked(page);
  await aTargetIsTestedWithAMessage(page);
  await aTemplateIsStoredAndShown(page);
  await aScheduledJobIsListed(page);
  await anAppSeesOnlyItsOwn(browser);
  await tenStreamsMayBeOpen(page);
  return page;
}

let server;
try {
  start('mock-im', '--listen', `127.0.0.1:${mock}`, '--wukongim', 'v3', '--refuse-prefix', 'bad-');
  server = serve();
  await until('a server that accepts jobs', () => job(EVIL, ['u1', `bad-${EVIL}`], { app: 'shop' }));
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'] });
  try {
    const page = await play(browser);
    await faults({ refuse_prefix: 'bad-' });
    await theServerSpeaksChinese(browser);
    const { job: id } = await job('seen', [...many(40), 'bad-2']);
    await everybodyCanUseIt(browser, id);
    server = await theServerGoesAndComesBack(page, server);
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    assert.deepEqual(complaints, []);
  } finally {
    await browser.close();
  }
  console.log('tests/console.mjs: passed');
} catch (error) {
  console.error(error);
  console.error(server?.log);
  process.exitCode = 1;
} finally {
  children.forEach((child) => child.kill('SIGKILL'));
  await Promise.all([...children].map((child) => child.gone));
  rmSync(work, { recursive: true, force: true });
}
