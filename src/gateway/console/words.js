// The language of the pages, and how numbers and times are written.

import { CHINESE } from './chinese.js';

const KEY = 'fanwise.language';

export const LANGUAGES = { en: 'English', zh: '中文' };

const wanted = localStorage.getItem(KEY) || (navigator.language.startsWith('zh') ? 'zh' : 'en');
export const language = wanted in LANGUAGES ? wanted : 'en';
document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en';

export function chooseLanguage(name) {
  localStorage.setItem(KEY, name);
  location.reload();
}

/** A text in the language of the page; `{name}` is replaced by a value. */
export function t(text, values = {}) {
  const found = language === 'zh' ? CHINESE[text] || text : text;
  return found.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

const locale = language === 'zh' ? 'zh-CN' : 'en-GB';
const whole = new Intl.NumberFormat(locale);
const oneDigit = new Intl.NumberFormat(locale, { maximumFractionDigits: 1 });
const ago = new Intl.RelativeTimeFormat(locale, { numeric: 'auto', style: 'short' });

export const number = (value) => whole.format(value);

export const perSecond = (value) => `${value < 10 ? oneDigit.format(value) : whole.format(Math.round(value))}/s`;

export const percent = (part, all) => {
  if (!all) return '–';
  // Never 100 % before the end.
  const value = Math.floor((part / all) * 1000) / 10;
  return `${oneDigit.format(value)} %`;
};

const twoDigits = (value) => String(value).padStart(2, '0');

/** `14:05:09`, in the time zone of this place */
export function clock(at) {
  const date = new Date(at);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map(twoDigits).join(':');
}

/** `2026-11-30 14:05:09`, in the time zone of this place and the same in both languages */
export function time(text) {
  const date = new Date(text);
  if (!text || Number.isNaN(date.getTime())) return text || '–';
  return `${date.getFullYear()}-${twoDigits(date.getMonth() + 1)}-${twoDigits(date.getDate())} ${clock(date)}`;
}

const UNITS = [['day', 86_400], ['hour', 3600], ['minute', 60], ['second', 1]];

/** `3 min ago`, `in 2 hr` */
export function relative(text, now = Date.now()) {
  if (!text) return '–';
  const seconds = (new Date(text) - now) / 1000;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) || ['second', 1];
  return ago.format(Math.trunc(seconds / size), unit);
}

/** `1 h 05 min` */
export function duration(seconds) {
  if (seconds === undefined || seconds === null || !isFinite(seconds)) return '–';
  const s = Math.ceil(seconds);
  if (s < 60) return t('{s} s', { s });
  const [h, m] = [Math.floor(s / 3600), Math.floor((s % 3600) / 60)];
  if (h >= 48) return t('{d} d {h} h', { d: Math.floor(h / 24), h: h % 24 });
  return h ? t('{h} h {m} min', { h, m: twoDigits(m) }) : t('{m} min {s} s', { m, s: twoDigits(s % 60) });
}

export const bytes = (value) => (value < 1e6 ? `${oneDigit.format(value / 1e3)} kB` : `${oneDigit.format(value / 1e6)} MB`);
