// The sentences of the server in Chinese, by their codes. A test compares them with the codes that
// there are.

import { number, perSecond, time } from './words.js';

/** Causes, actions, reasons and other codes. */
export const CODES = {
  // what stops a job or slows it
  cancelled: '已取消', scheduled: '等待开始', sending_hours: '发送时段', paused: '已暂停', parked: '已停靠', target_limit: '目标限速',
  app_limit: '应用限速', job_limit: '任务限速', sender_limit: '发送者限速', shared_limit: '共享限速', pace: '均匀发送', target: '目标',
  other_jobs: '其他任务', waiting: '等待中', not_cut: '尚未切分', ledger: '账本', broker: '消息队列', no_worker: '没有 worker', no_target: '没有目标',
  // why a target is parked
  throttled: '被目标限流', unreachable: '无法连接', config: '配置错误', breaker: '连续失败', operator: '人工停靠',
  // classes of answers
  done: '成功', permanent: '永久失败', transient: '暂时失败', uncertain: '不确定',
  // what was done to a job, how, and by whom
  pause: '暂停', resume: '恢复', cancel: '取消', rate: '设置速率', daily_rate: '设置每日限速', sender_rate: '设置发送者限速', priority: '设置优先级',
  schedule: '设置开始时间', deadline: '设置过期时间', repair: '修复', park: '停靠', unpark: '解除停靠', resolve: '处理不确定', recall: '撤回', end: '结束',
  cli: '命令行', http: 'HTTP', console: '控制台', worker: 'worker', administrator: '管理员',
  high: '高', normal: '普通', bulk: '批量', default: '默认', none: '无', never: '永不',
  // what is done about recipients in doubt
  retry: '重试', hold: '保留', drop: '放弃',
  // fields of filters
  job: '任务', app: '应用', outcome: '结果', code: '代码', class: '类别', recipient: '接收者', since: '起始时间', failed: '失败', sent: '已发送', duplicate: '重复', expired: '已过期', capped: '已达频次上限',
  // parts of the server
  gateway: '网关', workers: 'worker',
};

const by = ({ author, reason }) => `${author ? `（${author}）` : ''}${reason ? `：${reason}` : ''}`;

const untilOf = (at) => (at ? `，直到 ${time(at)}` : '');

const subject = ({ scope, name }) => ({ job: '任务', app: `应用 ${name}`, target: `目标 ${name}` })[scope] || `共享限速 ${name}`;

const limitName = ({ limit, name, target }) => ({
  target: `目标 ${target} 的限速`,
  target_daily: `目标 ${target} 的每日限速`,
  app: `应用 ${name} 的限速`,
  app_daily: `应用 ${name} 的每日限速`,
  job: '任务自身的限速',
  sender: name ? `目标 ${target} 上发送者 ${name} 的限速` : `目标 ${target} 上默认发送者的限速`,
  shared: `共享限速 ${name}`,
})[limit] || limit;

const others = ({ jobs = [], further_places: further, unnamed_places: unnamed }) => [
  ...jobs.map((it) => `应用 ${it.app} 的任务 ${it.job} 占用 ${number(it.places)} 个位置`),
  further && `另外的任务占用 ${number(further)} 个位置`,
  unnamed && `其他应用的任务占用 ${number(unnamed)} 个位置`,
].filter(Boolean).join('，');

const BECAUSE = {
  no_answer: () => '其切片正在调用目标，但没有得到应答',
  no_place: (v) => `其切片在等待位置；${others(v)}`,
  retries: () => '重试尚未到时间',
  retries_or_lane: (v) => `重试尚未到时间，或通道中有其他任务排在前面；${others(v)}`,
};

const pace = (each) => (each >= 1 ? perSecond(each) : each * 60 >= 1 ? `${(each * 60).toFixed(1)}/min` : `${(each * 3600).toFixed(2)}/h`);

/** What stops a job or slows it. */
export const HINDRANCES = {
  ledger_away: ({ error }) => `账本无法写入：${error}`,
  cancelled: (v) => `任务已取消${by(v)}；已发出的调用仍会完成`,
  paused: (v, until) => `${subject(v)}已暂停${by(v)}${untilOf(until)}`,
  job_parked: ({ answer_code: code, text }, until) => `任务已停靠${untilOf(until)}：${code ? `配置错误 ${code}：` : ''}${text}`,
  target_parked: ({ target, reason, answer_code: code, text }, until) => `目标 ${target} 已停靠${untilOf(until)}：${CODES[reason] || reason}${code ? ` ${code}` : ''}${text ? `：${text}` : ''}`,
  no_target: ({ target }) => `这里没有配置目标 ${target}；其切片将等待，直到 worker 重新配置该目标，取消亦然`,
  not_before: ({ at }) => `${time(at)} 之前不发送`,
  outside_hours: (v) => `不在${subject(v)}的发送时段（${v.window}）内：${time(v.opens_at)} 开始`,
  own_hours: ({ window }) => `接收者在等待各自的发送时段（${window}），或下一次尝试`,
  limit_adapted: (v, until) => `${limitName(v)}已下调：${v.rate}（全部为 ${v.full}），正在回升${untilOf(until)}`,
  limit_set: (v, until) => `${limitName(v)}被设为 ${v.rate}${by(v)}${untilOf(until)}`,
  limit_reached: (v) => `已达${limitName(v)}：${v.rate}`,
  spread: ({ pace_until: end, left, per_second: each }) => `均匀发送至 ${time(end)}：剩余 ${number(left)} 位接收者，${pace(each)}`,
  slow_calls: ({ target, calls, oldest_seconds: oldest }) => `${number(calls)} 次调用在等待 ${target} 应答，最久的已等 ${number(oldest)} 秒`,
  not_taken: () => '已接收，还没有 worker 处理：前面有其他任务',
  no_outcome: (v) => `${number(v.seconds)} 秒没有新结果：${BECAUSE[v.because] ? BECAUSE[v.because](v) : v.because}`,
  shares_target: (v) => `与其他任务共用目标，占用 ${number(v.all)} 个位置中的 ${number(v.places)} 个；${others(v)}`,
  answer_time: () => '仅受目标应答时间的限制：增加并发调用或 worker 可能会更快',
  repair: (v) => `已要求修复${by(v)}；worker 会查找任务剩余的部分，若什么都没有则结束任务`,
  no_sign: ({ minutes }) => `${number(minutes)} 分钟没有其切片的消息，可能已丢失。“fanwise job repair” 立即查找；否则 worker 会在 ledger.abandoned_after 之后查找`,
  no_worker: () => '没有 worker 在运行：请启动 “fanwise worker” 或 “fanwise serve”',
  no_session: () => '没有 worker 连接到消息队列：请查看其日志，或运行 “fanwise doctor”',
  not_cut: ({ lists, submissions, target }) => `${number(submissions)} 个名单中有 ${number(lists)} 个尚未切分：等待目标 ${target} 解除停靠或暂停，且其通道有空间`,
};

const withLetter = (told) => (letter) => (letter
  ? `${told}：尝试 ${number(letter.attempts)} 次，最近的应答为${CODES[letter.class] || letter.class} ${letter.code}：${letter.text}`
  : `${told}；其死信已不存在，或暂时无法读取`);

/** What became of a recipient. */
export const FATES = {
  not_on_the_list: () => '不在此任务的名单中',
  not_on_the_list_or_lost: () => '没有结果：不在此任务的名单中，或其结果已丢失；重新提交任务即可发送给这些接收者',
  not_on_the_list_or_perhaps_sent: () => '没有结果：不在此任务的名单中，或其结果已丢失，可能已收到消息',
  waits: () => '还没有结果，也没有 worker 在处理：等待轮到它或下一次尝试，或不在名单中',
  claimed: () => 'worker 正在处理',
  not_answered: () => '对它的调用没有得到应答，可能已发送；等待下一次尝试',
  worker_stopped: () => '处理它的 worker 没有得到应答就停止了，可能已发送；由下一次投递决定',
  nothing_left: () => '可能已调用过目标，且没有剩余的投递：可能已发送',
  accepted: () => '目标已接收此消息',
  accepted_by_second: () => '第二目标已接收此消息',
  refused: withLetter('目标没有接收此消息'),
  perhaps_sent: withLetter('可能已发送，也可能没有'),
  job_expired: () => '任务在此之前已过期',
  job_cancelled: () => '任务在此之前已取消',
  cap_reached: () => '已达到该消息类别的频次上限',
};

/** Codes of answers that Fanwise writes itself; those of backends stay as they are. */
export const ANSWERS = {
  refused: '连接被拒绝', connect: '无法连接', connect_timeout: '连接超时', dns: '无法解析主机名', tls: 'TLS 失败', certificate: '证书不受信任',
  private_address: '不允许的内网地址', bad_url: '地址无效', timeout: '没有及时应答', reset: '连接被重置', closed: '连接被关闭', io: '连接中断',
  bad_reply: '无法读取应答', reply_too_long: '应答过长', body: '无法读取请求内容', not_wanted: '应答没有读完', lost: 'worker 停止，没有记录应答', not_sent: '应答丢失，目标确认未发送', template: '无法填写消息的变量', retry_budget: '重试额度已用完',
};

const broken = (told) => ({ works, what }) => (works ? '' : `${told}：${what}`);

/** What is known of the parts of the server. */
export const PARTS = {
  gateway: broken('无法把任务交给消息队列，因此不接收任务'),
  ledger: broken('账本不可用'),
  workers: ({ running, what }) => (running === undefined ? what : running ? `${number(running)} 个 worker 在运行` : '没有 worker 在运行'),
};

/** What makes a job take its time. */
export const LIMITS = {
  limit: (v) => `${limitName(v)} ${v.rate}`,
  spread: ({ pace_until: end }) => `均匀发送至 ${time(end)}`,
  not_before: ({ at }) => `${time(at)} 之前不发送`,
  hours: ({ window }) => `仅在 ${window} 内发送`,
};

/** Refused requests: the title, and the details where they are not a list of problems. */
export const PROBLEMS = {
  bad_job: ['任务无效'],
  bad_query: ['查询无效'],
  bad_request: ['请求无效'],
  bad_lines: ['名单中有错误的行，没有接收任何内容'],
  bad_body: ['不接受此内容'],
  conflict: ['client_msg_no 已用于另一条消息', ({ job }) => `任务 ${job} 最先使用了它；新消息请使用新的 client_msg_no`],
  given_up: ['名单已被放弃', ({ job }) => `部分内容在第一部分之后一小时内没有到达，因此其余接收者已取消，见任务 ${job}；请使用新的 client_msg_no`],
  not_found: ['未找到'],
  too_late: ['太迟了'],
  bad_method: ['方法错误'],
  unauthorized: ['没有令牌或令牌错误', () => '请使用 gateway.token 或应用的令牌登录'],
  bad_head: ['请求无效'],
  from_browser: ['不接受网页的请求', () => '其他网站的网页发出的请求需要凭证；请设置 gateway.token'],
  other_host: ['不接受其他主机名', () => '没有凭证时请使用 localhost 或 127.0.0.1，或设置 gateway.token'],
  forbidden: ['不允许'],
  denied: ['被 before_accept 拒绝', ({ message }) => message],
  too_often: ['请求过多', () => '已超过该应用的请求速率（apps.NAME.request_rate），请稍后再试'],
  unavailable: ['暂时无法处理，请重试'],
};

/** Known forms of sentences that have no code. */
export const PATTERNS = [
  // fields of a request
  [/^missing$/, () => '缺少'],
  [/^missing; (.+)$/, (more) => `缺少（${more}）`],
  [/^unknown field(.*)$/, (hint) => `未知字段${hint}`],
  [/^(.+) is expected, not (.+)$/, (expected, found) => `应为 ${expected}，而不是 ${found}`],
  [/^(.+) is expected$/, (expected) => `应为 ${expected}`],
  [/^empty; no recipient would get the message$/, () => '为空；没有接收者会收到消息'],
  [/^(\S+): undefined variable "(.+)"$/, (field, name) => `${field}：缺少变量 “${name}”`],
  [/^"(.*)" is not a rate; examples: (.+)$/, (found, examples) => `“${found}” 不是速率；例如 ${examples}`],
  [/^"(.*)" is not a window such as (.+)$/, (found, examples) => `“${found}” 不是发送时段；例如 ${examples}`],
  [/^(.+) is not after not_before: no recipient would get the message$/, (end) => `${end} 不晚于开始时间：没有接收者会收到消息`],
  [/^there is no app "(.*)"(.*)$/, (name, more) => `没有应用 “${name}”${more}`],
  [/^there is no target "(.*)"(.*)$/, (name, more) => `没有目标 “${name}”${more}`],
  [/^only one of `users`, `groups` and `all` can be the audience of a job$/, () => '任务的接收者只能是 users、groups 和 all 之一'],
  [/^and (\d+) more problems$/, (count) => `以及另外 ${count} 个问题`],
  // warnings of a job
  [/^(\S+): dropped, target "(.+?)": (.+)$/, (field, target, why) => `${field}：已忽略，目标 ${target} 不支持（${why}）`],
  [/^(\d+) recipient\(s\) bring a "(.+?)" that is no time zone of the IANA database, such as "(.*)": the sending hours in (.+) apply to them$/,
    (count, name, zone, own) => `${count} 位接收者的 ${name}（例如 “${zone}”）不是 IANA 时区：对他们采用 ${own} 的发送时段`],
  // accounts
  [/^(\w+): counted (\d+), the ledger holds (\d+)$/, (what, counted, found) => `${CODES[what] || what}：计数 ${counted}，账本中为 ${found}`],
  [/^outcomes: (\d+) counted for (\d+) recipients$/, (outcomes, total) => `${total} 位接收者却有 ${outcomes} 个结果`],
  [/^claims: (\d+) still open in a finished job$/, (count) => `已完成的任务中仍有 ${count} 个处理中`],
  [/^the ledger was lost and rebuilt: outcomes recorded before are not counted$/, () => '账本曾丢失并重建：此前记录的结果没有计入'],
  [/^(\d+) recipients count as uncertain because the ledger has no outcome of them/, (count) => `${count} 位接收者计为不确定：账本没有其结果，且没有剩余的投递`],
  // the audit trail
  [/^nothing was left to deliver: (\d+) recipient\(s\) count as uncertain$/, (count) => `没有剩余的投递：${count} 位接收者计为不确定`],
  [/^(\d+) of (\d+) recipient\(s\) as (\w+)$/, (changed, of, to) => `${of} 位接收者中的 ${changed} 位改为${CODES[to] || to}`],
];
