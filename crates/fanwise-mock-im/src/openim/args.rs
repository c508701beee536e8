//! Defines the flags of the OpenIM mock.

use std::str::FromStr;

use super::{RECORD_NOT_FOUND, Rules};

/// `UID=CODE` from the command line.
#[derive(Clone, Debug)]
pub struct UserCode {
    uid: String,
    code: i32,
}

/// A text that is not `UID=CODE`.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a user and a code: give UID=CODE, for example u3=1302")]
pub struct UserCodeError(String);

impl FromStr for UserCode {
    type Err = UserCodeError;

    fn from_str(text: &str) -> Result<UserCode, UserCodeError> {
        let wrong = || UserCodeError(text.to_owned());
        // A uid may contain a `=`, a code never does.
        let (uid, code) = text.rsplit_once('=').ok_or_else(wrong)?;
        Ok(UserCode {
            uid: uid.to_owned(),
            code: code.parse().map_err(|_| wrong())?,
        })
    }
}

#[derive(Clone, Debug, clap::Args)]
pub struct OpenimArgs {
    /// OpenIM: the secret that is required for a token.
    #[arg(long, value_name = "SECRET", default_value = "openIM123")]
    pub openim_secret: String,

    /// OpenIM: the admin, whose token is required for sending.
    #[arg(long, value_name = "UID", default_value = "imAdmin")]
    pub openim_admin: String,

    /// OpenIM: an account that may send notifications of content type 1400. Can be repeated.
    #[arg(long, value_name = "UID")]
    pub openim_notification_account: Vec<String>,

    /// OpenIM: a token expires after COUNT calls. POST /_mock/openim/revoke revokes all tokens.
    #[arg(long, value_name = "COUNT")]
    pub openim_token_calls: Option<u64>,

    /// OpenIM: a send to this user or group gets this errCode: u3=1302 (blocked), g1=1201 (no such
    /// group). Can be repeated.
    #[arg(long, value_name = "UID=CODE")]
    pub openim_code: Vec<UserCode>,

    /// OpenIM: errCode of a refused user (1004 is "no such user").
    #[arg(long, value_name = "CODE", default_value_t = RECORD_NOT_FOUND)]
    pub openim_refuse_code: i32,

    /// OpenIM: only the listed users exist; see --users.
    #[arg(long)]
    pub openim_listed_only: bool,
}

impl OpenimArgs {
    pub(crate) fn into_rules(self) -> Rules {
        let codes = self.openim_code.into_iter();
        Rules {
            secret: self.openim_secret,
            admin: self.openim_admin,
            notification_accounts: self.openim_notification_account,
            token_calls: self.openim_token_calls,
            codes: codes.map(|user| (user.uid, user.code)).collect(),
            refuse_code: self.openim_refuse_code,
            listed_only: self.openim_listed_only,
        }
    }
}
