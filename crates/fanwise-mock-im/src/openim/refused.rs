//! Writes answers in OpenIM's envelope: errors of the application are HTTP 200 with an errCode; a
//! body that cannot be bound is HTTP 400 with the same envelope.

use http::StatusCode;
use serde::Serialize;

use crate::reply::Answer;

pub(super) const SERVER_INTERNAL: i32 = 500;
pub(super) const ARGS: i32 = 1001;
pub(super) const NO_PERMISSION: i32 = 1002;
pub(super) const RECORD_NOT_FOUND: i32 = 1004;
pub(super) const USER_ID_NOT_FOUND: i32 = 1101;
pub(super) const TOKEN_EXPIRED: i32 = 1501;
pub(super) const TOKEN_MALFORMED: i32 = 1503;
pub(super) const TOKEN_NOT_EXIST: i32 = 1507;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<T> {
    err_code: i32,
    err_msg: String,
    err_dlt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
}

pub(super) fn success(data: impl Serialize) -> Answer {
    let envelope = Envelope {
        err_code: 0,
        err_msg: String::new(),
        err_dlt: String::new(),
        data: Some(data),
    };
    Answer::json(StatusCode::OK, &envelope)
}

/// A request that is refused as a whole.
#[derive(Debug)]
pub(super) struct Refused {
    code: i32,
    detail: String,
    status: StatusCode,
    /// Whether the caller broke a rule, as opposed to a user that cannot be sent to.
    pub(super) is_invalid: bool,
}

impl Refused {
    pub(super) fn new(code: i32, detail: impl Into<String>) -> Refused {
        Refused {
            code,
            detail: detail.into(),
            status: StatusCode::OK,
            is_invalid: false,
        }
    }

    /// The request breaks a rule of the protocol.
    pub(super) fn invalid(code: i32, detail: impl Into<String>) -> Refused {
        Refused {
            is_invalid: true,
            ..Refused::new(code, detail)
        }
    }

    /// The body does not fit the struct, or lacks a required field.
    pub(super) fn unbound(detail: impl Into<String>) -> Refused {
        Refused {
            status: StatusCode::BAD_REQUEST,
            ..Refused::invalid(ARGS, detail)
        }
    }

    pub(super) fn with_status(self, status: StatusCode) -> Refused {
        Refused { status, ..self }
    }

    pub(super) fn answer(&self) -> Answer {
        let name = name(self.code);
        let envelope = Envelope::<()> {
            err_code: self.code,
            err_msg: name.to_owned(),
            err_dlt: format!("{}: [{}]{name}", self.detail, self.code),
            data: None,
        };
        let answer = Answer::json(self.status, &envelope);
        // With any other status, Gin has set the headers before the body is written.
        match self.status {
            StatusCode::OK => answer,
            _ => answer.announced_as_text(),
        }
    }
}

/// The errMsg of a code.
fn name(code: i32) -> &'static str {
    match code {
        429 => "too many requests, please try again later",
        SERVER_INTERNAL => "ServerInternalError",
        ARGS => "ArgsError",
        NO_PERMISSION => "NoPermissionError",
        1003 => "DuplicateKeyError",
        RECORD_NOT_FOUND => "RecordNotFoundError",
        USER_ID_NOT_FOUND => "UserIDNotFoundError",
        1201 => "GroupIDNotFoundError",
        1203 => "NotInGroupYetError",
        1204 => "DismissedAlreadyError",
        1302 => "BlockedByPeer",
        1303 => "NotPeersFriend",
        1402 => "MutedInGroup",
        1403 => "MutedGroup",
        TOKEN_EXPIRED => "TokenExpiredError",
        1502 => "TokenInvalidError",
        TOKEN_MALFORMED => "TokenMalformedError",
        1504 => "TokenNotValidYetError",
        1505 => "TokenUnknownError",
        1506 => "TokenKickedError",
        TOKEN_NOT_EXIST => "TokenNotExistError",
        80000 => "CallbackError",
        90002 => "DatabaseError",
        90004 => "NetworkError",
        90007 => "DataError",
        _ => "Error",
    }
}
