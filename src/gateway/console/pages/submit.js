// Makes a job: a message and its recipients, with a dry run before it is sent.

import { useEffect, useRef, useState } from '../vendor/hooks.js';
import { Act, Check, Field, html, Input, parse, Problem, Select, useLoad } from '../parts.js';
import { address, get, post, upload } from '../server.js';
import { bytes, duration, number, percent, t } from '../words.js';
import { limits, sentence } from '../sentences.js';

const freshKey = () => `console-${Date.now().toString(36)}`;

/** A text of JSON as its value; an empty one is none. */
const parsed = (text) => (text.trim() ? parse(text) : undefined);

/** The job of a form, without its recipients. */
function jobOf(form) {
  const message = {
    text: () => ({ type: 'text', text: form.text }),
    template: () => ({ template: form.template }),
    json: () => parsed(form.json) || {},
  }[form.kind]();
  const vars = parsed(form.vars);
  const when = (text) => (text ? new Date(text).toISOString() : undefined);
  return {
    v: 1, client_msg_no: form.key, app: form.app || undefined, target: form.target || undefined,
    message: { ...message, ...(vars && { vars }) },
    priority: form.priority, rate: form.rate || undefined,
    not_before: when(form.start), expires_at: when(form.end),
  };
}

const KINDS = { lines: ['text/plain', 'txt'], csv: ['text/csv', 'csv'], ndjson: ['application/x-ndjson', 'ndjson'] };

const endsInCsv = (name) => /\.csv$/i.test(name);

/** Whether the list of a form is a CSV, as far as its format or its name tells. */
const isCsvOf = (form) => ({
  paste: () => form.format === 'csv',
  file: () => endsInCsv(form.file?.name || ''),
  url: () => (form.urlFormat ? form.urlFormat === 'csv' : endsInCsv(form.url.trim().split(/[?#]/)[0])),
  all: () => false,
}[form.audience]());

/** Sends a form, or only has it checked. */
function send(form, dryRun, progress) {
  const job = jobOf(form);
  if (form.audience === 'all') {
    return post(address('v1/jobs', { dry_run: dryRun || undefined }), { ...job, audience: { all: true }, confirm_all: true });
  }
  if (form.audience === 'url') {
    const csv = isCsvOf(form) && { column: form.column || undefined, vars: form.columnsAreVars || undefined };
    const audience = { url: form.url.trim(), format: form.urlFormat || undefined, sha256: form.sha256.trim() || undefined, ...csv };
    return post(address('v1/jobs', { dry_run: dryRun || undefined }), { ...job, audience });
  }
  const [kind, ending] = KINDS[form.format];
  const list = form.audience === 'file' ? form.file : new Blob([form.list], { type: kind });
  const parts = new FormData();
  parts.append('job', JSON.stringify(job));
  parts.append('audience', list, form.audience === 'file' ? form.file.name : `audience.${ending}`);
  const query = isCsvOf(form) ? { column: form.column, vars: form.columnsAreVars || undefined } : {};
  return upload(address('v1/jobs', { ...query, dry_run: dryRun || undefined }), parts, progress);
}

const described = (message) => message.text || message.template || JSON.stringify(message);

/** What sending would take: calls, bytes, and the least time that the limits allow. */
function Estimate({ estimate }) {
  const { seconds } = estimate;
  const least = seconds ? t('At least {time} ({limit}).', { time: duration(seconds), limit: limits(estimate) }) : t('No limit holds it up: it takes as long as the answers of the target.');
  return html`<div data-testid="estimate">
    ${estimate.would_fail > 0 && html`<div class="notice warn">${t('{count} of {all} recipients would fail: they lack a value, or the message does not fit.', { count: number(estimate.would_fail), all: number(estimate.rendered) })}</div>`}
    <p>${t('{calls} calls, about {size}.', { calls: number(estimate.calls), size: bytes(estimate.bytes) })} ${least}</p>
  </div>`;
}

function Preview({ checked }) {
  const place = useRef(null);
  useEffect(() => place.current.scrollIntoView({ block: 'nearest' }), [checked]);
  return html`<section ref=${place} class="card checked" aria-label=${t('Dry run')} data-testid="checked"><h2>${t('Dry run')}</h2>
    <p>${t('{count} recipients at {target}. Nothing was sent.', { count: number(checked.recipients), target: checked.target })}</p>
    ${checked.estimate && html`<${Estimate} estimate=${checked.estimate} />`}
    ${(checked.warnings || []).map((it) => html`<div class="notice warn">${sentence(it)}</div>`)}
    <ul class="plain previews">${(checked.preview || []).map((it) => html`<li><small>${it.recipient}</small>
      ${it.problem ? html`<div class="bubble wrong">${sentence(it.problem)}</div>` : html`<div class="bubble">${described(it.message)}</div>`}</li>`)}</ul>
  </section>`;
}

function Message({ form, set, templates }) {
  const kinds = [['text', t('Text')], ['template', t('Stored message')], ['json', t('JSON')]];
  return html`<section class="card"><h2>${t('Message')}</h2>
    <div class="tabs" role="group" aria-label=${t('Kind of message')}>${kinds.map(([kind, name]) => html`<button type="button" aria-pressed=${form.kind === kind} onClick=${() => set('kind', kind)}>${name}</button>`)}</div>
    ${form.kind === 'text' && html`<${Field} label=${t('Text')} wide hint=${t('Write {{ name }} for a value of the recipient.')}><textarea rows="4" value=${form.text} onInput=${(event) => set('text', event.target.value)} required></textarea><//>`}
    ${form.kind === 'template' && html`<${Field} label=${t('Stored message')} wide><${Select} value=${form.template} change=${(value) => set('template', value)} options=${[['', '–'], ...templates.map((it) => [it.name, `${it.name} (${it.version})`])]} /><//>`}
    ${form.kind === 'json' && html`<${Field} label=${t('Message as JSON')} wide><textarea rows="6" class="code" spellcheck="false" value=${form.json} onInput=${(event) => set('json', event.target.value)}></textarea><//>`}
    <${Field} label=${t('Values for all recipients, as JSON')} wide><${Input} class="code" value=${form.vars} change=${(value) => set('vars', value)} placeholder='{"shop": "…"}' /><//>
  </section>`;
}

function Audience({ form, set }) {
  const ways = [['paste', t('Paste')], ['file', t('File')], ['url', t('Address')], ['all', t('All users')]];
  const formats = [['lines', t('One id a line')], ['csv', 'CSV'], ['ndjson', 'NDJSON']];
  return html`<section class="card"><h2>${t('Recipients')}</h2>
    <div class="tabs" role="group" aria-label=${t('Where the recipients come from')}>${ways.map(([way, name]) => html`<button type="button" aria-pressed=${form.audience === way} onClick=${() => set('audience', way)}>${name}</button>`)}</div>
    ${form.audience === 'paste' && html`<${Field} label=${t('Format')}><${Select} value=${form.format} change=${(value) => set('format', value)} options=${formats} /><//>
      <${Field} label=${t('List')} wide><textarea rows="8" class="code" spellcheck="false" value=${form.list} onInput=${(event) => set('list', event.target.value)} placeholder=${form.format === 'csv' ? 'id,name\nu1,Ann' : form.format === 'ndjson' ? '{"id": "u1", "vars": {"name": "Ann"}}' : 'u1\nu2'}></textarea><//>`}
    ${form.audience === 'file' && html`<${Field} label=${t('File')} wide hint=${t('.txt with one id a line, .csv or .ndjson')}><input type="file" accept=".txt,.csv,.ndjson,.jsonl" onChange=${(event) => set('file', event.target.files[0])} /><//>`}
    ${form.audience === 'url' && html`<${Field} label=${t('Address of the list')} wide hint=${t('The gateway fetches it, from the hosts that the configuration of the app lists.')}><${Input} type="url" value=${form.url} change=${(value) => set('url', value)} required /><//>
      <div class="line"><${Field} label=${t('Format')}><${Select} value=${form.urlFormat} change=${(value) => set('urlFormat', value)} options=${[['', t('As the list says')], ...formats]} /><//>
      <${Field} label="SHA-256" hint=${t('Only exactly this list is sent to. May be empty.')}><${Input} class="code" value=${form.sha256} change=${(value) => set('sha256', value)} pattern="\\s*([0-9a-fA-F]{64})?\\s*" /><//></div>`}
    ${form.audience === 'all' && html`<div class="notice warn">${t('All users of the target get it.')}</div>`}
    ${isCsvOf(form) && html`<div class="line"><${Field} label=${t('Column of the ids')} hint=${t('Its name, or its number.')}><${Input} value=${form.column} change=${(value) => set('column', value)} /><//>
      <${Check} label=${t('Other columns are values for the message')} value=${form.columnsAreVars} change=${(value) => set('columnsAreVars', value)} /></div>`}
  </section>`;
}

function Options({ form, set, about }) {
  const names = (all) => all.map((name) => [name, name]);
  const text = (name) => ({ value: form[name], change: (value) => set(name, value) });
  return html`<section class="card"><h2>${t('Job')}</h2><div class="grid">
    <${Field} label=${t('Key (client_msg_no)')} hint=${t('The same key and message is the same job.')}><${Input} ...${text('key')} required /><//>
    ${about.apps.length > 1 && html`<${Field} label=${t('App')}><${Select} ...${text('app')} options=${names(about.apps.map((it) => it.name))} /><//>`}
    ${about.targets.length > 1 && html`<${Field} label=${t('Target')}><${Select} ...${text('target')} options=${[['', t('Default of the app')], ...names(about.targets)]} /><//>`}
    <${Field} label=${t('Priority')}><${Select} ...${text('priority')} options=${[['high', t('high')], ['normal', t('normal')], ['bulk', t('bulk')]]} /><//>
    <${Field} label=${t('Rate')} hint=${t('Such as 200/s; empty for no limit of its own.')}><${Input} ...${text('rate')} /><//>
    <${Field} label=${t('Not before')}><${Input} type="datetime-local" ...${text('start')} /><//>
    <${Field} label=${t('Expires')}><${Input} type="datetime-local" ...${text('end')} /><//>
  </div></section>`;
}

const START = {
  kind: 'text', text: '', template: '', json: '', vars: '', audience: 'paste', format: 'lines', list: '', file: null,
  url: '', urlFormat: '', sha256: '',
  column: '', columnsAreVars: true, target: '', priority: 'normal', rate: '', start: '', end: '',
};

export function Submit({ about }) {
  const [form, setForm] = useState({ ...START, key: freshKey(), app: about.apps.find((it) => it.name === 'default')?.name || about.apps[0]?.name || '' });
  const [checked, setChecked] = useState(null);
  const [error, setError] = useState(null);
  const [left, setLeft] = useState(null);
  const shape = useRef(null);
  const templates = useLoad(() => get('v1/templates', { app: form.app }), [form.app]);
  const set = (name, value) => {
    setForm((before) => ({ ...before, [name]: value }));
    setChecked(null);
  };
  const run = async (dryRun) => {
    setError(null);
    if (!shape.current.reportValidity()) return null;
    if (form.audience === 'file' && !form.file) throw new SyntaxError(t('Choose a file first.'));
    setLeft(0);
    try {
      return await send(form, dryRun, setLeft);
    } finally {
      setLeft(null);
    }
  };
  const check = async () => setChecked(await run(true));
  const submit = async () => {
    const accepted = await run(false);
    if (accepted) location.hash = `#/jobs/${accepted.job}`;
  };
  const failed = (it) => {
    setChecked(null);
    setError(it);
  };
  return html`<h1>${t('Submit a job')}</h1>
    <form ref=${shape} class="submit" onSubmit=${(event) => event.preventDefault()}>
      <${Message} form=${form} set=${set} templates=${templates.data || []} />
      <${Audience} form=${form} set=${set} />
      <${Options} form=${form} set=${set} about=${about} />
      ${error && (error instanceof SyntaxError ? html`<div class="notice bad" role="alert">${error.message}</div>` : html`<${Problem} error=${error} />`)}
      ${left !== null && html`<div class="sending"><progress value=${left} max="1" aria-label=${t('Upload')}></progress> ${percent(left, 1)}</div>`}
      ${checked && html`<${Preview} checked=${checked} />`}
      <div class="actions bottom">
        <${Act} act=${check} failed=${failed} kind=${checked ? '' : 'primary'}>${t('Dry run')}<//>
        <${Act} act=${submit} failed=${failed} kind="primary" disabled=${!checked}>${checked ? t('Send to {count} recipients', { count: number(checked.recipients) }) : t('Send')}<//>
      </div>
    </form>`;
}
