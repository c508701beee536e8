// Redrives and purges dead letters, each after a dry run.

import { Act, Check, dialog, Field, html, Input, Loading, Problem } from './parts.js';
import { useEffect, useState } from './vendor/hooks.js';
import { post } from './server.js';
import { number, t } from './words.js';
import { word } from './sentences.js';

const selected = (filter) => Object.fromEntries(Object.entries(filter).filter(([, value]) => value));

function Filter({ filter }) {
  const fields = Object.entries(selected(filter));
  return html`<p>${fields.length
    ? fields.map(([name, value]) => html`<code>${word(name)} = ${['outcome', 'class'].includes(name) ? word(value) : value}</code> `)
    : t('All dead letters.')}</p>`;
}

function Redrive({ filter, close, done }) {
  const [options, setOptions] = useState({ uncertain: filter.outcome === 'uncertain', purge: false });
  const [dry, setDry] = useState(null);
  const [error, setError] = useState(null);
  const [result, setResult] = useState(null);
  const body = { ...selected(filter), ...options };
  useEffect(() => {
    setDry(null);
    setError(null);
    let current = true;
    post('v1/dead:redrive', { ...body, dry_run: true }).then((it) => current && setDry(it), (it) => current && setError(it));
    return () => { current = false; };
  }, [options.uncertain]);
  const run = async () => {
    setResult(await post('v1/dead:redrive', { ...body, confirm: true }));
    done();
  };
  const told = result || dry;
  return html`<${Filter} filter=${filter} />
    ${!result && html`<div class="checks">
      <${Check} label=${t('Also uncertain recipients. They may get the message twice.')} value=${options.uncertain} change=${(uncertain) => setOptions({ ...options, uncertain })} />
      <${Check} label=${t('Remove the letters once the new job is accepted.')} value=${options.purge} change=${(purge) => setOptions({ ...options, purge })} />
    </div>`}
    ${!told && !error && html`<${Loading} />`}
    ${told && html`<dl class="facts" data-testid="redrive">
      <dt>${result ? t('Recipients that are sent to again') : t('Recipients that would be sent to again')}</dt><dd>${number(told.recipients)}</dd>
      <dt>${t('Redriven before')}</dt><dd>${number(told.redriven_before)}</dd>
      ${told.uncertain_left_out > 0 && html`<dt>${t('Uncertain, left out')}</dt><dd>${number(told.uncertain_left_out)}</dd>`}
    </dl>`}
    ${told && html`<ul class="plain">${told.jobs.slice(0, 10).map((it) => html`<li>
      ${it.job ? html`<a href=${`#/jobs/${it.job}`} onClick=${close}>${it.client_msg_no}</a>` : it.client_msg_no}: ${number(it.recipients)}</li>`)}</ul>`}
    <${Problem} error=${error} />
    <div class="actions">
      <button type="button" onClick=${close}>${result ? t('Close') : t('Back')}</button>
      ${!result && html`<${Act} kind="primary" act=${run} failed=${setError} disabled=${!dry || dry.recipients === 0}>${t('Redrive')}<//>`}
    </div>`;
}

function Purge({ filter, close, done }) {
  const [dry, setDry] = useState(null);
  const [error, setError] = useState(null);
  const [typed, setTyped] = useState('');
  useEffect(() => {
    post('v1/dead:purge', { ...selected(filter), dry_run: true }).then(setDry, setError);
  }, []);
  const run = async () => {
    await post('v1/dead:purge', { ...selected(filter), confirm: true });
    done();
    close();
  };
  const count = dry ? String(dry.recipients) : '';
  return html`<${Filter} filter=${filter} />
    ${!dry && !error && html`<${Loading} />`}
    ${dry && html`<p>${t('{count} recipients lose their dead letters for good. They can no longer be redriven.', { count: number(dry.recipients) })}</p>`}
    ${dry && dry.recipients > 0 && html`<${Field} label=${t('Type {count} to confirm', { count })} wide><${Input} value=${typed} change=${setTyped} inputmode="numeric" /><//>`}
    <${Problem} error=${error} />
    <div class="actions">
      <button type="button" onClick=${close}>${t('Back')}</button>
      <${Act} kind="danger" act=${run} failed=${setError} disabled=${!dry || dry.recipients === 0 || typed !== count}>${t('Purge')}<//>
    </div>`;
}

export const redrive = (filter, done) => dialog(t('Redrive dead letters'), (close) => html`<${Redrive} filter=${filter} close=${close} done=${done} />`);

export const purge = (filter, done) => dialog(t('Purge dead letters'), (close) => html`<${Purge} filter=${filter} close=${close} done=${done} />`);
