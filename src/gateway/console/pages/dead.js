// Dead letters: filter them, see them by code, redrive and purge them.

import { useState } from '../vendor/hooks.js';
import { Ago, Badge, Cell, Empty, Field, html, Input, Loading, Problem, Select, Table, useLoad } from '../parts.js';
import { get, lines } from '../server.js';
import { number, t } from '../words.js';
import { answer, word } from '../sentences.js';
import { purge, redrive } from '../letters.js';

const PAGE = 100;

/** Letters that are read to count them by code. */
const GROUPED_MAX = 20_000;

async function groups(filter) {
  const found = new Map();
  let count = 0;
  await lines('v1/dead', filter, (row) => {
    const key = [row.app, row.target, row.outcome, row.code].join('\n');
    const group = found.get(key) || { ...row, count: 0, jobs: new Set() };
    group.count += 1;
    group.jobs.add(row.job);
    if (row.last_attempt_at > group.last_attempt_at) group.last_attempt_at = row.last_attempt_at;
    found.set(key, group);
    count += 1;
    return count < GROUPED_MAX;
  });
  const sorted = [...found.values()].sort((a, b) => b.count - a.count);
  return { groups: sorted, count, more: count >= GROUPED_MAX };
}

function Filters({ filter, apply, about }) {
  const [form, setForm] = useState(filter);
  const field = (name) => ({ value: form[name] || '', change: (value) => setForm({ ...form, [name]: value }) });
  const choice = (names, told = (name) => name) => [['', t('All')], ...names.map((name) => [name, told(name)])];
  const submit = (event) => {
    event.preventDefault();
    apply(Object.fromEntries(Object.entries(form).filter(([, value]) => value)));
  };
  return html`<form class="filters" role="search" onSubmit=${submit}>
    <${Field} label=${t('Job')}><${Input} ...${field('job')} /><//>
    ${about.apps.length > 1 && html`<${Field} label=${t('App')}><${Select} ...${field('app')} options=${choice(about.apps.map((it) => it.name))} /><//>`}
    ${about.targets.length > 1 && html`<${Field} label=${t('Target')}><${Select} ...${field('target')} options=${choice(about.targets)} /><//>`}
    <${Field} label=${t('Recipient')}><${Input} ...${field('recipient')} /><//>
    <${Field} label=${t('Code')}><${Input} ...${field('code')} /><//>
    <${Field} label=${t('Outcome')}><${Select} ...${field('outcome')} options=${[['', t('All')], ['failed', t('failed')], ['uncertain', t('uncertain')]]} /><//>
    <${Field} label=${t('Class')}><${Select} ...${field('class')} options=${choice(['permanent', 'transient', 'uncertain'], word)} /><//>
    <${Field} label=${t('Last attempt')}><${Select} ...${field('since')} options=${[['', t('Any time')], ['1h', t('Last hour')], ['24h', t('Last 24 hours')], ['168h', t('Last 7 days')]]} /><//>
    <button class="primary">${t('Find')}</button>
  </form>`;
}

function Letters({ filter }) {
  const [cursors, setCursors] = useState([]);
  const cursor = cursors[cursors.length - 1];
  const { data, error, loading } = useLoad(() => get('v1/dead', { ...filter, limit: PAGE, cursor }), [filter, cursor]);
  const heads = [t('Recipient'), t('Job'), t('Outcome'), t('Code'), t('Answer of the backend'), t('Attempts'), t('Last attempt')];
  return html`<${Problem} error=${error} />
    ${!data && loading && html`<${Loading} />`}
    ${data && data.letters.length === 0 && html`<${Empty}>${t('No dead letters.')}<//>`}
    ${data && data.letters.length > 0 && html`<${Table} heads=${heads} label=${t('Dead letters')}>${data.letters.map((it) => html`<tr key=${it.job + it.recipient}>
      <${Cell} head=${heads[0]} class="name">${it.recipient}<//>
      <${Cell} head=${heads[1]}><a href=${`#/jobs/${it.job}`}>${it.client_msg_no}</a><small>${it.app} → ${it.target}</small><//>
      <${Cell} head=${heads[2]}><${Badge} state=${it.outcome} /><//>
      <${Cell} head=${heads[3]}><code>${it.code}</code><small>${[word(it.class), answer(it.code)].filter(Boolean).join(' · ')}</small><//>
      <${Cell} head=${heads[4]} class="text">${it.text}<//>
      <${Cell} head=${heads[5]} class="figure">${it.attempts}<//>
      <${Cell} head=${heads[6]} class="figure"><${Ago} at=${it.last_attempt_at} /><//></tr>`)}<//>`}
    ${(cursors.length > 0 || data?.next) && html`<div class="pages">
      <button type="button" disabled=${cursors.length === 0} onClick=${() => setCursors(cursors.slice(0, -1))}>← ${t('Previous')}</button>
      <button type="button" disabled=${!data?.next} onClick=${() => setCursors([...cursors, data.next])}>${t('More')} →</button>
    </div>`}`;
}

function Groups({ filter, apply, orders }) {
  const { data, error, loading } = useLoad(() => groups(filter), [filter]);
  const heads = [t('Code'), t('Answer of the backend'), t('App and target'), t('Outcome'), t('Recipients'), t('Jobs'), t('Last attempt'), ''];
  return html`<${Problem} error=${error} />
    ${!data && loading && html`<${Loading} />`}
    ${data && data.groups.length === 0 && html`<${Empty}>${t('No dead letters.')}<//>`}
    ${data?.more && html`<p class="sub">${t('These are the first {count} letters.', { count: number(data.count) })}</p>`}
    ${data && data.groups.length > 0 && html`<${Table} heads=${heads} label=${t('Dead letters by code')}>${data.groups.map((it) => {
      const own = { ...filter, app: it.app, target: it.target, outcome: it.outcome, code: it.code };
      return html`<tr key=${it.app + it.target + it.outcome + it.code}>
        <${Cell} head=${heads[0]} class="name"><code>${it.code}</code><small>${answer(it.code)}</small><//>
        <${Cell} head=${heads[1]} class="text">${it.text}<//>
        <${Cell} head=${heads[2]}>${it.app} → ${it.target}<//>
        <${Cell} head=${heads[3]}><${Badge} state=${it.outcome} /><//>
        <${Cell} head=${heads[4]} class="figure">${number(it.count)}<//>
        <${Cell} head=${heads[5]} class="figure">${number(it.jobs.size)}<//>
        <${Cell} head=${heads[6]} class="figure"><${Ago} at=${it.last_attempt_at} /><//>
        <${Cell} head=""><div class="actions"><button type="button" onClick=${() => apply(own)}>${t('Show')}</button>${orders(own)}</div><//></tr>`;
    })}<//>`}`;
}

export function Dead({ about, query }) {
  const { by, ...first } = query;
  const [filter, setFilter] = useState(first);
  const [byCode, setByCode] = useState(by === 'code');
  const [turn, setTurn] = useState(0);
  const done = () => setTurn((it) => it + 1);
  const orders = (own) => about.role === 'administrator' && html`<button type="button" onClick=${() => redrive(own, done)}>${t('Redrive')}…</button>
    <button type="button" class="danger" onClick=${() => purge(own, done)}>${t('Purge')}…</button>`;
  const show = (own) => {
    setFilter(own);
    setByCode(false);
  };
  return html`<div class="title"><h1>${t('Dead letters')}</h1><div class="actions">${orders(filter)}</div></div>
    <${Filters} key=${JSON.stringify(filter)} filter=${filter} apply=${setFilter} about=${about} />
    <div class="tabs" role="group" aria-label=${t('View')}>
      <button type="button" aria-pressed=${!byCode} onClick=${() => setByCode(false)}>${t('Letters')}</button>
      <button type="button" aria-pressed=${byCode} onClick=${() => setByCode(true)}>${t('By code')}</button>
    </div>
    ${byCode
      ? html`<${Groups} key=${`g${turn}`} filter=${filter} apply=${show} orders=${orders} />`
      : html`<${Letters} key=${`l${turn}${JSON.stringify(filter)}`} filter=${filter} />`}`;
}
