// What the server tells in sentences, in the language of the page. English is the server's own
// sentence with the times of this place. Chinese is made from the code and the values that come with
// it; a text of people or of a backend stays as it is.

import { ANSWERS, CODES, FATES, HINDRANCES, LIMITS, PARTS, PATTERNS, PROBLEMS } from './chinese_sentences.js';
import { language, time } from './words.js';

const isChinese = language === 'zh';

const MOMENT = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?Z$/;

const isMoment = (value) => typeof value === 'string' && MOMENT.test(value);

/** A value as people read it: a time in the form of the page, others as they are. */
export const value = (text) => (isMoment(text) ? time(text) : text);

/** The name of a code, such as `app_limit`. */
export const word = (code) => (isChinese && CODES[code]) || String(code).replaceAll('_', ' ');

/** A sentence whose times are these values. */
function withTimes(sentence, values) {
  const moments = values.filter(isMoment);
  return moments.reduce((text, moment) => text.replaceAll(moment, time(moment)), sentence);
}

/** A sentence without a code: known forms of it, or as it is. */
export function sentence(text) {
  if (!isChinese) return text;
  for (const [form, chinese] of PATTERNS) {
    const found = form.exec(text);
    if (found) return chinese(...found.slice(1));
  }
  return text;
}

/** What the code of an answer means, where Fanwise wrote it itself. */
export const answer = (code) => (isChinese && ANSWERS[code]) || '';

/** What stops a job or slows it. */
export function hindrance(it) {
  const tell = isChinese && HINDRANCES[it.code];
  if (tell) return tell(it.values || {}, it.until);
  return withTimes(it.what, [it.until, ...Object.values(it.values || {})]);
}

/** What became of a recipient. */
export function fate(it) {
  const tell = isChinese && FATES[it.because];
  return tell ? tell(it.dead_letter) : it.explanation;
}

/** What is known of a part of the server. */
export function part(it) {
  const tell = isChinese && PARTS[it.name];
  return tell ? tell(it) : it.what;
}

/** What makes a job take its time. */
export function limits(estimate) {
  const all = estimate.limits || [];
  if (isChinese && all.length) return all.map((it) => (LIMITS[it.code] ? LIMITS[it.code](it.values) : it.code)).join('，');
  return withTimes(estimate.limit, all.flatMap((it) => Object.values(it.values)));
}

/** Why a target is parked. */
export const park = (it) => [word(it.reason), it.code].filter(Boolean).join(' ') + (it.text ? `${isChinese ? '：' : ': '}${it.text}` : '');

/** The title and the details of a refused request. */
export function refusal(error) {
  const known = isChinese && PROBLEMS[error.kind];
  if (!known) return { title: error.title, detail: error.message };
  const [title, detail] = known;
  return { title, detail: detail ? detail(error) : sentence(error.message) };
}
