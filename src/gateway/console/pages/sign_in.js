// Asks for a token.

import { useState } from '../vendor/hooks.js';
import { Field, html, Input, Problem } from '../parts.js';
import { get, Refused, useToken } from '../server.js';
import { t } from '../words.js';

export function SignIn({ enter }) {
  const [token, setToken] = useState('');
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    useToken(token.trim());
    try {
      await get('v1/about');
      await enter();
    } catch (failed) {
      useToken(null);
      setError(failed instanceof Refused && failed.status === 401 ? 'wrong' : failed);
    } finally {
      setBusy(false);
    }
  };
  return html`<form class="card sign-in" onSubmit=${submit}>
    <h1><img src="console/icon.svg" alt="" width="36" height="36" />Fanwise</h1>
    <${Field} label=${t('Token')} wide hint=${t('gateway.token shows everything, the token of an app shows its own jobs. It is forgotten when you close this tab.')}>
      <${Input} type="password" value=${token} change=${setToken} required autofocus />
    <//>
    ${error === 'wrong' ? html`<div class="notice bad" role="alert">${t('This token is not known.')}</div>` : html`<${Problem} error=${error} />`}
    <div class="actions"><button class="primary" disabled=${busy}>${t('Sign in')}</button></div>
    <p><a href="docs">${t('HTTP interface')}</a></p>
  </form>`;
}
