// One job: how far it is, what stops it, what went wrong, and what can be done about it.

import { useEffect, useState } from '../vendor/hooks.js';
import { Act, Ago, Badge, Bar, Cell, Field, html, Input, Loading, nameOf, Problem, stateOf, Table, useClock, useLoad, useTick } from '../parts.js';
import { followJob, get, on } from '../server.js';
import { OUTCOMES, pointsOf, record, settled } from '../history.js';
import { duration, number, percent, perSecond, t, time } from '../words.js';
import { answer, fate as explained, hindrance, sentence, value, word } from '../sentences.js';
import { Curve } from '../curve.js';
import { Order, steersJobs } from '../steer.js';
import { redrive } from '../letters.js';
import { eta, speed } from './jobs.js';

const path = (job) => `v1/jobs/${encodeURIComponent(job)}`;

const Figure = ({ name, value, kind = '' }) => html`<div class=${`figure-box ${kind}`}><dt>${name}</dt><dd>${value}</dd></div>`;

function Accounts({ job }) {
  const done = settled(job.accounts);
  const rate = speed(job);
  return html`<section class="card" aria-label=${t('Accounts')}>
    <div class="head-line"><strong class="large" data-testid="percent">${percent(done, job.accounts.total)}</strong>
      <span>${number(done)} / ${number(job.accounts.total)}</span>
      ${job.state !== 'completed' && html`<span>${rate === undefined || rate === null ? '' : perSecond(rate)}</span><span>${eta(job) === undefined ? '' : t('{time} left', { time: duration(eta(job)) })}</span>`}
    </div>
    <${Bar} tall accounts=${job.accounts} pending=${job.pending} />
    <dl class="figures">
      <${Figure} name=${t('pending')} value=${number(job.pending)} />
      ${OUTCOMES.map((outcome) => html`<${Figure} name=${html`<i class=${`of-${outcome}`}></i>${nameOf(outcome)}`} value=${number(job.accounts[outcome])} />`)}
    </dl>
  </section>`;
}

function Hindrances({ job }) {
  if (!job.hindrances.length && !job.warnings.length) return null;
  return html`<section class="card" aria-label=${t('What limits it')}>
    <h2>${t('What limits it')}</h2>
    <ul class="plain">${job.hindrances.map((it) => html`<li data-testid="hindrance"><span class="tag">${word(it.cause)}</span> ${hindrance(it)}</li>`)}
      ${job.warnings.map((it) => html`<li><span class="tag">${t('warning')}</span> ${sentence(it)}</li>`)}</ul>
  </section>`;
}

function Facts({ job }) {
  const facts = [
    [t('Job'), html`<code>${job.job}</code>`], [t('App'), job.app], [t('Target'), job.target],
    [t('Accepted'), time(job.accepted_at)],
    job.not_before && [t('Not before'), time(job.not_before)],
    job.expires_at && [t('Expires'), time(job.expires_at)],
    job.window && [t('Sending hours'), job.window],
    job.pace_until && [t('Spread until'), time(job.pace_until)],
    job.tags && [t('Tags'), job.tags.join(', ')],
    job.progress_at && [t('Last outcome'), time(job.progress_at)],
    job.completed_at && [t('Completed'), `${time(job.completed_at)} (${duration((new Date(job.completed_at) - new Date(job.accepted_at)) / 1000)})`],
    job.category && [t('Category'), job.category],
    job.rate && [t('Own rate'), job.rate],
    job.template && [t('Version of the stored message'), job.template],
    job.fetched && [t('List'), `${job.fetched.url}${job.fetched.etag ? ` (${job.fetched.etag})` : ''}`],
    job.callback_url && [t('Callback'), job.callback_url], job.reply_to && [t('Reply to'), job.reply_to],
  ].filter(Boolean);
  return html`<section class="card" aria-label=${t('Facts')}><h2>${t('Facts')}</h2><dl class="facts">${facts.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl><${Verify} job=${job} /></section>`;
}

/** The new value of a change: a time, a word, or a sentence. */
const changed = (detail) => (/^[a-z_]+$/.test(detail) ? word(detail) : sentence(value(detail)));

const whose = (caller) => (caller === 'administrator' ? word(caller) : caller);

function Trail({ job }) {
  if (!job.audit_trail?.length) return null;
  return html`<section class="card" aria-label=${t('Audit trail')}><h2>${t('Audit trail')}</h2>
    <ul class="plain">${job.audit_trail.map((it) => html`<li data-testid="trail"><span class="tag">${word(it.action)}</span> ${it.detail && changed(it.detail)} ${[it.author, it.reason].filter(Boolean).join(': ')}
      <small>${time(it.at)} · ${[word(it.via), it.caller && whose(it.caller), it.address].filter(Boolean).join(', ')}</small></li>`)}</ul>
  </section>`;
}

function Verify({ job }) {
  const [result, setResult] = useState(null);
  const [error, setError] = useState(null);
  const act = async () => {
    setError(null);
    setResult(await get(`${path(job.job)}/verification`));
  };
  return html`<div><${Act} act=${act} failed=${setError}>${t('Count again in the ledger')}<//>
    <div role="status">${result && (result.differences.length
      ? html`<ul>${result.differences.map((it) => html`<li>${sentence(it)}</li>`)}</ul>`
      : html`<p class="fine">${t('The accounts are exact.')}</p>`)}</div>
    <${Problem} error=${error} /></div>`;
}

function Recipient({ job }) {
  const [user, setUser] = useState('');
  const [fate, setFate] = useState(null);
  const [error, setError] = useState(null);
  const look = async (event) => {
    event.preventDefault();
    setError(null);
    setFate(null);
    try {
      setFate(await get(`${path(job.job)}/recipients/${encodeURIComponent(user)}`));
    } catch (failed) {
      setError(failed);
    }
  };
  return html`<section class="card" aria-label=${t('One recipient')}>
    <h2>${t('One recipient')}</h2>
    <form class="line" onSubmit=${look}><${Field} label=${t('User')}><${Input} value=${user} change=${setUser} required /><//><button>${t('Look up')}</button></form>
    <div role="status">${fate && html`<p data-testid="fate"><${Badge} state=${fate.state} /> <strong>${fate.recipient}</strong> ${explained(fate)}</p>`}</div>
    <${Problem} error=${error} />
  </section>`;
}

function DeadOfJob({ job, about }) {
  const count = job.accounts.failed + job.accounts.uncertain;
  const { data, error, reload } = useLoad(async () => (count ? get('v1/dead', { job: job.job, limit: 10 }) : null), [count, job.job]);
  if (!count) return null;
  const letters = data ? data.letters : [];
  return html`<section class="card" aria-label=${t('Dead letters')}>
    <div class="title"><h2>${t('Dead letters')}</h2><div class="actions">
      <a class="button" href=${`#/dead?job=${job.job}`}>${t('All of them')}</a>
      ${about.role === 'administrator' && html`<button type="button" onClick=${() => redrive({ job: job.job }, reload)}>${t('Redrive')}…</button>`}</div></div>
    <${Problem} error=${error} />
    ${letters.length > 0 && html`<${Table} heads=${[t('Recipient'), t('Outcome'), t('Code'), t('Answer of the backend')]} label=${t('Dead letters')}>
      ${letters.map((it) => html`<tr><${Cell} head=${t('Recipient')} class="name">${it.recipient}<//><${Cell} head=${t('Outcome')}><${Badge} state=${it.outcome} /><//><${Cell} head=${t('Code')}><code>${it.code}</code> <small>${answer(it.code)}</small><//><${Cell} head=${t('Answer of the backend')}>${it.text}<//></tr>`)}<//>`}
  </section>`;
}

function Orders({ job, done }) {
  if (job.state === 'completed') return null;
  const stopped = job.hindrances.some((it) => it.cause === 'paused' || it.cause === 'parked');
  const verbs = [stopped ? 'resume' : 'pause', 'rate', 'pace', 'cancel'];
  return html`<div class="actions">${verbs.map((verb) => html`<${Order} key=${verb} kind="jobs" name=${job.job} shown=${job.client_msg_no} verb=${verb} done=${done} />`)}</div>`;
}

export function Job({ name, about }) {
  const { data, error, loading, reload } = useLoad(() => get(path(name)), [name]);
  const [heard, setHeard] = useState(null);
  useClock();
  const running = data && data.state !== 'completed';
  useEffect(() => {
    if (data) record(data);
  }, [data]);
  useEffect(() => (running ? followJob(data.job) : undefined), [running, data?.job]);
  useEffect(() => on('job', (event) => {
    if (event.job !== data?.job) return;
    setHeard(event);
    if (event.event === 'completed') reload();
  }), [data?.job, reload]);
  // What limits a job changes without an event of it.
  useTick(() => running && reload(), 2000);
  if (!data) return loading ? html`<${Loading} />` : html`<${Problem} error=${error} />`;
  const isNewer = heard && settled(heard.accounts) > settled(data.accounts);
  const job = isNewer ? { ...data, accounts: heard.accounts, pending: heard.pending } : data;
  return html`<p><a href="#/jobs">← ${t('Jobs')}</a></p>
    <div class="title"><h1>${job.client_msg_no} <${Badge} state=${stateOf(job)} /></h1>
      ${steersJobs(about) && html`<${Orders} job=${job} done=${reload} />`}</div>
    <p class="sub">${job.app} → ${job.target} · ${t('accepted')} <${Ago} at=${job.accepted_at} /></p>
    <${Problem} error=${error} />
    <div class="columns">
      <div><${Accounts} job=${job} /><${Hindrances} job=${job} />
        ${(running || pointsOf(job.job).length > 1) && html`<section class="card" aria-label=${t('Outcomes over time')}><h2>${t('Outcomes over time')}</h2><${Curve} points=${pointsOf(job.job)} /></section>`}
        <${DeadOfJob} job=${job} about=${about} /></div>
      <div><${Recipient} job=${job} /><${Facts} job=${job} /><${Trail} job=${job} /></div>
    </div>`;
}
