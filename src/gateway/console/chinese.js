// The texts of the pages in Chinese. A test compares them with the pages.

export const CHINESE = {
  // frame
  'Jobs': '任务', 'Submit': '提交', 'Schedules': '定时任务', 'Dead letters': '死信', 'Targets': '目标', 'Templates': '模板', 'About': '关于',
  'Pages': '页面', 'Language': '语言', 'Appearance': '外观', 'As the system': '跟随系统', 'Light': '浅色', 'Dark': '深色',
  'Administrator': '管理员', 'Sign in': '登录', 'Sign out': '退出', 'Token': '令牌', 'To the content': '跳到内容',
  'This token is not known.': '令牌无效。',
  'gateway.token shows everything, the token of an app shows its own jobs. It is forgotten when you close this tab.': 'gateway.token 可查看全部内容，应用的令牌只能查看该应用的任务。关闭此标签页后令牌即被清除。',
  'HTTP interface': 'HTTP 接口', 'Loading…': '加载中…', 'The server cannot be reached.': '无法连接服务器。', 'Trying again…': '正在重试…',
  // states and outcomes
  'accepted': '已接收', 'running': '发送中', 'completed': '已完成', 'cancelled': '已取消', 'scheduled': '等待开始', 'outside its hours': '不在发送时段', 'paused': '已暂停', 'parked': '已停靠',
  'ledger away': '账本不可用', 'broker away': '消息队列不可用', 'no worker': '没有 worker', 'no target': '没有目标', 'not cut yet': '尚未切分', 'moving': '正常', 'failed': '失败', 'uncertain': '不确定', 'expired': '已过期', 'capped': '已达频次上限',
  'duplicate': '重复', 'sent': '已发送', 'pending': '待处理', 'not seen': '未见', 'claimed': '处理中', 'in doubt': '存疑', 'dead': '死信', 'warning': '警告',
  'works': '正常', 'does not work': '异常',
  // jobs
  'Job': '任务', 'State': '状态', 'Progress': '进度', 'Rate': '速率', 'Time left': '剩余时间', 'Accepted': '接收时间', 'App': '应用', 'Target': '目标',
  'All': '全部', 'Any time': '任意时间', 'Last hour': '最近 1 小时', 'Last 24 hours': '最近 24 小时', 'Last 7 days': '最近 7 天', 'Key or id': '键或 ID', 'Find': '查找',
  'Submit a job': '提交任务', 'No job fits these filters.': '没有符合条件的任务。', 'No job was accepted yet.': '还没有任务。', 'Newer': '较新', 'Older': '较旧',
  // one job
  'Accounts': '账目', '{time} left': '剩余 {time}', '{s} s': '{s} 秒', '{m} min {s} s': '{m} 分 {s} 秒', '{h} h {m} min': '{h} 小时 {m} 分', '{d} d {h} h': '{d} 天 {h} 小时', 'What limits it': '限制因素', 'Facts': '详情', 'Not before': '不早于', 'Sending hours': '发送时段', 'Spread until': '均匀发送至', 'Last outcome': '最近结果',
  'Completed': '完成时间', 'Own rate': '自身速率', 'Category': '消息类别', 'Version of the stored message': '模板版本', 'Callback': '回调', 'Reply to': '回复队列',
  'Count again in the ledger': '在账本中重新计数', 'The accounts are exact.': '账目完全一致。', 'One recipient': '查询接收者', 'User': '用户', 'Look up': '查询',
  'All of them': '查看全部', 'Recipient': '接收者', 'Outcome': '结果', 'Code': '代码', 'Answer of the backend': '后端应答', 'Outcomes over time': '结果随时间的变化',
  'The curve begins with the next outcome that this page hears of.': '曲线从本页面收到的下一个结果开始。',
  // directives
  'Pause': '暂停', 'Resume': '恢复', 'Cancel': '取消', 'Set rate': '设置速率', 'Spread': '均匀发送', 'Park': '停靠', 'Unpark': '解除停靠', 'Reason': '原因', 'Back': '返回', 'Lasts': '持续时间',
  'Shown to everyone who looks at it.': '所有查看者都能看到。', 'Such as 30m or 2h. Leave it empty for no end.': '例如 30m 或 2h；留空表示一直有效。',
  'A time, or a time from now such as 2h; “none” sends as fast as the limits allow. A rate that was set ends.': '时间，或从现在起的时长，例如 2h；“none” 表示在限速内尽快发送。已设置的速率将失效。',
  'The recipients that are left get the message evenly until then.': '剩余接收者将在此之前均匀收到消息。',
  'Such as 2000/s. “default” is the configured one.': '例如 2000/s；“default” 表示配置的速率。', 'Nothing is sent until it is resumed.': '恢复之前不会发送任何消息。',
  'Recipients without an outcome end cancelled. This cannot be undone.': '尚无结果的接收者将以“已取消”结束，此操作无法撤销。',
  'The target gets no calls, for 10 minutes unless you say otherwise.': '目标将不再收到调用，默认持续 10 分钟。', 'The target is called again at once.': '立即恢复对目标的调用。',
  'Audit trail': '操作记录', 'Tags': '标签',
  // targets
  'Test message': '测试消息', 'Send test message': '发送测试消息', 'Sender': '发送者', 'Request': '请求', 'Answer after {ms} ms': '{ms} 毫秒后应答', 'There was no answer.': '没有应答。',
  '{user} got the message.': '{user} 已收到消息。', '{user} did not get the message, or may not have got it:': '{user} 没有收到消息，或可能没有收到：',
  'The user really gets this message, once. It belongs to no job, and limits do not hold it up.': '该用户会真的收到一次这条消息。它不属于任何任务，也不受限速约束。',
  'Empty for a harmless one.': '留空则使用无害的文本。', 'Empty for the sender of the target.': '留空则使用目标的默认发送者。',
  'parked until {time}': '停靠至 {time}', 'Recipients per second now': '当前每秒接收者', 'Limit': '限速', 'Limit set live': '实时限速', 'Recipients per call': '每次调用接收者', 'Unfinished jobs': '未完成的任务',
  // dead letters
  'Class': '类别', 'Last attempt': '最近尝试', 'Attempts': '尝试次数', 'No dead letters.': '没有死信。', 'Previous': '上一页', 'More': '更多', 'Letters': '逐条', 'By code': '按代码', 'View': '视图',
  'App and target': '应用与目标', 'Recipients': '接收者', 'Show': '查看', 'Dead letters by code': '按代码分组的死信', 'These are the first {count} letters.': '仅统计前 {count} 条。',
  'Redrive': '重发', 'Purge': '清除', 'Redrive dead letters': '重发死信', 'Purge dead letters': '清除死信', 'All dead letters.': '全部死信。',
  'Also uncertain recipients. They may get the message twice.': '包括结果不确定的接收者，他们可能收到两次。', 'Remove the letters once the new job is accepted.': '新任务被接收后清除这些死信。',
  'Recipients that are sent to again': '重新发送的接收者', 'Recipients that would be sent to again': '将重新发送的接收者', 'Redriven before': '此前已重发', 'Uncertain, left out': '不确定，未包括', 'Close': '关闭',
  '{count} recipients lose their dead letters for good. They can no longer be redriven.': '{count} 位接收者的死信将被永久清除，之后无法重发。', 'Type {count} to confirm': '输入 {count} 以确认',
  // templates and schedules
  'Name': '名称', 'Version': '版本', 'Message as JSON': 'JSON 格式的消息', 'Saved as the next version. Jobs that have started keep theirs.': '保存为下一个版本；已开始的任务保留原版本。', 'Save': '保存', 'Stored': '保存于',
  'New template': '新建模板', 'Remove': '删除', 'Edit': '编辑', 'Jobs that name it and have not started are refused.': '引用它且尚未开始的任务将被拒绝。', 'This app has no stored messages.': '此应用没有模板。',
  'Starts': '开始时间', 'No job waits for its start time.': '没有等待开始的任务。', 'There may be more in older jobs.': '更早的任务中可能还有。',
  // submit
  'Message': '消息', 'Text': '文本', 'Stored message': '模板', 'JSON': 'JSON', 'Kind of message': '消息类型', 'Write {{ name }} for a value of the recipient.': '用 {{ name }} 表示接收者的变量。',
  'Values for all recipients, as JSON': '所有接收者共用的变量（JSON）', 'Paste': '粘贴', 'File': '文件', 'Address': '地址', 'Address of the list': '名单地址', 'As the list says': '由名单决定', 'The gateway fetches it, from the hosts that the configuration of the app lists.': '由网关从应用配置中列出的主机获取。', 'Only exactly this list is sent to. May be empty.': '仅发送给与此完全一致的名单，可留空。', 'All users': '所有用户', 'Where the recipients come from': '接收者来源', 'Format': '格式', 'One id a line': '每行一个 ID', 'List': '列表',
  '.txt with one id a line, .csv or .ndjson': '.txt（每行一个 ID）、.csv 或 .ndjson', 'All users of the target get it.': '目标的所有用户都会收到。', 'Column of the ids': 'ID 所在列', 'Its name, or its number.': '列名或列号。',
  'Other columns are values for the message': '其他列作为消息变量', 'Key (client_msg_no)': '键（client_msg_no）', 'The same key and message is the same job.': '键与消息相同即为同一任务。', 'Default of the app': '应用的默认目标',
  'Priority': '优先级', 'high': '高', 'normal': '普通', 'bulk': '批量', 'Such as 200/s; empty for no limit of its own.': '例如 200/s；留空表示无自身限速。', 'Expires': '过期时间', 'Upload': '上传',
  'Dry run': '试运行', '{count} recipients at {target}. Nothing was sent.': '目标 {target} 的 {count} 位接收者。没有发送任何消息。', 'Send': '发送', 'Send to {count} recipients': '发送给 {count} 位接收者', 'Choose a file first.': '请先选择文件。',
  'No limit holds it up: it takes as long as the answers of the target.': '不受限速影响：耗时取决于目标的响应。', 'At least {time} ({limit}).': '至少 {time}（{limit}）。', '{calls} calls, about {size}.': '{calls} 次调用，约 {size}。',
  '{count} of {all} recipients would fail: they lack a value, or the message does not fit.': '{all} 位接收者中有 {count} 位会失败：缺少变量，或消息不符合要求。',
  // about
  'Health': '健康状况', 'Part': '部件', 'Server': '服务器', 'Engine': '引擎', 'embedded, in one file of this machine': '内嵌，存于本机的一个文件', 'RabbitMQ and Redis': 'RabbitMQ 和 Redis',
  'Time of the server': '服务器时间', 'This is not valid JSON.': '不是有效的 JSON。', 'Largest list': '列表大小上限', 'Apps': '应用', 'Default target': '默认目标',
};
