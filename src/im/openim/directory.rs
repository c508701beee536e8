//! Lists all users with `POST /user/get_users`. It lists ordinary users only, so neither
//! administrators nor notification accounts. A cursor is the number of a page.
//!
//! The server's pages have no defined order. A user that registers or is deleted meanwhile may move
//! another one across the end of a page. A user that is listed twice gets the message once; a user
//! that is missed does not get it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri};
use serde::Deserialize;

use super::login::TokenLogin;
use super::{OPERATION_ID, reply};
use crate::domain::outcome::TargetAnswer;
use crate::ports::{Directory, HttpReply, Login, Page, Request};

pub(super) const PATH: &str = "/user/get_users";

/// Users of a page. The reply contains their whole profiles and must stay below the size limit of
/// replies.
const PAGE_USERS: u32 = 500;

/// The user list of one account.
pub(super) struct Users {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) login: Option<Arc<TokenLogin>>,
}

fn number(cursor: Option<&str>) -> u32 {
    cursor.and_then(|page| page.parse().ok()).unwrap_or(1)
}

#[derive(Deserialize)]
struct Found {
    total: Option<u64>,
    users: Option<Vec<User>>,
}

#[derive(Deserialize)]
struct User {
    #[serde(rename = "userID")]
    id: String,
}

impl Directory for Users {
    fn page(&self, cursor: Option<&str>) -> Request {
        let page = number(cursor);
        let body = format!(r#"{{"pagination":{{"pageNumber":{page},"showNumber":{PAGE_USERS}}}}}"#);
        let mut headers = self.headers.clone();
        if let Ok(operation) = HeaderValue::from_str(&format!("fanwise-users-{page}")) {
            headers.insert(OPERATION_ID, operation);
        }
        Request {
            method: Method::POST,
            uri: self.uri.clone(),
            headers,
            body: Bytes::from(body),
        }
    }

    fn read_page(&self, cursor: Option<&str>, reply: &HttpReply) -> Result<Page, TargetAnswer> {
        let found = reply::data::<Found>(reply).map_err(reply::harmless)?;
        let users = found.users.unwrap_or_default();
        let users: Vec<_> = users.into_iter().map(|user| user.id).collect();
        // The list ends at the first empty page: a server may return fewer users per page than
        // asked for, and its total changes meanwhile.
        let next = (!users.is_empty()).then(|| number(cursor).saturating_add(1).to_string());
        let total = found.total;
        Ok(Page { users, total, next })
    }

    fn login(&self) -> Option<&dyn Login> {
        self.login.as_deref().map(|login| login as &dyn Login)
    }
}
