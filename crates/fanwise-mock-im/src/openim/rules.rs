//! Defines the settings of this OpenIM: accounts, tokens, and recipients that cannot be sent to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::directory::Directory;

/// The settings of the OpenIM mock: `GET /_mock/openim` returns them, and `POST /_mock/openim`
/// changes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// The secret that `/auth/get_admin_token` and `/auth/user_token` require.
    pub secret: String,
    /// The only user whose token is accepted for sending.
    pub admin: String,
    /// Accounts other than the admin that may send OA notifications (content type 1400).
    pub notification_accounts: Vec<String>,
    /// Calls after which a token has expired; without it a token never expires.
    pub token_calls: Option<u64>,
    /// The errCode for sends to a user or group. 1301 to 1305 are relations, which are ignored if
    /// the admin sends or the session is a notification.
    pub codes: BTreeMap<String, i32>,
    /// The errCode of a user that the common refuse settings refuse.
    pub refuse_code: i32,
    /// If set, users that are not listed do not exist: they get 1004, but not in a notification
    /// session.
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
    /// The users that are not ordinary users.
    pub(super) fn staff(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.admin).chain(&self.notification_accounts)
    }

    pub(super) fn is_staff(&self, uid: &str) -> bool {
        self.staff().any(|member| member == uid)
    }

    /// Whether the user exists: always, unless only listed users do.
    pub(super) fn knows(&self, directory: Directory, uid: &str) -> bool {
        !self.listed_only || directory.contains(uid) || self.is_staff(uid)
    }

    /// The code set for this user or group.
    pub(super) fn code_of(&self, recipient: &str) -> Option<i32> {
        self.codes.get(recipient).copied().filter(|code| *code != 0)
    }
}
