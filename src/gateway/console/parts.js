// Small parts that the pages are made of.

import { h, render } from './vendor/preact.js';
import { useCallback, useEffect, useRef, useState } from './vendor/hooks.js';
import htm from './vendor/htm.js';
import { isReachable, on, Refused } from './server.js';
import { OUTCOMES, settled } from './history.js';
import { number, percent, relative, t, time } from './words.js';
import { refusal, sentence } from './sentences.js';

export const html = htm.bind(h);

// --- data -----------------------------------------------------------------------------------------

/** Loads something, again when `about` changes, when `reload` is called, and when the server is back. */
export function useLoad(load, about) {
  const [state, setState] = useState({ loading: true });
  const turn = useRef(0);
  const reload = useCallback(async () => {
    const own = (turn.current += 1);
    setState((before) => ({ ...before, loading: true }));
    try {
      const data = await load();
      if (own === turn.current) setState({ data, loading: false });
    } catch (error) {
      if (own === turn.current) setState((before) => ({ data: before.data, error, loading: false }));
    }
  }, about);
  useEffect(() => {
    reload();
    const back = on('reach', (reached) => reached && reload());
    return () => {
      turn.current += 1;
      back();
    };
  }, [reload]);
  return { ...state, reload };
}

/** Calls `act` every `ms` while the page is seen. */
export function useTick(act, ms) {
  const last = useRef(act);
  last.current = act;
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && last.current(), ms);
    return () => clearInterval(timer);
  }, [ms]);
}

/** Draws again every second, for times that pass. */
export function useClock(ms = 1000) {
  const [, set] = useState(0);
  useTick(() => set((turn) => turn + 1), ms);
}

export function useReach() {
  const [reached, set] = useState(isReachable());
  useEffect(() => on('reach', set), []);
  return reached;
}

// --- texts ----------------------------------------------------------------------------------------

export function Problem({ error }) {
  if (!error) return null;
  const problems = error instanceof Refused ? error.problems : [];
  const { title, detail } = error instanceof Refused ? refusal(error) : { title: t('The server cannot be reached.') };
  return html`<div class="notice bad" role="alert">
    <strong>${title}</strong>
    ${problems.length
      ? html`<ul>${problems.map((it) => html`<li>${it.field && html`<code>${it.field}</code> `}${sentence(it.what)}</li>`)}</ul>`
      : detail && html`<div>${detail}</div>`}
  </div>`;
}

/** A text of JSON as its value. */
export function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new SyntaxError(t('This is not valid JSON.'));
  }
}

export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;

export const Loading = () => html`<p class="empty" role="status">${t('Loading…')}</p>`;

/** A time ago, with the exact time on demand. */
export const Ago = ({ at }) => (at ? html`<time datetime=${at} title=${time(at)}>${relative(at)}</time>` : '–');

const STATES = {
  accepted: ['soft', () => t('accepted')],
  running: ['busy', () => t('running')],
  completed: ['good', () => t('completed')],
  moving: ['good', () => t('moving')],
  cancelled: ['soft', () => t('cancelled')],
  scheduled: ['soft', () => t('scheduled')],
  sending_hours: ['soft', () => t('outside its hours')],
  paused: ['warn', () => t('paused')],
  parked: ['warn', () => t('parked')],
  ledger: ['bad', () => t('ledger away')],
  broker: ['bad', () => t('broker away')],
  no_worker: ['bad', () => t('no worker')],
  no_target: ['bad', () => t('no target')],
  not_cut: ['soft', () => t('not cut yet')],
  failed: ['bad', () => t('failed')],
  uncertain: ['warn', () => t('uncertain')],
  expired: ['soft', () => t('expired')],
  capped: ['soft', () => t('capped')],
  duplicate: ['soft', () => t('duplicate')],
  sent: ['good', () => t('sent')],
  unseen: ['soft', () => t('not seen')],
  claimed: ['busy', () => t('claimed')],
  in_doubt: ['warn', () => t('in doubt')],
};

export const nameOf = (state) => (STATES[state] ? STATES[state][1]() : state);

export const Badge = ({ state }) => html`<span class=${`badge ${STATES[state] ? STATES[state][0] : 'soft'}`}>${nameOf(state)}</span>`;

/** The state of a job in one word: what stops it, or else how far it is. */
export function stateOf(job) {
  if (job.state === 'completed') return 'completed';
  const stop = (job.hindrances || []).find((it) => STATES[it.cause]);
  return stop ? stop.cause : job.state;
}

// --- progress -------------------------------------------------------------------------------------

/** The outcomes of a job as one bar. */
export function Bar({ accounts, pending, tall }) {
  const total = accounts.total || settled(accounts) + pending || 1;
  const done = settled(accounts);
  let from = 0;
  const pieces = OUTCOMES.filter((outcome) => accounts[outcome] > 0).map((outcome) => {
    // A few failed recipients of a million stay visible.
    const width = Math.max((accounts[outcome] / total) * 1000, 4);
    const piece = html`<rect class=${`of-${outcome}`} x=${from} y="0" width=${width} height="10" />`;
    from += width;
    return piece;
  });
  const told = `${percent(done, total)}, ${OUTCOMES.filter((it) => accounts[it]).map((it) => `${nameOf(it)} ${number(accounts[it])}`).join(', ')}`;
  return html`<svg class=${`bar ${tall ? 'tall' : ''}`} viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label=${told}>
    <title>${told}</title>${pieces}
  </svg>`;
}

// --- forms ----------------------------------------------------------------------------------------

let fields = 0;

/** A label with its field. */
export function Field({ label, hint, wide, children }) {
  const [id] = useState(() => `field-${(fields += 1)}`);
  const control = Array.isArray(children) ? children.find((it) => it?.props) : children;
  control.props.id = id;
  if (hint) control.props['aria-describedby'] = `${id}-hint`;
  return html`<div class=${`field ${wide ? 'wide' : ''}`}>
    <label for=${id}>${label}</label>${control}
    ${hint && html`<small id=${`${id}-hint`}>${hint}</small>`}
  </div>`;
}

export const Select = ({ value, change, options, ...rest }) => html`<select value=${value} onChange=${(event) => change(event.target.value)} ...${rest}>
  ${options.map(([key, name]) => html`<option value=${key} selected=${key === value}>${name}</option>`)}
</select>`;

export const Input = ({ value, change, ...rest }) => html`<input value=${value} onInput=${(event) => change(event.target.value)} spellcheck="false" autocomplete="off" ...${rest} />`;

export const Check = ({ label, value, change, ...rest }) => html`<label class="check"><input type="checkbox" checked=${value} onChange=${(event) => change(event.target.checked)} ...${rest} />${label}</label>`;

/** A button that shows that its work is under way, and what went wrong. */
export function Act({ act, kind = '', children, failed, ...rest }) {
  const [busy, setBusy] = useState(false);
  const run = async () => {
    setBusy(true);
    try {
      await act();
    } catch (error) {
      if (!failed) throw error;
      failed(error);
    } finally {
      setBusy(false);
    }
  };
  return html`<button type="button" class=${kind} disabled=${busy} aria-busy=${busy} onClick=${run} ...${rest}>${children}</button>`;
}

// --- dialogs --------------------------------------------------------------------------------------

/** Shows a dialog until it is closed. `content` gets a function that closes it. */
export function dialog(title, content) {
  const place = document.createElement('dialog');
  place.setAttribute('aria-labelledby', 'dialog-title');
  document.body.append(place);
  const close = () => place.close();
  place.addEventListener('close', () => {
    render(null, place);
    place.remove();
  });
  render(html`<h2 id="dialog-title">${title}</h2>${content(close)}`, place);
  place.showModal();
}

/**
 * Asks for a reason and a confirmation before something is done. `act` gets the note that a
 * directive takes.
 */
export function confirm({ title, what, verb, kind = 'primary', more, act }) {
  const Ask = ({ close }) => {
    const [reason, setReason] = useState('');
    const [extra, setExtra] = useState({});
    const [error, setError] = useState(null);
    const run = async () => {
      await act({ ...(reason && { reason }), ...extra });
      close();
    };
    return html`<form method="dialog" onSubmit=${(event) => event.preventDefault()}>
      ${what && html`<p>${what}</p>`}
      ${more && more(extra, (name, value) => setExtra({ ...extra, [name]: value }))}
      <${Field} label=${t('Reason')} wide hint=${t('Shown to everyone who looks at it.')}><${Input} value=${reason} change=${setReason} maxlength="200" /><//>
      <${Problem} error=${error} />
      <div class="actions"><button type="button" onClick=${close}>${t('Back')}</button><${Act} kind=${kind} act=${run} failed=${setError}>${verb}<//></div>
    </form>`;
  };
  dialog(title, (close) => html`<${Ask} close=${close} />`);
}

// --- tables ---------------------------------------------------------------------------------------

/** A table that becomes a list of cards where the page is narrow. */
export const Table = ({ heads, label, children }) => html`<table aria-label=${label}>
  <thead><tr>${heads.map((head) => html`<th scope="col">${head}</th>`)}</tr></thead>
  <tbody>${children}</tbody>
</table>`;

export const Cell = ({ head, children, ...rest }) => html`<td data-head=${head} ...${rest}>${children}</td>`;
