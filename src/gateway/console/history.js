// Keeps what this page has heard of each job, for speeds and curves. The server keeps no history of
// a job: a curve begins when the page first heard of the job.

const JOBS_MAX = 300;
const POINTS_MAX = 600;
const WINDOW = 6000;

const jobs = new Map();

/** The last event of each job that is not completed. */
const live = new Map();

export const OUTCOMES = ['sent', 'duplicate', 'failed', 'uncertain', 'expired', 'cancelled', 'capped'];

export const settled = (accounts) => OUTCOMES.reduce((sum, outcome) => sum + (accounts[outcome] || 0), 0);

/** Adds an event, or a job as it was read. */
export function record({ job, accounts, pending }, at = Date.now()) {
  let points = jobs.get(job);
  if (!points) {
    if (jobs.size >= JOBS_MAX) jobs.delete(jobs.keys().next().value);
    points = [];
    jobs.set(job, points);
  }
  const last = points[points.length - 1];
  if (last && at - last.at < 200) points.pop();
  points.push({ at, accounts, pending });
  // Every second point of a long curve goes, so that its shape stays.
  if (points.length > POINTS_MAX) jobs.set(job, points.filter((_, index) => index % 2 === 0 || index === points.length - 1));
}

/** Takes an event of the stream of all jobs, which begins with the jobs that are not completed. */
export function hear(event) {
  record(event);
  if (event.event === 'completed') live.delete(event.job);
  else live.set(event.job, event);
}

export const beginAgain = () => live.clear();

export const liveJobs = () => [...live.values()];

export const pointsOf = (job) => jobs.get(job) || [];

/** Recipients per second over the last seconds; undefined while too little is known. */
export function speedOf(job, now = Date.now()) {
  const points = pointsOf(job);
  const last = points[points.length - 1];
  const first = points.find((point) => now - point.at < WINDOW);
  if (!first || !last || last.at - first.at < 900) return undefined;
  return ((settled(last.accounts) - settled(first.accounts)) * 1000) / (last.at - first.at);
}
