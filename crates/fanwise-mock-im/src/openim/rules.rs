//! What this OpenIM is configured to: accounts, tokens and who cannot be sent to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::directory::Directory;

/// The settings of the OpenIM mock, as `GET /_mock/openim` shows and `POST /_mock/openim` changes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// What `/auth/get_admin_token` and `/auth/user_token` ask for.
    pub secret: String,
    /// The only user whose token may send.
    pub admin: String,
    /// Accounts that may send OA notifications (content type 1400), beside the admin.
    pub notification_accounts: Vec<String>,
    /// Calls after which a token has expired; without it a token lives for ever.
    pub token_calls: Option<u64>,
    /// The errCode that sending to a user or group gets. 1301 to 1305 are relations, which are not
    /// looked at when the admin sends or the session is a notification.
    pub codes: BTreeMap<String, i32>,
    /// The errCode of a user who is refused by the common refuse settings.
    pub refuse_code: i32,
    /// Users that are not listed do not exist: 1004, but not in a notification session.
    pub listed_only: bool,
}

impl Default for Rules {
    /// The defaults of OpenIM's own configuration.
    fn default() -> Rules {
        Rules {
            secret: "openIM123".to_owned(),
            admin: "imAdmin".to_owned(),
            notification_accounts: Vec::new(),
            token_calls: None,
            codes: BTreeMap::new(),
            refuse_code: super::RECORD_NOT_FOUND,
            listed_only: false,
        }
    }
}

impl Rules {
    /// The users that are no ordinary ones.
    pub(super) fn staff(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.admin).chain(&self.notification_accounts)
    }

    pub(super) fn is_staff(&self, uid: &str) -> bool {
        self.staff().any(|member| member == uid)
    }

    /// True unless only listed users exist and this is none.
    pub(super) fn knows(&self, directory: Directory, uid: &str) -> bool {
        !self.listed_only || directory.contains(uid) || self.is_staff(uid)
    }

    /// The code that is set for this user or group.
    pub(super) fn code_of(&self, recipient: &str) -> Option<i32> {
        self.codes.get(recipient).copied().filter(|code| *code != 0)
    }
}
