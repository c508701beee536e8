//! Checks what an app may send: its senders, targets, audiences and numbers of recipients. These
//! functions take a job and return every rule that it breaks. The gateway checks a job before it
//! accepts it, and the intake before it cuts it, so the rules hold for jobs over HTTP and over
//! AMQP.

use std::fmt;

use serde::Serialize;
use strum::{EnumString, IntoStaticStr, VariantArray};

use super::fields::Problem;
use super::ids::JobId;
use super::job::Job;
use super::slice::Addressed;

/// The rules of one app. The default allows any sender and any target, but not all users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Allowed senders; empty means any, including the target's default sender.
    pub senders: Vec<String>,
    /// Allowed targets; empty means any.
    pub targets: Vec<String>,
    pub audiences: Vec<AudienceKind>,
    /// The most list entries of one job.
    pub recipients_max: Option<u64>,
    /// The most list entries on one UTC day.
    pub daily_recipients: Option<u64>,
}

impl Default for Permissions {
    fn default() -> Self {
        Self {
            senders: Vec::new(),
            targets: Vec::new(),
            audiences: vec![AudienceKind::Users, AudienceKind::Groups],
            recipients_max: None,
            daily_recipients: None,
        }
    }
}

/// A kind of audience.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, EnumString, IntoStaticStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AudienceKind {
    Users,
    Groups,
    All,
}

impl AudienceKind {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for AudienceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The parts of a job that permissions apply to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub job: JobId,
    pub app: String,
    pub client_msg_no: String,
    pub sender: Option<String>,
    pub target: String,
    /// The second target.
    pub fallback: Option<String>,
    pub crowd: AudienceKind,
    /// Each submitted list, by the name of its submission, with the number of its entries. An
    /// audience of all users has no list.
    pub lists: Vec<(String, u64)>,
}

impl Asked {
    pub fn of(job: &Job<'_>) -> Self {
        let (crowd, lists) = if job.is_for_all() {
            (AudienceKind::All, Vec::new())
        } else {
            let crowd = match job.head.addressed {
                Addressed::Users => AudienceKind::Users,
                Addressed::Groups(_) => AudienceKind::Groups,
            };
            (crowd, vec![(job.submission.clone(), job.entries as u64)])
        };
        Self {
            job: job.head.id,
            app: job.head.app.clone(),
            client_msg_no: job.head.client_msg_no.clone(),
            sender: job.head.sender.clone(),
            target: job.head.target.clone(),
            fallback: job.head.fallback.as_ref().map(|it| it.target.clone()),
            crowd,
            lists,
        }
    }

    pub fn recipients(&self) -> u64 {
        self.lists.iter().map(|(_, entries)| entries).sum()
    }
}

impl Permissions {
    /// Every rule that a job breaks by itself. The app's earlier use is checked by the
    /// [quotas](crate::ports::Quotas).
    pub fn problems(&self, asked: &Asked) -> Vec<Problem> {
        let mut problems = Vec::new();
        let app = &asked.app;
        if !self.senders.is_empty() {
            let what = match &asked.sender {
                None => Some("missing;".to_owned()),
                Some(sender) if self.senders.contains(sender) => None,
                Some(sender) => Some(format!("{sender:?} is not allowed;")),
            };
            problems.extend(what.map(|what| {
                let allowed = self.senders.join(", ");
                Problem::new(
                    "sender",
                    format!("{what} app {app:?} may send as: {allowed}"),
                )
            }));
        }
        let targets = [
            ("target", Some(&asked.target)),
            ("fallback.target", asked.fallback.as_ref()),
        ];
        let forbidden =
            |target: &&String| !self.targets.is_empty() && !self.targets.contains(target);
        for (field, target) in targets {
            problems.extend(target.filter(forbidden).map(|target| {
                let allowed = self.targets.join(", ");
                let what = format!("{target:?} is not allowed; app {app:?} may send to: {allowed}");
                Problem::new(field, what)
            }));
        }
        if !self.permits(asked.crowd) {
            let what = format!(
                "is not allowed for app {app:?}; apps.{app}.audiences does not list \"{}\"",
                asked.crowd
            );
            problems.push(Problem::new(format!("audience.{}", asked.crowd), what));
        }
        let recipients = asked.recipients();
        if let Some(most) = self.recipients_max.filter(|most| recipients > *most) {
            let what = too_many(app, recipients, most);
            problems.push(Problem::new(format!("audience.{}", asked.crowd), what));
        }
        problems
    }

    /// An app that may send to all users may send to some of them; the list of all users arrives in
    /// parts.
    fn permits(&self, crowd: AudienceKind) -> bool {
        self.audiences.contains(&crowd)
            || crowd == AudienceKind::Users && self.audiences.contains(&AudienceKind::All)
    }

    /// Whether the app's earlier use counts.
    pub fn counts(&self) -> bool {
        self.recipients_max.is_some() || self.daily_recipients.is_some()
    }

    /// The rules that these jobs break together with the app's earlier use. `job` is the one that
    /// exceeds it.
    pub fn over(&self, asked: &[Asked], job: JobId, used: Used) -> Vec<Problem> {
        let mut problems = Vec::new();
        let of_job = || asked.iter().filter(|asked| asked.job == job);
        let Some(first) = of_job().next() else {
            return problems;
        };
        let app = &first.app;
        let field = format!("audience.{}", first.crowd);
        let whole_job = used.job + of_job().map(Asked::recipients).sum::<u64>();
        if let Some(most) = self.recipients_max.filter(|most| whole_job > *most) {
            problems.push(Problem::new(field.clone(), too_many(app, whole_job, most)));
        }
        let more: u64 = asked.iter().map(Asked::recipients).sum();
        if let Some(most) = self.daily_recipients
            && used.day + more > most
        {
            let left = most.saturating_sub(used.day);
            let what = format!(
                "{more} recipients, and app {app:?} has {left} of {most} left until 00:00 UTC"
            );
            problems.push(Problem::new(field, what));
        }
        problems
    }
}

fn too_many(app: &str, recipients: u64, most: u64) -> String {
    format!("{recipients} recipients; app {app:?} may send to at most {most} with one job")
}

/// List entries that were counted before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Of the same job.
    pub job: u64,
    /// Of its app, on this day.
    pub day: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        Asked {
            job: JobId::of("shop", "promo"),
            app: "shop".to_owned(),
            client_msg_no: "promo".to_owned(),
            sender: Some("news".to_owned()),
            target: "im".to_owned(),
            fallback: None,
            crowd: AudienceKind::Users,
            lists: vec![("a".to_owned(), 60), ("b".to_owned(), 40)],
        }
    }

    fn strict() -> Permissions {
        Permissions {
            senders: vec!["news".to_owned(), "offers".to_owned()],
            targets: vec!["im".to_owned()],
            audiences: vec![AudienceKind::Users],
            recipients_max: Some(100),
            daily_recipients: Some(1000),
        }
    }

    fn check(permissions: &Permissions, asked: &Asked, expected: &[&str]) {
        let problems = permissions.problems(asked);
        let texts: Vec<_> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn what_is_allowed_is_allowed() {
        check(&strict(), &asked(), &[]);
        let nobody = Asked {
            sender: None,
            ..asked()
        };
        check(&Permissions::default(), &nobody, &[]);
    }

    #[test]
    fn every_broken_rule_is_told_at_once() {
        let other = Asked {
            sender: Some("boss".to_owned()),
            target: "sms".to_owned(),
            fallback: Some("mail".to_owned()),
            crowd: AudienceKind::Groups,
            lists: vec![("a".to_owned(), 101)],
            ..asked()
        };
        check(
            &strict(),
            &other,
            &[
                r#"sender: "boss" is not allowed; app "shop" may send as: news, offers"#,
                r#"target: "sms" is not allowed; app "shop" may send to: im"#,
                r#"fallback.target: "mail" is not allowed; app "shop" may send to: im"#,
                r#"audience.groups: is not allowed for app "shop"; apps.shop.audiences does not list "groups""#,
                r#"audience.groups: 101 recipients; app "shop" may send to at most 100 with one job"#,
            ],
        );
    }

    #[test]
    fn a_sender_must_be_named_where_senders_are_listed() {
        let nobody = Asked {
            sender: None,
            ..asked()
        };
        check(
            &strict(),
            &nobody,
            &[r#"sender: missing; app "shop" may send as: news, offers"#],
        );
    }

    #[test]
    fn all_users_are_for_those_it_is_listed_for() {
        let all = Asked {
            crowd: AudienceKind::All,
            lists: Vec::new(),
            ..asked()
        };
        check(
            &Permissions::default(),
            &all,
            &[
                r#"audience.all: is not allowed for app "shop"; apps.shop.audiences does not list "all""#,
            ],
        );
        let only_all = Permissions {
            audiences: vec![AudienceKind::All],
            ..Permissions::default()
        };
        check(&only_all, &all, &[]);
        // Its parts arrive as lists.
        check(&only_all, &asked(), &[]);
    }

    #[test]
    fn what_was_used_before_counts_to_the_last_recipient() {
        let over = |job, day| {
            let asked = [asked()];
            let problems = strict().over(&asked, asked[0].job, Used { job, day });
            problems.len()
        };
        assert_eq!(over(0, 0), 0);
        assert_eq!(over(0, 900), 0);
        assert_eq!(over(0, 901), 1);
        assert_eq!(over(1, 900), 1);
        assert_eq!(over(1, 901), 2);
        let free = Permissions::default();
        let used = Used {
            job: u64::MAX / 2,
            day: u64::MAX / 2,
        };
        assert_eq!(free.over(&[asked()], asked().job, used), []);
    }
}
