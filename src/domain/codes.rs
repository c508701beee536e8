//! Gives the codes of a backend another class, as the operator of a target configured it.
//!
//! A code is written as dead letters show it, such as `403`, `err_1302` or `unregister`. A range
//! (`500-599`, `5xx`, `err_1300-1399`) stands for all its numbers. The narrowest entry applies.

use std::str::FromStr;

use super::outcome::{Class, TargetAnswer, Verdict};

/// The codes that an entry stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Codes {
    Word(String),
    /// Numbers after a prefix, such as `err_`.
    Numbers {
        prefix: String,
        from: u32,
        to: u32,
    },
}

/// The text stands for no codes.
#[derive(Debug, PartialEq, Eq)]
pub struct NoCodes;

impl FromStr for Codes {
    type Err = NoCodes;

    fn from_str(text: &str) -> Result<Self, NoCodes> {
        let Some(first) = text.find(|it: char| it.is_ascii_digit()) else {
            return match text.is_empty() {
                true => Err(NoCodes),
                false => Ok(Self::Word(text.to_owned())),
            };
        };
        let (prefix, numbers) = text.split_at(first);
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let plain = text == "0" || !text.starts_with('0');
            let number = text.parse::<u32>().ok();
            number.filter(|_| digits && plain).ok_or(NoCodes)
        };
        let (from, to) = if let Some(hundred) = numbers.strip_suffix("xx") {
            let from = number(hundred)?.checked_mul(100).ok_or(NoCodes)?;
            (from, from.saturating_add(99))
        } else if let Some((from, to)) = numbers.split_once('-') {
            (number(from)?, number(to)?)
        } else {
            (number(numbers)?, number(numbers)?)
        };
        let prefix = prefix.to_owned();
        match from <= to {
            true => Ok(Self::Numbers { prefix, from, to }),
            false => Err(NoCodes),
        }
    }
}

impl Codes {
    pub fn contain(&self, code: &str) -> bool {
        match self {
            Self::Word(word) => word == code,
            Self::Numbers { prefix, from, to } => {
                let number = code.strip_prefix(prefix.as_str());
                let number = number.filter(|it| it.bytes().all(|byte| byte.is_ascii_digit()));
                let number = number.and_then(|it| it.parse::<u32>().ok());
                number.is_some_and(|it| (*from..=*to).contains(&it))
            }
        }
    }

    /// How many codes they are, less one.
    fn width(&self) -> u32 {
        match self {
            Self::Word(_) => 0,
            Self::Numbers { from, to, .. } => to - from,
        }
    }
}

/// The classes that a target gives to codes, instead of those of its system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassByCode(Vec<(Codes, Class)>);

impl ClassByCode {
    pub fn new(mut entries: Vec<(Codes, Class)>) -> Self {
        entries.sort_by_key(|(codes, _)| codes.width());
        Self(entries)
    }

    fn class(&self, code: &str) -> Option<Class> {
        let found = self.0.iter().find(|(codes, _)| codes.contain(code));
        found.map(|(_, class)| *class)
    }

    /// The verdict with the classes of this target.
    pub fn apply(&self, verdict: Verdict) -> Verdict {
        if self.0.is_empty() {
            return verdict;
        }
        match verdict {
            Verdict::All(answer) => Verdict::All(self.of_call(answer)),
            Verdict::Each(answers) => {
                let answers = answers.into_iter().map(|answer| self.of_recipient(answer));
                Verdict::Each(answers.collect())
            }
        }
    }

    /// A refusal of a whole call that no longer stops the target may be about one of its
    /// recipients, so smaller calls find it.
    fn of_call(&self, answer: TargetAnswer) -> TargetAnswer {
        let changed = self.changed(answer);
        match changed {
            Ok(answer) if answer.class == Class::Permanent => answer.split(),
            Ok(answer) | Err(answer) => answer,
        }
    }

    /// One recipient of a call whose others were answered neither blocks the account nor shows that
    /// it is configured wrongly.
    fn of_recipient(&self, answer: TargetAnswer) -> TargetAnswer {
        match self.changed(answer) {
            Ok(mut answer) => {
                answer.class = match answer.class {
                    Class::Config => Class::Permanent,
                    Class::Throttled => Class::Transient,
                    class => class,
                };
                answer
            }
            Err(answer) => answer,
        }
    }

    /// The answer with another class, or as it was.
    fn changed(&self, answer: TargetAnswer) -> Result<TargetAnswer, TargetAnswer> {
        match self.class(&answer.code) {
            Some(class) if answer.reached && class != answer.class => Ok(match class {
                Class::Done => TargetAnswer::done(),
                class => TargetAnswer {
                    class,
                    split: false,
                    ..answer
                },
            }),
            _ => Err(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_code(entries: &[(&str, Class)]) -> ClassByCode {
        let entries = entries.iter();
        ClassByCode::new(
            entries
                .map(|(codes, class)| (codes.parse().unwrap(), *class))
                .collect(),
        )
    }

    fn config(code: &'static str) -> TargetAnswer {
        TargetAnswer::new(Class::Config, code, "no")
    }

    #[test]
    fn the_narrowest_entry_applies_whatever_the_order() {
        let classes = by_code(&[
            ("5xx", Class::Transient),
            ("503", Class::Config),
            ("500-509", Class::Permanent),
            ("err_1300-1399", Class::Transient),
            ("unregister", Class::Transient),
        ]);
        let of = |code: &str| classes.class(code);
        assert_eq!(of("503"), Some(Class::Config));
        assert_eq!(of("504"), Some(Class::Permanent));
        assert_eq!(of("599"), Some(Class::Transient));
        assert_eq!(of("err_1302"), Some(Class::Transient));
        assert_eq!(of("unregister"), Some(Class::Transient));
        for other in [
            "499",
            "600",
            "err_503",
            "err_1400",
            "",
            "5xx",
            "unregistered",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_text_that_stands_for_no_codes_is_refused() {
        for text in [
            "",
            "403x",
            "5x",
            "599-500",
            "4-",
            "-4-",
            "0403",
            "99999999999",
            "4 - 5",
        ] {
            assert_eq!(text.parse::<Codes>(), Err(NoCodes), "{text:?}");
        }
    }

    #[test]
    fn a_call_that_fails_permanently_is_made_in_smaller_calls() {
        let classes = by_code(&[("403", Class::Permanent), ("404", Class::Done)]);
        let Verdict::All(answer) = classes.apply(Verdict::All(config("403"))) else {
            unreachable!()
        };
        assert_eq!((answer.class, answer.split), (Class::Permanent, true));
        assert_eq!((&*answer.code, &*answer.text), ("403", "no"));
        let done = classes.apply(Verdict::All(config("404")));
        assert_eq!(done, Verdict::All(TargetAnswer::done()));
        let as_it_was = Verdict::All(config("302"));
        assert_eq!(classes.apply(as_it_was.clone()), as_it_was);
        // Nothing was asked of the backend.
        let unreached = Verdict::All(config("403").unreached());
        assert_eq!(classes.apply(unreached.clone()), unreached);
    }

    #[test]
    fn what_befalls_one_recipient_stops_nobody_else() {
        let classes = by_code(&[("7", Class::Config), ("8", Class::Throttled)]);
        let refused = |code: &'static str| TargetAnswer::new(Class::Permanent, code, "no");
        let each = vec![TargetAnswer::done(), refused("7"), refused("8")];
        let Verdict::Each(answers) = classes.apply(Verdict::Each(each)) else {
            unreachable!()
        };
        let classes: Vec<_> = answers.iter().map(|answer| answer.class).collect();
        assert_eq!(classes, [Class::Done, Class::Permanent, Class::Transient]);
    }

    proptest! {
        /// A number is found by itself, by a range around it and by its hundred, under its prefix
        /// only.
        #[test]
        fn a_number_is_in_its_ranges(
            prefix in "[a-z_]{0,5}", number in 100u32..200_000, below in 0u32..100, above in 0u32..100,
        ) {
            let code = format!("{prefix}{number}");
            for text in [
                code.clone(),
                format!("{prefix}{}-{}", number - below, number + above),
                format!("{prefix}{}xx", number / 100),
            ] {
                let codes: Codes = text.parse().unwrap();
                prop_assert!(codes.contain(&code), "{text} {code}");
                let other = format!("other.{code}");
                prop_assert!(!codes.contain(&other));
            }
        }
    }
}
