// Sends one message to one user, outside of every job, and shows the request and the answer.

import { Act, Badge, dialog, Field, html, Input, Problem } from './parts.js';
import { useState } from './vendor/hooks.js';
import { post } from './server.js';
import { number, t } from './words.js';
import { word } from './sentences.js';

const headersOf = (it) => Object.entries(it.headers).map(([name, value]) => `${name}: ${value}`);

const written = (first, it) => [first, ...headersOf(it), '', it.body].join('\n');

function Told({ to, tested }) {
  const { request, reply } = tested;
  return html`<div role="status" data-testid="tested">
    <p><${Badge} state=${tested.sent ? 'sent' : 'failed'} /> ${tested.sent
      ? t('{user} got the message.', { user: to })
      : t('{user} did not get the message, or may not have got it:', { user: to })}
      ${!tested.sent && html` ${word(tested.class)} <code>${tested.code}</code> ${tested.text}`}</p>
    ${request && html`<h3>${t('Request')}</h3><pre tabindex="0">${written(`${request.method} ${request.url}`, request)}</pre>`}
    ${reply && html`<h3>${t('Answer after {ms} ms', { ms: number(reply.milliseconds) })}</h3><pre tabindex="0">${written(reply.status, reply)}</pre>`}
    ${!reply && html`<p class="sub">${t('There was no answer.')}</p>`}
  </div>`;
}

function Ask({ target, close }) {
  const [form, setForm] = useState({ to: '', text: '', sender: '' });
  const [told, setTold] = useState(null);
  const [error, setError] = useState(null);
  const field = (name) => ({ value: form[name], change: (value) => setForm({ ...form, [name]: value }) });
  const send = async () => {
    setError(null);
    setTold(null);
    const given = Object.entries(form).filter(([, value]) => value);
    const tested = await post(`v1/targets/${encodeURIComponent(target)}:test`, Object.fromEntries(given));
    setTold({ to: form.to, tested });
  };
  return html`<form onSubmit=${(event) => event.preventDefault()}>
    <p>${t('The user really gets this message, once. It belongs to no job, and limits do not hold it up.')}</p>
    <${Field} label=${t('User')} wide><${Input} ...${field('to')} required /><//>
    <${Field} label=${t('Text')} wide hint=${t('Empty for a harmless one.')}><${Input} ...${field('text')} /><//>
    <${Field} label=${t('Sender')} wide hint=${t('Empty for the sender of the target.')}><${Input} ...${field('sender')} /><//>
    <${Problem} error=${error} />
    ${told && html`<${Told} ...${told} />`}
    <div class="actions"><button type="button" onClick=${close}>${told ? t('Close') : t('Back')}</button>
      <${Act} kind="primary" act=${send} failed=${setError} disabled=${!form.to}>${t('Send test message')}<//></div>
  </form>`;
}

/** The button of a target. */
export const TestMessage = ({ target }) => html`<button type="button" onClick=${() => dialog(`${t('Test message')}: ${target}`, (close) => html`<${Ask} target=${target} close=${close} />`)}>${t('Test message')}…</button>`;
