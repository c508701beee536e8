//! Calls of OpenIM to several users, to groups and to all.

use serde_json::{Value, json};

use super::{BATCH, batch, openim, openim_with, without};
use crate::Settings;
use crate::tests::with;

/// Goal: a batch is one message for each recipient, with one clientMsgID.
#[tokio::test]
async fn batch_reports_results_and_failures() {
    let im = openim(json!({ "codes": { "u2": 1302 } })).await;
    let reply = im
        .call(BATCH, "op", &batch(&["u1", "u2", "u3"]))
        .await
        .json();
    assert_eq!(reply["errCode"], 0);
    assert_eq!(reply["data"]["failedUserIDs"], json!(["u2"]));
    let results = reply["data"]["results"].as_array().unwrap();
    let ids: Vec<&Value> = results.iter().map(|result| &result["recvID"]).collect();
    assert_eq!(ids, ["u1", "u3"]);
    assert_eq!(results[0]["clientMsgID"], results[1]["clientMsgID"]);
    assert_ne!(results[0]["serverMsgID"], results[1]["serverMsgID"]);
    assert_eq!(im.mock.accepted_by("u3")[0].client_msg_no, "m1");
    assert_eq!(im.status("op").await, 0);
}

/// Goal: lists are null where Go's are nil, and a batch that reaches no recipient is a success.
#[tokio::test]
async fn batch_answers_null_lists() {
    let im = openim(json!({ "codes": { "u2": 1004 } })).await;
    let data = async |body: Value| im.call(BATCH, "op", &body).await.json()["data"].clone();
    let all_failed = json!({ "results": null, "failedUserIDs": ["u2"] });
    assert_eq!(data(batch(&["u2"])).await, all_failed);
    assert_eq!(data(batch(&["u1"])).await["failedUserIDs"], Value::Null);
    assert_eq!(
        data(batch(&[])).await,
        json!({ "results": null, "failedUserIDs": null })
    );
    let old_group = with(
        with(batch(&["u1"]), "sessionType", json!(2)),
        "groupID",
        json!("g"),
    );
    assert_eq!(data(old_group).await["failedUserIDs"], json!(["u1"]));

    for body in [
        without(batch(&[]), "recvIDs"),
        with(batch(&[]), "recvIDs", Value::Null),
    ] {
        assert_eq!(im.code(BATCH, &body).await, (1001, 400));
    }
    let to_all = with(without(batch(&[]), "recvIDs"), "isSendAll", json!(true));
    assert_eq!(im.code(BATCH, &to_all).await, (1001, 400));
}

/// Goal: a batch to a group posts one copy for each named recipient, and none without recipients.
#[tokio::test]
async fn batch_to_a_group_counts_copies() {
    let im = openim(json!({})).await;
    let group = |uids: &[&str]| {
        with(
            with(batch(uids), "sessionType", json!(3)),
            "groupID",
            json!("g1"),
        )
    };
    let reply = im.call(BATCH, "op", &group(&[])).await.json();
    assert_eq!(
        (&reply["errCode"], &reply["data"]["results"]),
        (&json!(0), &Value::Null)
    );
    assert_eq!(im.mock.accepted_by("g1").len(), 0);
    let reply = im.call(BATCH, "op", &group(&["u1", "u2"])).await.json();
    assert_eq!(reply["data"]["results"][1]["recvID"], "u2");
    assert_eq!(im.mock.accepted_by("g1").len(), 2);
    assert_eq!(im.mock.handle.stats().duplicates, 1);
}

/// Goal: isSendAll reaches all users, the admin and the sender included, whatever recipients are
/// named.
#[tokio::test]
async fn batch_to_all_is_unfiltered() {
    let settings = Settings {
        users: 1200,
        ..Settings::default()
    };
    let im = openim_with(json!({ "notification_accounts": ["news"] }), settings).await;
    let to_all = with(batch(&["u5000"]), "isSendAll", json!(true));
    let reply = im.call(BATCH, "op", &to_all).await.json();
    assert_eq!(reply["data"]["results"].as_array().unwrap().len(), 1202);
    for uid in ["imAdmin", "news", "u1", "u1200"] {
        assert_eq!(im.mock.accepted_by(uid).len(), 1, "{uid}");
    }
    assert_eq!(im.mock.accepted_by("u5000").len(), 0);
}
