//! Reads `[targets.NAME]`: one backend account. One function reads the keys that all targets have;
//! a function for each `type` reads the others.

use std::collections::BTreeMap;
use std::time::Duration;

use fanwise_client::webhook::Scheme;

use super::reader::{Findings, Origin, Section, Shown};
use super::signatures::read_scheme;
use super::{HOUR, MINUTE, SECOND, retry, servers};
use crate::domain::breaker::BreakerRule;
use crate::domain::codes::ClassByCode;
use crate::domain::concurrency::CallsInFlight;
use crate::domain::cost::{COST_MAX, Prices};
use crate::domain::limits::Rate;
use crate::domain::message::kinds;
use crate::domain::outcome::{Class, OnUncertain};
use crate::domain::retry::{RetryChanges, RetryPolicy};
use crate::im::{TargetSettings, netease, openim, webhook, wukongim, yunxin};
use crate::secret::Secret;
use crate::tls::TlsSettings;

#[derive(Clone, Debug)]
pub struct TargetConfig {
    pub settings: TargetSettings,
    /// `call_timeout`: longest wait for an answer; after that the call is in doubt. Default 10s;
    /// 100ms to 5m.
    pub call_timeout: Duration,
    /// `calls_in_flight`: calls at a time, per worker. Default 256; 1 to 10000, or "auto".
    pub calls_in_flight: CallsInFlight,
    /// `limit`: a rate that all workers share, such as `"2000/s burst 200"`, in calls unless it
    /// says `per recipient`. Default: slightly less than the system allows; for most systems none.
    pub limit: Option<Rate>,
    /// `daily_limit`: a second limit, such as `"100000/day"`, whose units are spread over the day. In
    /// calls unless it says `per recipient`. Default none.
    pub daily_limit: Option<Rate>,
    /// `sender_limit`: the limit of each sender, such as `"10/s"`, in recipients unless it says `per
    /// call`. Default none.
    pub sender_limit: Option<Rate>,
    /// `shared_limit`: the name of a limit in `[shared_limits]`, which several targets can name.
    /// Default none.
    pub shared_limit: Option<String>,
    /// `cost`: the units that a message takes of these limits, by type, and `per_kilobyte` for each
    /// further kilobyte. Default one unit a message.
    pub prices: Prices,
    /// `on_uncertain`: `auto` (default: `retry` if the target is idempotent, else `hold`), `retry`,
    /// `hold` or `drop`.
    pub on_uncertain: Option<OnUncertain>,
    /// `[targets.NAME.retry]`: what differs from `[retry]`.
    pub retry: RetryChanges,
    /// `codes`: codes with another class than their system gives them. Not for webhooks, which have
    /// `statuses`. Default none.
    pub classes: ClassByCode,
    /// `config_fault_pause`: how long a configuration fault parks the job that met it, or the
    /// target, before the next try. Default 1m; 1s to 1h.
    pub config_fault_pause: Duration,
    /// `breaker_failures`: after this many failed calls in a row the target is parked, for 1s to
    /// 30s, longer each time; then one call at a time tries it. Refusals and 429 are not failures.
    /// Default 50; 1 to 100000. `breaker_ratio` (0.5; 0 to below 1) and `breaker_window` (30s; 1s
    /// to 10m): so many failures within the window park it too, if they are this share of its
    /// calls.
    pub breaker: BreakerRule,
    /// `adapt_interval`: after a throttle answer the limit halves and climbs by a tenth in each
    /// such time. Default 10s; 1s to 1h.
    pub adapt_interval: Duration,
    /// `warm_up`: after other failures the limit climbs from a tenth to the whole in this time; 1s
    /// to 24h. Default none: the whole limit at once.
    pub warm_up: Option<Duration>,
    /// `pending_max`: if so many recipients wait for the target, the HTTP interface answers 503 to
    /// further jobs for it; at least 1. Default none.
    pub pending_max: Option<u64>,
    /// `ca_file`, `certificate`, `key`, `server_name`: TLS, if the address asks for it.
    pub tls: TlsSettings,
}

pub(super) fn from_section(
    name: &str,
    mut section: Section,
    retry: RetryPolicy,
    findings: &mut Findings,
) -> Option<TargetConfig> {
    let kinds = [
        ("webhook", Kind::Webhook),
        ("wukongim", Kind::Wukongim),
        ("openim", Kind::Openim),
        ("netease", Kind::Netease),
        ("yunxin", Kind::Yunxin),
    ];
    let before = findings.problems.len();
    let Some(kind) = section.required_choice("type", &kinds, findings) else {
        // Without a type, a key that no type has is misspelt, and a value that no type takes is wrong.
        let readers = kinds.map(|(_, kind)| {
            move |section: &mut Section, findings: &mut Findings| {
                read_as(kind, section, retry, findings);
            }
        });
        section.read_as_any(readers, findings);
        section.finish(findings);
        return None;
    };
    let target = read_as(kind, &mut section, retry, findings);
    // The adapter checks the rest. A value that could not be read has a stand-in: then only what the
    // adapter finds about the address is sure.
    let is_read = findings.problems.len() == before;
    let address_key = section.key("url");
    let limit_key = section.key("limit");
    let policy_key = section.key("on_uncertain");
    section.finish(findings);
    match crate::im::build(name, &target.settings) {
        Ok(built) if is_read => {
            if let (None, Some(limit)) = (target.limit, built.profile().limit) {
                let (value, origin) = (format!("\"{limit}\""), Origin::Default);
                findings.shown.insert(limit_key, Shown { value, origin });
            }
            if target.on_uncertain == Some(OnUncertain::Retry) && !built.profile().idempotent {
                let what = "the target does not recognise a repeated call: recipients that a call in doubt \
                                reached get the message twice";
                findings.warning(policy_key, what);
            }
        }
        Ok(_) => {}
        Err(problems) if is_read => findings.problems.extend(problems),
        Err(problems) => {
            let known = findings.problems.iter().any(|it| it.field == address_key);
            let of_address = problems.into_iter().filter(|it| it.field == address_key);
            findings.problems.extend(of_address.filter(|_| !known));
        }
    }
    Some(target)
}

/// Reads all settings of a target of this type.
fn read_as(
    kind: Kind,
    section: &mut Section,
    retry: RetryPolicy,
    findings: &mut Findings,
) -> TargetConfig {
    let settings = match kind {
        Kind::Webhook => TargetSettings::Webhook(read_webhook(section, findings)),
        Kind::Wukongim => TargetSettings::Wukongim(read_wukongim(section, findings)),
        Kind::Openim => TargetSettings::Openim(read_openim(section, findings)),
        Kind::Netease => TargetSettings::Netease(read_netease(section, findings)),
        Kind::Yunxin => TargetSettings::Yunxin(read_yunxin(section, findings)),
    };
    let policies = [
        ("auto", None),
        ("retry", Some(OnUncertain::Retry)),
        ("hold", Some(OnUncertain::Hold)),
        ("drop", Some(OnUncertain::Drop)),
    ];
    let call_timeout = Duration::from_millis(100)..=5 * MINUTE;
    TargetConfig {
        classes: read_codes(&settings, section, findings),
        retry: retry::changes(section, retry, findings),
        settings,
        call_timeout: section.duration("call_timeout", 10 * SECOND, call_timeout, findings),
        calls_in_flight: section.calls_in_flight("calls_in_flight", 256, 1..=10_000, findings),
        limit: section.rate("limit", findings),
        daily_limit: section.daily_rate("daily_limit", findings),
        sender_limit: section.rate("sender_limit", findings),
        shared_limit: section.optional_text("shared_limit", findings),
        prices: read_prices(section, findings),
        on_uncertain: section
            .choice("on_uncertain", "auto", &policies, findings)
            .flatten(),
        config_fault_pause: section.duration("config_fault_pause", MINUTE, SECOND..=HOUR, findings),
        breaker: BreakerRule {
            failures: section.integer("breaker_failures", 50, 1..=100_000, findings) as u32,
            ratio: section.ratio("breaker_ratio", 0.5, findings),
            window: section.duration(
                "breaker_window",
                30 * SECOND,
                SECOND..=10 * MINUTE,
                findings,
            ),
        },
        adapt_interval: section.duration("adapt_interval", 10 * SECOND, SECOND..=HOUR, findings),
        warm_up: section.optional_duration("warm_up", SECOND..=24 * HOUR, findings),
        pending_max: section.optional_integer("pending_max", 1..=u64::MAX, findings),
        tls: servers::read_tls(section, findings),
    }
}

/// Warns of targets that share a NetEase application. The application's limit is for all its calls,
/// but each target applies the whole limit to its own calls.
pub(super) fn check_applications(
    targets: &BTreeMap<String, TargetConfig>,
    findings: &mut Findings,
) {
    let mut known = BTreeMap::new();
    let whole = |target: &TargetConfig| target.limit.is_none() && target.shared_limit.is_none();
    for (name, target) in targets.iter().filter(|(_, target)| whole(target)) {
        // The vendor counts batches and single calls separately.
        let application = match &target.settings {
            TargetSettings::Netease(settings) => (&settings.app_key, "v1"),
            TargetSettings::Yunxin(settings) if settings.single => (&settings.app_key, "v2 single"),
            TargetSettings::Yunxin(settings) => (&settings.app_key, "v2"),
            _ => continue,
        };
        if let Some(first) = known.insert(application, name) {
            let what = format!(
                "the same application as targets.{first}; each has the application's whole limit, and \
                 together they exceed it: use one target, or give both a `limit` or \
                 a `shared_limit`"
            );
            findings.warning(format!("targets.{name}.app_key"), what);
        }
    }
}

/// Refuses different TLS settings for one server: its connections are shared.
pub(super) fn check_tls(targets: &BTreeMap<String, TargetConfig>, findings: &mut Findings) {
    let mut known = BTreeMap::new();
    for (name, target) in targets {
        for address in target.settings.addresses() {
            let (first, tls) = known.entry(address).or_insert((name, &target.tls));
            if **tls != target.tls {
                let what = format!(
                    "differs from targets.{first}, which has the same server: give both targets the \
                     same TLS settings"
                );
                findings.problem(format!("targets.{name}.ca_file"), what);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Webhook,
    Wukongim,
    Openim,
    Netease,
    Yunxin,
}

/// `type = "webhook"`: `url` (required, with `{recipient}`, `{client_msg_no}`, `{job}`, `{app}`),
/// `headers`, `recipients_per_call` (1; to 1000), `idempotent` (false), `signature_secret` or
/// `signature_secret_file`, `signature_scheme` (`standard` or `fanwise`), `signature_header` (of the
/// scheme `fanwise`; `fanwise-signature`), `statuses` (status or range → class).
fn read_webhook(section: &mut Section, findings: &mut Findings) -> webhook::Settings {
    let most = webhook::Settings::RECIPIENTS_PER_CALL_MAX as u64;
    let per_call = webhook::Settings::RECIPIENTS_PER_CALL as u64;
    let header = section.text("signature_header", Scheme::FANWISE_HEADER, findings);
    let scheme = read_scheme(section, findings);
    let secret = section.secret("signature_secret", "signature_secret_file", findings);
    webhook::Settings {
        headers: section.texts("headers", findings),
        recipients_per_call: section.integer("recipients_per_call", per_call, 1..=most, findings)
            as usize,
        signature: secret.map(|secret| webhook::Signature {
            secret,
            scheme,
            header,
        }),
        idempotent: section.boolean("idempotent", false, findings),
        statuses: read_statuses(section, findings),
        ..webhook::Settings::new(section.required_address("url", findings))
    }
}

fn read_statuses(section: &mut Section, findings: &mut Findings) -> Vec<(String, Class)> {
    let statuses = section.texts("statuses", findings).into_iter();
    let classes = statuses.filter_map(|(status, word)| {
        let class = read_class(section, "statuses", &status, &word, findings)?;
        Some((status, class))
    });
    classes.collect()
}

/// `codes` of a target of an IM system: code or range → class.
fn read_codes(
    settings: &TargetSettings,
    section: &mut Section,
    findings: &mut Findings,
) -> ClassByCode {
    let Some(forms) = settings.code_forms() else {
        return ClassByCode::default();
    };
    let mut entries = Vec::new();
    for (text, word) in section.texts("codes", findings) {
        let class = read_class(section, "codes", &text, &word, findings);
        match (forms.parse(&text), class) {
            (Ok(codes), Some(class)) => entries.push((codes, class)),
            (Err(what), _) => findings.problem(section.key(&format!("codes.{text}")), what),
            (Ok(_), None) => {}
        }
    }
    ClassByCode::new(entries)
}

/// `cost`: units by type of message, and `per_kilobyte`.
fn read_prices(section: &mut Section, findings: &mut Findings) -> Prices {
    let mut prices = Prices::default();
    for (name, text) in section.texts("cost", findings) {
        let key = section.key(&format!("cost.{name}"));
        let units = text.parse().ok().filter(|it| (1..=COST_MAX).contains(it));
        let Some(units) = units else {
            let what = format!("a whole number, 1 to {COST_MAX}, is expected, not {text:?}");
            findings.problem(key, what);
            continue;
        };
        if name == PER_KILOBYTE {
            prices.per_kilobyte = units;
        } else if kinds().any(|kind| kind == name) {
            prices.types.insert(name, units);
        } else {
            let known: Vec<_> = kinds().chain([PER_KILOBYTE]).collect();
            findings.problem(key, format!("one of {} is expected", known.join(", ")));
        }
    }
    prices
}

const PER_KILOBYTE: &str = "per_kilobyte";

/// The class of an entry of a table.
fn read_class(
    section: &Section,
    table: &str,
    entry: &str,
    word: &str,
    findings: &mut Findings,
) -> Option<Class> {
    let class = word.parse().ok();
    if class.is_none() {
        let words: Vec<_> = Class::ALL.iter().map(|class| class.as_str()).collect();
        let what = format!("one of {} is expected, not {word:?}", words.join(", "));
        findings.problem(section.key(&format!("{table}.{entry}")), what);
    }
    class
}

/// `type = "wukongim"`: `url` (required), `version` (required: `v1`, `v2`, `v3`), `token` or
/// `token_file`, `sender`, `packed` (false), `subscribers` (false), `recipients_per_call` (100; to
/// 1000, of calls for many), `payload_bytes_max` (32767; to 1048576), `client_msg_no`
/// (`per_recipient` or `job`), `probe` (false), `manager_url`, `manager_user`, `manager_password`
/// or `manager_password_file`.
fn read_wukongim(section: &mut Section, findings: &mut Findings) -> wukongim::Settings {
    use wukongim::{ClientMsgNo, Manager, Settings, Version};
    let versions = [
        ("v1", Version::V1),
        ("v2", Version::V2),
        ("v3", Version::V3),
    ];
    let numbers = [
        ("per_recipient", ClientMsgNo::PerRecipient),
        ("job", ClientMsgNo::Job),
    ];
    let per_call = Settings::RECIPIENTS_PER_CALL as u64;
    let most = Settings::RECIPIENTS_PER_CALL_MAX as u64;
    let payload = Settings::PAYLOAD_BYTES_MAX as u64;
    let version = section.required_choice("version", &versions, findings);
    let number = section.choice("client_msg_no", "per_recipient", &numbers, findings);
    let user = section.optional_text("manager_user", findings);
    let password = section.secret("manager_password", "manager_password_file", findings);
    // The adapter refuses one without the other.
    let manager = (user.is_some() || password.is_some()).then(|| Manager {
        user: user.unwrap_or_default(),
        password: password.unwrap_or_else(|| Secret::new("")),
    });
    Settings {
        token: section.secret("token", "token_file", findings),
        sender: section.optional_text("sender", findings),
        packed: section.boolean("packed", false, findings),
        subscribers: section.boolean("subscribers", false, findings),
        recipients_per_call: section.integer("recipients_per_call", per_call, 1..=most, findings)
            as usize,
        payload_bytes_max: section.integer("payload_bytes_max", payload, 1..=1 << 20, findings)
            as usize,
        client_msg_no: number.unwrap_or(ClientMsgNo::PerRecipient),
        probe: section.boolean("probe", false, findings),
        manager_url: section.optional_address("manager_url", findings),
        manager,
        ..Settings::new(
            section.required_address("url", findings),
            version.unwrap_or(Version::V2),
        )
    }
}

/// `type = "openim"`: `url` (required), `auth` (`admin_token`, `user_token` or `token`), `secret`
/// or `secret_file` (required unless `auth` is `token`), `token` or `token_file` (required if it
/// is), `admin_user` (`imAdmin`), `sender`, `session` (`single` or `notification`), `notice_name`,
/// `packed` (false), `recipients_per_call` (100; to 1000, when packed).
fn read_openim(section: &mut Section, findings: &mut Findings) -> openim::Settings {
    use openim::{Auth, Session, Settings};
    let ways = [
        ("admin_token", Auth::AdminToken),
        ("user_token", Auth::UserToken),
        ("token", Auth::Token),
    ];
    let sessions = [
        ("single", Session::Single),
        ("notification", Session::Notification),
    ];
    let per_call = Settings::RECIPIENTS_PER_CALL as u64;
    let most = Settings::RECIPIENTS_PER_CALL_MAX as u64;
    let auth = section.choice("auth", "admin_token", &ways, findings);
    let session = section.choice("session", "single", &sessions, findings);
    Settings {
        auth: auth.unwrap_or(Auth::AdminToken),
        secret: section.secret("secret", "secret_file", findings),
        token: section.secret("token", "token_file", findings),
        admin_user: section.text("admin_user", Settings::ADMIN_USER, findings),
        sender: section.optional_text("sender", findings),
        session: session.unwrap_or(Session::Single),
        notice_name: section.optional_text("notice_name", findings),
        packed: section.boolean("packed", false, findings),
        recipients_per_call: section.integer("recipients_per_call", per_call, 1..=most, findings)
            as usize,
        ..Settings::new(section.required_address("url", findings))
    }
}

/// `type = "netease"`: `url`, `app_key` and `app_secret` or `app_secret_file` (required), `sender`,
/// `message_ids` (false), `recipients_per_call` (500, or 100 with `message_ids`; to 1000),
/// `body_length_max` (5000), `extension_length_max` (1024), `push_text_length_max` (500) and
/// `push_payload_length_max` (2048; each to 20000), `block` (1m) and `single_block` (10s; each 1s
/// to 1h), `trust_request_id` (false).
fn read_netease(section: &mut Section, findings: &mut Findings) -> netease::Settings {
    use netease::Settings;
    let message_ids = section.boolean("message_ids", false, findings);
    let documented = Settings::documented_per_call(message_ids);
    let most = Settings::RECIPIENTS_PER_CALL_MAX;
    let extension = Settings::EXTENSION_LENGTH_MAX;
    let (url, app_key, app_secret) = read_account(section, findings);
    let [push_text_length_max, push_payload_length_max] = read_push_lengths(section, findings);
    let [block, single_block] = read_blocks(section, findings);
    Settings {
        sender: section.optional_text("sender", findings),
        message_ids,
        recipients_per_call: Some(read_per_call(section, documented, most, findings)),
        body_length_max: section.length("body_length_max", Settings::BODY_LENGTH_MAX, findings),
        extension_length_max: section.length("extension_length_max", extension, findings),
        push_text_length_max,
        push_payload_length_max,
        block,
        single_block,
        trust_request_id: section.boolean("trust_request_id", false, findings),
        ..Settings::new(url, app_key, app_secret)
    }
}

/// `type = "yunxin"`: `url`, `app_key` and `app_secret` or `app_secret_file` (required), `sender`,
/// `single` (false), `recipients_per_call` (100; to 1000), `text_length_max` (5000),
/// `push_text_length_max` (500) and `push_payload_length_max` (2048; each to 20000), `block` (1m)
/// and `single_block` (10s; each 1s to 1h), `trust_request_id` (false).
fn read_yunxin(section: &mut Section, findings: &mut Findings) -> yunxin::Settings {
    use yunxin::Settings;
    let documented = Settings::RECIPIENTS_PER_CALL;
    let most = Settings::RECIPIENTS_PER_CALL_MAX;
    let (url, app_key, app_secret) = read_account(section, findings);
    let [push_text_length_max, push_payload_length_max] = read_push_lengths(section, findings);
    let [block, single_block] = read_blocks(section, findings);
    Settings {
        sender: section.optional_text("sender", findings),
        single: section.boolean("single", false, findings),
        recipients_per_call: read_per_call(section, documented, most, findings),
        text_length_max: section.length("text_length_max", Settings::TEXT_LENGTH_MAX, findings),
        push_text_length_max,
        push_payload_length_max,
        block,
        single_block,
        trust_request_id: section.boolean("trust_request_id", false, findings),
        ..Settings::new(url, app_key, app_secret)
    }
}

/// Recipients of one call to NetEase's cloud. Warns if that is more than NetEase documents.
fn read_per_call(
    section: &mut Section,
    documented: usize,
    most: usize,
    findings: &mut Findings,
) -> usize {
    let bounds = 1..=most as u64;
    let key = "recipients_per_call";
    let per_call = section.integer(key, documented as u64, bounds, findings) as usize;
    if per_call > documented {
        let what = format!(
            "more than the documented {documented}; Fanwise repeats a call that is refused for this \
             in halves"
        );
        findings.warning(section.key(key), what);
    }
    per_call
}

/// The longest text and payload of a push.
fn read_push_lengths(section: &mut Section, findings: &mut Findings) -> [usize; 2] {
    use netease::Settings;
    [
        ("push_text_length_max", Settings::PUSH_TEXT_LENGTH_MAX),
        ("push_payload_length_max", Settings::PUSH_PAYLOAD_LENGTH_MAX),
    ]
    .map(|(name, default)| section.length(name, default, findings))
}

/// How long NetEase's cloud blocks an application: after batches, and after single calls.
fn read_blocks(section: &mut Section, findings: &mut Findings) -> [Duration; 2] {
    use netease::Settings;
    [
        ("block", Settings::BLOCK),
        ("single_block", Settings::SINGLE_BLOCK),
    ]
    .map(|(name, default)| section.duration(name, default, SECOND..=HOUR, findings))
}

/// Address, AppKey and AppSecret of an application in NetEase's cloud.
fn read_account(section: &mut Section, findings: &mut Findings) -> (String, String, Secret) {
    let url = section.required_address("url", findings);
    let app_key = section.required_text("app_key", findings);
    let missing = "missing; `app_secret` or `app_secret_file` is needed";
    let secret = section.required_secret("app_secret", "app_secret_file", missing, findings);
    (url, app_key, secret.unwrap_or_else(|| Secret::new("")))
}

impl Section {
    /// Longest value of a field, in UTF-16 units.
    fn length(&mut self, name: &'static str, default: usize, findings: &mut Findings) -> usize {
        self.integer(name, default as u64, 1..=20_000, findings) as usize
    }
}
