// The targets: whether they move, how fast, and what holds them.

import { Badge, html, Loading, Problem, useClock, useLoad, useTick } from '../parts.js';
import { get } from '../server.js';
import { liveJobs, speedOf } from '../history.js';
import { number, perSecond, relative, t, time } from '../words.js';
import { park, word } from '../sentences.js';
import { Order } from '../steer.js';
import { TestMessage } from '../test_message.js';

/** What the jobs of a target send together. */
const speed = (jobs) => jobs.reduce((sum, job) => sum + (speedOf(job.job) ?? 0), 0);

function Target({ target, reload }) {
  const jobs = liveJobs().filter((job) => job.target === target.name);
  const { parked, paused, live_limit: live } = target;
  const verbs = [paused ? 'resume' : 'pause', parked ? 'unpark' : 'park', 'rate'];
  const limit = live ? live.rate : target.limit;
  return html`<section class="card target" aria-label=${target.name}>
    <div class="title"><h2>${target.name} <${Badge} state=${target.state} /></h2>
      <div class="actions">${verbs.map((verb) => html`<${Order} key=${verb} kind="targets" name=${target.name} verb=${verb} done=${reload} />`)}<${TestMessage} target=${target.name} /></div></div>
    ${paused && html`<div class="notice warn">${t('paused')}${paused.author ? ` · ${paused.author}` : ''}${paused.reason ? `: ${paused.reason}` : ''}${paused.until ? ` · ${relative(paused.until)}` : ''}</div>`}
    ${parked && html`<div class="notice warn" data-testid="parked"><strong>${t('parked until {time}', { time: time(parked.until) })}</strong> (${relative(parked.until)})
      <div>${park(parked)}</div></div>`}
    <dl class="figures">
      <div class="figure-box"><dt>${t('Recipients per second now')}</dt><dd>${perSecond(speed(jobs))}</dd></div>
      <div class="figure-box"><dt>${live ? t('Limit set live') : t('Limit')}</dt><dd>${limit || '–'}</dd></div>
      <div class="figure-box"><dt>${t('Recipients per call')}</dt><dd>${target.recipients_per_call}</dd></div>
      <div class="figure-box"><dt>${t('Unfinished jobs')}</dt><dd>${number(jobs.length)}</dd></div>
    </dl>
    <p class="sub">${target.type}${target.address ? ` · ${target.address}` : ''} · ${t('in doubt')}: ${word(target.on_uncertain)}</p>
  </section>`;
}

export function Targets() {
  const { data, error, loading, reload } = useLoad(() => get('v1/targets'), []);
  useTick(reload, 2000);
  useClock();
  return html`<h1>${t('Targets')}</h1><${Problem} error=${error} />
    ${!data && loading && html`<${Loading} />`}
    <div class="cards">${(data || []).map((target) => html`<${Target} key=${target.name} target=${target} reload=${reload} />`)}</div>`;
}
