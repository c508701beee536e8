// The directives as buttons.

import { confirm, Field, html, Input } from './parts.js';
import { post, put } from './server.js';
import { t } from './words.js';

const path = (kind, name, verb) => `v1/${kind}/${encodeURIComponent(name)}:${verb}`;

const lasts = (extra, set) => html`<${Field} label=${t('Lasts')} hint=${t('Such as 30m or 2h. Leave it empty for no end.')}>
  <${Input} value=${extra.expires_in || ''} change=${(value) => set('expires_in', value || undefined)} placeholder="30m" />
<//>`;

const rate = (extra, set) => html`<${Field} label=${t('Rate')} hint=${t('Such as 2000/s. “default” is the configured one.')}>
  <${Input} value=${extra.rate || ''} change=${(value) => set('rate', value)} placeholder="2000/s" required />
<//>`;

const pace = (extra, set) => html`<${Field} label=${t('Spread until')} hint=${t('A time, or a time from now such as 2h; “none” sends as fast as the limits allow. A rate that was set ends.')}>
  <${Input} value=${extra.pace_until || ''} change=${(value) => set('pace_until', value)} placeholder="2h" required />
<//>`;

/** Whether the caller may steer jobs. An app steers its own, if it has a token. */
export const steersJobs = (about) => ['administrator', 'app'].includes(about.role);

/** One button of a subject: a job, an app or a target. */
export function Order({ kind, name, shown, verb, done }) {
  const orders = {
    pause: [t('Pause'), '', t('Nothing is sent until it is resumed.'), lasts],
    resume: [t('Resume'), 'primary'],
    cancel: [t('Cancel'), 'danger', t('Recipients without an outcome end cancelled. This cannot be undone.')],
    rate: [t('Set rate'), '', undefined, rate],
    pace: [t('Spread'), '', t('The recipients that are left get the message evenly until then.'), pace],
    park: [t('Park'), '', t('The target gets no calls, for 10 minutes unless you say otherwise.'), lasts],
    unpark: [t('Unpark'), 'primary', t('The target is called again at once.')],
  };
  const [label, look, what, more] = orders[verb];
  const act = async (note) => {
    if (verb === 'rate' && kind !== 'jobs') {
      await put('v1/limits', { scope: kind.slice(0, -1), name, ...note });
    } else {
      await post(path(kind, name, verb), note);
    }
    done();
  };
  const ask = () => confirm({
    title: `${label}: ${shown || name}`, what, more, act, verb: label,
    kind: look === 'danger' ? 'danger' : 'primary',
  });
  return html`<button type="button" class=${look} onClick=${ask}>${label}</button>`;
}
