//! Holds the users that lists of users contain: `u1` to `uN`.
//!
//! They are only names. A message to another user is accepted too, unless a system is configured
//! otherwise.

/// The number of users, in the order in which they registered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Directory {
    count: u64,
}

impl Directory {
    pub(super) fn new(count: u64) -> Directory {
        Directory { count }
    }

    pub(super) fn count(self) -> u64 {
        self.count
    }

    /// At most `limit` users after the first `skip`.
    pub(super) fn page(self, skip: u64, limit: u64) -> impl Iterator<Item = String> {
        let first = skip.min(self.count);
        let end = first.saturating_add(limit).min(self.count);
        (first..end).map(|index| uid(index + 1))
    }

    pub(super) fn contains(self, uid: &str) -> bool {
        self.number(uid).is_some()
    }

    /// The 1-based number of a user.
    pub(super) fn number(self, uid: &str) -> Option<u64> {
        let digits = uid.strip_prefix('u')?;
        // `u07` and `u+7` are not users of the list.
        let plain = digits.starts_with(|first: char| ('1'..='9').contains(&first));
        let number = digits.parse().ok().filter(|_| plain)?;
        (number <= self.count).then_some(number)
    }
}

/// The user with a 1-based number.
pub(super) fn uid(number: u64) -> String {
    format!("u{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_everybody_once() {
        let directory = Directory::new(5);
        let page = |skip, limit| directory.page(skip, limit).collect::<Vec<_>>();
        assert_eq!(page(0, 2), ["u1", "u2"]);
        assert_eq!(page(4, 2), ["u5"]);
        assert_eq!(page(5, 2), Vec::<String>::new());
        assert_eq!(page(9, u64::MAX), Vec::<String>::new());
    }

    #[test]
    fn numbers_belong_to_listed_users_only() {
        let directory = Directory::new(5);
        assert_eq!(directory.number("u5"), Some(5));
        for stranger in ["u6", "u0", "u05", "u+5", "5", "u", "user"] {
            assert!(!directory.contains(stranger), "{stranger}");
        }
    }
}
