// Stored messages of an app.

import { useState } from '../vendor/hooks.js';
import { Act, Cell, confirm, dialog, Empty, Field, html, Input, Loading, parse, Problem, Select, Table, useLoad } from '../parts.js';
import { address, get, put, remove } from '../server.js';
import { t, time } from '../words.js';

const path = (app, name) => address(`v1/templates/${encodeURIComponent(name)}`, { app });

function Editor({ app, name: known, message, close, done }) {
  const [name, setName] = useState(known || '');
  const [text, setText] = useState(JSON.stringify(message || { type: 'text', text: 'Hello {{ name }}' }, null, 2));
  const [error, setError] = useState(null);
  const save = async () => {
    setError(null);
    await put(path(app, name), parse(text));
    done();
    close();
  };
  return html`<form onSubmit=${(event) => event.preventDefault()}>
    <${Field} label=${t('Name')} wide><${Input} value=${name} change=${setName} disabled=${Boolean(known)} required /><//>
    <${Field} label=${t('Message as JSON')} wide hint=${t('Saved as the next version. Jobs that have started keep theirs.')}>
      <textarea rows="12" class="code" spellcheck="false" value=${text} onInput=${(event) => setText(event.target.value)}></textarea><//>
    ${error && (error instanceof SyntaxError ? html`<div class="notice bad" role="alert">${error.message}</div>` : html`<${Problem} error=${error} />`)}
    <div class="actions"><button type="button" onClick=${close}>${t('Back')}</button><${Act} kind="primary" act=${save} failed=${setError}>${t('Save')}<//></div>
  </form>`;
}

function Shown({ app, name, latest, close }) {
  const [version, setVersion] = useState(String(latest));
  const { data, error } = useLoad(() => get(`v1/templates/${encodeURIComponent(name)}`, { app, version }), [version]);
  const versions = Array.from({ length: Math.min(latest, 50) }, (_, index) => String(latest - index));
  return html`<${Field} label=${t('Version')}><${Select} value=${version} change=${setVersion} options=${versions.map((it) => [it, it])} /><//>
    <${Problem} error=${error} />
    ${data && html`<p class="sub">${t('Stored')} ${time(data.put_at)}</p><pre>${JSON.stringify(data.message, null, 2)}</pre>`}
    <div class="actions"><button type="button" onClick=${close}>${t('Close')}</button></div>`;
}

export function Templates({ about }) {
  const [app, setApp] = useState(about.apps[0]?.name || 'default');
  const { data, error, loading, reload } = useLoad(() => get('v1/templates', { app }), [app]);
  const isAdministrator = about.role === 'administrator';
  const edit = async (row) => {
    const stored = row && (await get(path(app, row.name)));
    dialog(row ? row.name : t('New template'), (close) => html`<${Editor} app=${app} name=${row?.name} message=${stored?.message} close=${close} done=${reload} />`);
  };
  const show = (row) => dialog(row.name, (close) => html`<${Shown} app=${app} name=${row.name} latest=${row.version} close=${close} />`);
  const drop = (row) => confirm({
    title: `${t('Remove')}: ${row.name}`, verb: t('Remove'), kind: 'danger', what: t('Jobs that name it and have not started are refused.'),
    act: async () => {
      await remove(path(app, row.name));
      reload();
    },
  });
  return html`<div class="title"><h1>${t('Templates')}</h1>${isAdministrator && html`<button type="button" class="primary" onClick=${() => edit(null)}>${t('New template')}</button>`}</div>
    ${about.apps.length > 1 && html`<div class="filters"><${Field} label=${t('App')}><${Select} value=${app} change=${setApp} options=${about.apps.map((it) => [it.name, it.name])} /><//></div>`}
    <${Problem} error=${error} />${!data && loading && html`<${Loading} />`}
    ${data && data.length === 0 && html`<${Empty}>${t('This app has no stored messages.')}<//>`}
    ${data && data.length > 0 && html`<${Table} heads=${[t('Name'), t('Version'), '']} label=${t('Templates')}>${data.map((row) => html`<tr key=${row.name}>
      <${Cell} head=${t('Name')} class="name">${row.name}<//><${Cell} head=${t('Version')} class="figure">${row.version}<//>
      <${Cell} head=""><div class="actions"><button type="button" onClick=${() => show(row)}>${t('Show')}</button>
        ${isAdministrator && html`<button type="button" onClick=${() => edit(row)}>${t('Edit')}</button><button type="button" class="danger" onClick=${() => drop(row)}>${t('Remove')}</button>`}</div><//></tr>`)}<//>`}`;
}
