// All jobs, newest first, with those that run moving.

import { useEffect, useRef, useState } from '../vendor/hooks.js';
import { Ago, Badge, Bar, Cell, Empty, Field, html, Input, Loading, Problem, Select, stateOf, Table, useClock, useLoad, useTick } from '../parts.js';
import { get, on } from '../server.js';
import { record, settled, speedOf } from '../history.js';
import { duration, number, percent, perSecond, t } from '../words.js';
import { hindrance } from '../sentences.js';

const PAGE = 50;

/** Pages that are followed by themselves, when a filter finds nothing on them. */
const FOLLOWED = 20;

/** A page of jobs; of a long list the server looks at a part at a time, which may hold none. */
async function page(filter, cursor) {
  let found = { jobs: [], next: cursor };
  for (let turn = 0; turn < FOLLOWED; turn += 1) {
    found = await get('v1/jobs', { ...filter, limit: PAGE, cursor: found.next });
    if (found.jobs.length || !found.next) break;
  }
  const now = Date.now();
  found.jobs.filter((job) => job.state !== 'completed').forEach((job) => record(job, now));
  return found;
}

/** A job after one more event of it. */
const after = (job, event) => ({
  ...job,
  accounts: event.accounts,
  pending: event.pending,
  state: event.event === 'completed' ? 'completed' : 'running',
  progress_at: event.at,
  hindrances: event.event === 'completed' ? [] : job.hindrances,
});

export function speed(job) {
  if (job.state === 'completed') return undefined;
  const own = speedOf(job.job);
  return own === undefined ? job.recipients_per_second : own;
}

export const eta = (job) => {
  const now = speed(job);
  return now > 0 ? job.pending / now : undefined;
};

export function Row({ job, withApp }) {
  const rate = speed(job);
  const cause = (job.hindrances || [])[0];
  return html`<tr>
    <${Cell} head=${t('Job')} class="name"><a href=${`#/jobs/${job.job}`}>${job.client_msg_no}</a><small>${withApp ? `${job.app} → ` : ''}${job.target}</small><//>
    <${Cell} head=${t('State')} class="state"><${Badge} state=${stateOf(job)} />${cause && html`<small class="cause" title=${hindrance(cause)}>${hindrance(cause)}</small>`}<//>
    <${Cell} head=${t('Progress')} class="progress"><${Bar} accounts=${job.accounts} pending=${job.pending} />
      <small>${percent(settled(job.accounts), job.accounts.total)} · ${number(settled(job.accounts))} / ${number(job.accounts.total)}${
        job.accounts.failed + job.accounts.uncertain > 0 ? html` · <span class="ill">${number(job.accounts.failed + job.accounts.uncertain)} ${t('dead')}</span>` : ''}</small><//>
    <${Cell} head=${t('Rate')} class="figure">${rate ? perSecond(rate) : '–'}<//>
    <${Cell} head=${t('Time left')} class="figure">${job.state === 'completed' ? '–' : duration(eta(job))}<//>
    <${Cell} head=${t('Accepted')} class="figure"><${Ago} at=${job.accepted_at} /><//>
  </tr>`;
}

const SINCE = [['', () => t('Any time')], ['1h', () => t('Last hour')], ['24h', () => t('Last 24 hours')], ['168h', () => t('Last 7 days')]];

function Filters({ about, filter, set }) {
  const options = (names) => [['', t('All')], ...names.map((name) => [name, name])];
  const [key, setKey] = useState(filter.client_msg_no || '');
  const find = (event) => {
    event.preventDefault();
    if (/^[0-9a-f]{24}$/.test(key.trim())) location.hash = `#/jobs/${key.trim()}`;
    else set('client_msg_no', key.trim());
  };
  return html`<form class="filters" role="search" onSubmit=${find}>
    <${Field} label=${t('Key or id')}><${Input} type="search" value=${key} change=${(value) => { setKey(value); if (!value) set('client_msg_no', ''); }} placeholder="spring-sale" /><//>
    <${Field} label=${t('State')}><${Select} value=${filter.state || ''} change=${(value) => set('state', value)} options=${[['', t('All')], ['accepted', t('accepted')], ['running', t('running')], ['completed', t('completed')]]} /><//>
    ${about.apps.length > 1 && html`<${Field} label=${t('App')}><${Select} value=${filter.app || ''} change=${(value) => set('app', value)} options=${options(about.apps.map((it) => it.name))} /><//>`}
    ${about.targets.length > 1 && html`<${Field} label=${t('Target')}><${Select} value=${filter.target || ''} change=${(value) => set('target', value)} options=${options(about.targets)} /><//>`}
    <${Field} label=${t('Accepted')}><${Select} value=${filter.since || ''} change=${(value) => set('since', value)} options=${SINCE.map(([value, name]) => [value, name()])} /><//>
    <button class="primary">${t('Find')}</button>
  </form>`;
}

export function Jobs({ about, turn }) {
  const [filter, setFilter] = useState({});
  const [cursors, setCursors] = useState([]);
  const cursor = cursors[cursors.length - 1];
  const { data, error, loading, reload } = useLoad(() => page(filter, cursor), [filter, cursor, turn]);
  const [jobs, setJobs] = useState([]);
  const known = useRef(new Set());
  useClock();
  useEffect(() => {
    if (data) setJobs(data.jobs);
  }, [data]);
  known.current = new Set(jobs.map((job) => job.job));
  useEffect(() => {
    let timer = 0;
    const ended = on('job', (event) => {
      if (known.current.has(event.job)) {
        setJobs((before) => before.map((job) => (job.job === event.job ? after(job, event) : job)));
      } else if (!cursor && event.event === 'accepted' && !timer) {
        // A new job: the list is read again, at most every second.
        timer = setTimeout(() => { timer = 0; reload(); }, 1000);
      }
    });
    return () => {
      ended();
      clearTimeout(timer);
    };
  }, [reload, cursor]);
  // What stops a job changes without an event of it.
  useTick(() => jobs.some((job) => job.state !== 'completed') && reload(), 5000);
  const set = (name, value) => {
    setCursors([]);
    setFilter({ ...filter, [name]: value || undefined });
  };
  const heads = [t('Job'), t('State'), t('Progress'), t('Rate'), t('Time left'), t('Accepted')];
  return html`<div class="title"><h1>${t('Jobs')}</h1><a class="button primary" href="#/submit">${t('Submit a job')}</a></div>
    <${Filters} about=${about} filter=${filter} set=${set} />
    <${Problem} error=${error} />
    ${!data && loading && html`<${Loading} />`}
    ${data && jobs.length === 0 && html`<${Empty}>${Object.values(filter).some(Boolean) ? t('No job fits these filters.') : t('No job was accepted yet.')}<//>`}
    ${jobs.length > 0 && html`<${Table} heads=${heads} label=${t('Jobs')}>${jobs.map((job) => html`<${Row} key=${job.job} job=${job} withApp=${about.apps.length > 1} />`)}<//>`}
    ${(cursors.length > 0 || data?.next) && html`<div class="pages">
      <button type="button" disabled=${cursors.length === 0} onClick=${() => setCursors(cursors.slice(0, -1))}>← ${t('Newer')}</button>
      <button type="button" disabled=${!data?.next} onClick=${() => setCursors([...cursors, data.next])}>${t('Older')} →</button>
    </div>`}`;
}
