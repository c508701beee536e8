//! Lists all users, page by page, through the manager API: `GET /cluster/users` of 2.x,
//! `GET /manager/users` of 3.x.
//!
//! The `total` of 2.x counts the users stored on the node that answers, not those of the cluster,
//! so it is ignored; 3.x has no total.
//!
//! The list contains every user that ever got a token. 2.x lists from the newest to the oldest and
//! continues below the registration time of the last one, in nanoseconds. Users that register
//! meanwhile are not listed. While a node is away, 2.x silently leaves out the users that only this
//! node stores.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Uri};
use serde::Deserialize;

use super::{Manager, Settings, Version, code, header_value};
use crate::codec::push_segment;
use crate::domain::outcome::{Class, TargetAnswer};
use crate::im::json;
use crate::im::reading::{BAD_REPLY, excerpt, retry_after};
use crate::ports::{Credential, Directory, HttpReply, Login, Page, Request};
use crate::secret::Secret;

/// Users of a page on 2.x, which has no limit, and on 3.x, which allows at most 200.
const CLUSTER_PAGE: usize = 1000;
const MANAGER_PAGE: usize = 200;

/// Longest cursor that is accepted; cursors of 3.x are much shorter.
const CURSOR_BYTES_MAX: usize = 4096;

/// How long a token of 2.x is kept, whose reply does not contain a lifetime. If it expires earlier,
/// the manager refuses it and a new one is fetched.
const TOKEN_LIVES: Duration = Duration::from_secs(60 * 60);

/// The user list of an account.
pub(super) struct Users {
    version: Version,
    uri: Uri,
    headers: HeaderMap,
    login: Option<ManagerLogin>,
}

impl Users {
    pub(super) fn new(settings: &Settings, uri: Uri, login: Uri) -> Self {
        let mut headers = HeaderMap::new();
        // The manager of 2.x takes the same token as the API. The check of the settings reports a
        // token that cannot be a header.
        if let Some(token) = settings.token.as_ref().and_then(header_value) {
            headers.insert("token", token);
        }
        let login = settings.manager.clone().map(|manager| ManagerLogin {
            uri: login,
            version: settings.version,
            manager,
        });
        Self {
            version: settings.version,
            uri,
            headers,
            login,
        }
    }
}

impl Directory for Users {
    #[expect(
        clippy::expect_used,
        reason = "the cursor is encoded, and no longer than `read` lets it be"
    )]
    fn page(&self, cursor: Option<&str>) -> Request {
        let (limit, name) = match self.version {
            Version::V1 | Version::V2 => (CLUSTER_PAGE, "offset_created_at"),
            Version::V3 => (MANAGER_PAGE, "cursor"),
        };
        let mut uri = format!("{}?limit={limit}", self.uri);
        if let Some(cursor) = cursor {
            uri.push_str(&format!("&{name}="));
            push_segment(&mut uri, cursor);
        }
        Request {
            method: Method::GET,
            uri: uri.parse().expect("a URI"),
            headers: self.headers.clone(),
            body: Bytes::new(),
        }
    }

    fn read_page(&self, cursor: Option<&str>, reply: &HttpReply) -> Result<Page, TargetAnswer> {
        if reply.status != 200 {
            return Err(refusal(self.version, reply));
        }
        let page = match self.version {
            Version::V1 | Version::V2 => read_cluster(&reply.body),
            Version::V3 => read_manager(&reply.body),
        };
        let page = page.ok_or_else(|| odd("a reply of another shape", reply))?;
        match page.next.as_deref() {
            next @ Some(_) if next == cursor => {
                Err(odd("the next page would be this one again", reply))
            }
            Some(next) if next.len() > CURSOR_BYTES_MAX => {
                Err(odd("a cursor of many bytes", reply))
            }
            _ => Ok(page),
        }
    }

    fn login(&self) -> Option<&dyn Login> {
        let login = self.login.as_ref()?;
        Some(login)
    }
}

/// Listing has no effect, so no refusal leaves doubt: the caller tries again or gives up.
fn refusal(version: Version, reply: &HttpReply) -> TargetAnswer {
    let class = match code::status(version, reply.status) {
        Class::Uncertain | Class::Done => Class::Transient,
        // The manager has no such call, or the URL is not that of a manager.
        _ if reply.status == 404 => Class::Config,
        class => class,
    };
    let answer = TargetAnswer::new(class, reply.status.to_string(), excerpt(&reply.body))
        .retry_after(retry_after(&reply.headers));
    match reply.status {
        401 => answer.stale(),
        _ => answer,
    }
}

fn odd(what: &str, reply: &HttpReply) -> TargetAnswer {
    let text = format!("{what}: {}", excerpt(&reply.body));
    TargetAnswer::new(Class::Transient, BAD_REPLY, text)
}

#[derive(Deserialize)]
struct ClusterUsers {
    #[serde(default)]
    more: i64,
    /// Empty if the server has no users.
    data: Vec<ClusterUser>,
}

#[derive(Deserialize)]
struct ClusterUser {
    uid: String,
    created_at: i64,
}

fn read_cluster(body: &[u8]) -> Option<Page> {
    let ClusterUsers { more, data: users } = serde_json::from_slice(body).ok()?;
    let next = match users.last() {
        Some(last) if more != 0 => Some(last.created_at.to_string()),
        None if more != 0 => return None,
        _ => None,
    };
    Some(Page {
        users: users.into_iter().map(|user| user.uid).collect(),
        total: None,
        next,
    })
}

#[derive(Deserialize)]
struct ManagerUsers {
    items: Vec<ManagerUser>,
    has_more: bool,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct ManagerUser {
    uid: String,
}

fn read_manager(body: &[u8]) -> Option<Page> {
    let page: ManagerUsers = serde_json::from_slice(body).ok()?;
    let next = match page.has_more {
        true => Some(page.next_cursor.filter(|cursor| !cursor.is_empty())?),
        false => None,
    };
    Some(Page {
        users: page.items.into_iter().map(|user| user.uid).collect(),
        total: None,
        next,
    })
}

/// `POST /manager/login`. The versions differ only in the names of the reply's fields.
struct ManagerLogin {
    uri: Uri,
    version: Version,
    manager: Manager,
}

impl Login for ManagerLogin {
    fn request(&self) -> Request {
        let mut body = br#"{"username":"#.to_vec();
        json::push_string(&mut body, &self.manager.user);
        body.extend_from_slice(br#","password":"#);
        json::push_string(&mut body, self.manager.password.expose());
        body.push(b'}');
        let json = HeaderValue::from_static("application/json");
        Request {
            method: Method::POST,
            uri: self.uri.clone(),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, json)]),
            body: body.into(),
        }
    }

    fn read_credential(&self, reply: &HttpReply) -> Result<Credential, TargetAnswer> {
        /// 2.x: `token` and the second at which it expires. 3.x: `access_token` and its lifetime in
        /// seconds.
        #[derive(Deserialize)]
        struct LoggedIn {
            access_token: Option<String>,
            token: Option<String>,
            expires_in: Option<u64>,
        }
        if reply.status != 200 {
            return Err(refusal(self.version, reply));
        }
        let logged_in = serde_json::from_slice::<LoggedIn>(&reply.body).ok();
        logged_in
            .and_then(|it| {
                let lives = it.expires_in.map_or(TOKEN_LIVES, Duration::from_secs);
                let secret = Secret::new(it.access_token.or(it.token)?);
                Some(Credential { secret, lives })
            })
            // The reply is not shown: it may contain the token.
            .ok_or_else(|| {
                TargetAnswer::new(Class::Transient, BAD_REPLY, "a login without a token")
            })
    }

    fn apply(&self, request: &mut Request, credential: &str) {
        let bearer = Secret::new(format!("Bearer {credential}"));
        if let Some(bearer) = header_value(&bearer) {
            request.headers.insert(AUTHORIZATION, bearer);
        }
    }
}
