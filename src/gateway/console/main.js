// Begins here: who is signed in, which page is shown, and what surrounds it.

import { render } from './vendor/preact.js';
import { useEffect, useState } from './vendor/hooks.js';
import { html, Loading, Problem, Select, useReach } from './parts.js';
import { followJobs, get, hasToken, on, Refused, signOut } from './server.js';
import { chooseLanguage, LANGUAGES, language, t } from './words.js';
import { SignIn } from './pages/sign_in.js';
import { Jobs } from './pages/jobs.js';
import { Job } from './pages/job.js';
import { Targets } from './pages/targets.js';
import { Dead } from './pages/dead.js';
import { Templates } from './pages/templates.js';
import { Schedules } from './pages/schedules.js';
import { Submit } from './pages/submit.js';
import { About } from './pages/about.js';

// A further page is one more line here.
const PAGES = [
  { path: 'jobs', name: t('Jobs'), Page: Jobs, Inner: Job },
  { path: 'submit', name: t('Submit'), Page: Submit },
  { path: 'schedules', name: t('Schedules'), Page: Schedules },
  { path: 'dead', name: t('Dead letters'), Page: Dead },
  { path: 'targets', name: t('Targets'), Page: Targets, administrator: true },
  { path: 'templates', name: t('Templates'), Page: Templates },
  { path: 'about', name: t('About'), Page: About },
];

// --- appearance -----------------------------------------------------------------------------------

const LOOK = 'fanwise.look';

function look(name) {
  document.documentElement.dataset.look = name;
  localStorage.setItem(LOOK, name);
}

look(localStorage.getItem(LOOK) || 'auto');

function Choices() {
  const [current, setCurrent] = useState(document.documentElement.dataset.look);
  const choose = (name) => {
    look(name);
    setCurrent(name);
  };
  return html`<div class="choices">
    <${Select} aria-label=${t('Language')} value=${language} change=${chooseLanguage} options=${Object.entries(LANGUAGES)} />
    <${Select} aria-label=${t('Appearance')} value=${current} change=${choose} options=${[['auto', t('As the system')], ['light', t('Light')], ['dark', t('Dark')]]} />
  </div>`;
}

// --- where ----------------------------------------------------------------------------------------

/** `#/dead?job=…` as its parts. */
function place() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  const [page = '', ...inner] = path.split('/').map(decodeURIComponent);
  return { page: page || 'jobs', inner: inner.join('/'), query: Object.fromEntries(new URLSearchParams(query)) };
}

function usePlace() {
  const [where, setWhere] = useState(place());
  useEffect(() => {
    const moved = () => {
      setWhere(place());
      document.getElementById('page')?.focus({ preventScroll: true });
      scrollTo(0, 0);
    };
    addEventListener('hashchange', moved);
    return () => removeEventListener('hashchange', moved);
  }, []);
  return where;
}

// --- frame ----------------------------------------------------------------------------------------

function Frame({ about }) {
  const where = usePlace();
  const reached = useReach();
  const [turn, setTurn] = useState(0);
  // Pages read their lists again when a stream begins: it repeats nothing of what was missed.
  useEffect(() => followJobs(() => setTurn((it) => it + 1)), []);
  const isAdministrator = about.role === 'administrator';
  const pages = PAGES.filter((page) => isAdministrator || !page.administrator);
  const page = pages.find((it) => it.path === where.page) || pages[0];
  const { Page, Inner } = page;
  const shown = where.inner && Inner
    ? html`<${Inner} key=${where.inner} name=${where.inner} about=${about} />`
    : html`<${Page} key=${location.hash} about=${about} query=${where.query} turn=${turn} />`;
  useEffect(() => {
    document.title = `${where.inner || page.name} · Fanwise`;
    // On a phone, the links to the pages are wider than the screen.
    document.querySelector('nav [aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'nearest' });
  }, [where]);
  return html`<a class="skip" href="#page" onClick=${(event) => { event.preventDefault(); document.getElementById('page').focus(); }}>${t('To the content')}</a>
    <header>
      <a class="brand" href="#/jobs"><img src="console/icon.svg" alt="" width="28" height="28" />Fanwise</a>
      <nav aria-label=${t('Pages')}>${pages.map((it) => html`<a href=${`#/${it.path}`} aria-current=${it === page ? 'page' : undefined}>${it.name}</a>`)}</nav>
      <div class="foot">
        <${Choices} />
        <p class="who"><span>${isAdministrator ? t('Administrator') : about.apps.map((it) => it.name).join(', ')}</span>
          ${hasToken() && html`<button type="button" class="quiet" onClick=${signOut}>${t('Sign out')}</button>`}</p>
      </div>
    </header>
    <main id="page" tabindex="-1">
      ${!reached && html`<div class="notice bad" role="alert" data-testid="away">${t('The server cannot be reached.')} ${t('Trying again…')}</div>`}
      ${shown}
    </main>`;
}

function Console() {
  const [about, setAbout] = useState(null);
  const [error, setError] = useState(null);
  const [asked, setAsked] = useState(false);
  const enter = async () => {
    try {
      setAbout(await get('v1/about'));
      setError(null);
      setAsked(false);
    } catch (failed) {
      setAbout(null);
      if (failed instanceof Refused && failed.status === 401) setAsked(true);
      else setError(failed);
    }
  };
  useEffect(() => {
    enter();
    return on('signedOut', () => {
      setAbout(null);
      setAsked(true);
    });
  }, []);
  useEffect(() => {
    if (!error) return undefined;
    const timer = setInterval(enter, 2000);
    return () => clearInterval(timer);
  }, [error]);
  if (asked) return html`<div class="alone"><${SignIn} enter=${enter} /><${Choices} /></div>`;
  if (error) return html`<div class="alone"><${Problem} error=${error} /></div>`;
  return about ? html`<${Frame} about=${about} />` : html`<${Loading} />`;
}

render(html`<${Console} />`, document.getElementById('console'));
