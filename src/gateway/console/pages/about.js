// The server: version, engine, and whether its parts work.

import { Cell, html, Problem, Table, useLoad, useTick } from '../parts.js';
import { get } from '../server.js';
import { bytes, t, time } from '../words.js';
import { part as known, word } from '../sentences.js';

export function About({ about: first }) {
  const { data, error, reload } = useLoad(() => get('v1/about'), []);
  useTick(reload, 5000);
  const about = data || first;
  return html`<h1>${t('About')}</h1><${Problem} error=${error} />
    <section class="card"><h2>${t('Health')}</h2>
      <${Table} heads=${[t('Part'), t('State'), '']} label=${t('Health')}>${about.parts.map((part) => html`<tr key=${part.name}>
        <${Cell} head=${t('Part')} class="name">${word(part.name)}<//>
        <${Cell} head=${t('State')}><span class=${`badge ${part.works ? 'good' : 'bad'}`}>${part.works ? t('works') : t('does not work')}</span><//>
        <${Cell} head="">${known(part)}<//></tr>`)}<//></section>
    <section class="card"><h2>${t('Server')}</h2><dl class="facts">
      <dt>${t('Version')}</dt><dd>${about.version}</dd>
      <dt>${t('Engine')}</dt><dd>${about.engine === 'embedded' ? t('embedded, in one file of this machine') : t('RabbitMQ and Redis')}</dd>
      <dt>${t('Time of the server')}</dt><dd>${time(about.now)}</dd>
      <dt>${t('Largest list')}</dt><dd>${bytes(about.upload_bytes_max)}</dd>
      <dt>${t('HTTP interface')}</dt><dd><a href="docs">/docs</a>, <a href="openapi.json">/openapi.json</a></dd>
    </dl></section>
    <section class="card"><h2>${t('Apps')}</h2>
      <${Table} heads=${[t('App'), t('Default target'), t('Limit')]} label=${t('Apps')}>${about.apps.map((app) => html`<tr key=${app.name}>
        <${Cell} head=${t('App')} class="name">${app.name}<//><${Cell} head=${t('Default target')}>${app.default_target || '–'}<//><${Cell} head=${t('Limit')}>${app.limit || '–'}<//></tr>`)}<//></section>`;
}
