//! Simulates the lists of users: `POST /user/get_users`, `/user/get_all_users_uid`,
//! `/user/account_check`.
//!
//! The first lists ordinary users; the second lists the admin and the notification accounts, then
//! the ordinary users. Filters (`userID`, `nickName`) are ignored.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::refused::{ARGS, RECORD_NOT_FOUND, Refused, success};
use super::{Rules, bind};
use crate::Call;
use crate::faults::CallPlan;
use crate::go::null_is_default;
use crate::reply::Answer;
use crate::state::State;

#[derive(Default, Deserialize)]
#[serde(default)]
struct PageRequest {
    pagination: Option<Pagination>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Pagination {
    #[serde(deserialize_with = "null_is_default")]
    page_number: i32,
    #[serde(deserialize_with = "null_is_default")]
    show_number: i32,
}

/// A page as a range over the whole list.
struct Page {
    skip: u64,
    limit: u64,
}

impl Page {
    fn from_call(call: &Call) -> Result<Page, Refused> {
        let request: PageRequest = bind(call)?;
        let wrong = |text: &str| Refused::invalid(ARGS, text);
        let asked = request
            .pagination
            .ok_or_else(|| wrong("pagination is empty"))?;
        let positive = |number: i32| u64::try_from(number).ok().filter(|number| *number > 0);
        let number = positive(asked.page_number).ok_or_else(|| wrong("pageNumber is invalid"))?;
        let limit = positive(asked.show_number).ok_or_else(|| wrong("showNumber is invalid"))?;
        Ok(Page {
            skip: (number - 1) * limit,
            limit,
        })
    }
}

/// An empty slice of Go is `null` in JSON.
pub(super) fn nil_if_empty<T: Serialize>(items: &[T]) -> Value {
    match items {
        [] => Value::Null,
        items => json!(items),
    }
}

pub(super) fn list(state: &State, call: &Call) -> Result<Answer, Refused> {
    let page = Page::from_call(call)?;
    let user = |uid: String| {
        json!({
            "userID": uid,
            "nickname": uid,
            "faceURL": "",
            "ex": "",
            "createTime": 0,
            "appMangerLevel": 1,
            "globalRecvMsgOpt": 0,
        })
    };
    let users = state.directory.page(page.skip, page.limit);
    let users: Vec<Value> = users.map(user).collect();
    Ok(success(json!({
        "total": state.directory.count(),
        "users": nil_if_empty(&users),
    })))
}

pub(super) fn list_all(state: &State, rules: &Rules, call: &Call) -> Result<Answer, Refused> {
    let page = Page::from_call(call)?;
    let staff = rules.staff().count() as u64;
    let skip = page.skip.saturating_sub(staff);
    let first = rules.staff().skip(page.skip as usize);
    let first: Vec<String> = first.take(page.limit as usize).cloned().collect();
    let limit = page.limit - first.len() as u64;
    let ids: Vec<String> = first
        .into_iter()
        .chain(state.directory.page(skip, limit))
        .collect();
    Ok(success(json!({
        "total": state.directory.count() + staff,
        "userIDs": nil_if_empty(&ids),
    })))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CheckRequest {
    #[serde(deserialize_with = "null_is_default", rename = "checkUserIDs")]
    check_user_ids: Vec<String>,
}

pub(super) fn check(
    state: &State,
    rules: &Rules,
    call: &Call,
    plan: &CallPlan,
) -> Result<Answer, Refused> {
    let request: CheckRequest = bind(call)?;
    let distinct: HashSet<&String> = request.check_user_ids.iter().collect();
    if distinct.len() < request.check_user_ids.len() {
        return Err(Refused::invalid(ARGS, "userID repeated"));
    }
    let unknown = |uid: &str| {
        !rules.knows(state.directory, uid)
            || rules.code_of(uid) == Some(RECORD_NOT_FOUND)
            || (rules.refuse_code == RECORD_NOT_FOUND && plan.refusal.applies_to(uid))
    };
    let result = |uid: &String| json!({ "userID": uid, "accountStatus": i32::from(!unknown(uid)) });
    let results: Vec<Value> = request.check_user_ids.iter().map(result).collect();
    Ok(success(json!({ "results": nil_if_empty(&results) })))
}
