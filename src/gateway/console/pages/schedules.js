// The jobs whose start time is still to come.

import { Cell, Empty, html, Loading, Problem, Table, useClock, useLoad } from '../parts.js';
import { get } from '../server.js';
import { number, relative, t, time } from '../words.js';
import { Order, steersJobs } from '../steer.js';

/** Jobs, and pages of the list, that are read. */
const [JOBS_MAX, PAGES_MAX] = [500, 60];

async function load() {
  const jobs = [];
  let cursor;
  for (let turn = 0; turn < PAGES_MAX && jobs.length < JOBS_MAX; turn += 1) {
    const page = await get('v1/jobs', { scheduled: true, limit: 200, cursor });
    jobs.push(...page.jobs);
    cursor = page.next;
    if (!cursor) break;
  }
  return { jobs: jobs.sort((a, b) => (a.not_before < b.not_before ? -1 : 1)), more: Boolean(cursor) };
}

export function Schedules({ about, turn }) {
  const { data, error, loading, reload } = useLoad(load, [turn]);
  useClock();
  const heads = [t('Job'), t('Starts'), t('Recipients'), ''];
  return html`<h1>${t('Schedules')}</h1><${Problem} error=${error} />
    ${!data && loading && html`<${Loading} />`}
    ${data && data.jobs.length === 0 && html`<${Empty}>${t('No job waits for its start time.')}<//>`}
    ${data?.more && html`<p class="sub">${t('There may be more in older jobs.')}</p>`}
    ${data && data.jobs.length > 0 && html`<${Table} heads=${heads} label=${t('Schedules')}>${data.jobs.map((job) => html`<tr key=${job.job}>
      <${Cell} head=${heads[0]} class="name"><a href=${`#/jobs/${job.job}`}>${job.client_msg_no}</a><small>${job.app} → ${job.target}</small><//>
      <${Cell} head=${heads[1]}>${time(job.not_before)} <small>${relative(job.not_before)}</small><//>
      <${Cell} head=${heads[2]} class="figure">${number(job.accounts.total)}<//>
      <${Cell} head=""><div class="actions">${steersJobs(about) && html`<${Order} kind="jobs" name=${job.job} shown=${job.client_msg_no} verb="cancel" done=${reload} />`}</div><//></tr>`)}<//>`}`;
}
