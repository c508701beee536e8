//! Counts the users of a target, so that a caller can confirm that all of them are meant. It asks
//! for the first page of the user list; it sends nothing.

use std::time::Duration;

use super::call::authorised;
use super::credential::Keyring;
use crate::domain::outcome::{Class, TargetAnswer};
use crate::ports::{Page, Target, Transport};

/// How many users there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserCount {
    Exactly(u64),
    /// There are further pages, and the target does not say how many users.
    AtLeast(u64),
}

impl UserCount {
    fn of(first: &Page) -> Self {
        let listed = first.users.len() as u64;
        match (first.total, &first.next) {
            (_, None) => Self::Exactly(listed),
            (Some(total), Some(_)) if total >= listed => Self::Exactly(total),
            (_, Some(_)) => Self::AtLeast(listed),
        }
    }
}

/// Counts the users of a target.
pub async fn count_users<T: Transport>(
    target: &dyn Target,
    transport: &T,
    timeout: Duration,
) -> Result<UserCount, TargetAnswer> {
    let Some(directory) = target.directory() else {
        let text = "the target cannot list its users";
        return Err(TargetAnswer::new(Class::Permanent, "no_directory", text));
    };
    let (login, keyring) = (directory.login(), Keyring::default());
    let sign = |request: &mut _, signing| target.sign(request, signing);
    let request = || directory.page(None);
    let (reply, _) = authorised(transport, login, &keyring, timeout, sign, request).await?;
    let reply = reply.map_err(|error| TargetAnswer::from(&error))?;
    Ok(UserCount::of(&directory.read_page(None, &reply)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(users: usize, total: Option<u64>, more: bool) -> UserCount {
        UserCount::of(&Page {
            users: vec!["u".to_owned(); users],
            total,
            next: more.then(|| "2".to_owned()),
        })
    }

    #[test]
    fn the_first_page_tells_what_it_can() {
        assert_eq!(of(3, None, false), UserCount::Exactly(3));
        assert_eq!(of(0, Some(0), false), UserCount::Exactly(0));
        assert_eq!(
            of(500, Some(1_204_331), true),
            UserCount::Exactly(1_204_331)
        );
        assert_eq!(of(200, None, true), UserCount::AtLeast(200));
        // A total that is less than the users on the page is ignored.
        assert_eq!(of(200, Some(7), true), UserCount::AtLeast(200));
        assert_eq!(of(3, Some(7), false), UserCount::Exactly(3));
    }
}
