//! Simulates `GET /im/v2/accounts?account_ids=a,b`, which returns the registered accounts. Users
//! refused with the code of an unknown account are not registered.

use axum::extract::Query;
use serde::Deserialize;
use serde_json::json;

use super::batch::lists;
use super::{UNKNOWN, success};
use crate::netease::{Admitted, Rejection};
use crate::reply::Answer;

#[derive(Deserialize)]
struct Accounts {
    account_ids: String,
}

pub(super) fn find(admitted: &Admitted<'_>) -> Result<Answer, Rejection> {
    let query = Query::<Accounts>::try_from_uri(&admitted.call.parts.uri);
    let Ok(Query(query)) = query else {
        return Err(admitted.invalid("account_ids is missing"));
    };
    let ids = query.account_ids.split(',').filter(|id| !id.is_empty());
    let (known, unknown): (Vec<&str>, Vec<&str>) = ids.partition(|id| is_known(admitted, id));
    let known = known.iter().map(|id| json!({ "account_id": id })).collect();
    let failed = |id: &&str| json!({ "account_id": id, "error_code": UNKNOWN, "error_msg": "account not exist" });
    let unknown = unknown.iter().map(failed).collect();
    Ok(success(&lists(known, unknown)))
}

fn is_known(admitted: &Admitted<'_>, id: &str) -> bool {
    let settings = &admitted.state.yunxin.settings;
    let own = settings.refuse_as.iter().find(|(user, _)| user == id);
    let code = own.map(|(_, code)| *code).or_else(|| {
        let refused = admitted.plan.refusal.applies_to(id);
        refused.then_some(settings.refuse_code)
    });
    code != Some(UNKNOWN)
}
